// sgd: b = momentum b + fresh (g + d p), in the first update b = g + d p; p -= rate b, or rate (g + d p + momentum b);
// decoupled, p *= 1 - rate d and no d p in b
//
// One dispatch for all parameters: invocations walk the arenas in fours with the stride of the whole grid. A block of 64
// elements, sixteen fours, belongs to one tensor.

struct Params { count: u32, tensors: u32, limit: f32, momentum: f32, fresh: f32 }

override LANES: u32 = 128u;
override NESTEROV: u32 = 0u;
override DECOUPLED: u32 = 0u;

@group(0) @binding(0) var<storage, read_write> parameters: array<vec4<f32>>;   // [N / 4]
@group(0) @binding(1) var<storage, read_write> buffer: array<vec4<f32>>;       // [N / 4]
@group(0) @binding(2) var<storage, read>       gradients: array<vec4<f32>>;    // [N / 4]
@group(0) @binding(3) var<storage, read>       segments: array<u32>;           // [N / 64]
@group(0) @binding(4) var<storage, read>       decay: array<f32>;              // [tensors]
@group(0) @binding(5) var<storage, read>       scalars: array<f32>;            // rate, -, -, -, step, ..
@group(0) @binding(6) var<storage, read>       control: array<f32>;            // factor, norm, goes, -, -, skipped, ..
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    if control[2] == 0.0 { return; }
    let rate = scalars[0];
    let is_first = scalars[4] - control[5] == 1.0;
    let factor = control[0];
    let limit = vec4<f32>(params.limit);
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        let d = decay[min(segments[i / 16u], params.tensors - 1u)];
        var p = parameters[i];
        var g = clamp(gradients[i] * factor, -limit, limit);
        if DECOUPLED == 1u { p *= 1.0 - rate * d; } else { g += d * p; }
        var b = g;
        if !is_first { b = params.momentum * buffer[i] + params.fresh * g; }
        buffer[i] = b;
        if NESTEROV == 1u { b = g + params.momentum * b; }
        parameters[i] = p - rate * b;
    }
}
