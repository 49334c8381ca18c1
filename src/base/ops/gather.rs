//! Some elements of each row, by their columns: `y[r, k] = x[r, at[r, k]]`.
//!
//! A column outside the row gives zero and gets no gradient.

use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::{
    Cases, Cost, Emit, Operator, Result, Site, Value, expect_dtype, expect_float, expect_inputs,
    expect_shape, in_precision, rows,
};
use crate::tensor::{DType, Real, Tensor, Type};
use rayon::prelude::*;
use std::sync::Arc;

/// Elements of rows. Inputs: x [.., V], columns [.., K] as u32; output: [.., K].
#[derive(Clone, Debug)]
pub struct Gather;

impl Gather {
    fn compute<R: Real>(inputs: &[&Tensor], y: &mut Tensor) {
        let (cols, picks) = (inputs[0].shape.last(), y.shape.last());
        let each = inputs[0].real::<R>().par_chunks(cols).zip(inputs[1].as_u32().par_chunks(picks));
        y.real_mut::<R>().par_chunks_mut(picks).zip(each).for_each(|(y, (x, columns))| {
            y.iter_mut()
                .zip(columns)
                .for_each(|(y, &at)| *y = x.get(at as usize).copied().unwrap_or_default());
        });
    }
}

impl Operator for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x, columns] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "x", x)?;
        rows::expect_rows(self.name(), "x", x)?;
        rows::expect_rows(self.name(), "columns", columns)?;
        expect_dtype(self.name(), "columns", columns, DType::U32)?;
        let mut shape = x.shape[..x.shape.len() - 1].to_vec();
        shape.push(columns.shape.last());
        expect_shape(self.name(), "columns", columns, &shape)?;
        Ok(vec![x.with_shape(columns.shape.clone())])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, Gather::compute::<R>(inputs, &mut outputs[0]));
    }

    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(up) = up[0] else { return Ok(vec![None, None]) };
        let cols = emit.type_of(site.input(0)).shape.last();
        Ok(vec![Some(emit.scatter(up, site.input(1), cols)?), None])
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let (count, cols, picks) =
            (outputs[0].shape.count(), inputs[0].shape.last(), outputs[0].shape.last());
        let kernel = Kernel::new("gather").retype("Elem", inputs[0].dtype);
        let launch = Launch::new(kernel, [Bind::Input(0), Bind::Input(1), Bind::Output(0)], spread(count));
        let launch = launch.param("count", count).param("cols", cols).param("picks", picks);
        vec![Variant::single("gather", launch)]
    }

    fn cost(&self, _inputs: &[Type], outputs: &[Type]) -> Cost {
        Cost {
            flops: 0.0,
            bytes: 2.0 * outputs[0].size_bytes() as f64 + 4.0 * outputs[0].shape.count() as f64,
        }
    }
}

/// The other way: rows of zeros with numbers at some columns, `y[r, c] = sum over k with at[r, k] = c of x[r, k]`.
///
/// Inputs: x [.., K], columns [.., K] as u32; output: [.., V].
#[derive(Clone, Debug)]
pub struct Scatter {
    /// Columns of the output, V.
    pub cols: usize,
}

impl Scatter {
    fn compute<R: Real>(&self, inputs: &[&Tensor], y: &mut Tensor) {
        let picks = inputs[0].shape.last();
        let each = inputs[0].real::<R>().par_chunks(picks).zip(inputs[1].as_u32().par_chunks(picks));
        y.real_mut::<R>().par_chunks_mut(self.cols).zip(each).for_each(|(y, (x, columns))| {
            y.fill(R::default());
            for (&x, &at) in x.iter().zip(columns) {
                if let Some(y) = y.get_mut(at as usize) {
                    *y += x;
                }
            }
        });
    }
}

impl Operator for Scatter {
    fn name(&self) -> &'static str {
        "scatter"
    }

    fn settings(&self) -> String {
        format!("cols={}", self.cols)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x, columns] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "x", x)?;
        rows::expect_rows(self.name(), "x", x)?;
        expect_dtype(self.name(), "columns", columns, DType::U32)?;
        expect_shape(self.name(), "columns", columns, &x.shape)?;
        let mut shape = x.shape[..x.shape.len() - 1].to_vec();
        shape.push(self.cols);
        Ok(vec![x.with_shape(shape)])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(up) = up[0] else { return Ok(vec![None, None]) };
        Ok(vec![Some(emit.gather(up, site.input(1))?), None])
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let (rows, picks) = (inputs[0].shape.rows(), inputs[0].shape.last());
        let lanes =
            (self.cols.div_ceil(8).next_power_of_two() as u32).clamp(32, caps.max_invocations.min(256));
        let kernel = Kernel::new("scatter").retype("Elem", outputs[0].dtype).constant("LANES", lanes);
        let launch = Launch::new(kernel, [Bind::Input(0), Bind::Input(1), Bind::Output(0)], rows);
        let launch = launch.param("rows", rows).param("cols", self.cols).param("picks", picks);
        vec![Variant::single("scatter", launch)]
    }

    fn cost(&self, _inputs: &[Type], outputs: &[Type]) -> Cost {
        Cost { flops: 0.0, bytes: outputs[0].size_bytes() as f64 }
    }
}

/// Builders of [`Gather`] and [`Scatter`].
pub trait GatherEmit {
    /// The elements of rows [.., V] at columns [.., K].
    fn gather(&mut self, x: Value, columns: Value) -> Result<Value>;

    /// Rows [.., V] of zeros but for numbers [.., K] at columns [.., K].
    fn scatter(&mut self, x: Value, columns: Value, cols: usize) -> Result<Value>;
}

impl<E: Emit + ?Sized> GatherEmit for E {
    fn gather(&mut self, x: Value, columns: Value) -> Result<Value> {
        self.apply_one(Arc::new(Gather), &[x, columns])
    }

    fn scatter(&mut self, x: Value, columns: Value, cols: usize) -> Result<Value> {
        self.apply_one(Arc::new(Scatter { cols }), &[x, columns])
    }
}

/// One element, primes, past a workgroup, the same column twice, a column outside.
pub fn cases() -> Cases {
    let mut cases = Cases::new("gather");
    for (lead, cols, picks) in [
        (&[1][..], 1, 1),
        (&[7], 13, 5),
        (&[2, 3], 65, 65),
        (&[67], 5, 3),
        (&[3], 1031, 64),
        (&[19], 257, 130),
        (&[5], 4, 9),
    ] {
        let shape = |last: usize| [lead, &[last]].concat();
        let columns = cases.indices(shape(picks), cols as u64 + u64::from(cols > 4));
        let x = cases.normal(shape(cols));
        cases.add(format!("{lead:?} {cols} at {picks}"), Gather, vec![x, columns.clone()]).sums(picks);
        let x = cases.normal(shape(picks));
        cases
            .add(format!("scatter {lead:?} {cols} at {picks}"), Scatter { cols }, vec![x, columns])
            .sums(picks);
    }
    cases
}
