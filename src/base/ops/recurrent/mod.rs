//! A recurrent layer over whole sequences: one walk over time with the state kept where it is computed.
//!
//! The product of all inputs with `weight_ih` is one large matmul and done before; here stand the steps that must follow each
//! other. With `a = x[t] + weight h` (biases are in x, but for the one that GRU keeps apart):
//!
//! ```text
//! rnn    h = tanh(a), or relu(a)
//! lstm   i, f, o = sigmoid(a_i, a_f, a_o);  g = tanh(a_g);  c = f c + i g;  h = o tanh(c), or projection (o tanh(c))
//! gru    r, z = sigmoid(a_r, a_z);  n = tanh(x_n + r (weight_n h + bias_n));  h = (1 - z) n + z h
//! ```
//! Rows of `weight` stand as PyTorch has them: i f g o, and r z n. Steps of a row may be left out, such as those past its
//! length: there the state holds and the output is zero. Walked in reverse, a row begins so at its own end.

mod cases;
mod fast;
mod gradient;
mod host;
mod launch;

pub use cases::cases;
pub use gradient::RecurrentGradient;

use super::cast::CastEmit;
use super::launch::{Caps, Variant};
use super::matmul::{Form, MatmulEmit};
use super::reduce::{Kind as Reduction, ReduceEmit};
use super::reshape::ReshapeEmit;
use super::slice::SliceEmit;
use super::{
    Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_shape, in_precision,
    rows,
};
use crate::tensor::{DType, Shape, Tensor, Type, View, ViewMut};
use std::sync::Arc;

/// What happens in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    /// `tanh`.
    Tanh,
    /// `relu`.
    Relu,
    /// Long short-term memory.
    Lstm,
    /// Gated recurrent unit, reset after the product as in PyTorch and cuDNN.
    Gru,
}

impl Cell {
    /// Name in text.
    pub fn name(self) -> &'static str {
        match self {
            Cell::Tanh => "rnn_tanh",
            Cell::Relu => "rnn_relu",
            Cell::Lstm => "lstm",
            Cell::Gru => "gru",
        }
    }

    /// The cell of that name.
    pub fn named(name: &str) -> Option<Cell> {
        [Cell::Tanh, Cell::Relu, Cell::Lstm, Cell::Gru].into_iter().find(|cell| cell.name() == name)
    }

    /// Blocks of `hidden` rows that the weights have.
    pub fn gates(self) -> usize {
        match self {
            Cell::Tanh | Cell::Relu => 1,
            Cell::Lstm => 4,
            Cell::Gru => 3,
        }
    }

    /// Blocks of `hidden` numbers saved of a step before the state, without what a projection adds.
    fn kept(self) -> usize {
        match self {
            Cell::Tanh | Cell::Relu => 1,
            Cell::Lstm => 5,
            Cell::Gru => 4,
        }
    }
}

/// A layer in one direction. Inputs: x [B, T, G H], weight [G H, R], then as the settings say bias [G H] and projection [R, H], then
/// initial [B, S], and as the settings say steps and position U32 \[1\]. Steps are either lengths of rows U32 \[B\] or marks U32 [B, T],
/// zero where a step does not count.
///
/// R is H, or what a projection makes of it. A state has S = R numbers, and of an LSTM S = R + H: h and behind it c.
/// Outputs: y [B, T, R], final [B, S], and for the derivative saved F32 [B, T, ..], through which none flows back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recurrent {
    /// What happens in a step.
    pub cell: Cell,
    /// From the last step to the first.
    pub reverse: bool,
    /// A bias is added to the product with the state: where it is more than one of x, in a GRU.
    pub bias: bool,
    /// The state is a product with what the cell gives; of an LSTM alone.
    pub projection: bool,
    /// Not all steps of all rows count.
    pub steps: bool,
    /// The final state overwrites the initial one: for texts read piece by piece.
    pub carried: bool,
    /// The initial state counts as zero where the position is: a text begins.
    pub position: bool,
}

/// Sizes of a layer, and where its inputs stand.
#[derive(Clone, Copy, Debug)]
struct Extent {
    batch: usize,
    time: usize,
    /// H.
    hidden: usize,
    /// R.
    state: usize,
    /// G H.
    inputs: usize,
    /// Numbers of a final or initial state, S.
    whole: usize,
    /// Numbers saved of a step: gates, for an LSTM c before the step, with a projection what it reads, and h before the step.
    saved: usize,
}

