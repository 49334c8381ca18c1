//! Results take the place of what they are made from, where nothing reads that any more: the memory of one value is spared.
//!
//! Logits are the largest value of most language models; their gradient is written over them.

use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, Source, storage_roots, without_dead_nodes};
use crate::ops::{Operator, Value};
use std::sync::Arc;

/// Lets operators that can overwrite their first input do so when they are the last to touch it.
#[derive(Debug)]
pub struct Overwrite;

impl Pass for Overwrite {
    fn name(&self) -> &'static str {
        "overwrite"
    }

    fn promise(&self) -> Promise {
        Promise::Exact
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let graph = without_dead_nodes(graph);
        let last = last_touches(&graph);
        let mut rewriter = Rewriter::new(&graph);
        for (number, node) in graph.nodes().iter().enumerate() {
            match overwriting(&graph, &last, number, node) {
                Some(op) => {
                    let inputs: Vec<Value> = node.inputs.iter().map(|&v| rewriter.get(v)).collect();
                    rewriter.replace(node, op, &inputs)?;
                }
                None => rewriter.copy(node)?,
            }
        }
        Ok(rewriter.finish())
    }
}

/// What is known of each value's storage: the last node that reads it, or none if it must last.
fn last_touches(graph: &Graph) -> Vec<Option<usize>> {
    let storage = storage_roots(graph);
    let mut last: Vec<Option<usize>> = vec![Some(0); graph.values().len()];
    for (number, node) in graph.nodes().iter().enumerate().filter(|(_, n)| !n.op.is_view()) {
        node.inputs.iter().for_each(|v| last[storage[v.index()].index()] = Some(number));
    }
    for (at, info) in graph.values().iter().enumerate() {
        if !matches!(info.source, Source::Node { .. }) {
            last[at] = None;
        }
    }
    graph.outputs().iter().for_each(|(_, v)| last[storage[v.index()].index()] = None);
    storage.iter().map(|root| last[root.index()]).collect()
}

/// The overwriting form of a node, if it has one and its first input's storage is free after it.
fn overwriting(
    graph: &Graph,
    last: &[Option<usize>],
    number: usize,
    node: &Node,
) -> Option<Arc<dyn Operator>> {
    let &input = node.inputs.first()?;
    let once = node.inputs.iter().filter(|&&v| v == input).count() == 1;
    let same = graph.kind(input) == graph.kind(node.outputs[0]);
    (once && same && last[input.index()] == Some(number)).then(|| node.op.overwriting())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Feeds, evaluate, gradient};
    use crate::ops::cross_entropy::{CrossEntropy, CrossEntropyEmit};
    use crate::ops::matmul::MatmulEmit;
    use crate::tensor::{DType, Tensor, Type};

    fn classifier([rows, classes]: [usize; 2], keep_logits: bool) -> Graph {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([rows, 2]));
        let w = graph.input("w", Type::f32([2, classes]));
        let targets = graph.input("targets", Type::new(DType::I32, [rows]));
        let logits = graph.matmul(x, w).unwrap();
        let loss = graph.cross_entropy(logits, targets, CrossEntropy::default()).unwrap();
        let dx = gradient(&mut graph, loss, &[x]).unwrap()[0].unwrap();
        graph.output("loss", loss);
        graph.output("dx", dx);
        if keep_logits {
            graph.output("logits", logits);
        }
        graph
    }

    fn overwrites(graph: &Graph) -> bool {
        graph.nodes().iter().any(|n| !n.op.in_place().is_empty())
    }

    #[test]
    fn the_gradient_takes_the_place_of_logits_that_nothing_reads_and_no_value_changes() {
        let graph = classifier([2, 3], false);
        let spared = Overwrite.rewrite(&graph).unwrap();
        spared.verify().unwrap();
        assert!(overwrites(&spared));
        let mut feeds = Feeds::new();
        feeds.set("x", Tensor::f32([2, 2], vec![0.5, -1.0, 2.0, 0.0]));
        feeds.set("w", Tensor::f32([2, 3], vec![0.5, -1.0, 2.0, 0.0, 0.25, -3.0]));
        feeds.set("targets", Tensor::i32([2], vec![2, 0]));
        let results = |graph: &Graph| evaluate(graph, &feeds, DType::F32).unwrap();
        assert_eq!(results(&graph), results(&spared));
    }

    #[test]
    fn logits_that_are_a_result_stay() {
        assert!(!overwrites(&Overwrite.rewrite(&classifier([2, 3], true)).unwrap()));
    }
}
