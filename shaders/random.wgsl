// random: philox 2x32 with 10 rounds (Salmon et al. 2011), the same numbers as `kiln::tensor::random::philox`

// High and low word of a * b, by 16-bit halves: WGSL has no 64-bit integers everywhere.
fn multiply_wide(a: u32, b: u32) -> vec2<u32> {
    let a_low = a & 0xffffu;
    let a_high = a >> 16u;
    let b_low = b & 0xffffu;
    let b_high = b >> 16u;
    let low = a_low * b_low;
    let middle = a_high * b_low + (low >> 16u);
    let cross = a_low * b_high + (middle & 0xffffu);
    return vec2<u32>(a_high * b_high + (middle >> 16u) + (cross >> 16u), a * b);
}

fn philox(key: u32, counter: vec2<u32>) -> vec2<u32> {
    var word = counter;
    var round_key = key;
    for (var round = 0u; round < 10u; round += 1u) {
        let product = multiply_wide(0xd256d193u, word.x);
        word = vec2<u32>(product.x ^ round_key ^ word.y, product.y);
        round_key += 0x9e3779b9u;
    }
    return word;
}

// The key of one operator within a step: `rng` is (key of the run, counter of the micro-step), `salt` numbers the operator.
fn keep_element(rng: vec2<u32>, salt: u32, element: u32, threshold: u32) -> bool {
    return philox(rng.x + salt * 0x9e3779b9u, vec2<u32>(element, rng.y)).x >= threshold;
}
