// diagonal_sums: y[r, h] = sum over b and t of x[b, h, t, r + t + 1 - T], as far as there is such a key
//
// One workgroup per output: its lanes walk sequences and queries with stride LANES, and join as a tree.

struct Params { count: u32, batch: u32, heads: u32, time: u32, keys: u32 }

alias Elem = f32;
override LANES: u32 = 64u;

#import rows

@group(0) @binding(0) var<storage, read>       x: array<Elem>;   // [B, H, T, S]
@group(0) @binding(1) var<storage, read_write> y: array<Elem>;   // [R, H]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let at = group.y * groups.x + group.x;
    if at >= params.count { return; }
    let row = at / params.heads;
    let h = at % params.heads;

    var part = 0.0;
    for (var i = lane.x; i < params.batch * params.time; i += LANES) {
        let t = i % params.time;
        // Before the first key this wraps round, and is no key either.
        let s = row + t + 1u - params.time;
        if s >= params.keys { continue; }
        part += f32(x[((i / params.time * params.heads + h) * params.time + t) * params.keys + s]);
    }
    let total = sum_over_lanes(lane.x, part);
    if lane.x == 0u { y[at] = Elem(total); }
}
