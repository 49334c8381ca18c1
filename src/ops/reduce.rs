//! Reductions along one axis: sum, mean, maximum.
//!
//! y[o, i] = reduce over a of x[o, a, i]. The order of the sum is fixed, so a run repeats bit for bit.

use super::launch::{Bind, Caps, Kernel, Launch, Variant};
use super::pointwise::PointwiseEmit;
use super::reshape::ReshapeEmit;
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_float, expect_inputs, in_precision,
};
use crate::tensor::{Real, Shape, Tensor, Type};
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

impl Reduce {
    fn compute<R: Real>(&self, x: &Tensor, y: &mut Tensor) {
        let [outer, length, inner] = split(&x.shape, self.axis);
        let x = x.real::<R>();
        let _ = outer;
        y.real_mut::<R>().par_chunks_mut(inner).enumerate().for_each(|(o, y)| {
            let rows = &x[o * length * inner..][..length * inner];
            y.copy_from_slice(&rows[..inner]);
            for row in rows.chunks(inner).skip(1) {
                for (y, &x) in y.iter_mut().zip(row) {
                    *y = if self.kind == Kind::Maximum { y.maximum(x) } else { *y + x };
                }
            }
            if self.kind == Kind::Mean {
                y.iter_mut().for_each(|y| *y = *y / R::of(length as f64));
            }
        });
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

    fn launch(&self, inputs: &[Type], outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let [outer, length, inner] = split(&inputs[0].shape, self.axis);
        let kind = self.kind as u32;
        let kernel = Kernel::new("reduce").constant("KIND", kind).retype("Elem", inputs[0].dtype);
        let count = outputs[0].shape.count();
        let launch = Launch::new(kernel, [Bind::Input(0), Bind::Output(0)], count.div_ceil(64))
            .param("count", outer * inner)
            .param("length", length)
            .param("inner", inner);
        vec![Variant::single("reduce_lane", launch)]
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

/// First, middle and last axis; one element; past a workgroup.
pub fn cases() -> Cases {
    let mut cases = Cases::new("reduce");
    for kind in [Kind::Sum, Kind::Mean, Kind::Maximum] {
        for (shape, axis) in
            [(&[1][..], 0), (&[5, 33], 1), (&[33, 5], 0), (&[3, 33, 4], 1), (&[2, 1031], 1), (&[1025, 3], 0)]
        {
            let x = cases.normal(shape);
            cases
                .add(format!("{kind:?}{shape:?} axis {axis}"), Reduce { kind, axis }, vec![x])
                .sums(shape[axis]);
        }
    }
    cases
}