impl Recurrent {
    /// A layer of that cell, forward in time, with nothing besides.
    pub fn new(cell: Cell) -> Self {
        let [reverse, bias, projection, steps, carried, position] = [false; 6];
        Recurrent { cell, reverse, bias, projection, steps, carried, position }
    }

    fn initial_at(&self) -> usize {
        2 + self.bias as usize + self.projection as usize
    }

    fn bias_at(&self) -> Option<usize> {
        self.bias.then_some(2)
    }

    fn projection_at(&self) -> Option<usize> {
        self.projection.then_some(2 + self.bias as usize)
    }

    fn steps_at(&self) -> Option<usize> {
        self.steps.then_some(self.initial_at() + 1)
    }

    fn position_at(&self) -> Option<usize> {
        self.position.then_some(self.initial_at() + 1 + self.steps as usize)
    }

    fn count_inputs(&self) -> usize {
        self.initial_at() + 1 + self.steps as usize + self.position as usize
    }

    /// Sizes for a weight [G H, R] over [B, T] steps.
    fn extent(&self, [batch, time]: [usize; 2], weight: &[usize]) -> Extent {
        let (inputs, state) = (weight[0], weight[1]);
        let hidden = inputs / self.cell.gates();
        let whole = state + if self.cell == Cell::Lstm { hidden } else { 0 };
        let saved = (self.cell.kept() + self.projection as usize) * hidden + state;
        Extent { batch, time, hidden, state, inputs, whole, saved }
    }

    fn extent_of(&self, x: &Shape, weight: &Shape) -> Extent {
        self.extent([x[0], x[1]], weight)
    }

    /// Checks lengths or marks of steps.
    fn check_steps(&self, op: &'static str, steps: &Type, [batch, time]: [usize; 2]) -> Result<()> {
        expect_dtype(op, "steps", steps, DType::U32)?;
        match steps.shape[..] {
            [rows] if rows == batch => Ok(()),
            _ => expect_shape(op, "steps", steps, &[batch, time]),
        }
    }

    /// Checks weight, bias and projection against the settings.
    fn check_weights(&self, op: &'static str, weight: &Type, projection: Option<&Type>) -> Result<()> {
        expect_float(op, "weight", weight)?;
        let gates = self.cell.gates();
        let fits = |&[inputs, state]: &[usize; 2]| {
            state > 0 && inputs > 0 && inputs % gates == 0 && (self.projection || inputs == gates * state)
        };
        let shape: Option<[usize; 2]> = weight.shape[..].try_into().ok();
        if !shape.as_ref().is_some_and(fits) {
            let expected =
                format!("[{gates} hidden, {}]", if self.projection { "projected" } else { "hidden" });
            return Err(Error::Shape { op, input: "weight", expected, got: weight.shape.clone() });
        }
        if self.projection && self.cell != Cell::Lstm {
            let (expected, got) = ("a cell of kind lstm".into(), self.cell.name().into());
            return Err(Error::Setting { op, setting: "projection", expected, got });
        }
        if let Some(projection) = projection {
            expect_dtype(op, "projection", projection, weight.dtype)?;
            expect_shape(op, "projection", projection, &[weight.shape[1], weight.shape[0] / gates])?;
        }
        Ok(())
    }
}

