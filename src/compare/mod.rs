//! Two models over the same text: how far the second is from the first, layer by layer and token by token.

mod score;
mod statistics;

pub use score::{Apart, Model, Reference, Scored, expect_alike, spread_evenly, weight_noise};
pub use statistics::{Comparison, Mean, Noise, Quantile, Summary, TokenFigures};

use crate::deploy;
use crate::model;
use crate::train;

/// What can go wrong while models are compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Models that are not of one design.
    #[error(
        "the models differ in {what}: {first} and {second}\n  hint: compare a model with one that was made of it"
    )]
    Unlike {
        /// What differs.
        what: String,
        /// In the first.
        first: String,
        /// In the second.
        second: String,
    },
    /// The text does not fill a window.
    #[error("the text has {got} tokens, one window takes {expected}\n  hint: a longer text, or --context")]
    ShortText {
        /// Tokens of one window, with the one behind it.
        expected: usize,
        /// Tokens there are.
        got: usize,
    },
    /// Scores that are no numbers.
    #[error(
        "the {which} model's scores are not finite numbers\n  hint: its weights may hold none, or a scheme ran over; `kiln evaluate` tells of one model alone"
    )]
    NotFinite {
        /// Which of the two.
        which: &'static str,
    },
    /// The device or the run.
    #[error(transparent)]
    Run(#[from] train::Error),
    /// A model.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// A model on its device.
    #[error(transparent)]
    Deploy(#[from] deploy::Error),
}

/// Result of comparing.
pub type Result<T, E = Error> = std::result::Result<T, E>;
