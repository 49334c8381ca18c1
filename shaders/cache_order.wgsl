// cache_order: y[b] = x[from[b]], in place
//
// Each invocation moves one word of all caches: it holds those of every cache before it writes the first. Invocations walk the words of
// a cache with the stride of the whole grid.

struct Params { words: u32 }

override CACHES: u32 = 4u;
override LANES: u32 = 128u;

@group(0) @binding(0) var<storage, read_write> x: array<u32>;      // [B, words]
@group(0) @binding(1) var<storage, read>       source: array<u32>;  // [B]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.words; i += stride) {
        var held: array<u32, CACHES>;
        for (var b = 0u; b < CACHES; b += 1u) { held[b] = x[min(source[b], CACHES - 1u) * params.words + i]; }
        for (var b = 0u; b < CACHES; b += 1u) { x[b * params.words + i] = held[b]; }
    }
}
