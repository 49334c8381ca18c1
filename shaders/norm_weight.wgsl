// norm_weight: sums[k, 0, c] = sum of up * n over the rows of chunk k, sums[k, 1, c] = sum of up; n = (x - mean) * rstd
//
// First stage of two. One invocation per chunk and column, or four of them, walks down the chunk's rows; neighbours read neighbouring words.

struct Params { rows: u32, packs: u32, chunk: u32, blocks: u32 }

alias Elem = f32;
// 1: the mean is subtracted and up is summed too; 0: neither
override CENTRED: u32 = 1u;
override LANES: u32 = 64u;
#paste WIDTH

@group(0) @binding(0) var<storage, read>       x: array<Pack>;      // [rows, cols]
@group(0) @binding(1) var<storage, read>       up: array<Pack>;     // [rows, cols]
@group(0) @binding(2) var<storage, read>       rstds: array<f32>;   // [rows]
@group(0) @binding(3) var<storage, read>       means: array<f32>;   // [rows], if centred
@group(0) @binding(4) var<storage, read_write> sums: array<V>;      // [chunks, 1 + CENTRED, cols]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let number = group.y * groups.x + group.x;
    let chunk = number / params.blocks;
    let c = number % params.blocks * LANES + lane.x;
    let first = chunk * params.chunk;
    if c >= params.packs || first >= params.rows { return; }

    let end = min(first + params.chunk, params.rows);
    var total = V();
    var total_up = V();
    for (var row = first; row < end; row += 1u) {
        let at = row * params.packs + c;
        let u = V(up[at]);
        if CENTRED == 1u {
            total += u * ((V(x[at]) - means[row]) * rstds[row]);
            total_up += u;
        } else {
            total += u * (V(x[at]) * rstds[row]);
        }
    }
    let out = chunk * (1u + CENTRED) * params.packs + c;
    sums[out] = total;
    if CENTRED == 1u { sums[out + params.packs] = total_up; }
}
