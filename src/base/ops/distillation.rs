//! Losses of a student against a teacher, written in smaller operators.
//!
//! With `p = softmax(teacher / T)` and `q = softmax(student / T)`, row by row:
//!
//! ```text
//! forward   KL(p || q) = sum of p (log p - log q)
//! reverse   KL(q || p)
//! between   b KL(p || m) + (1 - b) KL(q || m),  m = b p + (1 - b) q
//! ```
//! each times T^2, which keeps gradients as large as at temperature one. Everything is computed from logarithms, so that
//! logits of any size give finite numbers: with `a = log p + log b` and `c = log q + log(1 - b)` it holds that
//! `log p - log m = -log b - softplus(c - a)`, and no mixture is ever taken the logarithm of.
//!
//! Of a teacher that has run ahead only the K likeliest tokens of each row are known, and how likely all others are together. Both
//! sides' other tokens count then as one:
//!
//! ```text
//! top       sum over the K of p (log p - log q)  +  P (log P - log Q),  P and Q what is left of p and q
//! ```
//! By the log-sum inequality this is never above the whole KL(p || q), and with K = V it is the same. Why the rest is kept: with the K
//! alone, made to sum to one, the student would learn to be too sure (Anshumann et al. 2025, arXiv:2503.16870).

use super::cast::CastEmit;
use super::concat::ConcatEmit;
use super::gather::GatherEmit;
use super::matmul::{Form, MatmulEmit};
use super::pointwise::PointwiseEmit;
use super::reduce::{Kind, ReduceEmit};
use super::reshape::ReshapeEmit;
use super::slice::SliceEmit;
use super::softmax::SoftmaxEmit;
use super::transpose::TransposeEmit;
use super::{Emit, Error, Result, Value, expect_shape};
use crate::tensor::{DType, Shape, Tensor};

/// Added to products of squared lengths, as PyTorch does in its cosine loss.
const TINY: f32 = 1e-12;

/// A score so low that nothing is left of its probability, and so high that a sum of two is still a number.
pub const HIDDEN: f32 = -1e9;

/// How far apart two distributions are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// KL(teacher || student): the student covers all the teacher does.
    Forward,
    /// KL(student || teacher): the student keeps to what the teacher does most.
    Reverse,
    /// The generalised Jensen-Shannon divergence: near the forward one for a `beta` near zero, near the reverse one for a `beta`
    /// near one, where it vanishes as `beta` or `1 - beta` does.
    Between {
        /// Share of the teacher in the mixture, above 0 and below 1.
        beta: f32,
    },
}

/// Builders of losses for distillation. None of them is reduced further than to one number for each row.
pub trait DistillationEmit {
    /// T^2 times the divergence of each row of logits [.., V], as `[..]` in f32.
    fn row_divergence(
        &mut self,
        teacher: Value,
        student: Value,
        how: Divergence,
        temperature: f32,
    ) -> Result<Value>;

    /// T^2 times the divergence of the student's logits [N, V] from a teacher of whom `logs` [N, K + 1] are known: logarithms of the
    /// probabilities, at this temperature, of the tokens in `columns` [N, K], and of all others together. As `[N]` in f32.
    fn row_divergence_of_top(
        &mut self,
        logs: Value,
        columns: Value,
        student: Value,
        temperature: f32,
    ) -> Result<Value>;

    /// Mean of squares of `x - target` in each row [.., C], as `[..]` in f32.
    fn row_squared_error(&mut self, x: Value, target: Value) -> Result<Value>;

    /// Cosine of the angle between rows [.., C], as `[..]` in f32.
    fn row_cosine(&mut self, a: Value, b: Value) -> Result<Value>;

    /// Logarithms [B R, T, T] of what each position attends to: `log softmax(scale a b^T)` with `a` and `b` [B, T, R, D] as R
    /// heads side by side. With `causal`, positions see none after them.
    fn relation(&mut self, a: Value, b: Value, scale: f32, causal: bool) -> Result<Value>;

