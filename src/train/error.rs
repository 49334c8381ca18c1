//! What can go wrong in a run.

use super::recipe::Bytes;
use std::path::Path;

/// Why a run could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The recipe.
    #[error(transparent)]
    Recipe(#[from] super::recipe::Error),
    /// The text, the tokenizer or the windows.
    #[error(transparent)]
    Data(#[from] crate::data::Error),
    /// The model's folder or shape.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
    /// An adapter, or what it stands beside.
    #[error(transparent)]
    Adapter(#[from] crate::adapt::Error),
    /// The graph.
    #[error(transparent)]
    Graph(#[from] crate::graph::Error),
    /// A pass over the graph.
    #[error(transparent)]
    Pass(#[from] crate::passes::Error),
    /// Planning or running.
    #[error(transparent)]
    Plan(#[from] crate::plan::Error),
    /// The device.
    #[cfg(feature = "gpu")]
    #[error(transparent)]
    Gpu(#[from] crate::gpu::Error),
    /// Saving or loading a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] super::checkpoint::Error),
    /// Writing metrics.
    #[error(transparent)]
    Metrics(#[from] super::metrics::Error),
    /// Built without the gpu feature.
    #[error(
        "device `{wanted}` needs the `gpu` feature, which this build leaves out\n  hint: --device cpu, or build with default features"
    )]
    NoGpuFeature {
        /// The device asked for.
        wanted: String,
    },
    /// The loss or the gradient is no longer a number.
    #[error(
        "step {step}: {what} is not finite; the weights are those before this step\n  first bad operator: {culprit}\n  hint: a lower learning rate, clipping, or a longer warm-up; the last good checkpoint is {checkpoint}"
    )]
    NotFinite {
        /// The step.
        step: u64,
        /// Loss or gradient norm.
        what: &'static str,
        /// The first operator whose output is not finite, found by replaying the step.
        culprit: String,
        /// Where the last good checkpoint is.
        checkpoint: String,
    },
    /// The step takes more memory than it may.
    #[error(
        "with {rows} of the batch at a time training takes {need}, the budget is {budget} ({from})\n  hint: memory.recompute = \"layers\", a smaller micro_batch, context or model, or f16 storage"
    )]
    OverBudget {
        /// Sequences that go through the model at once.
        rows: usize,
        /// What it takes.
        need: Bytes,
        /// What it may take.
        budget: Bytes,
        /// Who says so.
        from: String,
    },
    /// The device went away in mid-run.
    #[error(
        "{device}: the device was lost after step {step}: {reason}\n  the last checkpoint is {checkpoint}\n  hint: {hint}; with --recover a run does so by itself; if it repeats, lower train.batch"
    )]
    Lost {
        /// Name of the device.
        device: String,
        /// The driver's words.
        reason: String,
        /// Steps whose numbers came back.
        step: u64,
        /// Where the last checkpoint is.
        checkpoint: String,
        /// The command that goes on from there.
        hint: String,
    },
    /// A teacher from which the student cannot learn.
    #[error("teacher {folder}: {problem}\n  hint: {hint}")]
    Teacher {
        /// Its folder.
        folder: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// What a teacher said before is of no use, or cannot be kept.
    #[error("distill.cache {folder}: {problem}\n  hint: {hint}")]
    Cache {
        /// The folder.
        folder: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: String,
    },
    /// One of several tasks.
    #[error("task `{name}`: {source}")]
    Task {
        /// Its name.
        name: String,
        /// What is wrong.
        #[source]
        source: Box<Error>,
    },
    /// A weight that cannot be pruned as the recipe says.
    #[error("weight `{name}`: {source}")]
    Prune {
        /// Its name.
        name: String,
        /// Why.
        source: crate::tensor::sparse::Error,
    },
    /// A weight that a device can bind in pieces only is to be trained as a whole.
    #[error(
        "`{name}` is larger than the {limit_bytes} bytes that a kernel may bind on this device, and {why}\n  hint: {hint}"
    )]
    OnlyInPieces {
        /// The weight.
        name: String,
        /// The most that a kernel may bind.
        limit_bytes: u64,
        /// Why pieces do not do.
        why: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// A run folder that cannot be used.
    #[error("{path}: {problem}\n  hint: {hint}")]
    Folder {
        /// The folder or file.
        path: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// The checkpoint does not belong to this model.
    #[error("checkpoint {folder}: {problem}\n  hint: resume with the recipe the run was started with")]
    Mismatch {
        /// The checkpoint.
        folder: String,
        /// What does not fit.
        problem: String,
    },
}

impl Error {
    /// The loss of the device with the way back from it: how far the run came, its last checkpoint, and the command that
    /// goes on from there. Any other error stays as it is.
    pub(super) fn with_way_back(self, step: u64, checkpoint: Option<&Path>, folder: &Path) -> Error {
        let (device, reason) = match self {
            Error::Plan(crate::plan::Error::Lost { device, reason }) => (device, reason),
            #[cfg(feature = "gpu")]
            Error::Gpu(crate::gpu::Error::Lost { adapter, reason }) => (adapter, reason),
            other => return other,
        };
        let hint = match checkpoint {
            Some(_) => format!("`kiln train --resume {}` goes on from there", folder.display()),
            None => "start again, with a smaller run.save.every".to_string(),
        };
        let checkpoint = checkpoint.map_or("none yet".to_string(), |path| path.display().to_string());
        Error::Lost { device, reason, step, checkpoint, hint }
    }
}

impl From<crate::ops::Error> for Error {
    fn from(source: crate::ops::Error) -> Self {
        Error::Graph(source.into())
    }
}

/// Result of training work.
pub type Result<T, E = Error> = std::result::Result<T, E>;
