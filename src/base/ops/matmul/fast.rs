//! Matmul on the host as an engine runs it.

use super::Matmul;
use super::geometry::{Form, Geometry};
use crate::ops::fast::dots::dots;
use crate::ops::fast::math::LANES;
use crate::ops::fast::product::{Matrix, product, product_here, with_memory};
use crate::ops::fast::{add_onto, rows_of_piece, team, threads, widest};
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

/// One row of A: B is read where it lies, once, in runs of memory that are shared out. Every sum has one order, however many share.
fn one_row(
    form: Form,
    [k, n]: [usize; 2],
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    finish: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    if k == 0 {
        c.fill(0.0);
        return finish(0, c);
    }
    if form != Form::Nt {
        return by_rows([k, n], a, b, c, finish);
    }
    let each = match team::members() {
        Some(members) if n * k >= FEW_OF_TEAM => n.div_ceil(members),
        _ => rows_of_piece(n, k),
    };
    let each = each.next_multiple_of(LANES);
    team::chunks(c, each, |number, piece| {
        let first = number * each;
        along_k(a, &b[first * k..], piece);
        finish(first, piece);
    });
}

/// Elements of B's rows that are summed on their own at the least, and such sums at the most.
const SHARE: usize = 1 << 12;
const SHARES: usize = 8;
/// The same where B is so large that many threads gain by it.
const LARGE: usize = 1 << 20;
const SHARES_OF_LARGE: usize = 32;

/// Rows of B that are summed on their own: whole runs.
fn rows_of_share([k, n]: [usize; 2]) -> usize {
    let most = if k * n < LARGE { SHARES } else { SHARES_OF_LARGE };
    let shares = (k * n / SHARE).clamp(1, most);
    k.div_ceil(shares).next_multiple_of(ROWS)
}

/// Each share of B's rows is summed on its own, then the sums are added up. A thread reads memory on and on: one that took some
/// columns of every row would be fed half as fast.
fn by_rows(
    [k, n]: [usize; 2],
    a: &[f32],
    b: &[f32],
    c: &mut [f32],
    finish: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    let rows = rows_of_share([k, n]);
    let shares = k.div_ceil(rows);
    let together = match team::members() {
        Some(_) if n * k < FEW_OF_TEAM => shares,
        _ => shares.div_ceil(threads()),
    };
    if shares <= 1 {
        along_n(a, b, c);
        return finish(0, c);
    }
    with_memory(1, shares * n, |sums| {
        team::chunks(sums, together * n, |number, sums| {
            for (at, sum) in sums.chunks_exact_mut(n).enumerate() {
                let first = (number * together + at) * rows;
                along_n(&a[first..(first + rows).min(k)], &b[first * n..], sum);
            }
        });
        let each = rows_of_piece(n, shares);
        team::chunks(c, each, |number, piece| {
            let first = number * each;
            for (at, sum) in sums.chunks_exact(n).enumerate() {
                let sum = &sum[first..][..piece.len()];
                if at == 0 { piece.copy_from_slice(sum) } else { add_onto(piece, sum) }
            }
            finish(first, piece);
        });
    });
}

widest! {
    /// c[j] = a . b[j] for rows of B, several at a time: memory is faster where it is read in several places.
    fn along_k(a: &[f32], b: &[f32], c: &mut [f32]) {
        let (runs, rest) = c.as_chunks_mut::<ROWS>();
        let (whole, last) = b[..(runs.len() * ROWS + rest.len()) * a.len()].split_at(runs.len() * ROWS * a.len());
        for (c, b) in runs.iter_mut().zip(whole.chunks_exact(ROWS * a.len())) {
            *c = dots(a, b, a.len());
        }
        for (c, b) in rest.iter_mut().zip(last.chunks_exact(a.len())) {
            [*c] = dots(a, b, a.len());
        }
    }
}

/// Columns summed side by side.
const LINE: usize = 16;

widest! {
    /// c = sum over p of a[p] b[p] for the rows of B.
    fn along_n(a: &[f32], b: &[f32], c: &mut [f32]) {
        c.fill(0.0);
        let n = c.len();
        let (lines, tail) = c.as_chunks_mut::<LINE>();
        let (runs, rest) = a.as_chunks::<ROWS>();
        for (number, a) in runs.iter().enumerate() {
            let block = &b[number * ROWS * n..][..ROWS * n];
            // A plain loop: through a closure the lengths would be lost.
            let mut rows: [&[[f32; LINE]]; ROWS] = [&[]; ROWS];
            for i in 0..ROWS {
                rows[i] = &block[i * n..][..n].as_chunks().0[..lines.len()];
            }
            for j in 0..lines.len() {
                let mut sums = [0.0; LINE];
                for i in 0..ROWS {
                    for l in 0..LINE {
                        sums[l] += a[i] * rows[i][j][l];
                    }
                }
                for l in 0..LINE {
                    lines[j][l] += sums[l];
                }
            }
            for (at, c) in tail.iter_mut().enumerate() {
                let column = lines.len() * LINE + at;
                for i in 0..ROWS {
                    *c += a[i] * block[i * n + column];
                }
            }
        }
        for (i, &a) in rest.iter().enumerate() {
            let row = &b[(runs.len() * ROWS + i) * n..][..n];
            c.iter_mut().zip(row).for_each(|(c, &b)| *c += a * b);
        }
    }
}

widest! {
    fn add(c: &mut [f32], bias: &[f32]) {
        c.iter_mut().zip(bias).for_each(|(c, b)| *c += b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::lead;

    /// Small whole numbers, so that every order of the sum gives the same.
    #[test]
    fn one_row_gives_the_plain_sum_whoever_shares_the_work() {
        let numbers = |count: usize, seed: usize| -> Vec<f32> {
            (0..count).map(|i| ((i * 7 + seed * 13) % 11) as f32 - 5.0).collect()
        };
        for [k, n] in [[0, 3], [1, 1], [9, 33], [65, 130], [128, 384], [200, 65], [512, 128], [100, 11_000]] {
            let (a, b) = (numbers(k, 1), numbers(k * n, 2));
            for form in [Form::Nn, Form::Nt] {
                let at = |p: usize, j: usize| if form == Form::Nt { b[j * k + p] } else { b[p * n + j] };
                let sum = |j: usize| (0..k).map(|p| a[p] * at(p, j)).sum::<f32>() + 0.5 * j as f32;
                let expected: Vec<f32> = (0..n).map(sum).collect();
                let ask = || {
                    let mut c = vec![f32::NAN; n];
                    one_row(form, [k, n], &a, &b, &mut c, &|first, piece| {
                        piece.iter_mut().enumerate().for_each(|(i, c)| *c += 0.5 * (first + i) as f32);
                    });
                    c
                };
                assert_eq!(ask(), expected, "{form:?} {k} {n}");
                assert_eq!(lead(ask), expected, "{form:?} {k} {n} with a team");
            }
        }
    }
}
