// movement: scores[i] -= weights[i] * gradients[i] * factor, in place
//
// Invocations walk the arenas in fours with the stride of the whole grid.

struct Params { count: u32 }

override LANES: u32 = 128u;

@group(0) @binding(0) var<storage, read_write> scores: array<vec4<f32>>;      // [N / 4]
@group(0) @binding(1) var<storage, read>       weights: array<vec4<f32>>;     // [N / 4]
@group(0) @binding(2) var<storage, read>       gradients: array<vec4<f32>>;   // [N / 4]
@group(0) @binding(3) var<storage, read>       control: array<f32>;           // factor, norm, goes, ..
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    if control[2] == 0.0 { return; }
    let factor = control[0];
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        scores[i] -= weights[i] * (gradients[i] * factor);
    }
}
