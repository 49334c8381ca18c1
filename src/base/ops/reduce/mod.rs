//! Reductions along one axis: sum, mean, maximum.
//!
//! y[o, i] = reduce over a of x[o, a, i]. The order of the sum is fixed, so a run repeats bit for bit.

mod fast;
mod lower;

use super::launch::{Caps, Variant};
use super::pointwise::PointwiseEmit;
use super::reshape::ReshapeEmit;
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_float, expect_inputs, in_precision,
};
use crate::tensor::{Real, Shape, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// What is computed along the axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sum.
    Sum,
    /// Arithmetic mean.
    Mean,
    /// Largest element.
    Maximum,
}

/// Reduces one axis to size one, which stays.
#[derive(Clone, Debug)]
pub struct Reduce {
    /// What is computed.
    pub kind: Kind,
    /// The axis that shrinks.
    pub axis: usize,
}

/// Columns the host reduces at a time.
const COLUMNS: usize = 256;
/// Elements of a row the host reduces before it adds to the total: partial sums keep long sums exact.
const BLOCK: usize = 1 << 12;

impl Reduce {
    fn compute<R: Real>(&self, x: &Tensor, y: &mut Tensor) {
        let [_, length, inner] = split(&x.shape, self.axis);
        let (x, y) = (x.real::<R>(), y.real_mut::<R>());
        if inner == 1 {
            let rows = y.par_iter_mut().zip(x.par_chunks(length)).with_min_len(1 + BLOCK / length);
            rows.for_each(|(y, row)| *y = self.row(row));
        } else {
            let blocks = inner.div_ceil(COLUMNS);
            let parts: Vec<&mut [R]> = y.chunks_mut(inner).flat_map(|row| row.chunks_mut(COLUMNS)).collect();
            parts.into_par_iter().enumerate().for_each(|(part, y)| {
                let first = part / blocks * length * inner + part % blocks * COLUMNS;
                y.copy_from_slice(&x[first..][..y.len()]);
                for a in 1..length {
                    let row = &x[first + a * inner..][..y.len()];
                    y.iter_mut().zip(row).for_each(|(y, &x)| *y = self.join(*y, x));
                }
            });
        }
        if self.kind == Kind::Mean {
            y.iter_mut().for_each(|y| *y = *y / R::of(length as f64));
        }
    }

    fn join<R: Real>(&self, a: R, b: R) -> R {
        if self.kind == Kind::Maximum { a.maximum(b) } else { a + b }
    }

    /// A contiguous row; blocks of a long one go over the threads and are joined in order.
    fn row<R: Real>(&self, row: &[R]) -> R {
        let block = |block: &[R]| {
            let (lanes, tail) = block.as_chunks::<16>();
            let mut totals = match lanes.first() {
                Some(first) => *first,
                None => return tail[1..].iter().fold(tail[0], |a, &b| self.join(a, b)),
            };
            for lane in &lanes[1..] {
                totals.iter_mut().zip(lane).for_each(|(t, &x)| *t = self.join(*t, x));
            }
            let total = totals[1..].iter().fold(totals[0], |a, &b| self.join(a, b));
            tail.iter().fold(total, |a, &b| self.join(a, b))
        };
        if row.len() <= BLOCK {
            return block(row);
        }
        let parts: Vec<R> = row.par_chunks(BLOCK).map(block).collect();
        parts[1..].iter().fold(parts[0], |a, &b| self.join(a, b))
    }
}

/// Elements before, along and after an axis.
pub(crate) fn split(shape: &Shape, axis: usize) -> [usize; 3] {
    [shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()]
}

impl Operator for Reduce {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Sum => "sum",
            Kind::Mean => "mean",
            Kind::Maximum => "max",
        }
    }

    fn settings(&self) -> String {
        format!("axis={}", self.axis)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "x", x)?;
        if self.axis >= x.shape.len() || x.shape[self.axis] == 0 {
            let expected = format!("an axis {} with elements", self.axis);
            return Err(Error::Shape { op: self.name(), input: "x", expected, got: x.shape.clone() });
        }
        let mut sizes = x.shape.to_vec();
        sizes[self.axis] = 1;
        Ok(vec![x.with_shape(sizes)])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs[0], &mut outputs[0]));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        fast::compute(self, &inputs[0], &mut outputs[0]);
    }

    /// Sum: dx = up, repeated; mean: up / length; maximum: up where x is the largest (shared by none: ties each take it).
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(up) = up[0] else { return Ok(vec![None]) };
        let x = site.input(0);
        let shape = emit.type_of(x).shape;
        let dx = match self.kind {
            Kind::Sum => emit.expand_to(up, &shape)?,
            Kind::Mean => {
                let each = emit.scale(up, 1.0 / shape[self.axis] as f32)?;
                emit.expand_to(each, &shape)?
            }
            Kind::Maximum => {
                let below = emit.pointwise("greater", &[site.output(0), x], 0.0)?;
                let negative = emit.scale(below, -1.0)?;
                let chosen = emit.shift(negative, 1.0)?;
                emit.mul(chosen, up)?
            }
        };
        Ok(vec![Some(dx)])
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        lower::variants(self.kind, self.axis, &inputs[0], &outputs[0], caps)
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = (inputs[0].size_bytes() + outputs[0].size_bytes()) as f64;
        Cost { flops: inputs[0].shape.count() as f64, bytes }
    }
}

