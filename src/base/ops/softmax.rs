//! Softmax and its logarithm over the last axis.
//!
//! `softmax(x)[r, c] = exp(x[r, c] - m[r]) / sum over c of exp(x[r, c] - m[r])` with `m` the row's largest element, so that
//! nothing overflows. For another axis, transpose first.

use super::launch::{Bind, Caps, Kernel, Variant};
use super::pointwise::PointwiseEmit;
use super::reduce::{Kind as Reduction, ReduceEmit};
use super::reshape::ReshapeEmit;
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_float, expect_inputs, expect_shape,
    in_precision, rows,
};
use crate::tensor::{Real, Shape, Tensor, Type};
use rayon::prelude::*;
use std::sync::Arc;

/// What is made of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Probabilities.
    Softmax,
    /// Their logarithms, exact where the probability itself would round to zero.
    LogSoftmax,
}

/// Softmax or log-softmax over the last axis.
#[derive(Clone, Debug)]
pub struct Softmax {
    /// Which of the two.
    pub kind: Kind,
}

impl Softmax {
    fn compute<R: Real>(&self, x: &Tensor, y: &mut Tensor) {
        let cols = x.shape.last();
        let rows = y.real_mut::<R>().par_chunks_mut(cols).zip(x.real::<R>().par_chunks(cols));
        rows.for_each(|(y, x)| {
            let largest = rows::largest_of(x);
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - largest).exp());
            let total = rows::sum_of(y, |y| y);
            match self.kind {
                Kind::Softmax => {
                    let scale = R::of(1.0) / total;
                    y.iter_mut().for_each(|y| *y *= scale);
                }
                Kind::LogSoftmax => {
                    // Two subtractions: largest + log(total) would swallow the logarithm for large inputs.
                    let log = total.ln();
                    y.iter_mut().zip(x).for_each(|(y, &x)| *y = x - largest - log);
                }
            }
        });
    }
}

impl Operator for Softmax {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Softmax => "softmax",
            Kind::LogSoftmax => "log_softmax",
        }
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "x", x)?;
        rows::expect_rows(self.name(), "x", x)?;
        Ok(vec![x.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs[0], &mut outputs[0]));
    }

    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(up) = up[0] else { return Ok(vec![None]) };
        let op = SoftmaxGradient { kind: self.kind };
        Ok(vec![Some(emit.apply_one(Arc::new(op), &[site.output(0), up])?)])
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let kernel = Kernel::new("softmax").constant("LOG", self.kind as u32).retype("Elem", inputs[0].dtype);
        rows::variants(self.name(), kernel, &[Bind::Input(0), Bind::Output(0)], &inputs[0].shape, caps, |l| l)
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = (inputs[0].size_bytes() + outputs[0].size_bytes()) as f64;
        Cost { flops: 5.0 * inputs[0].shape.count() as f64, bytes }
    }
}

/// Gradient of [`Softmax`] from its output and the upstream gradient.
///
/// Softmax: `dx = y * (up - sum of y * up)`; log-softmax: `dx = up - exp(y) * sum of up`.
#[derive(Clone, Debug)]
pub struct SoftmaxGradient {
    /// Which of the two.
    pub kind: Kind,
}

impl SoftmaxGradient {
    fn compute<R: Real>(&self, inputs: &[&Tensor], dx: &mut Tensor) {
        let cols = dx.shape.last();
        let (y, up) = (inputs[0].real::<R>().par_chunks(cols), inputs[1].real::<R>().par_chunks(cols));
        dx.real_mut::<R>().par_chunks_mut(cols).zip(y).zip(up).for_each(|((dx, y), up)| {
            let each = dx.iter_mut().zip(y).zip(up);
            match self.kind {
                Kind::Softmax => {
                    let total = rows::sum_of_pairs(y, up, |y, up| y * up);
                    each.for_each(|((dx, &y), &up)| *dx = y * (up - total));
                }
                Kind::LogSoftmax => {
                    let total = rows::sum_of(up, |up| up);
                    each.for_each(|((dx, &y), &up)| *dx = up - y.exp() * total);
                }
            }
        });
    }
}

impl Operator for SoftmaxGradient {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Softmax => "softmax_gradient",
            Kind::LogSoftmax => "log_softmax_gradient",
        }
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [y, up] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "y", y)?;
        rows::expect_rows(self.name(), "y", y)?;
        expect_shape(self.name(), "up", up, &y.shape)?;
        rows::expect_same_dtype(self.name(), "up", up, y)?;
        Ok(vec![y.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: self.name(), hint: "second derivatives are not supported" })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let kernel =
            Kernel::new("softmax_gradient").constant("LOG", self.kind as u32).retype("Elem", inputs[0].dtype);
        let bindings = [Bind::Input(0), Bind::Input(1), Bind::Output(0)];
        rows::variants(self.name(), kernel, &bindings, &inputs[0].shape, caps, |l| l)
    }

    fn cost(&self, inputs: &[Type], _outputs: &[Type]) -> Cost {
        Cost { flops: 4.0 * inputs[0].shape.count() as f64, bytes: 3.0 * inputs[0].size_bytes() as f64 }
    }
}

