// layer_norm: y = (x - mean) * rstd * weight + bias by rows, rstd = 1 / sqrt(variance + eps)
//
// lane_per_row: one invocation walks a row. group_per_row: one workgroup shares a row.
// With a residual, x is the sum of two inputs, made and stored on the first walk (`first`) and read on the later ones (`again`).
// Three walks: mean, variance about it, output. A single walk over x and x^2 loses all digits where the mean is large.

struct Params { rows: u32, cols: u32, packs: u32, eps: f32 }

alias Elem = f32;
override HAS_WEIGHT: u32 = 1u;
override HAS_BIAS: u32 = 1u;
override LANES: u32 = 64u;
override ROW_LANES: u32 = 8u;

#import rows

#paste INPUT
@group(0) @binding(1) var<storage, read>       weight: array<Pack>;   // [cols], if there
@group(0) @binding(2) var<storage, read>       bias: array<Pack>;     // [cols], if there
@group(0) @binding(3) var<storage, read_write> y: array<Pack>;        // [rows, cols]
@group(0) @binding(4) var<storage, read_write> means: array<f32>;     // [rows]
@group(0) @binding(5) var<storage, read_write> rstds: array<f32>;     // [rows]
@group(1) @binding(0) var<uniform> params: Params;

fn put(at: u32, c: u32, mean: f32, rstd: f32) {
    var value = (again(at) - mean) * rstd;
    if HAS_WEIGHT == 1u { value *= V(weight[c]); }
    if HAS_BIAS == 1u { value += V(bias[c]); }
    y[at] = Pack(value);
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

    var total = V();
    for (var c = 0u; c < params.packs; c += 1u) { total += first(start + c); }
    let mean = total_of(total) / f32(params.cols);
    var squares = V();
    for (var c = 0u; c < params.packs; c += 1u) {
        let d = again(start + c) - mean;
        squares += d * d;
    }
    let rstd = 1.0 / sqrt(total_of(squares) / f32(params.cols) + params.eps);
    for (var c = 0u; c < params.packs; c += 1u) { put(start + c, c, mean, rstd); }
    means[row] = mean;
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

    var part = V();
    for (var c = lane.x; c < params.packs; c += LANES) { part += first(start + c); }
    let mean = sum_over_lanes(lane.x, total_of(part)) / f32(params.cols);
    var squares = V();
    for (var c = lane.x; c < params.packs; c += LANES) {
        let d = again(start + c) - mean;
        squares += d * d;
    }
    let rstd = 1.0 / sqrt(sum_over_lanes(lane.x, total_of(squares)) / f32(params.cols) + params.eps);
    for (var c = lane.x; c < params.packs; c += LANES) { put(start + c, c, mean, rstd); }
    if lane.x == 0u {
        means[row] = mean;
        rstds[row] = rstd;
    }
}
