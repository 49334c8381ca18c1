// attention_key_lane: dv[s] = sum over t of f p up[t]; dk[s] = scale * sum over t of e q[t], with p and e as in attention_query_lane
//
// One invocation takes a few neighbouring keys of one key head, with k, v, dk and dv in named registers, and walks the
// queries of all heads that share it, COLUMNS at a time, in order, so that a run repeats bit for bit.

#import attention

override LANES: u32 = 8u;
// Keys of one invocation.
override ROWS: u32 = 4u;

// q, k, v as forward, up [B, T, H, D], notes u32, dk as k and dv as v, or one packed gradient
#paste BUFFERS

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let id = (group.y * groups.x + group.x) * LANES + lane.x;
    let pairs = params.batch * params.key_heads;
    if id >= pairs * params.tiles { return; }
    let pair = id % pairs;
    let b = pair / params.key_heads;
    let g = pair % params.key_heads;
    let share = params.heads / params.key_heads;
    // The first keys have most to do under a causal mask.
    let first = id / pairs * ROWS;
    let rows = params.batch * params.heads * params.queries;
    #paste START

    let begin = reach_of_key(first).low;
    let end = reach_of_key(min(first + ROWS, params.keys) - 1u).high;
    for (var h = g * share; h < (g + 1u) * share; h += 1u) {
        for (var t = begin; t < end; t += COLUMNS) {
            #paste SCORES
            #paste SLOPES
            #paste SUMS
        }
    }
    #paste FINISH
}
