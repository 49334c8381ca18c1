//! People compare answers of models, blind: which one they like better is kept in a file, and counted.
//!
//! [`Store`] is the file: prompts, answers, who judges in which order, and every judgement as a transaction of its own. [`serve`] shows
//! its pages on this machine. [`report`](report()) counts, with the formulas of [`statistics`].

pub mod report;
mod requests;
mod server;
mod sessions;
pub mod statistics;
mod store;

pub use report::report;
pub use server::{Served, serve};
pub use store::rating::{Judged, Rating, Shown};
pub use store::{MAGIC, Store};

use serde_json::{Map, Value as Json};
use std::path::PathBuf;

/// What can go wrong while judging.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process judges with the file.
    #[error(
        "{} is in use by another `kiln judge`\n  hint: raters can share that one's page; end it first, or name another file by --results",
        path.display()
    )]
    Locked {
        /// The results file.
        path: PathBuf,
    },
    /// Another program holds the database's lock.
    #[error("{} is locked by another program, after 5 seconds of waiting\n  hint: close what has it open for writing", path.display())]
    Busy {
        /// The results file.
        path: PathBuf,
    },
    /// A file that is no results file.
    #[error("{} is no results file of `kiln judge`: {reason}\n  hint: it was left as it is; name another file", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// A results file that is damaged.
    #[error("{} is damaged: {reason}", path.display())]
    Corrupt {
        /// The results file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A results file of another contest.
    #[error(
        "{} belongs to another contest:\n{}\n  hint: it was left as it is; name another file by --results",
        path.display(),
        differences.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    )]
    Differs {
        /// The results file.
        path: PathBuf,
        /// What is not the same, a line each.
        differences: Vec<String>,
    },
    /// A contest that cannot be.
    #[error("{0}")]
    Contest(String),
    /// The database.
    #[error("{}: {source}", path.display())]
    Database {
        /// The results file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A file of the system.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The port of the page.
    #[error("port {port} cannot be opened: {source}\n  hint: --port 0 takes a free one")]
    Port {
        /// The port.
        port: u16,
        /// Why not.
        source: std::io::Error,
    },
    /// A name that is none.
    #[error("a name has 1 to 64 characters that can be printed")]
    Name,
    /// Somebody judges under the name at this moment.
    #[error("somebody is judging as {name:?} at this moment, last heard of {seconds} s ago")]
    Active {
        /// The name.
        name: String,
        /// Since when nothing was heard.
        seconds: u64,
    },
    /// The session is over: the name was taken over elsewhere.
    #[error("this session has ended: the name is judged with elsewhere")]
    Ended,
    /// An item that is not the one to be judged.
    #[error("this pair is judged already, or is not the next one")]
    NotNext,
    /// There is nothing to take back.
    #[error("there is nothing to take back")]
    NothingToUndo,
    /// A comment that is too long.
    #[error("the comment has {got} characters, at most {MOST_COMMENT} are kept")]
    Comment {
        /// Characters it has.
        got: usize,
    },
    /// A request that is none.
    #[error("{0}")]
    Request(String),
}

/// Characters that a comment may have.
pub const MOST_COMMENT: usize = 10_000;

/// Result of judging.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A prompt to which models have answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// Its name: what the file of prompts calls it, or its number.
    pub key: String,
    /// The text.
    pub text: String,
}

/// Who has answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Contestant {
    /// The name in reports. Raters do not see it.
    pub name: String,
    /// Where it is from, for reports.
    pub source: String,
    /// A hash of the weights, where they are known: other weights are another contest.
    pub digest: Option<String>,
}

/// What is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Contest {
    /// How answers are written.
    pub settings: Map<String, Json>,
    /// The seed of orders.
    pub order_seed: u64,
    /// Two or more.
    pub contestants: Vec<Contestant>,
    /// All prompts, in the order of their file.
    pub prompts: Vec<Prompt>,
}

/// What a rater says of a pair of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The left one is better.
    Left,
    /// The right one is better.
    Right,
    /// Both are as good.
    Tie,
    /// Neither is any good.
    Bad,
    /// No opinion.
    Skip,
}

impl Verdict {
    /// All of them, as they are counted in reports.
    pub const ALL: [Verdict; 5] = [Verdict::Left, Verdict::Right, Verdict::Tie, Verdict::Bad, Verdict::Skip];

    /// Its name in the file, in requests and in CSV.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Left => "left",
            Verdict::Right => "right",
            Verdict::Tie => "tie",
            Verdict::Bad => "bad",
            Verdict::Skip => "skip",
        }
    }

    /// The verdict of a name.
    pub fn named(name: &str) -> Option<Verdict> {
        Verdict::ALL.into_iter().find(|verdict| verdict.name() == name)
    }
}
