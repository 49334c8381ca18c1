// rotary: pairs (a, b) of each head turn: a' = a cos - b sin, b' = b cos + a sin
//
// One output element at a time, walked with the stride of the whole grid; each finds its partner and its side of the pair.

struct Params {
    count: u32, time: u32, heads: u32, size: u32, turning: u32, pairs: u32, rows: u32, offset: u32, sign: f32,
}

alias Elem = f32;
alias Word = Elem;
// 0: element i pairs with i + pairs; 1: 2 i with 2 i + 1
override INTERLEAVED: u32 = 0u;
override LANES: u32 = 128u;

@group(0) @binding(0) var<storage, read> x: array<Word>;     // [B, T, H, D]
@group(0) @binding(1) var<storage, read> cosine: array<f32>; // [rows, pairs]
@group(0) @binding(2) var<storage, read> sine: array<f32>;   // [rows, pairs]
@group(1) @binding(0) var<uniform> params: Params;
#paste POSITIONS
#paste OUTPUT

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * LANES;
    for (var at = (group.y * groups.x + group.x) * LANES + lane.x; at < params.count; at += stride) {
        let d = at % params.size;
        let h = at / params.size % params.heads;
        if h >= params.turning || d >= 2u * params.pairs {
            y[at] = x[at];
            continue;
        }
        let second = select(d >= params.pairs, (d & 1u) == 1u, INTERLEAVED == 1u);
        let pair = select(d % params.pairs, d / 2u, INTERLEAVED == 1u);
        let apart = select(params.pairs, 1u, INTERLEAVED == 1u);
        let partner = f32(x[select(at + apart, at - apart, second)]);
        let row = min(position_of(at / (params.size * params.heads)), params.rows - 1u) * params.pairs;
        let turn = select(-params.sign, params.sign, second) * sine[row + pair];
        y[at] = Elem(f32(x[at]) * cosine[row + pair] + partner * turn);
    }
}
