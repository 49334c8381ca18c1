//! New keys and values written as 8-bit codes behind those of earlier tokens, in place.
//!
//! Each row of D elements, what one head keeps of one token, gets a scale of its own: the largest magnitude over 127. Rows that would
//! stand past the end of the cache are left out. A row of zeros has the scale 0, one with NaN or an infinity the scale NaN.

use super::dequantize_rows::expect_scales;
use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::quantize_rows::{QuantizeRows, Rule};
use super::seats::{self, expect_seats, seat};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_inputs,
    expect_shape, in_precision,
};
use crate::tensor::{DType, Real, Shape, Tensor, Type, View, ViewMut};
use std::sync::Arc;

/// How rows are coded.
const RULE: Rule = Rule::Narrow;

/// Caches of keys and of values, each codes I8 [B, S, G, D] and scales [B, S, G], new keys and values [B, T, G, D], position U32 `[1]`
/// -> the four caches, in place; or position U32 [N, 2], each sequence's position and the number of its cache, with what is new [N, T, G, D]. D is a multiple of four.
#[derive(Clone, Debug)]
pub struct CacheCode;

/// Rows of one token, tokens in a cache, new tokens, elements of a row.
#[derive(Clone, Copy)]
struct Extent {
    heads: usize,
    capacity: usize,
    time: usize,
    size: usize,
}

impl Extent {
    fn of(cache: &Shape, new: &Shape) -> Self {
        Extent { heads: cache[2], capacity: cache[1], time: new[1], size: cache[3] }
    }

    /// For each sequence: where its rows begin in the cache and among the new ones, and how many have room.
    fn runs(self, [batch, caches]: [usize; 2], position: &[u32]) -> impl Iterator<Item = [usize; 3]> {
        let at = move |b: usize| {
            let [first, cache] = seat(position, b);
            let room = if cache < caches { self.capacity.saturating_sub(first) } else { 0 };
            let count = self.time.min(room) * self.heads;
            [(cache * self.capacity + first) * self.heads, b * self.time * self.heads, count]
        };
        (0..batch).map(at).filter(|[_, _, count]| *count > 0)
    }
}

impl CacheCode {
    fn compute<R: Real>(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let extent = Extent::of(&inputs[0].shape, &inputs[4].shape);
        let position = inputs[6].as_u32();
        for (which, pair) in outputs.chunks_mut(2).enumerate() {
            let [codes, scales] = pair else { unreachable!("codes and scales of both") };
            codes.as_i8_mut().copy_from_slice(inputs[2 * which].as_i8());
            scales.real_mut::<R>().copy_from_slice(inputs[2 * which + 1].real::<R>());
            let new = inputs[4 + which];
            let kind = new.host_type();
            let made = QuantizeRows { rule: RULE }.signature(&[kind]).expect("rows of floats");
            let mut made: Vec<Tensor> = made.iter().map(Tensor::zeros).collect();
            QuantizeRows { rule: RULE }.reference(&[new], &mut made);
            for [to, first, count] in extent.runs([new.shape[0], codes.shape[0]], position) {
                let size = extent.size;
                let from = &made[0].as_i8()[first * size..][..count * size];
                codes.as_i8_mut()[to * size..][..count * size].copy_from_slice(from);
                scales.real_mut::<R>()[to..][..count].copy_from_slice(&made[1].real::<R>()[first..][..count]);
            }
        }
    }
}

