//! Scores of movement pruning (Sanh et al. 2020): S <- S - w dL/dw, step by step. What moves away from zero gains.
//!
//! w is the weight that is kept behind the mask, dL/dw the gradient of the masked weight in its place (straight through): so
//! a removed weight goes on being judged, and may return. The gradient is taken with the factor of the control value, without the
//! loss scale and clipped as the update's is; a step that is skipped leaves no trace.

use super::BLOCK;
use super::norm::CONTROL;
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use crate::ops::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_inputs, expect_shape,
    in_precision,
};
use crate::tensor::{DType, Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// Elements one thread takes at a time.
const TAKE: usize = 256 * BLOCK;

/// scores, weights, gradients F32 \[N\], control F32 \[8\] -> scores, in place; N is whole blocks.
#[derive(Clone, Debug)]
pub struct Movement;

impl Movement {
    fn compute<R: Real>(&self, inputs: &[&Tensor], y: &mut Tensor) {
        let control = inputs[3].real::<R>();
        let (scores, y) = (inputs[0].real::<R>(), y.real_mut::<R>());
        y.copy_from_slice(scores);
        if control[2] != R::default() {
            let moved = inputs[1].real::<R>().iter().zip(inputs[2].real::<R>());
            y.iter_mut().zip(moved).for_each(|(y, (&w, &g))| *y -= w * (g * control[0]));
        }
    }
}

impl Operator for Movement {
    fn name(&self) -> &'static str {
        "movement"
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = "movement";
        let [scores, weights, gradients, control] = expect_inputs(op, inputs)?;
        let count = scores.shape.count();
        if scores.shape.len() != 1 || count == 0 || !count.is_multiple_of(BLOCK) {
            let expected = format!("[a multiple of {BLOCK}]");
            return Err(Error::Shape { op, input: "scores", expected, got: scores.shape.clone() });
        }
        for (name, arena) in [("scores", scores), ("weights", weights), ("gradients", gradients)] {
            expect_dtype(op, name, arena, DType::F32)?;
            expect_shape(op, name, arena, &[count])?;
        }
        expect_dtype(op, "control", control, DType::F32)?;
        expect_shape(op, "control", control, &[CONTROL])?;
        Ok(vec![scores.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let control = inputs[3].floats();
        let (factor, goes) = (control[0], control[2] != 0.0);
        let moved = inputs[1].floats().par_chunks(TAKE).zip(inputs[2].floats().par_chunks(TAKE));
        outputs[0].floats().par_chunks_mut(TAKE).zip(moved).filter(|_| goes).for_each(|(s, (w, g))| {
            s.iter_mut().zip(w.iter().zip(g)).for_each(|(s, (w, g))| *s -= w * (g * factor));
        });
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: "movement", hint: "scores stand behind the loss, not before it" })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let fours = inputs[0].shape.count() / 4;
        let bindings = [Bind::Output(0), Bind::Input(1), Bind::Input(2), Bind::Input(3)];
        let launch = Launch::new(Kernel::new("movement"), bindings, spread(fours)).param("count", fours);
        vec![Variant::single("movement", launch)]
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 3.0 * inputs[0].shape.count() as f64, bytes }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

/// Builder of [`Movement`].
pub trait MovementEmit {
    /// The scores after a step.
    fn movement(&mut self, scores: Value, weights: Value, gradients: Value, control: Value) -> Result<Value>;
}

impl<E: Emit + ?Sized> MovementEmit for E {
    fn movement(&mut self, scores: Value, weights: Value, gradients: Value, control: Value) -> Result<Value> {
        self.apply_one(Arc::new(Movement), &[scores, weights, gradients, control])
    }
}

/// One block and several, clipped, and a step that is not made.
pub fn cases() -> Cases {
    let mut cases = Cases::new("movement");
    for (blocks, factor, goes) in [(1, 1.0, 1.0), (5, 0.25, 1.0), (300, 2.0, 1.0), (3, 1.0, 0.0)] {
        let mut inputs: Vec<Tensor> = (0..3).map(|_| cases.statistic([blocks * BLOCK])).collect();
        inputs.push(Tensor::f32([CONTROL], vec![factor, 1.0, goes, 0.0, 0.0, 0.0, 0.0, 0.0]));
        cases.add(format!("{blocks} blocks, goes {goes}"), Movement, inputs).no_gradient();
    }
    cases
}
