// rms_norm: y = x * rstd * weight by rows, rstd = 1 / sqrt(mean of x^2 + eps)
//
// With a residual, x is the sum of two inputs, made and stored on the first walk (`first`) and read on the later ones (`again`).
// lane_per_row: one invocation walks a row twice. group_per_row: one workgroup shares a row.

struct Params { rows: u32, cols: u32, packs: u32, eps: f32 }

alias Elem = f32;
override LANES: u32 = 64u;
override ROW_LANES: u32 = 8u;

#import rows

#paste INPUT
@group(0) @binding(1) var<storage, read>       weight: array<Pack>;   // [cols]
@group(0) @binding(2) var<storage, read_write> y: array<Pack>;        // [rows, cols]
@group(0) @binding(3) var<storage, read_write> rstds: array<f32>;     // [rows]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(ROW_LANES)
fn lane_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = (group.y * groups.x + group.x) * ROW_LANES + lane.x;
    if row >= params.rows { return; }
    let start = row * params.packs;

    var squares = V();
    for (var c = 0u; c < params.packs; c += 1u) {
        let value = first(start + c);
        squares += value * value;
    }
    let rstd = 1.0 / sqrt(total_of(squares) / f32(params.cols) + params.eps);
    for (var c = 0u; c < params.packs; c += 1u) {
        y[start + c] = Pack(again(start + c) * rstd * V(weight[c]));
    }
    rstds[row] = rstd;
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

    var squares = V();
    for (var c = lane.x; c < params.packs; c += LANES) {
        let value = first(start + c);
        squares += value * value;
    }
    let rstd = 1.0 / sqrt(sum_over_lanes(lane.x, total_of(squares)) / f32(params.cols) + params.eps);
    for (var c = lane.x; c < params.packs; c += LANES) {
        y[start + c] = Pack(again(start + c) * rstd * V(weight[c]));
    }
    if lane.x == 0u { rstds[row] = rstd; }
}
