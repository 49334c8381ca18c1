// attention_key_tile: dv[s] = sum over t of f p up[t]; dk[s] = scale * sum over t of e q[t], with p and e as in attention_query_tile
//
// One workgroup takes 32 neighbouring keys of one key head as the rows of its tiles, and walks the queries of all heads that
// share it, 32 at a time, in order, so that a run repeats bit for bit.

#import attention_block

// q, k, v as forward, up [B, T, H, D], notes u32, dk as k and dv as v, or one packed gradient
#paste BUFFERS
#paste STAGES

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.y * groups.x + group.x;
    let pairs = params.batch * params.key_heads;
    if id >= pairs * params.tiles { return; }
    let b = id % pairs / params.key_heads;
    let g = id % pairs % params.key_heads;
    let share = params.heads / params.key_heads;
    let first = id / pairs * 32u;
    let rows = params.batch * params.heads * params.queries;
    let row = lane / 8u;
    let column = lane % 8u;
    #paste START

    let begin = reach_of_key(b, first).low;
    let end = reach_of_key(b, min(first + 32u, params.keys) - 1u).high;
    for (var h = g * share; h < (g + 1u) * share; h += 1u) {
        for (var t = begin; t < end; t += 32u) {
            var x = mat4x4<f32>();
            var y = mat4x4<f32>();
            #paste SCORES
            x *= params.scale * LOG2E;
            let at = Positions(t + column) + steps(8u);
            #paste SLOPES
            put_weights(x, row, column);
            #paste SUMS
        }
    }
    #paste FINISH
}
