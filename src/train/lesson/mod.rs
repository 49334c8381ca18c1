//! Training on examples: texts with a class, several, or a number; sentences with a tag for each word; texts that are alike.
//!
//! Batches come as for any model, as windows of tokens. Here the "text" is the list of the examples' numbers, and a window one of them;
//! what a step reads is made of the examples that a batch names. Each is filled up to `train.context` tokens, and the mask tells where.

mod classes;
mod contrast;
mod prepare;
mod row;
mod rows;
pub mod scores;
pub mod spans;
mod table;

pub use classes::{Classes, Target};
pub use contrast::Finds;
pub use row::firsts;
pub use scores::{Scores, Tally};

pub(super) use prepare::{headed, is_headed, prepare, store_of, text_of};

use super::recipe::{Kind, Recipe, Similarity};
use super::trainer::Trainer;
use super::{Error, Result};
use crate::data::tokenizer::Encoded;
use crate::data::windows::Batch;
use crate::graph::{Feeds, Graph};
use crate::model::{self, Extent, Family, Inputs, Mode, Reading, Row};
use crate::ops::Value;

/// Name of the result in the graph that measures: scores of classes, or vectors.
const RESULT: &str = "result";

/// An example as a model reads it.
#[derive(Clone, Debug)]
pub struct Example {
    /// Tokens of its texts: one, or those that are alike.
    pub inputs: Vec<Encoded>,
    /// Numbers of its columns, where it is a row of them.
    pub numbers: Vec<f32>,
    /// What is right.
    pub target: Target,
}

/// The examples of a run.
#[derive(Debug)]
pub struct Lesson {
    kind: Kind,
    /// How likeness is learned, where it is.
    similarity: Similarity,
    /// Those that are trained on, and behind them those that are held out.
    examples: Vec<Example>,
    /// How many are trained on.
    training: usize,
    /// The model without dropout, for what it reads.
    family: Box<dyn Family>,
    /// A training pass, for the names of its inputs.
    graph: Graph,
    context: usize,
    /// What classes are called.
    pub classes: Classes,
    /// Lines that a person should read before the first step.
    pub told: Vec<String>,
}

/// What a pass over examples reads.
pub fn reading_of(family: &dyn Family, extent: Extent, mode: Mode) -> Reading {
    Reading { padded: true, kinds: family.interface().kinds > 1, ..Reading::new(extent, mode) }
}

/// The pass of a recipe over so many examples.
fn reading_for(recipe: &Recipe, family: &dyn Family, extent: Extent, mode: Mode) -> Reading {
    let texts = recipe.data.examples.as_ref().map_or(1, |examples| examples.texts());
    reading_of(family, Extent { batch: texts * extent.batch, ..extent }, mode)
}

/// The mean loss of a batch of examples, where the recipe is for such.
pub(super) fn loss(
    recipe: &Recipe,
    family: &dyn Family,
    graph: &mut Graph,
    extent: Extent,
    mode: Mode,
) -> Result<Value> {
    let reading = reading_for(recipe, family, extent, mode);
    if let Some(similarity) = similarity_of(recipe) {
        return contrast::loss(family, graph, &reading, extent.batch, similarity.scale);
    }
    let forward = family.read(graph, &reading)?;
    // Smoothing is a way to learn, not to measure.
    let smoothing = if mode == Mode::Train { recipe.train.label_smoothing as f32 } else { 0.0 };
    Ok(family.interface().task.loss(graph, forward.logits, smoothing)?)
}

/// How a recipe learns likeness, if it does.
fn similarity_of(recipe: &Recipe) -> Option<Similarity> {
    let examples = recipe.data.examples.as_ref()?;
    (examples.kind() == Kind::Similar).then(|| examples.similarity.unwrap_or_default())
}

/// The graphs by which a run measures itself: the model's scores of a batch of examples, or its vectors.
pub(super) fn writers(recipe: &Recipe, family: &dyn Family, extent: Extent) -> Result<Vec<Graph>> {
    if recipe.data.examples.is_none() {
        return Ok(vec![]);
    }
    let mut graph = Graph::new();
    let reading = reading_for(recipe, family, extent, Mode::Evaluate);
    let result = match similarity_of(recipe) {
        Some(_) => contrast::vectors(family, &mut graph, &reading)?,
        None => family.read(&mut graph, &reading)?.logits,
    };
    graph.output(RESULT, result);
    Ok(vec![graph])
}

impl Lesson {
    /// Numbers that a window may hold.
    pub fn numbers(&self) -> usize {
        self.examples.len() + 1
    }

