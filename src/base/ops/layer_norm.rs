//! Layer normalisation over the last axis.
//!
//! `y = (x - mean) * rstd * weight + bias` by rows, with `rstd = 1 / sqrt(variance + eps)`. The variance is summed over
//! `x - mean` in a second pass: a mean of squares minus a squared mean loses all digits where the mean is large.

mod fast;

use super::launch::{Bind, Caps, Kernel, Variant};
use super::norm_weight::NormWeightGradient;
use super::pointwise::PointwiseEmit;
use super::ties::{self, Tie};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_shape,
    in_precision, rows,
};
use crate::tensor::{Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// Normalises each row. Inputs: x, then weight and bias if there; outputs: y, mean `[rows]`, rstd `[rows]`.
///
/// The statistics are saved for the derivative; no gradient flows back through them. With a residual, an input after all others
/// is added to x before all else, and the sum is a fourth output.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// Added to the variance.
    pub eps: f32,
    /// A factor per column follows x.
    pub has_weight: bool,
    /// An offset per column comes after it.
    pub has_bias: bool,
    /// A residual, of x's type, comes last.
    pub residual: bool,
}

impl LayerNorm {
    fn weight_input(&self) -> Option<usize> {
        self.has_weight.then_some(1)
    }

    fn bias_input(&self) -> Option<usize> {
        self.has_bias.then_some(1 + self.has_weight as usize)
    }

    fn compute<R: Real>(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let x = rows::summed::<R>(inputs, outputs, self.residual);
        let [y, mean, rstd] = &mut outputs[..3] else { unreachable!("layer_norm has three outputs") };
        let cols = inputs[0].shape.last();
        let weight = self.weight_input().map(|i| inputs[i].real::<R>());
        let bias = self.bias_input().map(|i| inputs[i].real::<R>());
        let count = R::of(cols as f64);
        let each = (y.real_mut::<R>().par_chunks_mut(cols).zip(x.par_chunks(cols)))
            .zip(mean.real_mut::<R>().par_iter_mut().zip(rstd.real_mut::<R>()));
        each.for_each(|((y, x), (mean, rstd))| {
            *mean = rows::sum_of(x, |x| x) / count;
            let middle = *mean;
            let variance = rows::sum_of(x, |x| (x - middle) * (x - middle)) / count;
            *rstd = R::of(1.0) / (variance + R::of(self.eps as f64)).sqrt();
            let scale = *rstd;
            y.iter_mut().zip(x).for_each(|(y, &x)| *y = (x - middle) * scale);
            if let Some(weight) = weight {
                y.iter_mut().zip(weight).for_each(|(y, &w)| *y *= w);
            }
            if let Some(bias) = bias {
                y.iter_mut().zip(bias).for_each(|(y, &b)| *y += b);
            }
        });
    }
}

