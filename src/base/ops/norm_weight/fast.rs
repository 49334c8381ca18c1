//! Gradients of a normalisation's weight and bias on the host as an engine runs it.
//!
//! Rows are cut into chunks by the shape alone and the chunks' sums added in order, whatever the threads.

use super::{NormWeightGradient, rows_per_chunk};
use crate::ops::fast::widest;
use crate::tensor::{View, ViewMut};
use rayon::prelude::*;

pub(super) fn compute(op: &NormWeightGradient, inputs: &[View], outputs: &mut [ViewMut]) {
    let cols = inputs[0].shape.last();
    let [x, up, rstd] = [0, 1, 2].map(|i| inputs[i].floats());
    let zeros;
    let mean = if op.centred {
        inputs[3].floats()
    } else {
        zeros = vec![0.0; rstd.len()];
        &zeros
    };
    // Few chunks for a host: each costs its sums.
    let chunk = rows_per_chunk(rstd.len()).max(rstd.len().div_ceil(16));
    let chunks = rstd.len().div_ceil(chunk);
    let mut partial = vec![0.0; chunks * 2 * cols];
    let add = |number: usize, sums: &mut [f32]| {
        let (weight, bias) = sums.split_at_mut(cols);
        let rows = number * chunk..((number + 1) * chunk).min(rstd.len());
        add_rows(
            &x[rows.start * cols..],
            &up[rows.start * cols..],
            &mean[rows.clone()],
            &rstd[rows],
            weight,
            bias,
        );
    };
    let few = if rstd.len() * cols < 1 << 14 { chunks } else { 1 };
    let parts = partial.par_chunks_mut((2 * cols).max(1)).enumerate().with_min_len(few);
    parts.for_each(|(number, sums)| add(number, sums));
    for (number, output) in outputs.iter_mut().enumerate() {
        let total = output.floats();
        total.fill(0.0);
        for sums in partial.chunks_exact((2 * cols).max(1)) {
            total.iter_mut().zip(&sums[number * cols..]).for_each(|(total, sum)| *total += sum);
        }
    }
}

widest! {
    fn add_rows(x: &[f32], up: &[f32], means: &[f32], rstds: &[f32], weight: &mut [f32], bias: &mut [f32]) {
        let cols = weight.len();
        let rows = x.chunks_exact(cols).zip(up.chunks_exact(cols));
        for ((x, up), (&mean, &rstd)) in rows.zip(means.iter().zip(rstds)) {
            let sums = weight.iter_mut().zip(bias.iter_mut());
            for ((weight, bias), (&x, &up)) in sums.zip(x.iter().zip(up)) {
                *weight += up * ((x - mean) * rstd);
                *bias += up;
            }
        }
    }
}
