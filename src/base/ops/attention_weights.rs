//! Probabilities of attention as values of their own, from scores that were already computed.
//!
//! `p[b, h, t, :] = softmax over the keys s that query t sees of x[b, h, t, s] + bias[s - i(t) + S - 1, h]`, zero for all others;
//! `i(t) = t + S - T` is the query's position among the keys. A query that sees nothing gives zeros.
//!
//! Why beside the fused attention: a bias that depends on the distance of key and query, as T5 learns it, has a gradient, and that
//! is a sum along the diagonals of what this operator holds. The fused one holds no scores.

use super::launch::{Bind, Caps, Kernel, Launch, Variant};
use super::seats::{expect_seats, is_seated, seat};
use super::softmax::{Kind, SoftmaxGradient};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_inputs,
    expect_shape, in_precision, rows,
};
use crate::tensor::{DType, Real, Tensor, Type};
use rayon::prelude::*;
use std::fmt::Write;
use std::sync::Arc;

/// Probabilities [B, H, T, S] from scores of that shape.
///
/// Inputs that follow: where `biased`, bias [R, H] by distance, from the key S - 1 places before its query on, with R = S + T - 1,
/// or S under `causal`; where `masked`, mask U32 [B, S], zero hides a key; where `cached`, position U32 \[1\] of the first query, or U32 [B, 2]
/// of that of each sequence, with the sequence's own number behind it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionWeights {
    /// Query `t` sees keys up to `t + (S - T)`, or `t + position`.
    pub causal: bool,
    /// A bias by distance is added to the scores.
    pub biased: bool,
    /// A mask hides keys.
    pub masked: bool,
    /// The keys are a cache of which the first rows are filled; causal, and without gradient.
    pub cached: bool,
}

/// What the host reads of one application.
struct Sight<'a, R> {
    time: usize,
    heads: usize,
    keys: usize,
    causal: bool,
    /// Position of the first query among the keys, where it is the same for all.
    shift: i64,
    /// Positions of a cache.
    position: Option<&'a [u32]>,
    bias: Option<&'a [R]>,
    mask: Option<&'a [u32]>,
}

impl<R: Real> Sight<'_, R> {
    /// Row `number` of [B, H, T] of the scores as probabilities.
    fn fill(&self, number: usize, x: &[R], y: &mut [R]) {
        let (t, h) = (number % self.time, number / self.time % self.heads);
        let b = number / self.time / self.heads;
        let place = t as i64 + self.position.map_or(self.shift, |position| seat(position, b)[0] as i64);
        let seen = |s: usize| {
            (!self.causal || s as i64 <= place) && self.mask.is_none_or(|m| m[b * self.keys + s] != 0)
        };
        let added = |s: usize| match self.bias {
            Some(bias) => bias[distance(s, place, self.keys, bias.len() / self.heads) * self.heads + h],
            None => R::default(),
        };
        y.fill(R::default());
        let scores = || (0..self.keys).filter(|&s| seen(s)).map(|s| (s, x[s] + added(s)));
        let Some(largest) = scores().map(|(_, x)| x).reduce(|a, b| a.maximum(b)) else { return };
        scores().for_each(|(s, x)| y[s] = (x - largest).exp());
        let scale = R::of(1.0) / rows::sum_of(y, |y| y);
        y.iter_mut().for_each(|y| *y *= scale);
    }
}

/// Row of a bias of `reach` rows for key `s` and a query at `place`; a query past the end of a cache reads an outer row.
fn distance(s: usize, place: i64, keys: usize, reach: usize) -> usize {
    (s as i64 - place + keys as i64 - 1).clamp(0, reach as i64 - 1) as usize
}

impl AttentionWeights {
    fn compute<R: Real>(&self, inputs: &[&Tensor], y: &mut Tensor) {
        let &[_, heads, time, keys] = &y.shape[..] else { unreachable!("the signature was checked") };
        let mut rest = inputs[1..].iter();
        let bias = self.biased.then(|| rest.next().expect("inputs were counted").real::<R>());
        let mask = self.masked.then(|| rest.next().expect("inputs were counted").as_u32());
        let position = self.cached.then(|| rest.next().expect("inputs were counted").as_u32());
        let shift = keys as i64 - time as i64;
        let sight = Sight { time, heads, keys, causal: self.causal, shift, position, bias, mask };
        let lines = y.real_mut::<R>().par_chunks_mut(keys).zip(inputs[0].real::<R>().par_chunks(keys));
        lines.enumerate().for_each(|(number, (y, x))| sight.fill(number, x, y));
    }

