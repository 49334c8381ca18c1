//! Matmul on the host as an engine runs it.

use super::Matmul;
use super::geometry::{Form, Geometry};
use crate::ops::fast::math::LANES;
use crate::ops::fast::product::{Matrix, product, product_here};
use crate::ops::fast::{rows_of_piece, team, threads, widest};
use crate::tensor::View;

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
    if starts.len() < threads() {
        for (&start, c) in starts.iter().zip(c.chunks_exact_mut(m * n)) {
            let (a, b) = operands(start);
            product([m, k, n], a, b, c, &finish);
        }
        return;
    }
    team::chunks(c, m * n, |number, c| {
        let (a, b) = operands(starts[number]);
        product_here([m, k, n], a, b, c, n, false);
        c.chunks_exact_mut(n).for_each(|row| finish(0, row));
    });
}

/// Rows of B that are read at a time.
const ROWS: usize = 8;

/// Elements of B below which a team's leader multiplies alone: reading them takes about what asking another does.
const FEW_OF_TEAM: usize = 1 << 13;

/// One row of A: B is read where it lies, once, its columns shared out. Every sum has one order, however they are cut.
fn one_row(
    form: Form,
    [k, n]: [usize; 2],
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    finish: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    let each = match team::members() {
        Some(members) if n * k >= FEW_OF_TEAM => n.div_ceil(members),
        _ => rows_of_piece(n, k),
    };
    let each = each.next_multiple_of(LANES);
    team::chunks(c, each, |number, piece| {
        let first = number * each;
        match form {
            Form::Nt => along_k(a, &b[first * k..], piece),
            _ => along_n(a, &b[first..], n, piece),
        }
        finish(first, piece);
    });
}

/// Sums kept side by side for each row of B.
const SUMS: usize = 16;

widest! {
    /// c[j] = a . b[j] for rows of B, several at a time: memory is faster where it is read in several places.
    fn along_k(a: &[f32], b: &[f32], c: &mut [f32]) {
        let (runs, rest) = c.as_chunks_mut::<ROWS>();
        let (whole, last) = b[..(runs.len() * ROWS + rest.len()) * a.len()].split_at(runs.len() * ROWS * a.len());
        for (c, b) in runs.iter_mut().zip(whole.chunks_exact(ROWS * a.len())) {
            *c = dots(a, b);
        }
        for (c, b) in rest.iter_mut().zip(last.chunks_exact(a.len())) {
            [*c] = dots(a, b);
        }
    }
}

/// Products of a row with some rows of B.
#[inline(always)]
fn dots<const N: usize>(a: &[f32], b: &[f32]) -> [f32; N] {
    let (parts, tail) = a.as_chunks::<SUMS>();
    let row = |i: usize| b[i * a.len()..][..a.len()].as_chunks::<SUMS>();
    let rows: [&[[f32; SUMS]]; N] = std::array::from_fn(|i| &row(i).0[..parts.len()]);
    let mut sums = [[0.0f32; SUMS]; N];
    for (p, a) in parts.iter().enumerate() {
        for r in 0..N {
            for i in 0..SUMS {
                sums[r][i] += a[i] * rows[r][p][i];
            }
        }
    }
    // Plain loops: a closure that borrowed the sums would keep them in memory.
    let mut products = [0.0; N];
    for r in 0..N {
        let mut sums = sums[r];
        let mut half = SUMS / 2;
        while half > 0 {
            for i in 0..half {
                sums[i] += sums[i + half];
            }
            half /= 2;
        }
        products[r] = sums[0];
        for (a, b) in tail.iter().zip(row(r).1) {
            products[r] += a * b;
        }
    }
    products
}

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
