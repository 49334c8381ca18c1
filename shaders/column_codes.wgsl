// column_codes: q[c, r] = x[r, c] / s[c] rounded half to even, from the scales
//
// tile: a workgroup turns a square of 32 by 32, each invocation making the word of four rows; rows are a multiple of four.
// word: one invocation per word of four codes, which may belong to two columns or more.

struct Params { rows: u32, cols: u32, lowest: f32, highest: f32 }

alias Elem = f32;

#import quantize

@group(0) @binding(0) var<storage, read>       x: array<Elem>;   // [rows, cols]
@group(0) @binding(1) var<storage, read>       s: array<f32>;    // [cols]
@group(0) @binding(2) var<storage, read_write> q: array<u32>;    // [cols, rows] bytes
@group(1) @binding(0) var<uniform> params: Params;

// The pad of one keeps a column of the square off a single memory bank.
var<workgroup> words: array<u32, 288>;

fn code_at(row: u32, column: u32, factor: f32) -> i32 {
    return code(f32(x[row * params.cols + column]), factor, params.lowest, params.highest);
}

@compute @workgroup_size(32, 8)
fn tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let across = (params.cols + 31u) / 32u;
    let number = group.y * groups.x + group.x;
    let column0 = number % across * 32u;
    let row0 = number / across * 32u;
    let row = row0 + lane.y * 4u;
    let column = column0 + lane.x;
    if row < params.rows && column < params.cols {
        let factor = factor_of(s[column]);
        words[lane.x * 9u + lane.y] = pack4xI8(vec4<i32>(
            code_at(row, column, factor),
            code_at(row + 1u, column, factor),
            code_at(row + 2u, column, factor),
            code_at(row + 3u, column, factor),
        ));
    }
    workgroupBarrier();
    let out_column = column0 + index / 8u;
    let out_row = row0 + index % 8u * 4u;
    if out_row < params.rows && out_column < params.cols {
        q[(out_column * params.rows + out_row) / 4u] = words[index / 8u * 9u + index % 8u];
    }
}

@compute @workgroup_size(64)
fn word(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let at = (group.y * groups.x + group.x) * 64u + lane.x;
    let count = params.rows * params.cols;
    if at * 4u >= count { return; }
    var word = 0u;
    for (var i = 0u; i < 4u; i += 1u) {
        let element = min(at * 4u + i, count - 1u);
        let column = element / params.rows;
        let c = code_at(element % params.rows, column, factor_of(s[column]));
        // Bytes behind the last element are zero.
        word |= select(0u, (bitcast<u32>(c) & 255u) << (8u * i), at * 4u + i < count);
    }
    q[at] = word;
}
