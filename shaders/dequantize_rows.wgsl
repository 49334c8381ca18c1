// dequantize_rows: y[r, k] = q[r, k] * s[r]
//
// Invocations walk the words of `q` with the stride of the whole grid, four elements each.

struct Params { count: u32, cols: u32 }

#paste WIDTH

@group(0) @binding(0) var<storage, read>       q: array<u32>;    // [rows, cols] bytes
@group(0) @binding(1) var<storage, read>       s: array<f32>;    // [rows]
@group(0) @binding(2) var<storage, read_write> y: array<Pack>;   // [rows, cols]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(128)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let words = (params.count + 3u) / 4u;
    let stride = groups.x * groups.y * 128u;
    for (var at = (group.y * groups.x + group.x) * 128u + lane.x; at < words; at += stride) {
        write_four(at, vec4<f32>(unpack4xI8(q[at])));
    }
}
