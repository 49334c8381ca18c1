//! What passes give beside scores: hidden states of what was read, or scores of early layers.

use crate::deploy;
use crate::generate::dola::against_early;
use crate::graph::Graph;
use crate::model::{self, Forward, Task};
use crate::ops::{Emit, Value};
use crate::tensor::Tensor;
use std::sync::Arc;

/// What a model's passes are to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Shown {
    /// Scores alone.
    #[default]
    Nothing,
    /// The hidden state of each token, behind the last norm.
    States,
    /// Scores that the head makes of these early layers: those of the pass are then what sets the last layer apart.
    Early(Vec<usize>),
}

/// The hidden state of a token, `[C]`.
pub type State = Arc<[f32]>;

/// Values that are to be results of a pass beside its choice of tokens: `[N, C]` for states, `[B, V]` for each early layer.
pub(super) fn values(graph: &mut Graph, forward: &Forward, shown: &Shown) -> deploy::Result<Vec<Value>> {
    match shown {
        Shown::Nothing => Ok(vec![]),
        Shown::States => Ok(forward.hidden.last().copied().into_iter().collect()),
        Shown::Early(layers) => layers.iter().map(|&layer| headed(graph, forward, layer)).collect(),
    }
}

/// The scores of a pass with another layer's hidden state in the place of the last one's: what stands between both is written again.
fn headed(graph: &mut Graph, forward: &Forward, layer: usize) -> deploy::Result<Value> {
    let absent = || {
        let expected = format!("a causal language model with a hidden state of layer {layer}");
        model::Error::Task { expected, got: Task::NextToken.describe() }
    };
    let (last, early) = forward.hidden.last().zip(forward.hidden.get(layer)).ok_or_else(absent)?;
    let mut stand_ins = vec![(*last, *early)];
    let of = |known: &[(Value, Value)], value: Value| {
        known.iter().find(|(old, _)| *old == value).map(|(_, new)| *new)
    };
    for node in graph.nodes().to_vec() {
        if of(&stand_ins, forward.logits).is_some() {
            break;
        }
        if !node.inputs.iter().any(|value| of(&stand_ins, *value).is_some()) {
            continue;
        }
        let inputs: Vec<Value> =
            node.inputs.iter().map(|value| of(&stand_ins, *value).unwrap_or(*value)).collect();
        let outputs = graph.within(format!("early.{layer}"), |graph| graph.apply(node.op.clone(), &inputs));
        stand_ins.extend(node.outputs.iter().copied().zip(outputs.map_err(model::Error::from)?));
    }
    of(&stand_ins, forward.logits).ok_or_else(|| absent().into())
}

/// Of a pass over so many tokens of each row the states of the first ones of a row, from its result `[rows * tokens, C]`.
pub(super) fn states_of(result: &Tensor, [rows, tokens]: [usize; 2], row: usize, count: usize) -> Vec<State> {
    let all = result.real::<f32>();
    let width = all.len() / (rows * tokens);
    all.chunks(width).skip(row * tokens).take(count).map(Arc::from).collect()
}

/// Scores of a row against those of its early layers, `[B, V]` each.
pub(super) fn contrasted(scores: &[f32], early: &[Tensor], row: usize) -> Vec<f32> {
    let vocabulary = scores.len();
    let of: Vec<Vec<f32>> =
        early.iter().map(|of| of.real::<f32>()[row * vocabulary..][..vocabulary].to_vec()).collect();
    against_early(scores, &of.iter().map(Vec::as_slice).collect::<Vec<_>>())
}
