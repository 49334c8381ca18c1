// softmax_gradient: dx = y * (up - sum over c of y * up); for the logarithm dx = up - exp(y) * sum over c of up
//
// lane_per_row: one invocation walks a row. group_per_row: one workgroup shares a row.

struct Params { rows: u32, cols: u32, packs: u32 }

alias Elem = f32;
// 0 y holds probabilities, 1 their logarithms
override LOG: u32 = 0u;
override LANES: u32 = 64u;
override ROW_LANES: u32 = 8u;

#import rows

@group(0) @binding(0) var<storage, read>       y: array<Pack>;    // [rows, cols]
@group(0) @binding(1) var<storage, read>       up: array<Pack>;   // [rows, cols]
@group(0) @binding(2) var<storage, read_write> dx: array<Pack>;   // [rows, cols]
@group(1) @binding(0) var<uniform> params: Params;

fn term(i: u32) -> V {
    if LOG == 1u { return V(up[i]); }
    return V(up[i]) * V(y[i]);
}

fn slope(i: u32, total: f32) -> V {
    if LOG == 1u { return V(up[i]) - exp(V(y[i])) * total; }
    return V(y[i]) * (V(up[i]) - total);
}

@compute @workgroup_size(ROW_LANES)
fn lane_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = (group.y * groups.x + group.x) * ROW_LANES + lane.x;
    if row >= params.rows { return; }
    let start = row * params.packs;
    let end = start + params.packs;

    var part = V();
    for (var i = start; i < end; i += 1u) { part += term(i); }
    let total = total_of(part);
    for (var i = start; i < end; i += 1u) { dx[i] = Pack(slope(i, total)); }
}

@compute @workgroup_size(LANES)
fn group_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows { return; }
    let first = row * params.packs + lane.x;
    let end = (row + 1u) * params.packs;

    var part = V();
    for (var i = first; i < end; i += LANES) { part += term(i); }
    let total = sum_over_lanes(lane.x, total_of(part));
    for (var i = first; i < end; i += LANES) { dx[i] = Pack(slope(i, total)); }
}
