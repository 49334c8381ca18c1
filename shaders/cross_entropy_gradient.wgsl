// cross_entropy_gradient: dx[r, c] = w * (exp(x[r, c] - lse[r]) - (1 - s) * [c == target[r]] - s / cols), w = up (/ count for a mean)
//
// Written to an output of its own or over the logits: each invocation reads an element and then writes it.
// lane_per_row: one invocation walks a row. group_per_row: one workgroup shares a row. Ignored rows get zeros.

struct Params { rows: u32, cols: u32, packs: u32, ignore_index: i32, smoothing: f32 }

alias Elem = f32;
override MEAN: u32 = 1u;
override LANES: u32 = 64u;
override ROW_LANES: u32 = 8u;

#import rows

@group(0) @binding(0) var<storage, read>       targets: array<i32>;   // [rows]
@group(0) @binding(1) var<storage, read>       lses: array<f32>;      // [rows]
@group(0) @binding(2) var<storage, read>       count: array<f32>;     // []
@group(0) @binding(3) var<storage, read>       up: array<f32>;        // []
@group(0) @binding(4) var<storage, read_write> dx: array<Pack>;       // [rows, cols]
#paste LOGITS
@group(1) @binding(0) var<uniform> params: Params;

fn walk(row: u32, first: u32, stride: u32) {
    let start = row * params.packs;
    let goal = targets[row];
    if goal == params.ignore_index {
        for (var c = first; c < params.packs; c += stride) { dx[start + c] = Pack(); }
        return;
    }
    let lse = lses[row];
    let share = params.smoothing / f32(params.cols);
    var weight = up[0];
    if MEAN == 1u { weight /= count[0]; }
    for (var c = first; c < params.packs; c += stride) {
        let is_goal = Number(c * WIDTH) + OFFSETS == Number(u32(goal));
        let off = share + select(V(), V(1.0 - params.smoothing), is_goal);
        dx[start + c] = Pack(weight * (exp(logits_at(start + c) - lse) - off));
    }
}

@compute @workgroup_size(ROW_LANES)
fn lane_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = (group.y * groups.x + group.x) * ROW_LANES + lane.x;
    if row >= params.rows { return; }
    walk(row, 0u, 1u);
}

@compute @workgroup_size(LANES)
fn group_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows { return; }
    walk(row, lane.x, LANES);
}
