//! What a forward pass is written for, and what a model is for.

use super::{Error, Extent, IGNORED, Mode, Result};
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::cross_entropy::{CrossEntropy, CrossEntropyEmit};
use crate::ops::losses::{LossEmit, Reduction};
use crate::ops::pointwise::PointwiseEmit;
use crate::tensor::{DType, Type};

/// Input that tells whether the second part of each sequence follows the first: zero if so, one if not.
pub const FOLLOWS: &str = "follows";

/// What a forward pass reads: sizes of the batch, and which inputs there are beside the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reading {
    /// Sequences, and tokens in each.
    pub extent: Extent,
    /// What the pass is for.
    pub mode: Mode,
    /// Short sequences are filled up, before or behind, and the input `mask` tells where.
    pub padded: bool,
    /// Several texts stand side by side in a sequence: the inputs `segments` and `places` tell which a token belongs to, counted from
    /// one, and how many of that text are before it. Segment zero is no text.
    pub packed: bool,
    /// The input `kinds` tells tokens of one part of a sequence from those of another; without it all are of the first kind.
    pub kinds: bool,
    /// A sound is heard in the place of a first sequence of tokens.
    pub heard: bool,
    /// Tokens in each second sequence, of models that predict one from another.
    pub target: usize,
    /// Each sequence stands at a position of its own in a cache that it names; in [`Mode::Continue`].
    pub seats: Option<Seats>,
}

/// A pass over some of the texts that caches hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seats {
    /// Caches there are.
    pub caches: usize,
    /// Tokens of each sequence of which scores are wanted.
    pub scored: usize,
}

impl Reading {
    /// Whole sequences of one kind.
    pub fn new(extent: Extent, mode: Mode) -> Reading {
        Reading {
            extent,
            mode,
            padded: false,
            packed: false,
            kinds: false,
            heard: false,
            target: extent.context,
            seats: None,
        }
    }

    /// Refuses texts side by side, and more tokens than a model has positions for.
    pub(super) fn check(&self, limit: usize) -> Result<()> {
        if self.packed {
            let expected = "one that keeps texts apart which share a sequence".to_string();
            return Err(Error::Task { expected, got: "one that reads one text in each" });
        }
        self.check_length(limit)
    }

    /// Refuses more tokens than a model has positions for, and texts side by side behind a cache.
    pub(super) fn check_length(&self, limit: usize) -> Result<()> {
        if self.packed && matches!(self.mode, Mode::Continue { .. }) {
            let expected = "a pass over whole texts".to_string();
            return Err(Error::Task { expected, got: "one that goes on with what caches hold" });
        }
        match self.extent.context {
            got if got > limit => Err(Error::Context { limit, got }),
            _ => Ok(()),
        }
    }
}

/// What the labels of classes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Labels {
    /// The number of the one class that is right: cross-entropy.
    One,
    /// For each class whether it is right: binary cross-entropy.
    Any,
    /// Numbers to come near to: squared error.
    Numbers,
}

/// What a model gives, and what its loss is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// At each position scores of the next token.
    NextToken,
    /// At each position scores of the token that stands there, hidden from the model where it counts.
    HiddenToken,
    /// Scores of the next token of a second sequence.
    SecondText,
    /// Scores of the next token of what is said in a sound.
    Transcript,
    /// For each sequence scores of so many classes.
    SequenceClass {
        /// Classes, K.
        classes: usize,
        /// What labels mean.
        labels: Labels,
    },
    /// For each sequence scores of whether its second part follows the first, and of whether it does not.
    NextSentence,
    /// At each position scores of the token that stands there and, beside them, those of [`Task::NextSentence`].
    Pretraining,
    /// For each token scores of so many classes.
    TokenClass {
        /// Classes, K.
        classes: usize,
    },
    /// The residual stream itself: there are no scores and no loss.
    States,
}

