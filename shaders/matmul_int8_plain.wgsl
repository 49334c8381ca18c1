// matmul_int8_plain: c[m, n] = finish(sum over k of a[m, k] * b[n, k]), byte by byte
//
// One output per invocation: the referee of the faster variants. Every K is read as it lies. `finish` applies the scales, the bias
// and the activation; it is pasted with the output's declarations.

struct Params {
    m: u32, n: u32, k: u32,
    group: u32,     // columns that share a scale
    groups: u32,    // of a row
}

alias V = f32;

#import math

@group(0) @binding(0) var<storage, read> a: array<u32>;   // [M, K] bytes
@group(0) @binding(1) var<storage, read> b: array<u32>;   // [N, K] bytes
#paste OUTPUT
@group(1) @binding(0) var<uniform> params: Params;

fn code(word: u32, at: u32) -> i32 { return extractBits(bitcast<i32>(word), at % 4u * 8u, 8u); }

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let at = (group.y * groups.x + group.x) * 64u + lane.x;
    if at >= params.m * params.n { return; }
    let row = at / params.n;
    let column = at % params.n;
    var total = 0.0;
    for (var first = 0u; first < params.k; first += params.group) {
        var sum = 0i;
        for (var k = first; k < min(first + params.group, params.k); k += 1u) {
            let i = row * params.k + k;
            let j = column * params.k + k;
            sum += code(a[i / 4u], i) * code(b[j / 4u], j);
        }
        // Without groups the scale is applied at the end, as in the other variants.
        let scale = select(b_scale[column * params.groups + first / params.group], 1.0, params.groups == 1u);
        total = fma(f32(sum), scale, total);
    }
    let scale = select(1.0, b_scale[column], params.groups == 1u);
    c[at] = finish(total, a_scale[row], scale, bias_at(column));
}
