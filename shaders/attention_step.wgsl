// attention_step: out[b, t, h] = sum over s of softmax(scale q . k)[s] v[s], and lse[b, h, t], for few queries
//
// One workgroup per query and head. In each turn every lane scores one key; then the lanes are cut into SHARES teams of PARTS,
// a lane of each team for every four elements of the values, and each team adds up every SHARES-th value of the turn. The running
// maximum m and sum l are the same in all lanes. Scores are in powers of two: log2(e) is folded into the scale.

#import attention

override LANES: u32 = 128u;
// Parts of four elements in a row, and teams that many lanes make.
override PARTS: u32 = 16u;
override SHARES: u32 = 8u;

// q [B, T, H, D], k and v [B, S, G, D], position u32 [1] or [B, 2], out [B, T, H, D], lse f32 [B, H, T]
#paste BUFFERS

var<workgroup> weights: array<f32, LANES>;
var<workgroup> folded: array<f32, LANES>;
var<workgroup> sums: array<vec4<f32>, LANES>;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    // The same for the whole workgroup, so that returning before a barrier is allowed.
    let place = group.y * groups.x + group.x;
    if place >= params.batch * params.heads * params.queries { return; }
    let h = place % params.heads;
    let t = place / params.heads % params.queries;
    let b = place / params.heads / params.queries;
    let g = h / (params.heads / params.key_heads);
    let row = query_row(b, t, h);
    let reach = reach_of_query(b, t);
    let part = lane % PARTS;
    let share = lane / PARTS;
    var m = LOWEST;
    var l = 0.0;
    var o = vec4<f32>(0.0);
    for (var s = reach.low; s < reach.high; s += LANES) {
        let live = s + lane < reach.high;
        var x = LOWEST;
        if live {
            let at = key_row(b, s + lane, g);
            var product = 0.0;
            for (var p = 0u; p < PARTS; p += 1u) { product += dot(load_q(row, p), load_k(at, p)); }
            x = product * (params.scale * LOG2E);
        }
        folded[lane] = x;
        for (var half = LANES / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if lane < half { folded[lane] = max(folded[lane], folded[lane + half]); }
        }
        workgroupBarrier();
        let n = max(m, folded[0]);
        let w = select(0.0, exp2(x - n), live);
        workgroupBarrier();
        weights[lane] = w;
        folded[lane] = w;
        for (var half = LANES / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if lane < half { folded[lane] += folded[lane + half]; }
        }
        workgroupBarrier();
        let c = exp2(m - n);
        l = l * c + folded[0];
        m = n;
        o *= c;
        if share < SHARES {
            let count = min(LANES, reach.high - s);
            for (var j = share; j < count; j += SHARES) {
                o += weights[j] * load_v(key_row(b, s + j, g), part);
            }
        }
        workgroupBarrier();
    }
    sums[lane] = o;
    workgroupBarrier();
    // A row that sees nothing has l = 0, and gives zeros.
    if lane < PARTS {
        var sum = vec4<f32>(0.0);
        for (var j = 0u; j < SHARES; j += 1u) { sum += sums[j * PARTS + lane]; }
        store_out(out_row(b, t, h), lane, sum * select(0.0, 1.0 / l, l > 0.0));
    }
    if lane == 0u {
        lse[(b * params.heads + h) * params.queries + t] = select(0.0, m / LOG2E + log(l), l > 0.0);
    }
}
