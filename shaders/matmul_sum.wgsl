// matmul_sum: c[b, m, n] = finish(sum over parts of partial[part, b, m, n])
//
// What `matmul_tile` has summed over parts of K, added up in their order. Invocations walk the outputs with the stride of the
// whole grid.

struct Params {
    count: u32,     // outputs of the whole batch
    n: u32,
    parts: u32,
}

alias Elem = f32;
alias V = f32;
override LANES: u32 = 128u;

#import math

@group(0) @binding(0) var<storage, read> partial: array<f32>;
#paste OUTPUT
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * LANES;
    for (var at = (group.y * groups.x + group.x) * LANES + lane.x; at < params.count; at += stride) {
        var sum = 0.0;
        for (var part = 0u; part < params.parts; part += 1u) {
            sum += partial[part * params.count + at];
        }
        c[at] = Elem(finish(sum, bias_at(at % params.n)));
    }
}
