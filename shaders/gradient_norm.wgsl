// gradient_norm: partial sums of the squares of an arena of gradients
//
// Invocations walk the arena in fours with the stride of the whole grid. `lane`: each leaves its own sum; `group`: each
// workgroup joins its sums as a tree. The order is fixed by the count of elements.

struct Params { count: u32, first: u32 }   // fours; sums of the arenas before this one

override LANES: u32 = 256u;

@group(0) @binding(0) var<storage, read>       gradients: array<vec4<f32>>;   // [N / 4]
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;              // one per invocation or workgroup of each arena
@group(1) @binding(0) var<uniform> params: Params;

var<workgroup> totals: array<f32, LANES>;

fn squares(start: u32, stride: u32) -> f32 {
    var total = vec4<f32>();
    for (var i = start; i < params.count; i += stride) {
        let g = gradients[i];
        total += g * g;
    }
    return (total.x + total.y) + (total.z + total.w);
}

@compute @workgroup_size(LANES)
fn lane(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let at = (group.y * groups.x + group.x) * LANES + lane.x;
    sums[params.first + at] = squares(at, groups.x * groups.y * LANES);
}

@compute @workgroup_size(LANES)
fn group(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let number = group.y * groups.x + group.x;
    totals[lane.x] = squares(number * LANES + lane.x, groups.x * groups.y * LANES);
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.x < half { totals[lane.x] += totals[lane.x + half]; }
    }
    if lane.x == 0u { sums[params.first + number] = totals[0]; }
}
