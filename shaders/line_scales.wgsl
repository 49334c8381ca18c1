// line_scales: s = largest |x| of a line over a divisor, or its span over a number of steps with z = lowest - round(least / s)
//
// lane_per_line: one invocation walks a line. group_per_line: one workgroup shares it. Elements that are not finite are found
// by their bits: comparisons with NaN tell nothing.

struct Params {
    lines: u32, length: u32, inner: u32, group: u32, parts: u32,
    over: f32, lowest: f32,
}

override LANES: u32 = 64u;
override LINE_LANES: u32 = 8u;
override WITH_ZERO: u32 = 1u;

const SMALLEST_NORMAL = 1.1754944e-38;

@group(0) @binding(0) var<storage, read>       x: array<f32>;    // [outer, length, inner]
@group(0) @binding(1) var<storage, read_write> s: array<f32>;    // [lines]
@group(1) @binding(0) var<uniform> params: Params;

// Least and greatest element, and the largest bits of a magnitude.
struct Ends { least: f32, greatest: f32, bits: u32 }

var<workgroup> ends_of: array<Ends, LANES>;

#import lines

fn usable(scale: f32) -> f32 { return select(0.0, scale, scale >= SMALLEST_NORMAL); }

fn nan() -> f32 {
    // Not a constant expression, since that may not be NaN.
    return bitcast<f32>(0x7fc00000u | min(params.lines, 1u));
}

#paste RULE

fn begin(first: u32) -> Ends {
    let start = select(x[first], 0.0, WITH_ZERO == 1u);
    return Ends(start, start, bitcast<u32>(start) & 0x7fffffffu);
}

fn extend(ends: Ends, value: f32) -> Ends {
    let bits = bitcast<u32>(value) & 0x7fffffffu;
    return Ends(min(ends.least, value), max(ends.greatest, value), max(ends.bits, bits));
}

fn finish(line: u32, ends: Ends) {
    store(line, vec2<f32>(ends.least, ends.greatest), ends.bits < 0x7f800000u);
}

@compute @workgroup_size(LINE_LANES)
fn lane_per_line(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let line = (group.y * groups.x + group.x) * LINE_LANES + lane.x;
    if line >= params.lines { return; }
    let first = first_of(line);
    let count = count_of(line);
    var ends = begin(first);
    for (var i = 0u; i < count; i += 1u) { ends = extend(ends, x[first + i * params.inner]); }
    finish(line, ends);
}

@compute @workgroup_size(LANES)
fn group_per_line(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    // The same for the whole workgroup, so that returning before a barrier is allowed.
    let line = group.y * groups.x + group.x;
    if line >= params.lines { return; }
    let first = first_of(line);
    let count = count_of(line);
    var ends = begin(first);
    for (var i = lane.x; i < count; i += LANES) { ends = extend(ends, x[first + i * params.inner]); }
    ends_of[lane.x] = ends;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.x < half {
            let a = ends_of[lane.x];
            let b = ends_of[lane.x + half];
            ends_of[lane.x] = Ends(min(a.least, b.least), max(a.greatest, b.greatest), max(a.bits, b.bits));
        }
    }
    if lane.x == 0u { finish(line, ends_of[0]); }
}
