//! Scales of large blocks, by search: the least squares of the error, weighted so that large elements count more.
//!
//! Rounding changes with the scale, so each group tries a row of steps near the one its range suggests. Given the codes of a
//! step the best scale (and minimum) is linear least squares; the step whose best scale leaves the least error wins. Then the
//! scales of the groups are rounded to few bits, and the codes are chosen anew for what was stored.

use super::superblock::{ELEMENTS, Parts};
use half::f16;

/// Elements of a group of Q4_K, and of Q6_K.
const AFFINE_GROUP: usize = 32;
const SYMMETRIC_GROUP: usize = 16;
/// Largest code of Q4_K.
const TOP: f32 = 15.0;
/// Largest multiple of six bits.
const MULTIPLES: f32 = 63.0;
/// Codes of Q6_K go from minus this to one below this.
const REACH: f32 = 32.0;
/// Scales below this are zero: their inverse would not be finite.
const TINY: f32 = 1e-30;

/// Parts of a Q4_K block: `code * scale - minimum` with codes 0..=15 and a minimum of zero or more.
pub fn affine(x: &[f32]) -> Parts {
    let mut fits = [(0.0, 0.0); ELEMENTS / AFFINE_GROUP];
    for (fit, group) in fits.iter_mut().zip(x.chunks_exact(AFFINE_GROUP)) {
        *fit = fit_affine(group);
    }
    let most = |of: fn(&(f32, f32)) -> f32| fits.iter().map(of).fold(0.0, f32::max);
    let (scale, minimum) = (most(|fit| fit.0) / MULTIPLES, most(|fit| fit.1) / MULTIPLES);
    let mut parts =
        Parts { scale: f16::from_f32(scale), minimum: f16::from_f32(minimum), ..Parts::default() };
    for (g, (fit, group)) in fits.iter().zip(x.chunks_exact(AFFINE_GROUP)).enumerate() {
        parts.scales[g] = multiple(fit.0, scale, 0.0, MULTIPLES);
        parts.minima[g] = multiple(fit.1, minimum, 0.0, MULTIPLES);
        let step = parts.scale.to_f32() * f32::from(parts.scales[g]);
        let below = parts.minimum.to_f32() * f32::from(parts.minima[g]);
        for (code, v) in parts.codes[g * AFFINE_GROUP..].iter_mut().zip(group) {
            *code = multiple(v + below, step, 0.0, TOP);
        }
    }
    parts
}

/// Parts of a Q6_K block: `code * scale` with codes -32..=31 and scales of either sign.
pub fn symmetric(x: &[f32]) -> Parts {
    let mut fits = [0.0; ELEMENTS / SYMMETRIC_GROUP];
    for (fit, group) in fits.iter_mut().zip(x.chunks_exact(SYMMETRIC_GROUP)) {
        *fit = fit_symmetric(group);
    }
    // The largest scale becomes the multiple -128, which has no positive twin.
    let extreme = fits.iter().fold(0.0f32, |most, &fit| if fit.abs() > most.abs() { fit } else { most });
    let scale = extreme / -128.0;
    let mut parts = Parts { scale: f16::from_f32(scale), ..Parts::default() };
    for (g, (&fit, group)) in fits.iter().zip(x.chunks_exact(SYMMETRIC_GROUP)).enumerate() {
        parts.scales[g] = multiple(fit, scale, -128.0, 127.0);
        let step = parts.scale.to_f32() * f32::from(parts.scales[g]);
        for (code, &v) in parts.codes[g * SYMMETRIC_GROUP..].iter_mut().zip(group) {
            *code = multiple(v, step, -REACH, REACH - 1.0);
        }
    }
    parts
}

/// `x` in whole steps, within bounds; zero where there is no step to count in.
fn multiple(x: f32, step: f32, lowest: f32, highest: f32) -> i8 {
    if step.abs() < TINY || !step.is_finite() {
        return 0;
    }
    (x / step).round_ties_even().clamp(lowest, highest) as i8
}

/// Scale and minimum (its sign turned) of one group.
fn fit_affine(x: &[f32]) -> (f32, f32) {
    // Zero must stay within reach, as a minimum is only ever taken off.
    let lowest = x.iter().fold(0.0f32, |least, &v| least.min(v));
    let highest = x.iter().fold(f32::NEG_INFINITY, |most, &v| most.max(v));
    let range = highest - lowest;
    if range < TINY || !range.is_finite() {
        return (0.0, -lowest);
    }
    let typical = (x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32).sqrt();
    let mut best = (range / TOP, lowest);
    let mut least = f32::INFINITY;
    for trial in 0..=20 {
        let inverse = (TOP - 1.0 + 0.1 * trial as f32) / range;
        let code = |v: f32| ((v - lowest) * inverse).round_ties_even().clamp(0.0, TOP);
        let [mut w, mut wq, mut wqq, mut wx, mut wqx] = [0.0f32; 5];
        for &v in x {
            let (weight, q) = (typical + v.abs(), code(v));
            w += weight;
            wq += weight * q;
            wqq += weight * q * q;
            wx += weight * v;
            wqx += weight * q * v;
        }
        let determinant = w * wqq - wq * wq;
        // All codes equal: a line through one point.
        if determinant <= 0.0 {
            continue;
        }
        let (mut scale, mut minimum) =
            ((w * wqx - wq * wx) / determinant, (wqq * wx - wq * wqx) / determinant);
        if minimum > 0.0 {
            (scale, minimum) = (wqx / wqq, 0.0);
        }
        let error = |&v: &f32| (typical + v.abs()) * (scale * code(v) + minimum - v).powi(2);
        let sum: f32 = x.iter().map(error).sum();
        if sum < least && scale > 0.0 {
            (least, best) = (sum, (scale, minimum));
        }
    }
    (best.0, -best.1)
}

/// Scale of one group, weighted by the square of each element.
fn fit_symmetric(x: &[f32]) -> f32 {
    let extreme = x.iter().fold(0.0f32, |most, &v| if v.abs() > most.abs() { v } else { most });
    if extreme.abs() < TINY {
        return 0.0;
    }
    let (mut best, mut most) = (extreme / -REACH, 0.0);
    for trial in -9..=9 {
        let inverse = -(REACH + 0.1 * trial as f32) / extreme;
        let (mut wqq, mut wqx) = (0.0f32, 0.0f32);
        for &v in x {
            let q = (v * inverse).round_ties_even().clamp(-REACH, REACH - 1.0);
            // The elements of a group lie within its extreme: as shares of it their squares neither vanish nor overflow.
            let share = v / extreme;
            wqq += share * share * q * q;
            wqx += share * share * q * v;
        }
        // With the best scale wqx / wqq, what the codes explain of the weighted squares is wqx^2 / wqq.
        if wqq > 0.0 && wqx * (wqx / wqq) > most {
            (most, best) = (wqx * (wqx / wqq), wqx / wqq);
        }
    }
    best
}
