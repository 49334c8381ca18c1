// dequantize_coded: y[i, k] = code[n, k] * scale[n, k / group] + offset[n, k / group], of all rows n or of those that tokens name
//
// Invocations walk the output with the stride of the whole grid, one element or four at a time. How codes are read, and which
// row the i-th of the output is, is pasted.

struct Params {
    count: u32,    // elements or fours of the output
    rows: u32,     // of the matrix
    cols: u32,
    packs: u32,    // elements or fours of a row
}

#paste CODES
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(128)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * 128u;
    for (var i = (group.y * groups.x + group.x) * 128u + lane.x; i < params.count; i += stride) {
        y[i] = value(i / params.packs, i % params.packs);
    }
}
