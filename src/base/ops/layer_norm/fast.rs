//! Layer normalisation on the host as an engine runs it: rows over threads, each in vector instructions.

use super::{LayerNorm, LayerNormGradient};
use crate::ops::fast::math::{sum_of, sum_of_pairs};
use crate::ops::fast::{add_onto, rows_of_piece, summed, widest};
use crate::tensor::{View, ViewMut};
use rayon::prelude::*;

pub(super) fn forward(op: &LayerNorm, inputs: &[View], outputs: &mut [ViewMut]) {
    let (own, sum) = outputs.split_at_mut(3);
    let [y, mean, rstd] = own else { unreachable!("layer_norm has three outputs and perhaps a sum") };
    let x = summed(inputs, sum, op.residual);
    let cols = inputs[0].shape.last();
    let weight = op.weight_input().map(|i| inputs[i].floats());
    let bias = op.bias_input().map(|i| inputs[i].floats());
    let each = rows_of_piece(inputs[0].shape.rows(), cols);
    let parts = y.floats().par_chunks_mut(each * cols).zip(x.par_chunks(each * cols));
    let parts = parts.zip(mean.floats().par_chunks_mut(each).zip(rstd.floats().par_chunks_mut(each)));
    parts.for_each(|((y, x), (mean, rstd))| normalise(x, [weight, bias], op.eps, y, mean, rstd));
}

pub(super) fn backward(op: &LayerNormGradient, inputs: &[View], dx: &mut ViewMut) {
    let cols = dx.shape.last();
    let [x, up, mean, rstd] = [0, 1, 2, 3].map(|i| inputs[i].floats());
    let weight = op.has_weight.then(|| inputs[4].floats());
    let addend = op.addend.then(|| inputs[4 + op.has_weight as usize].floats());
    let each = rows_of_piece(mean.len(), cols);
    let parts = dx.floats().par_chunks_mut(each * cols).enumerate();
    parts.for_each(|(piece, dx)| {
        let (from, row) = (piece * each * cols, piece * each);
        gradient(&x[from..], &up[from..], weight, &mean[row..], &rstd[row..], cols, dx);
        if let Some(addend) = addend {
            add_onto(dx, &addend[from..]);
        }
    });
}

widest! {
    fn normalise(
        x: &[f32],
        affine: [Option<&[f32]>; 2],
        eps: f32,
        y: &mut [f32],
        means: &mut [f32],
        rstds: &mut [f32],
    ) {
        let cols = x.len() / means.len();
        let share = 1.0 / cols as f32;
        let rows = x.chunks_exact(cols).zip(y.chunks_exact_mut(cols));
        for ((x, y), (mean, rstd)) in rows.zip(means.iter_mut().zip(rstds)) {
            let middle = sum_of(x, |x| x) * share;
            let variance = sum_of(x, |x| (x - middle) * (x - middle)) * share;
            let scale = 1.0 / (variance + eps).sqrt();
            (*mean, *rstd) = (middle, scale);
            match (affine[0], affine[1]) {
                (Some(weight), Some(bias)) => {
                    for ((y, &x), (&w, &b)) in y.iter_mut().zip(x).zip(weight.iter().zip(bias)) {
                        *y = (x - middle) * scale * w + b;
                    }
                }
                (Some(weight), None) => {
                    for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                        *y = (x - middle) * scale * w;
                    }
                }
                (None, Some(bias)) => {
                    for ((y, &x), &b) in y.iter_mut().zip(x).zip(bias) {
                        *y = (x - middle) * scale + b;
                    }
                }
                (None, None) => {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = (x - middle) * scale;
                    }
                }
            }
        }
    }
}

widest! {
    fn gradient(
        x: &[f32],
        up: &[f32],
        weight: Option<&[f32]>,
        means: &[f32],
        rstds: &[f32],
        cols: usize,
        dx: &mut [f32],
    ) {
        let share = 1.0 / cols as f32;
        let rows = dx.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).zip(up.chunks_exact(cols));
        for (((g, x), up), (&mean, &rstd)) in rows.zip(means.iter().zip(rstds)) {
            match weight {
                Some(weight) => {
                    for ((g, &up), &w) in g.iter_mut().zip(up).zip(weight) {
                        *g = up * w;
                    }
                }
                None => g.copy_from_slice(up),
            }
            let middle = sum_of(g, |g| g) * share;
            let along = sum_of_pairs(g, x, |g, x| g * ((x - mean) * rstd)) * share;
            for (g, &x) in g.iter_mut().zip(x) {
                *g = rstd * (*g - middle - (x - mean) * rstd * along);
            }
        }
    }
}
