// reduce_row: y[o, c] = sum or maximum over chunk c of the contiguous row x[o, ..], over divisor
//
// `row`: one invocation per row and chunk, which wins on CPU drivers. `group`: one workgroup per row and chunk; lanes walk it
// with stride LANES and are joined as a tree. Loads take one element or four; the order of the sum is fixed.

struct Params { count: u32, length: u32, chunk: u32, chunks: u32, divisor: f32 }

alias In = f32;
alias Out = f32;
// 0 sum, 1 maximum
override MAXIMUM: u32 = 0u;
override LANES: u32 = 64u;
#paste WIDTH

@group(0) @binding(0) var<storage, read>       x: array<PackIn>;   // [outer, length]
@group(0) @binding(1) var<storage, read_write> y: array<Out>;      // [outer, chunks]
@group(1) @binding(0) var<uniform> params: Params;

var<workgroup> totals: array<f32, LANES>;

fn join(a: f32, b: f32) -> f32 {
    if MAXIMUM == 1u { return max(a, b); }
    return a + b;
}
#paste FOLD

// Elements first, first + stride, .. of x. A lane without any gives zero to a sum and an element of the row to a maximum.
fn walk(start: u32, first: u32, end: u32, stride: u32) -> f32 {
    var total = V();
    if MAXIMUM == 1u { total = V(x[start]); }
    for (var at = first; at < end; at += stride) {
        let next = V(x[at]);
        if MAXIMUM == 1u { total = max(total, next); } else { total += next; }
    }
    return fold(total);
}

@compute @workgroup_size(LANES)
fn row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let at = (group.y * groups.x + group.x) * LANES + lane.x;
    if at >= params.count { return; }
    let begin = at % params.chunks * params.chunk;
    let start = at / params.chunks * params.length;
    let end = start + min(begin + params.chunk, params.length);
    y[at] = Out(walk(start + begin, start + begin, end, 1u) / params.divisor);
}

@compute @workgroup_size(LANES)
fn group(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    // A workgroup past the last row repeats it and writes nothing, so that all reach the barriers.
    let number = group.y * groups.x + group.x;
    let at = min(number, params.count - 1u);
    let begin = at % params.chunks * params.chunk;
    let start = at / params.chunks * params.length;
    let end = start + min(begin + params.chunk, params.length);
    totals[lane.x] = walk(start + begin, start + begin + lane.x, end, LANES);
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.x < half { totals[lane.x] = join(totals[lane.x], totals[lane.x + half]); }
    }
    if lane.x == 0u && number < params.count {
        y[at] = Out(totals[0] / params.divisor);
    }
}
