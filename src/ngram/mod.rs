//! Markov models over runs of tokens: what a text's own statistics predict, as a yardstick for models that learn.
//!
//! `p(w | h)` depends on the last `order - 1` tokens alone. Counts come from one pass over the text, sorted; nothing needs a device.
//! Texts are not cut into sentences: a text is one run, and where it has more than one file they follow each other.

mod arpa;
mod model;
mod smoothing;
mod store;
#[cfg(test)]
mod tests;
mod trie;

pub use arpa::write_arpa;
pub use model::Model;
pub use smoothing::Smoothing;
pub use store::{CONFIG_FILE, TABLES_FILE, is_ngram};
pub use trie::{Level, Trie};

use crate::data;
use crate::formats;
use std::path::PathBuf;

/// Longest runs that are counted.
pub const MOST_ORDER: usize = 16;

/// What can go wrong with a model of runs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting out of range.
    #[error("{setting} is {got}, expected {expected}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// The range.
        expected: &'static str,
        /// The value given.
        got: String,
    },
    /// The text is too short or too long.
    #[error("the text has {got} tokens, expected {expected}")]
    Length {
        /// Tokens of the text.
        got: usize,
        /// How many there may be.
        expected: &'static str,
    },
    /// A token beyond the vocabulary.
    #[error(
        "token {token} is beyond the vocabulary of {vocabulary}\n  hint: use the tokenizer the model was made with"
    )]
    Token {
        /// The token.
        token: u32,
        /// Tokens the model knows.
        vocabulary: usize,
    },
    /// A folder's files do not fit together.
    #[error("{path:?} is damaged: {reason}\n  hint: train the model again, it takes seconds")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A model has no form in a format.
    #[error("{what} cannot be written as ARPA: {reason}")]
    Arpa {
        /// The model.
        what: String,
        /// Why not.
        reason: &'static str,
    },
    /// A file.
    #[error(transparent)]
    File(#[from] formats::Error),
    /// The text or the tokenizer.
    #[error(transparent)]
    Data(#[from] data::Error),
}

/// Result of work with such models.
pub type Result<T, E = Error> = std::result::Result<T, E>;
