// step_gradient: ds = factor * sum over the line of up * (code - z - x / s inside the range, bound - z outside)
//
// lane_per_line: one invocation walks a line. group_per_line: one workgroup shares it.

struct Params {
    lines: u32, length: u32, inner: u32, group: u32, parts: u32,
    lowest: f32, highest: f32, factor: f32,
}

override LANES: u32 = 64u;
override LINE_LANES: u32 = 8u;

@group(0) @binding(0) var<storage, read>       x: array<f32>;    // [outer, length, inner]
@group(0) @binding(1) var<storage, read>       s: array<f32>;    // [lines]
@group(0) @binding(2) var<storage, read_write> ds: array<f32>;   // [lines]
@group(0) @binding(3) var<storage, read>       up: array<f32>;   // as x
@group(1) @binding(0) var<uniform> params: Params;

var<workgroup> partial: array<f32, LANES>;

#import lines
#paste ZEROS
#import fake_codes

fn term(at: u32, scale: f32, line: u32) -> f32 {
    let e = exact(x[at], scale, line);
    let code = code_of(e);
    return up[at] * select(code, code - e.quotient, is_inside(e));
}

@compute @workgroup_size(LINE_LANES)
fn lane_per_line(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let line = (group.y * groups.x + group.x) * LINE_LANES + lane.x;
    if line >= params.lines { return; }
    let first = first_of(line);
    let count = count_of(line);
    let scale = s[line];
    var sum = 0.0;
    for (var i = 0u; i < count; i += 1u) { sum += term(first + i * params.inner, scale, line); }
    ds[line] = params.factor * sum;
}

@compute @workgroup_size(LANES)
fn group_per_line(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    // The same for the whole workgroup, so that returning before a barrier is allowed.
    let line = group.y * groups.x + group.x;
    if line >= params.lines { return; }
    let first = first_of(line);
    let count = count_of(line);
    let scale = s[line];
    var sum = 0.0;
    for (var i = lane.x; i < count; i += LANES) { sum += term(first + i * params.inner, scale, line); }
    partial[lane.x] = sum;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.x < half { partial[lane.x] += partial[lane.x + half]; }
    }
    if lane.x == 0u { ds[line] = params.factor * partial[0]; }
}
