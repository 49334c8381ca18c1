//! Which weights of matrices [out, in] go: shares and patterns, the lowest of some scores, magnitudes.

mod choose;
mod magnitude;
mod sparsity;

pub use choose::{lowest_across, lowest_of_layer, lowest_of_pattern, lowest_of_rows};
pub use magnitude::{Scope, magnitude, magnitude_across};
pub use sparsity::{Pattern, Sparsity, count_of};

use super::mask::Mask;

/// Why a weight cannot be pruned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A share that is none.
    #[error("sparsity is {got}, expected 0 or more and less than 1\n  hint: 0.5 removes half of the weights")]
    Sparsity {
        /// The share given.
        got: f64,
    },
    /// A pattern that is none.
    #[error(
        "`{got}` is no pattern of weights to keep\n  hint: 2:4 keeps 2 of each 4 consecutive inputs; the first number is above zero and below the second"
    )]
    Pattern {
        /// The text given.
        got: String,
    },
    /// Inputs that are not whole groups of a pattern.
    #[error(
        "{inputs} inputs are no whole groups of {pattern}\n  hint: leave the layer out with `ignore`, or give `sparsity`"
    )]
    Indivisible {
        /// Inputs of the layer.
        inputs: usize,
        /// The pattern.
        pattern: Pattern,
    },
    /// Nothing would be left of a layer.
    #[error(
        "none of its {count} weights would be left\n  hint: a lower sparsity, or leave the layer out with `ignore`"
    )]
    Nothing {
        /// Weights of the layer.
        count: usize,
    },
    /// A weight that is no finite number.
    #[error(
        "the element in row {row}, column {column} is {got}\n  hint: such a model is broken; take an earlier checkpoint"
    )]
    NotFinite {
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
        /// What it is.
        got: f32,
    },
}

/// Refuses a matrix with elements that are no finite numbers.
pub fn expect_finite(matrix: &[f32], cols: usize) -> Result<(), Error> {
    match matrix.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::NotFinite { row: at / cols, column: at % cols, got: matrix[at] }),
    }
}

/// Refuses a mask that leaves nothing.
pub fn expect_some_left(mask: Mask) -> Result<Mask, Error> {
    let count = mask.rows() * mask.cols();
    if count > 0 && mask.count_removed() == count { Err(Error::Nothing { count }) } else { Ok(mask) }
}
