//! Pruning: which weights of linear layers are removed, and what those that stay become.
//!
//! Everything here takes matrices [out, in] and gives a [`Mask`](crate::tensor::mask::Mask), or a matrix with zeros. A pruned weight is a
//! plain weight with exact zeros: no kernel skips them, so this is an experiment in size and quality, not in speed.

mod masks;
mod sensitivity;
mod sparsegpt;
pub mod torch;
mod wanda;
mod whole;

pub(super) use masks::lay_masks;
pub use masks::{masks_hold, masks_of_zeros};
pub use sensitivity::pruning_sensitivity;
pub use sparsegpt::{SparseGpt, Sparsified, sparsegpt};
pub use wanda::wanda;
pub use whole::{Method, NO_SPEED, Outcome, Pruned, Request, prune, sparsity_of};

use super::NotPositive;
use crate::tensor::sparse;

/// Why a weight cannot be pruned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Its weights, or what is asked of them.
    #[error(transparent)]
    Choice(#[from] sparse::Error),
    /// The text tells nothing of a layer's inputs.
    #[error(
        "all its {inputs} inputs are zero on the text, which tells none of its weights from another\n  hint: another text to calibrate with, or method magnitude"
    )]
    Silent {
        /// Inputs of the layer.
        inputs: usize,
    },
    /// The inner products of the inputs are of no use.
    #[error("its inputs: {0}\n  hint: a longer text to calibrate with, or more damping")]
    Gram(#[from] NotPositive),
}
