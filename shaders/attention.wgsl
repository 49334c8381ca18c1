// attention: what its kernels share: parameters, reach of the mask, small products, dropout
//
// The importing shader pastes BUFFERS: bindings with `load_NAME(first element, part) -> vec4<f32>` and
// `store_NAME(first element, part, vec4<f32>)` for rows of SIZE elements, whole or with a tail, cut in parts of four; and
// `shift_of_queries(b) -> i32`, the position of query 0 of a sequence among the keys, and `cache_of(b) -> u32`, which sequence of the
// keys that is.

#import random

struct Params {
    batch: u32, queries: u32, keys: u32, heads: u32, key_heads: u32, tiles: u32,
    query_stride: u32, key_stride: u32, key_offset: u32, value_offset: u32,
    shift: i32, before: i32, after: i32,
    scale: f32,
    salt: u32, threshold: u32, kept: f32,
    notes: u32,
}

alias Elem = f32;
override SIZE: u32 = 64u;

@group(1) @binding(0) var<uniform> params: Params;

const LOG2E = 1.44269504;
// Below any score, and finite, so that differences of two stay numbers.
const LOWEST = -1e30;

struct Reach { low: u32, high: u32 }

// Keys that query t sees, apart from the padding mask.
fn reach_of_query(b: u32, t: u32) -> Reach {
    let position = i32(t) + shift_of_queries(b);
    let high = clamp(position + params.after + 1, 0, i32(params.keys));
    return Reach(u32(clamp(position - params.before, 0, high)), u32(high));
}

// Queries that see key s, apart from the padding mask.
fn reach_of_key(b: u32, s: u32) -> Reach {
    let position = i32(s) - shift_of_queries(b);
    let high = clamp(position + params.before + 1, 0, i32(params.queries));
    return Reach(u32(clamp(position - params.after, 0, high)), u32(high));
}

// First element of a query's row, and of a key's within its head; rows past the end read the last one.
fn query_row(b: u32, t: u32, h: u32) -> u32 {
    return (b * params.queries + min(t, params.queries - 1u)) * params.query_stride + h * SIZE;
}
fn key_row(b: u32, s: u32, g: u32) -> u32 {
    return (cache_of(b) * params.keys + min(s, params.keys - 1u)) * params.key_stride + g * SIZE;
}
fn out_row(b: u32, t: u32, h: u32) -> u32 {
    return ((b * params.queries + min(t, params.queries - 1u)) * params.heads + h) * SIZE;
}

// Columns of scores are handled COLUMNS at a time, as `Columns` (vec2 or vec4): the pasted text declares it, with
//   add_scores(x, m, w)    x + w m, for m of COLUMNS columns
//   add_weighted(x, m, w)  x + m w
//   largest(x), total(x)
//   steps(apart)           positions 0, apart, 2 apart ..
//   dropout_factors(rng, element, apart), one for each of those elements
#paste COLUMNS

// Which positions lie within.
fn within(at: Positions, reach: Reach) -> Marks {
    return (at >= Positions(reach.low)) & (at < Positions(reach.high));
}
