// embedding_gradient: y[v, c] = sum over p in starts[v]..starts[v + 1] of up[order[p], c]
//
// Invocations walk the table with the stride of the whole grid, one column or four at a time, and sum the positions of their
// token in order; a token that never occurs gets zero. Positions outside the batch are clamped, never followed.

struct Params { count: u32, positions: u32, columns: u32 }

alias Elem = f32;
override LANES: u32 = 128u;
#paste WIDTH

@group(0) @binding(0) var<storage, read>       up: array<Pack>;      // [N, C]
@group(0) @binding(1) var<storage, read>       order: array<u32>;    // [N]
@group(0) @binding(2) var<storage, read>       starts: array<u32>;   // [V + 1]
@group(0) @binding(3) var<storage, read_write> y: array<Pack>;       // [V, C]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        let token = i / params.columns;
        let column = i % params.columns;
        let end = min(starts[token + 1u], params.positions);
        var total = Total();
        for (var p = starts[token]; p < end; p += 1u) {
            let position = min(order[p], params.positions - 1u);
            total += Total(up[position * params.columns + column]);
        }
        y[i] = Pack(total);
    }
}
