//! Structured pruning: heads, neurons and channels are taken out, and what is left is a smaller model of the same family.
//!
//! What goes together is found in the graph ([`crate::graph::coupling`]): rows of queries, keys and values with columns of the
//! output projection, rows of gate and up with columns of down, a channel of the stream with everything that reads or writes it.
//! The family only has to say how its configuration calls the new sizes; that its parameters then have the shapes of what is left
//! is checked. Every block loses equally many units, those of least score in it.

mod amount;
mod influence;
mod score;
mod surgery;

pub use amount::Amount;
pub use influence::block_influence;
pub use score::Score;
pub use surgery::{masked, without};

use super::calibrate::Calibration;
use super::linear::linears;
use super::method::{expect_same, probe};
use super::pipeline::probe_batch;
use super::{Error, Result};
use crate::graph::{Coupling, Graph, Marks, coupling};
use crate::model::{Extent, Family, Mode, Sizes, Weights, resized};
use crate::ops::Value;
use crate::train::Target;
use serde::Serialize;

/// What may be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Heads of the keys, each with the queries that read it.
    KeyHeads,
    /// Heads of the queries; where several read one head of the keys, equally many of each such group.
    Heads,
    /// Neurons of the feed-forward parts.
    Neurons,
    /// Channels of the residual stream.
    Width,
}

impl Part {
    /// Name, as the key of a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Part::KeyHeads => "kv_heads",
            Part::Heads => "heads",
            Part::Neurons => "neurons",
            Part::Width => "width",
        }
    }
}

/// Units of which some may go: those of one block, or all channels of the stream.
#[derive(Clone, Debug)]
pub struct Group {
    /// Where in the model.
    pub scope: String,
    /// How many units there are.
    pub count: usize,
    /// What goes with each.
    pub coupling: Coupling,
}

/// A model's graph with the units of a part.
#[derive(Debug)]
pub struct Units {
    /// The forward pass, with its scores as the result `logits`.
    pub graph: Graph,
    /// The units, group by group.
    pub groups: Vec<Group>,
    /// Channels of a head.
    head_size: usize,
    /// Queries that read one head of the keys.
    shared: usize,
}

impl Units {
    /// Finds the units in a graph of the given size.
    pub fn find(family: &dyn Family, part: Part, extent: Extent) -> Result<Units> {
        let mut graph = Graph::new();
        let forward = family.forward(&mut graph, extent, Mode::Evaluate)?;
        graph.output("logits", forward.logits);
        let none = || Error::NoUnits { part: part.name(), reason: "there are none in its graph".into() };
        let attention = graph.nodes().iter().find_map(|node| Some((node, node.op.attention()?)));
        let (node, how) = attention.ok_or_else(none)?;
        let kinds: Vec<_> = node.inputs.iter().map(|&value| graph.kind(value).clone()).collect();
        let shape = &graph.kind(node.outputs[0]).shape;
        let (head_size, shared) = (shape[3], shape[2] / how.key_heads(&kinds));
        let groups = match part {
            Part::Heads => heads(&graph, 1)?,
            Part::KeyHeads => heads(&graph, shared)?,
            Part::Neurons => neurons(&graph, forward.hidden[0]),
            Part::Width => vec![stream(&graph, forward.hidden[0])?],
        };
        let first = groups.first().ok_or_else(none)?.count;
        if let Some(other) = groups.iter().find(|group| group.count != first) {
            let reason = format!("`{}` has {}, another block {first}", other.scope, other.count);
            return Err(Error::NoUnits { part: part.name(), reason });
        }
        Ok(Units { graph, groups, head_size, shared })
    }

    /// Units in each group.
    pub fn count(&self) -> usize {
        self.groups[0].count
    }
}

/// Heads of each attention; so many neighbours are one unit.
fn heads(graph: &Graph, together: usize) -> Result<Vec<Group>> {
    let attends = graph.nodes().iter().filter(|node| node.op.attention().is_some());
    let group = |node: &crate::graph::Node| {
        let count = graph.kind(node.outputs[0]).shape[2];
        let units = (0..count).map(|head| Some((head / together) as u32)).collect();
        group(graph, node.scope.clone(), node.outputs[0], 2, units, count / together)
    };
    attends.map(group).collect()
}

/// Channels of the stream.
fn stream(graph: &Graph, hidden: Value) -> Result<Group> {
    let count = graph.kind(hidden).shape.last();
    group(graph, "the residual stream".into(), hidden, 1, one_by_one(count), count)
}

