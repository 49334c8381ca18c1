// cross_entropy_total: count = number of rows whose target is not ignored; loss = sum over r of losses[r], over count for a mean
//
// One workgroup; each lane adds every LANES-th row in order, then the lanes are added as a tree. No counted row: 0 / 0.

struct Params { rows: u32, ignore_index: i32 }

alias Elem = f32;
override MEAN: u32 = 1u;
override LANES: u32 = 64u;

#import rows

@group(0) @binding(0) var<storage, read>       losses: array<f32>;    // [rows]
@group(0) @binding(1) var<storage, read>       targets: array<i32>;   // [rows]
@group(0) @binding(2) var<storage, read_write> loss: array<f32>;      // []
@group(0) @binding(3) var<storage, read_write> count: array<f32>;     // []
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(@builtin(local_invocation_id) lane: vec3<u32>) {
    var part = 0.0;
    var counted = 0.0;
    for (var row = lane.x; row < params.rows; row += LANES) {
        part += losses[row];
        counted += select(1.0, 0.0, targets[row] == params.ignore_index);
    }
    let total = sum_over_lanes(lane.x, part);
    let total_counted = sum_over_lanes(lane.x, counted);
    if lane.x == 0u {
        count[0] = total_counted;
        if MEAN == 1u { loss[0] = total / total_counted; } else { loss[0] = total; }
    }
}
