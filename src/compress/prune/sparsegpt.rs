//! SparseGPT (Frantar and Alistarh, arXiv 2301.00774): weights go one column after another, and each one's absence is made up for by
//! those that are still to come, as the inner products of the layer's inputs allow.
//!
//! With H of the inputs (damped) and `H^-1 = U^T U`: the score of a weight is `w^2 / U_ii^2`, its loss to the output. For each block
//! of columns the lowest of all rows are chosen when it is reached, or for a pattern those of each group; then for each column i
//! `w_j -= (w_i - q) / U_ii * U_ij` for all j > i, q zero for a weight that goes, and the rounded weight where codes are made jointly.

use super::Error;
use crate::compress::Gram;
use crate::compress::gptq::factor_of;
use crate::tensor::algebra::add_scaled;
use crate::tensor::mask::Mask;
use crate::tensor::quant::{Coded, Origin, Scheme, Share};
use crate::tensor::sparse::{
    Sparsity, count_of, expect_finite, expect_some_left, lowest_of_layer, lowest_of_pattern,
};
use rayon::prelude::*;

/// Settings of SparseGPT.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseGpt {
    /// Share of the mean of H's diagonal that is added to it.
    pub damping: f64,
    /// Columns for which weights are chosen together.
    pub block: usize,
    /// The weight at the threshold goes too: one more for each block, as with the authors' code.
    pub inclusive: bool,
}

impl Default for SparseGpt {
    fn default() -> Self {
        SparseGpt { damping: 0.01, block: 128, inclusive: false }
    }
}

/// What came of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparsified {
    /// The weights, zero where they are removed.
    pub matrix: Vec<f32>,
    /// Which are removed.
    pub mask: Mask,
    /// The codes, where they were asked for; they decode to the matrix.
    pub coded: Option<Coded>,
}

/// Rows that read U together.
const TOGETHER: usize = 8;

/// Prunes a matrix whose inputs have the inner products `gram`, and makes codes of what stays where a scheme is given.
///
/// Scales are found as their columns are reached. Inputs that are always zero lose their weights first.
pub fn sparsegpt(
    matrix: &[f32],
    gram: &Gram,
    sparsity: Sparsity,
    settings: &SparseGpt,
    scheme: Option<&Scheme>,
) -> Result<Sparsified, Error> {
    sparsity.check()?;
    let cols = gram.size;
    expect_finite(matrix, cols)?;
    let rows = matrix.len() / cols.max(1);
    if (0..cols).all(|input| gram.diagonal(input) == 0.0) {
        return Err(Error::Silent { inputs: cols });
    }
    let order: Vec<usize> = (0..cols).collect();
    let u = factor_of(gram, settings.damping, &order)?;
    let mut work = Work::new(matrix, rows, cols, &u, scheme);
    for input in (0..cols).filter(|&input| gram.diagonal(input) == 0.0) {
        work.rows.iter_mut().skip(input).step_by(cols).for_each(|w| *w = 0.0);
    }
    let block = match sparsity {
        Sparsity::Share(_) => settings.block.max(1),
        Sparsity::Pattern(pattern) => {
            pattern.expect_fit(cols)?;
            pattern.of
        }
    };
    for start in (0..cols).step_by(block) {
        let width = block.min(cols - start);
        let scores = work.scores(start, width);
        let chosen = match sparsity {
            Sparsity::Pattern(pattern) => lowest_of_pattern(&scores, width, pattern)?,
            Sparsity::Share(share) => {
                let count = count_of(share, scores.len());
                let more = usize::from(settings.inclusive && count > 0);
                lowest_of_layer(&scores, width, count + more)
            }
        };
        work.columns(start, &chosen);
    }
    work.finish()
}

/// A row's values and its codes, and the steps of its groups.
type Rows<'a> = ((&'a mut [f32], &'a mut [i8]), &'a mut [(f32, i32)]);

struct Work<'a> {
    /// The weights as they are by now.
    rows: Vec<f32>,
    cols: usize,
    u: &'a [f32],
    scheme: Option<&'a Scheme>,
    /// Columns of one scale.
    group: usize,
    codes: Vec<i8>,
    steps: Vec<(f32, i32)>,
    mask: Mask,
}

