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
    nearest((x / step).clamp(lowest, highest)) as i8
}

/// The whole number nearest to a small one, ties to even: beyond 1.5 * 2^23 floats have no fractions. Without instructions of its
/// own for it `round_ties_even` is a call.
fn nearest(x: f32) -> f32 {
    const NO_FRACTIONS: f32 = 12_582_912.0;
    (x + NO_FRACTIONS) - NO_FRACTIONS
}

/// Sums side by side, so that they fit the registers of any machine.
const LANES: usize = 8;

/// Sum over all elements of what `term` gives for each index.
fn sum<const N: usize>(count: usize, term: impl Fn(usize) -> [f32; N]) -> [f32; N] {
    let mut lanes = [[0.0f32; N]; LANES];
    for at in (0..count).step_by(LANES) {
        for (lane, sums) in lanes.iter_mut().enumerate() {
            sums.iter_mut().zip(term(at + lane)).for_each(|(sum, term)| *sum += term);
        }
    }
    std::array::from_fn(|n| lanes.iter().map(|sums| sums[n]).sum())
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
    let x: &[f32; AFFINE_GROUP] = x.try_into().expect("a group");
    let [squares] = sum(AFFINE_GROUP, |i| [x[i] * x[i]]);
    let typical = (squares / AFFINE_GROUP as f32).sqrt();
    let weights = x.map(|v| typical + v.abs());
    let [w, wx] = sum(AFFINE_GROUP, |i| [weights[i], weights[i] * x[i]]);
    let (mut best, mut least) = ((range / TOP, lowest), f32::INFINITY);
    for trial in 0..=20 {
        let inverse = (TOP - 1.0 + 0.1 * trial as f32) / range;
        let q = x.map(|v| nearest(((v - lowest) * inverse).min(TOP)));
        let [wq, wqq, wqx] = sum(AFFINE_GROUP, |i| {
            let wq = weights[i] * q[i];
            [wq, wq * q[i], wq * x[i]]
        });
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
        let [error] = sum(AFFINE_GROUP, |i| {
            let off = scale * q[i] + minimum - x[i];
            [weights[i] * off * off]
        });
        if error < least && scale > 0.0 {
            (least, best) = (error, (scale, minimum));
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
    let x: &[f32; SYMMETRIC_GROUP] = x.try_into().expect("a group");
    // The elements of a group lie within its extreme: as shares of it their squares neither vanish nor overflow.
    let weights = x.map(|v| (v / extreme) * (v / extreme));
    let (mut best, mut most) = (extreme / -REACH, 0.0);
    for trial in -9..=9 {
        let inverse = -(REACH + 0.1 * trial as f32) / extreme;
        let q = x.map(|v| nearest((v * inverse).clamp(-REACH, REACH - 1.0)));
        let [wqq, wqx] = sum(SYMMETRIC_GROUP, |i| {
            let wq = weights[i] * q[i];
            [wq * q[i], wq * x[i]]
        });
        // With the best scale wqx / wqq, what the codes explain of the weighted squares is wqx^2 / wqq.
        if wqq > 0.0 && wqx * (wqx / wqq) > most {
            (most, best) = (wqx * (wqx / wqq), wqx / wqq);
        }
    }
    best
}
