// attention_lane: out[b, t, h] = sum over s of softmax(scale q . k)[s] v[s], and lse[b, h, t]
//
// One invocation takes a few neighbouring queries of one head; its neighbours take the same queries of other heads, so
// that all end their walk over the keys together. Or a subgroup takes neighbouring queries of one head, each lane reads
// some of the keys and values, and all have them by broadcast. Keys come COLUMNS at a time; the running maximum m, sum l and output o of each query
// are rescaled when the maximum grows. Everything per query is named and unrolled by the pasted text: q0_3 is part 3 (elements 12
// to 15) of query 0. Scores are in powers of two: log2(e) is folded into q.

#import attention

override LANES: u32 = 8u;
// Queries of one invocation.
override ROWS: u32 = 8u;
// Queries that walk the keys together: those of one invocation or, where a subgroup shares what it reads, of all its lanes.
override SPAN: u32 = 8u;
override SHARED: u32 = 0u;

// q [B, T, H, D], k and v [B, S, G, D] or all packed, mask u32 [B, S]?, rng u32 [2]?, out [B, T, H, D], lse f32 [B, H, T]
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
    // The last queries have most to do under a causal mask: they start first.
    let start = (params.tiles - 1u - id / pairs) * SPAN;
    let first = start + select(0u, lane.x * ROWS, SHARED == 1u);
    #paste START

    let begin = reach_of_query(b, start).low;
    let end = reach_of_query(b, min(start + SPAN, params.queries) - 1u).high;
    for (var s = begin; s < end; s += COLUMNS) {
        #paste SCORES
        #paste WEIGHTS
        #paste VALUES
    }
    #paste FINISH
}