    /// KL of each row of logarithms of probabilities, `sum of p (log p - log q)`, as `[..]` in f32.
    fn row_divergence_of_logs(&mut self, log_p: Value, log_q: Value) -> Result<Value>;

    /// The mean of numbers `[N]`, or their sum weighted by `share: [N]`.
    fn shared_mean(&mut self, each: Value, share: Option<Value>) -> Result<Value>;
}

impl<E: Emit + ?Sized> DistillationEmit for E {
    fn row_divergence(
        &mut self,
        teacher: Value,
        student: Value,
        how: Divergence,
        temperature: f32,
    ) -> Result<Value> {
        let op = "row_divergence";
        expect_shape(op, "teacher", &self.type_of(teacher), &self.type_of(student).shape)?;
        let [log_p, log_q] =
            [cooled(self, op, teacher, temperature)?, cooled(self, op, student, temperature)?];
        let each = match how {
            Divergence::Forward => self.row_divergence_of_logs(log_p, log_q)?,
            Divergence::Reverse => self.row_divergence_of_logs(log_q, log_p)?,
            Divergence::Between { beta } if beta > 0.0 && beta < 1.0 => between(self, log_p, log_q, beta)?,
            Divergence::Between { beta } => {
                return Err(refused(op, "beta", "above 0 and below 1", beta));
            }
        };
        self.scale(each, temperature * temperature)
    }

    fn row_divergence_of_top(
        &mut self,
        logs: Value,
        columns: Value,
        student: Value,
        temperature: f32,
    ) -> Result<Value> {
        let op = "row_divergence_of_top";
        let (picks, vocabulary) = (self.type_of(columns).shape.last(), self.type_of(student).shape.last());
        let rows = self.type_of(columns).shape[0];
        expect_shape(op, "logs", &self.type_of(logs), &[rows, picks + 1])?;
        let log_q = cooled(self, op, student, temperature)?;
        let picked = self.gather(log_q, columns)?;
        // What is left of q, without ever taking the logarithm of a difference: the picked ones are hidden from a sum.
        let top = self.slice(logs, 1, 0, picks)?;
        let nothing = self.scale(top, 0.0)?;
        let hidden = self.shift(nothing, HIDDEN)?;
        let hidden = self.scatter(hidden, columns, vocabulary)?;
        let others = self.add(log_q, hidden)?;
        let rest = self.log_sum_exp(others)?;
        let rest = self.reshape(rest, [rows, 1].into())?;
        let log_q = self.concat(&[picked, rest], 1)?;
        let each = self.row_divergence_of_logs(logs, log_q)?;
        self.scale(each, temperature * temperature)
    }

    fn row_squared_error(&mut self, x: Value, target: Value) -> Result<Value> {
        let [x, target] = alike(self, "row_squared_error", x, target)?;
        let apart = self.sub(x, target)?;
        let each = self.pointwise("square", &[apart], 0.0)?;
        of_rows(self, Kind::Mean, each)
    }

    fn row_cosine(&mut self, a: Value, b: Value) -> Result<Value> {
        let [a, b] = alike(self, "row_cosine", a, b)?;
        let mut length = |x: Value| {
            let squares = self.pointwise("square", &[x], 0.0)?;
            let total = of_rows(self, Kind::Sum, squares)?;
            let total = self.shift(total, TINY)?;
            self.pointwise("sqrt", &[total], 0.0)
        };
        let lengths = [length(a)?, length(b)?];
        let product = self.mul(a, b)?;
        let product = of_rows(self, Kind::Sum, product)?;
        let product = self.div(product, lengths[0])?;
        self.div(product, lengths[1])
    }

