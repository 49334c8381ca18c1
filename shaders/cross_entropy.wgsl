// cross_entropy: loss[r] = lse[r] - (1 - s) * x[r, target[r]] - s * mean over c of x[r, c], lse[r] = log(sum of exp(x[r, c]))
//
// lane_per_row: one invocation walks a row, first for the largest element, then for one exp per element.
// group_per_row: one workgroup shares a row. An ignored row gives zeros, a target outside the columns gives NaN.

struct Params { rows: u32, cols: u32, packs: u32, ignore_index: i32, smoothing: f32, nan_bits: u32 }

alias Elem = f32;
override LANES: u32 = 64u;
override ROW_LANES: u32 = 8u;

#import rows

@group(0) @binding(0) var<storage, read>       x: array<Pack>;        // [rows, cols]
@group(0) @binding(1) var<storage, read>       targets: array<i32>;   // [rows]
@group(0) @binding(2) var<storage, read_write> losses: array<f32>;    // [rows]
@group(0) @binding(3) var<storage, read_write> lses: array<f32>;      // [rows]
@group(1) @binding(0) var<uniform> params: Params;

const LOWEST = V(-3.4028234e38);

fn put(row: u32, largest: f32, sum: f32, sum_exp: f32) {
    let goal = targets[row];
    var lse = 0.0;
    var loss = 0.0;
    if goal < 0 || goal >= i32(params.cols) {
        lse = bitcast<f32>(params.nan_bits);
        loss = lse;
    } else {
        lse = largest + log(sum_exp);
        let chosen = pick(V(x[row * params.packs + u32(goal) / WIDTH]), u32(goal) % WIDTH);
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
    let start = row * params.packs;
    let end = start + params.packs;

    var mine = LOWEST;
    var part = V();
    for (var i = start; i < end; i += 1u) {
        let value = V(x[i]);
        mine = max(mine, value);
        part += value;
    }
    let largest = largest_in(mine);
    var part_exp = V();
    for (var i = start; i < end; i += 1u) { part_exp += exp(V(x[i]) - largest); }
    put(row, largest, total_of(part), total_of(part_exp));
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

    var mine = LOWEST;
    var part = V();
    for (var i = first; i < end; i += LANES) {
        let value = V(x[i]);
        mine = max(mine, value);
        part += value;
    }
    let largest = largest_over_lanes(lane.x, largest_in(mine));
    let sum = sum_over_lanes(lane.x, total_of(part));
    var part_exp = V();
    for (var i = first; i < end; i += LANES) { part_exp += exp(V(x[i]) - largest); }
    let sum_exp = sum_over_lanes(lane.x, total_of(part_exp));
    if lane.x == 0u { put(row, largest, sum, sum_exp); }
}
