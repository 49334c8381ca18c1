//! Compression of trained models: schemes by name, what is learned from a text beforehand, and the methods that use it.
//!
//! Everything here takes weights as numbers and gives weights as they are to be stored; the graph of a model tells which weights
//! belong to linear layers, what feeds them and what may be folded into what.

mod assign;
mod awq;
mod calibrate;
mod correct;
mod fold;
mod forecast;
mod gptq;
mod grid;
mod linear;
mod method;
mod observe;
mod pipeline;
pub mod prune;
mod recipe;
mod scheme;
mod sensitivity;
mod smooth;
mod stage;
pub mod stages;
pub mod structured;
#[cfg(test)]
mod tests;
mod windows;

pub use crate::tensor::cholesky::NotPositive;
pub use assign::{Choice, assign};
pub use awq::{Search, search};
pub use calibrate::{Calibration, Channels, Gram, MEMORY_BYTES, Statistics};
pub use fold::{Fold, folds, rescale};
pub use forecast::{Forecast, forecast, forward_bytes};
pub use gptq::{Gptq, gptq, gptq_keeping, output_error};
pub use grid::{Axis, Point, grid, plain};
pub use linear::{Linear, Selection, linears, matches};
pub use method::{Assignment, Method, Outcome, Request, quantize, rescaled};
pub use observe::{Magnitudes, Observer};
pub use pipeline::{Done, Pipeline, RECORD_FILE, RECORD_KEY, Record, checked};
pub use recipe::{Entry, Recipe};
pub use scheme::{Form, Named, named, names};
pub use sensitivity::{LayerScore, Sensitivity, sensitivity};
pub use smooth::smooth;
pub use stage::{Needs, Order, Promise, Report, Setting, Stage, Statistic, Subject};
pub use windows::calibration_windows;

use crate::data;
use crate::deploy;
use crate::evaluate;
use crate::exchange;
use crate::graph;
use crate::model;
use crate::tensor;
use crate::train;

