// quantize_codes: q[r, k] = x[r, k] / s[r] rounded half to even, from the scales
//
// One invocation per word of four codes, which may belong to two rows or more.

struct Params { count: u32, cols: u32, lowest: f32, highest: f32 }

alias Elem = f32;

#import quantize

@group(0) @binding(0) var<storage, read>       x: array<Elem>;   // [rows, cols]
@group(0) @binding(1) var<storage, read>       s: array<f32>;    // [rows]
@group(0) @binding(2) var<storage, read_write> q: array<u32>;    // [rows, cols] bytes
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let at = (group.y * groups.x + group.x) * 64u + lane.x;
    let first = at * 4u;
    if first >= params.count { return; }
    var word = 0u;
    for (var i = 0u; i < 4u; i += 1u) {
        let element = min(first + i, params.count - 1u);
        let c = code(f32(x[element]), factor_of(s[element / params.cols]), params.lowest, params.highest);
        // Bytes behind the last element are zero.
        word |= select(0u, (bitcast<u32>(c) & 255u) << (8u * i), first + i < params.count);
    }
    q[at] = word;
}
