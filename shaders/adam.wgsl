// adam: m = beta1 m + fresh1 g; v = beta2 v + fresh2 g^2; p -= rate * m bias1 / (sqrt(v) bias2 + epsilon)
//
// Coupled decay enters the gradient, g + d p; decoupled decay the parameter, p (1 - rate d). One dispatch for all parameters:
// invocations walk the arenas in fours with the stride of the whole grid. A block of 64 elements, sixteen fours, belongs to
// one tensor.

#import bias
#import random

struct Params {
    count: u32, tensors: u32, limit: f32,
    beta1: f32, fresh1: f32, beta2: f32, fresh2: f32, epsilon: f32, key: u32,
}

override LANES: u32 = 128u;
override DECOUPLED: u32 = 0u;

@group(0) @binding(1) var<storage, read_write> first: array<vec4<f32>>;        // [N / 4]
@group(0) @binding(2) var<storage, read_write> second: array<vec4<f32>>;       // [N / 4]
@group(0) @binding(3) var<storage, read>       gradients: array<vec4<f32>>;    // [N / 4]
@group(0) @binding(4) var<storage, read>       segments: array<u32>;           // [N / 64]
@group(0) @binding(5) var<storage, read>       decay: array<f32>;              // [tensors]
@group(0) @binding(6) var<storage, read>       scalars: array<f32>;            // rate, bias1, bias2, first, step, ln beta1, ln beta2
@group(0) @binding(7) var<storage, read>       control: array<f32>;            // factor, norm, goes, -, -, skipped, ..
@group(1) @binding(0) var<uniform> params: Params;

#paste PARAMETERS

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    if control[2] == 0.0 { return; }
    let rate = scalars[0];
    let bias = corrections();
    let factor = control[0];
    let limit = vec4<f32>(params.limit);
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        let d = decay[min(segments[i / 16u], params.tensors - 1u)];
        var p = read_four(i);
        var g = clamp(gradients[i] * factor, -limit, limit);
        if DECOUPLED == 1u { p = p * (1.0 - rate * d); } else { g += d * p; }
        let m = params.beta1 * first[i] + params.fresh1 * g;
        let v = params.beta2 * second[i] + params.fresh2 * g * g;
        first[i] = m;
        second[i] = v;
        write_four(i, p - rate * (m * bias.x / (sqrt(v) * bias.y + params.epsilon)));
    }
}
