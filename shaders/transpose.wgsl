// transpose: y[i] = x[sum over axes of (position of i along the axis) * stride]
//
// Axes that stay together come merged. Invocations walk the output with the stride of the whole grid, one element or,
// where the innermost axis keeps its place, four at a time.

alias Elem = f32;
override LANES: u32 = 128u;
#paste DECLARATIONS

@group(0) @binding(0) var<storage, read>       x: array<Pack>;
@group(0) @binding(1) var<storage, read_write> y: array<Pack>;
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        #paste BODY
        y[i] = x[source];
    }
}
