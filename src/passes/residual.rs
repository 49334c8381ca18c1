//! Sums around norms join them: a residual stream is added to and normed in one dispatch, forward and back.
//!
//! Forward, a norm that is the first to read a sum makes the sum itself and gives it as a further output. Backward, the sum of
//! a norm's gradient with what flows back around the norm is made where the gradient is.

use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, without_dead_nodes};
use crate::ops::{Operator, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// Joins sums with the norms before or behind them.
#[derive(Debug)]
pub struct Residual;

impl Pass for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn promise(&self) -> Promise {
        Promise::Exact
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let graph = without_dead_nodes(graph);
        let joints = Joints::of(&graph);
        let mut rewriter = Rewriter::new(&graph);
        for (number, node) in graph.nodes().iter().enumerate() {
            match joints.at.get(&number) {
                Some(joint) => {
                    let inputs: Vec<Value> = joint.inputs.iter().map(|&v| rewriter.get(v)).collect();
                    let joined = Node { outputs: joint.outputs.clone(), ..node.clone() };
                    rewriter.replace(&joined, joint.op.clone(), &inputs)?;
                }
                None if joints.sums.contains(&number) => {}
                None => rewriter.copy(node)?,
            }
        }
        Ok(rewriter.finish())
    }
}

/// A node that takes a sum in.
struct Joint {
    op: Arc<dyn Operator>,
    inputs: Vec<Value>,
    /// The old values its outputs stand for.
    outputs: Vec<Value>,
}

/// All joints of a graph by the number of their node, and the nodes that go.
struct Joints {
    at: HashMap<usize, Joint>,
    sums: Vec<usize>,
}

impl Joints {
    fn of(graph: &Graph) -> Self {
        let mut readers: Vec<Vec<usize>> = vec![vec![]; graph.values().len()];
        let mut maker: Vec<Option<usize>> = vec![None; graph.values().len()];
        for (number, node) in graph.nodes().iter().enumerate() {
            node.inputs.iter().for_each(|v| readers[v.index()].push(number));
            node.outputs.iter().for_each(|v| maker[v.index()] = Some(number));
        }
        let is_result = |value: Value| graph.outputs().iter().any(|(_, v)| *v == value);
        let mut joints = Joints { at: HashMap::new(), sums: vec![] };
        for (number, node) in graph.nodes().iter().enumerate() {
            let Some([a, b]) = sum_of_two(graph, node) else { continue };
            let sum = node.outputs[0];
            // Forward: the first reader is a norm.
            let first = readers[sum.index()].first().copied();
            let norm = first.filter(|n| !joints.at.contains_key(n)).map(|n| (n, &graph.nodes()[n]));
            if let Some((at, norm)) = norm.filter(|(_, n)| n.inputs[0] == sum)
                && let Some(op) = norm.op.with_residual()
            {
                let inputs = [&[a], &norm.inputs[1..], &[b]].concat();
                let outputs = [&norm.outputs[..], &[sum]].concat();
                joints.at.insert(at, Joint { op, inputs, outputs });
                joints.sums.push(number);
                continue;
            }
            // Backward: one side is a gradient that nothing else reads, the other was there before.
            for (own, other) in [(a, b), (b, a)] {
                let Some(at) = maker[own.index()].filter(|at| !joints.at.contains_key(at)) else { continue };
                let gradient = &graph.nodes()[at];
                let alone = readers[own.index()].len() == 1 && !is_result(own);
                let there = maker[other.index()].is_none_or(|maker| joints.is_made_before(other, maker, at));
                if gradient.outputs[0] != own || !alone || !there {
                    continue;
                }
                if let Some(op) = gradient.op.with_addend() {
                    let inputs = [&gradient.inputs[..], &[other]].concat();
                    let outputs = [&[sum], &gradient.outputs[1..]].concat();
                    joints.at.insert(at, Joint { op, inputs, outputs });
                    joints.sums.push(number);
                    break;
                }
            }
        }
        joints
    }

    /// True if a value, which node `maker` made, is made before node `at` with all joints so far.
    fn is_made_before(&self, value: Value, maker: usize, at: usize) -> bool {
        if !self.sums.contains(&maker) {
            return maker < at;
        }
        self.at.iter().any(|(&number, joint)| number < at && joint.outputs.contains(&value))
    }
}

