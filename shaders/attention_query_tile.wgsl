// attention_query_tile: dq[t] = scale * sum over s of e k[s], e = p (f up[t] . v[s] - delta[t]), p = exp(scale q.k - lse)
//
// The walk of attention_tile once more, with two score tiles: q with k, and up with v. Notes are those of attention_delta.

#import attention_block

// q, k, v as forward, up [B, T, H, D], notes u32, dq as q
#paste BUFFERS
#paste STAGES

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = group.y * groups.x + group.x;
    let pairs = params.batch * params.heads;
    if id >= pairs * params.tiles { return; }
    let b = id % pairs / params.heads;
    let h = id % pairs % params.heads;
    let g = h / (params.heads / params.key_heads);
    let first = (params.tiles - 1u - id / pairs) * 32u;
    let rows = pairs * params.queries;
    let row = lane / 8u;
    let column = lane % 8u;
    #paste START

    let begin = reach_of_query(b, first).low;
    let end = reach_of_query(b, min(first + 32u, params.queries) - 1u).high;
    for (var s = begin; s < end; s += 32u) {
        var x = mat4x4<f32>();
        var y = mat4x4<f32>();
        #paste SCORES
        x *= params.scale * LOG2E;
        let at = Positions(s + column) + steps(8u);
        #paste SLOPES
        put_weights(x, row, column);
        #paste SUMS
    }
    #paste FINISH
}
