//! Recompute: what the backward part reads of the forward part may be computed again instead of being held.
//!
//! Each forward value has a price, its bytes. Held values are chosen as the cheapest cut between what cannot be computed
//! again and what the backward part reads (a minimum cut of the forward part, as others do it for the same question); of
//! equal cuts the one nearest to the readers, which computes least again. The operators behind the cut are copied to just
//! before the first node that wants them, so that their values live from there on only.
//!
//! Run it after `tidy`, which would join the copies with their originals again, and before `fuse`.

mod cut;
#[cfg(test)]
mod tests;

use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, Source, without_dead_nodes};
use crate::ops::{Emit, Value};
use crate::tensor::Type;
use serde::Serialize;

/// What may be computed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Nothing: every value is held from the forward to the backward part.
    #[default]
    None,
    /// Operators that are bound by memory: pointwise ones, norms, casts, dropout, rotary positions, lookups.
    Cheap,
    /// Besides, everything within a layer, matrix products and attention included: between the layers one value stays.
    Layers,
}

/// A copy is worth while if its operator writes at least this share of the bytes it moves.
const WORTH_WRITING: f64 = 0.2;

impl std::fmt::Display for Recompute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Recompute::None => "none",
            Recompute::Cheap => "cheap",
            Recompute::Layers => "layers",
        })
    }
}

impl Pass for Recompute {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn promise(&self) -> Promise {
        Promise::Exact
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        if *self == Recompute::None {
            return Ok(graph.clone());
        }
        let graph = without_dead_nodes(graph);
        let held = self.held(&graph);
        let mut rewriter = Rewriter::new(&graph);
        let mut copies = vec![None; graph.values().len()];
        for node in graph.nodes() {
            if node.is_gradient() {
                for &input in &node.inputs {
                    copy_before(&graph, &held, &mut rewriter, &mut copies, input)?;
                }
                let inputs: Vec<Value> =
                    node.inputs.iter().map(|&v| standing(&rewriter, &copies, v)).collect();
                rewriter.replace(node, node.op.clone(), &inputs)?;
            } else {
                rewriter.copy(node)?;
            }
        }
        Ok(without_dead_nodes(&rewriter.finish()))
    }
}

impl Recompute {
    /// For each value, whether it stays as it is between the two parts.
    fn held(&self, graph: &Graph) -> Vec<bool> {
        let layers: Vec<Option<&str>> = graph.nodes().iter().map(|node| layer_of(graph, node)).collect();
        let mut forward = vec![false; graph.values().len()];
        let mut fixed = vec![false; graph.values().len()];
        let mut wanted = vec![false; graph.values().len()];
        for (node, layer) in graph.nodes().iter().zip(&layers) {
            if node.is_gradient() {
                node.inputs.iter().for_each(|v| wanted[v.index()] = true);
                continue;
            }
            let again = self.may_repeat(graph, node, layer.is_some());
            for v in &node.outputs {
                forward[v.index()] = true;
                fixed[v.index()] = !again;
            }
            // What one layer hands to another is where a layer begins again.
            for v in &node.inputs {
                let made_in = maker(graph, *v).and_then(|number| layers[number]);
                fixed[v.index()] |= made_in.is_some() && made_in != *layer;
            }
        }
        let mut network = cut::Network::new(graph.values().len());
        for (at, info) in graph.values().iter().enumerate().filter(|&(at, _)| forward[at]) {
            network.price(at, info.kind.size_bytes());
            if fixed[at] {
                network.begin(at);
            }
            if wanted[at] {
                network.end(at);
            }
        }
        for node in graph.nodes().iter().filter(|node| !node.is_gradient()) {
            for input in node.inputs.iter().filter(|v| forward[v.index()]) {
                node.outputs.iter().for_each(|output| network.lead(input.index(), output.index()));
            }
        }
        let cut = network.cut();
        (0..forward.len()).map(|at| !forward[at] || cut[at]).collect()
    }

    fn may_repeat(&self, graph: &Graph, node: &Node, in_layer: bool) -> bool {
        let reads_state = node.inputs.iter().any(|&v| matches!(graph.info(v).source, Source::State));
        if !node.op.in_place().is_empty() || reads_state {
            return false;
        }
        if node.op.is_heavy() {
            return *self == Recompute::Layers && in_layer;
        }
        let types =
            |values: &[Value]| -> Vec<Type> { values.iter().map(|&v| graph.kind(v).clone()).collect() };
        let (inputs, outputs) = (types(&node.inputs), types(&node.outputs));
        let written: f64 = outputs.iter().map(|t| t.size_bytes() as f64).sum();
        node.op.is_view() || written >= WORTH_WRITING * node.op.cost(&inputs, &outputs).bytes
    }
}

/// Copies what makes `value`, from held values on, unless it is held or copied already.
fn copy_before(
    graph: &Graph,
    held: &[bool],
    rewriter: &mut Rewriter,
    copies: &mut [Option<Value>],
    value: Value,
) -> graph::Result<()> {
    if held[value.index()] || copies[value.index()].is_some() {
        return Ok(());
    }
    let Some(number) = maker(graph, value) else { return Ok(()) };
    let node = &graph.nodes()[number];
    if node.is_gradient() {
        return Ok(());
    }
    for &input in &node.inputs {
        copy_before(graph, held, rewriter, copies, input)?;
    }
    let inputs: Vec<Value> = node.inputs.iter().map(|&v| standing(rewriter, copies, v)).collect();
    let scope = format!("recompute.{}", node.scope);
    let located = |source| graph::Error::Operator { scope: scope.clone(), source };
    let outputs = rewriter.emit_in(&scope, |graph| graph.apply(node.op.clone(), &inputs)).map_err(located)?;
    for (old, new) in node.outputs.iter().zip(outputs) {
        if !held[old.index()] {
            copies[old.index()] = Some(new);
        }
    }
    Ok(())
}

/// What stands for a value in the backward part: its copy, or itself.
fn standing(rewriter: &Rewriter, copies: &[Option<Value>], value: Value) -> Value {
    copies[value.index()].unwrap_or_else(|| rewriter.get(value))
}

fn maker(graph: &Graph, value: Value) -> Option<usize> {
    match graph.info(value).source {
        Source::Node { node, .. } => Some(node),
        _ => None,
    }
}

/// The layer a node belongs to: its scope up to a number, such as `model.layers.3`. A cast that a storage type asks for has
/// no scope of the model and belongs where its value was made.
fn layer_of<'a>(graph: &'a Graph, node: &'a Node) -> Option<&'a str> {
    let numbered = |scope: &'a str| {
        let mut end = 0;
        for part in scope.split('.') {
            end += part.len();
            if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
                return Some(&scope[..end]);
            }
            end += 1;
        }
        None
    };
    numbered(&node.scope).or_else(|| {
        let made = maker(graph, *node.inputs.first()?)?;
        (node.op.name() == "cast").then(|| numbered(&graph.nodes()[made].scope))?
    })
}
