//! Root-mean-square normalisation over the last axis.
//!
//! `y = x * rstd * weight` by rows, with `rstd = 1 / sqrt(mean of x^2 + eps)`.

mod fast;

use super::launch::{Bind, Caps, Kernel, Variant};
use super::norm_weight::NormWeightGradient;
use super::pointwise::PointwiseEmit;
use super::ties::{self, Tie};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_inputs,
    expect_shape, in_precision, rows,
};
use crate::tensor::{Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// Divides each row by its root mean square. Inputs: x, weight; outputs: y, rstd `[rows]`.
///
/// `rstd` is saved for the derivative; no gradient flows back through it. With a residual, a third input is added to x before
/// all else, and the sum is a third output.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// Added to the mean of squares.
    pub eps: f32,
    /// A residual, of x's type, comes last.
    pub residual: bool,
}

impl RmsNorm {
    fn compute<R: Real>(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let x = rows::summed::<R>(inputs, outputs, self.residual);
        let [y, rstd] = &mut outputs[..2] else { unreachable!("rms_norm has two outputs") };
        let cols = inputs[0].shape.last();
        let weight = inputs[1].real::<R>();
        let each = (y.real_mut::<R>().par_chunks_mut(cols).zip(x.par_chunks(cols))).zip(rstd.real_mut::<R>());
        each.for_each(|((y, x), rstd)| {
            let square = rows::sum_of(x, |x| x * x) / R::of(cols as f64);
            *rstd = R::of(1.0) / (square + R::of(self.eps as f64)).sqrt();
            let scale = *rstd;
            y.iter_mut().zip(x).zip(weight).for_each(|((y, &x), &w)| *y = x * scale * w);
        });
    }
}

impl Operator for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn settings(&self) -> String {
        let residual = if self.residual { ",residual" } else { "" };
        format!("eps={:e}{residual}", self.eps)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let (x, weight) = match self.residual {
            true => {
                let [x, weight, residual] = expect_inputs(self.name(), inputs)?;
                expect_shape(self.name(), "residual", residual, &x.shape)?;
                expect_dtype(self.name(), "residual", residual, x.dtype)?;
                (x, weight)
            }
            false => {
                let [x, weight] = expect_inputs(self.name(), inputs)?;
                (x, weight)
            }
        };
        expect_float(self.name(), "x", x)?;
        rows::expect_rows(self.name(), "x", x)?;
        expect_shape(self.name(), "weight", weight, &[x.shape.last()])?;
        expect_dtype(self.name(), "weight", weight, x.dtype)?;
        let mut outputs = vec![x.clone(), rows::statistic(x, [x.shape.rows()])];
        outputs.extend(self.residual.then(|| x.clone()));
        Ok(outputs)
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, outputs));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        fast::forward(self, inputs, outputs);
    }

    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        if up[1].is_some() {
            return Err(Error::NoGradient { op: self.name(), hint: "compute the mean of squares by itself" });
        }
        let mut gradients = vec![None; site.inputs.len()];
        let beside = if self.residual { up[2] } else { None };
        let Some(up) = up[0] else {
            if let Some(beside) = beside {
                (gradients[0], gradients[2]) = (Some(beside), Some(beside));
            }
            return Ok(gradients);
        };
        let (weight, rstd) = (site.input(1), site.output(1));
        let x = if self.residual { site.output(2) } else { site.input(0) };
        if site.needs(0) || self.residual && site.needs(2) {
            let op = RmsNormGradient { addend: beside.is_some() };
            let inputs: Vec<Value> = [x, up, rstd, weight].into_iter().chain(beside).collect();
            gradients[0] = Some(emit.apply_one(Arc::new(op), &inputs)?);
            if self.residual {
                gradients[2] = gradients[0];
            }
        }
        if site.needs(1) {
            let op = NormWeightGradient { centred: false };
            gradients[1] = Some(emit.apply_one(Arc::new(op), &[x, up, rstd])?);
        }
        Ok(gradients)
    }

    fn expand(&self, emit: &mut dyn Emit, inputs: &[Value]) -> Option<Result<Vec<Value>>> {
        self.residual.then(|| {
            let sum = emit.pointwise("add", &[inputs[0], inputs[2]], 0.0)?;
            let mut outputs =
                emit.apply(Arc::new(RmsNorm { eps: self.eps, residual: false }), &[sum, inputs[1]])?;
            outputs.push(sum);
            Ok(outputs)
        })
    }

    fn gains(&self) -> &'static [usize] {
        &[1]
    }

    fn with_residual(&self) -> Option<Arc<dyn Operator>> {
        (!self.residual).then(|| Arc::new(RmsNorm { residual: true, ..self.clone() }) as _)
    }

    fn ties(&self, inputs: &[Type], _outputs: &[Type]) -> Vec<Tie> {
        if self.residual { vec![] } else { ties::of_norm(inputs, [1]) }
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let mut bindings = vec![Bind::Input(0), Bind::Input(1), Bind::Output(0), Bind::Output(1)];
        if self.residual {
            bindings.extend([Bind::Input(2), Bind::Output(2)]);
        }
        let kernel = Kernel::new("rms_norm")
            .retype("Elem", inputs[0].dtype)
            .paste("INPUT", rows::input_text(self.residual.then_some([4, 5])));
        rows::variants("rms_norm", kernel, &bindings, &inputs[0].shape, caps, |l| l.param("eps", self.eps))
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 4.0 * inputs[0].shape.count() as f64, bytes }
    }
}

