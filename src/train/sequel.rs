//! Learning whether one stretch of a text follows another, beside guessing hidden tokens: what BERT and ALBERT are made with.
//!
//! Batches come as for any model, as windows of tokens. Here the "text" is the list of the chunks' numbers, and a window one of them;
//! which pair a step makes of a chunk, and which of its tokens are hidden, follows from the seed, the step and the row.

use super::job::{self, Job};
use super::lesson::{self, Classes, Scores, Tally, reading_of};
use super::recipe::{Model, Objective, Recipe};
use super::texts::Texts;
use super::trainer::Trainer;
use super::{Beside, Error, Result};
use crate::data::masking::{Hider, mask_of};
use crate::data::random::{Random, mix};
use crate::data::sequel::{Chunk, Following, Parts, Sentences, chunks, sentences};
use crate::data::tokenizer::Tokenizer;
use crate::data::windows::{Batch, IGNORED};
use crate::graph::{Feeds, Graph};
use crate::model::{self, Config, Extent, Family, Inputs, Labels, Mode, Row, Task};
use crate::ops::Value;
use crate::tensor::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// By which documents are cut into chunks: the same in every run, whatever its seed.
const CUT: u64 = 0x6375_7400;

/// By which pairs are made in evaluation.
const EVALUATION: u64 = 0x6576_616C;

/// Tokens that stand around both parts.
const AROUND: usize = 3;

/// Result of the graph that measures.
const RESULT: &str = "result";

/// What a recipe learns of pairs of stretches, if it does, and the share of short ones.
pub fn following_of(recipe: &Recipe) -> Option<(Following, f64)> {
    match recipe.data.objective {
        Some(Objective::NextSentence { short }) => Some((Following::NextSentence, short)),
        Some(Objective::SentenceOrder { short }) => Some((Following::SentenceOrder, short)),
        _ => None,
    }
}

/// Names of both cases.
pub fn names_of(following: Following) -> [String; 2] {
    match following {
        Following::NextSentence => ["next", "other"],
        Following::SentenceOrder => ["ordered", "swapped"],
    }
    .map(String::from)
}

/// The same encoder with the heads that an objective trains.
pub(super) fn headed(family: Box<dyn Family>) -> Result<Box<dyn Family>> {
    match family.interface().task {
        Task::Pretraining | Task::NextSentence => Ok(family),
        _ => Ok(model::with_head(family.as_ref(), &model::Head::Pretraining)?),
    }
}

/// The mean loss of hidden tokens and that of pairs, in sum, as far as the model has heads for them.
pub(super) fn loss(
    family: &dyn Family,
    graph: &mut Graph,
    extent: Extent,
    mode: Mode,
    smoothing: f32,
) -> Result<Value> {
    let forward = family.read(graph, &reading_of(family, extent, mode))?;
    // Smoothing is a way to learn, not to measure.
    let smoothing = if mode == Mode::Train { smoothing } else { 0.0 };
    Ok(forward.loss(graph, family.interface().task, smoothing)?)
}

/// The graph by which a run measures itself: scores of pairs.
pub(super) fn writers(recipe: &Recipe, family: &dyn Family, extent: Extent) -> Result<Vec<Graph>> {
    if following_of(recipe).is_none() {
        return Ok(vec![]);
    }
    let mut graph = Graph::new();
    let forward = family.read(&mut graph, &reading_of(family, extent, Mode::Evaluate))?;
    graph.output(RESULT, forward.follows.unwrap_or(forward.logits));
    Ok(vec![graph])
}

/// Tokens that the objective has for the start and between parts.
#[derive(Clone, Copy, Debug)]
struct Marks {
    start: u32,
    between: u32,
}

/// How many tokens a new model needs beyond those of its tokenizer: a mask, a start, an end of parts.
pub(super) fn tokens_beside(tokenizer: &Tokenizer) -> usize {
    let [start, between] = named(tokenizer);
    usize::from(mask_of(tokenizer).is_none()) + usize::from(start.is_none()) + usize::from(between.is_none())
}

fn named(tokenizer: &Tokenizer) -> [Option<u32>; 2] {
    [["[CLS]", "<s>"], ["[SEP]", "</s>"]].map(|names| names.iter().find_map(|name| tokenizer.token_id(name)))
}

