// dropout: y[i] = keep(i) ? x[i] * scale : 0
//
// Invocations walk the elements with the stride of the whole grid. The mask is a pure function of rng, salt and i.

#import random

struct Params { count: u32, salt: u32, threshold: u32, scale: f32 }

alias Elem = f32;
override LANES: u32 = 128u;

@group(0) @binding(0) var<storage, read>       x: array<Elem>;
@group(0) @binding(1) var<storage, read>       rng: array<u32>;    // [2]
@group(0) @binding(2) var<storage, read_write> y: array<Elem>;
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let key = vec2<u32>(rng[0], rng[1]);
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        let kept = keep_element(key, params.salt, i, params.threshold);
        y[i] = Elem(select(0.0, f32(x[i]) * params.scale, kept));
    }
}
