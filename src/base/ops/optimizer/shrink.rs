//! Soft thresholding, the proximal step of an L1 term: p <- sign(p) max(|p| - t, 0), after the optimiser's own.
//!
//! The threshold t is the learning rate times the strength of the term, and comes in the last of the [`super::SCALARS`].
//!
//! Why not the subgradient `strength sign(p)` in the gradient: it never gives an exact zero, since steps go back and forth over
//! it, and Adam divides it by the root of the second moment, so that the strength would mean something else for each weight. Taken
//! from the weight itself, as AdamW takes its decay, it means the same everywhere, and zeros are exact.

use super::norm::CONTROL;
use super::{BLOCK, SCALARS};
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

/// parameters F32 \[N\], scalars F32 \[8\], control F32 \[8\] -> parameters, in place; N is whole blocks.
#[derive(Clone, Debug)]
pub struct Shrink;

impl Shrink {
    fn compute<R: Real>(&self, inputs: &[&Tensor], y: &mut Tensor) {
        let (threshold, goes) = (inputs[1].real::<R>()[SCALARS - 1], inputs[2].real::<R>()[2]);
        for (y, &x) in y.real_mut::<R>().iter_mut().zip(inputs[0].real::<R>()) {
            *y = if goes == R::default() { x } else { soft(x, threshold) };
        }
    }
}

fn soft<R: Real>(x: R, threshold: R) -> R {
    if x <= threshold && x >= -threshold {
        R::default()
    } else if x > threshold {
        x - threshold
    } else {
        // What is no number stays none: the step that made it is to be found.
        x + threshold
    }
}

impl Operator for Shrink {
    fn name(&self) -> &'static str {
        "shrink"
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = "shrink";
        let [parameters, scalars, control] = expect_inputs(op, inputs)?;
        let count = parameters.shape.count();
        if parameters.shape.len() != 1 || count == 0 || !count.is_multiple_of(BLOCK) {
            let expected = format!("[a multiple of {BLOCK}]");
            return Err(Error::Shape { op, input: "parameters", expected, got: parameters.shape.clone() });
        }
        for (name, input) in [("parameters", parameters), ("scalars", scalars), ("control", control)] {
            expect_dtype(op, name, input, DType::F32)?;
        }
        expect_shape(op, "scalars", scalars, &[SCALARS])?;
        expect_shape(op, "control", control, &[CONTROL])?;
        Ok(vec![parameters.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let threshold = inputs[1].floats()[SCALARS - 1];
        if inputs[2].floats()[2] != 0.0 {
            let parts = outputs[0].floats().par_chunks_mut(TAKE);
            parts.for_each(|part| part.iter_mut().for_each(|p| *p = soft(*p, threshold)));
        }
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: "shrink", hint: "an update stands behind the loss, not before it" })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let fours = inputs[0].shape.count() / 4;
        let bindings = [Bind::Output(0), Bind::Input(1), Bind::Input(2)];
        let launch = Launch::new(Kernel::new("shrink"), bindings, spread(fours)).param("count", fours);
        vec![Variant::single("shrink", launch)]
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 2.0 * inputs[0].shape.count() as f64, bytes }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

/// Builder of [`Shrink`].
pub trait ShrinkEmit {
    /// The parameters nearer to zero by the threshold in `scalars`, none beyond it.
    fn shrink(&mut self, parameters: Value, scalars: Value, control: Value) -> Result<Value>;
}

impl<E: Emit + ?Sized> ShrinkEmit for E {
    fn shrink(&mut self, parameters: Value, scalars: Value, control: Value) -> Result<Value> {
        self.apply_one(Arc::new(Shrink), &[parameters, scalars, control])
    }
}

/// One block and several, thresholds from none to one that few pass, and a step that is not made.
pub fn cases() -> Cases {
    let mut cases = Cases::new("shrink");
    for (blocks, threshold, goes) in [(1, 0.5, 1.0), (5, 0.0, 1.0), (300, 2.0, 1.0), (3, 0.5, 0.0)] {
        let mut scalars = vec![0.0; SCALARS];
        scalars[SCALARS - 1] = threshold;
        let inputs = vec![
            cases.statistic([blocks * BLOCK]),
            Tensor::f32([SCALARS], scalars),
            Tensor::f32([CONTROL], vec![1.0, 1.0, goes, 0.0, 0.0, 0.0, 0.0, 0.0]),
        ];
        cases.add(format!("{blocks} blocks by {threshold}, goes {goes}"), Shrink, inputs).no_gradient();
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_within_the_threshold_becomes_exactly_zero_and_the_rest_moves_towards_it() {
        let all = [0.5f32, -0.5, 0.25, -0.25, 0.1, 0.0].map(|x| soft(x, 0.25));
        assert_eq!(all, [0.25, -0.25, 0.0, 0.0, 0.0, 0.0]);
        assert!(soft(f32::NAN, 0.25).is_nan());
    }
}
