//! The updates on the host, blocks over threads.

use super::{BLOCK, Kind, Optimizer, rounding};
use crate::tensor::{Real, Tensor};
use rayon::prelude::*;

/// Blocks one thread takes at a time.
const TAKE: usize = 64;

/// The scalars of one step in precision `R`.
#[derive(Clone, Copy)]
pub(super) struct Step<R> {
    pub rate: R,
    bias1: R,
    bias2: R,
    is_first: bool,
    factor: R,
    limit: Option<R>,
}

impl<R: Real> Step<R> {
    /// What the scalars and the control value say.
    pub fn of(op: &Optimizer, scalars: &[R], control: &[R]) -> Self {
        let (rate, [bias1, bias2], is_first) = op.effective(scalars, control);
        let limit = op.clip_value.map(|c| R::of(c as f64));
        Step { rate, bias1, bias2, is_first, factor: control[0], limit }
    }

    pub fn clipped(&self, g: R) -> R {
        let g = g * self.factor;
        match self.limit {
            Some(limit) if g > limit => limit,
            Some(limit) if g < -limit => -limit,
            _ => g,
        }
    }
}

pub(super) fn update<R: Real>(op: &Optimizer, inputs: &[&Tensor], outputs: &mut [Tensor]) {
    let moments = op.kind.moments();
    for (output, &(_, input)) in outputs.iter_mut().zip(&[(0, 0), (1, 2), (2, 3)]) {
        output.real_mut::<R>().copy_from_slice(inputs[input].real::<R>());
    }
    let [segments, decay, scalars, control] = &inputs[moments + 2..] else {
        unreachable!("the signature has counted the inputs")
    };
    let (decay, scalars, control) = (decay.real::<R>(), scalars.real::<R>(), control.real::<R>());
    if control[2] == R::default() {
        return;
    }
    let step = Step::of(op, scalars, control);
    let gradients = inputs[1].real::<R>();
    let segments = segments.as_u32();
    let decay_of = |block: usize| decay[(segments[block] as usize).min(decay.len() - 1)];
    let mut arenas = outputs.iter_mut().map(|t| t.real_mut::<R>());
    let parameters = arenas.next().expect("parameters are output 0");
    match (op.kind, arenas.next(), arenas.next()) {
        (Kind::Sgd { momentum, dampening, nesterov, decoupled }, Some(buffer), _) => {
            let (keep, take) = (R::of(momentum), R::of(1.0 - dampening));
            blocks(parameters, buffer, &mut [], gradients, |block, p, b, _, g| {
                let decay = decay_of(block);
                let (inside, keeps) = match decoupled {
                    true => (R::default(), R::of(1.0) - step.rate * decay),
                    false => (decay, R::of(1.0)),
                };
                for ((p, b), &g) in p.iter_mut().zip(b).zip(g) {
                    let g = step.clipped(g) + inside * *p;
                    *p *= keeps;
                    *b = if step.is_first { g } else { keep * *b + take * g };
                    *p -= step.rate * if nesterov { g + keep * *b } else { *b };
                }
            });
        }
        (Kind::Adam { betas, epsilon }, Some(first), Some(second)) => {
            let rule = Adam::new(betas, epsilon);
            blocks(parameters, first, second, gradients, |block, p, m, v, g| {
                let decay = decay_of(block);
                for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
                    rule.moments(step.clipped(g) + decay * *p, m, v);
                    *p -= step.rate * rule.direction(&step, *m, *v);
                }
            });
        }
        (Kind::AdamW { betas, epsilon }, Some(first), Some(second)) => {
            let rule = Adam::new(betas, epsilon);
            blocks(parameters, first, second, gradients, |block, p, m, v, g| {
                let keep = R::of(1.0) - step.rate * decay_of(block);
                for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
                    rule.moments(step.clipped(g), m, v);
                    *p = *p * keep - step.rate * rule.direction(&step, *m, *v);
                }
            });
        }
        (Kind::Lamb { betas, epsilon }, Some(first), Some(second)) => {
            let rule = Adam::new(betas, epsilon);
            blocks(parameters, first, second, gradients, |_, _, m, v, g| {
                for ((m, v), &g) in m.iter_mut().zip(v).zip(g) {
                    rule.moments(step.clipped(g), m, v);
                }
            });
            let trust = trust(&rule, &step, [parameters, first, second], segments, decay);
            blocks(parameters, first, second, gradients, |block, p, m, v, _| {
                let decay = decay_of(block);
                let rate = step.rate * trust[(segments[block] as usize).min(trust.len() - 1)];
                for ((p, m), v) in p.iter_mut().zip(m).zip(v) {
                    *p -= rate * (rule.direction(&step, *m, *v) + decay * *p);
                }
            });
        }
        _ => blocks(parameters, &mut [], &mut [], gradients, |block, p, _, _, g| {
            let decay = decay_of(block);
            for (p, &g) in p.iter_mut().zip(g) {
                *p -= step.rate * (step.clipped(g) + decay * *p);
            }
        }),
    }
    if let Some(key) = op.rounding {
        rounding::round(key, scalars[4].wide() as u32, 0, outputs[0].real_mut::<R>());
    }
}

