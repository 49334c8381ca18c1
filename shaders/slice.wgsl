// slice: forward y[o, j] = x[o, offset + j]; backward y[o, offset + j] = x[o, j] and zero elsewhere
//
// A row is one index of the axes before the sliced one. Invocations walk the output with the stride of the whole grid,
// one element or four at a time.

struct Params { count: u32, x_row: u32, y_row: u32, offset: u32 }

alias Elem = f32;
override LANES: u32 = 128u;
#paste WIDTH

@group(0) @binding(0) var<storage, read>       x: array<Pack>;   // [outer, x_row]
@group(0) @binding(1) var<storage, read_write> y: array<Pack>;   // [outer, y_row]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        y[i] = x[i / params.y_row * params.x_row + i % params.y_row + params.offset];
    }
}

@compute @workgroup_size(LANES)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        // Before the offset this wraps around to a large number, outside the row as well.
        let j = i % params.y_row - params.offset;
        if j < params.x_row {
            y[i] = x[i / params.y_row * params.x_row + j];
        } else {
            y[i] = Pack();
        }
    }
}
