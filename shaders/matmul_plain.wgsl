// matmul_plain: c[b, m, n] = finish(sum over k of a[b, m, k] * b[b, k, n])
//
// One output per invocation, the operands read element by element: the referee of the faster variants.
// `finish` adds the bias and applies the activation; it is pasted with the output's declarations.

struct Params {
    m: u32, n: u32, k: u32,
    inner: u32,                    // matrices of the inner of two batch axes
    a_outer: u32, a_inner: u32,    // batch strides in elements, zero where the operand is broadcast
    b_outer: u32, b_inner: u32,
    count: u32,                    // outputs of the whole batch
}

alias Elem = f32;
alias V = f32;
// Which operand is stored with its axes exchanged: 0 none, 1 b as [N, K], 2 a as [K, M]
override FORM: u32 = 0u;
override LANES: u32 = 64u;

#import math

#paste INPUT
#paste OUTPUT
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let at = (group.y * groups.x + group.x) * LANES + lane.x;
    if at >= params.count { return; }
    let column = at % params.n;
    let row = at / params.n % params.m;
    let matrix = at / params.n / params.m;
    let outer = matrix / params.inner;
    let inner = matrix % params.inner;
    let a_step = select(1u, params.m, FORM == 2u);
    let b_step = select(params.n, 1u, FORM == 1u);
    var a_at = outer * params.a_outer + inner * params.a_inner + row * select(params.k, 1u, FORM == 2u);
    var b_at = outer * params.b_outer + inner * params.b_inner + column * select(1u, params.k, FORM == 1u);
    var sum = 0.0;
    for (var k = 0u; k < params.k; k += 1u) {
        sum += read_a(a_at) * read_b(b_at);
        a_at += a_step;
        b_at += b_step;
    }
    c[at] = Elem(finish(sum, bias_at(column)));
}
