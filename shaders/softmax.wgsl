// softmax: y[r, c] = exp(x[r, c] - m[r]) / sum over c of exp(x[r, c] - m[r]), m[r] = max over c of x[r, c]; or its logarithm
//
// lane_per_row: one invocation walks a row, and keeps the exponentials in y so that each is computed once.
// group_per_row: one workgroup shares a row, neighbouring lanes read neighbouring words; exp is cheaper there than a read.

struct Params { rows: u32, cols: u32 }

alias Elem = f32;
// 0 probabilities, 1 their logarithms
override LOG: u32 = 0u;
override LANES: u32 = 64u;
override ROW_LANES: u32 = 8u;

#import rows

@group(0) @binding(0) var<storage, read>       x: array<Elem>;   // [rows, cols]
@group(0) @binding(1) var<storage, read_write> y: array<Elem>;   // [rows, cols]
@group(1) @binding(0) var<uniform> params: Params;

const LOWEST = -3.4028234e38;

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
    for (var i = start; i < end; i += 1u) { largest = max(largest, f32(x[i])); }
    var total = 0.0;
    for (var i = start; i < end; i += 1u) {
        let e = exp(f32(x[i]) - largest);
        total += e;
        if LOG == 0u { y[i] = Elem(e); }
    }
    if LOG == 1u {
        let log_total = log(total);
        for (var i = start; i < end; i += 1u) { y[i] = Elem(f32(x[i]) - largest - log_total); }
    } else {
        let scale = 1.0 / total;
        for (var i = start; i < end; i += 1u) { y[i] = Elem(f32(y[i]) * scale); }
    }
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
    for (var i = first; i < end; i += LANES) { mine = max(mine, f32(x[i])); }
    let largest = largest_over_lanes(lane.x, mine);
    var part = 0.0;
    for (var i = first; i < end; i += LANES) { part += exp(f32(x[i]) - largest); }
    let total = sum_over_lanes(lane.x, part);
    if LOG == 1u {
        let log_total = log(total);
        for (var i = first; i < end; i += LANES) { y[i] = Elem(f32(x[i]) - largest - log_total); }
    } else {
        let scale = 1.0 / total;
        for (var i = first; i < end; i += LANES) { y[i] = Elem(exp(f32(x[i]) - largest) * scale); }
    }
}