    /// Rows of the bias for these scores.
    fn reach(&self, x: &Type) -> usize {
        if self.causal { x.shape[3] } else { x.shape[3] + x.shape[2] - 1 }
    }

    /// Bindings and functions of the kernel: `bias_at`, `is_open` and `first_place`.
    fn buffers(&self, inputs: &[Type]) -> (String, Vec<Bind>) {
        let mut text = String::new();
        let mut binds = vec![Bind::Input(0)];
        let mut declare = |name: &str, access: &str, kind: &str, bind: Option<Bind>| {
            let bind = bind.unwrap_or(Bind::Input(binds.len()));
            let number = binds.len();
            let _ =
                writeln!(text, "@group(0) @binding({number}) var<storage, {access}> {name}: array<{kind}>;");
            binds.push(bind);
        };
        for (there, name, kind) in
            [(self.biased, "bias", "Elem"), (self.masked, "mask", "u32"), (self.cached, "position", "u32")]
        {
            if there {
                declare(name, "read", kind, None);
            }
        }
        declare("y", "read_write", "Elem", Some(Bind::Output(0)));
        let choose = |there: bool, yes: &'static str, no: &'static str| if there { yes } else { no };
        let bias = choose(self.biased, "f32(bias[row * params.heads + h])", "0.0");
        let open = choose(self.masked, "mask[b * params.keys + s] != 0u", "true");
        let seated = self.cached && inputs.last().is_some_and(is_seated);
        let place = choose(self.cached, "i32(position[0])", "params.shift");
        let place = choose(seated, "i32(position[2u * b])", place);
        let _ = writeln!(text, "fn bias_at(row: u32, h: u32) -> f32 {{ return {bias}; }}");
        let _ = writeln!(text, "fn is_open(b: u32, s: u32) -> bool {{ return {open}; }}");
        let _ = writeln!(text, "fn first_place(b: u32) -> i32 {{ return {place}; }}");
        (text, binds)
    }
}

/// Checks that scores have four axes, all with elements.
fn expect_scores(op: &'static str, input: &'static str, x: &Type) -> Result<[usize; 4]> {
    expect_float(op, input, x)?;
    match x.shape[..] {
        [batch, heads, time, keys] if x.shape.count() > 0 => Ok([batch, heads, time, keys]),
        _ => {
            let expected = "[batch, heads, queries, keys], at least one of each".to_string();
            Err(Error::Shape { op, input, expected, got: x.shape.clone() })
        }
    }
}

impl Operator for AttentionWeights {
    fn name(&self) -> &'static str {
        "attention_weights"
    }

    fn settings(&self) -> String {
        let words = [
            (self.causal, "causal"),
            (self.biased, "biased"),
            (self.masked, "masked"),
            (self.cached, "cached"),
        ];
        words.iter().filter(|(is, _)| *is).map(|(_, word)| *word).collect::<Vec<_>>().join(";")
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let expected = 1 + usize::from(self.biased) + usize::from(self.masked) + usize::from(self.cached);
        if inputs.len() != expected {
            return Err(Error::InputCount { op, expected, got: inputs.len() });
        }
        let [batch, heads, _, keys] = expect_scores(op, "x", &inputs[0])?;
        let mut rest = inputs[1..].iter();
        let mut next = || rest.next().expect("inputs were counted");
        if self.biased {
            let bias = next();
            expect_shape(op, "bias", bias, &[self.reach(&inputs[0]), heads])?;
            expect_dtype(op, "bias", bias, inputs[0].dtype)?;
        }
        if self.masked {
            let mask = next();
            expect_dtype(op, "mask", mask, DType::U32)?;
            expect_shape(op, "mask", mask, &[batch, keys])?;
        }
        if self.cached {
            expect_seats(op, next(), [batch, batch])?;
        }
        if self.cached && !self.causal {
            let (expected, got) = ("causal".to_string(), "without it".to_string());
            return Err(Error::Setting { op, setting: "cached", expected, got });
        }
        Ok(vec![inputs[0].clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    /// dx is that of a softmax, since what is hidden has probability zero; dbias is the sum of dx along its diagonals.
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let mut gradients = vec![None; site.inputs.len()];
        let Some(up) = up[0] else { return Ok(gradients) };
        if self.cached {
            let hint = "a cache is for reading texts, not for training: leave `cached` out";
            return Err(Error::NoGradient { op: self.name(), hint });
        }
        let op = SoftmaxGradient { kind: Kind::Softmax };
        let dx = emit.apply_one(Arc::new(op), &[site.output(0), up])?;
        gradients[0] = site.needs(0).then_some(dx);
        if self.biased && site.needs(1) {
            let sums = DiagonalSums { causal: self.causal };
            gradients[1] = Some(emit.apply_one(Arc::new(sums), &[dx])?);
        }
        Ok(gradients)
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let [_, heads, time, keys] = inputs[0].shape[..] else { return vec![] };
        let count = inputs[0].shape.count() / keys;
        let (text, binds) = self.buffers(inputs);
        let kernel = rows::with_width(Kernel::new("attention_weights"), 1)
            .retype("Elem", inputs[0].dtype)
            .constant("CAUSAL", u32::from(self.causal))
            .paste("BUFFERS", text);
        let give = |kernel: Kernel, groups: usize| {
            Launch::new(kernel, binds.clone(), groups)
                .param("rows", count)
                .param("heads", heads)
                .param("time", time)
                .param("keys", keys)
                .param("reach", self.reach(&inputs[0]))
                .param("shift", keys as i32 - time as i32)
        };
        rows::pair(self.name(), kernel, [count, keys], caps, give)
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 6.0 * inputs[0].shape.count() as f64, bytes }
    }
}