/// What can go wrong while a model is compressed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A scheme that does not exist.
    #[error("there is no scheme `{name}`; there are {known}{}", did_you_mean(name))]
    Scheme {
        /// The name given.
        name: String,
        /// Names there are.
        known: String,
    },
    /// A pattern that names nothing.
    #[error("`{pattern}` matches no weight of a linear layer; there are {known}")]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// Names of the weights there are.
        known: String,
    },
    /// The model's weights are codes already.
    #[error("`{name}` is quantised already\n  hint: start from the model it was made of")]
    AlreadyQuantised {
        /// A weight that is.
        name: String,
    },
    /// A method needs data that was not given.
    #[error("{method} needs a text to calibrate with\n  hint: --calibrate FILE")]
    NoCalibration {
        /// The method.
        method: &'static str,
    },
    /// The text to calibrate with is too short.
    #[error(
        "the text to calibrate with has {got} tokens, one window takes {expected}\n  hint: a longer text, or --context"
    )]
    ShortCalibration {
        /// Tokens of one window.
        expected: usize,
        /// Tokens there are.
        got: usize,
    },
    /// A method cannot do a scheme.
    #[error("{method} cannot make {scheme}\n  hint: {hint}")]
    Unfit {
        /// The method.
        method: &'static str,
        /// The scheme.
        scheme: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// A weight cannot be coded.
    #[error("weight `{name}`: {source}")]
    Weight {
        /// Its name.
        name: String,
        /// Why.
        source: tensor::quant::Error,
    },
    /// A weight cannot be made blocks of.
    #[error("weight `{name}`: {source}")]
    Block {
        /// Its name.
        name: String,
        /// Why.
        source: tensor::quant::blocks::Error,
    },
    /// Scales were moved, and the model is no longer what it was.
    #[error(
        "{method} changed the model before anything was rounded: scores differ by {off} of {largest}\n  hint: this is a fault of kiln or of the driver; try --device cpu"
    )]
    NotExact {
        /// The method.
        method: &'static str,
        /// Largest difference of a score.
        off: f32,
        /// Largest score.
        largest: f32,
    },
    /// A budget that no choice of schemes keeps to.
    #[error(
        "the schemes at hand take {least:.3} bits per weight at least, the budget is {budget}\n  hint: give a smaller scheme among the choices"
    )]
    Budget {
        /// Bits per weight asked for.
        budget: f64,
        /// The fewest that can be had.
        least: f64,
    },
    /// What was measured of sensitivity belongs to another model.
    #[error(
        "the sensitivity was measured on another model: {reason}\n  hint: measure this one with `kiln sensitivity`"
    )]
    Foreign {
        /// What does not fit.
        reason: String,
    },
    /// A recipe that cannot be read.
    #[error("{place}: {reason}")]
    Recipe {
        /// The file.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A stage of a recipe failed.
    #[error("pass {number} `{stage}` (after: {before}): {source}")]
    Stage {
        /// Its number, from one.
        number: usize,
        /// Its kind.
        stage: &'static str,
        /// The stages before it.
        before: String,
        /// Why.
        source: Box<Error>,
    },
    /// A pass that comes too late.
    #[error(
        "pass {number} `{stage}` {does}, but `{before}` before it {did}\n  hint: put it before `{before}`"
    )]
    Order {
        /// Its number, from one.
        number: usize,
        /// Its kind.
        stage: &'static str,
        /// What it does.
        does: &'static str,
        /// The pass before it.
        before: &'static str,
        /// What that one did.
        did: &'static str,
    },
    /// A pass that trains has no text.
    #[error("pass `{stage}` needs a text to train on\n  hint: [data] text = [\"FILE\"]")]
    NoTraining {
        /// Its kind.
        stage: &'static str,
    },
    /// Weights that a pruned model cannot be taken back to.
    #[error(
        "the model cannot be taken back to {folder}: {reason}\n  hint: a pass that prunes comes before, and the weights are those of the same model at an earlier step"
    )]
    Rewind {
        /// The folder of the earlier weights.
        folder: String,
        /// What is wrong.
        reason: String,
    },
    /// Stopped by the user.
    #[error(
        "stopped after step {step} of training\n  hint: the same command with --resume goes on from there"
    )]
    Interrupted {
        /// Steps done.
        step: u64,
    },
    /// A folder cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The path.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// What was measured of a layer's inputs is of no use.
    #[error("inputs of `{name}`: {source}\n  hint: a longer text to calibrate with, or more damping")]
    Gram {
        /// Name of the layer's weight.
        name: String,
        /// Why.
        source: NotPositive,
    },
    /// A weight cannot be pruned so.
    #[error("weight `{name}`: {source}")]
    Prune {
        /// Its name.
        name: String,
        /// Why.
        source: prune::Error,
    },
    /// A part of a model has nothing that could be taken out.
    #[error("this model has no {part} that could go: {reason}")]
    NoUnits {
        /// What was to go.
        part: &'static str,
        /// Why it cannot.
        reason: String,
    },
    /// Something holds on to what was to be taken out.
    #[error("nothing of `{scope}` can go: {source}")]
    Coupled {
        /// Where in the model.
        scope: String,
        /// What holds on to it.
        source: graph::Uncut,
    },
    /// Weights that were removed came back.
    #[error(
        "weights that were pruned away are no longer zero: {}\n  hint: a pass after pruning must keep exact zeros; GGUF blocks with a minimum of their own (Q4_1, Q5_1, Q4_K ..) do not, and training does with `[prune] keep_zeros = true`",
        names.join(", ")
    )]
    CameBack {
        /// Names of the weights, with the first place that is wrong.
        names: Vec<String>,
    },
    /// What must be measured of one layer does not fit.
    #[error(
        "what is measured of the inputs of `{name}` takes {} MiB, the budget is {} MiB\n  hint: a larger one ([calibration] memory, --memory), or leave the layer out with `ignore`",
        need_bytes.div_ceil(1 << 20), have_bytes >> 20
    )]
    Memory {
        /// Name of the layer's weight.
        name: String,
        /// Bytes it takes.
        need_bytes: u64,
        /// Bytes there may be.
        have_bytes: u64,
    },
    /// A setting out of range.
    #[error("{setting} is {got}, expected {expected}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// The range.
        expected: String,
        /// The value given.
        got: String,
    },
    /// The model.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The model on its device.
    #[error(transparent)]
    Deploy(#[from] deploy::Error),
    /// A model between two passes.
    #[error(transparent)]
    Exchange(#[from] exchange::Error),
    /// A loss.
    #[error(transparent)]
    Evaluate(Box<evaluate::Error>),
    /// The device.
    #[error(transparent)]
    Run(#[from] train::Error),
    /// The text.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// The model's graph.
    #[error(transparent)]
    Graph(#[from] graph::Error),
}

impl From<evaluate::Error> for Error {
    fn from(error: evaluate::Error) -> Error {
        Error::Evaluate(Box::new(error))
    }
}

/// Result of compressing.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn did_you_mean(name: &str) -> String {
    let near = names()
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&name.to_lowercase(), &known.to_lowercase()), known));
    match near.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((nearness, known)) if nearness > 0.75 => format!("\n  hint: did you mean `{known}`?"),
        _ => String::new(),
    }
}
