//! Attention on the host as an engine runs it: heads over threads, tiles of queries against packed keys and values.
//!
//! Scores of one tile are held, TILE x S: linear in S like the kernels. Keys past a tile's causal reach are not touched.

use super::geometry::Geometry;
use super::host::Backward;
use crate::ops::fast::math::{LANES, exp, exponentials, largest_of, ln, sum_of_pairs};
use crate::ops::fast::product::{Matrix, Panels, product_here};
use crate::ops::fast::{team, widest};
use crate::tensor::random::keep_element;
use crate::tensor::{View, ViewMut};
use std::ops::Range;

/// Queries of a tile: whole tiles of the product kernels, few, since a causal tile computes half of its square in vain.
const TILE: usize = 48;

/// What the operator reads.
pub(super) struct Sources<'a> {
    pub g: &'a Geometry,
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub mask: Option<&'a [u32]>,
    pub rng: [u32; 2],
}

impl<'a> Sources<'a> {
    pub fn new(g: &'a Geometry, inputs: &[View<'a>], mask: Option<&'a [u32]>, rng: [u32; 2]) -> Self {
        let part = |i: usize| inputs[i.min(inputs.len() - 1)].floats();
        Sources { g, q: part(0), k: &part(1)[g.key_offset..], v: &part(2)[g.value_offset..], mask, rng }
    }

    fn query(&self, b: usize, t: usize, h: usize) -> Matrix<'a> {
        let g = self.g;
        Matrix::new(&self.q[(b * g.queries + t) * g.query_stride + h * g.size..], g.query_stride)
    }

    fn key(&self, b: usize, h: usize) -> Matrix<'a> {
        Matrix::new(&self.k[self.key_row(b, h)..], self.g.key_stride)
    }

    fn value(&self, b: usize, h: usize) -> Matrix<'a> {
        Matrix::new(&self.v[self.key_row(b, h)..], self.g.key_stride)
    }

    pub fn key_row(&self, b: usize, h: usize) -> usize {
        b * self.g.keys * self.g.key_stride + h / self.g.share() * self.g.size
    }

    /// Sets to `value` what the mask hides from query `t`, in a row whose first key is `start`.
    fn hide(&self, b: usize, t: usize, start: usize, row: &mut [f32], value: f32) {
        let Some(mask) = self.mask else { return };
        let own = if self.g.segmented { mask[b * self.g.keys + t] } else { 0 };
        let mask = &mask[b * self.g.keys + start..];
        let hidden = |m: u32| m == 0 || self.g.segmented && m != own;
        row.iter_mut().zip(mask).filter(|(_, m)| hidden(**m)).for_each(|(x, _)| *x = value);
    }

    /// Dropout's factor on the probability of one key.
    fn factor(&self, row: usize, s: usize) -> f32 {
        let element = row.wrapping_mul(self.g.keys).wrapping_add(s) as u32;
        let kept = keep_element(self.rng, self.g.salt, element, self.g.threshold);
        if kept { self.g.kept } else { 0.0 }
    }
}

/// Tiles of queries with the keys that any of their rows sees.
fn tiles(g: &Geometry) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + '_ {
    (0..g.queries).step_by(TILE).map(|first| {
        let end = (first + TILE).min(g.queries);
        let low = g.reach(first).start;
        (first..end, low..g.reach(end - 1).end.max(low))
    })
}

/// An output of which each head writes columns of its own.
#[derive(Clone, Copy)]
struct Shared {
    start: *mut f32,
    count: usize,
}

// SAFETY: heads write disjoint elements, and the output outlives the work.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(all: &mut [f32]) -> Self {
        Shared { start: all.as_mut_ptr(), count: all.len() }
    }

    /// Copies rows of `width` elements to rows that begin at `first`, `stride` apart.
    ///
    /// # Safety
    /// Nothing else touches these elements for the time.
    unsafe fn put(self, rows: &[f32], width: usize, first: usize, stride: usize) {
        for (t, row) in rows.chunks_exact(width).enumerate() {
            let at = first + t * stride;
            assert!(at + width <= self.count);
            // SAFETY: within the output, and the caller's.
            unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), self.start.add(at), width) };
        }
    }
}

