//! Losses and penalties written in smaller operators; the fuse pass joins their chains.
//!
//! Values in half storage are widened first, so that a loss is always a full-precision scalar.

use super::cast::CastEmit;
use super::distillation::{DistillationEmit, Divergence};
use super::pointwise::PointwiseEmit;
use super::reduce::ReduceEmit;
use super::{Emit, Error, Result, Value};
use crate::tensor::DType;

/// How the losses of single elements become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Their mean.
    Mean,
    /// Their sum.
    Sum,
}

impl Reduction {
    /// Name as in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Reduction::Mean => "mean",
            Reduction::Sum => "sum",
        }
    }
}

/// Builders of losses. Gradients flow into targets too, unless nothing asks for them.
pub trait LossEmit {
    /// `(x - target)^2`
    fn squared_error(&mut self, x: Value, target: Value, reduction: Reduction) -> Result<Value>;

    /// `|x - target|`
    fn absolute_error(&mut self, x: Value, target: Value, reduction: Reduction) -> Result<Value>;

    /// With `d = |x - target|`: `d^2 / 2` up to `delta`, `delta * (d - delta / 2)` beyond.
    fn huber(&mut self, x: Value, target: Value, delta: f32, reduction: Reduction) -> Result<Value>;

    /// Huber's loss over its `beta`: slope one beyond it.
    fn smooth_absolute_error(
        &mut self,
        x: Value,
        target: Value,
        beta: f32,
        reduction: Reduction,
    ) -> Result<Value>;

    /// Binary cross-entropy of logits against targets in `0.0..=1.0`, safe for logits of any size:
    /// `(1 - target) * x + (1 + (positive_weight - 1) * target) * softplus(-x)`.
    ///
    /// `positive_weight` broadcasts to `x` and multiplies the cost of missing a positive.
    fn binary_cross_entropy(
        &mut self,
        logits: Value,
        target: Value,
        positive_weight: Option<Value>,
        reduction: Reduction,
    ) -> Result<Value>;

    /// `T^2 * KL(softmax(reference / T) || softmax(logits / T))`, the mean over rows: what a student with `logits` pays for
    /// not agreeing with the `reference` logits of its teacher. Exchange the two for the reverse divergence.
    ///
    /// The factor T^2 keeps gradients as large as at temperature one.
    fn divergence(&mut self, reference: Value, logits: Value, temperature: f32) -> Result<Value>;

    /// `coefficient * sum of |w|` over all weights.
    fn absolute_penalty(&mut self, weights: &[Value], coefficient: f32) -> Result<Value>;

    /// `coefficient * sum of w^2` over all weights.
    fn squared_penalty(&mut self, weights: &[Value], coefficient: f32) -> Result<Value>;
}

impl<E: Emit + ?Sized> LossEmit for E {
    fn squared_error(&mut self, x: Value, target: Value, reduction: Reduction) -> Result<Value> {
        let apart = difference(self, x, target)?;
        let each = self.pointwise("square", &[apart], 0.0)?;
        reduce(self, each, reduction)
    }

    fn absolute_error(&mut self, x: Value, target: Value, reduction: Reduction) -> Result<Value> {
        let apart = difference(self, x, target)?;
        let each = self.pointwise("absolute", &[apart], 0.0)?;
        reduce(self, each, reduction)
    }

    fn huber(&mut self, x: Value, target: Value, delta: f32, reduction: Reduction) -> Result<Value> {
        expect_positive("huber", "delta", delta)?;
        let apart = difference(self, x, target)?;
        let distance = self.pointwise("absolute", &[apart], 0.0)?;
        // near = min(distance, delta) = delta - relu(delta - distance); the loss is near * (distance - near / 2).
        let negative = self.scale(distance, -1.0)?;
        let left = self.shift(negative, delta)?;
        let left = self.pointwise("relu", &[left], 0.0)?;
        let near = self.scale(left, -1.0)?;
        let near = self.shift(near, delta)?;
        let half = self.scale(near, 0.5)?;
        let arm = self.sub(distance, half)?;
        let each = self.mul(near, arm)?;
        reduce(self, each, reduction)
    }

