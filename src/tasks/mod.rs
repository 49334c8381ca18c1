//! What a model can do: questions with a known answer, put to one model or to several, and what of their difference is chance.
//!
//! ```text
//! task file -> rows -> prompts --+-- model A: segments --+
//!                                +-- model B: segments --+-- figures, differences over the same draws
//! ```
//!
//! A segment is a question, a text, or a stretch of one: sums over segments make every figure, so that all can be drawn anew.

mod choose;
mod error;
mod examples;
mod file;
mod grounds;
mod predict;
mod subject;
#[cfg(test)]
mod tests;
mod write;

pub use error::{Error, Result};
pub use examples::Examples;
pub use file::{Kind, TaskFile};
pub use predict::{sliding, windows};
pub use subject::Subject;

use crate::data::tokenizer::Tokenizer;
use crate::exchange::Opened;
use crate::metrics::Figure;
use crate::metrics::bootstrap::Draws;
use crate::ngram::Model;
use crate::train::Target;
use std::path::Path;
use std::rc::Rc;

/// The score of sums over segments.
pub type OfSums = Rc<dyn Fn(&[f64]) -> f64>;

/// A score over the segments of one model.
#[derive(Clone)]
pub struct Measured {
    /// Its name.
    pub name: String,
    /// What each segment adds.
    pub segments: Vec<Vec<f64>>,
    /// The score of sums.
    pub score: OfSums,
    /// Less is better.
    pub is_error: bool,
    /// How it was computed.
    pub signature: Option<String>,
}

impl Measured {
    /// A mean: of each segment a number.
    pub fn mean(name: &str, numbers: impl IntoIterator<Item = f64>) -> Measured {
        let segments = numbers.into_iter().map(|number| vec![number, 1.0]).collect();
        Measured::new(name, segments, |sums| sums[0] / sums[1])
    }

    /// Any score of sums.
    pub fn new(
        name: impl Into<String>,
        segments: Vec<Vec<f64>>,
        score: impl Fn(&[f64]) -> f64 + 'static,
    ) -> Measured {
        Measured { name: name.into(), segments, score: Rc::new(score), is_error: false, signature: None }
    }

    /// One of which less is better.
    pub fn error(self) -> Measured {
        Measured { is_error: true, ..self }
    }
}

/// What one model made of a task.
pub struct Outcome {
    /// Its scores.
    pub measured: Vec<Measured>,
    /// What its segments are: two models can be compared only where these are the same.
    pub segments: String,
    /// What a person should know of how it was asked.
    pub told: Option<String>,
}

/// A task, read and checked.
pub struct Task {
    /// As its file says.
    pub file: TaskFile,
    examples: Examples,
    looked_up: bool,
}

impl Task {
    /// Reads a task's file and its data.
    pub fn open(path: &Path, limit: Option<usize>) -> Result<Task> {
        let mut file = TaskFile::read(path)?;
        file.limit = limit.or(file.limit);
        let examples = Examples::read(&file)?;
        Ok(Task { file, examples, looked_up: false })
    }

    /// Questions or texts.
    pub fn count(&self) -> usize {
        self.examples.rows.len()
    }

    /// Puts it to a model. `path` is named where something is missing.
    pub fn put_to(&self, opened: Opened, path: &Path, target: Target, batch: usize) -> Result<Outcome> {
        match self.file.kind {
            Kind::Perplexity => predict::measure(self, &mut Subject::new(opened, path, target, batch)?),
            Kind::MultipleChoice => choose::measure(self, &mut Subject::new(opened, path, target, batch)?),
            Kind::Classification => choose::classify(self, opened, path, target, batch),
            Kind::Generation | Kind::Qa => write::measure(self, opened, path, &target, batch),
        }
    }

    /// Puts it to a model of counted runs, which tells how likely texts are and needs no device.
    pub fn put_to_counted(&self, model: Model, tokenizer: Tokenizer, path: &Path) -> Result<Outcome> {
        let mut subject = Subject::counted(model, tokenizer, path);
        let refuse = |what: &str| Error::Task {
            path: self.file.path.clone(),
            reason: format!(
                "{what}, and {} is a model of counted runs\n  hint: kinds perplexity, multiple-choice and classification with `labels` ask how likely texts are",
                path.display()
            ),
        };
        match (self.file.kind, &self.file.labels) {
            (Kind::Perplexity, _) => predict::measure(self, &mut subject),
            (Kind::MultipleChoice, _) => choose::measure(self, &mut subject),
            (Kind::Classification, Some(_)) => choose::by_labels(self, &mut subject),
            (Kind::Classification, None) => Err(refuse("`labels` is missing")),
            (Kind::Generation | Kind::Qa, _) => Err(refuse("answers are to be written")),
        }
    }
}

/// Figures of several models by their names; differences are from the first.
pub fn compare(task: &TaskFile, models: &[(String, Outcome)]) -> Result<Vec<Figure>> {
    let Some(((first, reference), others)) = models.split_first() else { return Ok(vec![]) };
    for (name, outcome) in others {
        if outcome.segments != reference.segments {
            return Err(Error::Segments { first: first.clone(), other: name.clone() });
        }
    }
    let count = reference.measured.first().map_or(0, |measured| measured.segments.len());
    let draws = Draws::new(count, task.resamples, task.seed);
    let figure = |(at, measured): (usize, &Measured)| {
        let segments: Vec<_> =
            models.iter().map(|(_, outcome)| outcome.measured[at].segments.clone()).collect();
        let mut figure = Figure::new(&measured.name, &segments, &*measured.score, &draws);
        figure.is_error = measured.is_error;
        figure.signature.clone_from(&measured.signature);
        figure
    };
    Ok(reference.measured.iter().enumerate().map(figure).collect())
}
