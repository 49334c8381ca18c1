// scatter: y[r, c] = sum over k with columns[r, k] = c of x[r, k]
//
// One workgroup per row. A lane owns every LANES-th column: it clears them, and then looks through all picks for its own, so
// that no two lanes ever write one element. At the first pick of a column all equal ones are added, in order and in f32.

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
    let first = row * params.picks;
    for (var k = 0u; k < params.picks; k += 1u) {
        let column = columns[first + k];
        if column >= params.cols || column % LANES != lane.x { continue; }
        var total = 0.0;
        var before = false;
        for (var j = 0u; j < params.picks; j += 1u) {
            if columns[first + j] != column { continue; }
            before = before || j < k;
            total += f32(x[first + j]);
        }
        if !before { y[start + column] = Elem(total); }
    }
}
