//! The same elements under another shape: a view, no kernel runs.

use super::launch::{Caps, Variant};
use super::ties::{self, Tie};
use super::{Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_inputs};
use crate::tensor::{Data, Shape, Tensor, Type};
use std::sync::Arc;

/// Renames the axes; the count of elements stays.
#[derive(Clone, Debug)]
pub struct Reshape {
    /// The new shape.
    pub shape: Shape,
}

impl Operator for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn settings(&self) -> String {
        format!("shape={}", self.shape)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x] = expect_inputs(self.name(), inputs)?;
        if x.shape.count() != self.shape.count() {
            let expected = format!("{} elements for {}", self.shape.count(), self.shape);
            return Err(Error::Shape { op: "reshape", input: "x", expected, got: x.shape.clone() });
        }
        Ok(vec![x.with_shape(self.shape.clone())])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        match (&mut outputs[0].data, &inputs[0].data) {
            (Data::F64(y), Data::F64(x)) => y.copy_from_slice(x),
            (Data::F32(y), Data::F32(x)) => y.copy_from_slice(x),
            (Data::I32(y), Data::I32(x)) => y.copy_from_slice(x),
            (Data::U32(y), Data::U32(x)) => y.copy_from_slice(x),
            (Data::I8(y), Data::I8(x)) => y.copy_from_slice(x),
            (y, x) => panic!("reshape keeps the element type: {} from {}", y.dtype(), x.dtype()),
        }
    }

    /// dx = up under the old shape
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(up) = up[0] else { return Ok(vec![None]) };
        let shape = emit.type_of(site.input(0)).shape;
        Ok(vec![Some(emit.reshape(up, shape)?)])
    }

    fn ties(&self, inputs: &[Type], _outputs: &[Type]) -> Vec<Tie> {
        ties::of_reshape(&inputs[0].shape, &self.shape)
    }

    fn launch(&self, _inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        vec![]
    }

    fn cost(&self, _inputs: &[Type], _outputs: &[Type]) -> Cost {
        Cost::default()
    }

    fn is_view(&self) -> bool {
        true
    }
}

/// Builder of [`Reshape`].
pub trait ReshapeEmit {
    /// `x` under another shape; nothing is recorded if the shape is the same.
    fn reshape(&mut self, x: Value, shape: Shape) -> Result<Value>;
}

impl<E: Emit + ?Sized> ReshapeEmit for E {
    fn reshape(&mut self, x: Value, shape: Shape) -> Result<Value> {
        if self.type_of(x).shape == shape {
            return Ok(x);
        }
        self.apply_one(Arc::new(Reshape { shape }), &[x])
    }
}

/// Into more, fewer and no axes.
pub fn cases() -> Cases {
    let mut cases = Cases::new("reshape");
    for (from, to) in [(&[2, 6][..], &[3, 4][..]), (&[7], &[1, 7]), (&[1, 1], &[])] {
        let x = cases.normal(from);
        cases.add(format!("{from:?} to {to:?}"), Reshape { shape: to.into() }, vec![x]);
    }
    cases
}
