// pointwise: out[i] = program(in0[..], in1[..], ..), element by element
//
// The program's text is pasted in; V is what one invocation computes at a time, one float or four, S how it is stored.
// Invocations walk the elements with the stride of the whole grid. Sums and functions are in f32 whatever the storage.

#import math

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
    let first = (group.y * groups.x + group.x) * LANES + lane.x;
    let stride = groups.x * groups.y * LANES;
    for (var i = first; i < params.count; i += stride) {
        #paste BODY
    }
}