impl Marks {
    fn of(tokenizer: &Tokenizer, vocabulary: usize) -> Result<Marks> {
        let mut beyond = (tokenizer.vocabulary_size() + usize::from(mask_of(tokenizer).is_none())) as u32;
        let mut mark = |named: Option<u32>, name: &str| {
            let id = named.unwrap_or_else(|| {
                beyond += 1;
                beyond - 1
            });
            let lacks =
                format!("neither tokenizer nor model has {name}, which stands around the parts of a pair");
            (id as usize).lt(&vocabulary).then_some(id).ok_or_else(|| mismatch(lacks))
        };
        let [start, between] = named(tokenizer);
        Ok(Marks { start: mark(start, "[CLS]")?, between: mark(between, "[SEP]")? })
    }
}

/// The chunks of a run.
#[derive(Debug)]
pub struct Sequel {
    following: Following,
    documents: Vec<Sentences>,
    /// Documents that are trained on.
    training_documents: usize,
    /// Those that are trained on, and behind them those that are held out.
    chunks: Vec<Chunk>,
    training: usize,
    marks: Marks,
    /// Absent where the model guesses no tokens.
    hider: Option<Hider>,
    /// The model without dropout, for what it reads.
    family: Box<dyn Family>,
    /// A training pass, for the names of its inputs.
    graph: Graph,
    context: usize,
    classes: Classes,
    /// Lines that a person should read before the first step.
    pub told: Vec<String>,
}

/// A recipe over pairs of stretches with data and model at hand.
pub(super) fn prepare(mut recipe: Recipe, tokenizer: Option<Tokenizer>) -> Result<Job> {
    let (following, short) = following_of(&recipe).expect("it is asked for where there is one");
    refuse(&recipe)?;
    let mut texts = Texts::read(&recipe)?;
    let tokenizer = match tokenizer {
        Some(tokenizer) => tokenizer,
        None => job::tokenizer_of(&recipe, &mut texts)?,
    };
    let mut family = job::family_for(&recipe, &tokenizer)?;
    if let Model::Load { dropout: Some(share), .. } = recipe.model {
        family.set_dropout(share as f32);
    }
    if tokenizer.vocabulary_size() > family.vocabulary() {
        let (known, knows) = (tokenizer.vocabulary_size(), family.vocabulary());
        return Err(mismatch(format!("the tokenizer has {known} tokens, the model knows {knows}")));
    }
    let hider = match (family.interface().task, recipe.data.masking) {
        (Task::NextSentence, Some(_)) => {
            return Err(mismatch("data.masking is for models that guess hidden tokens"));
        }
        (Task::NextSentence, None) => None,
        (_, masking) => Some(Hider::new(masking.unwrap_or_default(), &tokenizer, family.vocabulary())?),
    };
    let context = *recipe.train.context.get_or_insert(family.context());
    if context < AROUND + 2 {
        let least = AROUND + 2;
        return Err(mismatch(format!("train.context is {context}, a pair takes {least} tokens at least")));
    }
    let [training, held] = texts.documents();
    let documents = [tokenised(&training, &tokenizer)?, tokenised(&held, &tokenizer)?];
    let training_documents = documents[0].len();
    let cut = |part: usize, first: usize| -> Vec<Chunk> {
        let least = 1 + usize::from(following == Following::SentenceOrder);
        let of = |(number, document): (usize, &Sentences)| {
            let random = &mut Random::new(CUT, (first + number) as u64);
            chunks(first + number, document, [least, context - AROUND], short, random)
        };
        documents[part].iter().enumerate().flat_map(of).collect()
    };
    let (trained, held) = (cut(0, 0), cut(1, training_documents));
    if following == Following::NextSentence && training_documents < 2 {
        return Err(mismatch(format!(
            "objective \"next-sentence\" takes stretches of other documents, and there is {training_documents} to train on\n  hint: documents are rows of tables, or stand between empty lines; \"sentence-order\" needs one alone"
        )));
    }
    if trained.is_empty() {
        return Err(mismatch(
            "there is no pair to train on: no document has two sentences that share a window\n  hint: sentences end with a line or with . ! ?; or a larger train.context",
        ));
    }
    let mut told = std::mem::take(&mut texts.told);
    told.extend(becomes_of_head(&recipe, family.as_ref())?);
    let marks = Marks::of(&tokenizer, family.vocabulary())?;
    let beside = Beside::open(&recipe, family.as_ref(), Some(&tokenizer))?;
    let mut quiet = model::from_config(&Config::new("the model", family.config()))?;
    quiet.set_dropout(0.0);
    let mut graph = Graph::new();
    loss(quiet.as_ref(), &mut graph, Extent { batch: 1, context }, Mode::Train, 0.0)?;
    let store = lesson::store_of(trained.len(), trained.len() + held.len());
    let sequel = Sequel {
        following,
        documents: documents.concat(),
        training_documents,
        training: trained.len(),
        chunks: [trained, held].concat(),
        marks,
        hider,
        family: quiet,
        graph,
        context,
        classes: Classes { names: names_of(following).to_vec(), labels: Labels::One },
        told,
    };
    Ok(Job::of_sequel(recipe, tokenizer, store, family, beside, sequel))
}

