//! What an encoder-decoder is trained on: pairs of texts, or text that was damaged and what it was before.
//!
//! Batches come as for any model, as windows of the text. Here each window becomes a source and a target. Of pairs the "text" is the
//! list of their numbers, and a window one of them.

use super::recipe::{Objective, Recipe};
use super::{Error, Result};
use crate::data::damage::{Infilling, Spans};
use crate::data::groups::sorted_positions;
use crate::data::masking::mask_of;
use crate::data::pairs::{self, Example, Marks, Pair, PairBatch};
use crate::data::random::{Random, mix};
use crate::data::store::{Part, Store};
use crate::data::tokenizer::Tokenizer;
use crate::data::windows::Batch;
use crate::graph::{Feeds, Graph};
use crate::model::{self, Extent, Family, Mode, Reading, Task};
use crate::ops::Value;
use crate::tensor::Tensor;
use std::path::PathBuf;

/// Tokens that stand for spans in a new model.
const SENTINELS: usize = 32;

/// How a recipe trains an encoder-decoder: `None` for pairs of texts. Where the recipe does not say, as the family's paper does.
pub fn objective_of(recipe: &Recipe, family: &dyn Family) -> Option<Objective> {
    match (&recipe.data.objective, family.name()) {
        _ if !recipe.data.pairs.is_empty() => None,
        (Some(objective), _) => Some(objective.clone()),
        (None, "bart") => Some(Objective::INFILLING),
        (None, _) => Some(Objective::SPANS),
    }
}

/// Tokens beyond those of the tokenizer that a new model needs: start and padding in one, the end, and what stands for spans.
pub fn tokens_beside(objective: Option<&Objective>) -> usize {
    match objective {
        None => 2,
        Some(Objective::Infilling { .. }) => 3,
        Some(Objective::Spans { .. }) => 2 + SENTINELS,
        Some(Objective::NextSentence { .. } | Objective::SentenceOrder { .. }) => 0,
    }
}

/// Tokens in a row of what is written, for sources of `source` tokens.
fn target_length(recipe: &Recipe, objective: Option<&Objective>, source: usize) -> usize {
    match objective {
        None => recipe.train.target.unwrap_or(source),
        Some(
            Objective::Infilling { .. } | Objective::NextSentence { .. } | Objective::SentenceOrder { .. },
        ) => source,
        Some(&Objective::Spans { share, mean }) => {
            let spans = Spans { share, mean, first_sentinel: 0, sentinels: usize::MAX };
            let [_, target] = spans.lengths(window_of(&spans, source));
            target + 1
        }
    }
}

/// What a pass of a recipe's model reads.
pub fn reading_of(recipe: &Recipe, family: &dyn Family, extent: Extent, mode: Mode) -> Reading {
    let whole = Reading::new(extent, mode);
    if family.interface().task != Task::SecondText {
        return whole;
    }
    let target = target_length(recipe, objective_of(recipe, family).as_ref(), extent.context);
    Reading { padded: true, target, ..whole }
}

/// The mean cross-entropy of what is to be written, in nats, with `targets: I32 [B T]`.
pub fn loss(family: &dyn Family, graph: &mut Graph, reading: &Reading, smoothing: f32) -> Result<Value> {
    let forward = family.read(graph, reading)?;
    // Smoothing is a way to learn, not to measure.
    let smoothing = if reading.mode == Mode::Train { smoothing } else { 0.0 };
    Ok(model::loss(graph, forward.logits, smoothing)?)
}

