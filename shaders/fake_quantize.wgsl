// fake_quantize: y = (clamp(round(x / s) + z, lowest, highest) - z) * s, with s and z of the element's line
//
// Invocations walk the elements with the stride of the whole grid.

struct Params {
    lines: u32, length: u32, inner: u32, group: u32, parts: u32,
    count: u32, lowest: f32, highest: f32,
}

@group(0) @binding(0) var<storage, read>       x: array<f32>;   // [outer, length, inner]
@group(0) @binding(1) var<storage, read>       s: array<f32>;   // [lines]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;   // as x
@group(1) @binding(0) var<uniform> params: Params;

#import lines
#paste ZEROS
#import fake_codes

@compute @workgroup_size(128)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * 128u;
    for (var i = (group.y * groups.x + group.x) * 128u + lane.x; i < params.count; i += stride) {
        let line = line_of(i);
        let scale = s[line];
        y[i] = code_of(exact(x[i], scale, line)) * scale;
    }
}