impl Operator for Recurrent {
    fn name(&self) -> &'static str {
        "recurrent"
    }

    fn settings(&self) -> String {
        let flags = [
            (self.reverse, ",reverse"),
            (self.bias, ",bias"),
            (self.projection, ",projection"),
            (self.steps, ",steps"),
            (self.carried, ",carried"),
            (self.position, ",position"),
        ];
        let set: String = flags.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
        format!("cell={}{set}", self.cell.name())
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        if inputs.len() != self.count_inputs() {
            return Err(Error::InputCount { op, expected: self.count_inputs(), got: inputs.len() });
        }
        let (x, weight) = (&inputs[0], &inputs[1]);
        self.check_weights(op, weight, self.projection_at().map(|at| &inputs[at]))?;
        expect_dtype(op, "x", x, weight.dtype)?;
        let sizes = match x.shape[..] {
            [batch, time, inputs] if inputs == weight.shape[0] && batch * time > 0 => [batch, time],
            _ => {
                let expected = format!("[batch, time, {}]", weight.shape[0]);
                return Err(Error::Shape { op, input: "x", expected, got: x.shape.clone() });
            }
        };
        let extent = self.extent(sizes, &weight.shape);
        if let Some(at) = self.bias_at() {
            expect_shape(op, "bias", &inputs[at], &[extent.inputs])?;
            expect_dtype(op, "bias", &inputs[at], x.dtype)?;
        }
        let initial = &inputs[self.initial_at()];
        expect_shape(op, "initial", initial, &[extent.batch, extent.whole])?;
        expect_dtype(op, "initial", initial, x.dtype)?;
        if let Some(at) = self.steps_at() {
            self.check_steps(op, &inputs[at], [extent.batch, extent.time])?;
        }
        if let Some(at) = self.position_at() {
            expect_shape(op, "position", &inputs[at], &[1])?;
            expect_dtype(op, "position", &inputs[at], DType::U32)?;
        }
        let Extent { batch, time, state, saved, .. } = extent;
        Ok(vec![
            x.with_shape([batch, time, state]),
            initial.clone(),
            rows::statistic(x, [batch, time, saved]),
        ])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, host::forward::<R>(self, inputs, outputs));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        fast::forward(self, inputs, outputs);
    }

    /// The walk back gives what flows to x and to the initial state; the weights' gradients are products over all steps at once.
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let op = self.name();
        if up[2].is_some() || self.carried || self.position {
            let hint = "what is saved, and a state that is carried on, are not for training";
            return Err(Error::NoGradient { op, hint });
        }
        let mut gradients = vec![None; site.inputs.len()];
        if up[0].is_none() && up[1].is_none() {
            return Ok(gradients);
        }
        let (weight, saved) = (site.input(1), site.output(2));
        let kind = emit.type_of(site.input(0));
        let extent = self.extent_of(&kind.shape, &emit.type_of(weight).shape);
        let Extent { batch, time, hidden, state, inputs, saved: width, .. } = extent;
        let back = RecurrentGradient { of: *self, from: [up[0].is_some(), up[1].is_some()] };
        let beside = [self.projection_at(), self.steps_at()].into_iter().flatten().map(|at| site.input(at));
        let given: Vec<Value> =
            [weight, saved].into_iter().chain(beside).chain(up[..2].iter().flatten().copied()).collect();
        let made = emit.apply(Arc::new(back), &given)?;
        let count = batch * time;
        let dx = emit.slice(made[0], 2, 0, inputs)?;
        gradients[0] = Some(emit.cast(dx, kind.dtype)?);
        gradients[self.initial_at()] = Some(emit.cast(made[1], kind.dtype)?);
        // What flows to the product with the state: the same, but for a GRU, which scales a part of it by its gate.
        let products = if self.cell == Cell::Gru { made[2] } else { dx };
        let products = emit.reshape(products, [count, inputs].into())?;
        if site.needs(1) {
            let before = emit.slice(saved, 2, width - state, width)?;
            let before = emit.reshape(before, [count, state].into())?;
            gradients[1] = Some(emit.matmul_form(Form::Tn, products, before)?);
        }
        if let Some(at) = self.bias_at().filter(|&at| site.needs(at)) {
            let sum = emit.reduce(Reduction::Sum, products, 0)?;
            gradients[at] = Some(emit.reshape(sum, [inputs].into())?);
        }
        if let Some(at) = self.projection_at().filter(|&at| site.needs(at)) {
            let from = emit.slice(made[0], 2, inputs, inputs + state)?;
            let read = emit.slice(saved, 2, width - state - hidden, width - state)?;
            let [from, read] = [(from, state), (read, hidden)]
                .map(|(value, size)| emit.reshape(value, [count, size].into()));
            gradients[at] = Some(emit.matmul_form(Form::Tn, from?, read?)?);
        }
        Ok(gradients)
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        match (self.carried, self.initial_at()) {
            (false, _) => &[],
            (true, 2) => &[(1, 2)],
            (true, 3) => &[(1, 3)],
            (true, _) => &[(1, 4)],
        }
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        launch::forward(self, inputs, outputs, caps)
    }

    fn is_heavy(&self) -> bool {
        true
    }

    fn trial_bound(&self, input: usize, inputs: &[Type]) -> f32 {
        let matrices = [Some(1), self.projection_at()];
        if matrices.contains(&Some(input)) { bound_of(&inputs[input]) } else { 1.0 }
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        cost(inputs, outputs, &self.extent_of(&inputs[0].shape, &inputs[1].shape), self.projection)
    }
}