/// What makes sources and targets, where the model is an encoder-decoder; `examples` are those of a recipe with pairs. Refuses keys
/// of a recipe that such models alone have.
pub fn second_of(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    family: &dyn Family,
    examples: Vec<Example>,
) -> Result<Option<Second>> {
    if family.interface().task == Task::SecondText {
        return Second::new(recipe, family, tokenizer, examples).map(Some);
    }
    let given = [
        ("data.pairs", !recipe.data.pairs.is_empty()),
        ("data.objective", recipe.data.objective.is_some()),
        ("train.target", recipe.train.target.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((key, _)) => {
            let problem = format!("{key} is for encoder-decoders, {} is none", family.name());
            Err(Error::Mismatch { folder: "recipe".into(), problem })
        }
        None => Ok(None),
    }
}

/// Makes sources and targets of batches.
#[derive(Clone, Debug)]
pub struct Second {
    way: Way,
    /// Tokens in a row of the source and of the target.
    lengths: [usize; 2],
    marks: Marks,
    vocabulary: usize,
}

#[derive(Clone, Debug)]
enum Way {
    Pairs(Vec<Example>),
    Spans(Spans),
    Infilling(Infilling),
}

impl Second {
    fn new(
        recipe: &Recipe,
        family: &dyn Family,
        tokenizer: &Tokenizer,
        examples: Vec<Example>,
    ) -> Result<Second> {
        let vocabulary = family.vocabulary();
        let marks = marks_of(family, tokenizer)?;
        let objective = objective_of(recipe, family);
        let source = recipe.train.context.unwrap_or(family.context());
        let lengths = [source, target_length(recipe, objective.as_ref(), source)];
        let way = match objective {
            None => Way::Pairs(examples),
            Some(Objective::Spans { share, mean }) => {
                let (first_sentinel, sentinels) = sentinels_of(tokenizer, vocabulary)?;
                Way::Spans(Spans { share, mean, first_sentinel, sentinels })
            }
            Some(Objective::Infilling { share, mean, shuffle }) => {
                let mask = mask_of(tokenizer).or(beyond(tokenizer, vocabulary, 3));
                let mask = mask.ok_or_else(|| lacks("a mask such as <mask>", "infilling"))?;
                Way::Infilling(Infilling { share, mean, mask, shuffle, ends: ends_of(tokenizer) })
            }
            Some(Objective::NextSentence { .. } | Objective::SentenceOrder { .. }) => {
                let problem =
                    format!("this data.objective is for bert, {} is an encoder-decoder", family.name());
                return Err(Error::Mismatch { folder: "recipe".into(), problem });
            }
        };
        Ok(Second { way, lengths, marks, vocabulary })
    }

    /// Tokens in a window of the text.
    pub fn window(&self) -> usize {
        match &self.way {
            Way::Pairs(_) => 1,
            Way::Spans(spans) => window_of(&Spans { sentinels: usize::MAX, ..*spans }, self.lengths[0]),
            // One place is for the mark at the end.
            Way::Infilling(_) => self.lengths[0].saturating_sub(1).max(1),
        }
    }

    /// Numbers that a window may hold: those of tokens, or of pairs.
    pub fn numbers(&self) -> usize {
        match &self.way {
            Way::Pairs(examples) => examples.len() + 1,
            _ => self.vocabulary,
        }
    }

    /// Sources and targets of the windows of a batch. The key alone decides on how they are damaged.
    pub fn batch(&self, batch: &Batch, key: [u64; 2]) -> PairBatch {
        let rows = batch.tokens.chunks(batch.context).enumerate();
        let random = |row: usize| Random::new(mix(key[0]) ^ key[1], row as u64);
        let example = |(row, tokens): (usize, &[u32])| match &self.way {
            Way::Pairs(examples) => examples[tokens[0] as usize].clone(),
            Way::Spans(spans) => spans.damage(tokens, &mut random(row)),
            Way::Infilling(infilling) => infilling.damage(tokens, &mut random(row)),
        };
        let examples: Vec<Example> = rows.map(example).collect();
        PairBatch::of(&examples, self.lengths, self.marks)
    }

    /// What a step reads of them, over so many rows; those that are missing are empty, and do not count.
    pub fn feeds(&self, batch: &PairBatch, rows: usize) -> Feeds {
        let [source, target] = self.lengths;
        let filled = |all: &[u32], with: u32, length: usize| {
            let mut all = all.to_vec();
            all.resize(rows * length, with);
            all
        };
        let padding = self.marks.padding;
        let tokens = filled(&batch.tokens, padding, source);
        let target_tokens = filled(&batch.target_tokens, padding, target);
        let mut targets = batch.targets.clone();
        targets.resize(rows * target, crate::data::windows::IGNORED);
        let mut feeds = Feeds::new()
            .with("mask", Tensor::u32([rows, source], filled(&batch.mask, 1, source)))
            .with("target_mask", Tensor::u32([rows, target], vec![1; rows * target]))
            .with("targets", Tensor::i32([rows * target], targets));
        for (name, prefix, all, length) in
            [("tokens", "", tokens, source), ("target_tokens", "target_tokens.", target_tokens, target)]
        {
            let groups = sorted_positions(&all, self.vocabulary);
            feeds.set(format!("{prefix}order"), Tensor::u32([all.len()], groups.order));
            feeds.set(format!("{prefix}starts"), Tensor::u32([self.vocabulary + 1], groups.starts));
            feeds.set(name, Tensor::u32([rows, length], all));
        }
        feeds
    }
}

/// The pairs of files as tokens, and the last `validation` share of them apart: as parts whose "tokens" are the pairs' numbers.
pub fn store_of(pairs: &[Pair], tokenizer: &Tokenizer, validation: f64) -> Result<(Store, Vec<Example>)> {
    let example = |pair: &Pair| -> Result<Example> {
        let encode = |text| tokenizer.encode_with_special(text);
        Ok(Example { source: encode(&pair.source)?, target: encode(&pair.target)? })
    };
    let examples = pairs.iter().map(example).collect::<Result<Vec<_>>>()?;
    let first = ((pairs.len() as f64 * (1.0 - validation)).round() as usize).min(pairs.len());
    let part = |range: std::ops::Range<usize>| {
        let texts = pairs[range.clone()].iter().map(|pair| &pair.target);
        let (characters, bytes) =
            texts.fold((0, 0), |(c, b), text| (c + text.chars().count(), b + text.len()));
        // Windows end before the last number, as there must be a next one.
        let numbers = if range.is_empty() { range } else { range.start..range.end + 1 };
        let tokens: Vec<u32> = numbers.map(|number| number as u32).collect();
        Part { tokens: tokens.into(), characters, bytes }
    };
    let (training, validation) = (part(0..first), part(first..pairs.len()));
    Ok((Store { training, validation, stretches: vec![] }, examples))
}

/// The pairs of files, one after the other.
pub fn read_pairs(paths: &[PathBuf]) -> Result<Vec<Pair>> {
    let all = paths.iter().map(|path| pairs::read(path)).collect::<crate::data::Result<Vec<_>>>()?;
    Ok(all.concat())
}

/// Tokens of a text of which the damaged source fills `source` places, the mark at the end among them.
fn window_of(spans: &Spans, source: usize) -> usize {
    let fits = |window: &usize| spans.lengths(*window)[0] < source;
    (2..).take_while(fits).last().unwrap_or(2)
}

/// Start, end and padding: as the model's configuration says, or as the tokenizer calls the end.
fn marks_of(family: &dyn Family, tokenizer: &Tokenizer) -> Result<Marks> {
    let [start, padding] = family.interface().start.ok_or_else(|| {
        let problem = format!("{} is no encoder-decoder", family.name());
        Error::Mismatch { folder: "model".into(), problem }
    })?;
    let said = family.config().get("eos_token_id").and_then(|id| id.as_u64());
    let named = || tokenizer.token_id("</s>");
    let end = said.and_then(|id| u32::try_from(id).ok()).or_else(named);
    let end = end.filter(|&id| (id as usize) < family.vocabulary());
    Ok(Marks { start, padding, end: end.ok_or_else(|| lacks("an end of texts", "config.json"))? })
}

/// The token `back` places before the end of a vocabulary, if it is beyond the tokenizer.
fn beyond(tokenizer: &Tokenizer, vocabulary: usize, back: usize) -> Option<u32> {
    let id = vocabulary.checked_sub(back)?;
    (id >= tokenizer.vocabulary_size()).then_some(id as u32)
}

/// The token for the first span and how many there are downwards from it: `<extra_id_0>` of the tokenizer, or those beyond it.
fn sentinels_of(tokenizer: &Tokenizer, vocabulary: usize) -> Result<(u32, usize)> {
    if let Some(first) = tokenizer.token_id("<extra_id_0>") {
        let named = |number: &u32| {
            let id = tokenizer.token_id(&format!("<extra_id_{number}>"));
            id.is_some() && id == first.checked_sub(*number)
        };
        return Ok((first, (0..).take_while(named).count()));
    }
    let first = beyond(tokenizer, vocabulary, 3);
    let first = first.ok_or_else(|| lacks("tokens such as <extra_id_0>", "spans"))?;
    Ok((first, vocabulary - 2 - tokenizer.vocabulary_size()))
}

/// For each token, whether a sentence ends with it.
fn ends_of(tokenizer: &Tokenizer) -> Vec<bool> {
    let ends = |id: u32| {
        let text = tokenizer.decode(&[id]).unwrap_or_default();
        text.trim_end_matches([' ', '"', '\'']).ends_with(['.', '!', '?', '\n'])
    };
    (0..tokenizer.vocabulary_size() as u32).map(ends).collect()
}

fn lacks(what: &str, needed: &str) -> Error {
    let problem = format!("neither tokenizer nor model has {what}, which {needed} must give");
    Error::Mismatch { folder: "model".into(), problem }
}
