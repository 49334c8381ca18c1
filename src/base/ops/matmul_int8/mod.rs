//! Matrix multiplication of codes: `C = activation((A B^T) * a_scale * b_scale + bias)`, A and B as i8, the sums exact.
//!
//! A [.., K] has a scale for each row, B [N, K] one for each of its rows, which are the output's columns: weights as [out, in].
//! Sums are whole numbers, kept in i32, or in f32 for runs of K so short that f32 holds them exactly; scales are applied to
//! the finished sums alone. So every kernel gives the same up to the rounding of the last few operations. B may have a scale for
//! each group of columns instead: sums within a group are whole numbers, and those of groups are added up in f32.
//!
//! `matmul_int8_plain` is the referee, `matmul_int8_tile` is for GPUs, the register kernels are for drivers that run on the
//! CPU, `matmul_int8_vector` for few rows. Where K is no multiple of four, rows begin within a word: they are then
//! copied to whole words first.

mod host;
mod launch;
mod register;
mod tile;
mod vector;

use super::coding_matmul::CodingMatmul;
use super::dequantize_rows::expect_scales;
use super::launch::{Caps, Variant};
use super::pointwise::Pointwise;
use super::quantize_rows::Rule;
use super::{Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, in_precision, rows};
use crate::tensor::{DType, Data, Real, Shape, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// Longest sum that an i32 holds whatever the codes: products go up to 128 * 128.
pub const MOST_TERMS: usize = (i32::MAX / (128 * 128)) as usize;

/// `C = activation((A B^T) * a_scale * b_scale + bias)`. Inputs: A [.., K] and B [N, K] as i8, a_scale [..], b_scale `[N]` and,
/// where `has_bias`, the bias `[N]`; output: C [.., N] in f32.
#[derive(Clone, Debug, Default)]
pub struct MatmulInt8 {
    /// Whether a fifth input is added to every row.
    pub has_bias: bool,
    /// A program of one input and one output applied to each element.
    pub activation: Option<Pointwise>,
    /// Columns of B that share a scale, where that is not all of a row; b_scale then is [N, groups].
    pub group: Option<usize>,
}

/// Rows of A, rows of B, and what both are summed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    m: usize,
    n: usize,
    k: usize,
}

impl Sizes {
    fn of(a: &Shape, b: &Shape) -> Sizes {
        Sizes { m: a.rows(), n: b[0], k: b[1] }
    }
}

impl MatmulInt8 {
    /// Adds a bias as fifth input.
    pub fn with_bias(self) -> Self {
        MatmulInt8 { has_bias: true, ..self }
    }

    /// Applies a program of one input and one output to each element.
    pub fn with_activation(self, activation: Pointwise) -> Self {
        MatmulInt8 { activation: Some(activation), ..self }
    }

    /// One scale for so many columns of a row of B.
    pub fn with_groups(self, group: usize) -> Self {
        MatmulInt8 { group: Some(group), ..self }
    }

    /// Groups of a row of B.
    fn groups(&self, k: usize) -> usize {
        self.group.map_or(1, |group| k.div_ceil(group))
    }

    fn compute<R: Real>(&self, inputs: &[&Tensor], c: &mut Tensor) {
        let Sizes { n, k, .. } = Sizes::of(&inputs[0].shape, &inputs[1].shape);
        let (a, b) = (inputs[0].as_i8(), inputs[1].as_i8());
        let (a_scale, b_scale) = (inputs[2].real::<R>(), inputs[3].real::<R>());
        let bias = inputs.get(4).map(|bias| bias.real::<R>());
        let (group, groups) = (self.group.unwrap_or(k), self.groups(k));
        let rows = c.real_mut::<R>().par_chunks_mut(n).zip(a.par_chunks(k)).zip(a_scale);
        rows.for_each(|((c, a), &scale)| {
            for (j, (c, b)) in c.iter_mut().zip(b.chunks(k)).enumerate() {
                let parts = a.chunks(group).zip(b.chunks(group)).zip(&b_scale[j * groups..]);
                let part = |((a, b), &b_scale): ((&[i8], &[i8]), &R)| {
                    let sum: i32 = a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
                    R::of(sum.into()) * scale * b_scale
                };
                let y: R = parts.map(part).sum();
                *c = bias.map_or(y, |bias| y + bias[j]);
            }
        });
    }
}

