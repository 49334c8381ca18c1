//! Variants of attention and of its gradient as dispatches.

use super::geometry::Geometry;
use super::text::{Access, Buffers, NOTES_HEAD};
use super::{Attention, Layout, broadcast, lane, step, tile};
use crate::ops::launch::{Bind, Caps, Launch, Variant};
use crate::tensor::DType;

/// Variants of the forward operator.
pub(super) fn forward(how: &Attention, g: &Geometry, dtype: DType, caps: &Caps) -> Vec<Variant> {
    let sources = |access| Buffers::new(g, access).sources(how).trailing(how, how.sources());
    forward_from("attention", &sources, how, g, dtype, caps)
}

/// The same over caches of codes.
pub(super) fn forward_coded(how: &Attention, g: &Geometry, caps: &Caps) -> Vec<Variant> {
    let sources = |access| Buffers::new(g, access).coded_sources().trailing(how, CODED_SOURCES);
    forward_from("attention_coded", &sources, how, g, DType::F32, caps)
}

/// Queries, and codes and scales of keys and of values.
const CODED_SOURCES: usize = 5;

fn forward_from(
    name: &str,
    sources: &dyn Fn(Access) -> Buffers,
    how: &Attention,
    g: &Geometry,
    dtype: DType,
    caps: &Caps,
) -> Vec<Variant> {
    let buffers = |access| {
        sources(access).write("out", "0u", Bind::Output(0)).words("lse", "read_write", "f32", Bind::Output(1))
    };
    let [narrow, wide] = accesses(g, dtype, caps);
    let sizes = lane::sizes(g, g.queries, lane::FORWARD);
    let (tiles, groups) = lanes(g.batch * g.heads, g.queries, sizes);
    let by_lane = buffers(wide).launch(lane::forward(how, g, sizes), dtype, g, tiles, groups);
    let (tiles, groups) = blocks(g.batch * g.heads, g.queries);
    let by_tile = buffers(narrow).launch(tile::forward(how, g), dtype, g, tiles, groups);
    let mut variants = vec![
        Variant::single(format!("{name}_lane"), by_lane),
        Variant::single(format!("{name}_tile"), by_tile),
    ];
    if let Some((access, [shape, ..])) = broadcast::fitting(g, dtype, caps) {
        let (tiles, groups) = shared(g.batch * g.heads, g.queries, shape);
        let launch = buffers(access).launch(broadcast::forward(how, shape), dtype, g, tiles, groups);
        variants.insert(0, Variant::single(format!("{name}_broadcast"), launch));
    }
    if how.cached && g.queries <= step::FEW {
        let launch = step::launch(buffers(Access::widest(g.size, dtype, false)), g, dtype);
        variants.push(Variant::single(format!("{name}_step"), launch));
    }
    preferred(variants, caps)
}

/// Variants of the backward operator: notes first, then the queries' half and the keys' half, which write disjoint parts.
pub(super) fn backward(how: &Attention, g: &Geometry, dtype: DType, caps: &Caps) -> Vec<Variant> {
    let n = how.sources();
    let (out, lse, up) = (Bind::Input(n), Bind::Input(n + 1), Bind::Input(n + 2));
    let notes = Bind::Scratch(0);
    let rows = g.batch * g.heads * g.queries;
    let [narrow, wide] = accesses(g, dtype, caps);
    let delta = Buffers::new(g, wide)
        .read("out", "0u", out)
        .read("up", "0u", up)
        .words("lse", "read", "f32", lse)
        .trailing(how, n + 3)
        .words("notes", "read_write", "u32", notes)
        .launch(lane::delta(how, g), dtype, g, 1, rows.max(g.masked_words()).max(NOTES_HEAD).div_ceil(64));
    let reading = |access| {
        Buffers::new(g, access).sources(how).read("up", "0u", up).words("notes", "read", "u32", notes)
    };
    let of_queries = |access| reading(access).write("dq", "0u", Bind::Output(0));
    let of_keys = |access| match how.layout {
        Layout::Separate => {
            reading(access).write("dk", "0u", Bind::Output(1)).write("dv", "0u", Bind::Output(2))
        }
        Layout::Packed { .. } => reading(access).write("dk", "params.key_offset", Bind::Output(0)).also(
            "dv",
            "dk",
            "params.value_offset",
        ),
    };
    let variant = |name: &str, queries: Launch, keys: Launch| Variant {
        name: name.into(),
        launches: vec![delta.clone(), queries, keys],
        scratch: vec![4 * (NOTES_HEAD + g.masked_words() + 2 * rows) as u64],
    };
    let by_lane = {
        let sizes = lane::sizes(g, g.queries, lane::QUERIES);
        let (tiles, groups) = lanes(g.batch * g.heads, g.queries, sizes);
        let queries = of_queries(wide).launch(lane::queries(how, g, sizes), dtype, g, tiles, groups);
        let sizes = lane::sizes(g, g.keys, lane::KEYS);
        let (tiles, groups) = lanes(g.batch * g.key_heads, g.keys, sizes);
        let keys = of_keys(wide).launch(lane::keys(how, g, sizes), dtype, g, tiles, groups);
        variant("attention_gradient_lane", queries, keys)
    };
    let by_tile = {
        let (tiles, groups) = blocks(g.batch * g.heads, g.queries);
        let queries = of_queries(narrow).launch(tile::queries(how, g), dtype, g, tiles, groups);
        let (tiles, groups) = blocks(g.batch * g.key_heads, g.keys);
        let keys = of_keys(narrow).launch(tile::keys(how, g), dtype, g, tiles, groups);
        variant("attention_gradient_tile", queries, keys)
    };
    let mut variants = vec![by_lane, by_tile];
    if let Some((access, [_, of_query, of_key])) = broadcast::fitting(g, dtype, caps) {
        let (tiles, groups) = shared(g.batch * g.heads, g.queries, of_query);
        let queries = of_queries(access).launch(broadcast::queries(how, of_query), dtype, g, tiles, groups);
        let (tiles, groups) = shared(g.batch * g.key_heads, g.keys, of_key);
        let keys = of_keys(access).launch(broadcast::keys(how, of_key), dtype, g, tiles, groups);
        variants.insert(0, variant("attention_gradient_broadcast", queries, keys));
    }
    preferred(variants, caps)
}

/// How tiles and how lanes read their rows.
fn accesses(g: &Geometry, dtype: DType, caps: &Caps) -> [Access; 2] {
    [false, caps.is_cpu && caps.int64].map(|words| Access::widest(g.size, dtype, words))
}

/// Tiles per head, and workgroups, when an invocation takes `rows` of `length` rows.
fn lanes(heads: usize, length: usize, [rows, _]: [usize; 2]) -> (usize, usize) {
    let tiles = length.div_ceil(rows);
    (tiles, (heads * tiles).div_ceil(lane::LANES))
}

/// The same when a subgroup shares what it reads.
fn shared(heads: usize, length: usize, shape: broadcast::Shape) -> (usize, usize) {
    let tiles = length.div_ceil(shape.span());
    (tiles, heads * tiles)
}

/// The same when a workgroup takes a tile.
fn blocks(heads: usize, length: usize) -> (usize, usize) {
    let tiles = length.div_ceil(tile::ROWS);
    (tiles, heads * tiles)
}

/// Lanes first on a driver that runs on the CPU, tiles first elsewhere.
fn preferred(mut variants: Vec<Variant>, caps: &Caps) -> Vec<Variant> {
    if !caps.is_cpu {
        variants.reverse();
    }
    variants
}
