// softmax: y[r, c] = exp(x[r, c] - m[r]) / sum over c of exp(x[r, c] - m[r]), m[r] = max over c of x[r, c]; or its logarithm
//
// lane_per_row: one invocation walks a row, and keeps the exponentials in y so that each is computed once.
// group_per_row: one workgroup shares a row, neighbouring lanes read neighbouring words; exp is cheaper there than a read.

struct Params { rows: u32, cols: u32, packs: u32 }

alias Elem = f32;
// 0 probabilities, 1 their logarithms
override LOG: u32 = 0u;
override LANES: u32 = 64u;
override ROW_LANES: u32 = 8u;

#import rows

@group(0) @binding(0) var<storage, read>       x: array<Pack>;   // [rows, cols]
@group(0) @binding(1) var<storage, read_write> y: array<Pack>;   // [rows, cols]
@group(1) @binding(0) var<uniform> params: Params;

const LOWEST = V(-3.4028234e38);

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
    for (var i = start; i < end; i += 1u) { mine = max(mine, V(x[i])); }
    let largest = largest_in(mine);
    var part = V();
    for (var i = start; i < end; i += 1u) {
        let e = exp(V(x[i]) - largest);
        part += e;
        if LOG == 0u { y[i] = Pack(e); }
    }
    let total = total_of(part);
    if LOG == 1u {
        let log_total = log(total);
        for (var i = start; i < end; i += 1u) { y[i] = Pack(V(x[i]) - largest - log_total); }
    } else {
        let scale = 1.0 / total;
        for (var i = start; i < end; i += 1u) { y[i] = Pack(V(y[i]) * scale); }
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
    let first = row * params.packs + lane.x;
    let end = (row + 1u) * params.packs;

    var mine = LOWEST;
    for (var i = first; i < end; i += LANES) { mine = max(mine, V(x[i])); }
    let largest = largest_over_lanes(lane.x, largest_in(mine));
    var part = V();
    for (var i = first; i < end; i += LANES) { part += exp(V(x[i]) - largest); }
    let total = sum_over_lanes(lane.x, total_of(part));
    if LOG == 1u {
        let log_total = log(total);
        for (var i = first; i < end; i += LANES) { y[i] = Pack(V(x[i]) - largest - log_total); }
    } else {
        let scale = 1.0 / total;
        for (var i = first; i < end; i += LANES) { y[i] = Pack(exp(V(x[i]) - largest) * scale); }
    }
}
