//! What can go wrong with a model, its configuration and its weights.

use crate::tensor::Shape;
use std::path::PathBuf;

/// What can go wrong with a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the model's folder is not there.
    #[error("{path:?} is not there\n  hint: {hint}")]
    Absent {
        /// The file.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// A folder that holds a trunk with several heads, where one model was asked for.
    #[error(
        "{path:?} holds a trunk with the heads of several tasks: {}\n  hint: `kiln export --task NAME` makes a folder of one; evaluate, classify and generate know --task as well",
        tasks.join(", ")
    )]
    SeveralHeads {
        /// The folder.
        path: PathBuf,
        /// Names of the tasks.
        tasks: Vec<String>,
    },
    /// A task that a folder has no head for.
    #[error(
        "{path:?} has no task `{name}`: {known}\n  hint: a run of a recipe with [[task]] has heads for its tasks"
    )]
    NoTask {
        /// The folder.
        path: PathBuf,
        /// The name that was asked for.
        name: String,
        /// What there is, in words.
        known: String,
    },
    /// The operating system refused.
    #[error("{path:?}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path:?} is damaged: {reason}\n  hint: fetch or copy the file again; its size may be short")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tensors of a file are not those of the model.
    #[error("{path:?} does not hold this model's weights: {}", list_names(missing, extra))]
    Names {
        /// File or folder.
        path: PathBuf,
        /// Parameters without a tensor.
        missing: Vec<String>,
        /// Tensors without a parameter.
        extra: Vec<String>,
    },
    /// A tensor has the wrong shape.
    #[error("weight `{name}` has shape {got}, expected {expected}")]
    Shape {
        /// The parameter.
        name: String,
        /// Shape in the model.
        expected: Shape,
        /// Shape given.
        got: Shape,
    },
    /// A tensor has an element type that weights cannot have.
    #[error("weight `{name}` is stored as {got}, expected F32, F16, BF16 or F64")]
    Element {
        /// The parameter.
        name: String,
        /// Type in the file.
        got: String,
    },
    /// A weight was asked for that is not there.
    #[error("there is no weight `{name}`")]
    NoWeight {
        /// Its name.
        name: String,
    },
    /// A weight was asked for as plain f32 that is held as codes or in 16 bits.
    #[error(
        "`{name}` is quantised, and this needs plain weights\n  hint: start from the model it was made of"
    )]
    Quantised {
        /// Its name.
        name: String,
    },
    /// Codes of a weight do not fit the convention they are to be written in.
    #[error(
        "`{name}` cannot be written so: {reason}\n  hint: kiln's own convention holds everything: --format kiln"
    )]
    Convention {
        /// The weight.
        name: String,
        /// What stands against it.
        reason: String,
    },
    /// A setting of the model is impossible or not supported.
    #[error("{place}: `{key}` is {got}, expected {expected}")]
    Setting {
        /// The file, or the family.
        place: String,
        /// The key.
        key: String,
        /// What it may be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// No family of that name is built in.
    #[error("{place}: the model family {got} is not supported; there are: {known}")]
    Family {
        /// The file, or the recipe.
        place: String,
        /// `model_type` and `architectures` as given.
        got: String,
        /// The families there are.
        known: String,
    },
    /// More positions were asked for than the model has.
    #[error(
        "a context of {got} tokens is asked for, this model has positions for {limit}\n  hint: lower the context"
    )]
    Context {
        /// Positions the model has.
        limit: usize,
        /// Positions asked for.
        got: usize,
    },
    /// What a model is fed does not fit it.
    #[error("input `{name}` is {got}, expected {expected}")]
    Input {
        /// Its name.
        name: String,
        /// What it may be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A model is asked for what it is not made for.
    #[error("this model is {got}, expected {expected}")]
    Task {
        /// What is needed.
        expected: String,
        /// What the model is.
        got: &'static str,
    },
    /// A file of tensors was refused.
    #[error(transparent)]
    Format(crate::formats::Error),
    /// The graph refused.
    #[error(transparent)]
    Graph(#[from] crate::graph::Error),
}

impl From<crate::ops::Error> for Error {
    fn from(source: crate::ops::Error) -> Self {
        Error::Graph(source.into())
    }
}

/// Result of model work.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names shown of each list; a wrong file can have thousands.
const SHOWN: usize = 8;

fn list_names(missing: &[String], extra: &[String]) -> String {
    let list = |what: &str, names: &[String]| {
        let shown: Vec<_> = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect();
        let rest = names.len().saturating_sub(SHOWN);
        let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        (!names.is_empty()).then(|| format!("{what} {}{more}", shown.join(", ")))
    };
    [list("missing", missing), list("not in the model:", extra)]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_of_names_are_cut_and_counted() {
        let extra: Vec<String> = (0..10).map(|i| format!("t{i}")).collect();
        let text = list_names(&["a".into()], &extra);
        assert!(text.starts_with("missing `a`; not in the model: `t0`"), "{text}");
        assert!(text.ends_with("`t7` and 2 more"), "{text}");
    }
}
