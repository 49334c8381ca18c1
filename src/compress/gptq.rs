//! GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after another, and each one's error is made up for by those that
//! are still to come, as the inner products of the layer's inputs allow.
//!
//! With H of the inputs (damped) and `H^-1 = U^T U`: for each column i, `q = round(w_i)`, and
//! `w_j -= (w_i - q) / U_ii * U_ij` for all j > i. Rows do not meet, so each is worked through alone, eight at a time to read U once.

use super::calibrate::Gram;
use crate::tensor::algebra::{add_scaled, dot};
use crate::tensor::cholesky::{NotPositive, inverse_factor};
use crate::tensor::mask::Mask;
use crate::tensor::quant::{Coded, Grid, Origin, Scheme, Share};
use rayon::prelude::*;

/// Settings of GPTQ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gptq {
    /// Share of the mean of H's diagonal that is added to it.
    pub damping: f64,
    /// Columns with the largest inner products are rounded first.
    pub act_order: bool,
}

impl Default for Gptq {
    fn default() -> Self {
        Gptq { damping: 0.01, act_order: false }
    }
}

/// Rows that read U together.
const TOGETHER: usize = 8;

/// Codes of a finite matrix [rows, cols] whose inputs have the inner products `gram`.
///
/// Scales of groups are found as rounding reaches them, from weights that have been moved by then; with `act_order`, where a
/// group's columns do not follow each other, beforehand.
pub fn gptq(
    matrix: &[f32],
    rows: usize,
    scheme: &Scheme,
    gram: &Gram,
    settings: &Gptq,
) -> Result<Coded, NotPositive> {
    gptq_keeping(matrix, rows, scheme, gram, settings, &Mask::none(rows, gram.size))
}

/// The same of a matrix of which `mask` removed some: those stay exactly zero, and their errors too are made up for.
pub fn gptq_keeping(
    matrix: &[f32],
    rows: usize,
    scheme: &Scheme,
    gram: &Gram,
    settings: &Gptq,
    mask: &Mask,
) -> Result<Coded, NotPositive> {
    let cols = gram.size;
    let group = scheme.group(cols);
    let order = order_of(gram, settings);
    let u = factor_of(gram, settings.damping, &order)?;
    let groups = cols.div_ceil(group);
    // Known beforehand for a whole tensor, and where a group's columns come in another order.
    let fixed = if scheme.share == Share::Tensor {
        Some(vec![scheme.scale_of(matrix); rows])
    } else {
        (settings.act_order && groups > 1).then(|| {
            matrix.chunks(cols).flat_map(|row| row.chunks(group).map(|part| scheme.scale_of(part))).collect()
        })
    };
    let work = Work { scheme, u: &u, order: &order, cols, group, groups, mask };
    let (mut codes, mut steps) =
        (vec![0i8; matrix.len()], fixed.clone().unwrap_or(vec![(0.0, 0); rows * groups]));
    codes
        .par_chunks_mut(TOGETHER * cols)
        .zip(steps.par_chunks_mut(TOGETHER * groups))
        .zip(matrix.par_chunks(TOGETHER * cols))
        .enumerate()
        .for_each(|(number, ((codes, steps), rows))| {
            work.rows(number * TOGETHER, rows, codes, steps, fixed.is_some());
        });
    let (scales, zeros): (Vec<f32>, Vec<i32>) = steps.into_iter().unzip();
    let origin = if scheme.is_symmetric() { Origin::Centred } else { Origin::Zeros(zeros) };
    let (grid, lowest, highest) = (scheme.grid, scheme.lowest, scheme.highest);
    Ok(Coded { rows, cols, group, grid, lowest, highest, codes, scales, origin })
}

/// Whether GPTQ can make codes of a scheme: those whose scales stay as they are found.
pub(super) fn is_fit(scheme: &Scheme) -> bool {
    !scheme.double && (scheme.grid == Grid::Integers || matches!(scheme.share, Share::Group(_)))
}

/// Columns in the order in which they are rounded.
fn order_of(gram: &Gram, settings: &Gptq) -> Vec<usize> {
    let mut order: Vec<usize> = (0..gram.size).collect();
    if settings.act_order {
        order.sort_by(|&a, &b| gram.diagonal(b).total_cmp(&gram.diagonal(a)));
    }
    order
}

/// U for H damped and in that order. An input that is always zero gets a one: its weight is rounded alone.
pub(super) fn factor_of(gram: &Gram, damping: f64, order: &[usize]) -> Result<Vec<f32>, NotPositive> {
    let n = gram.size;
    let mean = (0..n).map(|i| gram.diagonal(i)).sum::<f64>() / n.max(1) as f64;
    let damping = damping * if mean > 0.0 { mean } else { 1.0 };
    let mut h: Vec<f64> = vec![0.0; n * n];
    h.par_chunks_mut(n.max(1)).enumerate().for_each(|(i, row)| {
        row.iter_mut().enumerate().for_each(|(j, x)| *x = gram.matrix[order[i] * n + order[j]]);
        if row[i] == 0.0 {
            row[i] = 1.0;
        }
        row[i] += damping;
    });
    Ok(inverse_factor(&h, n)?.into_iter().map(|x| x as f32).collect())
}

struct Work<'a> {
    scheme: &'a Scheme,
    u: &'a [f32],
    order: &'a [usize],
    cols: usize,
    group: usize,
    groups: usize,
    mask: &'a Mask,
}

