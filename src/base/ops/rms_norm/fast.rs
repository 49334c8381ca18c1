//! Root-mean-square normalisation on the host as an engine runs it.

use super::{RmsNorm, RmsNormGradient};
use crate::ops::fast::math::{sum_of, sum_of_pairs};
use crate::ops::fast::{add_onto, rows_of_piece, summed, widest};
use crate::tensor::{View, ViewMut};
use rayon::prelude::*;

pub(super) fn forward(op: &RmsNorm, inputs: &[View], outputs: &mut [ViewMut]) {
    let (own, sum) = outputs.split_at_mut(2);
    let [y, rstd] = own else { unreachable!("rms_norm has two outputs and perhaps a sum") };
    let cols = inputs[0].shape.last();
    let (x, weight) = (summed(inputs, sum, op.residual), inputs[1].floats());
    let each = rows_of_piece(inputs[0].shape.rows(), cols);
    let parts = y.floats().par_chunks_mut(each * cols).zip(x.par_chunks(each * cols));
    parts.zip(rstd.floats().par_chunks_mut(each)).for_each(|((y, x), rstd)| {
        normalise(x, weight, op.eps, y, rstd);
    });
}

pub(super) fn backward(op: &RmsNormGradient, inputs: &[View], dx: &mut ViewMut) {
    let cols = dx.shape.last();
    let [x, up, rstd, weight] = [0, 1, 2, 3].map(|i| inputs[i].floats());
    let each = rows_of_piece(rstd.len(), cols);
    dx.floats().par_chunks_mut(each * cols).enumerate().for_each(|(piece, dx)| {
        let (from, row) = (piece * each * cols, piece * each);
        gradient(&x[from..], &up[from..], weight, &rstd[row..], dx);
        if op.addend {
            add_onto(dx, &inputs[4].floats()[from..]);
        }
    });
}

widest! {
    fn normalise(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32], rstds: &mut [f32]) {
        let cols = weight.len();
        let rows = x.chunks_exact(cols).zip(y.chunks_exact_mut(cols));
        for ((x, y), rstd) in rows.zip(rstds) {
            let scale = 1.0 / (sum_of(x, |x| x * x) / cols as f32 + eps).sqrt();
            *rstd = scale;
            for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                *y = x * scale * w;
            }
        }
    }
}

widest! {
    fn gradient(x: &[f32], up: &[f32], weight: &[f32], rstds: &[f32], dx: &mut [f32]) {
        let cols = weight.len();
        let share = 1.0 / cols as f32;
        let rows = dx.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).zip(up.chunks_exact(cols));
        for (((g, x), up), &rstd) in rows.zip(rstds) {
            for ((g, &up), &w) in g.iter_mut().zip(up).zip(weight) {
                *g = up * w;
            }
            let along = sum_of_pairs(g, x, |g, x| g * (x * rstd)) * share;
            for (g, &x) in g.iter_mut().zip(x) {
                *g = rstd * (*g - x * rstd * along);
            }
        }
    }
}
