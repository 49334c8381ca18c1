// embedding: y[n, c] = weight[tokens[n], c]
//
// Invocations walk the output with the stride of the whole grid, one element or four at a time. Tokens are checked on the
// host; one outside the table reads the last row rather than past it. Where the weight is a part of a table, from the token
// `first` on, tokens of other parts have zeros.

struct Params { count: u32, vocabulary: u32, columns: u32, first: u32, partial: u32 }

alias Elem = f32;
override LANES: u32 = 128u;
#paste WIDTH

@group(0) @binding(0) var<storage, read>       weight: array<Pack>;   // [V, C]
@group(0) @binding(1) var<storage, read>       tokens: array<u32>;    // [N]
@group(0) @binding(2) var<storage, read_write> y: array<Pack>;        // [N, C]
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * LANES;
    for (var i = (group.y * groups.x + group.x) * LANES + lane.x; i < params.count; i += stride) {
        // Below `first` this wraps around to a row that there is not.
        let token = tokens[i / params.columns] - params.first;
        let row = min(token, params.vocabulary - 1u);
        let own = params.partial == 0u || token == row;
        y[i] = select(Pack(), weight[row * params.columns + i % params.columns], own);
    }
}