impl Work<'_> {
    /// Rounds a few rows, from `first` on. Scales are found on the way unless `fixed`.
    fn rows(&self, first: usize, rows: &[f32], codes: &mut [i8], steps: &mut [(f32, i32)], fixed: bool) {
        let cols = self.cols;
        let mut moved: Vec<f32> =
            rows.chunks(cols).flat_map(|row| self.order.iter().map(|&column| row[column])).collect();
        for at in 0..cols {
            let column = self.order[at];
            let number = column / self.group;
            let u = &self.u[at * cols..][..cols];
            let starts = column.is_multiple_of(self.group) && !fixed;
            let each = moved.chunks_mut(cols).zip(codes.chunks_mut(cols)).zip(steps.chunks_mut(self.groups));
            for (at_row, ((row, codes), steps)) in each.enumerate() {
                if starts && (self.groups > 1 || at == 0) {
                    let end = (at + self.group).min(cols);
                    steps[number] = self.scheme.scale_of(&row[at..end]);
                } else if at == 0 && !fixed {
                    // One group whose columns come in another order: its scale is that of the row.
                    steps[0] = self.scheme.scale_of(row);
                }
                let (scale, zero) = steps[number];
                let goes = self.mask.is_removed((first + at_row) * cols + column);
                let code = self.scheme.code(if goes { 0.0 } else { row[at] }, scale, zero);
                codes[column] = code;
                let error = (row[at] - self.scheme.value(code, scale, zero)) / u[at];
                add_scaled(&mut row[at + 1..], -error, &u[at + 1..]);
            }
        }
    }
}

/// Mean squared error of a layer's outputs, per token and output, when its weight `a` [rows, cols] becomes `b`:
/// the trace of `(a - b) G (a - b)^T`, G the mean inner products of its inputs.
pub fn output_error(a: &[f32], b: &[f32], rows: usize, gram: &Gram) -> f64 {
    let n = gram.size;
    let of_row = |(a, b): (&[f32], &[f32])| {
        let d: Vec<f64> = a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
        let rows = gram.matrix.chunks(n).zip(&d);
        rows.map(|(g, d_i)| d_i * dot(g, &d)).sum::<f64>()
    };
    let total: f64 = a.par_chunks(n).zip(b.par_chunks(n)).map(of_row).sum();
    total / (gram.count.max(1) * rows.max(1)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::quant::encode;
    use crate::tensor::random::Stream;

    fn normal(count: usize, seed: u32) -> Vec<f32> {
        let mut random = Stream::new(&[seed]);
        (0..count).map(|_| random.normal() as f32).collect()
    }

    fn errors(inputs: &[f32], held_out: &[f32], n: usize, scheme: &Scheme) -> [f64; 2] {
        let weight = normal(16 * n, 1);
        let coded = gptq(&weight, 16, scheme, &Gram::of(inputs, n), &Gptq::default()).unwrap();
        let plain = encode(&weight, 16, n, scheme).unwrap();
        [coded, plain].map(|coded| output_error(&weight, &coded.decode(), 16, &Gram::of(held_out, n)))
    }

    #[test]
    fn on_correlated_inputs_the_held_out_error_is_a_fourth_of_rounding_to_nearest() {
        let n = 256;
        // Few causes behind many inputs, and a little of each one's own.
        let mix = normal(24 * n, 2);
        let sample = |count: usize, seed: u32| {
            let (causes, own) = (normal(count * 24, seed), normal(count * n, seed + 1));
            let x = (0..count * n).map(|at| {
                let (row, column) = (at / n, at % n);
                let sum: f32 = (0..24).map(|c| causes[row * 24 + c] * mix[c * n + column]).sum();
                sum + 0.05 * own[at]
            });
            x.collect::<Vec<f32>>()
        };
        let scheme = Scheme::asymmetric(4, Share::Group(128));
        let [ours, plain] = errors(&sample(2048, 10), &sample(512, 20), n, &scheme);
        assert!(ours * 4.0 < plain, "{ours} against {plain}");
    }

    #[test]
    fn where_inputs_do_not_depend_on_each_other_it_is_rounding_to_nearest() {
        let (n, weight) = (64, normal(8 * 64, 3));
        let gram = Gram {
            size: n,
            count: 1,
            matrix: (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect(),
        };
        for scheme in [
            Scheme::asymmetric(4, Share::Row),
            Scheme::wide(4, Share::Group(32)),
            Scheme::wide(8, Share::Tensor),
        ] {
            for act_order in [false, true] {
                let settings = Gptq { act_order, ..Gptq::default() };
                let coded = gptq(&weight, 8, &scheme, &gram, &settings).unwrap();
                assert_eq!(coded, encode(&weight, 8, n, &scheme).unwrap(), "{scheme:?}");
            }
        }
    }

    #[test]
    fn an_input_that_is_always_zero_does_no_harm() {
        let (n, mut x) = (32, normal(200 * 32, 4));
        x.chunks_mut(n).for_each(|row| row[5] = 0.0);
        let coded =
            gptq(&normal(4 * n, 5), 4, &Scheme::wide(4, Share::Row), &Gram::of(&x, n), &Gptq::default())
                .unwrap();
        assert!(coded.is_sound() && coded.decode().iter().all(|x| x.is_finite()));
    }
}
