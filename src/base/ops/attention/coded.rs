//! Attention over caches of 8-bit codes: keys and values are a fourth of the bytes, and become numbers as they are read.
//!
//! A row is what one head keeps of one token; it has a scale of its own, as [`crate::ops::cache_code`] writes it. Every kernel of the
//! cached attention serves, with another way to read a row.

use super::{Attention, Geometry, lower};
use crate::ops::dequantize_rows::{DequantizeRows, expect_scales};
use crate::ops::launch::{Caps, Variant};
use crate::ops::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_inputs, expect_shape,
};
use crate::tensor::{DType, Tensor, Type, View, ViewMut};

/// Cached attention of q [B, T, H, D] in f32 over codes of keys and of values, I8 [B, S, G, D], each followed by its scales [B, S,
/// G]; position U32 `[1]` or [B, 2] comes last. Outputs as those of [`Attention`]. D is a multiple of four.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionCoded(pub Attention);

impl AttentionCoded {
    /// The types of q, keys and values as numbers.
    fn sources(inputs: &[Type]) -> [Type; 3] {
        let like = |codes: &Type| inputs[0].with_shape(codes.shape.clone());
        [inputs[0].clone(), like(&inputs[1]), like(&inputs[3])]
    }

    fn geometry(&self, inputs: &[Type]) -> Result<Geometry> {
        self.0.geometry(self.name(), &AttentionCoded::sources(inputs), &inputs[5..])
    }
}

impl Operator for AttentionCoded {
    fn name(&self) -> &'static str {
        "attention_coded"
    }

    fn settings(&self) -> String {
        self.0.describe()
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let [q, keys, key_scales, values, value_scales, _] = expect_inputs(op, inputs)?;
        if !self.0.cached {
            let (expected, got) = ("cached".to_string(), "not".to_string());
            return Err(Error::Setting { op, setting: "cached", expected, got });
        }
        expect_scales(op, "q", q, &q.shape)?;
        for (name, codes, scales) in [("keys", keys, key_scales), ("values", values, value_scales)] {
            expect_dtype(op, name, codes, DType::I8)?;
            if codes.shape.len() != 4 || !codes.shape[3].is_multiple_of(4) {
                let expected = "[batch, time, heads, head size], the last a multiple of four".to_string();
                return Err(Error::Shape { op, input: name, expected, got: codes.shape.clone() });
            }
            expect_scales(op, "scales", scales, &codes.shape[..3])?;
        }
        expect_shape(op, "values", values, &keys.shape)?;
        let g = self.geometry(inputs)?;
        let statistic = Type::f32([g.batch, g.heads, g.queries]);
        Ok(vec![q.with_shape([g.batch, g.queries, g.heads, g.size]), statistic])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let numbers = [1, 3].map(|i: usize| {
            let kind = Type::new(inputs[0].data.dtype(), inputs[i].shape.clone());
            let mut y = [Tensor::zeros(&kind)];
            DequantizeRows.reference(&inputs[i..i + 2], &mut y);
            let [y] = y;
            y
        });
        self.0.reference(&[inputs[0], &numbers[0], &numbers[1], inputs[5]], outputs);
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let numbers = [1, 3].map(|i: usize| {
            let mut y = Tensor::zeros(&Type::f32(inputs[i].shape.clone()));
            DequantizeRows.host(&inputs[i..i + 2], &mut [ViewMut::of_tensor(&mut y)]);
            y
        });
        let [keys, values] = [0, 1].map(|i: usize| View::of_tensor(&numbers[i]));
        self.0.host(&[inputs[0], keys, values, inputs[5]], outputs);
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "a cache is for reading texts, not for training";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let g = self.geometry(inputs).expect("the signature was checked");
        lower::forward_coded(&self.0, &g, caps)
    }

    fn is_heavy(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 4.0 * self.geometry(inputs).map_or(0.0, |g| g.pairs()), bytes }
    }
}

/// One query and several, one head for many, heads of several sizes, a window, caches full and almost empty.
pub fn cases() -> Cases {
    let mut cases = Cases::new("attention_coded");
    let cached = Attention { cached: true, ..Attention::causal() };
    for (label, [b, t, s, h, g, d], position, how) in [
        ("one key", [1, 1, 1, 1, 1, 4], &[0][..], cached.clone()),
        ("one query", [1, 1, 40, 9, 3, 64], &[37], cached.clone()),
        ("one query past a turn", [2, 1, 300, 4, 2, 32], &[298], cached.clone()),
        ("a window", [1, 2, 50, 4, 4, 12], &[30], cached.clone().window(7)),
        ("few queries", [2, 5, 33, 6, 2, 20], &[17], cached.clone().scale(0.3)),
        ("many queries", [1, 37, 80, 4, 2, 16], &[40], cached.clone()),
        ("many queries from the start", [2, 40, 40, 2, 2, 8], &[0], cached.clone()),
        ("each at its own place", [2, 1, 30, 4, 2, 16], &[11, 1, 29, 0], cached),
    ] {
        let mut inputs = vec![cases.normal([b, t, h, d])];
        for _ in 0..2 {
            let codes = cases.codes([b, s, g, d]);
            // About as large as what normal rows are coded with.
            let scales = cases.uniform([b, s, g], 0.005, 0.02).to_precision(DType::F32);
            inputs.extend([codes, scales]);
        }
        let shape = if position.len() == 1 { vec![1] } else { vec![b, 2] };
        inputs.push(Tensor::u32(shape, position.to_vec()));
        cases.add(label, AttentionCoded(how), inputs).no_gradient().sums(s.max(d));
    }
    cases
}
