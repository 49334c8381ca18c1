//! Tokens chosen where the scores are: a pass gives their numbers, and keeps the scores for those who ask for them.

use crate::deploy;
use crate::generate::Result;
use crate::graph::Graph;
use crate::model;
use crate::ops::Value;
use crate::ops::choose_token::{Choice, ChooseTokenEmit};
use crate::ops::slice::SliceEmit;
use crate::tensor::{DType, Tensor, Type};

/// What a pass over a text gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Scores `[V]` of the token after it.
    Scores(Vec<f32>),
    /// That token, and its log-probability where it was asked for.
    Chosen(u32, f32),
}

/// The state in which a pass leaves its scores.
const SCORES: &str = "scores";
const NUMBERS: &str = "choice.numbers";
const WORDS: &str = "choice.words";

/// Adds the choice of tokens to a pass, which keeps its scores; its results are tokens, then log-probabilities.
pub(super) fn write(graph: &mut Graph, scores: Value) -> deploy::Result<()> {
    write_tokens(graph, scores)?;
    graph.output(SCORES, scores);
    Ok(())
}

/// The same without the scores.
pub(super) fn write_tokens(graph: &mut Graph, scores: Value) -> deploy::Result<()> {
    let rows = graph.kind(scores).shape.rows();
    let numbers = graph.input(NUMBERS, Type::f32([rows, 4]));
    let words = graph.input(WORDS, Type::new(DType::U32, [rows, 4]));
    let [token, told] = graph.choose_token(scores, numbers, words).map_err(model::Error::from)?;
    graph.output("choice.token", token);
    graph.output("choice.told", told);
    Ok(())
}

/// A pass that reads the first `rows` of the scores that the last one has left, of at most `most`.
pub(super) fn reading(rows: usize, [most, vocabulary]: [usize; 2]) -> Result<Graph> {
    let mut graph = Graph::new();
    let scores = graph.state(SCORES, Type::f32([most, vocabulary]));
    let part = graph.slice(scores, 0, 0, rows).map_err(model::Error::from)?;
    graph.output("logits", part);
    Ok(graph)
}

/// What a pass is fed under this name, if it is of the choice: of fewer rows than it has the last one again.
pub(super) fn feed(name: &str, rows: usize, how: &[Option<Choice>]) -> Option<Tensor> {
    let of = |row: usize| how.get(row).or(how.last()).copied().flatten().unwrap_or(Choice::BEST);
    match name {
        NUMBERS => Some(Tensor::f32([rows, 4], (0..rows).flat_map(|row| of(row).numbers()).collect())),
        WORDS => Some(Tensor::u32([rows, 4], (0..rows).flat_map(|row| of(row).words()).collect())),
        _ => None,
    }
}
