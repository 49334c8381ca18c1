//! What can go wrong with a study.

use crate::exchange;
use crate::tasks;
use crate::train;
use std::path::PathBuf;

/// Result of studies.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a study.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A ladder that says what none can.
    #[error("{}: {reason}", path.display())]
    Ladder {
        /// The file.
        path: PathBuf,
        /// What is wrong, with a hint.
        reason: String,
    },
    /// A recipe of which no ladder can be made.
    #[error("{key} is {got}, expected {expected}\n  hint: {hint}")]
    Recipe {
        /// Key of the recipe.
        key: &'static str,
        /// What it is.
        got: String,
        /// What it may be.
        expected: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A size that cannot be planned.
    #[error("size {size}: {source}")]
    Size {
        /// The size.
        size: String,
        /// What is wrong.
        source: Box<train::Error>,
    },
    /// A rung that is asked for more text than there is.
    #[error(
        "rung {rung} reads {tokens} tokens, the training text has {has}\n  hint: lower tokens_per_parameter or tokens, give more text, or set more_than_data = \"repeat\" in [ladder]"
    )]
    TooFewTokens {
        /// The rung.
        rung: String,
        /// Tokens it reads.
        tokens: u64,
        /// Tokens there are.
        has: u64,
    },
    /// A study that was begun otherwise.
    #[error(
        "{} holds a study that was begun otherwise:\n  {differs}\n  hint: take back what changed, or choose another folder with -o; sizes, budgets and seeds may be added",
        path.display()
    )]
    Changed {
        /// Its folder.
        path: PathBuf,
        /// What differs, a line each.
        differs: String,
    },
    /// A task with nothing to guess between.
    #[error(
        "task {}: there are no choices, so accuracy has no chance level to leave\n  hint: kind = \"multiple-choice\" with choices, or kind = \"classification\" with labels",
        path.display()
    )]
    NoChoices {
        /// The task's file.
        path: PathBuf,
    },
    /// Nothing to fit a law to.
    #[error(
        "no rung was finished: {failures}\n  hint: mend what failed and start again; what is finished stays"
    )]
    NothingDone {
        /// What happened.
        failures: String,
    },
    /// A file of the study.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the study that is no such.
    #[error("{}: {reason}\n  hint: remove the file, and the rung is measured anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The recipe.
    #[error(transparent)]
    Raw(#[from] train::recipe::Error),
    /// A run.
    #[error(transparent)]
    Run(Box<train::Error>),
    /// A task.
    #[error(transparent)]
    Task(Box<tasks::Error>),
    /// A model's file.
    #[error(transparent)]
    Exchange(#[from] exchange::Error),
}

impl From<train::Error> for Error {
    fn from(error: train::Error) -> Error {
        Error::Run(Box::new(error))
    }
}

impl From<tasks::Error> for Error {
    fn from(error: tasks::Error) -> Error {
        Error::Task(Box::new(error))
    }
}
