//! Matmul on the host as an engine runs it.

use super::Matmul;
use super::geometry::{Form, Geometry};
use crate::ops::fast::math::{LANES, sum_of_pairs};
use crate::ops::fast::product::{Matrix, product, product_here};
use crate::ops::fast::{rows_of_piece, widest};
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
    if m == 1 && sizes.matrices() == 1 && op.form != Form::Tn {
        return one_row(op.form, [k, n], a, b, c, &finish);
    }
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

/// One row of A: B is read where it lies, once, its columns shared out. Every sum has one order, however they are cut.
fn one_row(
    form: Form,
    [k, n]: [usize; 2],
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    finish: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    let each = rows_of_piece(n, k).next_multiple_of(LANES);
    c.par_chunks_mut(each).enumerate().for_each(|(number, piece)| {
        let first = number * each;
        match form {
            Form::Nt => along_k(a, &b[first * k..], piece),
            _ => along_n(a, &b[first..], n, piece),
        }
        finish(first, piece);
    });
}

widest! {
    /// c[j] = a . b[j] for rows of B.
    fn along_k(a: &[f32], b: &[f32], c: &mut [f32]) {
        for (c, b) in c.iter_mut().zip(b.chunks_exact(a.len())) {
            *c = sum_of_pairs(a, b, |a, b| a * b);
        }
    }
}

/// Rows of B that are added at a time: C then moves once for all of them.
const ROWS: usize = 8;

widest! {
    /// c = sum over p of a[p] b[p] for rows of B `stride` apart.
    fn along_n(a: &[f32], b: &[f32], stride: usize, c: &mut [f32]) {
        c.fill(0.0);
        let (runs, rest) = a.as_chunks::<ROWS>();
        for (number, a) in runs.iter().enumerate() {
            let rows: [&[f32]; ROWS] =
                std::array::from_fn(|i| &b[(number * ROWS + i) * stride..][..c.len()]);
            for j in 0..c.len() {
                let mut sum = a[0] * rows[0][j];
                for i in 1..ROWS {
                    sum += a[i] * rows[i][j];
                }
                c[j] += sum;
            }
        }
        for (i, &a) in rest.iter().enumerate() {
            let row = &b[(runs.len() * ROWS + i) * stride..][..c.len()];
            c.iter_mut().zip(row).for_each(|(c, &b)| *c += a * b);
        }
    }
}

widest! {
    fn add(c: &mut [f32], bias: &[f32]) {
        c.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
    }
}
