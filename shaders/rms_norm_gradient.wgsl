// rms_norm_gradient: dx = rstd * (g - n * mean of (g * n)), n = x * rstd, g = up * weight, by rows
//
// lane_per_row: one invocation walks a row twice. group_per_row: one workgroup shares a row.

struct Params { rows: u32, cols: u32 }

alias Elem = f32;
override LANES: u32 = 64u;
override ROW_LANES: u32 = 8u;

#import rows

@group(0) @binding(0) var<storage, read>       x: array<Elem>;        // [rows, cols]
@group(0) @binding(1) var<storage, read>       up: array<Elem>;       // [rows, cols]
@group(0) @binding(2) var<storage, read>       rstds: array<f32>;     // [rows]
@group(0) @binding(3) var<storage, read>       weight: array<Elem>;   // [cols]
@group(0) @binding(4) var<storage, read_write> dx: array<Elem>;       // [rows, cols]
@group(1) @binding(0) var<uniform> params: Params;

fn put(at: u32, c: u32, rstd: f32, along: f32) {
    let g = f32(up[at]) * f32(weight[c]);
    dx[at] = Elem(rstd * (g - f32(x[at]) * rstd * along));
}

@compute @workgroup_size(ROW_LANES)
fn lane_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = (group.y * groups.x + group.x) * ROW_LANES + lane.x;
    if row >= params.rows { return; }
    let start = row * params.cols;
    let rstd = rstds[row];

    var sum = 0.0;
    for (var c = 0u; c < params.cols; c += 1u) {
        sum += f32(up[start + c]) * f32(weight[c]) * (f32(x[start + c]) * rstd);
    }
    let along = sum / f32(params.cols);
    for (var c = 0u; c < params.cols; c += 1u) { put(start + c, c, rstd, along); }
}

@compute @workgroup_size(LANES)
fn group_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows { return; }
    let start = row * params.cols;
    let rstd = rstds[row];

    var part = 0.0;
    for (var c = lane.x; c < params.cols; c += LANES) {
        part += f32(up[start + c]) * f32(weight[c]) * (f32(x[start + c]) * rstd);
    }
    let along = sum_over_lanes(lane.x, part) / f32(params.cols);
    for (var c = lane.x; c < params.cols; c += LANES) { put(start + c, c, rstd, along); }
}
