//! Updates on the host as an engine runs them: in place, pieces of the arenas over threads.

use super::{BLOCK, Kind, Optimizer, rounding};
use crate::ops::fast::math::sum_of;
use crate::ops::fast::widest;
use crate::tensor::{View, ViewMut};
use rayon::prelude::*;

/// Elements one thread takes at a time, whole blocks.
const TAKE: usize = 256 * BLOCK;

/// What is the same for all elements of a step.
#[derive(Clone, Copy)]
pub(super) struct Step {
    beta: [f32; 2],
    fresh: [f32; 2],
    epsilon: f32,
    rate: f32,
    bias: [f32; 2],
    factor: f32,
    limit: f32,
    decoupled: bool,
}

impl Step {
    /// The step of Adam or AdamW, if one is to be made.
    pub fn of(op: &Optimizer, scalars: &[f32], control: &[f32]) -> Option<Step> {
        let (betas, epsilon, decoupled) = match op.kind {
            Kind::Adam { betas, epsilon } => (betas, epsilon, false),
            Kind::AdamW { betas, epsilon } => (betas, epsilon, true),
            _ => return None,
        };
        let (rate, bias, _) = op.effective(scalars, control);
        (control[2] != 0.0).then_some(Step {
            beta: betas.map(|b| b as f32),
            fresh: betas.map(|b| (1.0 - b) as f32),
            epsilon: epsilon as f32,
            rate,
            bias,
            factor: control[0],
            limit: op.clip_value.unwrap_or(f32::INFINITY),
            decoupled,
        })
    }

    /// Moves parameters and moments of one tensor.
    pub fn move_block(self, decay: f32, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        blocks(self, &[0; 4][..p.len() / BLOCK], &[decay], p, m, v, g);
    }
}

/// One update; false if the rule has no fast path.
pub(super) fn update(op: &Optimizer, inputs: &[View], outputs: &mut [ViewMut]) -> bool {
    if !matches!(op.kind, Kind::Adam { .. } | Kind::AdamW { .. }) {
        return false;
    }
    let [segments, decay, scalars, control] = &inputs[4..] else {
        unreachable!("the signature has counted the inputs")
    };
    let (segments, decay) = (segments.as_u32(), decay.floats());
    let scalars = scalars.floats();
    let Some(step) = Step::of(op, scalars, control.floats()) else { return true };
    let gradients = inputs[1].floats();
    let [p, m, v] = outputs else { unreachable!("Adam has three outputs") };
    let arenas = p.floats().par_chunks_mut(TAKE).zip(m.floats().par_chunks_mut(TAKE));
    let arenas = arenas.zip(v.floats().par_chunks_mut(TAKE).zip(gradients.par_chunks(TAKE)));
    let made = scalars[4] as u32;
    let pieces = arenas.zip(segments.par_chunks(TAKE / BLOCK)).enumerate();
    pieces.for_each(|(piece, (((p, m), (v, g)), segments))| {
        blocks(step, segments, decay, p, m, v, g);
        if let Some(key) = op.rounding {
            rounding::round(key, made, piece * TAKE, p);
        }
    });
    true
}

widest! {
    fn blocks(step: Step, segments: &[u32], decay: &[f32], p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        let (p, m) = (p.as_chunks_mut::<BLOCK>().0, m.as_chunks_mut::<BLOCK>().0);
        let (v, g) = (v.as_chunks_mut::<BLOCK>().0, g.as_chunks::<BLOCK>().0);
        for (((p, m), (v, g)), &segment) in p.iter_mut().zip(m).zip(v.iter_mut().zip(g)).zip(segments) {
            let decay = decay[(segment as usize).min(decay.len() - 1)];
            let inside = if step.decoupled { 0.0 } else { decay };
            let keep = if step.decoupled { 1.0 - step.rate * decay } else { 1.0 };
            for i in 0..BLOCK {
                let g = g[i] * step.factor;
                let g = if g > step.limit { step.limit } else { g };
                let g = if g < -step.limit { -step.limit } else { g };
                let g = g + inside * p[i];
                m[i] = step.beta[0] * m[i] + step.fresh[0] * g;
                v[i] = step.beta[1] * v[i] + step.fresh[1] * g * g;
                let direction = m[i] * step.bias[0] / (v[i].sqrt() * step.bias[1] + step.epsilon);
                p[i] = p[i] * keep - step.rate * direction;
            }
        }
    }
}

widest! {
    /// Sum of squares in a fixed order.
    pub(super) fn squares(x: &[f32]) -> f32 {
        sum_of(x, |x| x * x)
    }
}

/// total <- total * keep + gradients * share; a keep of zero forgets whatever was there.
pub(super) fn accumulate(total: &mut [f32], gradients: &[f32], keep: f32, share: f32) {
    let parts = total.par_chunks_mut(TAKE).zip(gradients.par_chunks(TAKE));
    parts.for_each(|(total, gradients)| add(total, gradients, keep, share));
}

widest! {
    fn add(total: &mut [f32], gradients: &[f32], keep: f32, share: f32) {
        for (t, &g) in total.iter_mut().zip(gradients) {
            *t = if keep == 0.0 { 0.0 } else { *t * keep } + g * share;
        }
    }
}
