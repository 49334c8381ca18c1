//! Housekeeping: what is computed twice, computed from constants, or changes nothing, goes.

use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, Source, without_dead_nodes};
use crate::ops::pointwise::Pointwise;
use crate::ops::{Emit, Value};
use crate::tensor::{Tensor, Type};
use std::collections::HashMap;
use std::sync::Arc;

/// Constants larger than this stay computed: a constant takes memory for the whole run.
const MOST_FOLDED: usize = 4096;

/// Removes dead, repeated, idle and constant nodes, and lets pointwise operators do their own broadcasting.
#[derive(Debug)]
pub struct Tidy;

impl Pass for Tidy {
    fn name(&self) -> &'static str {
        "tidy"
    }

    fn promise(&self) -> Promise {
        Promise::Exact
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let graph = without_dead_nodes(graph);
        let mut rewriter = Rewriter::new(&graph);
        let mut seen: HashMap<(&str, String, Vec<Value>), Vec<Value>> = HashMap::new();
        for node in graph.nodes() {
            if let Some(same) = stands_for(&rewriter, node) {
                rewriter.set(node.outputs[0], same);
                continue;
            }
            if let Some(tensor) = folded(&rewriter, node) {
                let value = rewriter.new.constant(tensor);
                rewriter.set(node.outputs[0], value);
                continue;
            }
            let inputs = own_broadcast(&rewriter, node);
            let key = (node.op.name(), node.op.settings(), inputs.clone());
            match seen.get(&key) {
                Some(outputs) if node.op.in_place().is_empty() => {
                    node.outputs.iter().zip(outputs.clone()).for_each(|(&old, new)| rewriter.set(old, new));
                }
                _ => {
                    rewriter.replace(node, node.op.clone(), &inputs)?;
                    seen.insert(key, node.outputs.iter().map(|&v| rewriter.get(v)).collect());
                }
            }
        }
        Ok(without_dead_nodes(&rewriter.finish()))
    }
}

/// The value an idle node's output can be read from instead.
fn stands_for(rewriter: &Rewriter, node: &Node) -> Option<Value> {
    let input = rewriter.get(*node.inputs.first()?);
    let idle = match (node.op.name(), node.op.settings().as_str()) {
        ("identity", _) | ("scale", "k=1") | ("shift", "k=0") => true,
        ("reshape" | "expand" | "cast", _) => {
            let types = [rewriter.new.kind(input).clone()];
            node.op.signature(&types).ok()?[0] == types[0]
        }
        _ => false,
    };
    idle.then_some(input)
}

/// The result of a small node over constants.
fn folded(rewriter: &Rewriter, node: &Node) -> Option<Tensor> {
    if node.outputs.len() != 1 || node.inputs.is_empty() || !node.op.in_place().is_empty() {
        return None;
    }
    let mut inputs: Vec<Arc<Tensor>> = vec![];
    let mut types: Vec<Type> = vec![];
    for &value in &node.inputs {
        let info = rewriter.new.info(rewriter.get(value));
        match &info.source {
            // Half precision constants do not exist on the host, so a result of that type is left to the device.
            Source::Constant(tensor) if !info.kind.dtype.is_half() => inputs.push(tensor.clone()),
            _ => return None,
        }
        types.push(info.kind.clone());
    }
    let kind = node.op.signature(&types).ok()?.remove(0);
    if kind.shape.count() > MOST_FOLDED || kind.dtype.is_half() {
        return None;
    }
    let mut outputs = [Tensor::zeros(&kind)];
    node.op.reference(&inputs.iter().map(Arc::as_ref).collect::<Vec<_>>(), &mut outputs);
    let [result] = outputs;
    Some(result)
}

/// Inputs of a node, where a pointwise operator reads through an `expand` that another input makes unnecessary.
fn own_broadcast(rewriter: &Rewriter, node: &Node) -> Vec<Value> {
    let inputs: Vec<Value> = node.inputs.iter().map(|&v| rewriter.get(v)).collect();
    if node.op.pointwise().is_none() {
        return inputs;
    }
    let mut bare = inputs.clone();
    for i in 0..bare.len() {
        let Some(from) = expanded_from(&rewriter.new, bare[i]) else { continue };
        let kept = std::mem::replace(&mut bare[i], from);
        let type_of = |values: &[Value]| {
            let types: Vec<Type> = values.iter().map(|&v| rewriter.new.kind(v).clone()).collect();
            node.op.signature(&types).ok()
        };
        if type_of(&bare) != type_of(&inputs) {
            bare[i] = kept;
        }
    }
    bare
}

fn expanded_from(graph: &Graph, value: Value) -> Option<Value> {
    match graph.info(value).source {
        Source::Node { node, .. } if graph.nodes()[node].op.name() == "expand" => {
            Some(graph.nodes()[node].inputs[0])
        }
        _ => None,
    }
}

/// True for an operator that computes element by element.
pub(super) fn program(node: &Node) -> Option<&Pointwise> {
    node.op.pointwise()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pointwise::PointwiseEmit;
    use crate::ops::reduce::ReduceEmit;

    #[test]
    fn repeated_idle_and_constant_nodes_go() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([2, 3]));
        let once = graph.pointwise("exp", &[x], 0.0).unwrap();
        let twice = graph.pointwise("exp", &[x], 0.0).unwrap();
        let idle = graph.scale(twice, 1.0).unwrap();
        let two = graph.constant(Tensor::scalar(2.0));
        let six = graph.scale(two, 3.0).unwrap();
        let wide = graph.expand_to(six, &[2, 3].into()).unwrap();
        let sum = graph.add(once, idle).unwrap();
        let y = graph.mul(sum, wide).unwrap();
        graph.output("y", y);
        let tidied = Tidy.rewrite(&graph).unwrap();
        tidied.verify().unwrap();
        let names: Vec<_> = tidied.nodes().iter().map(|n| n.op.name()).collect();
        assert_eq!(names, ["exp", "add", "mul"]);
    }
}
