//! Broadcasting made real: axes of size one are repeated.

use super::launch::{Caps, Variant};
use super::pointwise::Pointwise;
use super::reduce::ReduceEmit;
use super::{Cases, Emit, Error, Operator, Result, Site, Value, expect_float, expect_inputs, in_precision};
use crate::tensor::{Real, Shape, Tensor, Type, strides_of};

/// Repeats axes of size one until the value has the shape.
#[derive(Clone, Debug)]
pub struct Expand {
    /// The shape to reach.
    pub shape: Shape,
}

impl Operator for Expand {
    fn name(&self) -> &'static str {
        "expand"
    }

    fn settings(&self) -> String {
        format!("shape={}", self.shape)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "x", x)?;
        if x.shape.broadcast(&self.shape)? != self.shape {
            let expected = format!("one that broadcasts to {}", self.shape);
            return Err(Error::Shape { op: "expand", input: "x", expected, got: x.shape.clone() });
        }
        Ok(vec![x.with_shape(self.shape.clone())])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, repeat::<R>(inputs[0], &mut outputs[0]));
    }

    /// dx = sum of up over the repeated axes
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(up) = up[0] else { return Ok(vec![None]) };
        let shape = emit.type_of(site.input(0)).shape;
        Ok(vec![Some(emit.sum_to(up, &shape)?)])
    }

    /// The pointwise kernel of the identity reads with broadcast strides, provided the output's shape tells them.
    fn launch(&self, inputs: &[Type], outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        Pointwise::single("identity", 0.0).launch(inputs, outputs, caps)
    }
}

fn repeat<R: Real>(x: &Tensor, y: &mut Tensor) {
    let strides = x.shape.broadcast_strides(&y.shape);
    let (sizes, own) = (y.shape.clone(), strides_of(&y.shape));
    let x = x.real::<R>();
    for (flat, y) in y.real_mut::<R>().iter_mut().enumerate() {
        let from: usize = (0..sizes.len()).map(|axis| flat / own[axis] % sizes[axis] * strides[axis]).sum();
        *y = x[from];
    }
}

/// Leading, inner and all axes repeated.
pub fn cases() -> Cases {
    let mut cases = Cases::new("expand");
    for (from, to) in [(&[5][..], &[3, 5][..]), (&[3, 1], &[3, 8]), (&[2, 1, 4], &[2, 3, 4]), (&[], &[7])] {
        let x = cases.normal(from);
        cases.add(format!("{from:?} to {to:?}"), Expand { shape: to.into() }, vec![x]).sums(21);
    }
    cases
}
