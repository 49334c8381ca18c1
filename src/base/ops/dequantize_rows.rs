//! Back from codes to numbers: `y[r, k] = q[r, k] * s[r]`.

use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::{
    Cases, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_inputs,
    expect_shape,
};
use super::{in_precision, rows};
use crate::ops::fast::{rows_of_piece, widest};
use crate::tensor::{DType, Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// Numbers from codes and scales of rows. Inputs: q [.., K] as i8 and s [..]; output: y [.., K].
#[derive(Clone, Debug)]
pub struct DequantizeRows;

impl DequantizeRows {
    fn compute<R: Real>(&self, inputs: &[&Tensor], y: &mut Tensor) {
        let cols = y.shape.last();
        let (q, s) = (inputs[0].as_i8().chunks(cols), inputs[1].real::<R>());
        for ((y, q), &s) in y.real_mut::<R>().chunks_mut(cols).zip(q).zip(s) {
            y.iter_mut().zip(q).for_each(|(y, &q)| *y = R::of(q.into()) * s);
        }
    }
}

impl Operator for DequantizeRows {
    fn name(&self) -> &'static str {
        "dequantize_rows"
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [q, s] = expect_inputs(self.name(), inputs)?;
        expect_dtype(self.name(), "q", q, DType::I8)?;
        rows::expect_rows(self.name(), "q", q)?;
        expect_scales(self.name(), "s", s, &q.shape[..q.shape.len() - 1])?;
        Ok(vec![s.with_shape(q.shape.clone())])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let (q, s, cols) = (inputs[0].as_i8(), inputs[1].floats(), inputs[0].shape.last());
        let each = rows_of_piece(s.len(), cols);
        let pieces = outputs[0].floats().par_chunks_mut(each * cols).zip(q.par_chunks(each * cols));
        pieces.zip(s.par_chunks(each)).for_each(|((y, q), s)| {
            let rows = y.chunks_mut(cols).zip(q.chunks(cols)).zip(s);
            rows.for_each(|((y, q), &s)| scaled(q, s, y));
        });
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "codes are whole numbers: train through a fake quantisation instead";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let (count, cols) = (inputs[0].shape.count(), inputs[0].shape.last());
        let whole = rows::width(cols) == 4;
        let kernel = Kernel::new("dequantize_rows").paste("WIDTH", if whole { FOUR } else { ONE });
        let bindings = [Bind::Input(0), Bind::Input(1), Bind::Output(0)];
        let launch = Launch::new(kernel, bindings, spread(count.div_ceil(4)));
        let name = if whole { "dequantize_rows_wide" } else { "dequantize_rows" };
        vec![Variant::single(name, launch.param("count", count).param("cols", cols))]
    }
}

/// Checks the scales of rows: f32, or f64 in the referee, one for each row.
pub(super) fn expect_scales(
    op: &'static str,
    input: &'static str,
    got: &Type,
    expected: &[usize],
) -> Result<()> {
    expect_float(op, input, got)?;
    if got.dtype == DType::F16 {
        return Err(Error::Element { op, input, expected: "f32", got: got.dtype });
    }
    expect_shape(op, input, got, expected)
}

/// Writes four elements wherever they lie.
pub(super) const ONE: &str = "\
alias Pack = f32;
fn write_four(at: u32, v: vec4<f32>) {
    for (var i = 0u; i < 4u; i += 1u) {
        let element = at * 4u + i;
        if element < params.count { y[element] = v[i] * s[element / params.cols]; }
    }
}";

/// Writes four elements of one row.
pub(super) const FOUR: &str = "\
alias Pack = vec4<f32>;
fn write_four(at: u32, v: vec4<f32>) { y[at] = v * s[at * 4u / params.cols]; }";

widest! {
    fn scaled(q: &[i8], s: f32, y: &mut [f32]) {
        y.iter_mut().zip(q).for_each(|(y, &q)| *y = f32::from(q) * s);
    }
}

/// Builder of [`DequantizeRows`].
pub trait DequantizeRowsEmit {
    /// Numbers from codes and the scales of their rows.
    fn dequantize_rows(&mut self, q: Value, s: Value) -> Result<Value>;
}

impl<E: Emit + ?Sized> DequantizeRowsEmit for E {
    fn dequantize_rows(&mut self, q: Value, s: Value) -> Result<Value> {
        self.apply_one(Arc::new(DequantizeRows), &[q, s])
    }
}

/// One element, primes, fours, rows that share words; every code there is; a scale of zero and one of NaN.
pub fn cases() -> Cases {
    let mut cases = Cases::new("dequantize_rows");
    for shape in [&[1][..], &[7, 13], &[2, 3, 64], &[67, 5], &[3, 1], &[2, 1031], &[17, 256], &[1, 256]] {
        let (q, mut s) = (cases.codes(shape), cases.statistic(&shape[..shape.len() - 1]));
        if s.data.len() > 2 {
            (s.real_mut::<f32>()[0], s.real_mut::<f32>()[2]) = (0.0, f32::NAN);
        }
        cases.add(format!("{shape:?}"), DequantizeRows, vec![q, s]).no_gradient();
    }
    cases
}
