//! Attention on the host: tiles of queries, each against the whole reach of keys, as small matrix products.
//!
//! Scores of one tile are held, TILE x S: linear in S like the kernels.

use super::geometry::Geometry;
use crate::tensor::random::keep_element;
use crate::tensor::{Real, Tensor};
use rayon::prelude::*;

/// Queries of a tile: few, since a causal tile computes half of its square in vain.
const TILE: usize = 32;

/// A matrix inside a slice: start, and elements between rows and between columns.
#[derive(Clone, Copy)]
pub(super) struct View<'a, R> {
    data: &'a [R],
    row: usize,
    column: usize,
}

impl<'a, R> View<'a, R> {
    fn new(data: &'a [R], row: usize) -> Self {
        View { data, row, column: 1 }
    }

    fn transposed(self) -> Self {
        View { row: self.column, column: self.row, ..self }
    }
}

/// Precisions with a matrix product.
pub(super) trait Product: Real {
    /// `c = beta c + a b` for a [m, k] and b [k, n]; rows of c are `stride` apart.
    fn product(size: [usize; 3], a: View<Self>, b: View<Self>, beta: Self, c: &mut [Self], stride: usize);
}

macro_rules! product {
    ($type:ident, $gemm:ident) => {
        impl Product for $type {
            fn product(
                [m, k, n]: [usize; 3],
                a: View<Self>,
                b: View<Self>,
                beta: Self,
                c: &mut [Self],
                stride: usize,
            ) {
                if m == 0 || n == 0 {
                    return;
                }
                let reach = |v: &View<Self>, rows: usize, columns: usize| {
                    rows == 0 || columns == 0 || (rows - 1) * v.row + (columns - 1) * v.column < v.data.len()
                };
                assert!(reach(&a, m, k) && reach(&b, k, n) && n <= stride && (m - 1) * stride + n <= c.len());
                // SAFETY: the assertion above keeps every element of the three matrices inside its slice, and rows of c
                // do not overlap since n <= stride.
                unsafe {
                    matrixmultiply::$gemm(
                        m,
                        k,
                        n,
                        1.0,
                        a.data.as_ptr(),
                        a.row as isize,
                        a.column as isize,
                        b.data.as_ptr(),
                        b.row as isize,
                        b.column as isize,
                        beta,
                        c.as_mut_ptr(),
                        stride as isize,
                        1,
                    )
                }
            }
        }
    };
}
product!(f32, sgemm);
product!(f64, dgemm);

/// Queries, keys and values, wherever they lie.
struct Sources<'a, R> {
    g: &'a Geometry,
    q: &'a [R],
    k: &'a [R],
    v: &'a [R],
}

impl<'a, R: Real> Sources<'a, R> {
    fn new(g: &'a Geometry, inputs: &[&'a Tensor]) -> Self {
        let part = |i: usize| inputs[i.min(inputs.len() - 1)].real::<R>();
        Sources { g, q: part(0), k: &part(1)[g.key_offset..], v: &part(2)[g.value_offset..] }
    }

    fn query(&self, b: usize, t: usize, h: usize) -> View<'a, R> {
        let g = self.g;
        View::new(&self.q[(b * g.queries + t) * g.query_stride + h * g.size..], g.query_stride)
    }

    fn key(&self, b: usize, s: usize, h: usize) -> View<'a, R> {
        View::new(&self.k[self.key_row(b, s, h)..], self.g.key_stride)
    }

    fn value(&self, b: usize, s: usize, h: usize) -> View<'a, R> {
        View::new(&self.v[self.key_row(b, s, h)..], self.g.key_stride)
    }

    fn key_row(&self, b: usize, s: usize, h: usize) -> usize {
        (b * self.g.keys + s) * self.g.key_stride + h / self.g.share() * self.g.size
    }
}

/// Which probabilities exist and which are dropped.
struct Choice<'a> {
    g: &'a Geometry,
    mask: Option<&'a [u32]>,
    rng: [u32; 2],
}

impl Choice<'_> {
    /// Whether query `t` sees key `s`, apart from the reach of both.
    fn sees(&self, b: usize, t: usize, s: usize) -> bool {
        let number = |m: &[u32], at: usize| m[b * self.g.keys + at];
        self.mask.is_none_or(|m| number(m, s) != 0 && (!self.g.segmented || number(m, s) == number(m, t)))
    }

    /// Factor on the probability: zero if dropped.
    fn factor<R: Real>(&self, row: usize, s: usize) -> R {
        let element = row.wrapping_mul(self.g.keys).wrapping_add(s) as u32;
        let kept = keep_element(self.rng, self.g.salt, element, self.g.threshold);
        if kept { R::of(self.g.kept.into()) } else { R::default() }
    }
}

