//! Training on examples with labels: texts with a class, several, or a number; sentences with a tag for each word.
//!
//! Batches come as for any model, as windows of tokens. Here the "text" is the list of the examples' numbers, and a window one of them;
//! what a step reads is made of the examples that a batch names. Each is filled up to `train.context` tokens, and the mask tells where.

mod classes;
mod prepare;
mod rows;
pub mod scores;
pub mod spans;

pub use classes::{Classes, Target};
pub use scores::{Scores, Tally};

pub(super) use prepare::{headed, prepare};

use super::recipe::Recipe;
use super::trainer::Trainer;
use super::{Error, Result};
use crate::data::tokenizer::Encoded;
use crate::data::windows::Batch;
use crate::graph::{Feeds, Graph};
use crate::model::{self, Extent, Family, Inputs, Mode, Reading, Row};
use crate::ops::Value;

/// Name of the scores in the graph that measures.
const SCORES: &str = "scores";

/// An example as a model reads it.
#[derive(Clone, Debug)]
pub struct Example {
    /// Its tokens.
    pub input: Encoded,
    /// What is right.
    pub target: Target,
}

/// The examples of a run.
#[derive(Debug)]
pub struct Lesson {
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

/// The mean loss of a batch of examples, where the recipe is for such.
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
    Ok(family.interface().task.loss(graph, forward.logits, smoothing)?)
}

/// The graphs by which a run measures itself: the model's scores of a batch of examples.
pub(super) fn writers(recipe: &Recipe, family: &dyn Family, extent: Extent) -> Result<Vec<Graph>> {
    if recipe.data.examples.is_none() {
        return Ok(vec![]);
    }
    let mut graph = Graph::new();
    let forward = family.read(&mut graph, &reading_of(family, extent, Mode::Evaluate))?;
    graph.output(SCORES, forward.logits);
    Ok(vec![graph])
}

impl Lesson {
    /// Numbers that a window may hold.
    pub fn numbers(&self) -> usize {
        self.examples.len() + 1
    }

    /// What a step reads of the examples that a batch names, over so many rows.
    pub fn feeds(&self, batch: &Batch, rows: usize) -> Result<Feeds> {
        let chosen: Vec<&Example> =
            batch.tokens.iter().map(|&number| &self.examples[number as usize]).collect();
        let all: Vec<Row> =
            chosen.iter().map(|one| Row { ids: &one.input.ids, kinds: &one.input.kinds }).collect();
        let targets: Vec<&Target> = chosen.iter().map(|one| &one.target).collect();
        let extent = Extent { batch: rows, context: self.context };
        let targets = rows::targets(&targets, [rows, self.context]);
        Ok(Inputs::of_rows(self.family.as_ref(), &all, extent, Some(targets))?.feeds(&self.graph)?)
    }

    /// Batches of both parts to be measured by: of what is trained on as many as the recipe says, of what is held out all.
    pub fn evaluation(&self, recipe: &Recipe) -> [Vec<Batch>; 2] {
        let (rows, all) = (recipe.train.rows(), self.examples.len());
        let most = (recipe.train.evaluate.batches * recipe.train.batch).min(self.training);
        let spread = (0..most).map(|at| at * self.training / most.max(1));
        [batches(spread.collect(), rows), batches((self.training..all).collect(), rows)]
    }

    /// Measures the model over batches of examples.
    pub(super) fn measure(&self, trainer: &mut Trainer, batches: &[Batch], rows: usize) -> Result<Scores> {
        let mut tally = Tally::new(&self.classes);
        for batch in batches {
            let result = trainer.consult(0, &self.feeds(batch, rows)?)?;
            let scores = result.to_f64().iter().map(|&x| x as f32).collect::<Vec<_>>();
            let one = scores.len() / rows;
            for (row, &number) in scores.chunks(one).zip(&batch.tokens) {
                tally.add(row, &self.examples[number as usize].target);
            }
        }
        Ok(tally.finish())
    }

    /// How many examples there are, and of what.
    pub fn describe(&self) -> String {
        let held = self.examples.len() - self.training;
        let names: Vec<&str> = self.classes.names.iter().take(8).map(String::as_str).collect();
        let more = self.classes.names.len().saturating_sub(names.len());
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let kind = model::problem_type(self.classes.labels).replace('_', " ");
        format!(
            "{} training and {held} validation examples of up to {} tokens, {kind}: {}{more}",
            self.training,
            self.context,
            names.join(", ")
        )
    }
}

/// Numbers of examples in batches; the last one may have fewer.
fn batches(numbers: Vec<usize>, rows: usize) -> Vec<Batch> {
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