/// dx of [`RmsNorm`]. Inputs: x, up, rstd, weight.
///
/// With `n = x * rstd` and `g = up * weight`: `dx = rstd * (g - n * mean of (g * n))`, the mean by rows. An addend, which comes
/// last, is added to it: what flows back around the norm.
#[derive(Clone, Debug)]
pub struct RmsNormGradient {
    /// An addend, of x's type, comes last.
    pub addend: bool,
}

impl RmsNormGradient {
    fn compute<R: Real>(&self, inputs: &[&Tensor], dx: &mut Tensor) {
        let cols = dx.shape.last();
        let [x, up, rstd, weight] = [0, 1, 2, 3].map(|i| inputs[i].real::<R>());
        let share = R::of(1.0 / cols as f64);
        let each = (dx.real_mut::<R>().par_chunks_mut(cols).zip(x.par_chunks(cols)))
            .zip(up.par_chunks(cols).zip(rstd));
        each.for_each(|((g, x), (up, &rstd))| {
            g.iter_mut().zip(up).zip(weight).for_each(|((g, &up), &w)| *g = up * w);
            let along = rows::sum_of_pairs(g, x, |g, x| g * (x * rstd)) * share;
            g.iter_mut().zip(x).for_each(|(g, &x)| *g = rstd * (*g - x * rstd * along));
        });
        if self.addend {
            let addend = inputs[4].real::<R>();
            dx.real_mut::<R>().iter_mut().zip(addend).for_each(|(dx, &more)| *dx += more);
        }
    }
}

impl Operator for RmsNormGradient {
    fn name(&self) -> &'static str {
        "rms_norm_gradient"
    }

    fn settings(&self) -> String {
        if self.addend { "addend".into() } else { String::new() }
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let (own, addend) = inputs.split_at(inputs.len().min(4));
        let [x, up, rstd, weight] = expect_inputs(op, own)?;
        rows::expect_addend(op, addend, self.addend, 4, x)?;
        expect_float(op, "x", x)?;
        rows::expect_rows(op, "x", x)?;
        expect_shape(op, "up", up, &x.shape)?;
        expect_dtype(op, "up", up, x.dtype)?;
        expect_shape(op, "rstd", rstd, &[x.shape.rows()])?;
        expect_dtype(op, "rstd", rstd, rows::statistic(x, []).dtype)?;
        expect_shape(op, "weight", weight, &[x.shape.last()])?;
        expect_dtype(op, "weight", weight, x.dtype)?;
        Ok(vec![x.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        fast::backward(self, inputs, &mut outputs[0]);
    }

    fn with_addend(&self) -> Option<Arc<dyn Operator>> {
        (!self.addend).then(|| Arc::new(RmsNormGradient { addend: true }) as _)
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: self.name(), hint: "second derivatives are not supported" })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let mut bindings = [0, 1, 2, 3].map(Bind::Input).to_vec();
        bindings.push(Bind::Output(0));
        bindings.extend(self.addend.then_some(Bind::Input(4)));
        let kernel = Kernel::new("rms_norm_gradient")
            .retype("Elem", inputs[0].dtype)
            .paste("ADDEND", rows::addend_text(self.addend.then_some(5)));
        rows::variants(self.name(), kernel, &bindings, &inputs[0].shape, caps, |l| l)
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 8.0 * inputs[0].shape.count() as f64, bytes }
    }
}

