//! Updates with moments in 8 bits on the host, block by block over threads.

use super::map::{self, TABLES};
use super::{BLOCK, GROUP, Optimizer};
use crate::ops::fast::widest;
use crate::ops::optimizer::fast::Step as FastStep;
use crate::ops::optimizer::host::{Adam, Step};
use crate::ops::optimizer::{Kind, SCALARS, rounding};
use crate::tensor::{Real, Tensor, View, ViewMut};
use rayon::prelude::*;

/// Scales below it count as zero: their quotients would not be numbers.
const SMALLEST: f64 = f32::MIN_POSITIVE as f64;
/// Blocks one thread takes at a time.
const TAKE: usize = 16;

/// Both moments of a block.
type Moments<R> = [[R; GROUP]; 2];

fn read<R: Real>(codes: &[i8], scales: &[R]) -> Moments<R> {
    let of = |map: usize| {
        let table = &TABLES[map];
        let value = |i| R::of(table[(i32::from(codes[map * GROUP + i]) + 128) as usize].into()) * scales[map];
        std::array::from_fn(value)
    };
    [of(0), of(1)]
}

/// The largest magnitude of a moment, or zero where nothing can be divided by it.
fn scale_of<R: Real>(moment: &[R; GROUP]) -> R {
    let largest = moment.iter().fold(R::default(), |most, &x| {
        let x = if x < R::default() { -x } else { x };
        if x > most { x } else { most }
    });
    if largest.wide() >= SMALLEST { largest } else { R::default() }
}

fn quotient<R: Real>(x: R, scale: R) -> R {
    if scale == R::default() { R::default() } else { x / scale }
}

/// Decay and rule for an update in precision `R`.
struct Rule<R> {
    adam: Adam<R>,
    step: Step<R>,
    decoupled: bool,
}

impl<R: Real> Rule<R> {
    fn of(op: &Optimizer, scalars: &[R], control: &[R]) -> Self {
        let (Kind::Adam { betas, epsilon } | Kind::AdamW { betas, epsilon }) = op.kind else {
            unreachable!("the signature takes no other rule")
        };
        let decoupled = matches!(op.kind, Kind::AdamW { .. });
        Rule { adam: Adam::new(betas, epsilon), step: Step::of(op, scalars, control), decoupled }
    }

    /// Moves the moments of a block and its parameters.
    fn apply(&self, decay: R, p: &mut [R], g: &[R], [m, v]: &mut Moments<R>) {
        let (inside, keep) = match self.decoupled {
            true => (R::default(), R::of(1.0) - self.step.rate * decay),
            false => (decay, R::of(1.0)),
        };
        for (i, p) in p.iter_mut().enumerate() {
            self.adam.moments(self.step.clipped(g[i]) + inside * *p, &mut m[i], &mut v[i]);
            *p = *p * keep - self.step.rate * self.adam.direction(&self.step, m[i], v[i]);
        }
    }
}

pub(super) fn update<R: Real>(op: &Optimizer, inputs: &[&Tensor], outputs: &mut [Tensor]) {
    let [codes, parameters, scales] = outputs else { unreachable!("three outputs") };
    codes.as_i8_mut().copy_from_slice(inputs[2].as_i8());
    parameters.real_mut::<R>().copy_from_slice(inputs[0].real::<R>());
    scales.real_mut::<R>().copy_from_slice(inputs[3].real::<R>());
    let [gradients, segments, decay, scalars, control] = [1, 4, 5, 6, 7].map(|i| inputs[i]);
    let (decay, control) = (decay.real::<R>(), control.real::<R>());
    if control[2] == R::default() {
        return;
    }
    let rule = Rule::of(op, scalars.real::<R>(), control);
    let (ends, factors) = map::constants::<R>();
    let blocks = codes.as_i8_mut().chunks_mut(2 * GROUP).zip(scales.real_mut::<R>().chunks_mut(2));
    let blocks = blocks.zip(parameters.real_mut::<R>().chunks_mut(GROUP));
    let gradients = gradients.real::<R>().chunks(GROUP).zip(segments.as_u32().chunks(GROUP / BLOCK));
    for (((codes, scales), p), (g, segments)) in blocks.zip(gradients) {
        let mut moments = read(codes, scales);
        rule.apply(decay[(segments[0] as usize).min(decay.len() - 1)], p, g, &mut moments);
        for (map, moment) in moments.iter().enumerate() {
            scales[map] = scale_of(moment);
            for (i, &x) in moment.iter().enumerate() {
                let x = quotient(x, scales[map]);
                codes[map * GROUP + i] = map::code(x, map == 0, &ends[map], &factors);
            }
        }
    }
    if let Some(key) = op.rounding {
        let made = scalars.real::<R>()[4].wide() as u32;
        rounding::round(key, made, 0, parameters.real_mut::<R>());
    }
}

