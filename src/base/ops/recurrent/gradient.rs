//! The walk back over a recurrent layer.

use super::{Cell, Extent, Recurrent, bound_of, cost, fast, host, launch};
use crate::ops::launch::{Caps, Variant};
use crate::ops::{
    Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_shape, in_precision, rows,
};
use crate::tensor::{Tensor, Type, View, ViewMut};

/// What flows back through [`Recurrent`]. Inputs: weight, saved, as the layer has them projection and steps, and as `from` says
/// what flows to y [B, T, R] and to the final state [B, S].
///
/// Outputs, all in f32: what flows to x [B, T, G H], with a projection followed in each step by what flows to the state
/// [B, T, G H + R]; to the initial state [B, S]; and of a GRU to the products with the state [B, T, G H].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecurrentGradient {
    /// The layer.
    pub of: Recurrent,
    /// Whether something flows to y, and whether to the final state.
    pub from: [bool; 2],
}

impl RecurrentGradient {
    pub(super) fn projection_at(&self) -> Option<usize> {
        self.of.projection.then_some(2)
    }

    pub(super) fn steps_at(&self) -> Option<usize> {
        self.of.steps.then_some(2 + self.of.projection as usize)
    }

    /// Where what flows to y and to the final state stands.
    pub(super) fn flows_at(&self) -> [Option<usize>; 2] {
        let first = 2 + self.of.projection as usize + self.of.steps as usize;
        [self.from[0].then_some(first), self.from[1].then_some(first + self.from[0] as usize)]
    }

    pub(super) fn extent(&self, saved: &[usize], weight: &[usize]) -> Extent {
        self.of.extent([saved[0], saved[1]], weight)
    }
}

impl Operator for RecurrentGradient {
    fn name(&self) -> &'static str {
        "recurrent_gradient"
    }

    fn settings(&self) -> String {
        let [y, last] = self.from;
        let (y, last) = (if y { ",y" } else { "" }, if last { ",final" } else { "" });
        format!("{}{y}{last}", self.of.settings())
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let Recurrent { projection, steps, .. } = self.of;
        let expected =
            2 + [projection, steps, self.from[0], self.from[1]].map(usize::from).iter().sum::<usize>();
        if inputs.len() != expected {
            return Err(Error::InputCount { op, expected, got: inputs.len() });
        }
        let (weight, saved) = (&inputs[0], &inputs[1]);
        self.of.check_weights(op, weight, self.projection_at().map(|at| &inputs[at]))?;
        let sizes = match saved.shape[..] {
            [batch, time, width] if width == self.of.extent([1, 1], &weight.shape).saved => [batch, time],
            _ => {
                let expected = format!("[batch, time, {}]", self.of.extent([1, 1], &weight.shape).saved);
                return Err(Error::Shape { op, input: "saved", expected, got: saved.shape.clone() });
            }
        };
        expect_dtype(op, "saved", saved, rows::statistic(weight, []).dtype)?;
        let Extent { batch, time, state, inputs: width, whole, .. } = self.of.extent(sizes, &weight.shape);
        if let Some(at) = self.steps_at() {
            self.of.check_steps(op, &inputs[at], sizes)?;
        }
        let shapes = [vec![batch, time, state], vec![batch, whole]];
        for ((at, name), shape) in
            self.flows_at().into_iter().zip(["up", "up of the final state"]).zip(shapes)
        {
            if let Some(at) = at {
                expect_shape(op, name, &inputs[at], &shape)?;
                expect_dtype(op, name, &inputs[at], weight.dtype)?;
            }
        }
        let row = width + if projection { state } else { 0 };
        let mut outputs = vec![saved.with_shape([batch, time, row]), saved.with_shape([batch, whole])];
        if self.of.cell == Cell::Gru {
            outputs.push(saved.with_shape([batch, time, width]));
        }
        Ok(outputs)
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, host::backward::<R>(self, inputs, outputs));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        fast::backward(self, inputs, outputs);
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: self.name(), hint: "second derivatives are not supported" })
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        launch::backward(self, inputs, outputs, caps)
    }

    fn is_heavy(&self) -> bool {
        true
    }

    fn trial_bound(&self, input: usize, inputs: &[Type]) -> f32 {
        let matrices = [Some(0), self.projection_at()];
        if matrices.contains(&Some(input)) { bound_of(&inputs[input]) } else { 1.0 }
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        cost(inputs, outputs, &self.extent(&inputs[1].shape, &inputs[0].shape), self.of.projection)
    }
}
