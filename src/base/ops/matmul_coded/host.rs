//! The matmul by codes on the host as an engine runs it: rows of W decoded where they are needed.

use super::{MatmulCoded, Sizes};
use crate::ops::coded::{ROWS, Row, Stored};
use crate::ops::fast::math::sum_of_pairs;
use crate::ops::fast::product::{Matrix, product_here};
use crate::ops::fast::{rows_of_piece, team, widest};
use crate::tensor::View;
use rayon::prelude::*;

/// Rows of X that are multiplied with each row of W as soon as that is decoded.
const FEW_ROWS: usize = 4;
/// Rows of W decoded at a time for more: what they fill stays in the second cache.
const BLOCK: usize = 64;
/// Elements of W below which a team's leader multiplies alone.
const FEW_OF_TEAM: usize = 1 << 13;

pub(super) fn compute(op: &MatmulCoded, inputs: &[View], c: &mut [f32]) {
    let sizes = op.sizes(inputs[0].shape, inputs[1].shape);
    let stored = Stored::of_views(op.layout, &inputs[1..]);
    let bias = inputs.get(1 + op.layout.inputs()).map(|bias| bias.floats());
    let finish = |first: usize, piece: &mut [f32]| {
        if let Some(bias) = bias {
            add(piece, &bias[first..]);
        }
        if let Some(activation) = &op.activation {
            activation.overwrite(piece);
        }
    };
    let x = inputs[0].floats();
    match op.transposed {
        false if sizes.m == 1 && stored.has_dots() => one_row(&stored, sizes.k, x, c, &finish),
        true => onto_columns(&stored, sizes, x, c, &finish),
        false => onto_rows(&stored, sizes, x, c, &finish),
    }
}

/// What is done to a piece of a row of C with its first column, once its sums are there.
type Finish<'a> = dyn Fn(usize, &mut [f32]) + Sync + 'a;

/// One row of X: rows of W are shared out, and multiplied as they are read.
fn one_row(stored: &Stored<f32>, k: usize, x: &[f32], c: &mut [f32], finish: &Finish) {
    let n = c.len();
    let each = match team::members() {
        Some(members) if n * k >= FEW_OF_TEAM => n.div_ceil(members),
        _ => rows_of_piece(n, k),
    };
    let each = each.next_multiple_of(ROWS);
    let row = Row::new(x, stored.layout);
    team::chunks(c, each, |number, piece| {
        let first = number * each;
        let (runs, rest) = piece.as_chunks_mut::<ROWS>();
        let last = first + runs.len() * ROWS;
        for (at, sums) in runs.iter_mut().enumerate() {
            *sums = stored.dots(first + at * ROWS, &row);
        }
        for (at, sum) in rest.iter_mut().enumerate() {
            [*sum] = stored.dots(last + at, &row);
        }
        finish(first, piece);
    });
}

/// C = X W^T: rows of W are shared out, each decoded once.
fn onto_rows(stored: &Stored<f32>, Sizes { m, n, k }: Sizes, x: &[f32], c: &mut [f32], finish: &Finish) {
    let each = if m <= FEW_ROWS { rows_of_piece(n, k * m) } else { BLOCK };
    let mut tasks: Vec<Vec<&mut [f32]>> = (0..n.div_ceil(each)).map(|_| Vec::with_capacity(m)).collect();
    for row in c.chunks_mut(n) {
        tasks.iter_mut().zip(row.chunks_mut(each)).for_each(|(task, piece)| task.push(piece));
    }
    tasks.into_par_iter().enumerate().for_each(|(number, mut pieces)| {
        let first = number * each;
        match m <= FEW_ROWS {
            true => few(stored, first, x, k, &mut pieces),
            false => many(stored, first, x, k, &mut pieces),
        }
        pieces.into_iter().for_each(|piece| finish(first, piece));
    });
}

/// Sums of a few rows of X with rows of W from `first` on.
fn few(stored: &Stored<f32>, first: usize, x: &[f32], k: usize, pieces: &mut [&mut [f32]]) {
    let mut row = vec![0.0; k];
    for j in 0..pieces[0].len() {
        stored.row_fast(first + j, &mut row);
        for (piece, x) in pieces.iter_mut().zip(x.chunks(k)) {
            piece[j] = dot(x, &row);
        }
    }
}

widest! {
    fn dot(x: &[f32], y: &[f32]) -> f32 {
        sum_of_pairs(x, y, |x, y| x * y)
    }
}

/// The same for many rows, as a product of matrices.
fn many(stored: &Stored<f32>, first: usize, x: &[f32], k: usize, pieces: &mut [&mut [f32]]) {
    let (m, count) = (pieces.len(), pieces[0].len());
    let mut rows = vec![0.0; count * k];
    rows.chunks_mut(k).enumerate().for_each(|(j, row)| stored.row_fast(first + j, row));
    let mut sums = vec![0.0; m * count];
    product_here(
        [m, k, count],
        Matrix::new(x, k),
        Matrix::new(&rows, k).transposed(),
        &mut sums,
        count,
        false,
    );
    pieces.iter_mut().zip(sums.chunks(count)).for_each(|(piece, sums)| piece.copy_from_slice(sums));
}

/// C = X W: rows of X are shared out, or, where they are few, columns; W is decoded block by block.
fn onto_columns(stored: &Stored<f32>, Sizes { m, n, k }: Sizes, x: &[f32], c: &mut [f32], finish: &Finish) {
    let each = m.div_ceil(rayon::current_num_threads());
    c.par_chunks_mut(each * k).zip(x.par_chunks(each * n)).for_each(|(c, x)| {
        let count = c.len() / k;
        let mut rows = vec![0.0; BLOCK * k];
        for first in (0..n).step_by(BLOCK) {
            let depth = BLOCK.min(n - first);
            let rows = &mut rows[..depth * k];
            rows.chunks_mut(k).enumerate().for_each(|(j, row)| stored.row_fast(first + j, row));
            let x = Matrix::new(&x[first..], n);
            product_here([count, depth, k], x, Matrix::new(rows, k), c, k, first > 0);
        }
        c.chunks_mut(k).for_each(|row| finish(0, row));
    });
}

widest! {
    fn add(c: &mut [f32], bias: &[f32]) {
        c.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
    }
}