/// Which codes lie so near the middle between two entries of their map that rounding errors decide.
pub(super) fn ties(op: &Optimizer, inputs: &[Tensor]) -> Vec<bool> {
    const NEAR: f64 = 1e-4;
    let wide: Vec<Vec<f64>> = inputs.iter().map(Tensor::to_f64).collect();
    let rule = Rule::of(op, &wide[6][..SCALARS], &wide[7]);
    let (ends, factors) = map::constants::<f64>();
    let mut ties = vec![];
    let blocks = inputs[2].as_i8().chunks(2 * GROUP).zip(wide[3].chunks(2)).enumerate();
    for (block, (codes, scales)) in blocks {
        let mut moments = read(codes, scales);
        let tensor = wide[4][block * GROUP / BLOCK] as usize;
        let elements = block * GROUP..(block + 1) * GROUP;
        rule.apply(
            wide[5][tensor],
            &mut wide[0][elements.clone()].to_vec(),
            &wide[1][elements],
            &mut moments,
        );
        for (map, moment) in moments.iter().enumerate() {
            let scale = scale_of(moment);
            let code = |x| map::code(x, map == 0, &ends[map], &factors);
            let tie = |&x: &f64| {
                let x = quotient(x, scale);
                code(x * (1.0 - NEAR) - 1e-9) != code(x * (1.0 + NEAR) + 1e-9)
            };
            ties.extend(moment.iter().map(tie));
        }
    }
    ties
}

/// In place, pieces of the arenas over threads.
pub(super) fn update_fast(op: &Optimizer, inputs: &[View], outputs: &mut [ViewMut]) {
    let (segments, decay) = (inputs[4].as_u32(), inputs[5].floats());
    let Some(step) = FastStep::of(op, inputs[6].floats(), inputs[7].floats()) else { return };
    let (ends, factors) = map::constants::<f32>();
    let gradients = inputs[1].floats();
    let [codes, parameters, scales] = outputs else { unreachable!("three outputs") };
    let kept = codes.as_i8().par_chunks_mut(TAKE * 2 * GROUP).zip(scales.floats().par_chunks_mut(TAKE * 2));
    let moved = parameters.floats().par_chunks_mut(TAKE * GROUP).zip(gradients.par_chunks(TAKE * GROUP));
    let pieces = kept.zip(moved).zip(segments.par_chunks(TAKE * GROUP / BLOCK));
    let made = inputs[6].floats()[4] as u32;
    pieces.enumerate().for_each(|(piece, (((codes, scales), (p, g)), segments))| {
        let moved = &mut *p;
        let blocks = codes.chunks_mut(2 * GROUP).zip(scales.chunks_mut(2));
        let blocks =
            blocks.zip(moved.chunks_mut(GROUP).zip(g.chunks(GROUP))).zip(segments.chunks(GROUP / BLOCK));
        for (((codes, scales), (p, g)), segments) in blocks {
            let decay = decay[(segments[0] as usize).min(decay.len() - 1)];
            let [mut m, mut v] = read(codes, scales);
            step.move_block(decay, p, &mut m, &mut v, g);
            for (map, moment) in [m, v].iter().enumerate() {
                scales[map] = scale_of(moment);
                let codes = &mut codes[map * GROUP..][..GROUP];
                round(moment, scales[map], map == 0, &ends[map], &factors, codes);
            }
        }
        if let Some(key) = op.rounding {
            rounding::round(key, made, piece * TAKE * GROUP, p);
        }
    });
}

widest! {
    fn round(moment: &[f32; 256], scale: f32, is_signed: bool, ends: &[f32; 8], factors: &[f32; 7], codes: &mut [i8]) {
        if scale == 0.0 {
            let zero = map::code(0.0, is_signed, ends, factors);
            codes.fill(zero);
            return;
        }
        for (code, &x) in codes.iter_mut().zip(moment) {
            *code = map::code(x / scale, is_signed, ends, factors);
        }
    }
}
