// gather: y[r, k] = x[r, columns[r, k]], zero for a column outside the row
//
// Invocations walk the output with the stride of the whole grid.

struct Params { count: u32, cols: u32, picks: u32 }

alias Elem = f32;

@group(0) @binding(0) var<storage, read>       x: array<Elem>;        // [rows, cols]
@group(0) @binding(1) var<storage, read>       columns: array<u32>;   // [rows, picks]
@group(0) @binding(2) var<storage, read_write> y: array<Elem>;        // [rows, picks]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(128)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * 128u;
    for (var at = (group.y * groups.x + group.x) * 128u + lane.x; at < params.count; at += stride) {
        let column = columns[at];
        var value = Elem();
        if column < params.cols { value = x[at / params.picks * params.cols + column]; }
        y[at] = value;
    }
}
