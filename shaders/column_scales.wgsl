// column_scales: s[c] = largest magnitude over the parts of column c, over the divisor
//
// One invocation per column.

struct Params { cols: u32, parts: u32, divisor: f32 }

#import quantize

@group(0) @binding(0) var<storage, read>       largest: array<u32>;  // [parts, cols] bits
@group(0) @binding(1) var<storage, read_write> s: array<f32>;        // [cols]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let column = (group.y * groups.x + group.x) * 64u + lane.x;
    if column >= params.cols { return; }
    var bits = 0u;
    for (var part = 0u; part < params.parts; part += 1u) { bits = max(bits, largest[part * params.cols + column]); }
    s[column] = scale_of(bits, params.divisor);
}
