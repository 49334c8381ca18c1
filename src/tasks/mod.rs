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

pub use choose::Answer;
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

/// How often questions are answered right without knowing anything.
#[derive(Clone, Debug, PartialEq)]
pub struct Chances {
    /// Of each question.
    pub by_row: Vec<f64>,
    /// All questions have the same choices, and one of them is right more often than guessing would be.
    pub is_commonest: bool,
}

impl Chances {
    /// On the mean.
    pub fn level(&self) -> f64 {
        self.by_row.iter().sum::<f64>() / self.by_row.len() as f64
    }
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

    /// How often each question is answered right without knowing anything; none where there is nothing to choose between.
    pub fn chances(&self) -> Option<Chances> {
        let rows = &self.examples.rows;
        if rows.is_empty() || rows.iter().any(|row| row.choices.is_empty()) {
            return None;
        }
        let by_choices: Vec<f64> = rows.iter().map(|row| 1.0 / row.choices.len() as f64).collect();
        let count = rows[0].choices.len();
        let mut right = vec![0usize; count];
        if rows.iter().any(|row| row.choices != rows[0].choices) {
            return Some(Chances { by_row: by_choices, is_commonest: false });
        }
        // A model that gives one answer to all questions knows nothing and is right as often as that answer is.
        rows.iter().for_each(|row| right[row.right] += 1);
        let commonest = right.into_iter().max().unwrap_or(0) as f64 / rows.len() as f64;
        let is_commonest = commonest > 1.0 / count as f64;
        let by_row = if is_commonest { vec![commonest; rows.len()] } else { by_choices };
        Some(Chances { by_row, is_commonest })
    }

    /// Puts its choices to a model that predicts text, question by question; `chances` says whether there are any.
    pub fn answers(&self, opened: Opened, path: &Path, target: Target, batch: usize) -> Result<Vec<Answer>> {
        choose::answers(self, &mut Subject::new(opened, path, target, batch)?)
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