    /// What a step reads of the examples that a batch names, over so many rows: first texts, then second ones, and so on.
    pub fn feeds(&self, batch: &Batch, rows: usize) -> Result<Feeds> {
        let last = batch.tokens.len() - 1;
        let chosen = |row: usize| &self.examples[batch.tokens[row.min(last)] as usize];
        let targets: Vec<&Target> = (0..=last).map(|row| &chosen(row).target).collect();
        if self.kind == Kind::Rows {
            let numbers = (0..rows).flat_map(|row| chosen(row).numbers.iter().copied()).collect();
            let inputs = Inputs::of_numbers(self.family.as_ref(), numbers, rows)?;
            let targets = rows::targets(&targets, [rows, self.context]);
            return Ok(inputs.feeds(&self.graph)?.with("targets", targets));
        }
        let texts = self.examples[0].inputs.len();
        let inputs: Vec<&Encoded> =
            (0..texts).flat_map(|text| (0..rows).map(move |row| &chosen(row).inputs[text])).collect();
        let all: Vec<Row> = inputs.iter().map(|one| Row { ids: &one.ids, kinds: &one.kinds }).collect();
        let extent = Extent { batch: texts * rows, context: self.context };
        let mut feeds = Inputs::of_rows(self.family.as_ref(), &all, extent)?.feeds(&self.graph)?;
        feeds.set("targets", rows::targets(&targets, [rows, self.context]));
        if self.kind == Kind::Similar {
            let pooling = self.similarity.pooling;
            feeds.set(contrast::POOLING, contrast::weights(&inputs, pooling, self.context));
        }
        Ok(feeds)
    }

    /// Batches of both parts to be measured by: of what is trained on as many as the recipe says, of what is held out all.
    pub fn evaluation(&self, recipe: &Recipe) -> [Vec<Batch>; 2] {
        let (rows, all) = (recipe.train.rows(), self.examples.len());
        let most = (recipe.train.evaluate.batches * recipe.train.batch).min(self.training);
        let spread = (0..most).map(|at| at * self.training / most.max(1));
        [batches(spread.collect(), rows), batches((self.training..all).collect(), rows)]
    }

    /// Measures the model over batches of examples.
    ///
    /// `number` is that of the graph beside the step which gives scores or vectors.
    pub(super) fn measure(
        &self,
        trainer: &mut Trainer,
        number: usize,
        batches: &[Batch],
        rows: usize,
    ) -> Result<Scores> {
        let (mut tally, mut finds) = (Tally::new(&self.classes), Finds::default());
        let texts = self.examples[0].inputs.len();
        for batch in batches {
            let result = trainer.consult(number, &self.feeds(batch, rows)?)?;
            let result = result.to_f64().iter().map(|&x| x as f32).collect::<Vec<_>>();
            if self.kind == Kind::Similar {
                finds.add(&result, [rows, batch.rows, texts], self.similarity.scale);
                continue;
            }
            let one = result.len() / rows;
            for (row, &number) in result.chunks(one).zip(&batch.tokens) {
                tally.add(row, &self.examples[number as usize].target);
            }
        }
        Ok(if self.kind == Kind::Similar { finds.finish() } else { tally.finish() })
    }

    /// Files that belong beside a checkpoint's weights.
    pub(super) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let width = || self.family.config().get("hidden_size").or(self.family.config().get("dim")).cloned();
        match self.kind {
            Kind::Similar => {
                let width = width().and_then(|width| width.as_u64()).unwrap_or_default() as usize;
                contrast::files(&self.similarity, width, self.context)
            }
            _ => vec![],
        }
    }

    /// How many examples there are, and of what.
    pub fn describe(&self) -> String {
        let held = self.examples.len() - self.training;
        let names: Vec<&str> = self.classes.names.iter().take(8).map(String::as_str).collect();
        let more = self.classes.names.len().saturating_sub(names.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let what = match self.kind {
            Kind::Labelled | Kind::Rows => {
                let kind = model::problem_type(self.classes.labels).replace('_', " ");
                format!("{kind}: {}{more}", names.join(", "))
            }
            Kind::Tagged => format!("tags {}{more}", names.join(", ")),
            Kind::Similar => format!("{} texts in each", self.examples[0].inputs.len()),
        };
        let training = self.training;
        if self.kind == Kind::Rows {
            let columns = self.family.interface().columns;
            return format!("{training} training and {held} validation rows of {columns} columns, {what}");
        }
        format!("{training} training and {held} validation examples of up to {} tokens, {what}", self.context)
    }
}

/// Numbers of examples in batches; the last one may have fewer.
pub(super) fn batches(numbers: Vec<usize>, rows: usize) -> Vec<Batch> {
    let batch = |numbers: &[usize]| Batch {
        tokens: numbers.iter().map(|&number| number as u32).collect(),
        targets: vec![0; numbers.len()],
        rows: numbers.len(),
        context: 1,
    };
    numbers.chunks(rows).map(batch).collect()
}

/// The error for a recipe whose parts do not go together.
fn mismatch(problem: impl Into<String>) -> Error {
    Error::Mismatch { folder: "recipe".into(), problem: problem.into() }
}
