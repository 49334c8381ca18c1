//! The recipe: everything a run depends on, in TOML.
//!
//! A [`RawRecipe`] is what the user wrote, with the line each value came from. [`Recipe`] is what runs: every default
//! filled in and every value checked. Only the second can be trained; it is written into the run folder, and reading it
//! back gives the same recipe.
//!
//! An empty recipe is a good one: it trains `gpt-nano` on the built-in corpus.

mod adapter;
mod chats;
mod distill;
mod dpo;
mod error;
mod examples;
mod memory;
mod objective;
mod optimizer;
mod precision;
mod preset;
mod prune;
mod quantize;
mod rate;
mod raw;
mod read;
mod resolve;
mod sources;
mod task;
#[cfg(test)]
mod tests;
mod writing;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::data::masking::Masking;
use crate::data::sources::{Separator, Source};
use crate::train::schedule::Schedule;

pub use crate::adapt::Hold;
pub use crate::passes::Recompute;
pub use adapter::{Adapter, Design, Shape as AdapterShape};
pub use chats::Chats;
pub use distill::{Distill, Knob};
pub use dpo::{Dpo, Preferring};
pub use error::{Error, Origin};
pub use examples::{Examples, Head, HeadKind, Kind, Pooling, Similarity};
pub use memory::{Bytes, Memory};
pub use objective::Objective;
pub use optimizer::{Clip, Decay, Optimizer, Rule};
pub use precision::{Held, LossScale, Precision, Product, States, Storage};
pub use preset::{PRESETS, Preset};
pub use prune::{Method, Prune, Removal};
pub use quantize::Quantize;
pub use raw::{RawRecipe, apply_set};
pub use sources::{Cache, Streaming, Validation};
pub use task::{Goal, Task};
pub use writing::Writing;

/// The name of the resolved recipe in a run folder.
pub const FILE_NAME: &str = "recipe.toml";

/// A recipe with every default filled in and every value checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// Which model.
    pub model: Model,
    /// On what.
    pub data: Data,
    /// How.
    pub train: Train,
    /// In which types.
    pub precision: Precision,
    /// For a model in which codes; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
    /// Adapters that are trained in the place of the model; empty: the model is.
    #[serde(rename = "adapter", skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<Adapter>,
    /// From which teacher; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distill: Option<Distill>,
    /// Tasks that share the model's trunk, each with a head of its own; empty: the model learns one thing.
    #[serde(rename = "task", skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<Task>,
    /// How preferences are learnt; absent: there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dpo: Option<Dpo>,
    /// With which weights removed; absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prune: Option<Prune>,
    /// In how much memory.
    pub memory: Memory,
    /// Where, and what is left behind.
    pub run: Run,
}

/// Which model is trained.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Model {
    /// A Hugging Face folder gives both shape and weights.
    Load {
        /// The folder, with `config.json` and `model.safetensors`.
        #[serde(rename = "load")]
        folder: PathBuf,
        /// Layers of it that are kept, counted from zero. Absent: all.
        #[serde(skip_serializing_if = "Option::is_none")]
        keep_layers: Option<Vec<usize>>,
        /// Absent: as the folder's `config.json` says.
        #[serde(skip_serializing_if = "Option::is_none")]
        dropout: Option<f64>,
        /// What stands on it. Absent: what the folder has there.
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        head: Option<Head>,
    },
    /// A new model of this shape. Its vocabulary comes from the tokenizer unless the shape has one.
    Build(Shape),
}