/// Sums of x [B, H, T, S] by the distance of key and query: y [R, H], `y[r, h] = sum over b and t of x[b, h, t, r + t + 1 - T]`
/// as far as there is such a key, with R = S + T - 1, or S under `causal`.
#[derive(Clone, Debug)]
pub struct DiagonalSums {
    /// Keys after the query are left out.
    pub causal: bool,
}

impl DiagonalSums {
    fn compute<R: Real>(x: &Tensor, y: &mut Tensor) {
        let &[batch, heads, time, keys] = &x.shape[..] else { unreachable!("the signature was checked") };
        let x = x.real::<R>();
        y.real_mut::<R>().par_iter_mut().enumerate().for_each(|(at, y)| {
            let (row, h) = (at / heads, at % heads);
            *y = R::default();
            for b in 0..batch {
                for t in 0..time {
                    let s = (row + t + 1).checked_sub(time).filter(|&s| s < keys);
                    *y += s.map_or(R::default(), |s| x[((b * heads + h) * time + t) * keys + s]);
                }
            }
        });
    }
}

impl Operator for DiagonalSums {
    fn name(&self) -> &'static str {
        "diagonal_sums"
    }

    fn settings(&self) -> String {
        if self.causal { "causal".into() } else { String::new() }
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x] = expect_inputs(self.name(), inputs)?;
        let [_, heads, time, keys] = expect_scores(self.name(), "x", x)?;
        let reach = if self.causal { keys } else { keys + time - 1 };
        Ok(vec![x.with_shape([reach, heads])])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, DiagonalSums::compute::<R>(inputs[0], &mut outputs[0]));
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "second derivatives of attention are not supported";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let [batch, heads, time, keys] = inputs[0].shape[..] else { return vec![] };
        let count = outputs[0].shape.count();
        let kernel = rows::with_width(Kernel::new("diagonal_sums"), 1).retype("Elem", inputs[0].dtype);
        let launch = Launch::new(kernel, [Bind::Input(0), Bind::Output(0)], count)
            .param("count", count)
            .param("batch", batch)
            .param("heads", heads)
            .param("time", time)
            .param("keys", keys);
        vec![Variant::single(self.name(), launch)]
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = (inputs[0].size_bytes() + outputs[0].size_bytes()) as f64;
        Cost { flops: inputs[0].shape.count() as f64, bytes }
    }
}

/// Builder of [`AttentionWeights`].
pub trait AttentionWeightsEmit {
    /// Probabilities from scores [B, H, T, S]; `bias` [R, H], `mask` U32 [B, S] and `position` U32 \[1\] or [B, 2] as far as they are there.
    fn attention_weights(
        &mut self,
        causal: bool,
        scores: Value,
        bias: Option<Value>,
        mask: Option<Value>,
        position: Option<Value>,
    ) -> Result<Value>;
}

