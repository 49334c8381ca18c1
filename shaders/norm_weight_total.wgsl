// norm_weight_total: out[c] = sum over k of sums[first + k * stride + c], in the order of k
//
// Second stage: one invocation per column, or four of them, adds up the chunks.

struct Params { packs: u32, chunks: u32, first: u32, stride: u32 }

alias Elem = f32;
override LANES: u32 = 64u;
#paste WIDTH

@group(0) @binding(0) var<storage, read>       sums: array<V>;     // [chunks, stride]
@group(0) @binding(1) var<storage, read_write> out: array<Pack>;   // [cols]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let c = (group.y * groups.x + group.x) * LANES + lane.x;
    if c >= params.packs { return; }
    var total = V();
    for (var k = 0u; k < params.chunks; k += 1u) { total += sums[params.first + k * params.stride + c]; }
    out[c] = Pack(total);
}
