// gradient_norm_finish: control = (clip factor, norm, still going, 0) from the partial sums of squares, in place
//
// One workgroup: lanes walk the sums with stride LANES and are joined as a tree. Once a norm was not finite, the third word
// stays zero.

struct Params { count: u32, max_norm: f32 }

override LANES: u32 = 256u;

@group(0) @binding(0) var<storage, read>       sums: array<f32>;      // [count]
@group(0) @binding(1) var<storage, read_write> control: array<f32>;   // [4]
@group(1) @binding(0) var<uniform> params: Params;

var<workgroup> totals: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn forward(@builtin(local_invocation_id) lane: vec3<u32>) {
    var total = 0.0;
    for (var i = lane.x; i < params.count; i += LANES) {
        total += sums[i];
    }
    totals[lane.x] = total;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane.x < half { totals[lane.x] += totals[lane.x + half]; }
    }
    if lane.x == 0u {
        let sum = totals[0];
        // By its bits: a compiler may take it for granted that no float is NaN.
        let is_finite = (bitcast<u32>(sum) & 0x7f800000u) != 0x7f800000u;
        let going = is_finite && control[2] != 0.0;
        let norm = sqrt(sum);
        var factor = 1.0;
        if going && params.max_norm < norm + 1e-6 { factor = params.max_norm / (norm + 1e-6); }
        control[0] = factor;
        control[1] = norm;
        control[2] = select(0.0, 1.0, going);
        control[3] = 0.0;
    }
}
