//! Wanda (Sun et al., arXiv 2306.11695): weights that are small and meet small inputs go.
//!
//! The score is `|W_ij| * ||X_j||_2`, compared within each row or each group of a pattern; weights that stay are not changed.

use super::Error;
use crate::compress::Gram;
use crate::tensor::mask::Mask;
use crate::tensor::sparse::{
    Sparsity, count_of, expect_finite, expect_some_left, lowest_of_pattern, lowest_of_rows,
};

/// Which weights of a matrix [rows, inputs] go, whose inputs have the inner products `gram`.
pub fn wanda(matrix: &[f32], gram: &Gram, sparsity: Sparsity) -> Result<Mask, Error> {
    sparsity.check()?;
    let cols = gram.size;
    expect_finite(matrix, cols)?;
    let norms = norms_of(gram)?;
    let of_row = |row: &[f32]| {
        row.iter().zip(&norms).map(|(w, x)| (f64::from(w.abs()) * x) as f32).collect::<Vec<_>>()
    };
    let scores: Vec<f32> = matrix.chunks(cols.max(1)).flat_map(of_row).collect();
    Ok(expect_some_left(match sparsity {
        Sparsity::Pattern(pattern) => lowest_of_pattern(&scores, cols, pattern)?,
        Sparsity::Share(share) => lowest_of_rows(&scores, cols, count_of(share, cols)),
    })?)
}

/// Norm of each input over the text.
fn norms_of(gram: &Gram) -> Result<Vec<f64>, Error> {
    let norms: Vec<f64> = (0..gram.size).map(|input| gram.diagonal(input).max(0.0).sqrt()).collect();
    match norms.iter().any(|&norm| norm > 0.0) {
        true => Ok(norms),
        false => Err(Error::Silent { inputs: gram.size }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_weight_behind_a_small_input_goes_before_a_small_one_behind_a_large() {
        let gram = Gram::of(&[0.1, 10.0], 2);
        let mask = wanda(&[3.0, 1.0], &gram, Sparsity::Share(0.5)).unwrap();
        assert!(mask.is_removed(0) && !mask.is_removed(1));
    }

    #[test]
    fn inputs_that_are_always_zero_tell_nothing() {
        let gram = Gram::of(&[0.0; 8], 4);
        let error = wanda(&[1.0; 4], &gram, Sparsity::Share(0.5)).unwrap_err();
        assert_eq!(error, Error::Silent { inputs: 4 });
    }
}
