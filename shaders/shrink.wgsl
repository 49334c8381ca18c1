// shrink: p = sign(p) max(|p| - threshold, 0), in place
//
// Invocations walk the arena in fours with the stride of the whole grid.

struct Params { count: u32 }

override LANES: u32 = 128u;

@group(0) @binding(0) var<storage, read_write> parameters: array<vec4<f32>>;   // [N / 4]
@group(0) @binding(1) var<storage, read>       scalars: array<f32>;            // .., the threshold last
@group(0) @binding(2) var<storage, read>       control: array<f32>;            // factor, norm, goes, ..
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    if control[2] == 0.0 { return; }
    let threshold = vec4<f32>(scalars[7]);
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        let p = parameters[i];
        parameters[i] = sign(p) * max(abs(p) - threshold, vec4<f32>());
    }
}
