//! Cross-entropy between rows of logits and whole-number targets.
//!
//! With `lse[r] = log(sum over c of exp(x[r, c]))` and label smoothing `s`, a row costs
//! `lse[r] - (1 - s) * x[r, target[r]] - s * mean over c of x[r, c]`; the loss is the sum or the mean over the counted rows.
//!
//! Rows whose target is `ignore_index` cost nothing and are not counted. If no row is counted the mean is NaN, as in
//! PyTorch, with all gradients zero. A target outside the columns makes its row, and so the loss, NaN: loud on every device.

mod fast;

use super::launch::{Bind, Caps, Kernel, Launch, Variant};
use super::losses::Reduction;
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_inputs,
    expect_shape, in_precision, rows,
};
use crate::tensor::{DType, Real, Shape, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// A quiet NaN, given to the shader as a parameter: WGSL refuses it as a constant.
const NAN_BITS: u32 = 0x7fc0_0000;

/// Cross-entropy. Inputs: logits `[.., V]`, targets `[..]` as i32; outputs: loss `[]`, log-sum-exp `[rows]`, counted rows `[]`.
///
/// The log-sum-exp of an ignored row is written as zero. It is saved for the derivative; no gradient flows back through it.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Target of rows that are left out, such as padding.
    pub ignore_index: i32,
    /// Share of the target spread evenly over all columns, in `0.0..=1.0`.
    pub label_smoothing: f32,
    /// Mean or sum over the counted rows.
    pub reduction: Reduction,
}

impl Default for CrossEntropy {
    /// PyTorch's settings: targets of -100 are ignored, no smoothing, mean.
    fn default() -> Self {
        CrossEntropy { ignore_index: -100, label_smoothing: 0.0, reduction: Reduction::Mean }
    }
}

impl CrossEntropy {
    /// Loss and log-sum-exp of one row.
    fn row<R: Real>(&self, x: &[R], target: i32) -> (R, R) {
        if target == self.ignore_index {
            return (R::default(), R::default());
        }
        let Some(&chosen) = usize::try_from(target).ok().and_then(|t| x.get(t)) else {
            return (R::of(f64::NAN), R::of(f64::NAN));
        };
        let largest = rows::largest_of(x);
        let lse = largest + rows::sum_of(x, |x| (x - largest).exp()).ln();
        let mean = rows::sum_of(x, |x| x) / R::of(x.len() as f64);
        let smoothing = self.label_smoothing as f64;
        (lse - R::of(1.0 - smoothing) * chosen - R::of(smoothing) * mean, lse)
    }

    fn compute<R: Real>(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let [loss, lse, count] = outputs else { unreachable!("cross_entropy has three outputs") };
        let cols = inputs[0].shape.last();
        let targets = inputs[1].as_i32();
        let mut of_rows = vec![R::default(); targets.len()];
        let each = inputs[0].real::<R>().par_chunks(cols).zip(targets);
        each.zip(of_rows.par_iter_mut().zip(lse.real_mut::<R>())).for_each(|((x, &target), (loss, lse))| {
            (*loss, *lse) = self.row(x, target);
        });
        let counted = R::of(targets.iter().filter(|&&t| t != self.ignore_index).count() as f64);
        let total = rows::sum_of(&of_rows, |x| x);
        count.real_mut::<R>()[0] = counted;
        loss.real_mut::<R>()[0] = if self.reduction == Reduction::Mean { total / counted } else { total };
    }

    fn check(&self, op: &'static str, logits: &Type, targets: &Type) -> Result<()> {
        expect_float(op, "logits", logits)?;
        rows::expect_rows(op, "logits", logits)?;
        expect_dtype(op, "targets", targets, DType::I32)?;
        expect_shape(op, "targets", targets, &logits.shape[..logits.shape.len() - 1])?;
        if (0.0..=1.0).contains(&self.label_smoothing) {
            return Ok(());
        }
        let (expected, got) = ("0.0 to 1.0".to_string(), self.label_smoothing.to_string());
        Err(Error::Setting { op, setting: "label_smoothing", expected, got })
    }

    fn give_settings(&self, launch: Launch) -> Launch {
        launch
            .param("ignore_index", self.ignore_index)
            .param("smoothing", self.label_smoothing)
            .param("nan_bits", NAN_BITS)
    }

