// quantize_groups: codes of x [N, K] under scales [N, groups], packed into words, and the offsets -z * s of groups that have some
//
// Invocations walk the words of the codes, then the groups, with the stride of the whole grid. How a word is made is pasted.

struct Params {
    words: u32,
    count: u32,     // elements of x
    cols: u32,
    groups: u32,    // of all rows
}

#import quantize

#paste CODES
@group(1) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(128)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) lane: vec3<u32>,
) {
    let stride = groups.x * groups.y * 128u;
    let first = (group.y * groups.x + group.x) * 128u + lane.x;
    for (var i = first; i < params.words; i += stride) { codes[i] = word_at(i); }
    for (var i = first; i < params.groups; i += stride) { end_group(i); }
}
