// scatter: y[r, c] = sum over k with columns[r, k] = c of x[r, k]
//
// One workgroup per row. A lane owns every LANES-th column: it clears them, and then looks through all picks for its own, so
// that no two lanes ever write one element and equal columns are added in order.

struct Params { rows: u32, cols: u32, picks: u32 }

alias Elem = f32;
override LANES: u32 = 64u;

@group(0) @binding(0) var<storage, read>       x: array<Elem>;        // [rows, picks]
@group(0) @binding(1) var<storage, read>       columns: array<u32>;   // [rows, picks]
@group(0) @binding(2) var<storage, read_write> y: array<Elem>;        // [rows, cols]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows { return; }
    let start = row * params.cols;
    for (var c = lane.x; c < params.cols; c += LANES) { y[start + c] = Elem(); }
    for (var k = 0u; k < params.picks; k += 1u) {
        let column = columns[row * params.picks + k];
        if column < params.cols && column % LANES == lane.x {
            y[start + column] += x[row * params.picks + k];
        }
    }
}
