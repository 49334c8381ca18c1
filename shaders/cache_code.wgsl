// cache_code: codes of new keys and values behind those of earlier tokens, in place: s = max |x| / divisor by rows, q = x / s
//
// Invocations walk the new rows of keys, then those of values, with the stride of the whole grid; each codes a row of four-byte
// words by itself. Rows past the end of the cache are left out.

struct Params {
    count: u32,      // new rows of keys
    heads: u32, time: u32, capacity: u32, caches: u32,
    fours: u32,      // words of a row's codes
    divisor: f32, lowest: f32, highest: f32,
}

alias Elem = f32;

#import quantize

@group(0) @binding(0) var<storage, read_write> keys: array<u32>;           // [B, capacity, heads, fours]
@group(0) @binding(1) var<storage, read_write> key_scales: array<f32>;     // [B, capacity, heads]
@group(0) @binding(2) var<storage, read_write> values: array<u32>;
@group(0) @binding(3) var<storage, read_write> value_scales: array<f32>;
@group(0) @binding(4) var<storage, read>       new_keys: array<vec4<Elem>>;     // [B, time, heads, fours]
@group(0) @binding(5) var<storage, read>       new_values: array<vec4<Elem>>;
@group(0) @binding(6) var<storage, read>       position: array<u32>;       // [1], or [B, 2]: each its position, and the number of its cache
@group(1) @binding(0) var<uniform> params: Params;

fn element(of_keys: bool, at: u32) -> vec4<f32> {
    if of_keys { return vec4<f32>(new_keys[at]); }
    return vec4<f32>(new_values[at]);
}

fn code_of(x: f32, factor: f32) -> i32 { return code(x, factor, params.lowest, params.highest); }

#paste SEATS

@compute @workgroup_size(128)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * 128u;
    for (var i = (group.y * groups.x + group.x) * 128u + lane.x; i < 2u * params.count; i += stride) {
        let of_keys = i < params.count;
        let row = select(i - params.count, i, of_keys);
        let t = row / params.heads % params.time;
        let seat = seat_of(row / params.heads / params.time);
        // Not first + t < capacity: a position near the greatest number must not wrap around.
        if seat.x >= params.capacity || t >= params.capacity - seat.x || seat.y >= params.caches { continue; }
        let to = (seat.y * params.capacity + seat.x + t) * params.heads + row % params.heads;
        var largest = 0u;
        for (var j = 0u; j < params.fours; j += 1u) {
            let x = element(of_keys, row * params.fours + j);
            largest = max(largest, max(max(magnitude(x.x), magnitude(x.y)), max(magnitude(x.z), magnitude(x.w))));
        }
        let scale = scale_of(largest, params.divisor);
        let factor = factor_of(scale);
        if of_keys { key_scales[to] = scale; } else { value_scales[to] = scale; }
        for (var j = 0u; j < params.fours; j += 1u) {
            let x = element(of_keys, row * params.fours + j);
            let word = pack4xI8(vec4<i32>(
                code_of(x.x, factor), code_of(x.y, factor), code_of(x.z, factor), code_of(x.w, factor)));
            if of_keys { keys[to * params.fours + j] = word; } else { values[to * params.fours + j] = word; }
        }
    }
}
