// transpose_tile: y[b, n, m] = x[b, m, n]
//
// One workgroup per square of 16 by 16: read along n, turned in workgroup memory, written along m. The pad of one
// keeps a column of the square off a single memory bank.

struct Params { batch: u32, rows: u32, columns: u32 }

alias Elem = f32;
const TILE: u32 = 16u;

@group(0) @binding(0) var<storage, read>       x: array<Elem>;   // [batch, rows, columns]
@group(0) @binding(1) var<storage, read_write> y: array<Elem>;   // [batch, columns, rows]
@group(1) @binding(0) var<uniform> params: Params;

var<workgroup> square: array<Elem, 272>;

@compute @workgroup_size(16, 16)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let across = (params.columns + TILE - 1u) / TILE;
    let down = (params.rows + TILE - 1u) / TILE;
    let number = group.y * groups.x + group.x;
    let batch = number / (across * down);
    let column = number % across * TILE;
    let row = number / across % down * TILE;
    let base = batch * params.rows * params.columns;
    let inside = batch < params.batch;

    if inside && row + lane.y < params.rows && column + lane.x < params.columns {
        square[lane.y * 17u + lane.x] = x[base + (row + lane.y) * params.columns + column + lane.x];
    }
    workgroupBarrier();
    if inside && column + lane.y < params.columns && row + lane.x < params.rows {
        y[base + (column + lane.y) * params.rows + row + lane.x] = square[lane.x * 17u + lane.y];
    }
}
