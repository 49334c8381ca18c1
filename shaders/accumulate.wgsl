// accumulate: total[i] = total[i] * keep + gradients[i] * share, in place
//
// Invocations walk the arena with the stride of the whole grid, one element or four. A keep of zero forgets the total even
// where it is not a number.

struct Params { count: u32 }

override LANES: u32 = 128u;
#paste WIDTH

@group(0) @binding(0) var<storage, read_write> total: array<V>;       // [N]
@group(0) @binding(1) var<storage, read>       gradients: array<V>;   // [N]
@group(0) @binding(2) var<storage, read>       scalars: array<f32>;   // keep, share
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let keep = scalars[0];
    let share = scalars[1];
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        var kept = V();
        if keep != 0.0 { kept = total[i] * keep; }
        total[i] = kept + gradients[i] * share;
    }
}