/// out and lse.
pub(super) fn forward(sources: &Sources, out: &mut [f32], lse: &mut [f32]) {
    let g = sources.g;
    let out = Shared::new(out);
    // Of a cache only the first rows are filled.
    let held = tiles(g).map(|(_, seen)| seen.end).max().unwrap_or(0);
    team::chunks(lse, g.queries, |pair, lse| {
        let (b, h) = (pair / g.heads, pair % g.heads);
        let [mut keys, mut values] = [Panels::default(), Panels::default()];
        keys.pack(sources.key(b, h).transposed(), [g.size, held]);
        values.pack(sources.value(b, h), [held, g.size]);
        let mut weights = vec![0.0; TILE * held];
        let mut part = vec![0.0; TILE * g.size];
        for (rows, seen) in tiles(g) {
            let count = seen.end;
            let query = sources.query(b, rows.start, h);
            keys.product([rows.len(), count], 0..g.size, query, &mut weights, held, false);
            for t in rows.clone() {
                let row = &mut weights[(t - rows.start) * held..][..count];
                lse[t] = probabilities(sources, b, t, row);
                if g.threshold > 0 {
                    let number = pair * g.queries + t;
                    row.iter_mut().enumerate().for_each(|(s, w)| *w *= sources.factor(number, s));
                }
            }
            let weights = Matrix::new(&weights[seen.start..], held);
            values.product([rows.len(), g.size], seen.clone(), weights, &mut part, g.size, false);
            let first = ((b * g.queries + rows.start) * g.heads + h) * g.size;
            // SAFETY: these columns are this head's.
            unsafe { out.put(&part[..rows.len() * g.size], g.size, first, g.heads * g.size) };
        }
    });
}

/// Turns products into probabilities in place and returns the logarithm of the sum of exponentials.
fn probabilities(sources: &Sources, b: usize, t: usize, row: &mut [f32]) -> f32 {
    let (seen, area) = reach_in(sources.g, t, row.len());
    row[..area.start].fill(0.0);
    row[area.end..].fill(0.0);
    scale(&mut row[area.clone()], sources.g.scale);
    row[area.start..seen.start].fill(f32::NEG_INFINITY);
    row[seen.end..area.end].fill(f32::NEG_INFINITY);
    sources.hide(b, t, seen.start, &mut row[seen], f32::NEG_INFINITY);
    normalise(&mut row[area])
}

/// Keys that query `t` sees among the first `count`, and whole vectors around them.
fn reach_in(g: &Geometry, t: usize, count: usize) -> (Range<usize>, Range<usize>) {
    let seen = g.reach(t);
    let end = seen.end.min(count);
    let start = seen.start.min(end);
    (start..end, start / LANES * LANES..end.next_multiple_of(LANES).min(count))
}

widest! {
    fn scale(x: &mut [f32], scale: f32) {
        x.iter_mut().for_each(|x| *x *= scale);
    }
}

widest! {
    /// Softmax of a row; returns the logarithm of its sum of exponentials.
    pub(super) fn normalise(x: &mut [f32]) -> f32 {
        let largest = largest_of(x);
        if largest == f32::NEG_INFINITY {
            // Nothing to attend to, unless what there is are no numbers.
            let value = if x.iter().any(|x| x.is_nan()) { f32::NAN } else { 0.0 };
            x.fill(value);
            return value;
        }
        let total = exponentials(x, largest);
        let inverse = 1.0 / total;
        x.iter_mut().for_each(|x| *x *= inverse);
        largest + ln(total)
    }
}

/// Where the gradients of q, k and v begin and how far their rows are apart.
struct Targets {
    parts: [(Shared, usize, usize); 3],
}

/// Gradients of q, k and v, or of the packed buffer.
pub(super) fn backward(sources: &Sources, saved: &Backward<View>, outputs: &mut [ViewMut]) {
    let g = sources.g;
    let last = outputs.len() - 1;
    let shared: Vec<Shared> = outputs.iter_mut().map(|y| Shared::new(y.floats())).collect();
    let targets = Targets {
        parts: [
            (shared[0], 0, g.query_stride),
            (shared[1.min(last)], g.key_offset, g.key_stride),
            (shared[2.min(last)], g.value_offset, g.key_stride),
        ],
    };
    team::share(g.batch * g.key_heads, &|number| {
        backward_group(sources, saved, number / g.key_heads, number % g.key_heads, &targets);
    });
}