/// Builders of softmax and what is made of it.
pub trait SoftmaxEmit {
    /// Probabilities over the last axis.
    fn softmax(&mut self, x: Value) -> Result<Value>;
    /// Logarithms of the probabilities over the last axis.
    fn log_softmax(&mut self, x: Value) -> Result<Value>;
    /// `log(sum(exp(x)))` over the last axis, which goes.
    fn log_sum_exp(&mut self, x: Value) -> Result<Value>;
}

impl<E: Emit + ?Sized> SoftmaxEmit for E {
    fn softmax(&mut self, x: Value) -> Result<Value> {
        self.apply_one(Arc::new(Softmax { kind: Kind::Softmax }), &[x])
    }

    fn log_softmax(&mut self, x: Value) -> Result<Value> {
        self.apply_one(Arc::new(Softmax { kind: Kind::LogSoftmax }), &[x])
    }

    fn log_sum_exp(&mut self, x: Value) -> Result<Value> {
        let kind = self.type_of(x);
        rows::expect_rows("log_sum_exp", "x", &kind)?;
        let last = kind.shape.len() - 1;
        let largest = self.reduce(Reduction::Maximum, x, last)?;
        let below = self.sub(x, largest)?;
        let each = self.pointwise("exp", &[below], 0.0)?;
        let total = self.reduce(Reduction::Sum, each, last)?;
        let log = self.pointwise("log", &[total], 0.0)?;
        let y = self.add(largest, log)?;
        self.reshape(y, Shape::from(&kind.shape[..last]))
    }
}

/// One element, primes, past a workgroup, more rows than one workgroup of lanes, and inputs that overflow a naive exp.
pub fn cases() -> Cases {
    let mut cases = Cases::new("softmax");
    for kind in [Kind::Softmax, Kind::LogSoftmax] {
        for shape in
            [&[1][..], &[7, 13], &[2, 3, 65], &[67, 5], &[3, 1], &[2, 1031], &[17, 257], &[18, 4], &[3, 1028]]
        {
            let x = cases.normal(shape);
            cases
                .add(format!("{kind:?}{shape:?}"), Softmax { kind }, vec![x])
                .sums(*shape.last().unwrap_or(&1));
        }
        let x = cases.uniform([19, 33], -1e4, 1e4);
        // Central differences see only constants here: one element of each row holds all the probability.
        cases.add(format!("{kind:?}[19, 33] up to 1e4"), Softmax { kind }, vec![x]).sums(33).no_gradient();
        for shape in [&[1][..], &[7, 13], &[67, 5], &[2, 1031], &[18, 4], &[3, 1028]] {
            let y = match kind {
                Kind::Softmax => cases.uniform(shape, 0.0, 1.0),
                Kind::LogSoftmax => cases.uniform(shape, -8.0, 0.0),
            };
            let up = cases.normal(shape);
            let label = format!("{kind:?} gradient{shape:?}");
            let length = *shape.last().unwrap_or(&1);
            cases.add(label, SoftmaxGradient { kind }, vec![y, up]).sums(length).no_gradient();
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    fn apply(kind: Kind, x: Vec<f32>) -> Vec<f32> {
        let x = Tensor::f32([x.len()], x);
        let mut y = [Tensor::zeros(&Type::new(DType::F32, x.shape.clone()))];
        Softmax { kind }.reference(&[&x], &mut y);
        y[0].real::<f32>().to_vec()
    }

    #[test]
    fn large_inputs_of_either_sign_neither_overflow_nor_vanish() {
        for offset in [-1e4f32, 0.0, 1e4] {
            let y = apply(Kind::Softmax, vec![offset, offset + 1.0]);
            // 1 / (1 + e) and e / (1 + e)
            assert!((y[0] - 0.26894143).abs() < 1e-6 && (y[1] - 0.7310586).abs() < 1e-6, "{y:?}");
            let log = apply(Kind::LogSoftmax, vec![offset, offset + 1.0]);
            assert!((log[0] + 1.3132617).abs() < 1e-6 && (log[1] + 0.3132617).abs() < 1e-6, "{log:?}");
        }
        assert_eq!(apply(Kind::LogSoftmax, vec![-1e4, 1e4]), [-2e4, 0.0]);
    }

    #[test]
    fn an_axis_without_elements_is_refused() {
        let x = Type::f32([3, 0]);
        assert!(matches!(
            Softmax { kind: Kind::Softmax }.signature(&[x]),
            Err(Error::Shape { input: "x", .. })
        ));
    }
}
