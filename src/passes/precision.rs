//! Storage precision: activations and the copies of weights that are computed with are stored as f16.
//!
//! Sums stay in f32 inside every kernel; losses and saved statistics stay f32 as the operators say. Weights themselves stay
//! f32: each is cast once per step, so the gradient that reaches it is f32 again.

use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, Source, without_dead_nodes};
use crate::ops::Value;
use crate::ops::cast::CastEmit;
use crate::tensor::DType;
use std::collections::HashMap;

/// Stores floats as `storage` wherever operators compute from weights, inputs or activations.
#[derive(Debug)]
pub struct Precision {
    /// The storage type; f32 changes nothing.
    pub storage: DType,
}

impl Pass for Precision {
    fn name(&self) -> &'static str {
        "precision"
    }

    fn promise(&self) -> Promise {
        if self.storage == DType::F32 { Promise::Exact } else { Promise::Lossy }
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        if self.storage == DType::F32 {
            return Ok(graph.clone());
        }
        let graph = without_dead_nodes(graph);
        let mut rewriter = Rewriter::new(&graph);
        let mut casts: HashMap<Value, Value> = HashMap::new();
        for node in graph.nodes() {
            let inputs = self.lowered_inputs(&mut rewriter, node, &mut casts)?;
            rewriter.replace(node, node.op.clone(), &inputs)?;
        }
        Ok(rewriter.finish())
    }
}

impl Precision {
    /// Inputs of a node in the storage type, unless all its floats are statistics, which stay what they are.
    fn lowered_inputs(
        &self,
        rewriter: &mut Rewriter,
        node: &Node,
        casts: &mut HashMap<Value, Value>,
    ) -> graph::Result<Vec<Value>> {
        let inputs: Vec<Value> = node.inputs.iter().map(|&v| rewriter.get(v)).collect();
        let is_statistic = |rewriter: &Rewriter, v: Value| {
            let info = rewriter.new.info(v);
            matches!(info.source, Source::Node { .. }) && info.kind.dtype == DType::F32
        };
        let floats: Vec<Value> =
            inputs.iter().copied().filter(|&v| rewriter.new.kind(v).dtype.is_float()).collect();
        if floats.iter().any(|&v| is_statistic(rewriter, v))
            && !floats.iter().any(|&v| self.is_lowered(rewriter, v))
        {
            return Ok(inputs);
        }
        let mut lowered = vec![];
        for (at, value) in inputs.into_iter().enumerate() {
            let kind = rewriter.new.kind(value).clone();
            if !kind.dtype.is_float() || kind.dtype == self.storage || node.op.keeps_single(at) {
                lowered.push(value);
                continue;
            }
            if let Some(&done) = casts.get(&value) {
                lowered.push(done);
                continue;
            }
            let done = rewriter.emit_in("precision", |graph| graph.cast(value, self.storage))?;
            casts.insert(value, done);
            lowered.push(done);
        }
        Ok(lowered)
    }

    fn is_lowered(&self, rewriter: &Rewriter, value: Value) -> bool {
        rewriter.new.kind(value).dtype == self.storage
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::gradient;
    use crate::ops::Emit;
    use crate::ops::pointwise::PointwiseEmit;
    use crate::ops::rotary::{Pairing, Rotary, RotaryEmit, tables};
    use crate::tensor::Type;

    #[test]
    fn activations_are_halved_and_the_gradient_of_a_weight_is_f32() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([1]));
        let w = graph.parameter("w", Type::f32([1]));
        let y = graph.mul(x, w).unwrap();
        let y = graph.pointwise("tanh", &[y], 0.0).unwrap();
        graph.output("y", y);
        let mut half = Precision { storage: DType::F16 }.rewrite(&graph).unwrap();
        half.verify().unwrap();
        let y = half.result("y").unwrap();
        assert_eq!(half.kind(y).dtype, DType::F16);
        let w = half.named("w").unwrap();
        let loss = half.cast(y, DType::F32).unwrap();
        let dw = gradient(&mut half, loss, &[w]).unwrap()[0].unwrap();
        assert_eq!(half.kind(dw).dtype, DType::F32);
    }

    #[test]
    fn tables_of_angles_stay_single_while_what_they_turn_is_halved() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([1, 3, 2, 4]));
        let tables = tables(3, 4, 10_000.0).map(|table| graph.constant(table));
        let y = graph.rotary(&Rotary::new(Pairing::Half, 2), x, tables, None).unwrap();
        graph.output("y", y);
        let half = Precision { storage: DType::F16 }.rewrite(&graph).unwrap();
        half.verify().unwrap();
        assert_eq!(half.kind(half.result("y").unwrap()).dtype, DType::F16);
    }
}
