//! The rules of `torch.nn.utils.prune`: shares are rounded to the nearest count, halves to the even one.

use crate::tensor::mask::Mask;
use crate::tensor::sparse::{
    Error, Sparsity, expect_finite, expect_some_left, lowest_across, lowest_of_layer,
};

/// Weights that a share of `count` is.
fn round(share: f64, count: usize) -> Result<usize, Error> {
    Sparsity::Share(share).check()?;
    Ok((share * count as f64).round_ties_even() as usize)
}

/// `l1_unstructured`: the smallest weights of a layer.
pub fn l1_unstructured(matrix: &[f32], cols: usize, amount: f64) -> Result<Mask, Error> {
    expect_finite(matrix, cols)?;
    let scores: Vec<f32> = matrix.iter().map(|x| x.abs()).collect();
    expect_some_left(lowest_of_layer(&scores, cols, round(amount, matrix.len())?))
}

/// `global_unstructured` with L1: the smallest weights of several layers together, each its matrix and its inputs.
pub fn global_unstructured(layers: &[(&[f32], usize)], amount: f64) -> Result<Vec<Mask>, Error> {
    for (matrix, cols) in layers {
        expect_finite(matrix, *cols)?;
    }
    let scores: Vec<Vec<f32>> = layers.iter().map(|(m, _)| m.iter().map(|x| x.abs()).collect()).collect();
    let list: Vec<(&[f32], usize)> =
        scores.iter().zip(layers).map(|(s, (_, cols))| (&s[..], *cols)).collect();
    let count = round(amount, scores.iter().map(Vec::len).sum())?;
    lowest_across(&list, count).into_iter().map(expect_some_left).collect()
}

/// Which slices [`ln_structured`] removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slices {
    /// Rows, `dim=0`.
    Rows,
    /// Columns, `dim=1`.
    Columns,
}

/// `ln_structured`: whole rows or columns with the smallest norm of order `n`.
pub fn ln_structured(
    matrix: &[f32],
    cols: usize,
    amount: f64,
    n: f64,
    slices: Slices,
) -> Result<Mask, Error> {
    expect_finite(matrix, cols)?;
    let rows = matrix.len() / cols.max(1);
    let number = |at: usize| match slices {
        Slices::Rows => at / cols,
        Slices::Columns => at % cols,
    };
    let mut sums = vec![0.0f64; if slices == Slices::Rows { rows } else { cols }];
    matrix.iter().enumerate().for_each(|(at, x)| sums[number(at)] += f64::from(x.abs()).powf(n));
    // The root changes no order.
    let scores: Vec<f32> = sums.iter().map(|&sum| sum as f32).collect();
    let chosen = lowest_of_layer(&scores, scores.len(), round(amount, scores.len())?);
    expect_some_left(Mask::of(rows, cols, |at| chosen.is_removed(number(at))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_layers_are_one_long_layer() {
        let matrix: Vec<f32> = (0..24).map(|i| ((i * 7) % 24) as f32 - 11.5).collect();
        let (a, b) = matrix.split_at(12);
        let whole = l1_unstructured(&matrix, 4, 0.45).unwrap();
        let parts = global_unstructured(&[(a, 4), (b, 3)], 0.45).unwrap();
        assert!((0..12).all(|at| parts[0].is_removed(at) == whole.is_removed(at)));
        assert!((0..12).all(|at| parts[1].is_removed(at) == whole.is_removed(12 + at)));
    }

    #[test]
    fn shares_are_rounded_to_the_nearest_and_halves_to_the_even_count() {
        assert_eq!([0.3, 0.25, 0.75].map(|share| round(share, 10).unwrap()), [3, 2, 8]);
    }

    #[test]
    fn columns_go_whole() {
        let mask = ln_structured(&[1.0, 5.0, 2.0, 1.0, 5.0, 2.0], 3, 0.3, 1.0, Slices::Columns).unwrap();
        assert_eq!((0..6).filter(|&at| mask.is_removed(at)).collect::<Vec<_>>(), [0, 3]);
    }
}
