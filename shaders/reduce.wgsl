// reduce: y[o, c, i] = sum or maximum over the a of chunk c of x[o, a, i], over divisor
//
// One invocation per output walks its chunk of the axis, one column or four; neighbours in i read neighbouring words. With one
// chunk this is the whole reduction, with more the first of two launches.

struct Params { count: u32, length: u32, inner: u32, chunk: u32, chunks: u32, divisor: f32 }

alias In = f32;
alias Out = f32;
// 0 sum, 1 maximum
override MAXIMUM: u32 = 0u;
override LANES: u32 = 64u;
#paste WIDTH

@group(0) @binding(0) var<storage, read>       x: array<PackIn>;    // [outer, length, inner]
@group(0) @binding(1) var<storage, read_write> y: array<PackOut>;   // [outer, chunks, inner]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let at = (group.y * groups.x + group.x) * LANES + lane.x;
    if at >= params.count { return; }
    let row = at / params.inner;
    let first = row % params.chunks * params.chunk;
    let end = min(first + params.chunk, params.length);
    var source = (row / params.chunks * params.length + first) * params.inner + at % params.inner;
    var total = V(x[source]);
    for (var a = first + 1u; a < end; a += 1u) {
        source += params.inner;
        let next = V(x[source]);
        if MAXIMUM == 1u { total = max(total, next); } else { total += next; }
    }
    y[at] = PackOut(total / params.divisor);
}