impl<'a> Work<'a> {
    fn new(matrix: &[f32], rows: usize, cols: usize, u: &'a [f32], scheme: Option<&'a Scheme>) -> Self {
        let group = scheme.map_or(cols, |scheme| scheme.group(cols));
        let groups = cols.div_ceil(group.max(1));
        let whole =
            scheme.filter(|scheme| scheme.share == Share::Tensor).map(|scheme| scheme.scale_of(matrix));
        let steps = vec![whole.unwrap_or((0.0, 0)); rows * groups];
        Work {
            rows: matrix.to_vec(),
            cols,
            u,
            scheme,
            group,
            codes: vec![0; matrix.len()],
            steps,
            mask: Mask::none(rows, cols),
        }
    }

    /// Scores of some columns, [rows, width].
    fn scores(&self, start: usize, width: usize) -> Vec<f32> {
        let cols = self.cols;
        let of_row = |row: &[f32]| {
            let columns = start..start + width;
            columns.map(|at| (row[at] / self.u[at * cols + at]).powi(2)).collect::<Vec<_>>()
        };
        self.rows.par_chunks(cols).flat_map_iter(of_row).collect()
    }

    /// Works through some columns of all rows, of which `chosen` [rows, width] go.
    fn columns(&mut self, start: usize, chosen: &Mask) {
        let (cols, group, u, scheme) = (self.cols, self.group, self.u, self.scheme);
        let (width, groups) = (chosen.cols(), cols.div_ceil(group));
        let work = |(number, ((rows, codes), steps)): (usize, Rows)| {
            for at in start..start + width {
                let u = &u[at * cols..][..cols];
                let each = rows
                    .chunks_mut(cols)
                    .zip(codes.chunks_mut(cols))
                    .zip(steps.chunks_mut(groups))
                    .enumerate();
                for (row, ((values, codes), steps)) in each {
                    let goes = chosen.is_removed((number * TOGETHER + row) * width + at - start);
                    let kept = if goes { 0.0 } else { values[at] };
                    let q = match scheme {
                        None => kept,
                        Some(scheme) => {
                            let step = &mut steps[at / group];
                            if at.is_multiple_of(group) && scheme.share != Share::Tensor {
                                *step = scheme.scale_of(&values[at..(at + group).min(cols)]);
                            }
                            codes[at] = scheme.code(kept, step.0, step.1);
                            scheme.value(codes[at], step.0, step.1)
                        }
                    };
                    let error = (values[at] - q) / u[at];
                    values[at] = q;
                    add_scaled(&mut values[at + 1..], -error, &u[at + 1..]);
                }
            }
        };
        self.rows
            .par_chunks_mut(TOGETHER * cols)
            .zip(self.codes.par_chunks_mut(TOGETHER * cols))
            .zip(self.steps.par_chunks_mut(TOGETHER * groups))
            .enumerate()
            .for_each(work);
        for at in (0..chosen.rows() * width).filter(|&at| chosen.is_removed(at)) {
            self.mask.remove(at / width * cols + start + at % width);
        }
    }