    fn is_mean(&self) -> u32 {
        (self.reduction == Reduction::Mean) as u32
    }
}

impl Operator for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn settings(&self) -> String {
        let CrossEntropy { ignore_index, label_smoothing, reduction } = self;
        format!("ignore={ignore_index},smoothing={label_smoothing},reduction={}", reduction.name())
    }

    fn over_rows(&self) -> Option<(Arc<dyn Operator>, bool)> {
        let sum = CrossEntropy { reduction: Reduction::Sum, ..self.clone() };
        Some((Arc::new(sum), self.reduction == Reduction::Mean))
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [logits, targets] = expect_inputs(self.name(), inputs)?;
        self.check(self.name(), logits, targets)?;
        let scalar = rows::statistic(logits, Shape::default());
        Ok(vec![scalar.clone(), rows::statistic(logits, [logits.shape.rows()]), scalar])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, outputs));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        fast::forward(self, inputs, outputs);
    }

    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        if up[1].is_some() {
            return Err(Error::NoGradient { op: self.name(), hint: "use log_sum_exp on the logits" });
        }
        // The count of rows is a step function of the targets: its derivative is zero everywhere.
        let Some(up) = up[0] else { return Ok(vec![None, None]) };
        let inputs = [site.input(0), site.input(1), site.output(1), site.output(2), up];
        let op = CrossEntropyGradient { of: self.clone(), overwrites: false };
        Ok(vec![Some(emit.apply_one(Arc::new(op), &inputs)?), None])
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let rows = inputs[0].shape.rows();
        let kernel = Kernel::new("cross_entropy").retype("Elem", inputs[0].dtype);
        let bindings = [Bind::Input(0), Bind::Input(1), Bind::Scratch(0), Bind::Output(1)];
        let by_rows =
            rows::variants(self.name(), kernel, &bindings, &inputs[0].shape, caps, |l| self.give_settings(l));
        let finish = |mut variant: Variant| {
            let kernel =
                rows::with_width(Kernel::new("cross_entropy_total"), 1).constant("MEAN", self.is_mean());
            let bindings = [Bind::Scratch(0), Bind::Input(1), Bind::Output(0), Bind::Output(2)];
            let total =
                Launch::new(kernel, bindings, 1).param("rows", rows).param("ignore_index", self.ignore_index);
            variant.launches.push(total);
            variant.scratch.push((rows.max(1) * DType::F32.size_bytes()) as u64);
            variant
        };
        by_rows.into_iter().map(finish).collect()
    }

    fn cost(&self, inputs: &[Type], _outputs: &[Type]) -> Cost {
        Cost { flops: 5.0 * inputs[0].shape.count() as f64, bytes: inputs[0].size_bytes() as f64 }
    }
}

/// dlogits of [`CrossEntropy`], in one pass. Inputs: logits, targets, log-sum-exp, counted rows, upstream scalar.
///
/// `dx[r, c] = w * (exp(x[r, c] - lse[r]) - (1 - s) * [c == target[r]] - s / V)`, `w` the upstream, divided by the count for
/// a mean; zero in ignored rows.
#[derive(Clone, Debug)]
pub struct CrossEntropyGradient {
    /// The operator it belongs to.
    pub of: CrossEntropy,
    /// The gradient is written over the logits.
    pub overwrites: bool,
}

impl CrossEntropyGradient {
    fn compute<R: Real>(&self, inputs: &[&Tensor], dx: &mut Tensor) {
        let cols = dx.shape.last();
        let [x, lse, count, up] = [0, 2, 3, 4].map(|i| inputs[i].real::<R>());
        let weight = if self.of.reduction == Reduction::Mean { up[0] / count[0] } else { up[0] };
        let smoothing = self.of.label_smoothing as f64;
        let (share, rest) = (R::of(smoothing / cols as f64), R::of(1.0 - smoothing));
        let each = dx.real_mut::<R>().par_chunks_mut(cols).zip(x.par_chunks(cols));
        each.zip(inputs[1].as_i32().par_iter().zip(lse)).for_each(|((dx, x), (&target, &lse))| {
            if target == self.of.ignore_index {
                return dx.fill(R::default());
            }
            dx.iter_mut().zip(x).for_each(|(dx, &x)| *dx = weight * ((x - lse).exp() - share));
            if let Some(chosen) = usize::try_from(target).ok().and_then(|t| dx.get_mut(t)) {
                *chosen -= weight * rest;
            }
        });
    }
}

