//! Models built from operators: families, their parameters, initial weights, and Hugging Face folders.
//!
//! A [`Family`] is a configured architecture. It lists its parameters under the names of its Hugging Face checkpoints and
//! writes its forward pass into a graph; losses, gradients and optimisers are for others to add. Which family a folder holds
//! follows from `model_type` and `architectures` in its `config.json`.

mod activation;
mod archive;
mod bart;
mod bert;
mod config;
mod course;
mod depth;
mod error;
mod families;
mod gpt2;
mod gpt_neox;
mod head;
mod init;
mod inputs;
mod layers;
mod llama;
mod mlp;
mod quantized;
mod reading;
mod recurrent;
mod resize;
mod rope;
mod row_mlp;
mod score;
mod sides;
mod t5;
mod trunk;
mod weights;
mod whisper;

pub use activation::Activation;
pub use archive::{Archive, INDEX_FILE, WEIGHTS_FILE};
pub use bart::{Bart, Marks, Positions, Stack};
pub use bert::{Bert, Encoder, EncoderDropouts};
pub use config::{CONFIG_FILE, Config, shortest};
pub use depth::{depth_of, keep_layers};
pub use error::{Error, Result};
pub use families::{Design, Usual, build, family_names, from_config, open, usual};
pub use gpt_neox::GptNeoX;
pub use gpt2::{Dropouts, Gpt2};
pub use head::{Head, Renewed, class_names, problem_type, read_with_head, renewed, with_head};
pub use init::{Init, initial};
pub use inputs::{Inputs, Row};
pub use llama::{Dialect, Llama};
pub use mlp::Mlp;
pub use quantized::{Convention, Quantized, Stored, turn};
pub use reading::{FOLLOWS, Forward, Interface, Labels, Reading, Seats, Sound, Task};
pub use recurrent::{RecurrentModel, RecurrentStack, RecurrentTranslator, Run};
pub use resize::{Sizes, resized};
pub use rope::{Rope, Scaling};
pub use row_mlp::{Column, RowMlp, columns_of, label_column_of, with_columns};
pub use score::Score;
pub use t5::T5;
pub use trunk::{TASKS_FILE, TASKS_FOLDER, names_of_tasks, open_of_task, shared_name};
pub use weights::Weights;
pub use whisper::Whisper;

use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::cross_entropy::{CrossEntropy, CrossEntropyEmit};
use crate::tensor::{DType, Shape, Type};

/// Target of a position that costs nothing and is not counted, such as padding.
pub const IGNORED: i32 = -1;

/// One parameter of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Name as in the family's Hugging Face checkpoints.
    pub name: String,
    /// Sizes of the axes.
    pub shape: Shape,
    /// How its elements start.
    pub init: Init,
    /// Whether weight decay applies: to matrices and tables, not to biases and gains.
    pub decay: bool,
}

impl ParameterSpec {
    /// A parameter; weight decay applies from two axes on.
    pub fn new(name: impl Into<String>, shape: impl Into<Shape>, init: Init) -> Self {
        let shape = shape.into();
        ParameterSpec { name: name.into(), decay: shape.len() >= 2, shape, init }
    }
}

/// Elements in all parameters.
pub fn count_elements(parameters: &[ParameterSpec]) -> usize {
    parameters.iter().map(|spec| spec.shape.count()).sum()
}

/// Size of the batch a graph is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Sequences, B.
    pub batch: usize,
    /// Tokens in each, T.
    pub context: usize,
}

impl Extent {
    /// Positions in all sequences, N = B T.
    pub fn positions(self) -> usize {
        self.batch * self.context
    }
}

/// What a forward pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// To be differentiated: dropout is on, and embeddings need their positions sorted by token.
    Train,
    /// To be evaluated: no dropout, tokens are the only input.
    Evaluate,
    /// To be continued: the tokens stand behind those whose keys and values caches hold, and theirs are written there.
    Continue {
        /// Tokens for which each cache has room.
        capacity: usize,
    },
}

/// A configured language model.
pub trait Family: std::fmt::Debug + Send + Sync {
    /// Name, as `model_type` in `config.json`.
    fn name(&self) -> &'static str;

    /// Tokens it knows, V.
    fn vocabulary(&self) -> usize;

    /// Most tokens in one sequence.
    fn context(&self) -> usize;

    /// Most tokens of what an encoder reads; none where its positions have no end.
    fn longest_source(&self) -> Option<usize> {
        Some(self.context())
    }

    /// Its parameters, each once even if used twice.
    fn parameters(&self) -> Vec<ParameterSpec>;

    /// What it gives and what it reads beside tokens.
    fn interface(&self) -> Interface {
        Interface::of(Task::NextToken)
    }

