//! Weights held as int8 codes alone: what reads them reads numbers made of the codes just before, and gradients are those numbers'.

use super::{Pass, Promise};
use crate::graph::{self, Graph, Rewriter, without_dead_nodes};
use crate::ops::Value;
use crate::ops::block_numbers::BlockNumbersEmit;
use crate::ops::optimizer::bytes::GROUP;
use crate::tensor::{DType, Type};
use std::collections::{HashMap, HashSet};

/// Name of the parameter that holds the scales of a weight.
pub fn scales_name(weight: &str) -> String {
    format!("{weight}.scales")
}

/// Declares weights of linear layers as codes with a scale for each 256; see [`super::linear_weights`] for those there are.
#[derive(Clone, Debug)]
pub struct ByteWeights {
    /// Their names.
    pub weights: HashSet<String>,
}

impl Pass for ByteWeights {
    fn name(&self) -> &'static str {
        "byte_weights"
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let graph = without_dead_nodes(graph);
        let mut rewriter = Rewriter::new(&graph);
        let mut scales = HashMap::new();
        for (name, weight) in graph.parameters().filter(|(name, _)| self.weights.contains(*name)) {
            let shape = graph.kind(weight).shape.clone();
            let kind = Type::f32([shape.count().div_ceil(GROUP)]);
            rewriter.retype(weight, Type::new(DType::I8, shape));
            let of = rewriter.emit_in("", |graph| graph.parameter(scales_name(name), kind));
            scales.insert(weight, of);
        }
        for node in graph.nodes() {
            let mut inputs = vec![];
            for &input in &node.inputs {
                let here = rewriter.get(input);
                inputs.push(match scales.get(&input) {
                    Some(&scales) => {
                        rewriter.emit_in(&node.scope, |graph| graph.block_numbers(here, scales))?
                    }
                    None => here,
                });
            }
            rewriter.replace(node, node.op.clone(), &inputs)?;
        }
        Ok(rewriter.finish())
    }
}

/// Makes the numbers of codes again for each reader, so that no weight lies about in 32 bits from the forward to the backward part.
///
/// Run it after `tidy`, which would join the copies again.
#[derive(Clone, Copy, Debug)]
pub struct Unheld;

impl Pass for Unheld {
    fn name(&self) -> &'static str {
        "unheld"
    }

    fn promise(&self) -> Promise {
        Promise::Exact
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let makers: HashMap<Value, &graph::Node> = graph
            .nodes()
            .iter()
            .filter(|node| node.op.name() == "block_numbers")
            .map(|node| (node.outputs[0], node))
            .collect();
        if makers.is_empty() {
            return Ok(graph.clone());
        }
        let mut rewriter = Rewriter::new(graph);
        for node in graph.nodes() {
            let mut inputs = vec![];
            for &input in &node.inputs {
                inputs.push(match makers.get(&input) {
                    Some(maker) => {
                        let (codes, scales) = (rewriter.get(maker.inputs[0]), rewriter.get(maker.inputs[1]));
                        rewriter.emit_in(&node.scope, |graph| graph.block_numbers(codes, scales))?
                    }
                    None => rewriter.get(input),
                });
            }
            rewriter.replace(node, node.op.clone(), &inputs)?;
        }
        Ok(without_dead_nodes(&rewriter.finish()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::gradient;
    use crate::ops::block_numbers::BlockNumbersEmit;
    use crate::ops::matmul::{Form, MatmulEmit};
    use crate::ops::pointwise::PointwiseEmit;
    use crate::ops::reduce::ReduceEmit;

    #[test]
    fn a_layer_reads_numbers_of_its_own_forward_and_backward_and_codes_have_a_gradient_in_f32() {
        let mut graph = Graph::new();
        let x = graph.parameter("x", Type::f32([2, 3]));
        let w = graph.parameter("w", Type::f32([3, 4]));
        let y = graph.linear(Form::Nn, x, w, None).unwrap();
        let loss = graph.sum_all(y).unwrap();
        graph.output("loss", loss);
        let pass = ByteWeights { weights: ["w".to_string()].into() };
        let mut graph = pass.rewrite(&graph).unwrap();
        let [x, w] = ["x", "w"].map(|name| graph.named(name).unwrap());
        assert_eq!(graph.kind(w), &Type::new(DType::I8, [3, 4]));
        assert_eq!(graph.kind(graph.named("w.scales").unwrap()), &Type::f32([1]));
        let loss = graph.result("loss").unwrap();
        let gradients = gradient(&mut graph, loss, &[x, w]).unwrap();
        assert_eq!(graph.kind(gradients[1].unwrap()), &Type::f32([3, 4]));
        for (name, gradient) in ["dx", "dw"].into_iter().zip(gradients) {
            graph.output(name, gradient.unwrap());
        }
        let count = |graph: &Graph| graph.nodes().iter().filter(|n| n.op.name() == "block_numbers").count();
        assert_eq!(count(&graph), 1);
        let apart = Unheld.rewrite(&graph).unwrap();
        apart.verify().unwrap();
        assert_eq!(count(&apart), 2, "one for the product, one for the gradient of x");
    }

    #[test]
    fn the_gradient_of_codes_is_that_of_their_numbers() {
        let mut graph = Graph::new();
        let q = graph.parameter("q", Type::new(DType::I8, [2, 3]));
        let s = graph.parameter("s", Type::f32([1]));
        let y = graph.block_numbers(q, s).unwrap();
        let square = graph.pointwise("square", &[y], 0.0).unwrap();
        let loss = graph.sum_all(square).unwrap();
        let gradients = gradient(&mut graph, loss, &[q, s]).unwrap();
        assert_eq!(graph.kind(gradients[0].unwrap()), &Type::f32([2, 3]));
        assert_eq!(gradients[1], None);
    }
}
