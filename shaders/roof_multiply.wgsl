// roof_multiply: z <- z * scale + shift, over and over: how fast this adapter multiplies and adds where nothing else is in the way
//
// One invocation carries several vec4 chains that do not wait for one another; they begin apart, so that none can stand for
// another. The sum is written, so that nothing can be left out.

struct Params { count: u32, rounds: u32, scale: f32, shift: f32 }

alias Elem = f32;
override LANES: u32 = 64u;

@group(0) @binding(0) var<storage, read_write> y: array<f32>;    // [count], one sum an invocation
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let number = (group.y * groups.x + group.x) * LANES + lane.x;
    if number >= params.count { return; }

    let scale = vec4<Elem>(Elem(params.scale));
    let shift = vec4<Elem>(Elem(params.shift));
    let start = vec4<f32>(0.0, 0.0625, 0.125, 0.1875) + f32(number % 4u) * 0.015625;
    #paste START
    for (var round = 0u; round < params.rounds; round++) {
        #paste ROUND
    }
    let sum = vec4<f32>(
        #paste SUM
    );
    y[number] = sum.x + sum.y + sum.z + sum.w;
}