impl Operator for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn settings(&self) -> String {
        let residual = if self.residual { ",residual" } else { "" };
        format!("eps={:e},weight={},bias={}{residual}", self.eps, self.has_weight, self.has_bias)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let own = 1 + self.has_weight as usize + self.has_bias as usize;
        if inputs.len() < own {
            return Err(Error::InputCount { op, expected: own + self.residual as usize, got: inputs.len() });
        }
        let x = &inputs[0];
        expect_float(op, "x", x)?;
        rows::expect_addend(op, &inputs[own..], self.residual, own, x)?;
        rows::expect_rows(op, "x", x)?;
        for (name, input) in [("weight", self.weight_input()), ("bias", self.bias_input())] {
            if let Some(i) = input {
                expect_shape(op, name, &inputs[i], &[x.shape.last()])?;
                expect_dtype(op, name, &inputs[i], x.dtype)?;
            }
        }
        let saved = rows::statistic(x, [x.shape.rows()]);
        let mut outputs = vec![x.clone(), saved.clone(), saved];
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
        if up[1].is_some() || up[2].is_some() {
            return Err(Error::NoGradient {
                op: self.name(),
                hint: "compute mean and variance of x by themselves",
            });
        }
        let mut gradients = vec![None; site.inputs.len()];
        let last = site.inputs.len() - 1;
        let beside = if self.residual { up[3] } else { None };
        let Some(up) = up[0] else {
            if let Some(beside) = beside {
                (gradients[0], gradients[last]) = (Some(beside), Some(beside));
            }
            return Ok(gradients);
        };
        let (mean, rstd) = (site.output(1), site.output(2));
        let x = if self.residual { site.output(3) } else { site.input(0) };
        if site.needs(0) || self.residual && site.needs(last) {
            let mut inputs = vec![x, up, mean, rstd];
            inputs.extend(self.weight_input().map(|i| site.input(i)));
            inputs.extend(beside);
            let op = LayerNormGradient { has_weight: self.has_weight, addend: beside.is_some() };
            gradients[0] = Some(emit.apply_one(Arc::new(op), &inputs)?);
            if self.residual {
                gradients[last] = gradients[0];
            }
        }
        let affine = [self.weight_input(), self.bias_input()];
        if affine.iter().flatten().any(|&i| site.needs(i)) {
            let sums = emit.apply(Arc::new(NormWeightGradient { centred: true }), &[x, up, rstd, mean])?;
            for (input, sum) in affine.into_iter().zip(sums) {
                if let Some(i) = input {
                    gradients[i] = Some(sum);
                }
            }
        }
        Ok(gradients)
    }

    fn expand(&self, emit: &mut dyn Emit, inputs: &[Value]) -> Option<Result<Vec<Value>>> {
        let (&residual, own) = inputs.split_last().filter(|_| self.residual)?;
        let mut expand = || {
            let sum = emit.pointwise("add", &[own[0], residual], 0.0)?;
            let plain = LayerNorm { residual: false, ..self.clone() };
            let mut outputs = emit.apply(Arc::new(plain), &[&[sum], &own[1..]].concat())?;
            outputs.push(sum);
            Ok(outputs)
        };
        Some(expand())
    }

    fn gains(&self) -> &'static [usize] {
        match (self.has_weight, self.has_bias) {
            (true, true) => &[1, 2],
            (true, false) => &[1],
            _ => &[],
        }
    }

    fn with_residual(&self) -> Option<Arc<dyn Operator>> {
        (!self.residual).then(|| Arc::new(LayerNorm { residual: true, ..self.clone() }) as _)
    }

    fn ties(&self, inputs: &[Type], _outputs: &[Type]) -> Vec<Tie> {
        let vectors = self.weight_input().into_iter().chain(self.bias_input());
        if self.residual { vec![] } else { ties::of_norm(inputs, vectors) }
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        // A missing weight or bias binds x in its place, which the kernel never reads as such.
        let bind = |input: Option<usize>| Bind::Input(input.unwrap_or(0));
        let mut bindings = vec![
            Bind::Input(0),
            bind(self.weight_input()),
            bind(self.bias_input()),
            Bind::Output(0),
            Bind::Output(1),
            Bind::Output(2),
        ];
        if self.residual {
            bindings.extend([Bind::Input(inputs.len() - 1), Bind::Output(3)]);
        }
        let kernel = Kernel::new("layer_norm")
            .constant("HAS_WEIGHT", self.has_weight as u32)
            .constant("HAS_BIAS", self.has_bias as u32)
            .paste("INPUT", rows::input_text(self.residual.then_some([6, 7])))
            .retype("Elem", inputs[0].dtype);
        rows::variants("layer_norm", kernel, &bindings, &inputs[0].shape, caps, |l| l.param("eps", self.eps))
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 8.0 * inputs[0].shape.count() as f64, bytes }
    }
}

/// dx of [`LayerNorm`]. Inputs: x, up, mean, rstd, then the weight if there.
///
/// With `n = (x - mean) * rstd` and `g = up * weight`: `dx = rstd * (g - mean of g - n * mean of (g * n))`, means by rows. An
/// addend, which comes last, is added to it: what flows back around the norm.
#[derive(Clone, Debug)]
pub struct LayerNormGradient {
    /// The weight comes after the statistics.
    pub has_weight: bool,
    /// An addend, of x's type, comes last.
    pub addend: bool,
}

