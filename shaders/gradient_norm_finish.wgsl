// gradient_norm_finish: what the update and the next step are told, from the partial sums of squares, in place
//
// One workgroup: lanes walk the sums with stride LANES and are joined as a tree. With an interval the loss scale follows
// overflow: a step whose gradients are not finite is skipped. Without one, or with no scale left, the run halts for ever.

struct Params { count: u32, max_norm: f32, growth: f32, backoff: f32, interval: u32 }

override LANES: u32 = 256u;

@group(0) @binding(0) var<storage, read>       sums: array<f32>;      // [count]
@group(0) @binding(1) var<storage, read_write> control: array<f32>;   // factor, norm, goes, scale, since, skipped, halted, -
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
        let scale = control[3];
        let was_halted = control[6] != 0.0;
        let goes = is_finite && !was_halted;
        let norm = sqrt(sum) / scale;
        var factor = 1.0;
        if goes && params.max_norm < norm + 1e-6 { factor = params.max_norm / (norm + 1e-6); }
        var next = scale;
        var since = control[4];
        var halts = was_halted;
        if params.interval == 0u {
            halts = !goes;
        } else if goes {
            since += 1.0;
            if since >= f32(params.interval) {
                next = scale * params.growth;
                since = 0.0;
            }
        } else if !was_halted {
            next = scale * params.backoff;
            since = 0.0;
            control[5] += 1.0;
            halts = next < 1.0;
        }
        control[0] = factor / scale;
        control[1] = norm;
        control[2] = select(0.0, 1.0, goes);
        control[3] = next;
        control[4] = since;
        control[6] = select(0.0, 1.0, halts);
        control[7] = 0.0;
    }
}
