// cast: y[i] = x[i] in another storage
//
// Invocations walk the elements with the stride of the whole grid, one or four at a time.

struct Params { count: u32 }

alias In = f32;
alias Out = f32;
override LANES: u32 = 128u;
#paste WIDTH

@group(0) @binding(0) var<storage, read>       x: array<PackIn>;
@group(0) @binding(1) var<storage, read_write> y: array<PackOut>;
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        y[i] = PackOut(x[i]);
    }
}
