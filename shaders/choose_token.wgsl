// choose_token: token[r] = the c with the greatest x[r, c] / temperature + noise(c), of those that filters leave; and its log-probability
//
// One workgroup per row; lanes walk it with stride LANES. The k-th best score, and the one at which the best have the probability
// top_p together, are found bit by bit: numbers that order as floats do are compared with a limit, which gets a bit where enough lie
// above it. Each bit is one walk over the row, and nothing is sorted. Noise is Gumbel's, counted by key, place and token.

struct Params { rows: u32, cols: u32, packs: u32 }

alias Elem = f32;
override LANES: u32 = 128u;

#import rows
#import random

@group(0) @binding(0) var<storage, read>       x: array<Pack>;             // [rows, cols]
@group(0) @binding(1) var<storage, read>       numbers: array<vec4<f32>>;  // [rows]: 1 / temperature, top_p, min_p, nothing
@group(0) @binding(2) var<storage, read>       words: array<vec4<u32>>;    // [rows]: top_k, key, place, 1 to draw + 2 for its logarithm
@group(0) @binding(3) var<storage, read_write> token: array<u32>;          // [rows]
@group(0) @binding(4) var<storage, read_write> logarithm: array<f32>;      // [rows]
@group(1) @binding(0) var<uniform> params: Params;

var<workgroup> best_of: array<u32, LANES>;

const LOWEST = -3.4028234e38;

// Floats as numbers in the same order.
fn ordered(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

fn score(at: u32, factor: f32) -> f32 {
    let value = f32(x[at]) * factor;
    return select(value, LOWEST, value != value || value < LOWEST);
}

fn noise(key: u32, place: u32, c: u32) -> f32 {
    let v = (f32(philox(key, vec2<u32>(c, place)).x >> 8u) + 0.5) / 16777216.0;
    // -log(1 - v): near one the logarithm itself would keep few digits, and there lie the winners.
    let small = v * (1.0 + v * (0.5 + v * (1.0 / 3.0 + v * 0.25)));
    let wait = select(-log(1.0 - v), small, v < 0.03125);
    return -log(wait);
}

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows { return; }
    let start = row * params.cols;
    let shape = numbers[row];
    let how = words[row];
    let factor = shape.x;

    var mine = LOWEST;
    for (var c = lane.x; c < params.cols; c += LANES) { mine = max(mine, score(start + c, factor)); }
    let largest = largest_over_lanes(lane.x, mine);
    var limit = 0u;
    if how.x > 0u && how.x < params.cols {
        for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
            var count = 0.0;
            for (var c = lane.x; c < params.cols; c += LANES) {
                count += select(0.0, 1.0, ordered(score(start + c, factor)) >= (limit | bit));
            }
            if sum_over_lanes(lane.x, count) >= f32(how.x) { limit |= bit; }
        }
    }
    if shape.y < 1.0 {
        var part = 0.0;
        for (var c = lane.x; c < params.cols; c += LANES) {
            let s = score(start + c, factor);
            part += select(0.0, exp(s - largest), ordered(s) >= limit);
        }
        let enough = sum_over_lanes(lane.x, part) * shape.y;
        var bound = 0u;
        for (var bit = 0x80000000u; bit > 0u; bit >>= 1u) {
            var mass = 0.0;
            for (var c = lane.x; c < params.cols; c += LANES) {
                let s = score(start + c, factor);
                mass += select(0.0, exp(s - largest), ordered(s) >= max(limit, bound | bit));
            }
            if sum_over_lanes(lane.x, mass) >= enough { bound |= bit; }
        }
        limit = max(limit, bound);
    }
    // Where rounding leaves nothing above the limit, the best stays.
    limit = min(limit, ordered(largest));
    let least = select(LOWEST, largest + log(shape.z), shape.z > 0.0);
    let draws = (how.w & 1u) == 1u;
    var value = LOWEST;
    var chosen = 0xffffffffu;
    for (var c = lane.x; c < params.cols; c += LANES) {
        let s = score(start + c, factor);
        if ordered(s) < limit || (s < least && s < largest) || s == LOWEST { continue; }
        var noisy = s;
        if draws { noisy += noise(how.y, how.z, c); }
        if noisy > value || chosen == 0xffffffffu { value = noisy; chosen = c; }
    }
    let top = largest_over_lanes(lane.x, value);
    // Of equals the first.
    best_of[lane.x] = select(0xffffffffu, chosen, value == top);
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if lane.x < half { best_of[lane.x] = min(best_of[lane.x], best_of[lane.x + half]); }
        workgroupBarrier();
    }
    // A row without any number has none that is best: the first is taken.
    let found = select(0u, best_of[0], best_of[0] < params.cols);
    var told = 0.0;
    if (how.w & 2u) == 2u {
        var peak = LOWEST;
        for (var c = lane.x; c < params.cols; c += LANES) { peak = max(peak, score(start + c, 1.0)); }
        peak = largest_over_lanes(lane.x, peak);
        var part = 0.0;
        for (var c = lane.x; c < params.cols; c += LANES) { part += exp(score(start + c, 1.0) - peak); }
        told = score(start + found, 1.0) - peak - log(sum_over_lanes(lane.x, part));
    }
    if lane.x == 0u {
        token[row] = found;
        logarithm[row] = told;
    }
}