/// Inputs of linear layers that are neither channels of the stream nor of heads: those can go one by one, and nothing else with them
/// but rows that write them.
fn neurons(graph: &Graph, hidden: Value) -> Vec<Group> {
    let stream = stream(graph, hidden).map(|stream| stream.coupling.values).unwrap_or_default();
    let mut groups: Vec<Group> = vec![];
    for linear in linears(graph) {
        let known = groups.iter().any(|group| group.coupling.values.contains(&linear.input));
        if known || stream.contains(&linear.input) {
            continue;
        }
        let axis = graph.kind(linear.input).shape.len() - 1;
        let scope = linear.weight.trim_end_matches(".weight").to_string();
        // What cannot go one by one, as channels of heads, is no neuron.
        if let Ok(found) = group(graph, scope, linear.input, axis, one_by_one(linear.cols), linear.cols) {
            groups.push(found);
        }
    }
    groups
}

fn one_by_one(count: usize) -> Marks {
    (0..count as u32).map(Some).collect()
}

fn group(
    graph: &Graph,
    scope: String,
    value: Value,
    axis: usize,
    units: Marks,
    count: usize,
) -> Result<Group> {
    let coupling = coupling(graph, value, axis, units)
        .map_err(|source| Error::Coupled { scope: scope.clone(), source })?;
    Ok(Group { scope, count, coupling })
}

/// What became of one group.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// What was taken out.
    pub part: &'static str,
    /// Where.
    pub scope: String,
    /// Units before.
    pub before: usize,
    /// Units after.
    pub after: usize,
    /// Numbers of those that went.
    pub removed: Vec<u32>,
    /// Their share of the sum of all scores.
    pub score_removed: f64,
}

/// A smaller model, and what went.
#[derive(Debug)]
pub struct Shrunk {
    /// The family with its new sizes.
    pub family: Box<dyn Family>,
    /// What is left of the weights.
    pub weights: Weights,
    /// Group by group.
    pub outcomes: Vec<Outcome>,
}

/// Takes out units of a part, the least by score in each group.
pub fn shrink(
    calibration: &Calibration,
    part: Part,
    score: Score,
    amount: Amount,
    multiple_of: usize,
) -> Result<Shrunk> {
    let (family, weights) = (calibration.family, calibration.weights);
    if let Some((name, _)) = weights.stored().next() {
        return Err(Error::AlreadyQuantised { name: name.to_string() });
    }
    let extent = match calibration.batches.first() {
        Some(_) => calibration.extent()?,
        None => Extent { batch: 1, context: family.context().min(2) },
    };
    let units = Units::find(family, part, extent)?;
    let scores = score.of(calibration, &units)?;
    // Heads are few and go one by one; of neurons and channels kernels like round numbers.
    let multiple_of = if matches!(part, Part::Neurons | Part::Width) { multiple_of } else { 1 };
    let (mut kept, mut outcomes, mut count) = (vec![], vec![], units.count());
    for (group, scores) in units.groups.iter().zip(&scores) {
        let removed = amount.choose(part, group, scores, multiple_of)?;
        count = group.count - removed.len();
        let of = |units: &mut dyn Iterator<Item = u32>| units.map(|unit| scores[unit as usize]).sum::<f64>();
        let all = of(&mut (0..group.count as u32));
        let score_removed = if all > 0.0 { of(&mut removed.iter().copied()) / all } else { 0.0 };
        kept.push((&group.coupling, removed.clone()));
        let (part, scope, before) = (part.name(), group.scope.clone(), group.count);
        outcomes.push(Outcome { part, scope, before, after: count, removed, score_removed });
    }
    let sizes = match part {
        Part::Heads if units.shared == 1 => {
            Sizes { heads: Some(count), key_heads: Some(count), ..Sizes::default() }
        }
        Part::Heads => Sizes { heads: Some(count), ..Sizes::default() },
        Part::KeyHeads => {
            Sizes { heads: Some(count * units.shared), key_heads: Some(count), ..Sizes::default() }
        }
        Part::Neurons => Sizes { hidden: Some(count), ..Sizes::default() },
        Part::Width => Sizes { width: Some(count), ..Sizes::default() },
    };
    let smaller = resized(family, units.head_size, sizes)?;
    let left = without(weights, &kept)?;
    left.check(&smaller.parameters())?;
    if part != Part::Width {
        prove(family, &masked(weights, &kept)?, smaller.as_ref(), &left)?;
    }
    Ok(Shrunk { family: smaller, weights: left, outcomes })
}

/// Compares the smaller model with the whole one in which what went is zero, on a batch of tokens. Channels of the stream are not
/// compared so: norms see how many there are.
fn prove(family: &dyn Family, masked: &Weights, smaller: &dyn Family, left: &Weights) -> Result<()> {
    let batch = probe_batch(family, 0);
    let whole = probe(family, masked, &Target::Host, &batch)?;
    expect_same("prune_structured", &whole, &probe(smaller, left, &Target::Host, &batch)?)
}

#[cfg(test)]
mod tests;