impl Operator for CacheCode {
    fn name(&self) -> &'static str {
        "cache_code"
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let [keys, key_scales, values, value_scales, new_keys, new_values, position] =
            expect_inputs(op, inputs)?;
        if keys.shape.len() != 4 || keys.shape[3] == 0 || !keys.shape[3].is_multiple_of(4) {
            let expected = "[batch, rows, heads, head size], the last a multiple of four".to_string();
            return Err(Error::Shape { op, input: "keys", expected, got: keys.shape.clone() });
        }
        for (name, codes, scales) in [("keys", keys, key_scales), ("values", values, value_scales)] {
            expect_dtype(op, name, codes, DType::I8)?;
            expect_shape(op, name, codes, &keys.shape)?;
            expect_scales(op, "scales", scales, &keys.shape[..3])?;
            expect_dtype(op, "scales", scales, key_scales.dtype)?;
        }
        let time = new_keys.shape.get(1).copied().unwrap_or(0);
        let sequences = new_keys.shape.first().copied().unwrap_or(0);
        for (name, new) in [("new_keys", new_keys), ("new_values", new_values)] {
            expect_float(op, name, new)?;
            expect_dtype(op, name, new, new_keys.dtype)?;
            expect_shape(op, name, new, &[sequences, time, keys.shape[2], keys.shape[3]])?;
        }
        expect_seats(op, position, [sequences, keys.shape[0]])?;
        Ok(inputs[..4].to_vec())
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, outputs));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let extent = Extent::of(inputs[0].shape, inputs[4].shape);
        let position = inputs[6].as_u32();
        for (which, pair) in outputs.chunks_mut(2).enumerate() {
            let [codes, scales] = pair else { unreachable!("codes and scales of both") };
            let (codes, scales, size) = (codes.as_i8(), scales.floats(), extent.size);
            let new = inputs[4 + which].floats();
            for [to, first, count] in extent.runs([inputs[4].shape[0], inputs[0].shape[0]], position) {
                let rows = &new[first * size..][..count * size];
                let (codes, scales) = (&mut codes[to * size..][..count * size], &mut scales[to..][..count]);
                super::quantize_rows::quantize(rows, codes, scales, size, RULE);
            }
        }
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "a cache is for reading texts, not for training";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let Extent { heads, capacity, time, size } = Extent::of(&inputs[0].shape, &inputs[4].shape);
        let count = inputs[4].shape[0] * time * heads;
        let kernel = Kernel::new("cache_code").retype("Elem", inputs[4].dtype);
        let kernel = kernel.paste("SEATS", seats::text(&inputs[6]));
        let mut bindings: Vec<Bind> = (0..4).map(Bind::Output).collect();
        bindings.extend((4..7).map(Bind::Input));
        let [lowest, highest] = RULE.bounds();
        let launch = Launch::new(kernel, bindings, spread(2 * count))
            .param("count", count)
            .param("heads", heads)
            .param("time", time)
            .param("capacity", capacity)
            .param("caches", inputs[0].shape[0])
            .param("fours", size / 4)
            .param("divisor", RULE.divisor())
            .param("lowest", lowest)
            .param("highest", highest);
        vec![Variant::single(self.name(), launch)]
    }

    /// The new rows are read and their codes written; the rest of the caches stays where it is.
    fn cost(&self, inputs: &[Type], _outputs: &[Type]) -> Cost {
        let read: f64 = inputs[4..].iter().map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 0.0, bytes: 1.25 * read }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 1), (2, 2), (3, 3)]
    }
}

/// Builder of [`CacheCode`].
pub trait CacheCodeEmit {
    /// `caches`, codes of keys and their scales, codes of values and theirs, with the `new` rows from row `position` on.
    fn cache_code(&mut self, caches: [Value; 4], new: [Value; 2], position: Value) -> Result<[Value; 4]>;
}

impl<E: Emit + ?Sized> CacheCodeEmit for E {
    fn cache_code(&mut self, caches: [Value; 4], new: [Value; 2], position: Value) -> Result<[Value; 4]> {
        let written = self.apply(Arc::new(CacheCode), &[&caches[..], &new, &[position]].concat())?;
        Ok([written[0], written[1], written[2], written[3]])
    }
}

/// One row, several sequences, the last row, rows past the end; a row of zeros.
pub fn cases() -> Cases {
    let mut cases = Cases::new("cache_code");
    for (label, [batch, capacity, time, heads, size], position) in [
        ("one row", [1, 1, 1, 1, 4], &[0][..]),
        ("one token, the last", [1, 9, 1, 3, 64], &[8]),
        ("many tokens of several sequences", [3, 41, 17, 2, 12], &[20]),
        ("all rows", [2, 13, 13, 1, 4], &[0]),
        ("more tokens than there is room", [2, 11, 6, 2, 8], &[8]),
        ("no room at all", [1, 5, 3, 1, 4], &[9]),
        ("each at its own place, past the end, no such cache", [3, 9, 3, 2, 8], &[7, 1, 2, 0, 0, 3]),
    ] {
        let mut inputs = vec![];
        for _ in 0..2 {
            inputs.push(cases.codes([batch, capacity, heads, size]));
            inputs.push(cases.statistic([batch, capacity, heads]));
        }
        // A fourth of a step from a code, and the largest on one: rounding errors decide nothing.
        for which in 0..2 {
            let codes = cases.codes([batch, time, heads, size]);
            let mut x: Vec<f32> =
                codes.as_i8().iter().map(|&c| (f32::from(c.clamp(-126, 126)) + 0.25) / 64.0).collect();
            x.chunks_mut(size).for_each(|row| row[which] = 127.0 / 64.0);
            x[..size].fill(0.0);
            inputs.push(Tensor::f32([batch, time, heads, size], x));
        }
        let shape = if position.len() == 1 { vec![1] } else { vec![batch, 2] };
        inputs.push(Tensor::u32(shape, position.to_vec()));
        cases.add(label, CacheCode, inputs).no_gradient();
    }
    cases
}
