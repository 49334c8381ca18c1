// attention_query_lane: dq[t] = scale * sum over s of e k[s], e = p (f up[t] . v[s] - delta[t]), p = exp(scale q.k - lse)
//
// The walk of attention_lane once more: one invocation takes a few neighbouring queries of one head and walks their keys COLUMNS
// at a time, with q, up and dq in named registers. Notes are those of attention_delta.

#import attention

override LANES: u32 = 8u;
override ROWS: u32 = 8u;
// As in attention_lane.
override SPAN: u32 = 8u;
override SHARED: u32 = 0u;

// q, k, v as forward, up [B, T, H, D], notes u32, dq as q
#paste BUFFERS

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let place = group.y * groups.x + group.x;
    let id = select(place * LANES + lane.x, place, SHARED == 1u);
    let pairs = params.batch * params.heads;
    if id >= pairs * params.tiles { return; }
    let pair = id % pairs;
    let b = pair / params.heads;
    let h = pair % params.heads;
    let g = h / (params.heads / params.key_heads);
    let start = (params.tiles - 1u - id / pairs) * SPAN;
    let first = start + select(0u, lane.x * ROWS, SHARED == 1u);
    let rows = pairs * params.queries;
    #paste START

    let begin = reach_of_query(b, start).low;
    let end = reach_of_query(b, min(start + SPAN, params.queries) - 1u).high;
    for (var s = begin; s < end; s += COLUMNS) {
        #paste SCORES
        #paste SLOPES
        #paste SUMS
    }
    #paste FINISH
}
