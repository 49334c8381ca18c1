//! What can go wrong with adapters.

use crate::formats;
use crate::graph;
use crate::model;
use crate::passes;
use std::path::PathBuf;

/// What can go wrong with adapters.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pattern names nothing that an adapter could stand beside or train.
    #[error("the pattern `{pattern}` fits no {what} of this model\n  hint: those here are {known}")]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// What it was to fit.
        what: &'static str,
        /// Last parts of the names it could have fitted.
        known: String,
    },
    /// Adapters that cannot stand in one model.
    #[error("{problem}\n  hint: {hint}")]
    Together {
        /// Why not.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// A table of tokens that is the head as well cannot be trained whole beside adapters.
    #[error(
        "`{name}` cannot be trained whole: the head shares it\n  hint: an adapter's file has no place for a shared table; leave it out"
    )]
    Shared {
        /// The weight.
        name: String,
    },
    /// A folder is no adapter.
    #[error("{}: {problem}\n  hint: {hint}", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What is missing or wrong.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// The model that an adapter was made for is not where its config says.
    #[error(
        "{}: its base model is {}, which is not there\n  hint: name the base model and give this folder as --adapter", folder.display(), base.display()
    )]
    NoBase {
        /// The adapter's folder.
        folder: PathBuf,
        /// Where the base was.
        base: PathBuf,
    },
    /// The base model has other weights than those that the adapter was trained beside.
    #[error(
        "{}: its base model {} has changed since\n  hint: bring the base back, or name a model and give this folder as --adapter", folder.display(), base.display()
    )]
    OtherBase {
        /// The adapter's folder.
        folder: PathBuf,
        /// Where the base is.
        base: PathBuf,
    },
    /// The adapter was made for another model.
    #[error(
        "{} does not fit this model: {}\n  hint: an adapter works with the model it was made for, or one of the same shape",
        folder.display(), list(problems)
    )]
    Foreign {
        /// The adapter's folder.
        folder: PathBuf,
        /// What does not fit.
        problems: Vec<String>,
    },
    /// A weight that cannot be what an adapter stands beside.
    #[error("`{name}`: {problem}\n  hint: {hint}")]
    Base {
        /// The weight.
        name: String,
        /// What stands against it.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// What was merged cannot be taken out again.
    #[error("adapter `{name}` cannot be taken out: {problem}\n  hint: keep the model from before the merge")]
    Lost {
        /// The adapter.
        name: String,
        /// Why not.
        problem: &'static str,
    },
    /// The model.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// A file.
    #[error(transparent)]
    File(#[from] formats::Error),
    /// The graph.
    #[error(transparent)]
    Graph(#[from] graph::Error),
    /// A pass over the graph.
    #[error(transparent)]
    Pass(#[from] passes::Error),
}

/// Result of work on adapters.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Problems shown; a wrong folder can have thousands.
const SHOWN: usize = 6;

fn list(problems: &[String]) -> String {
    let rest = problems.len().saturating_sub(SHOWN);
    let more = if rest > 0 { format!("; and {rest} more") } else { String::new() };
    format!("{}{more}", problems[..problems.len().min(SHOWN)].join("; "))
}