impl Task {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Task::NextToken => "a causal language model",
            Task::HiddenToken => "a masked language model",
            Task::SecondText => "an encoder-decoder",
            Task::Transcript => "a model that hears and writes",
            Task::SequenceClass { .. } => "a classifier of sequences",
            Task::NextSentence => "a model that tells whether one text follows another",
            Task::Pretraining => "a masked language model that tells whether one text follows another",
            Task::TokenClass { .. } => "a classifier of tokens",
            Task::States => "an encoder without a head",
        }
    }

    /// Adds the mean loss of `logits`, with a further input `targets`: I32, one for each row, of which
    /// [`IGNORED`](super::IGNORED) does not count; F32 in the shape of the logits where labels are no class numbers.
    pub fn loss(self, graph: &mut Graph, logits: Value, smoothing: f32) -> Result<Value> {
        match self {
            Task::States => {
                let expected = "a model with a head, by whose loss it can be measured".to_string();
                Err(Error::Task { expected, got: self.describe() })
            }
            Task::SequenceClass { labels: labels @ (Labels::Any | Labels::Numbers), .. } => {
                let targets = graph.input("targets", Type::f32(graph.kind(logits).shape.clone()));
                super::layers::located(graph, "loss", |graph| match labels {
                    Labels::Any => graph.binary_cross_entropy(logits, targets, None, Reduction::Mean),
                    _ => graph.squared_error(logits, targets, Reduction::Mean),
                })
            }
            _ => super::loss(graph, logits, smoothing),
        }
    }
}

/// What is to be known of a model by those who feed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// What it gives.
    pub task: Task,
    /// Kinds of token that it tells apart; one where it does not.
    pub kinds: usize,
    /// The token that fills up short sequences, whose row of the embedding is not trained.
    pub silent: Option<u32>,
    /// The same where positions are counted from behind its number over all other tokens.
    pub counted_from: Option<u32>,
    /// The token that is passed over where the last one of a text is sought, which is judged.
    pub padding: Option<u32>,
    /// It hears a sound in the place of a first sequence.
    pub sound: Option<Sound>,
    /// It keeps texts apart that stand side by side in a sequence.
    pub packs: bool,
    /// The token before the first one of a second sequence, and the one that fills it up.
    pub start: Option<[u32; 2]>,
    /// What it has read of a text stands in a sum from which no token can be taken back: a state, and not caches.
    pub sums_up: bool,
    /// Numbers in a row of a table, which it reads in the place of tokens; zero where it reads tokens.
    pub columns: usize,
}

impl Interface {
    /// Refuses a model that does not continue texts.
    pub fn expect_causal(&self) -> Result<()> {
        match self.task {
            Task::NextToken => Ok(()),
            other => Err(Error::Task { expected: Task::NextToken.describe().into(), got: other.describe() }),
        }
    }

    /// A model that reads tokens alone.
    pub const fn of(task: Task) -> Interface {
        Interface {
            task,
            kinds: 1,
            silent: None,
            counted_from: None,
            padding: None,
            sound: None,
            packs: false,
            start: None,
            sums_up: false,
            columns: 0,
        }
    }
}

/// What a model hears: bands of a spectrogram, and so many frames of them, no more and no fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sound {
    /// Bands.
    pub bands: usize,
    /// Frames.
    pub frames: usize,
    /// The token before the first one that is written, and the one that fills up what is written.
    pub start: [u32; 2],
}

impl Sound {
    /// Positions that its frames become.
    pub fn positions(&self) -> usize {
        self.frames / super::whisper::FRAMES
    }
}

/// What a forward pass gives.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Scores: of tokens at each position, [N, V], in [`Mode::Continue`] at the scored positions, [B, V]; of classes, [B, K] or
    /// [N, K]. Of a model without a head the last of `hidden`.
    pub logits: Value,
    /// The residual stream [N, C]: after the embedding, after each block but the last, and at the end. Of an encoder-decoder
    /// that of the decoder.
    pub hidden: Vec<Value>,
    /// The same of the encoder of an encoder-decoder.
    pub encoded: Vec<Value>,
    /// One vector for each sequence, [B, C], where the model makes one beside its scores.
    pub pooled: Option<Value>,
    /// Of [`Task::Pretraining`] the scores of pairs, [B, 2].
    pub follows: Option<Value>,
}

