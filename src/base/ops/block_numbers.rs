//! Numbers that are held as codes of 8 bits with a scale for each 256 of them: `y[i] = q[i] * s[i / 256]`.
//!
//! What is asked for the gradient of the codes is given for the numbers they stand for: [`super::block_codes`] rounds the updated
//! numbers, so that codes can be trained.

use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::optimizer::bytes::GROUP;
use super::{Cases, Emit, Operator, Result, Site, Value, expect_dtype, expect_inputs};
use super::{dequantize_rows::expect_scales, in_precision};
use crate::ops::dequantize_rows::{FOUR, ONE};
use crate::ops::fast::widest;
use crate::tensor::{DType, Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// Elements one thread takes at a time.
const TAKE: usize = 64 * GROUP;

/// Numbers of a tensor held as codes. Inputs: q I8 of any shape, s F32 [elements / 256, rounded up]; output: y F32 of q's shape.
#[derive(Clone, Debug)]
pub struct BlockNumbers;

impl BlockNumbers {
    fn compute<R: Real>(&self, inputs: &[&Tensor], y: &mut Tensor) {
        let (q, s) = (inputs[0].as_i8().chunks(GROUP), inputs[1].real::<R>());
        for ((y, q), &s) in y.real_mut::<R>().chunks_mut(GROUP).zip(q).zip(s) {
            y.iter_mut().zip(q).for_each(|(y, &q)| *y = R::of(q.into()) * s);
        }
    }
}

impl Operator for BlockNumbers {
    fn name(&self) -> &'static str {
        "block_numbers"
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [q, s] = expect_inputs(self.name(), inputs)?;
        expect_dtype(self.name(), "q", q, DType::I8)?;
        expect_scales(self.name(), "s", s, &[q.shape.count().div_ceil(GROUP)])?;
        Ok(vec![s.with_shape(q.shape.clone())])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let (q, s) = (inputs[0].as_i8(), inputs[1].floats());
        let pieces = outputs[0].floats().par_chunks_mut(TAKE).zip(q.par_chunks(TAKE));
        pieces.zip(s.par_chunks(TAKE / GROUP)).for_each(|((y, q), s)| {
            y.chunks_mut(GROUP).zip(q.chunks(GROUP)).zip(s).for_each(|((y, q), &s)| scaled(q, s, y));
        });
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Ok(vec![up[0], None])
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let count = inputs[0].shape.count();
        let whole = count.is_multiple_of(4);
        let kernel = Kernel::new("dequantize_rows").paste("WIDTH", if whole { FOUR } else { ONE });
        let bindings = [Bind::Input(0), Bind::Input(1), Bind::Output(0)];
        let launch = Launch::new(kernel, bindings, spread(count.div_ceil(4)));
        let name = if whole { "block_numbers_wide" } else { "block_numbers" };
        vec![Variant::single(name, launch.param("count", count).param("cols", GROUP))]
    }
}

widest! {
    fn scaled(q: &[i8], s: f32, y: &mut [f32]) {
        y.iter_mut().zip(q).for_each(|(y, &q)| *y = f32::from(q) * s);
    }
}

/// Builder of [`BlockNumbers`].
pub trait BlockNumbersEmit {
    /// The numbers of codes with a scale for each 256.
    fn block_numbers(&mut self, q: Value, s: Value) -> Result<Value>;
}

impl<E: Emit + ?Sized> BlockNumbersEmit for E {
    fn block_numbers(&mut self, q: Value, s: Value) -> Result<Value> {
        self.apply_one(Arc::new(BlockNumbers), &[q, s])
    }
}

/// One element, primes, blocks that end within a row, several blocks and their rest.
pub fn cases() -> Cases {
    let mut cases = Cases::new("block_numbers");
    for shape in [&[1][..], &[7, 13], &[3, 100], &[256], &[257], &[5, 1031], &[17, 256]] {
        let count = shape.iter().product::<usize>();
        let (q, s) = (cases.codes(shape), cases.statistic([count.div_ceil(GROUP)]));
        cases.add(format!("{shape:?}"), BlockNumbers, vec![q, s]).no_gradient();
    }
    cases
}