impl LayerNormGradient {
    fn compute<R: Real>(&self, inputs: &[&Tensor], dx: &mut Tensor) {
        let cols = dx.shape.last();
        let [x, up, mean, rstd] = [0, 1, 2, 3].map(|i| inputs[i].real::<R>());
        let weight = self.has_weight.then(|| inputs[4].real::<R>());
        let share = R::of(1.0 / cols as f64);
        let each = (dx.real_mut::<R>().par_chunks_mut(cols).zip(x.par_chunks(cols)))
            .zip(up.par_chunks(cols).zip(mean.par_iter().zip(rstd)));
        each.for_each(|((g, x), (up, (&mean, &rstd)))| {
            g.copy_from_slice(up);
            if let Some(weight) = weight {
                g.iter_mut().zip(weight).for_each(|(g, &w)| *g *= w);
            }
            let middle = rows::sum_of(g, |g| g) * share;
            let along = rows::sum_of_pairs(g, x, |g, x| g * ((x - mean) * rstd)) * share;
            for (g, &x) in g.iter_mut().zip(x) {
                *g = rstd * (*g - middle - (x - mean) * rstd * along);
            }
        });
        if self.addend {
            let addend = inputs[4 + self.has_weight as usize].real::<R>();
            dx.real_mut::<R>().iter_mut().zip(addend).for_each(|(dx, &more)| *dx += more);
        }
    }
}

impl Operator for LayerNormGradient {
    fn name(&self) -> &'static str {
        "layer_norm_gradient"
    }

    fn settings(&self) -> String {
        format!("weight={}{}", self.has_weight, if self.addend { ",addend" } else { "" })
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let own = 4 + self.has_weight as usize;
        if inputs.len() < own {
            return Err(Error::InputCount { op, expected: own + self.addend as usize, got: inputs.len() });
        }
        let x = &inputs[0];
        expect_float(op, "x", x)?;
        rows::expect_addend(op, &inputs[own..], self.addend, own, x)?;
        rows::expect_rows(op, "x", x)?;
        expect_shape(op, "up", &inputs[1], &x.shape)?;
        expect_dtype(op, "up", &inputs[1], x.dtype)?;
        for (name, saved) in [("mean", &inputs[2]), ("rstd", &inputs[3])] {
            expect_shape(op, name, saved, &[x.shape.rows()])?;
            expect_dtype(op, name, saved, rows::statistic(x, []).dtype)?;
        }
        if let Some(weight) = self.has_weight.then(|| &inputs[4]) {
            expect_shape(op, "weight", weight, &[x.shape.last()])?;
            expect_dtype(op, "weight", weight, x.dtype)?;
        }
        Ok(vec![x.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        fast::backward(self, inputs, &mut outputs[0]);
    }

    fn with_addend(&self) -> Option<Arc<dyn Operator>> {
        (!self.addend).then(|| Arc::new(LayerNormGradient { addend: true, ..self.clone() }) as _)
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: self.name(), hint: "second derivatives are not supported" })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let weight = Bind::Input(if self.has_weight { 4 } else { 0 });
        let mut bindings = [0, 1, 2, 3].map(Bind::Input).to_vec();
        bindings.extend([weight, Bind::Output(0)]);
        bindings.extend(self.addend.then(|| Bind::Input(inputs.len() - 1)));
        let kernel = Kernel::new("layer_norm_gradient")
            .constant("HAS_WEIGHT", self.has_weight as u32)
            .paste("ADDEND", rows::addend_text(self.addend.then_some(6)))
            .retype("Elem", inputs[0].dtype);
        rows::variants(self.name(), kernel, &bindings, &inputs[0].shape, caps, |l| l)
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 11.0 * inputs[0].shape.count() as f64, bytes }
    }
}

/// Builder of [`LayerNorm`].
pub trait LayerNormEmit {
    /// Normalises the last axis of `x`; `weight` and `bias` have one element per column.
    fn layer_norm(&mut self, x: Value, weight: Option<Value>, bias: Option<Value>, eps: f32)
    -> Result<Value>;
}

impl<E: Emit + ?Sized> LayerNormEmit for E {
    fn layer_norm(
        &mut self,
        x: Value,
        weight: Option<Value>,
        bias: Option<Value>,
        eps: f32,
    ) -> Result<Value> {
        let op = LayerNorm { eps, has_weight: weight.is_some(), has_bias: bias.is_some(), residual: false };
        let inputs: Vec<Value> = [Some(x), weight, bias].into_iter().flatten().collect();
        Ok(self.apply(Arc::new(op), &inputs)?[0])
    }
}

