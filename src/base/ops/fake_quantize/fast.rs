//! Fake quantisation on the host as an engine runs it: symmetric codes, run by run of neighbouring elements.
//!
//! A run has one scale, or one scale for each element: a row's group, or a row where lines are columns.

use super::lines::Lines;
use crate::ops::fast::widest;
use rayon::prelude::*;

/// Elements that a thread takes at a time, about.
const TAKE: usize = 1 << 13;
/// Columns whose sums a thread keeps.
const COLUMNS: usize = 64;

/// The code range.
pub(super) type Bounds = [f32; 2];

/// Calls `run` with each run of `y` and `x` (and, for a gradient, `up`), its scales: one, or as many as elements.
fn runs(
    lines: Lines,
    arrays: (&mut [f32], [&[f32]; 2], &[f32]),
    run: impl Fn(&mut [f32], [&[f32]; 2], &[f32]) + Sync,
) {
    let (y, [x, up], s) = arrays;
    let row = if lines.inner == 1 { lines.length } else { lines.inner };
    let rows = (TAKE / row).max(1);
    let pieces = y.par_chunks_mut(rows * row).zip(x.par_chunks(rows * row).zip(up.par_chunks(rows * row)));
    pieces.enumerate().for_each(|(piece, (y, (x, up)))| {
        let each = y.chunks_mut(row).zip(x.chunks(row).zip(up.chunks(row)));
        for (at, (y, (x, up))) in each.enumerate() {
            let first = lines.line_of((piece * rows + at) * row);
            if lines.inner > 1 {
                run(y, [x, up], &s[first..first + row]);
                continue;
            }
            let groups = y.chunks_mut(lines.group).zip(x.chunks(lines.group).zip(up.chunks(lines.group)));
            for (line, (y, (x, up))) in groups.enumerate() {
                run(y, [x, up], &s[first + line..][..1]);
            }
        }
    });
}

/// y as the elements come back from their codes.
pub(super) fn values(lines: Lines, x: &[f32], s: &[f32], y: &mut [f32], bounds: Bounds) {
    runs(lines, (y, [x, x], s), |y, [x, _], s| match s {
        [s] => values_by_one(x, *s, y, bounds),
        s => values_by_each(x, s, y, bounds),
    });
}

/// dx = up where the code is inside the range.
pub(super) fn gradients(lines: Lines, [x, s, up]: [&[f32]; 3], dx: &mut [f32], bounds: Bounds) {
    runs(lines, (dx, [x, up], s), |dx, [x, up], s| match s {
        [s] => gradients_by_one(x, *s, up, dx, bounds),
        s => gradients_by_each(x, s, up, dx, bounds),
    });
}

/// ds of each line, but for the factor, where lines are columns.
pub(super) fn column_sums(lines: Lines, [x, s, up]: [&[f32]; 3], ds: &mut [f32], bounds: Bounds) {
    over_columns(lines, ds, |line, at, ds| {
        let range = at..at + ds.len();
        add_terms(&x[range.clone()], &s[line..line + ds.len()], &up[range], ds, bounds);
    });
}

/// Bits of the largest magnitude of each line, where lines are columns, as floats.
pub(super) fn column_largest(lines: Lines, x: &[f32], largest: &mut [f32]) {
    over_columns(lines, largest, |_, at, largest| raise(&x[at..at + largest.len()], largest));
}

/// Calls `row` for each row of each piece of neighbouring columns: first line, first element, what is kept of the columns.
fn over_columns(lines: Lines, kept: &mut [f32], row: impl Fn(usize, usize, &mut [f32]) + Sync) {
    kept.par_chunks_mut(lines.inner).enumerate().for_each(|(block, kept)| {
        kept.par_chunks_mut(COLUMNS).enumerate().for_each(|(piece, kept)| {
            let line = block * lines.inner + piece * COLUMNS;
            kept.fill(0.0);
            lines.elements(line).for_each(|at| row(line, at, kept));
        });
    });
}

/// Largest magnitude of neighbouring elements; infinite or NaN if one is.
pub(super) fn largest(x: &[f32]) -> f32 {
    f32::from_bits(largest_bits(x))
}

widest! {
    fn largest_bits(x: &[f32]) -> u32 {
        x.iter().fold(0, |largest: u32, x| largest.max(x.to_bits() & 0x7fff_ffff))
    }
}

widest! {
    fn raise(x: &[f32], largest: &mut [f32]) {
        for (largest, x) in largest.iter_mut().zip(x) {
            *largest = f32::from_bits(largest.to_bits().max(x.to_bits() & 0x7fff_ffff));
        }
    }
}

/// The exact quotient, zero for a scale of zero.
#[inline(always)]
fn quotient(x: f32, s: f32) -> f32 {
    if s == 0.0 { 0.0 } else { x / s }
}

#[inline(always)]
fn value(x: f32, s: f32, bounds: Bounds) -> f32 {
    // A quotient that is NaN stays one: comparisons with it are false.
    let code = quotient(x, s).round_ties_even();
    let code = if code < bounds[0] { bounds[0] } else { code };
    (if code > bounds[1] { bounds[1] } else { code }) * s
}

#[inline(always)]
fn passed(x: f32, s: f32, up: f32, bounds: Bounds) -> f32 {
    let code = quotient(x, s).round_ties_even();
    if code >= bounds[0] && code <= bounds[1] { up } else { 0.0 }
}

widest! {
    fn values_by_one(x: &[f32], s: f32, y: &mut [f32], bounds: [f32; 2]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = value(x, s, bounds));
    }
}

widest! {
    fn values_by_each(x: &[f32], s: &[f32], y: &mut [f32], bounds: [f32; 2]) {
        y.iter_mut().zip(x.iter().zip(s)).for_each(|(y, (&x, &s))| *y = value(x, s, bounds));
    }
}

widest! {
    fn gradients_by_one(x: &[f32], s: f32, up: &[f32], dx: &mut [f32], bounds: [f32; 2]) {
        dx.iter_mut().zip(x.iter().zip(up)).for_each(|(dx, (&x, &up))| *dx = passed(x, s, up, bounds));
    }
}

widest! {
    fn gradients_by_each(x: &[f32], s: &[f32], up: &[f32], dx: &mut [f32], bounds: [f32; 2]) {
        let each = dx.iter_mut().zip(x.iter().zip(s.iter().zip(up)));
        each.for_each(|(dx, (&x, (&s, &up)))| *dx = passed(x, s, up, bounds));
    }
}

widest! {
    fn add_terms(x: &[f32], s: &[f32], up: &[f32], ds: &mut [f32], bounds: [f32; 2]) {
        for (ds, (&x, (&s, &up))) in ds.iter_mut().zip(x.iter().zip(s.iter().zip(up))) {
            let exact = quotient(x, s);
            let code = exact.round_ties_even();
            let inside = if code < bounds[0] { bounds[0] } else { code };
            let inside = if inside > bounds[1] { bounds[1] } else { inside };
            *ds += up * if inside == code { code - exact } else { inside };
        }
    }
}