/// Builder of [`RmsNorm`].
pub trait RmsNormEmit {
    /// Divides each row of `x` by its root mean square; `weight` has one element per column.
    fn rms_norm(&mut self, x: Value, weight: Value, eps: f32) -> Result<Value>;
}

impl<E: Emit + ?Sized> RmsNormEmit for E {
    fn rms_norm(&mut self, x: Value, weight: Value, eps: f32) -> Result<Value> {
        Ok(self.apply(Arc::new(RmsNorm { eps, residual: false }), &[x, weight])?[0])
    }
}

/// One element, one column, primes, past a workgroup.
pub fn cases() -> Cases {
    let mut cases = Cases::new("rms_norm");
    for shape in [&[1][..], &[3, 1], &[7, 13], &[2, 3, 65], &[67, 5], &[2, 1031], &[18, 4], &[3, 1028]] {
        let cols = *shape.last().expect("shapes above have axes");
        let inputs = vec![cases.normal(shape), cases.uniform([cols], 0.5, 1.5)];
        cases.add(format!("{shape:?}"), RmsNorm { eps: 1e-6, residual: false }, inputs).sums(cols);
    }
    for shape in [[1, 1], [7, 13], [67, 5], [2, 1031], [18, 4], [3, 1028]] {
        let inputs = vec![cases.coarse(shape), cases.uniform([shape[1]], 0.5, 1.5), cases.coarse(shape)];
        let op = RmsNorm { eps: 1e-6, residual: true };
        cases.add(format!("residual{shape:?}"), op, inputs).sums(shape[1]);
    }
    for shape in [[1, 1], [7, 13], [67, 5], [2, 1031], [18, 4], [3, 1028]] {
        let [rows, cols] = shape;
        let rstd = cases.uniform([rows], 0.5, 2.0).to_precision(crate::tensor::DType::F32);
        let mut inputs =
            vec![cases.normal(shape), cases.normal(shape), rstd, cases.uniform([cols], 0.5, 1.5)];
        let op = RmsNormGradient { addend: false };
        cases.add(format!("gradient{shape:?}"), op, inputs.clone()).sums(cols).no_gradient();
        inputs.push(cases.normal(shape));
        let op = RmsNormGradient { addend: true };
        cases.add(format!("gradient and addend{shape:?}"), op, inputs).sums(cols).no_gradient();
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn a_row_of_threes_and_fours_is_divided_by_its_root_mean_square() {
        let x = Tensor::f32([1, 2], vec![3.0, 4.0]);
        let weight = Tensor::f32([2], vec![1.0, 2.0]);
        let op = RmsNorm { eps: 0.0, residual: false };
        let types = op.signature(&[Type::f32([1, 2]), Type::f32([2])]).unwrap();
        let mut outputs: Vec<Tensor> = types.iter().map(Tensor::zeros).collect();
        op.reference(&[&x, &weight], &mut outputs);
        // The root mean square is sqrt(12.5).
        let y = outputs[0].real::<f32>();
        assert!((y[0] - 0.848_528_1).abs() < 1e-6 && (y[1] - 2.262_741_7).abs() < 1e-6, "{y:?}");
    }

    #[test]
    fn a_weight_of_another_length_is_refused() {
        let x = Type::new(DType::F32, [2, 3]);
        let refused = RmsNorm { eps: 1e-6, residual: false }.signature(&[x, Type::f32([2])]);
        assert!(matches!(refused, Err(Error::Shape { input: "weight", .. })));
    }
}
