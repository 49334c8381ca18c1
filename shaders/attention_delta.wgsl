// attention_delta: what the two halves of the backward step need of each row, gathered into one buffer
//
// notes u32: rng [2]; mask [B, S] if there is one; lse * log2(e) f32 [B, H, T]; delta f32 [B, H, T], delta = up . out by rows.
// One buffer, since the kernels that follow have no bindings to spare. One invocation per row or mask word.

#import attention

override LANES: u32 = 64u;
override PARTS: u32 = 16u;

// out and up [B, T, H, D], lse f32 [B, H, T], mask u32 [B, S]?, rng u32 [2]?, notes u32
#paste BUFFERS

@compute @workgroup_size(LANES)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let id = (group.y * groups.x + group.x) * LANES + lane.x;
    #paste COPY
    let rows = params.batch * params.heads * params.queries;
    if id >= rows { return; }
    let h = id % params.heads;
    let t = id / params.heads % params.queries;
    let b = id / params.heads / params.queries;
    let own = out_row(b, t, h);
    var delta = 0.0;
    for (var part = 0u; part < PARTS; part += 1u) {
        delta += dot(load_out(own, part), load_up(own, part));
    }
    let row = (b * params.heads + h) * params.queries + t;
    notes[params.notes + row] = bitcast<u32>(lse[row] * LOG2E);
    notes[params.notes + rows + row] = bitcast<u32>(delta);
}
