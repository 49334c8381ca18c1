//! Low-rank adapters beside linear layers (LoRA, Hu et al. 2021): y = x W + scale B(A(dropout(x))).
//!
//! `A` is [rank, in] and `B` [out, rank], whichever way the weight is stored. They are parameters named after the layer,
//! `MODULE.lora_A.weight` and `MODULE.lora_B.weight`, and `B` starts at zero, so that the adapted model begins as the model it was.
//! The pass leaves the weight a parameter: who trains the adapters alone freezes it.

use super::layers::{Layer, choose};
use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, without_dead_nodes};
use crate::ops::dropout::DropoutEmit;
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::{self, Value};
use crate::tensor::{DType, Shape, Type};
use std::collections::HashMap;

/// Where the streams of the adapters' dropout begin, far from those that models count up from zero.
const FIRST_SALT: u32 = 0x6c6f_7261;

/// Adds adapters to the linear layers of a loss.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// Numbers between `A` and `B`.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f32,
    /// The scale is `alpha / sqrt(rank)` (rsLoRA, Kalajdzievski 2023) instead of `alpha / rank`.
    pub rank_stabilized: bool,
    /// Share of the adapters' inputs that is zeroed in training.
    pub dropout: f32,
    /// Patterns of the names of weights.
    pub targets: Vec<String>,
    /// Patterns of those among them that get no adapter.
    pub ignore: Vec<String>,
    /// Whether this is the loss that is trained: nothing is dropped elsewhere.
    pub trains: bool,
}

/// The adapter of one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Name of the weight it stands beside.
    pub weight: String,
    /// Name and shape of `A`, [rank, in].
    pub down: (String, Shape),
    /// Name and shape of `B`, [out, rank].
    pub up: (String, Shape),
}

impl Adapter {
    /// `A` starts uniform within plus and minus this: He et al. with a slope of sqrt(5), as a linear layer does in PyTorch.
    pub fn bound(&self) -> f64 {
        (self.down.1[1] as f64).sqrt().recip()
    }
}

impl LowRank {
    /// What `B(A(x))` is multiplied by.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }
    }

    /// The adapters of a graph this pass has not rewritten yet, in the order of its weights.
    pub fn adapters(&self, graph: &Graph) -> graph::Result<Vec<Adapter>> {
        let mut layers: Vec<Layer> = self.layers(graph)?.into_values().collect();
        layers.sort_by_key(|layer| layer.weight);
        layers.dedup_by_key(|layer| layer.weight);
        Ok(layers.into_iter().map(|layer| self.adapter(graph, layer)).collect())
    }

    fn layers(&self, graph: &Graph) -> graph::Result<HashMap<usize, Layer>> {
        let refuse = |setting, expected: &str, got: String| {
            let expected = expected.to_string();
            Err(graph::Error::from(ops::Error::Setting { op: "low_rank", setting, expected, got }))
        };
        if self.rank == 0 {
            return refuse("rank", "one or more", self.rank.to_string());
        }
        if !self.alpha.is_finite() {
            return refuse("alpha", "a finite number", self.alpha.to_string());
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return refuse("dropout", "a number in 0.0..1.0", self.dropout.to_string());
        }
        choose(graph, &self.targets, &self.ignore)
    }

    fn adapter(&self, graph: &Graph, layer: Layer) -> Adapter {
        let info = graph.info(layer.weight);
        let weight = info.name.clone().expect("a parameter has a name");
        let module = weight.strip_suffix(".weight").unwrap_or(&weight);
        let shape = &info.kind.shape;
        let [inputs, outputs] =
            if layer.form == Form::Nn { [shape[0], shape[1]] } else { [shape[1], shape[0]] };
        let down = (format!("{module}.lora_A.weight"), [self.rank, inputs].into());
        let up = (format!("{module}.lora_B.weight"), [outputs, self.rank].into());
        Adapter { weight, down, up }
    }

    /// The path through the adapter.
    fn path(&self, graph: &mut Graph, x: Value, adapter: Adapter, salt: u32) -> graph::Result<Value> {
        let mut factor = |(name, shape): (String, Shape)| {
            graph.named(&name).unwrap_or_else(|| graph.parameter(name, Type::f32(shape)))
        };
        let (down, up) = (factor(adapter.down), factor(adapter.up));
        let x = match self.trains && self.dropout > 0.0 {
            true => {
                let kind = Type::new(DType::U32, [2]);
                let rng = graph.named("rng").unwrap_or_else(|| graph.input("rng", kind));
                graph.dropout(x, rng, self.dropout, salt)?
            }
            false => x,
        };
        let low = graph.matmul_form(Form::Nt, x, down)?;
        let high = graph.matmul_form(Form::Nt, low, up)?;
        Ok(graph.scale(high, self.scale())?)
    }

    /// Copies a layer and adds the path to what it gives.
    fn write(&self, rewriter: &mut Rewriter, node: &Node, adapter: Adapter, salt: u32) -> graph::Result<()> {
        rewriter.copy(node)?;
        let (x, y) = (rewriter.get(node.inputs[0]), rewriter.get(node.outputs[0]));
        let scope = format!("{}.lora", node.scope);
        let sum = rewriter.emit_in(&scope, |graph| -> graph::Result<Value> {
            let path = self.path(graph, x, adapter, salt)?;
            Ok(graph.add(y, path)?)
        })?;
        rewriter.set(node.outputs[0], sum);
        Ok(())
    }
}

impl Pass for LowRank {
    fn name(&self) -> &'static str {
        "low_rank"
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let graph = without_dead_nodes(graph);
        let layers = self.layers(&graph)?;
        let mut rewriter = Rewriter::new(&graph);
        let mut salt = FIRST_SALT;
        for (number, node) in graph.nodes().iter().enumerate() {
            match layers.get(&number) {
                Some(&layer) => {
                    self.write(&mut rewriter, node, self.adapter(&graph, layer), salt)?;
                    salt += 1;
                }
                None => rewriter.copy(node)?,
            }
        }
        Ok(rewriter.finish())
    }
}