impl<E: Emit + ?Sized> AttentionWeightsEmit for E {
    fn attention_weights(
        &mut self,
        causal: bool,
        scores: Value,
        bias: Option<Value>,
        mask: Option<Value>,
        position: Option<Value>,
    ) -> Result<Value> {
        let op = AttentionWeights {
            causal,
            biased: bias.is_some(),
            masked: mask.is_some(),
            cached: position.is_some(),
        };
        let inputs: Vec<Value> = [Some(scores), bias, mask, position].into_iter().flatten().collect();
        self.apply_one(Arc::new(op), &inputs)
    }
}

/// One element, primes, more queries than keys and fewer, a sequence hidden wholly, caches, a query past the end of one.
pub fn cases() -> Cases {
    let mut cases = Cases::new("attention_weights");
    for shape in [[1, 1, 1, 1], [2, 3, 7, 7], [3, 2, 5, 13], [1, 2, 9, 4], [2, 1, 33, 65], [1, 1, 3, 1031]] {
        for causal in [false, true] {
            for (biased, masked) in [(false, false), (true, false), (false, true), (true, true)] {
                let op = AttentionWeights { causal, biased, masked, cached: false };
                let label = format!("{shape:?} {}", op.settings());
                let inputs = inputs(&mut cases, &op, shape, &[0]);
                cases.add(label, op, inputs).sums(shape[3]);
            }
            let x = cases.normal(shape);
            let label = format!("{shape:?}{}", if causal { " causal" } else { "" });
            cases.add(label, DiagonalSums { causal }, vec![x]).sums(shape[0] * shape[2]).no_gradient();
        }
    }
    for (shape, position) in [
        ([1, 2, 1, 7], &[0][..]),
        ([2, 3, 1, 13], &[9]),
        ([1, 1, 5, 40], &[20]),
        ([1, 2, 4, 6], &[4]),
        ([3, 2, 2, 9], &[5, 0, 0, 1, 8, 2]),
    ] {
        for (biased, masked) in [(false, false), (true, false), (true, true)] {
            let op = AttentionWeights { causal: true, biased, masked, cached: true };
            let label = format!("{shape:?} at {position:?} {}", op.settings());
            let inputs = inputs(&mut cases, &op, shape, position);
            cases.add(label, op, inputs).sums(shape[3]).no_gradient();
        }
    }
    cases
}

/// Scores and what an operator reads beside them; of three or more sequences the second is hidden wholly.
fn inputs(cases: &mut Cases, op: &AttentionWeights, shape: [usize; 4], position: &[u32]) -> Vec<Tensor> {
    let [batch, heads, _, keys] = shape;
    let mut inputs = vec![cases.normal(shape)];
    if op.biased {
        inputs.push(cases.normal([op.reach(&inputs[0].host_type()), heads]));
    }
    if op.masked {
        let mut mask = cases.indices([batch, keys], 3).as_u32().to_vec();
        if batch > 2 {
            mask[keys..2 * keys].fill(0);
        }
        inputs.push(Tensor::u32([batch, keys], mask));
    }
    if op.cached {
        let shape = if position.len() == 1 { vec![1] } else { vec![batch, 2] };
        inputs.push(Tensor::u32(shape, position.to_vec()));
    }
    inputs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bias_of_a_pair_is_that_of_its_distance() {
        // Two queries over three keys: the first stands at the second key. Scores are zero, so weights tell the bias alone.
        let x = Tensor::f32([1, 1, 2, 3], vec![0.0; 6]);
        let bias = Tensor::f32([4, 1], [1.0f32, 2.0, 4.0, 8.0].iter().map(|x| x.ln()).collect());
        let mut y = [Tensor::zeros(&x.host_type())];
        let op = AttentionWeights { biased: true, ..AttentionWeights::default() };
        op.reference(&[&x, &bias], &mut y);
        let expected = [2.0 / 14.0, 4.0 / 14.0, 8.0 / 14.0, 1.0 / 7.0, 2.0 / 7.0, 4.0 / 7.0];
        for (got, expected) in y[0].to_f64().iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{got} {expected}");
        }
    }

    #[test]
    fn a_bias_of_the_wrong_reach_is_refused() {
        let op = AttentionWeights { causal: true, biased: true, ..AttentionWeights::default() };
        let x = Type::f32([1, 2, 3, 3]);
        assert!(op.signature(&[x.clone(), Type::f32([3, 2])]).is_ok());
        let refused = op.signature(&[x, Type::f32([5, 2])]);
        assert!(matches!(refused, Err(Error::Shape { input: "bias", .. })));
    }
}
