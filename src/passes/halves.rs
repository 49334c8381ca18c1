//! Weights held in bf16 alone: the layers that read them read 16 bits, and their gradients are f32.

use super::{Pass, Promise};
use crate::graph::{self, Graph, Rewriter, without_dead_nodes};
use crate::ops::Value;
use crate::tensor::{DType, Type};
use std::collections::HashSet;

/// Declares weights of linear layers as bf16; see [`super::linear_weights`] for those there are.
#[derive(Clone, Debug)]
pub struct HalfWeights {
    /// Their names.
    pub weights: HashSet<String>,
}

impl Pass for HalfWeights {
    fn name(&self) -> &'static str {
        "half_weights"
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let graph = without_dead_nodes(graph);
        let mut rewriter = Rewriter::new(&graph);
        let is_half =
            |value: Value| graph.info(value).name.as_deref().is_some_and(|name| self.weights.contains(name));
        for (_, weight) in graph.parameters().filter(|&(_, value)| is_half(value)) {
            let shape = graph.kind(weight).shape.clone();
            rewriter.retype(weight, Type::new(DType::BF16, shape));
        }
        for node in graph.nodes() {
            match node.op.reading_halves() {
                Some((op, _)) if node.inputs.iter().any(|&v| is_half(v)) => {
                    let inputs: Vec<Value> = node.inputs.iter().map(|&v| rewriter.get(v)).collect();
                    rewriter.replace(node, op, &inputs)?;
                }
                _ => rewriter.copy(node)?,
            }
        }
        Ok(rewriter.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::gradient;
    use crate::ops::matmul::{Form, MatmulEmit};
    use crate::ops::reduce::ReduceEmit;

    #[test]
    fn a_layer_reads_its_weight_in_bf16_and_gives_it_a_gradient_in_f32() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([2, 3]));
        let (w, b) = (graph.parameter("w", Type::f32([3, 4])), graph.parameter("b", Type::f32([4])));
        let y = graph.linear(Form::Nn, x, w, Some(b)).unwrap();
        let loss = graph.sum_all(y).unwrap();
        graph.output("loss", loss);
        let mut half = HalfWeights { weights: ["w".to_string()].into() }.rewrite(&graph).unwrap();
        half.verify().unwrap();
        let [w, b, x] = ["w", "b", "x"].map(|name| half.named(name).unwrap());
        assert_eq!([w, b].map(|v| half.kind(v).dtype), [DType::BF16, DType::F32]);
        let loss = half.result("loss").unwrap();
        for gradient in gradient(&mut half, loss, &[w, b, x]).unwrap() {
            assert_eq!(half.kind(gradient.unwrap()).dtype, DType::F32);
        }
        half.verify().unwrap();
    }
}
