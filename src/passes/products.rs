//! Training in int8: products of linear layers made of codes, forward and back, each of them or only some.
//!
//! Weights, activations and gradients stay what they are; their codes are found anew for every product, with a scale for each
//! row of both operands.

use super::layers::choose;
use super::{Pass, Promise};
use crate::graph::{self, Graph, Rewriter, without_dead_nodes};
use crate::ops::Value;
use crate::ops::linear_codes::{Linear, LinearCodesEmit, Products};

/// Makes products of linear layers of int8 codes.
#[derive(Clone, Debug, PartialEq)]
pub struct CodedProducts {
    /// Which of a layer's three products.
    pub products: Products,
    /// Patterns of the names of weights whose layers stay as they are.
    pub ignore: Vec<String>,
    /// Whether gradients will be asked for: else layers are what they will be without codes.
    pub trains: bool,
}

impl Pass for CodedProducts {
    fn name(&self) -> &'static str {
        "coded_products"
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let graph = without_dead_nodes(graph);
        if self.products.is_none() || !self.trains {
            return Ok(graph);
        }
        let layers = choose(&graph, &["*".to_string()], &self.ignore)?;
        let mut rewriter = Rewriter::new(&graph);
        for (number, node) in graph.nodes().iter().enumerate() {
            let Some(layer) = layers.get(&number) else {
                rewriter.copy(node)?;
                continue;
            };
            let inputs: Vec<Value> = node.inputs.iter().map(|&v| rewriter.get(v)).collect();
            let bias = layer.has_bias.then(|| inputs[2]);
            let linear = Linear { x: inputs[0], weight: inputs[1], bias, form: layer.form };
            let y = rewriter.emit_in(&node.scope, |graph| graph.linear_in_codes(linear, self.products))?;
            rewriter.set(node.outputs[0], y);
        }
        Ok(rewriter.finish())
    }
}

#[cfg(test)]
mod tests;