/// One column (all zero), primes, past a workgroup, with and without weight and bias, and a mean far from zero.
pub fn cases() -> Cases {
    let mut cases = Cases::new("layer_norm");
    for (shape, has_weight, has_bias) in [
        (&[1][..], true, true),
        (&[3, 1], true, true),
        (&[7, 13], true, true),
        (&[7, 13], true, false),
        (&[7, 13], false, true),
        (&[7, 13], false, false),
        (&[2, 3, 65], true, true),
        (&[67, 5], true, true),
        (&[2, 1031], true, true),
        (&[18, 4], true, false),
        (&[3, 1028], true, true),
    ] {
        let cols = *shape.last().expect("shapes above have axes");
        let mut inputs = vec![cases.normal(shape)];
        inputs.extend(has_weight.then(|| cases.uniform([cols], 0.5, 1.5)));
        inputs.extend(has_bias.then(|| cases.normal([cols])));
        let label = format!("{shape:?} weight={has_weight} bias={has_bias}");
        let op = LayerNorm { eps: 1e-5, has_weight, has_bias, residual: false };
        cases.add(label, op, inputs).sums(cols);
    }
    for (shape, has_weight, has_bias) in [
        ([1, 1], true, true),
        ([7, 13], true, false),
        ([67, 5], false, true),
        ([2, 1031], true, true),
        ([18, 4], false, false),
        ([3, 1028], true, true),
    ] {
        let mut inputs = vec![cases.coarse(shape)];
        inputs.extend(has_weight.then(|| cases.uniform([shape[1]], 0.5, 1.5)));
        inputs.extend(has_bias.then(|| cases.normal([shape[1]])));
        inputs.push(cases.coarse(shape));
        let op = LayerNorm { eps: 1e-5, has_weight, has_bias, residual: true };
        let label = format!("residual{shape:?} weight={has_weight} bias={has_bias}");
        cases.add(label, op, inputs).sums(shape[1]);
    }
    let far = cases.uniform([5, 33], 99.0, 101.0);
    let plain = LayerNorm { eps: 1e-5, has_weight: false, has_bias: false, residual: false };
    // The mean of 100 costs seven bits of x - mean before anything is computed.
    cases.add("mean of 100", plain, vec![far]).sums(33).slack(128.0);
    for (shape, has_weight) in [
        (&[1, 1][..], true),
        (&[7, 13], true),
        (&[7, 13], false),
        (&[67, 5], true),
        (&[2, 1031], true),
        (&[18, 4], false),
        (&[3, 1028], true),
    ] {
        let (rows, cols) = (shape[0], shape[1]);
        let mut inputs = vec![cases.normal(shape), cases.normal(shape), cases.statistic([rows])];
        inputs.push(cases.uniform([rows], 0.5, 2.0).to_precision(crate::tensor::DType::F32));
        inputs.extend(has_weight.then(|| cases.uniform([cols], 0.5, 1.5)));
        for addend in [false, true] {
            inputs.extend(addend.then(|| cases.normal(shape)));
            let op = LayerNormGradient { has_weight, addend };
            let label = format!("gradient{shape:?} weight={has_weight} addend={addend}");
            cases.add(label, op, inputs.clone()).sums(cols).no_gradient();
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn a_large_mean_does_not_swallow_the_variance() {
        let x = Tensor::f32([1, 4], vec![10_000.0, 10_001.0, 10_002.0, 10_003.0]);
        let op = LayerNorm { eps: 0.0, has_weight: false, has_bias: false, residual: false };
        let types = op.signature(&[Type::new(DType::F32, [1, 4])]).unwrap();
        let mut outputs: Vec<Tensor> = types.iter().map(Tensor::zeros).collect();
        op.reference(&[&x], &mut outputs);
        // Mean 10001.5, variance 1.25.
        assert_eq!(outputs[1].real::<f32>(), [10_001.5]);
        assert!((outputs[0].real::<f32>()[0] + 1.341_640_8).abs() < 1e-6);
    }

    #[test]
    fn statistics_stay_single_precision_in_half_storage() {
        let op = LayerNorm { eps: 1e-5, has_weight: true, has_bias: false, residual: false };
        let types = op.signature(&[Type::new(DType::F16, [2, 3, 4]), Type::new(DType::F16, [4])]).unwrap();
        assert_eq!(types[1], Type::new(DType::F32, [6]));
        assert!(op.signature(&[Type::new(DType::F16, [2, 4]), Type::f32([4])]).is_err());
    }
}
