//! A mask over an arena: what it removes is exactly zero, whatever stood there, NaN included.
//!
//! With the gradients of removed weights at zero before the norm, and weights and moments at zero to begin with, no rule of
//! [`super::Kind`] moves such a weight: each step is a sum of multiples of gradient, moments and the weight itself.

use super::BLOCK;
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use crate::ops::{
    Cases, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_inputs, expect_shape,
    in_precision,
};
use crate::tensor::{DType, Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// Elements to a word of a mask.
pub const BITS: usize = 32;

/// Words one thread takes at a time.
const TAKE: usize = 512;

/// x F32 \[N\], mask U32 \[N / 32\] (lowest bit first, a set bit is an element that is gone) -> y F32 \[N\]; N is whole blocks.
#[derive(Clone, Debug)]
pub struct Masked {
    /// y takes the place of x.
    overwrites: bool,
}

impl Masked {
    fn compute<R: Real>(&self, inputs: &[&Tensor], y: &mut Tensor) {
        let (x, mask) = (inputs[0].real::<R>(), inputs[1].as_u32());
        for (i, (y, &x)) in y.real_mut::<R>().iter_mut().zip(x).enumerate() {
            *y = if mask[i / BITS] >> (i % BITS) & 1 == 1 { R::default() } else { x };
        }
    }
}

impl Operator for Masked {
    fn name(&self) -> &'static str {
        if self.overwrites { "masked_over" } else { "masked" }
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let [x, mask] = expect_inputs(op, inputs)?;
        let count = x.shape.count();
        if x.shape.len() != 1 || count == 0 || !count.is_multiple_of(BLOCK) {
            let expected = format!("[a multiple of {BLOCK}]");
            return Err(Error::Shape { op, input: "x", expected, got: x.shape.clone() });
        }
        expect_dtype(op, "x", x, DType::F32)?;
        expect_dtype(op, "mask", mask, DType::U32)?;
        expect_shape(op, "mask", mask, &[count / BITS])?;
        Ok(vec![x.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let y = outputs[0].floats();
        if !self.overwrites {
            y.copy_from_slice(inputs[0].floats());
        }
        let parts = y.par_chunks_mut(TAKE * BITS).zip(inputs[1].as_u32().par_chunks(TAKE));
        parts.for_each(|(y, mask)| {
            for (y, &word) in y.chunks_mut(BITS).zip(mask).filter(|(_, word)| **word != 0) {
                for (bit, y) in y.iter_mut().enumerate() {
                    *y = if word >> bit & 1 == 1 { 0.0 } else { *y };
                }
            }
        });
    }

    /// dx = up where the mask is not set
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let dx = up[0].map(|up| emit.masked(up, site.input(1))).transpose()?;
        Ok(vec![dx, None])
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let fours = inputs[0].shape.count() / 4;
        let text = if self.overwrites { OWN } else { OTHER };
        let kernel = Kernel::new("masked").paste("BEFORE", text);
        let mut bindings = vec![Bind::Output(0), Bind::Input(1)];
        bindings.extend((!self.overwrites).then_some(Bind::Input(0)));
        let launch = Launch::new(kernel, bindings, spread(fours)).param("count", fours);
        vec![Variant::single(self.name(), launch)]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        if self.overwrites { &[(0, 0)] } else { &[] }
    }

    fn overwriting(&self) -> Option<Arc<dyn Operator>> {
        (!self.overwrites).then(|| Arc::new(Masked { overwrites: true }) as _)
    }
}

const OWN: &str = "fn before(i: u32) -> vec4<f32> { return y[i]; }";

const OTHER: &str = "\
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;   // [N / 4]
fn before(i: u32) -> vec4<f32> { return x[i]; }";

/// Builder of [`Masked`].
pub trait MaskedEmit {
    /// x without what the mask removes.
    fn masked(&mut self, x: Value, mask: Value) -> Result<Value>;

    /// The same in the place of x.
    fn masked_over(&mut self, x: Value, mask: Value) -> Result<Value>;
}

impl<E: Emit + ?Sized> MaskedEmit for E {
    fn masked(&mut self, x: Value, mask: Value) -> Result<Value> {
        self.apply_one(Arc::new(Masked { overwrites: false }), &[x, mask])
    }

    fn masked_over(&mut self, x: Value, mask: Value) -> Result<Value> {
        self.apply_one(Arc::new(Masked { overwrites: true }), &[x, mask])
    }
}

/// One block and many, all and none of it gone, both places of the result.
pub fn cases() -> Cases {
    let mut cases = Cases::new("masked");
    for (blocks, words) in [(1, Some(0)), (1, Some(u32::MAX)), (3, None), (37, None), (300, None)] {
        for overwrites in [false, true] {
            let count = blocks * BLOCK;
            let mask = match words {
                Some(word) => Tensor::u32([count / BITS], vec![word; count / BITS]),
                None => cases.indices([count / BITS], 1 << 32),
            };
            let inputs = vec![cases.normal([count]), mask];
            cases.add(format!("{blocks} blocks, words {words:?}"), Masked { overwrites }, inputs);
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_is_zero_even_where_it_was_no_number() {
        let mut x = Tensor::f32([BLOCK], vec![2.0; BLOCK]);
        x.real_mut::<f32>()[33] = f32::NAN;
        let mut y = [x.clone()];
        Masked { overwrites: false }.reference(&[&x, &Tensor::u32([2], vec![1 << 31, 2])], &mut y);
        let zeros: Vec<usize> = (0..BLOCK).filter(|&i| y[0].real::<f32>()[i] == 0.0).collect();
        assert_eq!(zeros, [31, 33]);
    }
}