    /// Writes the forward pass into a graph. It declares the parameters and these inputs:
    ///
    /// - `tokens` U32 [B, T]; of a model of rows `features` F32 [B, columns] alone, and `rng` as below;
    /// - of a padded reading `mask` U32 [B, T], zero where there is no text, and where positions are counted over the text
    ///   `places` U32 [B, T], the position of each token;
    /// - of a packed reading `segments` and `places` U32 [B, T]: the number of each token's text, and its position there;
    /// - of a reading with kinds `kinds` U32 [B, T];
    /// - of a model with a second sequence `target_tokens` U32 [B, S], and of a padded reading `target_mask` U32 [B, S];
    /// - of a reading that is heard `features` F32 `[B, bands, frames]` in the place of tokens, with two frames for each position of the reading;
    /// - of a decoder that judges whole texts `lasts` U32 `[B]`, the row of [N, C] of each text's last token;
    /// - in [`Mode::Train`] for `tokens` `order: U32 [N]` and `starts: U32 [V + 1]`, the positions sorted by token as
    ///   [`sort_positions`](crate::ops::embedding::sort_positions) gives them, and the same as `places.order`, `places.starts` and
    ///   so on for every other input by which rows of a table are looked up;
    /// - in [`Mode::Train`], if any dropout is set, `rng: U32 [2]`: key of the run and counter of the micro-step;
    /// - in [`Mode::Continue`] `position: U32 [1]` of the first token, `positions: U32 [B, T]` of each, and where T is not one
    ///   `scored: U32 [B]`, the rows of [N, C] of which scores are wanted. There it declares caches as states, F32
    ///   [B, capacity, heads, D]: rows before `position` are read, T rows from there on are written. Of an encoder-decoder all this
    ///   concerns the second sequence; of the first one `mask` alone is an input, and the rest is what [`Family::remember`] left. A recurrent
    ///   model keeps states F32 [B, S] in place of caches, counts them as zero at position 0, and reads where T is not one `live:
    ///   U32 [B]`, how many of the tokens are no filling.
    /// - of a reading with [`Seats`] `position: U32 [B, 2]`, of each sequence the position of its first token and the number of its cache,
    ///   and `scored` has as many rows of each as that says. Recurrent models do not have it.
    fn read(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward>;

    /// The same for whole sequences of one kind.
    fn forward(&self, graph: &mut Graph, extent: Extent, mode: Mode) -> Result<Forward> {
        self.read(graph, &Reading::new(extent, mode))
    }

    /// Writes the pass over the first sequence of an encoder-decoder alone, with the inputs `tokens` and, of a padded reading, `mask`.
    /// Gives the keys and values that the second sequence attends to, F32 [B, T, heads, D], under the names of the states where
    /// [`Family::read`] looks for them in [`Mode::Continue`].
    fn remember(&self, _graph: &mut Graph, _reading: &Reading) -> Result<Vec<(String, Value)>> {
        let expected = Task::SecondText.describe().into();
        Err(Error::Task { expected, got: self.interface().task.describe() })
    }

    /// The parameter that a tensor of a checkpoint is, by the checkpoint's name for it; `None` for what is left out, such
    /// as masks and the second copy of a tied weight.
    fn canonical_name(&self, stored: &str) -> Option<String>;

    /// True for a parameter of what stands on an encoder, which may begin anew where another head stood there.
    fn is_of_head(&self, _parameter: &str) -> bool {
        false
    }

    /// What stands for a parameter that a checkpoint does not have; none where it must be there.
    fn absent(&self, _parameter: &str) -> Option<Init> {
        None
    }

    /// Leaves out parts that no tensor of a checkpoint belongs to, where the model is whole without them.
    fn fit(&mut self, _stored: &[&str]) {}

    /// The name that transformers 5 has for a parameter in memory, where that is not the one in files.
    fn name_in_memory(&self, parameter: &str) -> String {
        parameter.to_string()
    }

    /// The keys of its `config.json`.
    fn config(&self) -> serde_json::Map<String, serde_json::Value>;

    /// Sets every dropout to this share.
    fn set_dropout(&mut self, share: f32);

    /// One line on its sizes.
    fn describe(&self) -> String;
}

/// Adds the mean cross-entropy of `logits: [N, V]` over the positions that count, with a further input `targets: I32 [N]`.
///
/// `smoothing` is the share of each target spread evenly over the vocabulary.
pub fn loss(graph: &mut Graph, logits: Value, smoothing: f32) -> Result<Value> {
    let positions = graph.kind(logits).shape.rows();
    let targets = graph.input("targets", Type::new(DType::I32, [positions]));
    let settings =
        CrossEntropy { ignore_index: IGNORED, label_smoothing: smoothing, ..CrossEntropy::default() };
    layers::located(graph, "loss", |graph| graph.cross_entropy(logits, targets, settings))
}
