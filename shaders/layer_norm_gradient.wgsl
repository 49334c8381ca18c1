// layer_norm_gradient: dx = rstd * (g - mean of g - n * mean of (g * n)) + addend, n = (x - mean) * rstd, g = up * weight, by rows
//
// lane_per_row: one invocation walks a row twice. group_per_row: one workgroup shares a row.

struct Params { rows: u32, cols: u32, packs: u32 }

alias Elem = f32;
override HAS_WEIGHT: u32 = 1u;
override LANES: u32 = 64u;
override ROW_LANES: u32 = 8u;

#import rows

@group(0) @binding(0) var<storage, read>       x: array<Pack>;        // [rows, cols]
@group(0) @binding(1) var<storage, read>       up: array<Pack>;       // [rows, cols]
@group(0) @binding(2) var<storage, read>       means: array<f32>;     // [rows]
@group(0) @binding(3) var<storage, read>       rstds: array<f32>;     // [rows]
@group(0) @binding(4) var<storage, read>       weight: array<Pack>;   // [cols], if there
@group(0) @binding(5) var<storage, read_write> dx: array<Pack>;       // [rows, cols]
#paste ADDEND
@group(1) @binding(0) var<uniform> params: Params;

fn weighted(at: u32, c: u32) -> V {
    if HAS_WEIGHT == 1u { return V(up[at]) * V(weight[c]); }
    return V(up[at]);
}

@compute @workgroup_size(ROW_LANES)
fn lane_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = (group.y * groups.x + group.x) * ROW_LANES + lane.x;
    if row >= params.rows { return; }
    let start = row * params.packs;
    let mean = means[row];
    let rstd = rstds[row];

    var total = V();
    var total_n = V();
    for (var c = 0u; c < params.packs; c += 1u) {
        let g = weighted(start + c, c);
        total += g;
        total_n += g * ((V(x[start + c]) - mean) * rstd);
    }
    let mean_g = total_of(total) / f32(params.cols);
    let mean_gn = total_of(total_n) / f32(params.cols);
    for (var c = 0u; c < params.packs; c += 1u) {
        let n = (V(x[start + c]) - mean) * rstd;
        dx[start + c] = Pack(rstd * (weighted(start + c, c) - mean_g - n * mean_gn) + addend_at(start + c));
    }
}

@compute @workgroup_size(LANES)
fn group_per_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows { return; }
    let start = row * params.packs;
    let mean = means[row];
    let rstd = rstds[row];

    var total = V();
    var total_n = V();
    for (var c = lane.x; c < params.packs; c += LANES) {
        let g = weighted(start + c, c);
        total += g;
        total_n += g * ((V(x[start + c]) - mean) * rstd);
    }
    let mean_g = sum_over_lanes(lane.x, total_of(total)) / f32(params.cols);
    let mean_gn = sum_over_lanes(lane.x, total_of(total_n)) / f32(params.cols);
    for (var c = lane.x; c < params.packs; c += LANES) {
        let n = (V(x[start + c]) - mean) * rstd;
        dx[start + c] = Pack(rstd * (weighted(start + c, c) - mean_g - n * mean_gn) + addend_at(start + c));
    }
}
