//! Stochastic rounding: weights held in 16 bits without a copy in 32 move by steps smaller than their own spacing, on average.
//!
//! A number between two of bf16 becomes the upper one with the probability of its share of the way, so its mean stays. Rounded
//! to the nearest, a weight would not move at all under steps of less than half its spacing, which is 1/256 of it.
//!
//! The randomness is a function of key, step and element: the same on host and device, and in a resumed run.

use crate::ops::launch::Launch;
use crate::tensor::random::philox;
use crate::tensor::{DType, Real};

/// Numbers drawn together: one draw has 64 bits, of which each takes 16.
pub(super) const FOUR: usize = 4;

/// One of the two neighbours of x in bf16, the upper one if `noise`, of 16 bits, reaches over what is between; what is not
/// finite stays.
pub fn to_bf16(x: f32, noise: u32) -> f32 {
    let bits = x.to_bits();
    if bits & 0x7f80_0000 == 0x7f80_0000 {
        return x;
    }
    f32::from_bits((bits + (noise & 0xffff)) & 0xffff_0000)
}

/// Rounds the parameters from element `first` on, a multiple of four, after step `step`.
pub(super) fn round<R: Real>(key: u32, step: u32, first: usize, parameters: &mut [R]) {
    for (i, four) in parameters.chunks_mut(FOUR).enumerate() {
        let [a, b] = philox(key, [(first / FOUR + i) as u32, step]);
        for (p, noise) in four.iter_mut().zip([a, a >> 16, b, b >> 16]) {
            *p = R::of(to_bf16(p.wide() as f32, noise).into());
        }
    }
}

/// Shader text of `read_four` and `write_four` for parameters in binding 0, stored as `dtype`, rounded if there is a key.
pub(super) fn text(dtype: DType, is_rounded: bool) -> String {
    let mut text = String::from(if is_rounded { ROUNDED } else { AS_IS });
    text.push_str(if dtype == DType::BF16 { HALVES } else { SINGLES });
    text
}

/// Gives the key to a kernel.
pub(super) fn keyed(launch: Launch, rounding: Option<u32>) -> Launch {
    launch.param("key", rounding.unwrap_or(0))
}

const AS_IS: &str = "fn rounded(at: u32, p: vec4<f32>) -> vec4<f32> { return p; }\n";

const ROUNDED: &str = "\
fn rounded(at: u32, p: vec4<f32>) -> vec4<f32> {
    let words = philox(params.key, vec2<u32>(at, u32(scalars[4])));
    let noise = vec4<u32>(words.x & 0xffffu, words.x >> 16u, words.y & 0xffffu, words.y >> 16u);
    let bits = bitcast<vec4<u32>>(p);
    let up = (bits + noise) & vec4<u32>(0xffff0000u);
    let special = (bits & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u);
    return bitcast<vec4<f32>>(select(up, bits, special));
}
";

const SINGLES: &str = "\
@group(0) @binding(0) var<storage, read_write> parameters: array<vec4<f32>>;   // [N / 4]
fn read_four(at: u32) -> vec4<f32> { return parameters[at]; }
fn write_four(at: u32, p: vec4<f32>) { parameters[at] = rounded(at, p); }";

const HALVES: &str = "\
@group(0) @binding(0) var<storage, read_write> parameters: array<vec2<u32>>;   // [N / 4] of four bf16
fn read_four(at: u32) -> vec4<f32> {
    let pair = parameters[at];
    return bitcast<vec4<f32>>(vec4<u32>(pair.x << 16u, pair.x & 0xffff0000u, pair.y << 16u, pair.y & 0xffff0000u));
}
fn write_four(at: u32, p: vec4<f32>) {
    let bits = bitcast<vec4<u32>>(rounded(at, p));
    parameters[at] = vec2<u32>((bits.x >> 16u) | bits.y, (bits.z >> 16u) | bits.w);
}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_many_roundings_is_the_number_itself() {
        for x in [1.0f32, 1.0 + 1.0 / 512.0, -3.7, 1e-3, 2.0 - 1e-4] {
            let (mut sum, draws) = (0.0f64, 40_000);
            let mut some = vec![x; draws];
            round(42, 7, 0, &mut some);
            let spacing = f64::from(x.abs()) / 128.0;
            for &y in &some {
                assert_eq!(y.to_bits() & 0xffff, 0);
                assert!(f64::from((y - x).abs()) < spacing);
                sum += f64::from(y);
            }
            // Four standard deviations of a mean of as many draws from two neighbours.
            let off = (sum / draws as f64 - f64::from(x)).abs();
            assert!(off < 4.0 * 0.5 * spacing / (draws as f64).sqrt(), "{x}: {off}");
        }
    }

    #[test]
    fn steps_and_elements_draw_for_themselves_and_repeat() {
        let draw = |key, step| {
            let mut some = vec![1.003f32; 64];
            round(key, step, 0, &mut some);
            some
        };
        assert_eq!(draw(1, 2), draw(1, 2));
        assert!(draw(1, 2) != draw(1, 3) && draw(1, 2) != draw(2, 2));
        let mut later = vec![1.003f32; 32];
        round(1, 2, 32, &mut later);
        assert_eq!(later, draw(1, 2)[32..]);
    }

    #[test]
    fn what_is_not_finite_and_what_is_bf16_already_stay() {
        for x in [f32::INFINITY, f32::NEG_INFINITY, 1.5, -0.0, 0.0] {
            assert_eq!(to_bf16(x, 0xffff).to_bits(), x.to_bits());
        }
        assert!(to_bf16(f32::NAN, 0xffff).is_nan());
    }
}