/// One key head and the query heads that share it.
fn backward_group(sources: &Sources, saved: &Backward<View>, b: usize, group: usize, targets: &Targets) {
    let g = sources.g;
    let (out, up, lse) = (saved.out.floats(), saved.up.floats(), saved.lse.floats());
    let (keys, size, stride) = (g.keys, g.size, g.heads * g.size);
    let [mut rows_of_k, mut columns_of_k, mut columns_of_v] = [(); 3].map(|_| Panels::default());
    let head = group * g.share();
    rows_of_k.pack(sources.key(b, head), [keys, size]);
    columns_of_k.pack(sources.key(b, head).transposed(), [size, keys]);
    columns_of_v.pack(sources.value(b, head).transposed(), [size, keys]);
    let [mut dk, mut dv] = [(); 2].map(|_| vec![0.0; keys * size]);
    let [mut weights, mut slopes] = [(); 2].map(|_| vec![0.0; TILE * keys]);
    let mut dq = vec![0.0; TILE * size];
    for h in head..head + g.share() {
        for (rows, seen) in tiles(g) {
            let count = seen.end;
            let q = sources.query(b, rows.start, h);
            let at = (b * g.queries + rows.start) * stride + h * size;
            let rise = Matrix::new(&up[at..], stride);
            columns_of_k.product([rows.len(), count], 0..size, q, &mut weights, keys, false);
            columns_of_v.product([rows.len(), count], 0..size, rise, &mut slopes, keys, false);
            for t in rows.clone() {
                let at = at + (t - rows.start) * stride;
                let delta = dot(&out[at..at + size], &up[at..at + size]);
                let number = (b * g.heads + h) * g.queries + t;
                let line = (t - rows.start) * keys;
                let (weights, slopes) = (&mut weights[line..][..count], &mut slopes[line..][..count]);
                let (mine, area) = reach_in(g, t, count);
                if g.threshold == 0 {
                    slope(&mut weights[area.clone()], &mut slopes[area], g.scale, lse[number], delta);
                } else {
                    for s in mine.clone() {
                        let factor = sources.factor(number, s);
                        let p = exp(weights[s] * g.scale - lse[number]);
                        slopes[s] = p * (slopes[s] * factor - delta) * g.scale;
                        weights[s] = p * factor;
                    }
                }
                for line in [weights, slopes] {
                    line[..mine.start].fill(0.0);
                    line[mine.end..].fill(0.0);
                    sources.hide(b, t, mine.start, &mut line[mine.clone()], 0.0);
                }
            }
            let lines = |x| Matrix::new(x, keys);
            let from = seen.start * size;
            rows_of_k.product(
                [rows.len(), size],
                seen.clone(),
                lines(&slopes[seen.start..]),
                &mut dq,
                size,
                false,
            );
            product_here(
                [seen.len(), rows.len(), size],
                lines(&slopes[seen.start..]).transposed(),
                q,
                &mut dk[from..],
                size,
                true,
            );
            product_here(
                [seen.len(), rows.len(), size],
                lines(&weights[seen.start..]).transposed(),
                rise,
                &mut dv[from..],
                size,
                true,
            );
            let (target, offset, stride) = targets.parts[0];
            let first = offset + (b * g.queries + rows.start) * stride + h * size;
            // SAFETY: these columns are this head's.
            unsafe { target.put(&dq[..rows.len() * size], size, first, stride) };
        }
    }
    for (&(target, offset, stride), part) in targets.parts[1..].iter().zip([&dk, &dv]) {
        // SAFETY: these columns are this key head's.
        unsafe { target.put(part, size, offset + b * keys * stride + group * size, stride) };
    }
}

widest! {
    fn dot(x: &[f32], y: &[f32]) -> f32 {
        sum_of_pairs(x, y, |x, y| x * y)
    }
}

widest! {
    /// w: products to probabilities; d: the gradient of the probabilities to that of the products.
    fn slope(w: &mut [f32], d: &mut [f32], scale: f32, lse: f32, delta: f32) {
        for (w, d) in w.iter_mut().zip(d) {
            let p = exp(*w * scale - lse);
            *d = p * (*d - delta) * scale;
            *w = p;
        }
    }
}