/// The shape of a new model. Not every family reads every field.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shape {
    /// The architecture, such as `gpt2`; the model floor knows which there are.
    pub family: String,
    /// Blocks, one after the other.
    pub layers: usize,
    /// Attention heads in each block; they divide the width unless `head_size` is there.
    pub heads: usize,
    /// Heads of the keys and values, a divisor of `heads`. Absent: as many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Channels of a head. Absent: `width / heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_size: Option<usize>,
    /// Channels of the residual stream.
    pub width: usize,
    /// Width inside the feed-forward part.
    pub hidden: usize,
    /// The longest sequence, in tokens.
    pub context: usize,
    /// Tokens of the embedding, at least the tokenizer's. Absent: exactly those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<usize>,
    /// The activation of the feed-forward part, such as `gelu`.
    pub activation: String,
    /// Added to the variance in every norm.
    pub norm_epsilon: f64,
    /// Base of the rotary positions. Absent: the family's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Keys that a query sees. Absent: all before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Share of activations zeroed while training, in `0.0..1.0`.
    pub dropout: f64,
    /// Linear layers and norms have biases.
    pub bias: bool,
    /// The output head shares the embedding's weights.
    pub tie: bool,
    /// What stands on an encoder. Absent: what guesses hidden tokens.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub head: Option<Head>,
}

impl Model {
    /// What is to stand on an encoder, where the recipe says so.
    pub fn head(&self) -> Option<&Head> {
        match self {
            Model::Load { head, .. } | Model::Build(Shape { head, .. }) => head.as_ref(),
        }
    }

    /// Says what is to stand on the model.
    pub(super) fn set_head(&mut self, new: Option<Head>) {
        match self {
            Model::Load { head, .. } | Model::Build(Shape { head, .. }) => *head = new,
        }
    }

    /// Says how many tokens a new model knows.
    pub(super) fn set_vocabulary(&mut self, count: usize) {
        if let Model::Build(shape) = self {
            shape.vocabulary = Some(count);
        }
    }

    /// The same, to be filled in.
    pub(super) fn head_mut(&mut self) -> Option<&mut Head> {
        match self {
            Model::Load { head, .. } | Model::Build(Shape { head, .. }) => head.as_mut(),
        }
    }
}

/// What the model is trained on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Data {
    /// Conversations; they take the place of text.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub chats: Option<Chats>,
    /// Files with a source and a target on each line, for encoder-decoders; they take the place of text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pairs: Vec<PathBuf>,
    /// Examples with labels; they take the place of text.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub examples: Option<Examples>,
    /// How an encoder-decoder learns from text. Absent: as its paper says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
    /// Files, folders, patterns and tables; empty means the built-in corpus.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub text: Vec<Source>,
    /// What stands behind each document. Absent: the end-of-text token or a line end, and between plain files a line end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separator: Option<Separator>,
    /// Whether rows that cannot be read are counted and passed over.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skip_bad: bool,
    /// Where tokens are kept, so that the next run need not make them.
    #[serde(skip_serializing_if = "Cache::is_usual")]
    pub cache: Cache,
    /// How text is streamed. Absent: it is read whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streaming: Option<Streaming>,
    /// How text becomes tokens.
    pub tokenizer: Tokenizer,
    /// What the model is measured on.
    pub validation: Validation,
    /// Offsets of every batch, for exact replay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<PathBuf>,
    /// How tokens are hidden from a model that guesses them. Absent: as in BERT, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masking: Option<Masking>,
}

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tokenizer {
    /// One token for each character of the training text: `"char"`.
    Char,
    /// A byte-level BPE trained on the text, with this vocabulary: `"bpe:4096"`.
    Bpe(usize),
    /// A Hugging Face `tokenizer.json`.
    File(PathBuf),
    /// The one beside the loaded weights: `"model"`.
    Model,
}

impl Tokenizer {
    /// True where it is made of the text, and not read.
    pub(super) fn is_made(&self) -> bool {
        matches!(self, Tokenizer::Char | Tokenizer::Bpe(_))
    }
}

impl Serialize for Tokenizer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Tokenizer::Char => serializer.serialize_str("char"),
            Tokenizer::Bpe(vocabulary) => serializer.serialize_str(&format!("bpe:{vocabulary}")),
            Tokenizer::File(path) => path.serialize(serializer),
            Tokenizer::Model => serializer.serialize_str("model"),
        }
    }
}