    fn finish(self) -> Result<Sparsified, Error> {
        let (rows, cols, group) = (self.mask.rows(), self.cols, self.group);
        let mask = expect_some_left(self.mask)?;
        let coded = self.scheme.map(|scheme| {
            let (scales, zeros): (Vec<f32>, Vec<i32>) = self.steps.into_iter().unzip();
            let origin = if scheme.is_symmetric() { Origin::Centred } else { Origin::Zeros(zeros) };
            let (grid, lowest, highest) = (scheme.grid, scheme.lowest, scheme.highest);
            Coded { rows, cols, group, grid, lowest, highest, codes: self.codes, scales, origin }
        });
        Ok(Sparsified { matrix: self.rows, mask, coded })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::output_error;
    use crate::compress::prune::wanda;
    use crate::tensor::random::Stream;

    fn normal(count: usize, seed: u32) -> Vec<f32> {
        let mut random = Stream::new(&[seed]);
        (0..count).map(|_| random.normal() as f32).collect()
    }

    /// Few causes behind many inputs, and a little of each one's own.
    fn correlated(count: usize, n: usize, seed: u32) -> Vec<f32> {
        let (mix, causes, own) = (normal(8 * n, 2), normal(count * 8, seed), normal(count * n, seed + 1));
        let x = (0..count * n).map(|at| {
            let (row, column) = (at / n, at % n);
            let sum: f32 = (0..8).map(|c| causes[row * 8 + c] * mix[c * n + column]).sum();
            sum + 0.1 * own[at]
        });
        x.collect()
    }

    #[test]
    fn on_correlated_inputs_the_held_out_error_is_far_below_that_of_pruning_without_update() {
        let n = 64;
        let (gram, held_out) = (Gram::of(&correlated(1024, n, 10), n), Gram::of(&correlated(256, n, 20), n));
        let weight = normal(16 * n, 1);
        for sparsity in [Sparsity::Share(0.5), Sparsity::Pattern("2:4".parse().unwrap())] {
            let ours = sparsegpt(&weight, &gram, sparsity, &SparseGpt::default(), None).unwrap();
            let mut plain = weight.clone();
            wanda(&weight, &gram, sparsity).unwrap().apply(&mut plain);
            let [ours, plain] = [&ours.matrix, &plain].map(|w| output_error(&weight, w, 16, &held_out));
            assert!(ours * 3.0 < plain, "{ours} against {plain}");
        }
    }

    #[test]
    fn codes_made_jointly_decode_to_the_matrix_and_to_exact_zeros() {
        let (n, weight) = (64, normal(16 * 64, 3));
        let gram = Gram::of(&correlated(256, n, 10), n);
        let pattern = Sparsity::Pattern("2:4".parse().unwrap());
        for scheme in [
            Scheme::symmetric(4, Share::Group(32)),
            Scheme::asymmetric(4, Share::Group(16)),
            Scheme::wide(8, Share::Row),
            Scheme::symmetric(8, Share::Tensor),
            Scheme::normal_float(32, false),
        ] {
            for sparsity in [Sparsity::Share(0.4), pattern] {
                let made = sparsegpt(&weight, &gram, sparsity, &SparseGpt::default(), Some(&scheme)).unwrap();
                let coded = made.coded.unwrap();
                assert!(coded.is_sound(), "{scheme:?}");
                assert_eq!(coded.decode(), made.matrix, "{scheme:?}");
                assert_eq!(made.mask.violated_by(&made.matrix), None, "{scheme:?}");
            }
        }
    }

    #[test]
    fn where_inputs_do_not_depend_on_each_other_nothing_is_moved() {
        let (n, weight) = (32, normal(8 * 32, 4));
        let matrix = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
        let gram = Gram { size: n, count: 1, matrix };
        let made = sparsegpt(&weight, &gram, Sparsity::Share(0.5), &SparseGpt::default(), None).unwrap();
        let mut expected = weight.clone();
        made.mask.apply(&mut expected);
        assert_eq!((made.matrix, made.mask.count_removed()), (expected, 128));
    }

    #[test]
    fn weights_of_an_input_that_is_always_zero_go_first() {
        let (n, mut x) = (16, normal(64 * 16, 5));
        x.chunks_mut(n).for_each(|row| row[3] = 0.0);
        let made = sparsegpt(
            &normal(4 * n, 6),
            &Gram::of(&x, n),
            Sparsity::Share(0.25),
            &SparseGpt::default(),
            None,
        );
        let made = made.unwrap();
        assert!((0..4).all(|row| made.mask.is_removed(row * n + 3)));
        let silent = sparsegpt(
            &normal(4 * n, 6),
            &Gram::of(&vec![0.0; n], n),
            Sparsity::Share(0.25),
            &SparseGpt::default(),
            None,
        );
        assert_eq!(silent, Err(Error::Silent { inputs: n }));
    }
}
