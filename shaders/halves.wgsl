// halves: the bits of f16 and bf16 that are nearest to an f32, ties to even, on every adapter
//
// By hand and not by `pack2x16float`, since drivers may round that as they like: lavapipe cuts off.

fn bf16_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let nearest = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
    // A NaN must not lose its last bit and become an infinity.
    return select(nearest, (bits >> 16u) | 0x40u, (bits & 0x7fffffffu) > 0x7f800000u);
}

fn f16_bits(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let size = bits & 0x7fffffffu;
    // The exponent moves from bias 127 to 15.
    let normal = (size - 0x38000000u + 0xfffu + ((size >> 13u) & 1u)) >> 13u;
    // Adding a half puts the smallest f16 into the last bit of an f32, whose own rounding then is the right one.
    let small = bitcast<u32>(bitcast<f32>(size) + 0.5) - 0x3f000000u;
    var half = select(normal, small, size < 0x38800000u);
    half = select(half, 0x7c00u, size >= 0x477ff000u);
    half = select(half, 0x7e00u | ((size >> 13u) & 0x3ffu), size > 0x7f800000u);
    return sign | half;
}