/// How the model is trained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Train {
    /// Updates of the weights.
    pub steps: u64,
    /// Sequences whose mean loss is differentiated.
    pub batch: usize,
    /// How many of them go through the model at once.
    #[serde(skip_serializing_if = "MicroBatch::is_whole")]
    pub micro_batch: MicroBatch,
    /// Tokens of one sequence. Absent: the loaded model's own context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<usize>,
    /// Tokens in what an encoder-decoder writes of a pair. Absent: as many as in what it reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<usize>,
    /// Batches whose gradients are averaged into one step.
    pub accumulate: usize,
    /// Share of the target spread over the whole vocabulary, in `0.0..1.0`.
    pub label_smoothing: f64,
    /// Where all randomness of the run comes from.
    pub seed: u64,
    /// What keeps a gradient from growing too large.
    pub clip: Clip,
    /// When the validation loss is measured.
    pub evaluate: Evaluate,
    /// How gradients become updates.
    pub optimizer: Optimizer,
    /// How large the updates are, step by step.
    pub learning_rate: Schedule,
}

/// How much of a batch goes through the model at once. The gradient is that of the whole batch in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MicroBatch {
    /// All of it.
    #[default]
    Whole,
    /// So many sequences, a divisor of the batch.
    Rows(usize),
    /// As many as fit into the device's memory, or into `memory.budget`: `"auto"`.
    Auto,
}

impl MicroBatch {
    fn is_whole(&self) -> bool {
        *self == MicroBatch::Whole
    }
}

impl Serialize for MicroBatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            MicroBatch::Rows(rows) => serializer.serialize_u64(*rows as u64),
            MicroBatch::Whole | MicroBatch::Auto => serializer.serialize_str("auto"),
        }
    }
}

impl Train {
    /// Sequences that go through the model at once; all where that is still to be found out.
    pub fn rows(&self) -> usize {
        match self.micro_batch {
            MicroBatch::Rows(rows) => rows,
            MicroBatch::Whole | MicroBatch::Auto => self.batch,
        }
    }

    /// Passes through the model in one step.
    pub fn passes(&self) -> usize {
        self.accumulate * (self.batch / self.rows())
    }
}

/// When the validation loss is measured, and on how much.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evaluate {
    /// Steps between evaluations.
    pub every: u64,
    /// Batches of each of the two splits.
    pub batches: usize,
}

/// Where the run happens and what it leaves behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// `gpu`, `cpu`, an adapter's name or its index.
    pub device: String,
    /// Recipe, metrics and checkpoints go here.
    pub folder: PathBuf,
    /// Whether one more step is timed operator by operator in the end.
    pub profile: bool,
    /// Whether a run whose device is lost opens it anew and goes on from its newest checkpoint.
    pub recover: bool,
    /// When checkpoints are written.
    pub save: Save,
    /// When metrics are written.
    pub log: Log,
}

/// When checkpoints are written, and how many stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Save {
    /// Steps between checkpoints.
    pub every: u64,
    /// How many of the newest stay; the best one stays besides.
    pub keep: usize,
}

/// When a step is written to `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Log {
    /// Steps between lines.
    pub every: u64,
}

impl Recipe {
    /// Reads TOML text, applies each `section.key=value`, and resolves. `file` is the name used in messages.
    pub fn from_text(text: &str, file: &str, sets: &[String]) -> Result<Recipe, Error> {
        let mut raw = RawRecipe::parse(text, file)?;
        sets.iter().try_for_each(|set| raw.set(set))?;
        raw.resolve()
    }

    /// The recipe as TOML text; reading it gives the same recipe.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe holds only what TOML can say")
    }

    /// Writes the recipe into a run folder, and gives its path.
    pub fn save(&self, run_folder: &Path) -> Result<PathBuf, Error> {
        let path = run_folder.join(FILE_NAME);
        let written = fs::create_dir_all(run_folder).and_then(|()| fs::write(&path, self.to_toml()));
        written.map_err(|source| Error::File { path: path.clone(), source })?;
        Ok(path)
    }
}
