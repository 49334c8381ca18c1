// column_largest: bits of the largest magnitude of each part of each column
//
// One invocation per column and part of the rows; neighbours read neighbouring elements.

struct Params { rows: u32, cols: u32, part: u32 }

alias Elem = f32;

#import quantize

@group(0) @binding(0) var<storage, read>       x: array<Elem>;       // [rows, cols]
@group(0) @binding(1) var<storage, read_write> largest: array<u32>;  // [parts, cols]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let across = (params.cols + 63u) / 64u;
    let number = group.y * groups.x + group.x;
    let column = number % across * 64u + lane.x;
    let part = number / across;
    let start = part * params.part;
    if column >= params.cols || start >= params.rows { return; }
    let end = min(start + params.part, params.rows);
    var bits = 0u;
    for (var row = start; row < end; row += 1u) { bits = max(bits, magnitude(f32(x[row * params.cols + column]))); }
    largest[part * params.cols + column] = bits;
}