impl Operator for MatmulInt8 {
    fn name(&self) -> &'static str {
        "matmul_int8"
    }

    fn settings(&self) -> String {
        let mut parts = vec![];
        parts.extend(self.group.map(|group| format!("group={group}")));
        parts.extend(self.has_bias.then(|| "bias".to_string()));
        parts.extend(self.activation.as_ref().map(|a| format!("then={}({})", a.name(), a.settings())));
        parts.join(",")
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let expected = if self.has_bias { 5 } else { 4 };
        if inputs.len() != expected {
            return Err(Error::InputCount { op, expected, got: inputs.len() });
        }
        let (a, b) = (&inputs[0], &inputs[1]);
        for (name, x) in [("a", a), ("b", b)] {
            expect_dtype(op, name, x, DType::I8)?;
            rows::expect_rows(op, name, x)?;
        }
        let k = a.shape.last();
        if b.shape.len() != 2 || b.shape[1] != k || b.shape[0] == 0 || a.shape.count() == 0 {
            let expected = format!("[N, {k}] with elements, as `a` is {:?}", a.shape);
            return Err(Error::Shape { op, input: "b", expected, got: b.shape.clone() });
        }
        if k > MOST_TERMS {
            let expected = format!("a last axis of at most {MOST_TERMS}: longer sums may not fit 32 bits");
            return Err(Error::Shape { op, input: "a", expected, got: a.shape.clone() });
        }
        let rows = &a.shape[..a.shape.len() - 1];
        expect_scales(op, "a_scale", &inputs[2], rows)?;
        match self.group {
            Some(group) if !(1..=k).contains(&group) => {
                let (expected, got) = (format!("1 to {k}"), group.to_string());
                return Err(Error::Setting { op, setting: "group", expected, got });
            }
            Some(_) => expect_scales(op, "b_scale", &inputs[3], &[b.shape[0], self.groups(k)])?,
            None => expect_scales(op, "b_scale", &inputs[3], &b.shape[..1])?,
        }
        if let Some(bias) = inputs.get(4) {
            expect_scales(op, "bias", bias, &b.shape[..1])?;
        }
        if let Some(activation) = &self.activation
            && (activation.inputs != 1 || activation.outputs.len() != 1)
        {
            let got = format!("{} inputs, {} outputs", activation.inputs, activation.outputs.len());
            let expected = "a program of one input and one output".to_string();
            return Err(Error::Setting { op, setting: "activation", expected, got });
        }
        Ok(vec![inputs[2].with_shape([rows, &b.shape[..1]].concat())])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
        if let Some(activation) = &self.activation {
            let shape = outputs[0].shape.clone();
            let data = std::mem::replace(&mut outputs[0].data, Data::F32(vec![]));
            outputs[0].data = Data::zeros(data.dtype(), data.len());
            activation.reference(&[&Tensor { shape, data }], outputs);
        }
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        host::compute(self, inputs, outputs[0].floats());
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "codes are whole numbers: train through a fake quantisation instead";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn common_inputs(&self) -> &'static [usize] {
        &[0, 2]
    }

    fn coding(&self, rule: Rule, fixed: bool) -> Option<Arc<dyn Operator>> {
        if self.group.is_some() {
            return None;
        }
        let program = self.activation.clone();
        Some(Arc::new(CodingMatmul { has_bias: self.has_bias, program, ..CodingMatmul::new(rule, fixed) }))
    }

    fn with_epilogue(&self, program: &Pointwise) -> Option<Arc<dyn Operator>> {
        let simple = program.inputs == 1 && program.outputs.len() == 1;
        (self.activation.is_none() && simple)
            .then(|| Arc::new(self.clone().with_activation(program.clone())) as _)
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        launch::variants(self, Sizes::of(&inputs[0].shape, &inputs[1].shape), caps)
    }

    fn is_heavy(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let Sizes { m, n, k } = Sizes::of(&inputs[0].shape, &inputs[1].shape);
        let each = 2 * k + 2 + self.has_bias as usize + self.activation.as_ref().map_or(0, |a| a.steps.len());
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: (m * n) as f64 * each as f64, bytes }
    }
}

/// Codes with the scales of their rows.
#[derive(Clone, Copy, Debug)]
pub struct Codes {
    /// The codes, [.., K] as i8.
    pub codes: Value,
    /// The scales, [..].
    pub scales: Value,
}

/// Builder of [`MatmulInt8`].
pub trait MatmulInt8Emit {
    /// `x weight^T + bias` of codes with a scale for each row: weight as [out, in].
    fn linear_int8(&mut self, x: Codes, weight: Codes, bias: Option<Value>) -> Result<Value>;
}

impl<E: Emit + ?Sized> MatmulInt8Emit for E {
    fn linear_int8(&mut self, x: Codes, weight: Codes, bias: Option<Value>) -> Result<Value> {
        let mut inputs = vec![x.codes, weight.codes, x.scales, weight.scales];
        inputs.extend(bias);
        self.apply_one(Arc::new(MatmulInt8 { has_bias: bias.is_some(), ..MatmulInt8::default() }), &inputs)
    }
}

