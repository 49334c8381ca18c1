//! Recurrent layers one upon the other, as PyTorch's RNN, LSTM and GRU have them.

use super::super::layers::located;
use super::super::{Init, ParameterSpec, Result};
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::concat::ConcatEmit;
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::recurrent::{Cell, Layer, RecurrentEmit};
use crate::ops::reshape::ReshapeEmit;
use crate::tensor::Type;

/// Sizes of recurrent layers of one kind. Parameters have PyTorch's names: `weight_ih_l0`, `bias_hh_l1_reverse` and so on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecurrentStack {
    /// What happens in a step.
    pub cell: Cell,
    /// Channels of what the first layer reads.
    pub inputs: usize,
    /// Units of each layer, H.
    pub hidden: usize,
    /// What a state is projected to, of an LSTM.
    pub projected: Option<usize>,
    /// Layers.
    pub layers: usize,
    /// Each layer is walked in both directions, and the next reads both outputs side by side.
    pub bidirectional: bool,
    /// Both products have biases.
    pub bias: bool,
}

/// What layers read and give besides their parameters.
pub struct Run<'a> {
    /// A parameter by its name in the stack.
    pub find: &'a dyn Fn(&str) -> Option<Value>,
    /// States before the first step [B, S], one for each layer and direction: forward and reverse of the first, and so on. Zero
    /// where there are none.
    pub initial: &'a [Value],
    /// How many steps of each row count, U32 \[B\], or which, U32 [B, T]; all where absent.
    pub steps: Option<Value>,
    /// What is done between layers, such as dropout.
    pub between: &'a mut dyn FnMut(&mut Graph, Value) -> Result<Value>,
    /// Where a text is read piece by piece: states are kept under `scope.0` and so on, and begin with zero where the position
    /// U32 \[1\] of the first step is zero, if it is given.
    pub carried: Option<(&'a str, Option<Value>)>,
}

impl RecurrentStack {
    /// Numbers of a layer's output at each step.
    pub fn outputs(&self) -> usize {
        self.state() * self.directions().len()
    }

    /// Numbers of h, R.
    fn state(&self) -> usize {
        self.projected.unwrap_or(self.hidden)
    }

    fn directions(&self) -> &'static [&'static str] {
        if self.bidirectional { &["", "_reverse"] } else { &[""] }
    }

    /// Its parameters, drawn as PyTorch draws them: uniform up to one over the root of the units.
    pub fn parameters(&self, module: &str) -> Vec<ParameterSpec> {
        let init = Init::Uniform { bound: 1.0 / (self.hidden as f64).sqrt() };
        let rows = self.cell.gates() * self.hidden;
        let mut list = vec![];
        for layer in 0..self.layers {
            let inputs = if layer == 0 { self.inputs } else { self.outputs() };
            for end in self.directions() {
                let mut add = |name: &str, shape: &[usize]| {
                    list.push(ParameterSpec::new(format!("{module}{name}_l{layer}{end}"), shape, init));
                };
                add("weight_ih", &[rows, inputs]);
                add("weight_hh", &[rows, self.state()]);
                if self.bias {
                    add("bias_ih", &[rows]);
                    add("bias_hh", &[rows]);
                }
                if let Some(projected) = self.projected {
                    add("weight_hr", &[projected, self.hidden]);
                }
            }
        }
        list
    }

    /// Writes all layers over x [B, T, C]. Gives the last one's outputs [B, T, ..] and the states after the last step in the order of
    /// [`Run::initial`], but for those that are carried, which stay where they are.
    pub fn write(&self, graph: &mut Graph, x: Value, run: &mut Run) -> Result<(Value, Vec<Value>)> {
        let (mut x, mut states) = (x, vec![]);
        for layer in 0..self.layers {
            if layer > 0 {
                x = (run.between)(graph, x)?;
            }
            let mut sides = vec![];
            for (number, end) in self.directions().iter().enumerate() {
                let at = layer * self.directions().len() + number;
                let scope = format!("l{layer}{end}");
                let walked = self.walk(graph, x, run, at, &scope)?;
                sides.push(walked[0]);
                states.extend(&walked[1..]);
            }
            x = located(graph, &format!("l{layer}"), |graph| graph.concat(&sides, 2))?;
        }
        Ok((x, states))
    }

    /// One layer in one direction: outputs and, unless it is carried, the final state.
    fn walk(&self, graph: &mut Graph, x: Value, run: &Run, at: usize, end: &str) -> Result<Vec<Value>> {
        let find = |name: &str| (run.find)(&format!("{name}_{end}"));
        let needed = |name: &str| find(name).expect("the stack lists the parameters it uses");
        let (from_input, from_state) = (needed("weight_ih"), needed("weight_hh"));
        let (mut bias, mut kept_apart) = (find("bias_ih"), find("bias_hh"));
        let shape = graph.kind(x).shape.clone();
        let rows = shape.rows();
        located(graph, end, |graph| {
            // Both biases are added to the same sum, except in a GRU, whose gate scales one of them.
            if let (false, Some(own), Some(other)) = (self.cell == Cell::Gru, bias, kept_apart) {
                (bias, kept_apart) = (Some(graph.add(own, other)?), None);
            }
            let x = graph.reshape(x, [rows, shape.last()].into())?;
            let x = graph.linear(Form::Nt, x, from_input, bias)?;
            let wide = self.cell.gates() * self.hidden;
            let layer = Layer {
                x: graph.reshape(x, [shape[0], shape[1], wide].into())?,
                weight: from_state,
                bias: kept_apart,
                projection: find("weight_hr"),
                initial: run.initial.get(at).copied(),
                steps: run.steps,
            };
            match run.carried {
                Some((scope, position)) => {
                    let whole = self.state() + if self.cell == Cell::Lstm { self.hidden } else { 0 };
                    let state = graph.state(format!("{scope}.{at}"), Type::f32([shape[0], whole]));
                    Ok(vec![graph.recurrent_carried(self.cell, &layer, state, position)?])
                }
                None => Ok(graph.recurrent(self.cell, end.ends_with("_reverse"), &layer)?.to_vec()),
            }
        })
    }
}
