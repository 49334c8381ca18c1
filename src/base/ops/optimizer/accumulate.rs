//! Gradients of several micro-batches added up: total <- total * keep + gradients * share.
//!
//! With keep 0 on the first micro-batch the total needs no clearing: whatever it held, NaN included, is forgotten.

use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use crate::ops::slice::wide;
use crate::ops::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_inputs, expect_shape,
    in_precision,
};
use crate::tensor::{DType, Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// total F32, gradients F32 of the same shape, scalars F32 \[2\] (keep, share) -> total, in place.
#[derive(Clone, Debug)]
pub struct Accumulate;

impl Accumulate {
    fn compute<R: Real>(&self, inputs: &[&Tensor], y: &mut Tensor) {
        let (total, gradients) = (inputs[0].real::<R>(), inputs[1].real::<R>());
        let [keep, share] = [0, 1].map(|i| inputs[2].real::<R>()[i]);
        let parts = y
            .real_mut::<R>()
            .par_chunks_mut(4096)
            .zip(total.par_chunks(4096))
            .zip(gradients.par_chunks(4096));
        parts.for_each(|((y, total), gradients)| {
            for ((y, &t), &g) in y.iter_mut().zip(total).zip(gradients) {
                let kept = if keep == R::default() { R::default() } else { t * keep };
                *y = kept + g * share;
            }
        });
    }
}

impl Operator for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = "accumulate";
        let [total, gradients, scalars] = expect_inputs(op, inputs)?;
        expect_dtype(op, "total", total, DType::F32)?;
        expect_dtype(op, "gradients", gradients, DType::F32)?;
        expect_shape(op, "gradients", gradients, &total.shape)?;
        expect_dtype(op, "scalars", scalars, DType::F32)?;
        expect_shape(op, "scalars", scalars, &[2])?;
        Ok(vec![total.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let scalars = inputs[2].floats();
        super::fast::accumulate(outputs[0].floats(), inputs[1].floats(), scalars[0], scalars[1]);
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "gradients are added up behind the loss, not before it";
        Err(Error::NoGradient { op: "accumulate", hint })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let width = wide(&[inputs[0].shape.count()]);
        let count = inputs[0].shape.count() / width;
        let kernel = Kernel::new("accumulate")
            .paste("WIDTH", if width == 4 { "alias V = vec4<f32>;" } else { "alias V = f32;" });
        let bindings = [Bind::Output(0), Bind::Input(1), Bind::Input(2)];
        let launch = Launch::new(kernel, bindings, spread(count)).param("count", count);
        vec![Variant::single(if width == 4 { "accumulate_wide" } else { "accumulate" }, launch)]
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 3.0 * inputs[0].shape.count() as f64, bytes }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

/// Builder of [`Accumulate`].
pub trait AccumulateEmit {
    /// total * keep + gradients * share, with scalars (keep, share).
    fn accumulate(&mut self, total: Value, gradients: Value, scalars: Value) -> Result<Value>;
}

impl<E: Emit + ?Sized> AccumulateEmit for E {
    fn accumulate(&mut self, total: Value, gradients: Value, scalars: Value) -> Result<Value> {
        self.apply_one(Arc::new(Accumulate), &[total, gradients, scalars])
    }
}

/// One element, a prime, fours; the first micro-batch and a later one.
pub fn cases() -> Cases {
    let mut cases = Cases::new("accumulate");
    for (count, keep, share) in [(1, 1.0, 0.5), (131, 0.0, 0.25), (64, 1.0, 0.25), (1028, 0.0, 1.0)] {
        let scalars = Tensor::f32([2], vec![keep, share]);
        let inputs = vec![cases.statistic([count]), cases.statistic([count]), scalars];
        cases.add(format!("accumulate[{count}] keep {keep}"), Accumulate, inputs).no_gradient();
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keep_of_zero_forgets_even_what_was_not_a_number() {
        let total = Tensor::f32([2], vec![f32::NAN, 1.0]);
        let gradients = Tensor::f32([2], vec![2.0, 4.0]);
        let mut y = [total.clone()];
        Accumulate.reference(&[&total, &gradients, &Tensor::f32([2], vec![0.0, 0.5])], &mut y);
        assert_eq!(y[0].real::<f32>(), [1.0, 2.0]);
    }
}
