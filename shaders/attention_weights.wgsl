// attention_weights: y[b, h, t, :] = softmax over the keys that query t sees of x[b, h, t, s] + bias[s - place(t) + S - 1, h]
//
// lane_per_row: one invocation walks a row, and keeps the exponentials in y. group_per_row: one workgroup shares a row, and
// computes each exponential twice. What is not seen gives zero, and so does a whole row that sees nothing.

struct Params { rows: u32, heads: u32, time: u32, keys: u32, reach: u32, shift: i32 }

alias Elem = f32;
override CAUSAL: u32 = 0u;
override LANES: u32 = 64u;
override ROW_LANES: u32 = 8u;

#import rows

@group(0) @binding(0) var<storage, read> x: array<Elem>;   // [B, H, T, S]
// bias [R, H]?, mask u32 [B, S]?, position u32 [1] or [B, 2]?, y [B, H, T, S]
#paste BUFFERS
@group(1) @binding(0) var<uniform> params: Params;

// Below any score, and finite.
const LOWEST = -3.4028234e38;

// The score with its bias, or the lowest number where the key is not seen.
fn score(row: u32, s: u32) -> f32 {
    let h = row / params.time % params.heads;
    let b = row / params.time / params.heads;
    let place = i32(row % params.time) + first_place(b);
    if (CAUSAL == 1u && i32(s) > place) || !is_open(b, s) { return LOWEST; }
    let apart = clamp(i32(s) - place + i32(params.keys) - 1, 0, i32(params.reach) - 1);
    return f32(x[row * params.keys + s]) + bias_at(u32(apart), h);
}

fn weight(score: f32, largest: f32) -> f32 {
    return select(exp(score - largest), 0.0, score == LOWEST);
}

@compute @workgroup_size(ROW_LANES)
fn lane_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = (group.y * groups.x + group.x) * ROW_LANES + lane.x;
    if row >= params.rows { return; }
    let start = row * params.keys;

    var largest = LOWEST;
    for (var s = 0u; s < params.keys; s += 1u) { largest = max(largest, score(row, s)); }
    var total = 0.0;
    for (var s = 0u; s < params.keys; s += 1u) { total += weight(score(row, s), largest); }
    let scale = select(0.0, 1.0 / total, total > 0.0);
    for (var s = 0u; s < params.keys; s += 1u) { y[start + s] = Elem(weight(score(row, s), largest) * scale); }
}

@compute @workgroup_size(LANES)
fn group_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows { return; }
    let start = row * params.keys;

    var mine = LOWEST;
    for (var s = lane.x; s < params.keys; s += LANES) { mine = max(mine, score(row, s)); }
    let largest = largest_over_lanes(lane.x, mine);
    var part = 0.0;
    for (var s = lane.x; s < params.keys; s += LANES) { part += weight(score(row, s), largest); }
    let total = sum_over_lanes(lane.x, part);
    let scale = select(0.0, 1.0 / total, total > 0.0);
    for (var s = lane.x; s < params.keys; s += LANES) { y[start + s] = Elem(weight(score(row, s), largest) * scale); }
}
