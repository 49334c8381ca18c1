//! Matmul on the host as an engine runs it.

use super::Matmul;
use super::geometry::{Form, Geometry};
use crate::ops::fast::product::{Matrix, product, product_here};
use crate::ops::fast::widest;
use crate::tensor::View;
use rayon::prelude::*;

pub(super) fn compute(op: &Matmul, inputs: &[View], c: &mut [f32]) {
    let sizes = Geometry::of(op.form, inputs[0].shape, inputs[1].shape)
        .expect("the signature has accepted these operands");
    let Geometry { m, n, k, .. } = sizes;
    let [a, b] = [0, 1].map(|i: usize| inputs[i].floats());
    let bias = inputs.get(2).map(|bias| bias.floats());
    let finish = |column: usize, piece: &mut [f32]| {
        if let Some(bias) = bias {
            add(piece, &bias[column..]);
        }
        if let Some(activation) = &op.activation {
            activation.overwrite(piece);
        }
    };
    let operands = |[a_start, b_start]: [usize; 2]| {
        let (a, b) = (&a[a_start..][..m * k], &b[b_start..][..k * n]);
        let a = if op.form == Form::Tn { Matrix::new(a, m).transposed() } else { Matrix::new(a, k) };
        let b = if op.form == Form::Nt { Matrix::new(b, k).transposed() } else { Matrix::new(b, n) };
        (a, b)
    };
    let starts: Vec<[usize; 2]> = sizes.starts().collect();
    if starts.len() < rayon::current_num_threads() {
        for (&start, c) in starts.iter().zip(c.chunks_exact_mut(m * n)) {
            let (a, b) = operands(start);
            product([m, k, n], a, b, c, &finish);
        }
        return;
    }
    c.par_chunks_exact_mut(m * n).zip(&starts).for_each(|(c, &start)| {
        let (a, b) = operands(start);
        product_here([m, k, n], a, b, c, n, false);
        c.chunks_exact_mut(n).for_each(|row| finish(0, row));
    });
}

widest! {
    fn add(c: &mut [f32], bias: &[f32]) {
        c.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
    }
}
