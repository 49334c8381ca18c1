//! Functions of f32 without branches or tables, so that loops over them become vector code. Errors are within two units in the
//! last place, tested against f64.
//!
//! Fused multiply-add everywhere gives the same bits everywhere; where a processor lacks it, it is a slow call.
//!
//! The coefficients are least-squares fits at Chebyshev nodes of the interval named, rounded to f32.

use super::widest;

/// Adding and subtracting this rounds to a whole number.
const ROUND: f32 = 12_582_912.0;

/// e^x. Below the smallest normal number: zero.
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub(crate) fn exp(x: f32) -> f32 {
    // Comparisons rather than `clamp`: a NaN must come through.
    let low = if x < -87.4 { -87.4 } else { x };
    let bound = if low > 88.8 { 88.8 } else { low };
    let shifted = bound.mul_add(std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    // ln 2 in two parts, the first short enough that its multiples are exact.
    let r = whole.mul_add(2.121_944_4e-4, whole.mul_add(-0.693_359_375, bound));
    // Interval: |r| < ln 2 / 2.
    let mut p = 0.001_393_365_2f32;
    for c in [0.008_363_18, 0.041_666_467, 0.166_665_763, 0.5] {
        p = p.mul_add(r, c);
    }
    let y = p.mul_add(r * r, r) + 1.0;
    // 2^whole in two steps: whole may be 128, one more than an exponent holds.
    let whole = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = whole >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    let y = y * power(half) * power(whole.wrapping_sub(half));
    let y = if x < -87.336_54 { 0.0 } else { y };
    if x > 88.722_84 { f32::INFINITY } else { y }
}

/// Hyperbolic tangent.
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub(crate) fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let u = x * x;
    // Interval: |x| < 0.625.
    let mut p = -0.006_104_941_5f32;
    for c in [0.021_003_636, -0.053_852_495, 0.133_327_826, -0.333_333_284] {
        p = p.mul_add(u, c);
    }
    let near = (x * u).mul_add(p, x);
    let far = (1.0 - 2.0 / (exp(2.0 * size) + 1.0)).copysign(x);
    if size < 0.625 { near } else { far }
}

/// Error function.
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub(crate) fn erf(x: f32) -> f32 {
    let size = x.abs();
    let u = x * x;
    // Interval: |x| < 1; one is left out of the factor, so that it is not rounded.
    let mut p = 7.882_497e-5f32;
    for c in [-0.000_801_885_5, 0.005_189_312_2, -0.026_854_329, 0.112_835_974, -0.376_126_26, 0.128_379_17] {
        p = p.mul_add(u, c);
    }
    let near = x.mul_add(p, x);
    // erfc(x) e^(x x) over t = 1 / (1 + x / 2). Interval: 1 to 4.2; beyond, erf is one.
    let t = 1.0 / size.mul_add(0.5, 1.0);
    let mut q = -0.057_963_364f32;
    for c in [-0.043_767_177, 0.386_657_74, 0.112_748_45, 0.326_571_73, 0.274_455_43, 0.000_538_750_55] {
        q = q.mul_add(t, c);
    }
    let far = (-q).mul_add(exp(-u), 1.0).copysign(x);
    if size < 1.0 { near } else { far }
}

/// Natural logarithm of a normal positive number; of zero minus infinity, of a negative number NaN.
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub(crate) fn ln(x: f32) -> f32 {
    // Numbers below the smallest normal one are brought up by 2^24.
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = if tiny { x * 16_777_216.0 } else { x };
    // Exponent and mantissa about sqrt(1/2) to sqrt(2).
    let bits = scaled.to_bits().wrapping_sub(0x3f35_04f3);
    let exponent = (bits as i32 >> 23) as f32 - if tiny { 24.0 } else { 0.0 };
    let f = f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3)) - 1.0;
    // log(1 + f) = f - f f / 2 + f f f P(f).
    let mut p = -0.081_030_026f32;
    for c in
        [0.127_130_64, -0.129_720_51, 0.142_020_52, -0.166_422_55, 0.200_014_74, -0.250_002_95, 0.333_333_28]
    {
        p = p.mul_add(f, c);
    }
    let square = f * f;
    let y = f - (0.5 * square - f * square * p) - exponent * 2.121_944_4e-4 + exponent * 0.693_359_375;
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x < 0.0 || x.is_nan() { f32::NAN } else { y }
}

/// Square root.
#[inline(always)]
pub(crate) fn sqrt(x: f32) -> f32 {
    x.sqrt()
}

/// Lanes of a running sum: a fixed order that fills two of the widest vectors.
pub(crate) const LANES: usize = 32;

