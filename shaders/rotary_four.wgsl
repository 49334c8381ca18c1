// rotary_four: as rotary, four elements at a time, where a part of four holds whole pairs or lies on one side of the pairs

struct Params {
    count: u32, time: u32, heads: u32, size: u32, turning: u32, pairs: u32, rows: u32, offset: u32, sign: f32,
}

alias Elem = f32;
alias Word = vec4<Elem>;
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
    let parts = params.size / 4u;
    for (var at = (group.y * groups.x + group.x) * LANES + lane.x; at < params.count; at += stride) {
        let d = at % parts * 4u;
        let h = at / parts % params.heads;
        let own = vec4<f32>(x[at]);
        if h >= params.turning || d >= 2u * params.pairs {
            y[at] = Word(own);
            continue;
        }
        let row = min(position_of(at / (parts * params.heads)), params.rows - 1u) * params.pairs;
        if INTERLEAVED == 1u {
            let pair = row + d / 2u;
            let c = vec2<f32>(cosine[pair], cosine[pair + 1u]).xxyy;
            let s = vec2<f32>(sine[pair], sine[pair + 1u]).xxyy * params.sign;
            y[at] = Word(own * c + own.yxwz * s * vec4<f32>(-1.0, 1.0, -1.0, 1.0));
        } else {
            let second = d >= params.pairs;
            let pair = row + d % params.pairs;
            let apart = params.pairs / 4u;
            let partner = vec4<f32>(x[select(at + apart, at - apart, second)]);
            let c = vec4<f32>(cosine[pair], cosine[pair + 1u], cosine[pair + 2u], cosine[pair + 3u]);
            let s = vec4<f32>(sine[pair], sine[pair + 1u], sine[pair + 2u], sine[pair + 3u]);
            y[at] = Word(own * c + partner * s * select(-params.sign, params.sign, second));
        }
    }
}
