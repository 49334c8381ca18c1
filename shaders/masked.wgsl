// masked: y[i] = 0 where bit i of the mask is set, else x[i]
//
// Invocations walk the arena in fours with the stride of the whole grid; eight fours share a word of the mask.

struct Params { count: u32 }

override LANES: u32 = 128u;

@group(0) @binding(0) var<storage, read_write> y: array<vec4<f32>>;   // [N / 4]
@group(0) @binding(1) var<storage, read>       mask: array<u32>;      // [N / 32]
@group(1) @binding(0) var<uniform> params: Params;

#paste BEFORE

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        let bits = vec4<u32>(mask[i / 8u] >> (4u * (i % 8u)));
        let gone = (bits & vec4<u32>(1u, 2u, 4u, 8u)) != vec4<u32>();
        y[i] = select(before(i), vec4<f32>(), gone);
    }
}
