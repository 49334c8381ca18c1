//! A score of several models over the same segments, with what chance there is in it.

use super::bootstrap::{Difference, Draws, Interval};
use super::sums;

/// A score of sums.
pub type Score<'a> = &'a dyn Fn(&[f64]) -> f64;

/// A score of each model.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What is scored.
    pub name: String,
    /// How it was computed.
    pub signature: Option<String>,
    /// Less of it is better.
    pub is_error: bool,
    /// Of each model.
    pub values: Vec<Interval>,
    /// By how much each model differs from the first; of the first itself there is none.
    pub differences: Vec<Option<Difference>>,
    /// Parts of the score of each model, by name.
    pub details: Vec<Vec<(&'static str, Vec<f64>)>>,
}

impl Figure {
    /// From the segments of each model, all in one order.
    pub fn new(name: impl Into<String>, segments: &[Vec<Vec<f64>>], score: Score, draws: &Draws) -> Figure {
        let value = |segments: &Vec<Vec<f64>>| match draws.is_empty() {
            true => Interval::certain(score(&sums(segments))),
            false => draws.interval(segments, score),
        };
        let difference = |(at, other): (usize, &Vec<Vec<f64>>)| {
            (at > 0 && !draws.is_empty()).then(|| draws.difference(&segments[0], other, score))
        };
        Figure {
            name: name.into(),
            signature: None,
            is_error: false,
            values: segments.iter().map(value).collect(),
            differences: segments.iter().enumerate().map(difference).collect(),
            details: vec![vec![]; segments.len()],
        }
    }

    /// One of which less is better.
    pub fn error(self) -> Figure {
        Figure { is_error: true, ..self }
    }
}
