// split: out0[o, ..], out1[o, ..], .. = x[o, offset + ..], one after the other
//
// A row is one index of the axes before the one that is cut. Invocations walk the strip of the input that this launch's outputs
// take, with the stride of the whole grid, one element or four at a time.

alias Elem = f32;
override LANES: u32 = 128u;
#paste DECLARATIONS
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        let outer = i / params.total;
        var at = i % params.total;
        let value = x[outer * params.row + params.offset + at];
        #paste BODY
    }
}