/// |p| / |u| of each tensor, one where a norm is zero. Sums go block by block, then in order.
fn trust<R: Real>(
    rule: &Adam<R>,
    step: &Step<R>,
    [p, m, v]: [&[R]; 3],
    segments: &[u32],
    decay: &[R],
) -> Vec<R> {
    let last = decay.len() - 1;
    let squares: Vec<(R, R)> = (0..segments.len())
        .into_par_iter()
        .map(|block| {
            let decay = decay[(segments[block] as usize).min(last)];
            let range = block * BLOCK..(block + 1) * BLOCK;
            let mut sums = (R::default(), R::default());
            for ((&p, &m), &v) in p[range.clone()].iter().zip(&m[range.clone()]).zip(&v[range]) {
                let u = rule.direction(step, m, v) + decay * p;
                sums.0 += p * p;
                sums.1 += u * u;
            }
            sums
        })
        .collect();
    let mut totals = vec![(R::default(), R::default()); decay.len()];
    for (&tensor, (p, u)) in segments.iter().zip(squares) {
        let total = &mut totals[(tensor as usize).min(last)];
        total.0 += p;
        total.1 += u;
    }
    let ratio = |(p, u): (R, R)| {
        if p > R::default() && u > R::default() { (p / u).sqrt() } else { R::of(1.0) }
    };
    totals.into_iter().map(ratio).collect()
}

/// The moments of Adam and the direction they give.
pub(super) struct Adam<R> {
    beta: [R; 2],
    fresh: [R; 2],
    epsilon: R,
}

impl<R: Real> Adam<R> {
    pub fn new(betas: [f64; 2], epsilon: f64) -> Self {
        Adam { beta: betas.map(R::of), fresh: betas.map(|b| R::of(1.0 - b)), epsilon: R::of(epsilon) }
    }

    pub fn moments(&self, g: R, m: &mut R, v: &mut R) {
        *m = self.beta[0] * *m + self.fresh[0] * g;
        *v = self.beta[1] * *v + self.fresh[1] * g * g;
    }

    pub fn direction(&self, step: &Step<R>, m: R, v: R) -> R {
        m * step.bias1 / (v.sqrt() * step.bias2 + self.epsilon)
    }
}

/// Calls `work` with each block of the arenas; moments may be empty.
fn blocks<R: Real>(
    p: &mut [R],
    first: &mut [R],
    second: &mut [R],
    gradients: &[R],
    work: impl Fn(usize, &mut [R], &mut [R], &mut [R], &[R]) + Sync,
) {
    let takes = p.len().div_ceil(TAKE * BLOCK);
    let first = cut(first, takes);
    let second = cut(second, takes);
    let parts = p.par_chunks_mut(TAKE * BLOCK).zip(first).zip(second).zip(gradients.par_chunks(TAKE * BLOCK));
    parts.enumerate().for_each(|(take, (((p, m), v), g))| {
        let (mut m, mut v) = (m.chunks_mut(BLOCK), v.chunks_mut(BLOCK));
        for (i, (p, g)) in p.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).enumerate() {
            let (m, v) = (m.next().unwrap_or_default(), v.next().unwrap_or_default());
            work(take * TAKE + i, p, m, v, g);
        }
    });
}

/// An arena in the pieces that threads take, or as many empty pieces.
fn cut<R>(arena: &mut [R], takes: usize) -> Vec<&mut [R]> {
    let mut pieces: Vec<&mut [R]> = arena.chunks_mut(TAKE * BLOCK).collect();
    pieces.resize_with(takes, Default::default);
    pieces
}
