//! What can go wrong while passages are sought.

use crate::embed;
use crate::train;
use std::path::PathBuf;

/// Result of retrieval.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while passages are sought.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder is not there.
    #[error("retrieve: no such folder: {}\n  hint: name a folder of text, markdown, source or .jsonl files, or one such file", path.display())]
    Missing {
        /// As it was given.
        path: PathBuf,
    },
    /// A folder that cannot be listed.
    #[error("retrieve: cannot read {}: {source}\n  hint: check that you may list the folder", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder in which there is no text.
    #[error(
        "retrieve: {} holds no text: {files} files, {said}\n  hint: text, markdown, source and .jsonl files in UTF-8 are read; names that begin with a dot are not",
        path.display()
    )]
    NoText {
        /// The folder.
        path: PathBuf,
        /// Files in it and its folders.
        files: usize,
        /// What became of them.
        said: String,
    },
    /// A setting out of range.
    #[error("retrieve: {setting} is {got}, expected {expected}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What it may be.
        expected: String,
        /// What was given.
        got: String,
    },
    /// An index of words was asked for, and this build has none.
    #[error(
        "retrieve: this kiln was built without the index of words\n  hint: build it with `--features retrieve`, or seek by an encoder's vectors: {flag} MODEL"
    )]
    NoWords {
        /// What names an encoder.
        flag: &'static str,
    },
    /// A model that makes no vectors to seek by.
    #[error("retrieve: {} is {got}, expected an encoder such as all-MiniLM-L6-v2\n  hint: {hint}", path.display())]
    NoEncoder {
        /// The model.
        path: PathBuf,
        /// What it is.
        got: String,
        /// What to do.
        hint: &'static str,
    },
    /// Not even the best passage has a place beside prompt and answer.
    #[error(
        "retrieve: the model has room for {context} tokens: the prompt takes {prompt}, the answer up to {answer}, and the shortest passage found would make the prompt {with}\n  hint: fewer tokens for the answer (--max-new-tokens, max_new_tokens), or shorter passages (--retrieve-size, retrieve_size)"
    )]
    NoRoom {
        /// Tokens that the model sees.
        context: usize,
        /// Tokens of the prompt alone.
        prompt: usize,
        /// Tokens of the answer at most.
        answer: usize,
        /// Tokens of the prompt with the shortest passage.
        with: usize,
    },
    /// The index of words.
    #[error("retrieve: the index of words failed: {reason}")]
    Index {
        /// What it said.
        reason: String,
    },
    /// The encoder.
    #[error(transparent)]
    Embed(Box<embed::Error>),
    /// The device.
    #[error(transparent)]
    Run(Box<train::Error>),
}

impl From<embed::Error> for Error {
    fn from(error: embed::Error) -> Error {
        Error::Embed(Box::new(error))
    }
}

impl From<train::Error> for Error {
    fn from(error: train::Error) -> Error {
        Error::Run(Box::new(error))
    }
}