/// Tiles of queries with the keys that any of their rows sees.
fn tiles(g: &Geometry) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> + '_ {
    (0..g.queries).step_by(TILE).map(|first| {
        let end = (first + TILE).min(g.queries);
        let low = g.reach(first).start;
        (first, end, low..g.reach(end - 1).end.max(low))
    })
}

/// out and lse.
pub(super) fn forward<R: Product>(
    g: &Geometry,
    inputs: &[&Tensor],
    mask: Option<&[u32]>,
    rng: [u32; 2],
    outputs: &mut [Tensor],
) {
    let sources = Sources::<R>::new(g, inputs);
    let choice = Choice { g, mask, rng };
    let (out, lse) = outputs.split_at_mut(1);
    let of_head = g.queries * g.size;
    let mut heads = vec![R::default(); g.batch * g.heads * of_head];
    let lse = lse[0].real_mut::<R>();
    heads.par_chunks_mut(of_head.max(1)).zip(lse.par_chunks_mut(g.queries.max(1))).enumerate().for_each(
        |(pair, (out, lse))| forward_head(&sources, &choice, pair / g.heads, pair % g.heads, out, lse),
    );
    let row = g.heads * g.size;
    out[0].real_mut::<R>().par_chunks_mut(row).enumerate().for_each(|(bt, row)| {
        let (b, t) = (bt / g.queries, bt % g.queries);
        for (h, part) in row.chunks_mut(g.size).enumerate() {
            part.copy_from_slice(&heads[((b * g.heads + h) * g.queries + t) * g.size..][..g.size]);
        }
    });
}

fn forward_head<R: Product>(
    sources: &Sources<R>,
    choice: &Choice,
    b: usize,
    h: usize,
    out: &mut [R],
    lse: &mut [R],
) {
    let g = sources.g;
    let mut weights = vec![];
    for (first, end, keys) in tiles(g) {
        let (rows, count) = (end - first, keys.len());
        weights.resize(rows * count, R::default());
        let (q, k) = (sources.query(b, first, h), keys.start.min(g.keys - 1));
        let key = sources.key(b, k, h).transposed();
        R::product([rows, g.size, count], q, key, R::default(), &mut weights, count.max(1));
        for t in first..end {
            let row = &mut weights[(t - first) * count..][..count];
            lse[t] = probabilities(choice, b, t, keys.start, row);
            if g.threshold > 0 {
                let number = (b * g.heads + h) * g.queries + t;
                row.iter_mut().enumerate().for_each(|(j, w)| *w *= choice.factor(number, keys.start + j));
            }
        }
        let weights = View::new(&weights, count.max(1));
        let out = &mut out[first * g.size..end * g.size];
        R::product([rows, count, g.size], weights, sources.value(b, k, h), R::default(), out, g.size);
    }
}

/// Turns products into probabilities in place and returns the logarithm of the sum of exponentials.
fn probabilities<R: Real>(choice: &Choice, b: usize, t: usize, start: usize, row: &mut [R]) -> R {
    let g = choice.g;
    let seen = g.reach(t);
    let (low, high) = (seen.start.saturating_sub(start).min(row.len()), seen.end.saturating_sub(start));
    let high = high.clamp(low, row.len());
    row[..low].fill(R::default());
    row[high..].fill(R::default());
    let live = &mut row[low..high];
    let open = |j: usize| choice.sees(b, t, start + low + j);
    let scale = R::of(g.scale.into());
    let mut largest = None;
    for (j, x) in live.iter_mut().enumerate() {
        *x *= scale;
        if open(j) {
            largest = Some(largest.map_or(*x, |m: R| m.maximum(*x)));
        }
    }
    let Some(largest) = largest else {
        live.fill(R::default());
        return R::default();
    };
    let mut total = R::default();
    for (j, x) in live.iter_mut().enumerate() {
        *x = if open(j) { (*x - largest).exp() } else { R::default() };
        total += *x;
    }
    let inverse = R::of(1.0) / total;
    live.iter_mut().for_each(|x| *x *= inverse);
    largest + total.ln()
}

/// What the backward step reads beside the sources.
pub(super) struct Backward<T> {
    pub out: T,
    pub lse: T,
    pub up: T,
}