/// One element, primes, every remainder of K, one past each tile, few rows, sums past what f32 holds, the lowest codes alone.
pub fn cases() -> Cases {
    let mut cases = Cases::new("matmul_int8");
    let sizes = [
        [1, 1, 1],
        [7, 13, 3],
        [5, 65, 4],
        [8, 8, 8],
        [33, 72, 24],
        [65, 16, 40],
        [24, 65, 17],
        [9, 33, 31],
        [131, 70, 33],
        [40, 129, 32],
        [264, 136, 72],
        [10, 40, 1024],
        [33, 66, 1032],
        [9, 20, 2061],
        // Few rows: one load, several turns, a ragged end, columns past the last team's.
        [1, 8, 16],
        [1, 24, 576],
        [3, 100, 88],
        [2, 12, 1040],
        [4, 264, 12],
        [1, 64, 7],
        [1, 9, 4096],
        [2, 33, 1001],
    ];
    for sizes in sizes {
        add_case(&mut cases, MatmulInt8::default(), &[], sizes);
    }
    add_case(&mut cases, MatmulInt8::default(), &[2, 3], [4, 20, 16]);
    add_case(&mut cases, MatmulInt8::default(), &[2], [1, 20, 16]);
    for (name, constant) in [("gelu_tanh", 0.0), ("relu", 0.0), ("scale", 0.5)] {
        let op = MatmulInt8::default().with_bias().with_activation(Pointwise::single(name, constant));
        add_case(&mut cases, op, &[], [9, 24, 16]);
    }
    for sizes in [[17, 24, 16], [2, 24, 64], [3, 7, 9]] {
        add_case(&mut cases, MatmulInt8::default().with_bias(), &[], sizes);
    }
    // Groups that hold several loads, one and a part of one; the last one shorter; groups of no whole words.
    for ([m, n, k], group) in [
        ([1, 24, 576], 32),
        ([4, 33, 128], 64),
        ([2, 9, 96], 16),
        ([9, 17, 160], 64),
        ([70, 66, 256], 32),
        ([33, 130, 1536], 128),
        ([5, 7, 60], 12),
        ([3, 5, 33], 8),
    ] {
        let op = MatmulInt8::default().with_groups(group);
        add_case(&mut cases, op.clone(), &[], [m, n, k]).sums(k.div_ceil(group));
        let activation = Pointwise::single("gelu_tanh", 0.0);
        add_case(&mut cases, op.with_bias().with_activation(activation), &[], [m, n, k])
            .sums(k.div_ceil(group));
    }
    // Every remainder of K, in few rows and many.
    for k in [1, 3, 4, 31, 32, 33, 1024, 4096] {
        for m in [2, 17] {
            add_case(&mut cases, MatmulInt8::default(), &[], [m, 19, k]);
        }
    }
    for code in [i8::MIN, i8::MAX] {
        for [m, n, k] in [[9, 17, 1024], [9, 17, 4096], [2, 17, 4096], [3, 5, 1027]] {
            let same = |rows: usize| Tensor::i8([rows, k], vec![code; rows * k]);
            let (a, b) = (same(m), same(n));
            add_codes(&mut cases, format!("all {code} m{m} n{n} k{k}"), MatmulInt8::default(), a, b);
        }
    }
    cases
}

fn add_case<'a>(
    cases: &'a mut Cases,
    op: MatmulInt8,
    batch: &[usize],
    [m, n, k]: [usize; 3],
) -> &'a mut super::Case {
    let a = cases.codes(Shape::new([batch, &[m, k]].concat()));
    let b = cases.codes([n, k]);
    add_codes(cases, format!("{} {batch:?} m{m} n{n} k{k}", op.settings()), op, a, b)
}

fn add_codes(cases: &mut Cases, label: String, op: MatmulInt8, a: Tensor, b: Tensor) -> &mut super::Case {
    let scales = match op.group {
        Some(_) => Shape::from([b.shape[0], op.groups(b.shape[1])]),
        None => Shape::from(&b.shape[..1]),
    };
    let mut inputs = vec![cases.statistic(&a.shape[..a.shape.len() - 1]), cases.statistic(scales)];
    if op.has_bias {
        inputs.push(cases.statistic(&b.shape[..1]));
    }
    inputs.splice(0..0, [a, b]);
    cases.add(label, op, inputs).no_gradient()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(a: Type, b: Type) -> bool {
        let scales = [Type::f32([a.shape.rows()]), Type::f32([b.shape[0]])];
        MatmulInt8::default().signature(&[&[a, b], &scales[..]].concat()).is_err()
    }

    #[test]
    fn sums_that_may_pass_32_bits_are_refused() {
        let codes = |rows, k| Type::new(DType::I8, [rows, k]);
        assert!((MOST_TERMS as i64 * 128 * 128) <= i32::MAX as i64);
        assert!(!refused(codes(2, MOST_TERMS), codes(3, MOST_TERMS)));
        assert!(refused(codes(2, MOST_TERMS + 1), codes(3, MOST_TERMS + 1)));
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let codes = |shape: &[usize]| Type::new(DType::I8, shape);
        assert!(refused(codes(&[2, 3]), codes(&[4, 5])));
        assert!(refused(codes(&[2, 3]), codes(&[4, 3, 1])));
        assert!(refused(codes(&[2, 0]), codes(&[4, 0])));
        assert!(refused(Type::f32([2, 3]), codes(&[4, 3])));
    }
}