/// Weights as PyTorch draws them: larger ones make a layer chaotic, and two right kernels would not agree.
fn bound_of(matrix: &Type) -> f32 {
    1.0 / (matrix.shape.last() as f32).sqrt()
}

/// Two operations for each weight and step, and some tens for each unit.
fn cost(inputs: &[Type], outputs: &[Type], extent: &Extent, projection: bool) -> Cost {
    let &Extent { batch, time, hidden, state, inputs: rows, .. } = extent;
    let weights = rows * state + if projection { hidden * state } else { 0 };
    let flops = (batch * time) as f64 * (2.0 * weights as f64 + 30.0 * hidden as f64);
    Cost { flops, bytes: inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum() }
}

/// Values that a layer reads.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// Products of the inputs with `weight_ih`, biases added, [B, T, G H].
    pub x: Value,
    /// `weight_hh` [G H, R].
    pub weight: Value,
    /// `bias_hh` [G H] of a GRU.
    pub bias: Option<Value>,
    /// `weight_hr` [R, H] of an LSTM with a projection.
    pub projection: Option<Value>,
    /// State before the first step [B, S]; zero where absent.
    pub initial: Option<Value>,
    /// How many steps of each row count, U32 \[B\], or which, U32 [B, T]; all where absent.
    pub steps: Option<Value>,
}

/// Builder of [`Recurrent`].
pub trait RecurrentEmit {
    /// All outputs y [B, T, R], and the state after the last step [B, S].
    fn recurrent(&mut self, cell: Cell, reverse: bool, layer: &Layer) -> Result<[Value; 2]>;
    /// The same with a state that is carried on, in place; where there is a `position` U32 \[1\] of the first step and it is zero, so
    /// is the state.
    fn recurrent_carried(
        &mut self,
        cell: Cell,
        layer: &Layer,
        state: Value,
        position: Option<Value>,
    ) -> Result<Value>;
}

impl<E: Emit + ?Sized> RecurrentEmit for E {
    fn recurrent(&mut self, cell: Cell, reverse: bool, layer: &Layer) -> Result<[Value; 2]> {
        let op = of_layer(cell, layer, reverse);
        let initial = match layer.initial {
            Some(initial) => initial,
            None => {
                let (x, weight) = (self.type_of(layer.x), self.type_of(layer.weight));
                // What does not fit is refused below, by the operator's signature.
                let state = weight.shape.last();
                let hidden = weight.shape.first().map_or(0, |rows| rows / cell.gates());
                let whole = state + if cell == Cell::Lstm { hidden } else { 0 };
                let batch = x.shape.first().copied().unwrap_or(0);
                let zeros = self.constant(Tensor::f32([batch, whole], vec![0.0; batch * whole]));
                self.cast(zeros, x.dtype)?
            }
        };
        let outputs = self.apply(Arc::new(op), &inputs(layer, initial, None))?;
        Ok([outputs[0], outputs[1]])
    }

    fn recurrent_carried(
        &mut self,
        cell: Cell,
        layer: &Layer,
        state: Value,
        position: Option<Value>,
    ) -> Result<Value> {
        let op = Recurrent { carried: true, position: position.is_some(), ..of_layer(cell, layer, false) };
        Ok(self.apply(Arc::new(op), &inputs(layer, state, position))?[0])
    }
}

fn of_layer(cell: Cell, layer: &Layer, reverse: bool) -> Recurrent {
    let [bias, projection, steps] = [layer.bias, layer.projection, layer.steps].map(|value| value.is_some());
    Recurrent { reverse, bias, projection, steps, ..Recurrent::new(cell) }
}

fn inputs(layer: &Layer, initial: Value, position: Option<Value>) -> Vec<Value> {
    let own = [layer.x, layer.weight].into_iter().chain(layer.bias).chain(layer.projection);
    own.chain([initial]).chain(layer.steps).chain(position).collect()
}