/// Gradients of q, k and v, or of the packed buffer.
pub(super) fn backward<R: Product>(
    g: &Geometry,
    inputs: &[&Tensor],
    saved: &Backward<&Tensor>,
    mask: Option<&[u32]>,
    rng: [u32; 2],
    outputs: &mut [Tensor],
) {
    let sources = Sources::<R>::new(g, inputs);
    let choice = Choice { g, mask, rng };
    // Each key head gathers into buffers of its own; its rows lie scattered between those of other heads.
    let parts: Vec<Part<R>> = (0..g.batch * g.key_heads)
        .into_par_iter()
        .map(|n| backward_group(&sources, &choice, saved, n / g.key_heads, n % g.key_heads))
        .collect();
    let mut scatter = |output: usize,
                       offset: usize,
                       time: usize,
                       stride: usize,
                       width: usize,
                       which: fn(&Part<R>) -> &[R]| {
        let data = outputs[output].real_mut::<R>();
        for (n, part) in parts.iter().enumerate() {
            let (b, head) = (n / g.key_heads, n % g.key_heads);
            for (t, row) in which(part).chunks(width).enumerate() {
                data[offset + (b * time + t) * stride + head * width..][..width].copy_from_slice(row);
            }
        }
    };
    let last = inputs.len() - 1;
    scatter(0, 0, g.queries, g.query_stride, g.share() * g.size, |p| &p.dq);
    scatter(1.min(last), g.key_offset, g.keys, g.key_stride, g.size, |p| &p.dk);
    scatter(2.min(last), g.value_offset, g.keys, g.key_stride, g.size, |p| &p.dv);
}

/// Gradients of one key head and the query heads that share it: dq [T, H / G, D], dk and dv [S, D].
struct Part<R> {
    dq: Vec<R>,
    dk: Vec<R>,
    dv: Vec<R>,
}

fn backward_group<R: Product>(
    sources: &Sources<R>,
    choice: &Choice,
    saved: &Backward<&Tensor>,
    b: usize,
    group: usize,
) -> Part<R> {
    let g = sources.g;
    let wide = g.share() * g.size;
    let zeros = |n: usize| vec![R::default(); n];
    let mut part =
        Part { dq: zeros(g.queries * wide), dk: zeros(g.keys * g.size), dv: zeros(g.keys * g.size) };
    let (out, up, lse) = (saved.out.real::<R>(), saved.up.real::<R>(), saved.lse.real::<R>());
    let stride = g.heads * g.size;
    let (mut weights, mut slopes) = (vec![], vec![]);
    for h in group * g.share()..(group + 1) * g.share() {
        for (first, end, keys) in tiles(g) {
            let (rows, count) = (end - first, keys.len());
            if count == 0 {
                continue;
            }
            weights.resize(rows * count, R::default());
            slopes.resize(rows * count, R::default());
            let q = sources.query(b, first, h);
            let (k, v) = (sources.key(b, keys.start, h), sources.value(b, keys.start, h));
            let at = (b * g.queries + first) * stride + h * g.size;
            let rise = View::new(&up[at..], stride);
            R::product([rows, g.size, count], q, k.transposed(), R::default(), &mut weights, count);
            R::product([rows, g.size, count], rise, v.transposed(), R::default(), &mut slopes, count);
            for t in first..end {
                let row = at + (t - first) * stride;
                let delta: R = out[row..][..g.size].iter().zip(&up[row..]).map(|(&o, &u)| o * u).sum();
                let number = (b * g.heads + h) * g.queries + t;
                let span = (t - first) * count..(t - first + 1) * count;
                let (weights, slopes) = (&mut weights[span.clone()], &mut slopes[span]);
                let seen = g.reach(t);
                for (j, (w, d)) in weights.iter_mut().zip(slopes).enumerate() {
                    let s = keys.start + j;
                    if !seen.contains(&s) || !choice.sees(b, t, s) {
                        (*w, *d) = (R::default(), R::default());
                        continue;
                    }
                    let factor = if g.threshold > 0 { choice.factor(number, s) } else { R::of(1.0) };
                    let p = (*w * R::of(g.scale.into()) - lse[number]).exp();
                    *d = p * (*d * factor - delta) * R::of(g.scale.into());
                    *w = p * factor;
                }
            }
            let (weights, slopes) = (View::new(&weights, count), View::new(&slopes, count));
            let one = R::of(1.0);
            let span = keys.start * g.size..keys.end * g.size;
            let dq = &mut part.dq[first * wide + (h - group * g.share()) * g.size..];
            R::product([rows, count, g.size], slopes, k, R::default(), dq, wide);
            R::product(
                [count, rows, g.size],
                slopes.transposed(),
                q,
                one,
                &mut part.dk[span.clone()],
                g.size,
            );
            R::product([count, rows, g.size], weights.transposed(), rise, one, &mut part.dv[span], g.size);
        }
    }
    part
}
