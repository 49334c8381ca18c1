// adam_bytes: Adam's step from moments in codes of the dynamic map, with a scale for each block of 256, and back into codes
//
// A workgroup takes a block, then the next with the stride of the whole grid; each lane owns words of four elements. The new
// moments are computed twice, to find their largest magnitude and then to round them, which costs less than to keep them.

#import bias
#import random

struct Params {
    blocks: u32, tensors: u32, limit: f32,
    beta1: f32, fresh1: f32, beta2: f32, fresh2: f32, epsilon: f32, key: u32,
}

override LANES: u32 = 64u;
override DECOUPLED: u32 = 0u;
const WORDS = 64u;
const SMALLEST_NORMAL = 1.1754944e-38;

@group(0) @binding(1) var<storage, read_write> codes: array<u32>;              // [N / 256, 2, 64] bytes
@group(0) @binding(2) var<storage, read_write> scales: array<vec2<f32>>;       // [N / 256]
@group(0) @binding(3) var<storage, read>       gradients: array<vec4<f32>>;    // [N / 4]
@group(0) @binding(4) var<storage, read>       segments: array<u32>;           // [N / 64]
@group(0) @binding(5) var<storage, read>       decay: array<f32>;              // [tensors]
@group(0) @binding(6) var<storage, read>       scalars: array<f32>;            // rate, bias1, bias2, first, step, ln beta1, ln beta2
@group(0) @binding(7) var<storage, read>       control: array<f32>;            // factor, norm, goes, -, -, skipped, ..
@group(1) @binding(0) var<uniform> params: Params;

var<workgroup> largest: array<vec2<f32>, LANES>;

#paste MAP
#paste PARAMETERS

// Codes plus 128 are numbers of entries: of 127 below zero, zero, and 128 above it; or of zero and 255 above it.
fn entry_both(code: i32) -> f32 {
    let place = code + 1;
    let number = u32(abs(place));
    if number == 0u { return 0.0; }
    if place == 128 { return 1.0; }
    let decade = firstLeadingBit(number);
    let part = (f32(number) + 0.5) / f32(1u << decade);
    return select(1.0, -1.0, place < 0) * power(decade) * (0.9 * part - 0.8);
}

fn entry_above(code: i32) -> f32 {
    let number = u32(code + 129);
    if number == 1u { return 0.0; }
    if number == 256u { return 1.0; }
    let bits = firstLeadingBit(number);
    let part = (f32(number) + 0.5) / f32(1u << bits);
    return power(bits - 1u) * (0.9 * part - 0.8);
}

fn number_of(t: f32, decade: u32, bits: u32, above: bool) -> u32 {
    let limits = ends(above);
    if t <= limits.x { return 0u; }
    let count = 1u << bits;
    let at = clamp(i32((t * factor(decade) - 1.0 / 9.0) * f32(count)), 0, i32(count) - 1);
    return count + u32(at) + u32(t > limits.y);
}

fn code_both(x: f32) -> i32 {
    let t = abs(x);
    let decade = decade_both(t);
    let number = i32(number_of(t, decade, decade, false));
    return select(number - 1, -1 - min(number, 127), x < 0.0);
}

fn code_above(t: f32) -> i32 {
    let decade = decade_above(t);
    return i32(max(number_of(t, decade, decade + 1u, true), 1u)) - 129;
}

struct Moments { m: vec4<f32>, v: vec4<f32> }

fn moved(block: u32, word: u32, g: vec4<f32>) -> Moments {
    let scale = scales[block];
    let a = unpack4xI8(codes[block * 2u * WORDS + word]);
    let b = unpack4xI8(codes[(block * 2u + 1u) * WORDS + word]);
    let m = vec4<f32>(entry_both(a.x), entry_both(a.y), entry_both(a.z), entry_both(a.w)) * scale.x;
    let v = vec4<f32>(entry_above(b.x), entry_above(b.y), entry_above(b.z), entry_above(b.w)) * scale.y;
    return Moments(params.beta1 * m + params.fresh1 * g, params.beta2 * v + params.fresh2 * g * g);
}

fn gradient_of(at: u32, d: f32) -> vec4<f32> {
    let limit = vec4<f32>(params.limit);
    let g = clamp(gradients[at] * control[0], -limit, limit);
    if DECOUPLED == 1u { return g; }
    return g + d * read_four(at);
}

fn most(v: vec4<f32>) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }

fn usable(scale: f32) -> f32 { return select(0.0, scale, scale >= SMALLEST_NORMAL); }

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    // The same for every invocation, so that returning before a barrier is allowed.
    let goes = control[2] != 0.0;
    let bias = corrections();
    let rate = scalars[0];
    let stride = groups.x * groups.y;
    for (var block = group.y * groups.x + group.x; block < params.blocks; block += stride) {
        let d = decay[min(segments[block * 4u], params.tensors - 1u)];
        var ends_of = vec2<f32>();
        for (var word = lane.x; word < WORDS; word += LANES) {
            let next = moved(block, word, gradient_of(block * WORDS + word, d));
            ends_of = max(ends_of, vec2<f32>(most(abs(next.m)), most(abs(next.v))));
        }
        largest[lane.x] = ends_of;
        for (var half = LANES / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if lane.x < half { largest[lane.x] = max(largest[lane.x], largest[lane.x + half]); }
        }
        workgroupBarrier();
        let scale = vec2<f32>(usable(largest[0].x), usable(largest[0].y));
        let divisor = select(scale, vec2<f32>(1.0), scale == vec2<f32>(0.0));
        let live = vec2<f32>(scale != vec2<f32>(0.0));
        for (var word = lane.x; word < WORDS; word += LANES) {
            let at = block * WORDS + word;
            let next = moved(block, word, gradient_of(at, d));
            let m = next.m * live.x / divisor.x;
            let v = next.v * live.y / divisor.y;
            if goes {
                let first = vec4<i32>(code_both(m.x), code_both(m.y), code_both(m.z), code_both(m.w));
                let second = vec4<i32>(code_above(v.x), code_above(v.y), code_above(v.z), code_above(v.w));
                var p = read_four(at);
                if DECOUPLED == 1u { p = p * (1.0 - rate * d); }
                codes[block * 2u * WORDS + word] = pack4xI8(first);
                codes[(block * 2u + 1u) * WORDS + word] = pack4xI8(second);
                write_four(at, p - rate * (next.m * bias.x / (sqrt(next.v) * bias.y + params.epsilon)));
            }
        }
        // Every lane has read the old scale before one writes the new.
        workgroupBarrier();
        if goes && lane.x == 0u { scales[block] = scale; }
    }
}