/// Sum of lanes in a fixed order, by halves.
#[inline(always)]
pub(crate) fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Sum of `term` over a row.
#[inline(always)]
pub(crate) fn sum_of(x: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (blocks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for block in blocks {
        for i in 0..LANES {
            lanes[i] += term(block[i]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane += term(x);
    }
    total(lanes)
}

/// Sum of `term` over two rows read together.
#[inline(always)]
pub(crate) fn sum_of_pairs(x: &[f32], y: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let ((xs, x_tail), (ys, y_tail)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (x, y) in xs.iter().zip(ys) {
        for i in 0..LANES {
            lanes[i] += term(x[i], y[i]);
        }
    }
    for (lane, (&x, &y)) in lanes.iter_mut().zip(x_tail.iter().zip(y_tail)) {
        *lane += term(x, y);
    }
    total(lanes)
}

/// Largest element of a row, minus infinity if there is none; a NaN is passed over.
#[inline(always)]
pub(crate) fn largest_of(x: &[f32]) -> f32 {
    let (blocks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = if block[i] > lanes[i] { block[i] } else { lanes[i] };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane = if x > *lane { x } else { *lane };
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = if lanes[i + half] > lanes[i] { lanes[i + half] } else { lanes[i] };
        }
        half /= 2;
    }
    lanes[0]
}

widest! {
    /// x <- e^(x - shift), and the sum of it.
    pub(crate) fn exponentials(x: &mut [f32], shift: f32) -> f32 {
        let (blocks, tail) = x.as_chunks_mut::<LANES>();
        let mut lanes = [0.0; LANES];
        for block in blocks {
            for i in 0..LANES {
                block[i] = exp(block[i] - shift);
                lanes[i] += block[i];
            }
        }
        if !tail.is_empty() {
            // Filled up with what adds nothing, so that no element is computed alone.
            let mut block = [f32::NEG_INFINITY; LANES];
            block[..tail.len()].copy_from_slice(tail);
            for i in 0..LANES {
                block[i] = exp(block[i] - shift);
                lanes[i] += block[i];
            }
            tail.copy_from_slice(&block[..tail.len()]);
        }
        total(lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error in units of the last place of the exact value.
    fn worst(from: f32, to: f32, fast: fn(f32) -> f32, exact: fn(f64) -> f64) -> (f64, f32) {
        let mut worst = (0.0, 0.0);
        for i in 0..=400_000 {
            let x = from + (to - from) * (i as f32 / 400_000.0);
            let y = exact(x as f64);
            let unit = (y.abs().max(f32::MIN_POSITIVE as f64)).log2().floor().exp2() * f32::EPSILON as f64;
            let error = (fast(x) as f64 - y).abs() / unit;
            if error > worst.0 {
                worst = (error, x);
            }
        }
        worst
    }

    #[test]
    fn errors_stay_within_two_units_in_the_last_place() {
        let exact_erf = |x: f64| crate::tensor::Real::erf(x);
        for (name, found) in [
            ("exp", worst(-87.3, 88.7, exp, f64::exp)),
            ("exp near zero", worst(-1.0, 1.0, exp, f64::exp)),
            ("tanh", worst(-10.0, 10.0, tanh, f64::tanh)),
            ("erf", worst(-5.0, 5.0, erf, exact_erf)),
            ("ln", worst(0.01, 100.0, ln, f64::ln)),
            ("ln of large numbers", worst(1.0, 1e30, ln, f64::ln)),
        ] {
            assert!(found.0 <= 2.0, "{name}: {} units at {}", found.0, found.1);
        }
    }

    #[test]
    fn the_ends_of_the_range_are_right() {
        let huge = f32::INFINITY;
        assert_eq!((exp(0.0), exp(-huge), exp(huge), exp(89.0), exp(-100.0)), (1.0, 0.0, huge, huge, 0.0));
        assert_eq!((tanh(huge), tanh(-huge), erf(huge), erf(-huge)), (1.0, -1.0, 1.0, -1.0));
        assert_eq!((ln(1.0), ln(0.0), ln(huge)), (0.0, -huge, huge));
        assert!((ln(1e-40) + 92.103_45).abs() < 1e-4);
        for f in [exp, tanh, erf, ln] {
            assert!(f(f32::NAN).is_nan());
        }
        assert!(ln(-1.0).is_nan());
    }

    #[test]
    fn sums_and_the_largest_reach_the_tail() {
        for count in [0, 1, 31, 32, 33, 100] {
            let x: Vec<f32> = (0..count).map(|i| i as f32).collect();
            let expected = (0..count).sum::<u32>() as f32;
            assert_eq!(sum_of(&x, |x| x), expected);
            assert_eq!(sum_of_pairs(&x, &x, |x, y| x + y), 2.0 * expected);
            assert_eq!(largest_of(&x), if count == 0 { f32::NEG_INFINITY } else { count as f32 - 1.0 });
        }
    }
}
