// cross_entropy: loss[r] = lse[r] - (1 - s) * x[r, target[r]] - s * mean over c of x[r, c], lse[r] = log(sum of exp(x[r, c]))
//
// lane_per_row: one invocation walks a row, first for the largest element, then for one exp per element.
// group_per_row: one workgroup shares a row. An ignored row gives zeros, a target outside the columns gives NaN.

struct Params { rows: u32, cols: u32, ignore_index: i32, smoothing: f32, nan_bits: u32 }

alias Elem = f32;
override LANES: u32 = 64u;
override ROW_LANES: u32 = 8u;

#import rows

@group(0) @binding(0) var<storage, read>       x: array<Elem>;        // [rows, cols]
@group(0) @binding(1) var<storage, read>       targets: array<i32>;   // [rows]
@group(0) @binding(2) var<storage, read_write> losses: array<f32>;    // [rows]
@group(0) @binding(3) var<storage, read_write> lses: array<f32>;      // [rows]
@group(1) @binding(0) var<uniform> params: Params;

const LOWEST = -3.4028234e38;

fn put(row: u32, largest: f32, sum: f32, sum_exp: f32) {
    let goal = targets[row];
    var lse = 0.0;
    var loss = 0.0;
    if goal < 0 || goal >= i32(params.cols) {
        lse = bitcast<f32>(params.nan_bits);
        loss = lse;
    } else {
        lse = largest + log(sum_exp);
        let chosen = f32(x[row * params.cols + u32(goal)]);
        loss = lse - (1.0 - params.smoothing) * chosen - params.smoothing * (sum / f32(params.cols));
    }
    if goal == params.ignore_index {
        lse = 0.0;
        loss = 0.0;
    }
    lses[row] = lse;
    losses[row] = loss;
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
    let end = start + params.cols;

    var largest = LOWEST;
    var sum = 0.0;
    for (var i = start; i < end; i += 1u) {
        let value = f32(x[i]);
        largest = max(largest, value);
        sum += value;
    }
    var sum_exp = 0.0;
    for (var i = start; i < end; i += 1u) { sum_exp += exp(f32(x[i]) - largest); }
    put(row, largest, sum, sum_exp);
}

@compute @workgroup_size(LANES)
fn group_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows { return; }
    let first = row * params.cols + lane.x;
    let end = (row + 1u) * params.cols;

    var mine = LOWEST;
    var part = 0.0;
    for (var i = first; i < end; i += LANES) {
        let value = f32(x[i]);
        mine = max(mine, value);
        part += value;
    }
    let largest = largest_over_lanes(lane.x, mine);
    let sum = sum_over_lanes(lane.x, part);
    var part_exp = 0.0;
    for (var i = first; i < end; i += LANES) { part_exp += exp(f32(x[i]) - largest); }
    let sum_exp = sum_over_lanes(lane.x, part_exp);
    if lane.x == 0u { put(row, largest, sum, sum_exp); }
}
