//! Caches put in another order, in place: `y[b] = x[from[b]]`.
//!
//! A beam that goes on from another one takes over what that has read, without reading it again. The same cache may be taken several
//! times. Why in place: caches are the largest thing there is beside weights, and each invocation moves one word of all of them,
//! reading before it writes.

use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_inputs, expect_shape,
    in_type,
};
use crate::tensor::{DType, Data, Tensor, Type, View, ViewMut};
use std::sync::Arc;

/// Most caches that are put in order at once.
pub const MOST: usize = 256;

/// x [B, ..] of any type whose rows are whole words, from U32 `[B]` -> x, in place.
#[derive(Clone, Debug)]
pub struct CacheOrder;

impl Operator for CacheOrder {
    fn name(&self) -> &'static str {
        "cache_order"
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let [x, from] = expect_inputs(op, inputs)?;
        let caches = x.shape.first().copied().unwrap_or(0);
        let row = x.shape.count().checked_div(caches).unwrap_or(0) * x.dtype.size_bytes();
        if !(1..=MOST).contains(&caches) || !row.is_multiple_of(4) {
            let expected = format!("1 to {MOST} rows of whole words");
            return Err(Error::Shape { op, input: "x", expected, got: x.shape.clone() });
        }
        expect_dtype(op, "from", from, DType::U32)?;
        expect_shape(op, "from", from, &[caches])?;
        Ok(vec![x.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let row = inputs[0].shape.count() / inputs[0].shape[0].max(1);
        let last = inputs[0].shape[0] - 1;
        for (to, &from) in inputs[1].as_u32().iter().enumerate() {
            let from = (from as usize).min(last);
            in_type!(inputs[0], outputs[0], |x, y| {
                y[to * row..][..row].copy_from_slice(&x[from * row..][..row])
            });
        }
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let from = inputs[1].as_u32();
        let caches = outputs[0].bytes();
        let row = caches.len() / from.len();
        let moved: Vec<(usize, usize)> = from
            .iter()
            .map(|&f| (f as usize).min(from.len() - 1))
            .enumerate()
            .filter(|(t, f)| t != f)
            .collect();
        let copies: Vec<Vec<u8>> =
            moved.iter().map(|(_, from)| caches[from * row..][..row].to_vec()).collect();
        for ((to, _), copy) in moved.iter().zip(copies) {
            caches[to * row..][..row].copy_from_slice(&copy);
        }
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "a cache is for reading texts, not for training";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let caches = inputs[0].shape[0];
        let words = inputs[0].shape.count() / caches * inputs[0].dtype.size_bytes() / 4;
        let kernel = Kernel::new("cache_order").constant("CACHES", caches as u32);
        let launch =
            Launch::new(kernel, [Bind::Output(0), Bind::Input(1)], spread(words)).param("words", words);
        vec![Variant::single(self.name(), launch)]
    }

    fn cost(&self, inputs: &[Type], _outputs: &[Type]) -> Cost {
        Cost { flops: 0.0, bytes: 2.0 * inputs[0].size_bytes() as f64 }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

/// Builder of [`CacheOrder`].
pub trait CacheOrderEmit {
    /// `x` [B, ..] with row `from[b]` in the place of each.
    fn cache_order(&mut self, x: Value, from: Value) -> Result<Value>;
}

impl<E: Emit + ?Sized> CacheOrderEmit for E {
    fn cache_order(&mut self, x: Value, from: Value) -> Result<Value> {
        self.apply_one(Arc::new(CacheOrder), &[x, from])
    }
}

/// One cache, a swap, one for all, many; floats and codes.
pub fn cases() -> Cases {
    let mut cases = Cases::new("cache_order");
    for (label, shape, from) in [
        ("one cache", [1, 3, 2, 4], vec![0]),
        ("two change places", [2, 5, 1, 8], vec![1, 0]),
        ("one for all, odd rows", [3, 7, 1, 6], vec![2, 2, 2]),
        ("in a ring", [5, 11, 2, 4], vec![4, 0, 1, 2, 3]),
        ("many", [33, 2, 1, 2], (0..33).map(|i| i * 7 % 33).collect()),
    ] {
        let from = Tensor::u32([from.len()], from);
        let x = cases.normal(shape);
        cases.add(label, CacheOrder, vec![x, from.clone()]).no_gradient();
        let [b, s, g, d] = shape;
        let codes = cases.codes([b, s, g, 4 * d]);
        cases.add(format!("{label}, codes"), CacheOrder, vec![codes, from]).no_gradient();
    }
    cases
}
