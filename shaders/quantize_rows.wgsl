// quantize_rows: s[r] = max over k of |x[r, k]| / divisor, q[r, k] = x[r, k] / s[r] rounded half to even, four codes to a word
//
// lane_per_row: one invocation walks a row twice. group_per_row: one workgroup shares it. Rows of fours are written here;
// other rows begin within a word of `q`, which one invocation of `quantize_codes` then writes as a whole.

struct Params { rows: u32, cols: u32, packs: u32, divisor: f32, lowest: f32, highest: f32 }

alias Elem = f32;
override LANES: u32 = 64u;
override ROW_LANES: u32 = 8u;

#import quantize
#paste WIDTH
#paste CODES

@group(0) @binding(0) var<storage, read>       x: array<Pack>;   // [rows, cols]
@group(0) @binding(1) var<storage, read_write> q: array<u32>;    // [rows, cols] bytes
@group(0) @binding(2) var<storage, read_write> s: array<f32>;    // [rows]
@group(1) @binding(0) var<uniform> params: Params;

var<workgroup> largest_of: array<u32, LANES>;

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
    var largest = 0u;
    for (var i = start; i < end; i += 1u) { largest = max(largest, largest_magnitude(V(x[i]))); }
    let scale = scale_of(largest, params.divisor);
    s[row] = scale;
    let factor = factor_of(scale);
    for (var i = start; i < end; i += 1u) { write_codes(i, V(x[i]), factor); }
}

@compute @workgroup_size(LANES)
fn group_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    // The same for the whole workgroup, so that returning before a barrier is allowed.
    let row = group.y * groups.x + group.x;
    if row >= params.rows { return; }
    let first = row * params.packs + lane.x;
    let end = (row + 1u) * params.packs;
    var largest = 0u;
    for (var i = first; i < end; i += LANES) { largest = max(largest, largest_magnitude(V(x[i]))); }
    largest_of[lane.x] = largest;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.x < half { largest_of[lane.x] = max(largest_of[lane.x], largest_of[lane.x + half]); }
    }
    workgroupBarrier();
    let scale = scale_of(largest_of[0], params.divisor);
    if lane.x == 0u { s[row] = scale; }
    let factor = factor_of(scale);
    for (var i = first; i < end; i += LANES) { write_codes(i, V(x[i]), factor); }
}
