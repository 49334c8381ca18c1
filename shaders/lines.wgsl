// lines: which elements of x [outer, length, inner] share a scale, `group` neighbours along the middle at most
//
// Params has lines, length, inner, group, and parts = ceil(length / group).

fn line_of(element: u32) -> u32 {
    let rest = element / params.inner;
    let part = (rest % params.length) / params.group;
    return ((rest / params.length) * params.parts + part) * params.inner + element % params.inner;
}

// The first element of a line; the others follow `inner` apart.
fn first_of(line: u32) -> u32 {
    let rest = line / params.inner;
    let start = (rest / params.parts) * params.length + (rest % params.parts) * params.group;
    return start * params.inner + line % params.inner;
}

fn count_of(line: u32) -> u32 {
    let part = (line / params.inner) % params.parts;
    return min(params.group, params.length - part * params.group);
}
