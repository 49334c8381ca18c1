// block_codes: s = max |x| / 127 over each 256 numbers, q = floor(x / s + u), u uniform in 0..1 from key, step and element
//
// A workgroup takes a block, then the next with the stride of the whole grid; each lane owns words of four elements.

#import random

struct Params { blocks: u32, key: u32 }

override LANES: u32 = 64u;
const WORDS = 64u;
const SMALLEST_NORMAL = 1.1754944e-38;

@group(0) @binding(0) var<storage, read_write> codes: array<u32>;         // [N / 4] bytes
@group(0) @binding(1) var<storage, read_write> scales: array<f32>;        // [N / 256]
@group(0) @binding(2) var<storage, read>       x: array<vec4<f32>>;       // [N / 4]
@group(0) @binding(3) var<storage, read>       scalars: array<f32>;       // -, -, -, -, step, ..
@group(0) @binding(4) var<storage, read>       control: array<f32>;       // -, -, goes, ..
@group(1) @binding(0) var<uniform> params: Params;

var<workgroup> largest: array<f32, LANES>;

fn most(v: vec4<f32>) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    // The same for every invocation, so that returning before a barrier is allowed.
    if control[2] == 0.0 { return; }
    let step = u32(scalars[4]);
    let stride = groups.x * groups.y;
    for (var block = group.y * groups.x + group.x; block < params.blocks; block += stride) {
        var own = 0.0;
        for (var word = lane.x; word < WORDS; word += LANES) {
            own = max(own, most(abs(x[block * WORDS + word])));
        }
        largest[lane.x] = own;
        for (var half = LANES / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if lane.x < half { largest[lane.x] = max(largest[lane.x], largest[lane.x + half]); }
        }
        workgroupBarrier();
        let found = largest[0] / 127.0;
        let scale = select(0.0, found, found >= SMALLEST_NORMAL);
        let divisor = select(scale, 1.0, scale == 0.0);
        for (var word = lane.x; word < WORDS; word += LANES) {
            let at = block * WORDS + word;
            let words = philox(params.key, vec2<u32>(at, step));
            let noise = vec4<u32>(words.x & 0xffffu, words.x >> 16u, words.y & 0xffffu, words.y >> 16u);
            let place = x[at] / divisor + (vec4<f32>(noise) + 0.5) / 65536.0;
            let code = vec4<i32>(clamp(floor(place), vec4<f32>(-127.0), vec4<f32>(127.0)));
            codes[at] = select(pack4xI8(code), 0u, scale == 0.0);
        }
        if lane.x == 0u { scales[block] = scale; }
        // Every lane has read the largest before the next block writes.
        workgroupBarrier();
    }
}
