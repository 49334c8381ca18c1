// matmul_int8_pad: y = x with the bytes of each row behind one another from a whole word on, and zeros behind them
//
// One invocation per word of y.

struct Params { count: u32, words: u32, cols: u32 }

@group(0) @binding(0) var<storage, read>       x: array<u32>;   // [rows, cols] bytes
@group(0) @binding(1) var<storage, read_write> y: array<u32>;   // [rows, words]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let at = (group.y * groups.x + group.x) * 64u + lane.x;
    if at >= params.count { return; }
    let row = at / params.words;
    let first = at % params.words * 4u;
    var word = 0u;
    for (var i = 0u; i < 4u; i += 1u) {
        // Past the row's end the last byte is read, and dropped.
        let source = row * params.cols + min(first + i, params.cols - 1u);
        let byte = extractBits(x[source / 4u], source % 4u * 8u, 8u);
        word |= select(0u, byte << (8u * i), first + i < params.cols);
    }
    y[at] = word;
}
