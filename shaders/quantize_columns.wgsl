// quantize_columns: s[c] = max over r of |x[r, c]| / divisor, q[c, r] = x[r, c] / s[c] rounded half to even, four codes to a word
//
// One invocation walks a column twice; neighbours read neighbouring elements. Rows are a multiple of four.

struct Params { rows: u32, cols: u32, divisor: f32, lowest: f32, highest: f32 }

alias Elem = f32;

#import quantize

@group(0) @binding(0) var<storage, read>       x: array<Elem>;   // [rows, cols]
@group(0) @binding(1) var<storage, read_write> q: array<u32>;    // [cols, rows] bytes
@group(0) @binding(2) var<storage, read_write> s: array<f32>;    // [cols]
@group(1) @binding(0) var<uniform> params: Params;

fn code_at(at: u32, factor: f32) -> i32 { return code(f32(x[at]), factor, params.lowest, params.highest); }

@compute @workgroup_size(8)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let column = (group.y * groups.x + group.x) * 8u + lane.x;
    if column >= params.cols { return; }
    let end = params.rows * params.cols;
    var largest = 0u;
    for (var at = column; at < end; at += params.cols) { largest = max(largest, magnitude(f32(x[at]))); }
    let scale = scale_of(largest, params.divisor);
    s[column] = scale;
    let factor = factor_of(scale);
    var word = column * (params.rows / 4u);
    for (var at = column; at < end; at += 4u * params.cols) {
        q[word] = pack4xI8(vec4<i32>(
            code_at(at, factor),
            code_at(at + params.cols, factor),
            code_at(at + 2u * params.cols, factor),
            code_at(at + 3u * params.cols, factor),
        ));
        word += 1u;
    }
}
