//! Cross-entropy on the host as an engine runs it.

use super::{CrossEntropy, CrossEntropyGradient, Reduction};
use crate::ops::fast::math::{exp, largest_of, sum_of};
use crate::ops::fast::{rows_of_piece, widest};
use crate::ops::rows;
use crate::tensor::{View, ViewMut};
use rayon::prelude::*;

pub(super) fn forward(op: &CrossEntropy, inputs: &[View], outputs: &mut [ViewMut]) {
    let [loss, lse, count] = outputs else { unreachable!("cross_entropy has three outputs") };
    let cols = inputs[0].shape.last();
    let (x, targets) = (inputs[0].floats(), inputs[1].as_i32());
    let mut losses = vec![0.0f32; targets.len()];
    let each = rows_of_piece(targets.len(), cols);
    let parts = losses.par_chunks_mut(each).zip(lse.floats().par_chunks_mut(each));
    let parts = parts.zip(x.par_chunks(each * cols).zip(targets.par_chunks(each)));
    parts.for_each(|((losses, lse), (x, targets))| {
        let rows = x.chunks_exact(cols).zip(targets);
        for ((x, &target), (loss, lse)) in rows.zip(losses.iter_mut().zip(lse)) {
            (*loss, *lse) = row(op, x, target);
        }
    });
    let counted = targets.iter().filter(|&&t| t != op.ignore_index).count() as f32;
    let total = rows::sum_of(&losses, |x| x);
    count.floats()[0] = counted;
    loss.floats()[0] = if op.reduction == Reduction::Mean { total / counted } else { total };
}

/// Loss and log-sum-exp of one row.
fn row(op: &CrossEntropy, x: &[f32], target: i32) -> (f32, f32) {
    if target == op.ignore_index {
        return (0.0, 0.0);
    }
    let Some(&chosen) = usize::try_from(target).ok().and_then(|t| x.get(t)) else {
        return (f32::NAN, f32::NAN);
    };
    let lse = log_sum_exp(x);
    if op.label_smoothing == 0.0 {
        return (lse - chosen, lse);
    }
    let mean = rows::sum_of(x, |x| x) / x.len() as f32;
    let smoothing = op.label_smoothing;
    (lse - (1.0 - smoothing) * chosen - smoothing * mean, lse)
}

widest! {
    fn log_sum_exp(x: &[f32]) -> f32 {
        let largest = largest_of(x);
        largest + sum_of(x, |x| exp(x - largest)).ln()
    }
}

pub(super) fn backward(op: &CrossEntropyGradient, inputs: &[View], dx: &mut ViewMut) {
    let cols = dx.shape.last();
    let [lse, count, up] = [2, 3, 4].map(|i| inputs[i].floats());
    // Overwritten logits stand where the gradient will.
    let x = (!op.overwrites).then(|| inputs[0].floats());
    let targets = inputs[1].as_i32();
    let weight = if op.of.reduction == Reduction::Mean { up[0] / count[0] } else { up[0] };
    let (smoothing, ignored) = (op.of.label_smoothing, op.of.ignore_index);
    let share = smoothing / cols as f32;
    let each = rows_of_piece(targets.len(), cols);
    dx.floats().par_chunks_mut(each * cols).enumerate().for_each(|(piece, dx)| {
        for (i, dx) in dx.chunks_exact_mut(cols).enumerate() {
            let row = piece * each + i;
            if targets[row] == ignored {
                dx.fill(0.0);
                continue;
            }
            match x {
                Some(x) => slope(&x[row * cols..][..cols], lse[row], share, weight, dx),
                None => slope_over(dx, lse[row], share, weight),
            }
            if let Some(chosen) = usize::try_from(targets[row]).ok().and_then(|t| dx.get_mut(t)) {
                *chosen -= weight * (1.0 - smoothing);
            }
        }
    });
}

widest! {
    fn slope_over(dx: &mut [f32], lse: f32, share: f32, weight: f32) {
        for dx in dx {
            *dx = weight * (exp(*dx - lse) - share);
        }
    }
}

widest! {
    fn slope(x: &[f32], lse: f32, share: f32, weight: f32, dx: &mut [f32]) {
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = weight * (exp(x - lse) - share);
        }
    }
}
