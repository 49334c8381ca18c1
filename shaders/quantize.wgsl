// quantize: how the kernels that quantise rows find a scale and round to a code

const SMALLEST_NORMAL = 1.1754944e-38;

// |x| as bits: they grow with it, and what is not finite is the largest.
fn magnitude(x: f32) -> u32 { return bitcast<u32>(x) & 0x7fffffffu; }

// Scale of a row from its largest magnitude: NaN if that is not finite, zero if the scale would not be a normal number.
fn scale_of(largest: u32, divisor: f32) -> f32 {
    if largest >= 0x7f800000u { return bitcast<f32>(largest | 0x7fc00000u); }
    let scale = bitcast<f32>(largest) / divisor;
    return select(0.0, scale, scale >= SMALLEST_NORMAL);
}

// 1 / scale; zero for a scale of zero or NaN, whose codes are zero.
fn factor_of(scale: f32) -> f32 {
    let bits = bitcast<u32>(scale);
    if bits < 0x00800000u || bits >= 0x7f800000u { return 0.0; }
    return 1.0 / scale;
}

// The bounds are whole numbers, so clamping first gives what rounding first gives.
fn code(x: f32, factor: f32, lowest: f32, highest: f32) -> i32 {
    if factor == 0.0 { return 0; }
    return i32(round(clamp(x * factor, lowest, highest)));
}
