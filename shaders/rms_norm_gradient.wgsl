// rms_norm_gradient: dx = rstd * (g - n * mean of (g * n)) + addend, n = x * rstd, g = up * weight, by rows
//
// lane_per_row: one invocation walks a row twice. group_per_row: one workgroup shares a row.

struct Params { rows: u32, cols: u32, packs: u32 }

alias Elem = f32;
override LANES: u32 = 64u;
override ROW_LANES: u32 = 8u;

#import rows

@group(0) @binding(0) var<storage, read>       x: array<Pack>;        // [rows, cols]
@group(0) @binding(1) var<storage, read>       up: array<Pack>;       // [rows, cols]
@group(0) @binding(2) var<storage, read>       rstds: array<f32>;     // [rows]
@group(0) @binding(3) var<storage, read>       weight: array<Pack>;   // [cols]
@group(0) @binding(4) var<storage, read_write> dx: array<Pack>;       // [rows, cols]
#paste ADDEND
@group(1) @binding(0) var<uniform> params: Params;

fn put(at: u32, c: u32, rstd: f32, along: f32) {
    let g = V(up[at]) * V(weight[c]);
    dx[at] = Pack(rstd * (g - V(x[at]) * rstd * along) + addend_at(at));
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
    let rstd = rstds[row];

    var sum = V();
    for (var c = 0u; c < params.packs; c += 1u) {
        sum += V(up[start + c]) * V(weight[c]) * (V(x[start + c]) * rstd);
    }
    let along = total_of(sum) / f32(params.cols);
    for (var c = 0u; c < params.packs; c += 1u) { put(start + c, c, rstd, along); }
}

@compute @workgroup_size(LANES)
fn group_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows { return; }
    let start = row * params.packs;
    let rstd = rstds[row];

    var part = V();
    for (var c = lane.x; c < params.packs; c += LANES) {
        part += V(up[start + c]) * V(weight[c]) * (V(x[start + c]) * rstd);
    }
    let along = sum_over_lanes(lane.x, total_of(part)) / f32(params.cols);
    for (var c = lane.x; c < params.packs; c += LANES) { put(start + c, c, rstd, along); }
}
