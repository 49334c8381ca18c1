//! What can go wrong with a task.

use crate::data;
use crate::deploy;
use crate::evaluate;
use crate::exchange;
use crate::generate;
use crate::metrics;
use crate::model;
use crate::ngram;
use crate::retrieve;
use crate::train;
use std::path::PathBuf;

/// Result of tasks.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a task.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A task's file cannot be read.
    #[error("task {}: {source}\n  hint: check that it is a file and that you may read it", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A task's file says what none can.
    #[error("task {}: {reason}", path.display())]
    Task {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A row that cannot be asked.
    #[error("{}, line {line}: {reason}\n  hint: the task's file says which columns are read: {hint}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Its line, from one.
        line: usize,
        /// What is wrong.
        reason: String,
        /// Which key of the task's file.
        hint: &'static str,
    },
    /// An answer that is none of the choices.
    #[error(
        "{}, line {line}: the answer is {got}, expected one of {choices} choices: a number from 0, a letter from A, or the text of one",
        path.display()
    )]
    Answer {
        /// The file.
        path: PathBuf,
        /// Its line, from one.
        line: usize,
        /// What the row has.
        got: String,
        /// Choices of the row.
        choices: usize,
    },
    /// A text that no model of this context can read whole.
    #[error("{}, line {line}: an answer of {tokens} tokens is longer than the model's context of {context}", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its line, from one.
        line: usize,
        /// Tokens of the answer.
        tokens: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A setting out of range.
    #[error("{setting} is {got}, expected {expected}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What it may be.
        expected: String,
        /// What was given.
        got: String,
    },
    /// Models that cut the same text differently.
    #[error(
        "{first} and {other} do not see the same segments, so they cannot be compared in pairs\n  hint: their tokens or windows differ; say `window` in the task's file, or give the text as rows of a .jsonl file, each of which is a segment"
    )]
    Segments {
        /// The first model.
        first: String,
        /// Another one.
        other: String,
    },
    /// The data.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// The model.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The model on its device.
    #[error(transparent)]
    Deploy(#[from] deploy::Error),
    /// The device.
    #[error(transparent)]
    Run(#[from] train::Error),
    /// The model's file.
    #[error(transparent)]
    Exchange(#[from] exchange::Error),
    /// A classifier.
    #[error(transparent)]
    Evaluate(Box<evaluate::Error>),
    /// A model of counted runs.
    #[error(transparent)]
    Counted(#[from] ngram::Error),
    /// Passages.
    #[error(transparent)]
    Retrieve(Box<retrieve::Error>),
    /// What is written.
    #[error(transparent)]
    Generate(Box<generate::Error>),
    /// A score.
    #[error(transparent)]
    Metric(#[from] metrics::Error),
}

impl From<evaluate::Error> for Error {
    fn from(error: evaluate::Error) -> Error {
        Error::Evaluate(Box::new(error))
    }
}

impl From<generate::Error> for Error {
    fn from(error: generate::Error) -> Error {
        Error::Generate(Box::new(error))
    }
}
