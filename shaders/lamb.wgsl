// lamb: m, v as in adam; u = m bias1 / (sqrt(v) bias2 + epsilon) + d p; p -= rate |p| / |u| u, norms over the tensor
//
// One workgroup per tensor finds its blocks of 64 elements by bisection in `segments`, walks them once for moments and norms
// and once more for the update. The ratio of norms is one where either is zero.

#import bias

struct Params {
    count: u32, tensors: u32, limit: f32, blocks: u32,
    beta1: f32, fresh1: f32, beta2: f32, fresh2: f32, epsilon: f32,
}

override LANES: u32 = 256u;

@group(0) @binding(0) var<storage, read_write> parameters: array<vec4<f32>>;   // [N / 4]
@group(0) @binding(1) var<storage, read_write> first: array<vec4<f32>>;        // [N / 4]
@group(0) @binding(2) var<storage, read_write> second: array<vec4<f32>>;       // [N / 4]
@group(0) @binding(3) var<storage, read>       gradients: array<vec4<f32>>;    // [N / 4]
@group(0) @binding(4) var<storage, read>       segments: array<u32>;           // [N / 64], ascending
@group(0) @binding(5) var<storage, read>       decay: array<f32>;              // [tensors]
@group(0) @binding(6) var<storage, read>       scalars: array<f32>;            // rate, bias1, bias2, first, step, ln beta1, ln beta2
@group(0) @binding(7) var<storage, read>       control: array<f32>;            // factor, norm, goes, -, -, skipped, ..
@group(1) @binding(0) var<uniform> params: Params;

var<workgroup> squares: array<vec2<f32>, LANES>;

// First block that belongs to `tensor` or a later one.
fn first_block(tensor: u32) -> u32 {
    var low = 0u;
    var high = params.blocks;
    while low < high {
        let middle = (low + high) / 2u;
        if segments[middle] < tensor { low = middle + 1u; } else { high = middle; }
    }
    return low;
}

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let tensor = group.y * groups.x + group.x;
    let going = tensor < params.tensors && control[2] != 0.0;
    var begin = 0u;
    var end = 0u;
    var d = 0.0;
    if going {
        begin = min(first_block(tensor) * 16u, params.count);
        end = min(first_block(tensor + 1u) * 16u, params.count);
        d = decay[tensor];
    }
    let bias = corrections();
    let factor = control[0];
    let limit = vec4<f32>(params.limit);

    var sums = vec2<f32>();
    for (var i = begin + lane.x; i < end; i += LANES) {
        let p = parameters[i];
        let g = clamp(gradients[i] * factor, -limit, limit);
        let m = params.beta1 * first[i] + params.fresh1 * g;
        let v = params.beta2 * second[i] + params.fresh2 * g * g;
        first[i] = m;
        second[i] = v;
        let u = m * bias.x / (sqrt(v) * bias.y + params.epsilon) + d * p;
        sums += vec2<f32>(dot(p, p), dot(u, u));
    }
    squares[lane.x] = sums;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.x < half { squares[lane.x] += squares[lane.x + half]; }
    }
    workgroupBarrier();
    let total = squares[0];
    var rate = scalars[0];
    if total.x > 0.0 && total.y > 0.0 { rate *= sqrt(total.x / total.y); }
    for (var i = begin + lane.x; i < end; i += LANES) {
        let p = parameters[i];
        let u = first[i] * bias.x / (sqrt(second[i]) * bias.y + params.epsilon) + d * p;
        parameters[i] = p - rate * u;
    }
}