/// The inputs of a plain sum of two values of the sum's own type.
fn sum_of_two(graph: &Graph, node: &Node) -> Option<[Value; 2]> {
    let &[a, b] = &node.inputs[..] else { return None };
    let kind = graph.kind(node.outputs[0]);
    (node.op.name() == "add" && graph.kind(a) == kind && graph.kind(b) == kind).then_some([a, b])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Feeds, evaluate, gradient};
    use crate::ops::layer_norm::LayerNormEmit;
    use crate::ops::pointwise::PointwiseEmit;
    use crate::ops::reduce::ReduceEmit;
    use crate::ops::rms_norm::RmsNormEmit;
    use crate::tensor::random::Stream;
    use crate::tensor::{DType, Tensor, Type};

    /// Two blocks over a residual stream, each with a norm, and the gradients of everything.
    fn blocks(rms: bool) -> Graph {
        let mut graph = Graph::new();
        let mut stream = graph.parameter("x", Type::f32([3, 4]));
        let mut weights = vec![stream];
        for block in 0..3 {
            let weight = graph.parameter(format!("w{block}"), Type::f32([4]));
            weights.push(weight);
            let normed = match rms {
                true => graph.rms_norm(stream, weight, 1e-5).unwrap(),
                false => graph.layer_norm(stream, Some(weight), None, 1e-5).unwrap(),
            };
            let branch = graph.pointwise("tanh", &[normed], 0.0).unwrap();
            stream = graph.add(stream, branch).unwrap();
        }
        let square = graph.pointwise("square", &[stream], 0.0).unwrap();
        let loss = graph.sum_all(square).unwrap();
        let gradients = gradient(&mut graph, loss, &weights).unwrap();
        graph.output("loss", loss);
        for (number, gradient) in gradients.into_iter().enumerate() {
            graph.output(format!("gradient{number}"), gradient.unwrap());
        }
        graph
    }

    fn count(graph: &Graph, name: &str) -> usize {
        graph.nodes().iter().filter(|n| n.op.name() == name).count()
    }

    #[test]
    fn sums_before_norms_and_behind_their_gradients_join_them_and_change_no_value() {
        for rms in [true, false] {
            let graph = blocks(rms);
            let joined = Residual.rewrite(&graph).unwrap();
            joined.verify().unwrap();
            // Three sums forward, of which the last is no norm's, and three backward.
            assert_eq!((count(&graph, "add"), count(&joined, "add")), (6, 1), "{joined}");
            let mut random = Stream::new(&[5]);
            let mut feeds = Feeds::new();
            feeds.set("x", Tensor::f32([3, 4], (0..12).map(|_| random.normal() as f32).collect()));
            for block in 0..3 {
                let weight = (0..4).map(|_| 1.0 + 0.1 * random.normal() as f32).collect();
                feeds.set(format!("w{block}"), Tensor::f32([4], weight));
            }
            let before = evaluate(&graph, &feeds, DType::F32).unwrap();
            let after = evaluate(&joined, &feeds, DType::F32).unwrap();
            assert_eq!(before, after);
        }
    }

    #[test]
    fn a_sum_that_is_read_before_the_norm_stays() {
        let mut graph = Graph::new();
        let (x, y) = (graph.input("x", Type::f32([2, 4])), graph.input("y", Type::f32([2, 4])));
        let weight = graph.parameter("w", Type::f32([4]));
        let sum = graph.add(x, y).unwrap();
        let early = graph.scale(sum, 2.0).unwrap();
        let normed = graph.rms_norm(sum, weight, 1e-5).unwrap();
        graph.output("early", early);
        graph.output("normed", normed);
        assert_eq!(count(&Residual.rewrite(&graph).unwrap(), "add"), 1);
    }

    #[test]
    fn a_gradient_that_others_read_and_a_sum_that_broadcasts_stay() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([2, 4]));
        let row = graph.input("row", Type::f32([4]));
        let weight = graph.parameter("w", Type::f32([4]));
        let sum = graph.add(x, row).unwrap();
        let normed = graph.rms_norm(sum, weight, 1e-5).unwrap();
        graph.output("normed", normed);
        let total = graph.sum_all(normed).unwrap();
        let gradient = gradient(&mut graph, total, &[x]).unwrap()[0].unwrap();
        let more = graph.add(gradient, x).unwrap();
        graph.output("gradient", gradient);
        graph.output("more", more);
        assert_eq!(count(&Residual.rewrite(&graph).unwrap(), "add"), 2);
    }
}
