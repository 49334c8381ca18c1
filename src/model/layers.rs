//! Layers over named parameters: each records its operators under the name of its module.

use super::{Activation, Extent, Mode, ParameterSpec, Reading, Result};
use crate::graph::{self, Graph};
use crate::ops::dropout::DropoutEmit;
use crate::ops::embedding::EmbeddingEmit;
use crate::ops::layer_norm::LayerNormEmit;
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reshape::ReshapeEmit;
use crate::ops::rms_norm::RmsNormEmit;
use crate::ops::{self, Value};
use crate::tensor::{DType, Type};
use std::collections::HashMap;

/// The parameters declared in a graph, and the numbering of what draws at random.
pub(super) struct Layers {
    parameters: HashMap<String, Value>,
    rng: Option<Value>,
    draws: u32,
}

impl Layers {
    /// Declares all parameters, and `rng` if something is to be dropped in this mode.
    pub fn declare(graph: &mut Graph, parameters: &[ParameterSpec], mode: Mode, drops: bool) -> Self {
        let declare = |spec: &ParameterSpec| {
            (spec.name.clone(), graph.parameter(&spec.name, Type::f32(spec.shape.clone())))
        };
        let parameters = parameters.iter().map(declare).collect();
        let drops = drops && mode == Mode::Train;
        let rng = drops.then(|| graph.input("rng", Type::new(DType::U32, [2])));
        Layers { parameters, rng, draws: 0 }
    }

    /// A parameter, if the model has it.
    pub fn find(&self, module: &str, leaf: &str) -> Option<Value> {
        self.parameters.get(&format!("{module}.{leaf}")).copied()
    }

    /// A parameter by its whole name.
    pub fn named(&self, name: &str) -> Value {
        *self.parameters.get(name).expect("the family lists the parameters it uses")
    }

    /// A module's `weight`.
    pub fn weight(&self, module: &str) -> Value {
        self.find(module, "weight").expect("the family lists the weights it uses")
    }

    /// The random input, and the number of the next operator that draws from it; `None` where nothing is dropped.
    pub fn draw(&mut self, share: f32) -> Option<(Value, u32)> {
        let rng = self.rng.filter(|_| share > 0.0)?;
        self.draws += 1;
        Some((rng, self.draws))
    }

    /// Rows [B, T, C] of the module's table by the input `tokens`; to be trained, the positions come sorted as well.
    pub fn look_up(&self, graph: &mut Graph, module: &str, reading: &Reading) -> Result<Value> {
        let Extent { batch, context } = reading.extent;
        self.rows_by(graph, module, "tokens", [batch, context], reading.mode)
    }

    /// The same by another input of that name U32 [B, T]. Those that sort it carry its name, except for the tokens.
    pub fn rows_by(
        &self,
        graph: &mut Graph,
        module: &str,
        input: &str,
        shape: [usize; 2],
        mode: Mode,
    ) -> Result<Value> {
        let numbers = graph.input(input, Type::new(DType::U32, shape));
        let table = self.weight(module);
        let rows = graph.kind(table).shape[0];
        if mode != Mode::Train {
            return located(graph, module, |g| g.embedding(table, numbers));
        }
        let [order, starts] = sorting(input);
        let order = graph.input(order, Type::new(DType::U32, [shape[0] * shape[1]]));
        let starts = graph.input(starts, Type::new(DType::U32, [rows + 1]));
        located(graph, module, |g| g.embedding_trained(table, numbers, order, starts))
    }

    /// `x W + bias`, W as [in, out] or [out, in]; without bias where the model has none.
    pub fn linear(&self, graph: &mut Graph, module: &str, form: Form, x: Value) -> Result<Value> {
        let (weight, bias) = (self.weight(module), self.find(module, "bias"));
        located(graph, module, |graph| graph.linear(form, x, weight, bias))
    }

    /// `onto + x W + bias`: where there is one row and no bias, `onto` takes its place, which spares a pass.
    pub fn linear_onto(
        &self,
        graph: &mut Graph,
        module: &str,
        form: Form,
        x: Value,
        onto: Value,
    ) -> Result<Value> {
        let shape = graph.kind(onto).shape.clone();
        if shape.rows() > 1 || self.find(module, "bias").is_some() {
            let y = self.linear(graph, module, form, x)?;
            return located(graph, module, |graph| graph.add(onto, y));
        }
        let weight = self.weight(module);
        located(graph, module, |graph| {
            let row = graph.reshape(onto, [shape.last()].into())?;
            graph.linear(form, x, weight, Some(row))
        })
    }

    /// Layer norm with the module's gain and, where the model has one, bias.
    pub fn layer_norm(&self, graph: &mut Graph, module: &str, x: Value, eps: f32) -> Result<Value> {
        let (weight, bias) = (self.find(module, "weight"), self.find(module, "bias"));
        located(graph, module, |graph| graph.layer_norm(x, weight, bias, eps))
    }

    /// Root-mean-square norm of the last axis with the module's gain.
    pub fn rms_norm(&self, graph: &mut Graph, module: &str, x: Value, eps: f32) -> Result<Value> {
        let weight = self.weight(module);
        located(graph, module, |graph| graph.rms_norm(x, weight, eps))
    }

    /// An activation, with the module's `slope` if it learns one.
    pub fn activate(&self, graph: &mut Graph, module: &str, how: Activation, x: Value) -> Result<Value> {
        let slope = self.find(module, "slope");
        located(graph, module, |graph| how.apply(graph, x, slope))
    }

    /// Dropout in training, nothing otherwise.
    pub fn dropout(&mut self, graph: &mut Graph, module: &str, share: f32, x: Value) -> Result<Value> {
        match self.draw(share) {
            Some((rng, salt)) => located(graph, module, |graph| graph.dropout(x, rng, share, salt)),
            None => Ok(x),
        }
    }
}

/// Names of the inputs that sort the positions of another one.
pub(super) fn sorting(input: &str) -> [String; 2] {
    let prefix = if input == "tokens" { String::new() } else { format!("{input}.") };
    ["order", "starts"].map(|name| format!("{prefix}{name}"))
}

/// Records under a scope, which an error then names.
pub(super) fn located<T>(
    graph: &mut Graph,
    scope: &str,
    work: impl FnOnce(&mut Graph) -> ops::Result<T>,
) -> Result<T> {
    let result = graph.within(scope, work);
    Ok(result.map_err(|source| graph::Error::Operator { scope: scope.to_string(), source })?)
}
