//! Attention of few queries over a cache of many keys: on the host rows read where they lie, on a device one workgroup for each
//! query and head.

use super::fast::{Sources, normalise};
use super::geometry::Geometry;
use super::text::{Buffers, columns};
use crate::ops::fast::dots::dots;
use crate::ops::fast::{team, widest};
use crate::ops::launch::{Kernel, Launch};
use crate::ops::seats::seat;
use crate::tensor::{DType, View};

/// Queries to which this is meant for: with more, tiles that share keys are faster.
pub(super) const FEW: usize = 8;

/// Elements of all keys below which a team's leader attends alone.
const FEW_OF_TEAM: usize = 1 << 12;

/// Invocations of a workgroup, a power of two: keys scored in one turn.
const LANES: usize = 128;

/// out and lse on the host where each sequence stands in a cache that it names.
pub(super) fn each(g: &Geometry, inputs: &[View], out: &mut [f32], lse: &mut [f32]) {
    let position = inputs[3].as_u32();
    let [queries, cached] = [g.queries * g.query_stride, g.keys * g.key_stride];
    let parts = out.chunks_mut(g.queries * g.heads * g.size).zip(lse.chunks_mut(g.heads * g.queries));
    for (b, (out, lse)) in parts.enumerate() {
        let [first, cache] = seat(position, b);
        let alone = g.alone(first);
        let part =
            |input: usize, size: usize, number: usize| &inputs[input].floats()[number * size..][..size];
        let [q, k, v] = [part(0, queries, b), part(1, cached, cache), part(2, cached, cache)];
        let sources = Sources { g: &alone, q, k, v, mask: None, rng: [0; 2] };
        match g.queries <= FEW {
            true => host(&sources, out, lse),
            false => super::fast::forward(&sources, out, lse),
        }
    }
}

/// out and lse on the host.
pub(super) fn host(sources: &Sources, out: &mut [f32], lse: &mut [f32]) {
    let g = sources.g;
    let mut rows: Vec<(&mut [f32], f32)> = out.chunks_exact_mut(g.size).map(|out| (out, 0.0)).collect();
    let each = match team::members() {
        Some(members) if rows.len() * g.size * g.reach(g.queries - 1).len() >= FEW_OF_TEAM => {
            rows.len().div_ceil(members)
        }
        Some(_) => rows.len(),
        None => 1,
    };
    team::chunks(&mut rows, each, |piece, rows| {
        let mut weights = vec![];
        for (at, (out, lse)) in rows.iter_mut().enumerate() {
            let number = piece * each + at;
            let (h, t, b) = (number % g.heads, number / g.heads % g.queries, number / g.heads / g.queries);
            let query = &sources.q[(b * g.queries + t) * g.query_stride + h * g.size..][..g.size];
            let seen = g.reach(t);
            let first = sources.key_row(b, h) + seen.start * g.key_stride;
            weights.resize(seen.len(), 0.0);
            score(query, &sources.k[first..], g.key_stride, g.scale, &mut weights);
            *lse = normalise(&mut weights);
            mix(&weights, &sources.v[first..], g.key_stride, out);
        }
    });
    for (number, (_, found)) in rows.iter().enumerate() {
        let (h, t, b) = (number % g.heads, number / g.heads % g.queries, number / g.heads / g.queries);
        lse[(b * g.heads + h) * g.queries + t] = *found;
    }
}

/// Keys and values that are read at a time.
const ROWS: usize = 8;

widest! {
    /// Products of a query with keys `stride` apart.
    fn score(query: &[f32], keys: &[f32], stride: usize, scale: f32, weights: &mut [f32]) {
        let (runs, rest) = weights.as_chunks_mut::<ROWS>();
        let last = runs.len() * ROWS;
        for (number, weights) in runs.iter_mut().enumerate() {
            *weights = dots(query, &keys[number * ROWS * stride..], stride).map(|sum| sum * scale);
        }
        for (at, weight) in rest.iter_mut().enumerate() {
            let [sum] = dots(query, &keys[(last + at) * stride..], stride);
            *weight = sum * scale;
        }
    }
}

widest! {
    /// The weighted sum of values `stride` apart.
    fn mix(weights: &[f32], values: &[f32], stride: usize, out: &mut [f32]) {
        out.fill(0.0);
        let n = out.len();
        let (runs, rest) = weights.as_chunks::<ROWS>();
        for (number, weights) in runs.iter().enumerate() {
            // A plain loop: through a closure the lengths would be lost.
            let mut rows: [&[f32]; ROWS] = [&[]; ROWS];
            for i in 0..ROWS {
                rows[i] = &values[(number * ROWS + i) * stride..][..n];
            }
            for j in 0..n {
                let mut sum = weights[0] * rows[0][j];
                for i in 1..ROWS {
                    sum += weights[i] * rows[i][j];
                }
                out[j] += sum;
            }
        }
        for (at, &weight) in rest.iter().enumerate() {
            let value = &values[(runs.len() * ROWS + at) * stride..][..n];
            out.iter_mut().zip(value).for_each(|(o, v)| *o += weight * v);
        }
    }
}

/// The kernel with the bindings that all forward kernels have.
pub(super) fn launch(buffers: Buffers, g: &Geometry, dtype: DType) -> Launch {
    let parts = g.size.div_ceil(4);
    let kernel = Kernel::new("attention_step")
        .constant("LANES", LANES as u32)
        .constant("PARTS", parts as u32)
        .constant("SHARES", (LANES / parts) as u32)
        .paste("COLUMNS", columns(4));
    buffers.launch(kernel, dtype, g, 1, g.batch * g.heads * g.queries)
}
