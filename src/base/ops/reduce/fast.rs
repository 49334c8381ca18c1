//! Reductions on the host as an engine runs them.

use super::{Kind, Reduce, split};
use crate::ops::fast::math::{largest_of, sum_of};
use crate::ops::fast::widest;
use crate::tensor::{View, ViewMut};
use rayon::prelude::*;

/// Columns one piece of work takes.
const COLUMNS: usize = 256;
/// Elements of a row summed before they enter the total: partial sums keep long sums exact.
const BLOCK: usize = 1 << 12;
/// Elements below which all stays on one thread.
const FEW: usize = 1 << 14;

pub(super) fn compute(op: &Reduce, x: &View, y: &mut ViewMut) {
    let [_, length, inner] = split(x.shape, op.axis);
    let count = x.shape.count();
    let (x, y) = (x.floats(), y.floats());
    let is_small = count < FEW;
    if inner == 1 && y.len() == 1 {
        let parts: Vec<f32> = x.par_chunks(BLOCK).with_min_len(4).map(|x| row(op.kind, x)).collect();
        y[0] = row(op.kind, &parts);
    } else if inner == 1 {
        let rows = if is_small { y.len() } else { 1 + BLOCK / length };
        let parts = y.par_chunks_mut(rows).zip(x.par_chunks(rows * length));
        parts.for_each(|(y, x)| {
            y.iter_mut().zip(x.chunks_exact(length)).for_each(|(y, x)| *y = long_row(op.kind, x));
        });
    } else {
        let columns = if is_small { inner } else { COLUMNS };
        let blocks = inner.div_ceil(columns);
        let parts: Vec<&mut [f32]> = y.chunks_mut(inner).flat_map(|row| row.chunks_mut(columns)).collect();
        let few = if is_small { parts.len().max(1) } else { 1 };
        parts.into_par_iter().with_min_len(few).enumerate().for_each(|(part, y)| {
            let first = part / blocks * length * inner + part % blocks * columns;
            down(op.kind, &x[first..], inner, length, y);
        });
    }
    if op.kind == Kind::Mean {
        y.iter_mut().for_each(|y| *y /= length as f32);
    }
}

fn long_row(kind: Kind, x: &[f32]) -> f32 {
    if x.len() <= BLOCK {
        return row(kind, x);
    }
    let parts: Vec<f32> = x.chunks(BLOCK).map(|x| row(kind, x)).collect();
    row(kind, &parts)
}

widest! {
    fn row(kind: Kind, x: &[f32]) -> f32 {
        if kind != Kind::Maximum {
            return sum_of(x, |x| x);
        }
        // A largest element that passes over NaN, and a sum that does not.
        if sum_of(x, |x| if x.is_nan() { 1.0 } else { 0.0 }) > 0.0 { f32::NAN } else { largest_of(x) }
    }
}

widest! {
    /// y[i] = x[i] joined with x[i + stride], and so on, `length` of them.
    fn down(kind: Kind, x: &[f32], stride: usize, length: usize, y: &mut [f32]) {
        let width = y.len();
        y.copy_from_slice(&x[..width]);
        if kind == Kind::Maximum {
            for a in 1..length {
                for (y, &x) in y.iter_mut().zip(&x[a * stride..][..width]) {
                    *y = if *y > x || y.is_nan() { *y } else { x };
                }
            }
            return;
        }
        let mut a = 1;
        while a + 4 <= length {
            let [p, q, r, s] = [0, 1, 2, 3].map(|i| &x[(a + i) * stride..][..width]);
            for i in 0..width {
                y[i] += (p[i] + q[i]) + (r[i] + s[i]);
            }
            a += 4;
        }
        for a in a..length {
            y.iter_mut().zip(&x[a * stride..][..width]).for_each(|(y, x)| *y += x);
        }
    }
}