fn refuse(recipe: &Recipe) -> Result<()> {
    let data = &recipe.data;
    let weighed = data.text.iter().any(|source| source.weight.is_some());
    let stands = [
        ("data.streaming", data.streaming.is_some()),
        ("data.windows", data.windows.is_some()),
        ("a weight of a source", weighed),
        ("[distill]", recipe.distill.is_some()),
        ("model.head", recipe.model.head().is_some()),
    ];
    match stands.iter().find(|(_, stands)| *stands) {
        Some((what, _)) => Err(mismatch(format!(
            "{what} does not go with this data.objective, which makes pairs of whole documents"
        ))),
        None => Ok(()),
    }
}

/// What becomes of the heads of a folder.
fn becomes_of_head(recipe: &Recipe, family: &dyn Family) -> Result<Option<String>> {
    let Model::Load { folder, .. } = &recipe.model else { return Ok(None) };
    let said = model::renewed(folder, family, false)?.describe();
    match said {
        Some(_) if !recipe.adapters.is_empty() => Err(mismatch(
            "beside [adapter] the loaded folder must have the heads of BertForPreTraining\n  hint: train them first, without [adapter], and load that run",
        )),
        said => Ok(said.map(|said| format!("head     {said}"))),
    }
}

/// Documents as tokens of their sentences; those without a token are left out.
fn tokenised(documents: &[&str], tokenizer: &Tokenizer) -> Result<Vec<Sentences>> {
    let of = |text: &&str| -> Result<Sentences> {
        let all = sentences(text).into_iter().map(|sentence| tokenizer.encode(sentence));
        let mut all = all.collect::<Result<Sentences, _>>()?;
        all.retain(|sentence| !sentence.is_empty());
        Ok(all)
    };
    let mut all = documents.par_iter().map(of).collect::<Result<Vec<_>>>()?;
    all.retain(|document| !document.is_empty());
    Ok(all)
}

impl Sequel {
    /// Numbers that a window may hold.
    pub(super) fn numbers(&self) -> usize {
        self.chunks.len() + 1
    }

    /// Documents that strange parts of a chunk may be of: those of its own part, where there are others than its own.
    fn others(&self, chunk: &Chunk) -> Range<usize> {
        let (first, all) = (self.training_documents, self.documents.len());
        match chunk.document < first {
            true => 0..first,
            false if all - first > 1 => first..all,
            false => 0..all,
        }
    }

    /// What a step reads of the chunks that a batch names, over so many rows. The key alone decides on the pairs.
    pub(super) fn feeds(&self, batch: &Batch, rows: usize, key: [u64; 2]) -> Result<Feeds> {
        let mut tokens = vec![];
        let (mut targets, mut follows) = (vec![], vec![]);
        for (row, &number) in batch.tokens.iter().enumerate() {
            let chunk = &self.chunks[number as usize];
            let random = &mut Random::new(mix(key[0]) ^ key[1], row as u64);
            let most = self.context - AROUND;
            let parts = chunk.parts(&self.documents, self.others(chunk), self.following, most, random);
            let (ids, kinds) = self.laid(&parts);
            let (ids, guesses) = self.hidden(ids, key, row);
            targets.extend(guesses);
            follows.push(parts.label as i32);
            tokens.push((ids, kinds));
        }
        targets.resize(rows * self.context, IGNORED);
        follows.resize(rows, IGNORED);
        let all: Vec<Row> = tokens.iter().map(|(ids, kinds)| Row { ids, kinds }).collect();
        let inputs =
            Inputs::of_rows(self.family.as_ref(), &all, Extent { batch: rows, context: self.context })?;
        let follows = Tensor::i32([rows], follows);
        let (targets, pairs) = match self.hider {
            Some(_) => (Tensor::i32([rows * self.context], targets), Some(follows)),
            None => (follows, None),
        };
        Ok(inputs.with_targets(targets, pairs).feeds(&self.graph)?)
    }