/// Builders of reductions.
pub trait ReduceEmit {
    /// Reduces one axis, which keeps size one.
    fn reduce(&mut self, kind: Kind, x: Value, axis: usize) -> Result<Value>;
    /// Sum of all elements, a scalar.
    fn sum_all(&mut self, x: Value) -> Result<Value>;
    /// Mean of all elements, a scalar.
    fn mean_all(&mut self, x: Value) -> Result<Value>;
    /// Sums the axes along which `shape` was broadcast to the shape of `x`: the gradient of broadcasting.
    fn sum_to(&mut self, x: Value, shape: &Shape) -> Result<Value>;
    /// Repeats `x` along axes of size one until it has `shape`.
    fn expand_to(&mut self, x: Value, shape: &Shape) -> Result<Value>;
}

impl<E: Emit + ?Sized> ReduceEmit for E {
    fn reduce(&mut self, kind: Kind, x: Value, axis: usize) -> Result<Value> {
        self.apply_one(Arc::new(Reduce { kind, axis }), &[x])
    }

    fn sum_all(&mut self, x: Value) -> Result<Value> {
        all(self, Kind::Sum, x)
    }

    fn mean_all(&mut self, x: Value) -> Result<Value> {
        all(self, Kind::Mean, x)
    }

    fn sum_to(&mut self, x: Value, shape: &Shape) -> Result<Value> {
        let from = self.type_of(x).shape;
        if from == *shape {
            return Ok(x);
        }
        let lead = from.len() - shape.len();
        let summed = |axis: usize| from[axis] != 1 && (axis < lead || shape[axis - lead] == 1);
        // Neighbouring summed axes become one, so that a bias takes a single reduction.
        let mut sizes: Vec<(usize, bool)> = vec![];
        for axis in 0..from.len() {
            match sizes.last_mut() {
                Some((size, flag)) if *flag == summed(axis) => *size *= from[axis],
                _ => sizes.push((from[axis], summed(axis))),
            }
        }
        let merged: Vec<usize> = sizes.iter().map(|s| s.0).collect();
        let mut y = self.reshape(x, merged.into())?;
        for (axis, _) in sizes.iter().enumerate().filter(|(_, s)| s.1) {
            y = self.reduce(Kind::Sum, y, axis)?;
        }
        self.reshape(y, shape.clone())
    }

    fn expand_to(&mut self, x: Value, shape: &Shape) -> Result<Value> {
        if self.type_of(x).shape == *shape {
            return Ok(x);
        }
        self.apply_one(Arc::new(super::expand::Expand { shape: shape.clone() }), &[x])
    }
}

fn all<E: Emit + ?Sized>(emit: &mut E, kind: Kind, x: Value) -> Result<Value> {
    let count = emit.type_of(x).shape.count();
    let flat = emit.reshape(x, Shape::from([count]))?;
    let y = emit.reduce(kind, flat, 0)?;
    emit.reshape(y, Shape::default())
}

/// First, middle and last axis; one element; past a workgroup; past a chunk, in fours and not.
pub fn cases() -> Cases {
    let mut cases = Cases::new("reduce");
    for kind in [Kind::Sum, Kind::Mean, Kind::Maximum] {
        for (shape, axis) in [
            (&[1][..], 0),
            (&[5, 33], 1),
            (&[33, 5], 0),
            (&[3, 33, 4], 1),
            (&[2, 1031], 1),
            (&[3, 2052], 1),
            (&[1025, 3], 0),
            (&[2, 67, 8], 1),
        ] {
            let x = cases.normal(shape);
            cases
                .add(format!("{kind:?}{shape:?} axis {axis}"), Reduce { kind, axis }, vec![x])
                .sums(shape[axis]);
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced(kind: Kind, shape: &[usize], axis: usize, x: Vec<f32>) -> Vec<f32> {
        let mut kept = shape.to_vec();
        kept[axis] = 1;
        let mut y = [Tensor::zeros(&Type::f32(kept))];
        Reduce { kind, axis }.reference(&[&Tensor::f32(shape, x)], &mut y);
        y[0].real::<f32>().to_vec()
    }

    #[test]
    fn the_sum_of_the_first_numbers_is_known() {
        for n in [1, 5, 16, 17, 5000] {
            let x: Vec<f32> = (1..=n).map(|i| i as f32).collect();
            assert_eq!(reduced(Kind::Sum, &[n], 0, x), [(n * (n + 1) / 2) as f32]);
        }
    }

    #[test]
    fn columns_past_a_block_stay_apart() {
        let (rows, columns) = (3, COLUMNS + 3);
        let x = (0..2 * rows * columns).map(|i| (i % columns) as f32).collect();
        let y = reduced(Kind::Mean, &[2, rows, columns], 1, x);
        assert!(y.iter().enumerate().all(|(i, &y)| y == (i % columns) as f32));
    }

    #[test]
    fn the_maximum_of_minus_infinities_is_minus_infinity() {
        assert_eq!(reduced(Kind::Maximum, &[3], 0, vec![f32::NEG_INFINITY; 3]), [f32::NEG_INFINITY]);
    }
}
