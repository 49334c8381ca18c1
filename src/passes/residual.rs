//! Sums around norms join them: a residual stream is added to and normed in one dispatch, forward and back.
//!
//! Forward, a norm that is the first to read a sum makes the sum itself and gives it as a further output. Backward, the sum of
//! a norm's gradient with what flows back around the norm is made where the gradient is.

use super::join::{Join, Joins, Readers};
use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, without_dead_nodes};
use crate::ops::Value;

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
        joins(&graph).rewrite(&graph)
    }
}

fn joins(graph: &Graph) -> Joins {
    let readers = Readers::of(graph);
    let mut maker: Vec<Option<usize>> = vec![None; graph.values().len()];
    for (number, node) in graph.nodes().iter().enumerate() {
        node.outputs.iter().for_each(|v| maker[v.index()] = Some(number));
    }
    let mut joins = Joins::default();
    for (number, node) in graph.nodes().iter().enumerate() {
        let Some([a, b]) = sum_of_two(graph, node) else { continue };
        let sum = node.outputs[0];
        // Forward: the first reader is a norm.
        let first = readers.nodes[sum.index()].first().copied();
        let norm = first.filter(|n| !joins.at.contains_key(n)).map(|n| (n, &graph.nodes()[n]));
        if let Some((at, norm)) = norm.filter(|(_, n)| n.inputs[0] == sum)
            && let Some(op) = norm.op.with_residual()
        {
            let inputs = [&[a], &norm.inputs[1..], &[b]].concat();
            let outputs = [&norm.outputs[..], &[sum]].concat();
            joins.at.insert(at, Join { op, inputs, outputs });
            joins.gone.insert(number);
            continue;
        }
        // Backward: one side is a gradient that nothing else reads, the other was there before.
        for (own, other) in [(a, b), (b, a)] {
            let Some(at) = maker[own.index()].filter(|at| !joins.at.contains_key(at)) else { continue };
            let gradient = &graph.nodes()[at];
            let there = maker[other.index()].is_none_or(|maker| is_made_before(&joins, other, maker, at));
            if gradient.outputs[0] != own || readers.only(own).is_none() || !there {
                continue;
            }
            if let Some(op) = gradient.op.with_addend() {
                let inputs = [&gradient.inputs[..], &[other]].concat();
                let outputs = [&[sum], &gradient.outputs[1..]].concat();
                joins.at.insert(at, Join { op, inputs, outputs });
                joins.gone.insert(number);
                break;
            }
        }
    }
    joins
}

/// True if a value, which node `maker` made, is made before node `at` with all joins so far.
fn is_made_before(joins: &Joins, value: Value, maker: usize, at: usize) -> bool {
    if !joins.gone.contains(&maker) {
        return maker < at;
    }
    joins.at.iter().any(|(&number, join)| number < at && join.outputs.contains(&value))
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
