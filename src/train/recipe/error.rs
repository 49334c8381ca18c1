//! What can be wrong with a recipe, and where a value came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

/// Why a recipe cannot be run.
#[allow(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, Error)]
pub enum Error {
    /// The file could not be read or written.
    #[error("{}: {source}{}", path.display(), hint_of(source))]
    File { path: PathBuf, source: std::io::Error },
    /// The text is not TOML.
    #[error("{origin}: not valid TOML: {message}")]
    Syntax { origin: Origin, message: String },
    /// A `--set` that is not `section.key=value`, or that reaches into something which has no keys.
    #[error("--set {text}: {reason}\n  hint: write it as --set train.steps=50")]
    Override { text: String, reason: String },
    /// A key nobody reads.
    #[error("{origin}: unknown key `{path}`\n  hint: {hint}")]
    UnknownKey { origin: Origin, path: String, hint: String },
    /// A value of another kind than the key takes.
    #[error("{origin}: `{path}` has the wrong type: expected {expected}, got {got}")]
    WrongType { origin: Origin, path: String, expected: String, got: String },
    /// A value of the right kind that can never work.
    #[error("{origin}: `{path}` cannot be {got}: expected {expected}\n  hint: {hint}")]
    Impossible { origin: Origin, path: String, expected: Box<str>, got: Box<str>, hint: Box<str> },
    /// A key that is needed and not there.
    #[error("{origin}: `{path}` is missing\n  hint: {hint}")]
    Missing { origin: Origin, path: String, hint: String },
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A line of a recipe file, counted from one.
    Line {
        /// The file's name as it was given.
        file: String,
        /// The line.
        line: usize,
    },
    /// A `--set` on the command line, whole.
    Set(String),
    /// Given by the program, for instance from `--data`.
    Program,
    /// Written nowhere.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Line { file, line } => write!(f, "{file}, line {line}"),
            Origin::Set(text) => write!(f, "--set {text}"),
            Origin::Program => write!(f, "command line"),
            Origin::Default => write!(f, "recipe"),
        }
    }
}

/// The origin of each value by its full path, such as `train.optimizer.betas`.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins(BTreeMap<String, Origin>);

impl Origins {
    pub(super) fn insert(&mut self, path: &str, origin: Origin) {
        // What lay under a replaced value is gone, and so is where it came from.
        let below = format!("{path}.");
        self.0.retain(|known, _| !known.starts_with(&below));
        self.0.insert(path.to_string(), origin);
    }

    /// The origin of the value, or of the nearest table around it.
    pub(super) fn of(&self, path: &str) -> Origin {
        let mut path = path;
        loop {
            if let Some(origin) = self.0.get(path) {
                return origin.clone();
            }
            match path.rsplit_once('.') {
                Some((parent, _)) => path = parent,
                None => return Origin::Default,
            }
        }
    }
}

fn hint_of(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::NotFound => {
            "\n  hint: a recipe is a TOML file; without one `kiln train` uses the defaults, and --resume takes a run's folder"
        }
        _ => "",
    }
}