    fn smooth_absolute_error(
        &mut self,
        x: Value,
        target: Value,
        beta: f32,
        reduction: Reduction,
    ) -> Result<Value> {
        expect_positive("smooth_absolute_error", "beta", beta)?;
        let huber = self.huber(x, target, beta, reduction)?;
        self.scale(huber, 1.0 / beta)
    }

    fn binary_cross_entropy(
        &mut self,
        logits: Value,
        target: Value,
        positive_weight: Option<Value>,
        reduction: Reduction,
    ) -> Result<Value> {
        expect_same_shape(self, "binary_cross_entropy", logits, target)?;
        let (x, target) = (self.cast(logits, DType::F32)?, self.cast(target, DType::F32)?);
        let negative = self.scale(x, -1.0)?;
        let mut missed = self.pointwise("softplus", &[negative], 0.0)?;
        if let Some(weight) = positive_weight {
            let weight = self.cast(weight, DType::F32)?;
            let extra = self.shift(weight, -1.0)?;
            let extra = self.mul(target, extra)?;
            let factor = self.shift(extra, 1.0)?;
            missed = self.mul(factor, missed)?;
        }
        let opposite = self.scale(target, -1.0)?;
        let opposite = self.shift(opposite, 1.0)?;
        let base = self.mul(opposite, x)?;
        let each = self.add(base, missed)?;
        reduce(self, each, reduction)
    }

    fn divergence(&mut self, reference: Value, logits: Value, temperature: f32) -> Result<Value> {
        let each = self.row_divergence(reference, logits, Divergence::Forward, temperature)?;
        self.mean_all(each)
    }

    fn absolute_penalty(&mut self, weights: &[Value], coefficient: f32) -> Result<Value> {
        penalty(self, "absolute_penalty", "absolute", weights, coefficient)
    }

    fn squared_penalty(&mut self, weights: &[Value], coefficient: f32) -> Result<Value> {
        penalty(self, "squared_penalty", "square", weights, coefficient)
    }
}

/// x - target in f32. Shapes must agree: a forgotten axis would broadcast into a plausible wrong loss.
fn difference<E: Emit + ?Sized>(emit: &mut E, x: Value, target: Value) -> Result<Value> {
    expect_same_shape(emit, "loss", x, target)?;
    let (x, target) = (emit.cast(x, DType::F32)?, emit.cast(target, DType::F32)?);
    emit.sub(x, target)
}

fn reduce<E: Emit + ?Sized>(emit: &mut E, each: Value, reduction: Reduction) -> Result<Value> {
    match reduction {
        Reduction::Mean => emit.mean_all(each),
        Reduction::Sum => emit.sum_all(each),
    }
}

fn penalty<E: Emit + ?Sized>(
    emit: &mut E,
    op: &'static str,
    function: &str,
    weights: &[Value],
    coefficient: f32,
) -> Result<Value> {
    let mut total = None;
    for &weight in weights {
        let weight = emit.cast(weight, DType::F32)?;
        let each = emit.pointwise(function, &[weight], 0.0)?;
        let sum = emit.sum_all(each)?;
        total = Some(match total {
            Some(before) => emit.add(before, sum)?,
            None => sum,
        });
    }
    let total = total.ok_or(Error::InputCount { op, expected: 1, got: 0 })?;
    emit.scale(total, coefficient)
}

fn expect_same_shape<E: Emit + ?Sized>(emit: &E, op: &'static str, x: Value, target: Value) -> Result<()> {
    super::expect_shape(op, "target", &emit.type_of(target), &emit.type_of(x).shape)
}

fn expect_positive(op: &'static str, setting: &'static str, got: f32) -> Result<()> {
    if got > 0.0 && got.is_finite() {
        return Ok(());
    }
    Err(Error::Setting { op, setting, expected: "a positive number".into(), got: got.to_string() })
}
