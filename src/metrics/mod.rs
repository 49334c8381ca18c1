//! How near texts, classes and shares come to what they should be. Pure functions: no model, no graph.
//!
//! ```text
//! hypothesis, references -> statistics of one segment --+
//! hypothesis, references -> statistics of one segment --+-- sum -> score of all
//! ```
//!
//! A score of many texts is made of sums over them. So [`bootstrap`] can draw texts anew without reading them again.

mod bleu;
pub mod bootstrap;
pub mod calibration;
mod chrf;
pub mod classes;
pub mod correlation;
pub mod diversity;
mod edits;
mod figure;
mod porter;
pub mod qa;
mod rouge;
mod ter;
#[cfg(test)]
mod tests;
mod tokenize;
mod words;

pub use bleu::{Bleu, Smoothing};
pub use chrf::Chrf;
pub use figure::{Figure, Score};
pub use porter::stem;
pub use rouge::{Rouge, RougeKind};
pub use ter::Ter;
pub use tokenize::Tokenization;

/// The sacrebleu whose figures these are, as its signatures end.
pub const SACREBLEU: &str = "2.6.0";

/// What can be wrong with texts that are to be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to compare.
    #[error("there is no text to score")]
    Empty,
    /// Texts and references do not pair up.
    #[error(
        "{hypotheses} texts stand beside {references} references\n  hint: each text has one, in the same order"
    )]
    Length {
        /// Texts that were scored.
        hypotheses: usize,
        /// References there are.
        references: usize,
    },
    /// A text that has nothing to be compared with.
    #[error("text {number} has no reference")]
    NoReference {
        /// Which, counted from one.
        number: usize,
    },
    /// A setting out of range.
    #[error("{setting} is {got}, expected {expected}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What was given.
        got: String,
    },
}

/// Result of comparing.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A score of texts beside references.
pub trait TextMetric: Sync {
    /// Its name, as `bleu`.
    fn name(&self) -> String;

    /// What one text adds to the sums. Each text has at least one reference.
    fn statistics(&self, hypothesis: &str, references: &[&str]) -> Vec<f64>;

    /// The score of sums.
    fn score(&self, sums: &[f64]) -> f64;

    /// How it was computed, in a line that can be compared; `references` for each text, or `None` where they differ in number.
    fn signature(&self, references: Option<usize>) -> String;

    /// Less of it is better.
    fn is_error(&self) -> bool {
        false
    }

    /// What the score is made of, by name.
    fn details(&self, _sums: &[f64]) -> Vec<(&'static str, Vec<f64>)> {
        vec![]
    }
}

/// The score of several models' texts beside the same references.
pub fn figure(
    metric: &dyn TextMetric,
    models: &[Vec<String>],
    references: &[Vec<impl AsRef<str>>],
    draws: &bootstrap::Draws,
) -> Result<Figure> {
    let rows = |texts: &Vec<String>| statistics(metric, texts, references);
    let segments = models.iter().map(rows).collect::<Result<Vec<_>>>()?;
    let each =
        references.first().map(Vec::len).filter(|each| references.iter().all(|list| list.len() == *each));
    let mut figure = Figure::new(metric.name(), &segments, &|sums| metric.score(sums), draws);
    figure.signature = Some(metric.signature(each));
    figure.is_error = metric.is_error();
    figure.details = segments.iter().map(|rows| metric.details(&sums(rows))).collect();
    Ok(figure)
}

/// Statistics of each text beside its references.
pub fn statistics(
    metric: &dyn TextMetric,
    hypotheses: &[impl AsRef<str>],
    references: &[Vec<impl AsRef<str>>],
) -> Result<Vec<Vec<f64>>> {
    if hypotheses.len() != references.len() {
        return Err(Error::Length { hypotheses: hypotheses.len(), references: references.len() });
    }
    if hypotheses.is_empty() {
        return Err(Error::Empty);
    }
    if let Some(at) = references.iter().position(Vec::is_empty) {
        return Err(Error::NoReference { number: at + 1 });
    }
    let of = |(hypothesis, references): (&dyn AsRef<str>, &Vec<_>)| {
        let references: Vec<&str> = references.iter().map(AsRef::as_ref).collect();
        metric.statistics(hypothesis.as_ref(), &references)
    };
    Ok(hypotheses.iter().map(|text| text as &dyn AsRef<str>).zip(references).map(of).collect())
}

/// The sums of some rows of statistics.
pub fn sums<'a>(rows: impl IntoIterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let mut rows = rows.into_iter();
    let mut sums = rows.next().cloned().unwrap_or_default();
    for row in rows {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    sums
}

/// The score of all texts together.
pub fn corpus(
    metric: &dyn TextMetric,
    hypotheses: &[impl AsRef<str>],
    references: &[Vec<impl AsRef<str>>],
) -> Result<f64> {
    Ok(metric.score(&sums(&statistics(metric, hypotheses, references)?)))
}

fn count_of(references: Option<usize>) -> String {
    references.map_or("var".into(), |count| count.to_string())
}
