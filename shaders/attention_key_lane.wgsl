// attention_key_lane: dv[s] = sum over t of f p up[t]; dk[s] = scale * sum over t of e q[t], with p and e as in attention_query_lane
//
// One invocation takes a few neighbouring keys of one key head, with k, v, dk and dv in named registers, and walks the
// queries of all heads that share it, COLUMNS at a time, in order, so that a run repeats bit for bit.

#import attention

override LANES: u32 = 8u;
// Keys of one invocation.
override ROWS: u32 = 4u;
// Keys that walk the queries together, as in attention_lane.
override SPAN: u32 = 4u;
override SHARED: u32 = 0u;

// q, k, v as forward, up [B, T, H, D], notes u32, dk as k and dv as v, or one packed gradient
#paste BUFFERS

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let place = group.y * groups.x + group.x;
    let id = select(place * LANES + lane.x, place, SHARED == 1u);
    let pairs = params.batch * params.key_heads;
    if id >= pairs * params.tiles { return; }
    let pair = id % pairs;
    let b = pair / params.key_heads;
    let g = pair % params.key_heads;
    let share = params.heads / params.key_heads;
    // The first keys have most to do under a causal mask.
    let start = id / pairs * SPAN;
    let first = start + select(0u, lane.x * ROWS, SHARED == 1u);
    let rows = params.batch * params.heads * params.queries;
    #paste START

    let begin = reach_of_key(b, start).low;
    let end = reach_of_key(b, min(start + SPAN, params.keys) - 1u).high;
    for (var h = g * share; h < (g + 1u) * share; h += 1u) {
        for (var t = begin; t < end; t += COLUMNS) {
            #paste SCORES
            #paste SLOPES
            #paste SUMS
        }
    }
    #paste FINISH
}
