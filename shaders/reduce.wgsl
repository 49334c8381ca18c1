// reduce: y[o, i] = sum, mean or maximum over a of x[o, a, i]
//
// One invocation per output element walks the axis; neighbours in i read neighbouring words.

struct Params { count: u32, length: u32, inner: u32 }

alias Elem = f32;
// 0 sum, 1 mean, 2 maximum
override KIND: u32 = 0u;
override LANES: u32 = 64u;

@group(0) @binding(0) var<storage, read>       x: array<Elem>;   // [outer, length, inner]
@group(0) @binding(1) var<storage, read_write> y: array<Elem>;   // [outer, inner]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let at = (group.y * groups.x + group.x) * LANES + lane.x;
    if at >= params.count { return; }
    let first = at / params.inner * params.length * params.inner + at % params.inner;
    var total = f32(x[first]);
    for (var a = 1u; a < params.length; a += 1u) {
        let next = f32(x[first + a * params.inner]);
        if KIND == 2u { total = max(total, next); } else { total += next; }
    }
    if KIND == 1u { total /= f32(params.length); }
    y[at] = Elem(total);
}
