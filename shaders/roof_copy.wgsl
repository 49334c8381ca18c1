// roof_copy: y = x: how fast this adapter moves memory where nothing is computed
//
// Invocations walk the elements with the stride of the whole grid, so that neighbours read neighbours.

struct Params { count: u32 }

override LANES: u32 = 64u;
#paste WIDE

@group(0) @binding(0) var<storage, read>       x: array<Wide>;   // [count]
@group(0) @binding(1) var<storage, read_write> y: array<Wide>;   // [count]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let first = (group.y * groups.x + group.x) * LANES + lane.x;
    let stride = groups.x * groups.y * LANES;
    for (var i = first; i < params.count; i += stride) {
        y[i] = x[i];
    }
}