impl Forward {
    /// Of a model with one stream.
    pub fn new(logits: Value, hidden: Vec<Value>) -> Forward {
        Forward { logits, hidden, encoded: vec![], pooled: None, follows: None }
    }

    /// Adds the mean loss of a model's task, as [`Task::loss`] has it. Where pairs are scored beside tokens the sum of both means, with a
    /// further input [`FOLLOWS`] I32 \[B\].
    pub fn loss(&self, graph: &mut Graph, task: Task, smoothing: f32) -> Result<Value> {
        let loss = task.loss(graph, self.logits, smoothing)?;
        let Some(follows) = self.follows else { return Ok(loss) };
        let rows = graph.kind(follows).shape[0];
        let targets = graph.input(FOLLOWS, Type::new(DType::I32, [rows]));
        let settings = CrossEntropy { ignore_index: IGNORED, ..CrossEntropy::default() };
        super::layers::located(graph, "loss", |graph| {
            let pairs = graph.cross_entropy(follows, targets, settings)?;
            graph.add(loss, pairs)
        })
    }

    /// All of it under the names that transformers has, each with the shape that it has there.
    pub fn named(&self, graph: &Graph, task: Task, reading: &Reading) -> Vec<(String, Value, Vec<usize>)> {
        let Extent { batch, context } = reading.extent;
        let beside = matches!(task, Task::SecondText | Task::Transcript);
        let own = if beside { reading.target } else { context };
        let width = |value: Value| graph.kind(value).shape.last();
        let spread = |value: Value, times: usize| vec![batch, times, width(value)];
        let mut all = vec![];
        match task {
            Task::States => all.push(("last_hidden_state".into(), self.logits, spread(self.logits, own))),
            Task::SequenceClass { .. } | Task::NextSentence => {
                all.push(("logits".into(), self.logits, vec![batch, width(self.logits)]));
            }
            Task::Pretraining => {
                all.push(("prediction_logits".into(), self.logits, spread(self.logits, own)));
                let follows =
                    self.follows.map(|value| ("seq_relationship_logits".into(), value, vec![batch, 2]));
                all.extend(follows);
            }
            _ => all.push(("logits".into(), self.logits, spread(self.logits, own))),
        }
        if let Some(pooled) = self.pooled {
            all.push(("pooler_output".into(), pooled, vec![batch, width(pooled)]));
        }
        let prefix = if beside { "decoder_" } else { "" };
        for (number, &value) in self.hidden.iter().enumerate() {
            all.push((format!("{prefix}hidden_states.{number}"), value, spread(value, own)));
        }
        for (number, &value) in self.encoded.iter().enumerate() {
            all.push((format!("encoder_hidden_states.{number}"), value, spread(value, context)));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use crate::formats::Raw;
    use crate::graph::{Graph, evaluate};
    use crate::model::{
        Activation, Design, Error, Extent, Family, Inputs, Mode, Reading, Weights, build, initial,
    };
    use crate::tensor::{DType, Tensor};
    use std::collections::BTreeMap;

    fn model(family: &str) -> Box<dyn Family> {
        let llama = !["gpt2", "gpt_neox"].contains(&family);
        let design = Design {
            layers: 2,
            heads: 2,
            kv_heads: None,
            head_size: None,
            width: 16,
            hidden: Some(24),
            context: 8,
            vocabulary: 11,
            activation: Activation::Silu,
            norm_epsilon: 1e-5,
            dropout: 0.0,
            bias: !llama,
            tie: true,
            rope_theta: None,
            window: (family == "mistral").then_some(2),
        };
        build(family, &design).unwrap()
    }

    /// Weights beside which attention matters: a deviation of 0.02 would hide what it does.
    fn awake(family: &dyn Family) -> Weights {
        let mut weights = initial(&family.parameters(), 5);
        for spec in family.parameters().iter().filter(|spec| spec.shape.len() == 2) {
            let mut weight = weights.get(&spec.name).unwrap().clone();
            weight.real_mut::<f32>().iter_mut().for_each(|x| *x *= 15.0);
            weights.set(spec.name.clone(), weight);
        }
        weights
    }

    /// Logits at each token of a text, with so many tokens of padding before and behind it.
    fn logits(family: &dyn Family, text: &[i64], [before, behind]: [usize; 2]) -> Vec<f32> {
        let all = before + text.len() + behind;
        let (mut ids, mut mask) = (vec![9; all], vec![0; all]);
        ids[before..before + text.len()].copy_from_slice(text);
        mask[before..before + text.len()].fill(1);
        let given = [("input_ids", ids), ("attention_mask", mask)];
        let given: BTreeMap<_, _> =
            given.map(|(name, all)| (name.to_string(), Raw::i64([1, all.len()], &all))).into();
        let inputs = Inputs::new(&given, family).unwrap();
        let reading = inputs.reading(Mode::Evaluate);
        assert_eq!(reading.padded, before + behind > 0);
        let mut graph = Graph::new();
        let forward = family.read(&mut graph, &reading).unwrap();
        graph.output("logits", forward.logits);
        let weights = awake(family);
        let feeds = inputs.feeds(&graph).unwrap();
        let feeds = graph
            .inputs()
            .fold(weights.feeds(), |all, (name, _)| all.with(name, feeds.get(name).unwrap().clone()));
        let logits = evaluate(&graph, &feeds, DType::F32).unwrap().remove("logits").unwrap();
        logits.real::<f32>()[before * 11..(before + text.len()) * 11].to_vec()
    }

    #[test]
    fn padding_changes_nothing_of_a_text_behind_it_or_before_it_where_positions_are_relative() {
        for name in ["gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3"] {
            let family = model(name);
            let alone = logits(family.as_ref(), &[3, 1, 4, 1, 5], [0, 0]);
            let sides = if name == "gpt2" { vec![[0, 3]] } else { vec![[0, 3], [3, 0], [1, 2]] };
            for sides in sides {
                let padded = logits(family.as_ref(), &[3, 1, 4, 1, 5], sides);
                let apart = alone.iter().zip(&padded).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
                assert!(apart < 1e-4, "{name}: off by {apart} beside {sides:?}");
            }
            let other = logits(family.as_ref(), &[3, 1, 4, 2, 5], [0, 0]);
            assert!(alone.iter().zip(&other).any(|(a, b)| (a - b).abs() > 0.1), "{name} is hardly alive");
        }
    }

    #[test]
    fn texts_side_by_side_have_the_logits_that_each_has_alone() {
        let texts: [&[u32]; 3] = [&[3, 1, 4], &[1, 5, 9], &[2]];
        let extent = Extent { batch: 1, context: 8 };
        for name in ["gpt2", "gpt_neox", "llama", "mistral", "qwen3"] {
            let family = model(name);
            assert!(family.interface().packs);
            let reading = Reading { packed: true, ..Reading::new(extent, Mode::Evaluate) };
            let mut graph = Graph::new();
            let forward = family.read(&mut graph, &reading).unwrap();
            graph.output("logits", forward.logits);
            let filled = |numbers: Vec<u32>| {
                let rest = vec![0; 8 - numbers.len()];
                Tensor::u32([1, 8], [numbers, rest].concat())
            };
            let segments = texts.iter().zip(1..).flat_map(|(text, number)| vec![number; text.len()]);
            let places = texts.iter().flat_map(|text| 0..text.len() as u32);
            let feeds = awake(family.as_ref())
                .feeds()
                .with("tokens", filled(texts.concat()))
                .with("segments", filled(segments.collect()))
                .with("places", filled(places.collect()));
            let packed = evaluate(&graph, &feeds, DType::F32).unwrap().remove("logits").unwrap();
            let alone: Vec<f32> = texts
                .iter()
                .flat_map(|text| {
                    let text: Vec<i64> = text.iter().map(|&token| i64::from(token)).collect();
                    logits(family.as_ref(), &text, [0, 0])
                })
                .collect();
            let apart =
                alone.iter().zip(packed.real::<f32>()).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(apart < 1e-4, "{name}: off by {apart}");
            // Behind caches there is one text in each sequence.
            let reading = Reading { mode: Mode::Continue { capacity: 8 }, ..reading };
            assert!(matches!(family.read(&mut Graph::new(), &reading), Err(Error::Task { .. })), "{name}");
        }
    }
}
