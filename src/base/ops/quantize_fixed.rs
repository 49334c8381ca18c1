//! Symmetric 8-bit quantisation by one scale known beforehand: what static activations are coded with.
//!
//! `q = clamp(round(x / s))`, half to even; kernels multiply by `1 / s`, so that in the middle between two codes either may come out.
//! The scale comes out again for each row, so that what reads codes of rows reads these too. NaN has the code 0.

use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::quantize_rows::Rule;
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_float, expect_inputs, expect_shape,
    in_precision, rows,
};
use crate::ops::fast::widest;
use crate::tensor::{DType, Real, Shape, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// Elements a thread codes at a time.
const PIECE: usize = 1 << 14;

/// Codes by a given scale. Inputs: x [.., K] and s `[1]`; outputs: q [.., K] as i8 and the scale of each row [..].
#[derive(Clone, Debug)]
pub struct QuantizeFixed {
    /// Which codes there are; the scale is given.
    pub rule: Rule,
}

impl QuantizeFixed {
    fn compute<R: Real>(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let [low, high] = self.rule.bounds().map(f64::from);
        let scale = inputs[1].real::<R>()[0];
        let (q, s) = outputs.split_at_mut(1);
        s[0].real_mut::<R>().fill(scale);
        for (q, x) in q[0].as_i8_mut().iter_mut().zip(inputs[0].real::<R>()) {
            let exact = if usable(scale.wide() as f32) { x.wide() / scale.wide() } else { 0.0 };
            *q = exact.round_ties_even().clamp(low, high) as i8;
        }
    }
}

/// True for a scale that codes can be found with.
fn usable(scale: f32) -> bool {
    scale >= f32::MIN_POSITIVE && scale.is_finite()
}

impl Operator for QuantizeFixed {
    fn name(&self) -> &'static str {
        "quantize_fixed"
    }

    fn settings(&self) -> String {
        format!("rule={}", self.rule.name())
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x, s] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "x", x)?;
        rows::expect_rows(self.name(), "x", x)?;
        expect_shape(self.name(), "s", s, &[1])?;
        super::dequantize_rows::expect_scales(self.name(), "s", s, &[1])?;
        let scales = Shape::from(&x.shape[..x.shape.len() - 1]);
        Ok(vec![Type::new(DType::I8, x.shape.clone()), rows::statistic(x, scales)])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, outputs));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let scale = inputs[1].floats()[0];
        let [q, s] = outputs else { unreachable!("codes and scales") };
        s.floats().fill(scale);
        let factor = if usable(scale) { 1.0 / scale } else { 0.0 };
        let pieces = q.as_i8().par_chunks_mut(PIECE).zip(inputs[0].floats().par_chunks(PIECE));
        pieces.for_each(|(q, x)| code(x, q, factor, self.rule.bounds()));
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "codes are whole numbers: train through a fake quantisation instead";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn codes_rows(&self) -> Option<(Rule, bool)> {
        Some((self.rule, true))
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let (count, [lowest, highest]) = (inputs[0].shape.count(), self.rule.bounds());
        let kernel = Kernel::new("quantize_fixed").retype("Elem", inputs[0].dtype);
        let bindings = [Bind::Input(0), Bind::Input(1), Bind::Output(0), Bind::Output(1)];
        let rows = inputs[0].shape.rows();
        let launch = Launch::new(kernel, bindings, spread(count.div_ceil(4).max(rows)));
        let launch = launch.param("count", count).param("rows", rows);
        vec![Variant::single(self.name(), launch.param("lowest", lowest).param("highest", highest))]
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 3.0 * inputs[0].shape.count() as f64, bytes }
    }
}

/// Added to a small number, it leaves no room for a fraction: the sum is rounded half to even, and its lowest byte is the code.
const WHOLE: f32 = 12_582_912.0;

widest! {
    fn code(x: &[f32], q: &mut [i8], factor: f32, bounds: [f32; 2]) {
        for (q, x) in q.iter_mut().zip(x) {
            let scaled = x * factor;
            let known = if scaled.is_nan() { 0.0 } else { scaled };
            *q = (known.max(bounds[0]).min(bounds[1]) + WHOLE).to_bits() as i8;
        }
    }
}

/// Builder of [`QuantizeFixed`].
pub trait QuantizeFixedEmit {
    /// Codes of `x` by `scale` `[1]`, and that scale for each row.
    fn quantize_fixed(&mut self, x: Value, scale: Value, rule: Rule) -> Result<[Value; 2]>;
}

impl<E: Emit + ?Sized> QuantizeFixedEmit for E {
    fn quantize_fixed(&mut self, x: Value, scale: Value, rule: Rule) -> Result<[Value; 2]> {
        let outputs = self.apply(Arc::new(QuantizeFixed { rule }), &[x, scale])?;
        Ok([outputs[0], outputs[1]])
    }
}

/// One element, primes, fours; exact ties, elements beyond both ends; a scale of zero.
pub fn cases() -> Cases {
    let mut cases = Cases::new("quantize_fixed");
    for rule in [Rule::Narrow, Rule::Wide] {
        for shape in [&[1][..], &[7, 13], &[2, 3, 64], &[67, 5], &[2, 1031]] {
            let x = cases.uniform(shape, -2.0, 2.0);
            for scale in [1.0 / 64.0, 0.0] {
                let label = format!("{} {shape:?} by {scale}", rule.name());
                let inputs = vec![x.clone(), Tensor::f32([1], vec![scale])];
                let ties = move |inputs: &[Tensor]| {
                    let near = |x: &f64| ((x * 64.0).abs().fract() - 0.5).abs() < 1e-4;
                    inputs[0].to_f64().iter().map(near).collect::<Vec<_>>()
                };
                let case = cases.add(label, QuantizeFixed { rule }, inputs).no_gradient();
                case.either_step_at(ties);
            }
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beyond_the_codes_is_cut_off_and_ties_go_to_the_even_one() {
        let x = Tensor::f32([1, 6], vec![0.25, 0.75, -0.25, 100.0, -100.0, f32::NAN]);
        let op = QuantizeFixed { rule: Rule::Wide };
        let scale = Tensor::f32([1], vec![0.5]);
        let mut outputs = [Tensor::i8([1, 6], vec![1; 6]), Tensor::f32([1], vec![0.0])];
        op.reference(&[&x, &scale], &mut outputs);
        assert_eq!(outputs[0].as_i8(), [0, 2, 0, 127, -128, 0]);
        assert_eq!(outputs[1].real::<f32>(), [0.5]);
        let [mut q, mut s] = [Tensor::i8([1, 6], vec![1; 6]), Tensor::f32([1], vec![0.0])];
        op.host(
            &[View::of_tensor(&x), View::of_tensor(&scale)],
            &mut [ViewMut::of_tensor(&mut q), ViewMut::of_tensor(&mut s)],
        );
        assert_eq!([q, s], outputs);
    }
}
