//! Storage precision: what is stored in 16 bits, as one of two policies.
//!
//! [`Extent::Everything`], for f16 where the adapter computes with it: activations and the copies of weights that are
//! computed with. Losses and saved statistics stay f32 as the operators say.
//!
//! [`Extent::Operands`], for bf16, and for f16 where the adapter lacks its arithmetic: the operands of matmuls alone, so the
//! copies of weights and what is saved for the gradients of matmuls. All else is f32, gradients too.
//!
//! Under both, sums stay f32 inside every kernel, and so do the weights themselves: each is cast once per step, so the
//! gradient that reaches it is f32 again.

use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, Source, without_dead_nodes};
use crate::ops::Value;
use crate::ops::cast::CastEmit;
use crate::ops::launch::Caps;
use crate::tensor::DType;
use std::collections::HashMap;

/// Which values are stored in 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All that operators compute from: weights, inputs and activations.
    Everything,
    /// What operators read as packed words: the operands of matmuls.
    Operands,
}

/// Stores floats as `storage` wherever operators compute from weights, inputs or activations.
#[derive(Debug)]
pub struct Precision {
    /// The storage type; f32 changes nothing.
    pub storage: DType,
    /// How far it reaches.
    pub extent: Extent,
}

impl Precision {
    /// The policy for a storage type on an adapter.
    pub fn on(storage: DType, caps: &Caps) -> Precision {
        let everything = storage == DType::F16 && caps.f16;
        Precision { storage, extent: if everything { Extent::Everything } else { Extent::Operands } }
    }
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
            match self.extent {
                Extent::Everything => {
                    let inputs = self.lowered_inputs(&mut rewriter, node, &mut casts)?;
                    rewriter.replace(node, node.op.clone(), &inputs)?;
                }
                Extent::Operands => self.pack_operands(&mut rewriter, node, &mut casts)?,
            }
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
            let stays = !kind.dtype.is_float() || kind.dtype == self.storage || node.op.keeps_single(at);
            lowered.push(if stays { value } else { self.cast(rewriter, value, casts)? });
        }
        Ok(lowered)
    }

    /// Writes a node with those inputs in the storage type that its operator reads as packed words.
    fn pack_operands(
        &self,
        rewriter: &mut Rewriter,
        node: &Node,
        casts: &mut HashMap<Value, Value>,
    ) -> graph::Result<()> {
        let Some((op, positions)) = node.op.reading_halves() else { return rewriter.copy(node) };
        let mut inputs: Vec<Value> = node.inputs.iter().map(|&v| rewriter.get(v)).collect();
        for &at in positions {
            if rewriter.new.kind(inputs[at]).dtype == DType::F32 {
                inputs[at] = self.cast(rewriter, inputs[at], casts)?;
            }
        }
        rewriter.replace(node, op, &inputs)
    }

    /// The value in the storage type, cast once however many read it.
    fn cast(
        &self,
        rewriter: &mut Rewriter,
        value: Value,
        casts: &mut HashMap<Value, Value>,
    ) -> graph::Result<Value> {
        if let Some(&done) = casts.get(&value) {
            return Ok(done);
        }
        let done = rewriter.emit_in("precision", |graph| graph.cast(value, self.storage))?;
        casts.insert(value, done);
        Ok(done)
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
    use crate::ops::matmul::{Form, MatmulEmit};
    use crate::ops::pointwise::PointwiseEmit;
    use crate::ops::reduce::ReduceEmit;
    use crate::ops::rotary::{Pairing, Rotary, RotaryEmit, tables};
    use crate::tensor::Type;

    const WITH_F16: Precision = Precision { storage: DType::F16, extent: Extent::Everything };

    #[test]
    fn bf16_and_f16_without_arithmetic_reach_the_operands_of_matmuls_alone() {
        for storage in [DType::BF16, DType::F16] {
            let mut graph = Graph::new();
            let x = graph.input("x", Type::f32([2, 3]));
            let [v, w] = [[3, 4], [4, 5]].map(|shape| {
                let name = format!("w{}", shape[0]);
                graph.parameter(name, Type::f32(shape))
            });
            let bias = graph.parameter("bias", Type::f32([4]));
            let y = graph.linear(Form::Nn, x, v, Some(bias)).unwrap();
            let y = graph.pointwise("tanh", &[y], 0.0).unwrap();
            let y = graph.matmul(y, w).unwrap();
            let loss = graph.sum_all(y).unwrap();
            graph.output("loss", loss);
            let mut packed = Precision::on(storage, &Caps::portable()).rewrite(&graph).unwrap();
            let loss = packed.result("loss").unwrap();
            let wrt: Vec<Value> = packed.parameters().map(|(_, v)| v).collect();
            for dw in gradient(&mut packed, loss, &wrt).unwrap() {
                assert_eq!(packed.kind(dw.unwrap()).dtype, DType::F32);
            }
            packed.verify().unwrap();
            for node in packed.nodes() {
                let made = packed.kind(node.outputs[0]).dtype;
                assert_eq!(made, if node.op.name() == "cast" { storage } else { DType::F32 });
                let halves = node.inputs.iter().filter(|v| packed.kind(**v).dtype == storage).count();
                match node.op.name() {
                    // The second operand of a gradient is what flows back.
                    "matmul" => assert!(halves == 2 || node.scope.starts_with("gradient") && halves == 1),
                    _ => assert_eq!(halves, 0, "{} reads {halves}", node.op.name()),
                }
            }
            assert_eq!(packed.nodes().iter().filter(|node| node.op.name() == "cast").count(), 4);
        }
        let with_arithmetic = Caps { f16: true, ..Caps::portable() };
        assert_eq!(Precision::on(DType::F16, &with_arithmetic).extent, Extent::Everything);
    }

    #[test]
    fn activations_are_halved_and_the_gradient_of_a_weight_is_f32() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([1]));
        let w = graph.parameter("w", Type::f32([1]));
        let y = graph.mul(x, w).unwrap();
        let y = graph.pointwise("tanh", &[y], 0.0).unwrap();
        graph.output("y", y);
        let mut half = WITH_F16.rewrite(&graph).unwrap();
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
        let half = WITH_F16.rewrite(&graph).unwrap();
        half.verify().unwrap();
        assert_eq!(half.kind(half.result("y").unwrap()).dtype, DType::F16);
    }
}