impl Operator for CrossEntropyGradient {
    fn name(&self) -> &'static str {
        "cross_entropy_gradient"
    }

    fn settings(&self) -> String {
        self.of.settings() + if self.overwrites { ",overwrites" } else { "" }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.overwrites { &[(0, 0)] } else { &[] }
    }

    fn overwriting(&self) -> Option<Arc<dyn Operator>> {
        (!self.overwrites).then(|| Arc::new(CrossEntropyGradient { overwrites: true, ..self.clone() }) as _)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let [logits, targets, lse, count, up] = expect_inputs(op, inputs)?;
        self.of.check(op, logits, targets)?;
        let saved = rows::statistic(logits, []).dtype;
        expect_shape(op, "lse", lse, &[logits.shape.rows()])?;
        expect_dtype(op, "lse", lse, saved)?;
        for (name, scalar) in [("count", count), ("up", up)] {
            expect_shape(op, name, scalar, &[])?;
            expect_dtype(op, name, scalar, saved)?;
        }
        Ok(vec![logits.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        fast::backward(self, inputs, &mut outputs[0]);
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: self.name(), hint: "second derivatives are not supported" })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let logits = match self.overwrites {
            true => "fn logits_at(at: u32) -> V { return V(dx[at]); }",
            false => {
                "@group(0) @binding(5) var<storage, read> x: array<Pack>; // [rows, cols]\n\
                 fn logits_at(at: u32) -> V { return V(x[at]); }"
            }
        };
        let kernel = Kernel::new("cross_entropy_gradient")
            .constant("MEAN", self.of.is_mean())
            .retype("Elem", inputs[0].dtype)
            .paste("LOGITS", logits);
        let mut bindings = [1, 2, 3, 4].map(Bind::Input).to_vec();
        bindings.push(Bind::Output(0));
        bindings.extend((!self.overwrites).then_some(Bind::Input(0)));
        rows::variants(self.name(), kernel, &bindings, &inputs[0].shape, caps, |l| {
            l.param("ignore_index", self.of.ignore_index).param("smoothing", self.of.label_smoothing)
        })
    }

    fn cost(&self, inputs: &[Type], _outputs: &[Type]) -> Cost {
        Cost { flops: 4.0 * inputs[0].shape.count() as f64, bytes: 2.0 * inputs[0].size_bytes() as f64 }
    }
}

/// Builder of [`CrossEntropy`].
pub trait CrossEntropyEmit {
    /// Loss of `logits` [.., V] against `targets` [..], a scalar kept in f32.
    fn cross_entropy(&mut self, logits: Value, targets: Value, settings: CrossEntropy) -> Result<Value>;
}

impl<E: Emit + ?Sized> CrossEntropyEmit for E {
    fn cross_entropy(&mut self, logits: Value, targets: Value, settings: CrossEntropy) -> Result<Value> {
        Ok(self.apply(Arc::new(settings), &[logits, targets])?[0])
    }
}