    /// Both parts with what stands around them, and the kind of each token.
    fn laid(&self, parts: &Parts) -> (Vec<u32>, Vec<u32>) {
        let Marks { start, between } = self.marks;
        let ids = [&[start], &parts.first[..], &[between], &parts.second[..], &[between]].concat();
        let first = parts.first.len() + 2;
        let kinds = (0..ids.len()).map(|at| u32::from(at >= first)).collect();
        (ids, kinds)
    }

    /// Tokens of a row with some of them hidden, and what they were, filled up to the context.
    fn hidden(&self, ids: Vec<u32>, key: [u64; 2], row: usize) -> (Vec<u32>, Vec<i32>) {
        let context = ids.len();
        let plain = Batch { targets: vec![IGNORED; context], tokens: ids, rows: 1, context };
        let words = key.iter().flat_map(|&word| [word as u32, (word >> 32) as u32]);
        let key: Vec<u32> = words.chain([row as u32]).collect();
        let mut made = self.hider.as_ref().map_or_else(|| plain.clone(), |hider| hider.hide(&plain, &key));
        made.targets.resize(self.context, IGNORED);
        (made.tokens, made.targets)
    }

    /// Batches of both parts to be measured by, as many as the recipe says.
    pub(super) fn evaluation(&self, recipe: &Recipe) -> [Vec<Batch>; 2] {
        let rows = recipe.train.rows();
        let some = |part: Range<usize>| {
            let most = (recipe.train.evaluate.batches * recipe.train.batch).min(part.len());
            let spread = (0..most).map(|at| part.start + at * part.len() / most.max(1));
            lesson::batches(spread.collect(), rows)
        };
        [some(0..self.training), some(self.training..self.chunks.len())]
    }

    /// What the evaluation reads of the batch of that number.
    fn measured(&self, number: usize, batch: &Batch, rows: usize) -> Result<Feeds> {
        self.feeds(batch, rows, [EVALUATION, number as u64])
    }

    /// Measures the model over batches of chunks: the loss of a step, that of hidden tokens, and how well pairs are told apart.
    pub(super) fn measure(&self, trainer: &mut Trainer, batches: &[Batch], rows: usize) -> Result<Scores> {
        let feeds = batches.iter().enumerate().map(|(number, batch)| self.measured(number, batch, rows));
        let feeds = feeds.collect::<Result<Vec<_>>>()?;
        let weighed = feeds.iter().cloned().zip(batches.iter().map(|batch| batch.rows as f64));
        let loss = trainer.evaluate(weighed)?;
        let mut tally = Tally::new(&self.classes);
        for (feeds, batch) in feeds.iter().zip(batches) {
            let scores = trainer.consult(0, feeds)?;
            let scores: Vec<f32> = scores.to_f64().iter().map(|&x| x as f32).collect();
            let name = if self.hider.is_some() { model::FOLLOWS } else { "targets" };
            let right = feeds.get(name).expect("it was just made").as_i32();
            for (scores, &right) in scores.chunks(2).zip(right).take(batch.rows) {
                tally.add(scores, &lesson::Target::Class(right as usize));
            }
        }
        let pairs = tally.finish();
        let mut figures = vec![];
        if self.hider.is_some() {
            figures.extend([("masked_loss", loss - pairs.loss), ("pair_loss", pairs.loss)]);
        }
        figures.extend(pairs.get("accuracy").map(|accuracy| ("accuracy", accuracy)));
        Ok(Scores { loss, examples: pairs.examples, figures })
    }

    /// How many chunks there are, and of what.
    pub fn describe(&self) -> String {
        let (training, held) = (self.training, self.chunks.len() - self.training);
        let documents = self.documents.len();
        let what = self.classes.names.join(" or ");
        format!(
            "{training} training and {held} validation pairs of {documents} documents, told apart as {what}"
        )
    }
}

fn mismatch(problem: impl Into<String>) -> Error {
    Error::Mismatch { folder: "recipe".into(), problem: problem.into() }
}