    fn relation(&mut self, a: Value, b: Value, scale: f32, causal: bool) -> Result<Value> {
        let shape = self.type_of(a).shape;
        let &[batch, time, heads, size] = &shape[..] else {
            let (expected, got) = ("[B, T, R, D]".to_string(), shape);
            return Err(Error::Shape { op: "relation", input: "a", expected, got });
        };
        let [a, b] = alike(self, "relation", a, b)?;
        let mut turned = |x: Value| {
            let x = self.transpose(x, &[0, 2, 1, 3])?;
            self.reshape(x, [batch * heads, time, size].into())
        };
        let (a, b) = (turned(a)?, turned(b)?);
        let scores = self.matmul_form(Form::Nt, a, b)?;
        let mut scores = self.scale(scores, scale)?;
        if causal {
            let hidden = (0..time * time).map(|at| if at % time > at / time { HIDDEN } else { 0.0 });
            let mask = self.constant(Tensor::f32([1, time, time], hidden.collect()));
            scores = self.add(scores, mask)?;
        }
        self.log_softmax(scores)
    }

    fn row_divergence_of_logs(&mut self, log_p: Value, log_q: Value) -> Result<Value> {
        let p = self.pointwise("exp", &[log_p], 0.0)?;
        let apart = self.sub(log_p, log_q)?;
        let each = self.mul(p, apart)?;
        of_rows(self, Kind::Sum, each)
    }

    fn shared_mean(&mut self, each: Value, share: Option<Value>) -> Result<Value> {
        match share {
            None => self.mean_all(each),
            Some(share) => {
                expect_shape("shared_mean", "share", &self.type_of(share), &self.type_of(each).shape)?;
                let weighted = self.mul(each, share)?;
                self.sum_all(weighted)
            }
        }
    }
}

/// `b KL(p || m) + (1 - b) KL(q || m) = H(b) - sum of b p softplus(c - a) + (1 - b) q softplus(a - c)`, with `H(b)` the entropy
/// of the mixture's two shares.
fn between<E: Emit + ?Sized>(emit: &mut E, log_p: Value, log_q: Value, beta: f32) -> Result<Value> {
    let (teacher, student) = (f64::from(beta), 1.0 - f64::from(beta));
    let apart = emit.sub(log_q, log_p)?;
    let apart = emit.shift(apart, (student.ln() - teacher.ln()) as f32)?;
    let opposite = emit.scale(apart, -1.0)?;
    let mut part = |log: Value, apart: Value, share: f64| {
        let probability = emit.pointwise("exp", &[log], 0.0)?;
        let excess = emit.pointwise("softplus", &[apart], 0.0)?;
        let each = emit.mul(probability, excess)?;
        emit.scale(each, -share as f32)
    };
    let (of_teacher, of_student) = (part(log_p, apart, teacher)?, part(log_q, opposite, student)?);
    let each = emit.add(of_teacher, of_student)?;
    let total = of_rows(emit, Kind::Sum, each)?;
    emit.shift(total, (-teacher * teacher.ln() - student * student.ln()) as f32)
}

/// Logarithms of the probabilities at a temperature, in f32.
fn cooled<E: Emit + ?Sized>(
    emit: &mut E,
    op: &'static str,
    logits: Value,
    temperature: f32,
) -> Result<Value> {
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(refused(op, "temperature", "a positive number", temperature));
    }
    let logits = emit.cast(logits, DType::F32)?;
    let cooled = emit.scale(logits, 1.0 / temperature)?;
    emit.log_softmax(cooled)
}

fn refused(op: &'static str, setting: &'static str, expected: &str, got: f32) -> Error {
    Error::Setting { op, setting, expected: expected.to_string(), got: got.to_string() }
}

/// Two values of one shape in f32.
fn alike<E: Emit + ?Sized>(emit: &mut E, op: &'static str, a: Value, b: Value) -> Result<[Value; 2]> {
    expect_shape(op, "second", &emit.type_of(b), &emit.type_of(a).shape)?;
    Ok([emit.cast(a, DType::F32)?, emit.cast(b, DType::F32)?])
}

/// Reduces the last axis, which goes.
fn of_rows<E: Emit + ?Sized>(emit: &mut E, kind: Kind, x: Value) -> Result<Value> {
    let shape = emit.type_of(x).shape;
    let last = shape.len() - 1;
    let kept = emit.reduce(kind, x, last)?;
    emit.reshape(kept, Shape::from(&shape[..last]))
}