/// One class, primes, past a workgroup, ignored rows, smoothing, sums, logits that overflow a naive exp.
pub fn cases() -> Cases {
    let mut cases = Cases::new("cross_entropy");
    let plain = CrossEntropy::default();
    let smooth = CrossEntropy { label_smoothing: 0.1, ..plain.clone() };
    let sum = CrossEntropy { reduction: Reduction::Sum, ..plain.clone() };
    // Targets are drawn from the whole range, so class 2 is a class for the others and padding here.
    let padded = CrossEntropy { ignore_index: 2, label_smoothing: 0.2, ..plain.clone() };
    for (shape, op) in [
        (&[1, 1][..], &plain),
        (&[5], &plain),
        (&[7, 13], &plain),
        (&[7, 13], &smooth),
        (&[67, 5], &padded),
        (&[2, 3, 65], &sum),
        (&[3, 1031], &smooth),
        (&[19, 36], &smooth),
        (&[3, 1028], &padded),
        (&[300, 7], &plain),
    ] {
        let (lead, cols) = (&shape[..shape.len() - 1], *shape.last().expect("shapes above have axes"));
        let count: usize = lead.iter().product();
        let inputs = vec![cases.normal(shape), cases.targets(lead, 0, cols as i32)];
        cases.add(format!("{shape:?} {}", op.settings()), op.clone(), inputs).sums(count * cols);
        let inputs = vec![
            cases.normal(shape),
            cases.targets(lead, 0, cols as i32),
            cases.uniform([count], 2.0, 3.0).to_precision(DType::F32),
            Tensor::scalar(count as f32),
            cases.statistic([]),
        ];
        for overwrites in [false, true] {
            let op = CrossEntropyGradient { of: op.clone(), overwrites };
            cases.add(format!("gradient{shape:?} {}", op.settings()), op, inputs.clone()).no_gradient();
        }
    }
    let large = cases.uniform([19, 33], -1e4, 1e4);
    let targets = cases.targets([19], 0, 33);
    // Central differences see only steps here: one column of each row holds all the probability.
    cases.add("up to 1e4", plain, vec![large, targets]).sums(19 * 33).no_gradient();
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(op: &CrossEntropy, logits: &[f32], targets: &[i32]) -> Vec<Tensor> {
        let x = Tensor::f32([targets.len(), logits.len() / targets.len()], logits.to_vec());
        let t = Tensor::i32([targets.len()], targets.to_vec());
        let types = op.signature(&[x.host_type(), t.host_type()]).unwrap();
        let mut outputs: Vec<Tensor> = types.iter().map(Tensor::zeros).collect();
        op.reference(&[&x, &t], &mut outputs);
        outputs
    }

    fn backward(op: &CrossEntropy, logits: &[f32], targets: &[i32], saved: &[Tensor]) -> Vec<f32> {
        let x = Tensor::f32([targets.len(), logits.len() / targets.len()], logits.to_vec());
        let t = Tensor::i32([targets.len()], targets.to_vec());
        let mut dx = [Tensor::zeros(&x.host_type())];
        let op = CrossEntropyGradient { of: op.clone(), overwrites: false };
        op.reference(&[&x, &t, &saved[1], &saved[2], &Tensor::scalar(1.0)], &mut dx);
        dx[0].real::<f32>().to_vec()
    }

    #[test]
    fn an_ignored_row_adds_nothing_and_does_not_enter_the_mean() {
        let (op, logits) = (CrossEntropy::default(), [1.0, 3.0, -2.0, 9.0]);
        let both = forward(&op, &logits, &[0, -100]);
        // log(e + e^3) - 1 = log(1 + e^2)
        assert!((both[0].real::<f32>()[0] - 2.126_928).abs() < 1e-6);
        assert_eq!((both[2].real::<f32>()[0], both[1].real::<f32>()[1]), (1.0, 0.0));
        let dx = backward(&op, &logits, &[0, -100], &both);
        assert!((dx[0] + 0.880_797).abs() < 1e-6 && (dx[1] - 0.880_797).abs() < 1e-6, "{dx:?}");
        assert_eq!(dx[2..], [0.0, 0.0]);
    }

    #[test]
    fn without_a_counted_row_the_mean_is_nan_and_the_gradient_zero() {
        let (op, logits) = (CrossEntropy::default(), [1.0, 3.0]);
        let none = forward(&op, &logits, &[-100]);
        assert!(none[0].real::<f32>()[0].is_nan());
        assert_eq!(backward(&op, &logits, &[-100], &none), [0.0, 0.0]);
        let sum = CrossEntropy { reduction: Reduction::Sum, ..op };
        assert_eq!(forward(&sum, &logits, &[-100])[0].real::<f32>(), [0.0]);
    }

    #[test]
    fn a_target_outside_the_columns_makes_the_loss_nan() {
        for target in [2, -1, i32::MAX, i32::MIN] {
            let outputs = forward(&CrossEntropy::default(), &[1.0, 3.0], &[target]);
            assert!(outputs[0].real::<f32>()[0].is_nan(), "{target}");
        }
    }

    #[test]
    fn smoothing_outside_its_range_is_refused() {
        let op = CrossEntropy { label_smoothing: 1.5, ..CrossEntropy::default() };
        let refused = op.signature(&[Type::f32([2, 3]), Type::new(DType::I32, [2])]);
        assert!(matches!(refused, Err(Error::Setting { setting: "label_smoothing", .. })));
    }
}
