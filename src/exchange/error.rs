//! What can go wrong while a model changes its file.

use crate::data;
use crate::formats;
use crate::model;

/// What can go wrong while a model changes its file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file.
    #[error(transparent)]
    File(#[from] formats::Error),
    /// The family, its configuration or its weights.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// An adapter, or what it stands beside.
    #[error(transparent)]
    Adapter(#[from] crate::adapt::Error),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] data::Error),
    /// A setting of the model that the other side computes differently.
    #[error("GGUF has no {family} with `{key}` = {got}, expected {expected}")]
    Setting {
        /// The family.
        family: String,
        /// Key of `config.json`.
        key: String,
        /// What can be said.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A number that is too large for the type it is to be stored in.
    #[error(
        "`{name}` holds {got}, beyond what {dtype} holds\n  hint: bf16 has the range of f32; or leave the type as it is"
    )]
    Range {
        /// The tensor.
        name: String,
        /// The type asked for.
        dtype: String,
        /// The number.
        got: f32,
    },
    /// A family without a place in the format.
    #[error("{what} is not supported; there are: {known}")]
    Family {
        /// Family or architecture.
        what: String,
        /// What is supported.
        known: String,
    },
    /// Codes that no block format holds.
    #[error(
        "the codes of `{name}` fit no block of GGUF: {reason}\n  hint: quantise with one of GGUF's own schemes, such as Q8_0 or Q4_0"
    )]
    Codes {
        /// The weight.
        name: String,
        /// Why the nearest format does not fit.
        reason: String,
    },
    /// A tokenizer that cannot be written so that others read it.
    #[error(
        "a {kind} tokenizer cannot be written to GGUF: {reason}\n  hint: byte-level BPE and characters can; or leave the tokenizer out"
    )]
    Vocabulary {
        /// Its kind.
        kind: String,
        /// Why not.
        reason: String,
    },
}

/// Result of an exchange.
pub type Result<T, E = Error> = std::result::Result<T, E>;
