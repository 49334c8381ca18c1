// attention_tile: out[b, t, h] = sum over s of softmax(scale q . k)[s] v[s], and lse[b, h, t]
//
// One workgroup takes 32 neighbouring queries of one head and walks the keys that any of them sees, 32 at a time: tiles of
// attention_block. The running maximum m is the same in the eight invocations of a row; each keeps the sum l of its own columns,
// and they are added at the end. Scores are in powers of two. The pasted text names what stands once per row or chunk.

#import attention_block

// q [B, T, H, D], k and v [B, S, G, D] or all packed, mask u32 [B, S]?, rng u32 [2]?, out [B, T, H, D], lse f32 [B, H, T]
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
    // The last queries have most to do under a causal mask: they start first.
    let first = (params.tiles - 1u - id / pairs) * 32u;
    let row = lane / 8u;
    let column = lane % 8u;
    #paste START

    let begin = reach_of_query(b, first).low;
    let end = reach_of_query(b, min(first + 32u, params.queries) - 1u).high;
    for (var s = begin; s < end; s += 32u) {
        var x = mat4x4<f32>();
        #paste SCORES
        x *= params.scale * LOG2E;
        let at = Positions(s + column) + steps(8u);
        #paste MASK
        partial[lane] = vec4<f32>(largest(x[0]), largest(x[1]), largest(x[2]), largest(x[3]));
        workgroupBarrier();
        var top = partial[row * 8u];
        for (var j = 1u; j < 8u; j += 1u) { top = max(top, partial[row * 8u + j]); }
        #paste WEIGHTS
        #paste VALUES
    }
    workgroupBarrier();
    #paste FINISH
}
