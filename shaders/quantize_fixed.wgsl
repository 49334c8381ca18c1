// quantize_fixed: q = x / s rounded half to even, four codes to a word, and s for each row
//
// Invocations walk the words of `q` with the stride of the whole grid; elements need not begin a row with a word, since one scale
// serves all.

struct Params { count: u32, rows: u32, lowest: f32, highest: f32 }

alias Elem = f32;

#import quantize

@group(0) @binding(0) var<storage, read>       x: array<Elem>;   // [rows, cols]
@group(0) @binding(1) var<storage, read>       s: array<f32>;    // [1]
@group(0) @binding(2) var<storage, read_write> q: array<u32>;    // [rows, cols] bytes
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;   // [rows]
@group(1) @binding(0) var<uniform> params: Params;

fn code_at(at: u32, factor: f32) -> i32 {
    if at >= params.count { return 0; }
    let value = f32(x[at]);
    // Compared as bits: a compiler may take it that no number is NaN.
    return select(0, code(value, factor, params.lowest, params.highest), magnitude(value) <= 0x7f800000u);
}

@compute @workgroup_size(128)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * 128u;
    let first = (group.y * groups.x + group.x) * 128u + lane.x;
    let scale = s[0];
    let factor = factor_of(scale);
    for (var at = first; at < (params.count + 3u) / 4u; at += stride) {
        let i = at * 4u;
        q[at] = pack4xI8(vec4<i32>(
            code_at(i, factor), code_at(i + 1u, factor), code_at(i + 2u, factor), code_at(i + 3u, factor)));
    }
    for (var row = first; row < params.rows; row += stride) { scales[row] = scale; }
}
