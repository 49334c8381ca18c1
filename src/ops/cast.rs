//! The same numbers in another float storage.

use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::slice::wide;
use super::{Cases, Emit, Error, Operator, Result, Site, Value, expect_float, expect_inputs, in_type};
use crate::tensor::{DType, Data, Tensor, Type};
use std::sync::Arc;

/// Stores floats as another float type, rounded to nearest.
#[derive(Clone, Debug)]
pub struct Cast {
    /// Storage of the output.
    pub dtype: DType,
}

impl Operator for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn settings(&self) -> String {
        format!("dtype={}", self.dtype)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x] = expect_inputs("cast", inputs)?;
        expect_float("cast", "x", x)?;
        if !self.dtype.is_float() {
            let (expected, got) = ("a float type".to_string(), self.dtype.to_string());
            return Err(Error::Setting { op: "cast", setting: "dtype", expected, got });
        }
        Ok(vec![Type::new(self.dtype, x.shape.clone())])
    }

    /// Both sides are held in the host's precision; storing as f16 rounds, unless the referee computes in f64.
    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_type!(inputs[0], outputs[0], |x, y| y.copy_from_slice(x));
        if let (DType::F16, Data::F32(y)) = (self.dtype, &mut outputs[0].data) {
            y.iter_mut().for_each(|y| *y = half::f16::from_f32(*y).to_f32());
        }
    }

    /// dx = up in the storage of x
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(up) = up[0] else { return Ok(vec![None]) };
        let dtype = emit.type_of(site.input(0)).dtype;
        Ok(vec![Some(emit.cast(up, dtype)?)])
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let width = wide(&[inputs[0].shape.count()]);
        let count = inputs[0].shape.count() / width;
        let types = if width == 4 {
            "alias PackIn = vec4<In>;\nalias PackOut = vec4<Out>;"
        } else {
            "alias PackIn = In;\nalias PackOut = Out;"
        };
        let kernel = Kernel::new("cast")
            .retype("In", inputs[0].dtype)
            .retype("Out", outputs[0].dtype)
            .paste("WIDTH", types);
        let launch =
            Launch::new(kernel, [Bind::Input(0), Bind::Output(0)], spread(count)).param("count", count);
        vec![Variant::single(if width == 4 { "cast_wide" } else { "cast" }, launch)]
    }

    fn with_storage(&self, dtype: DType) -> Option<Arc<dyn Operator>> {
        Some(Arc::new(Cast { dtype }))
    }
}

/// Builder of [`Cast`].
pub trait CastEmit {
    /// `x` in another float storage; nothing is recorded if it has it already.
    fn cast(&mut self, x: Value, dtype: DType) -> Result<Value>;
}

impl<E: Emit + ?Sized> CastEmit for E {
    fn cast(&mut self, x: Value, dtype: DType) -> Result<Value> {
        if self.type_of(x).dtype == dtype {
            return Ok(x);
        }
        self.apply_one(Arc::new(Cast { dtype }), &[x])
    }
}

/// One element, a prime, fours; from the storage under test to f32 and to f16.
pub fn cases() -> Cases {
    let mut cases = Cases::new("cast");
    for shape in [&[1][..], &[131], &[5, 16], &[3, 7]] {
        for dtype in [DType::F32, DType::F16] {
            let x = cases.normal(shape);
            cases.add(format!("cast{shape:?} to {dtype}"), Cast { dtype }, vec![x]);
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storing_as_half_rounds_to_eleven_bits() {
        let x = Tensor::f32([3], vec![1.0 + 1.0 / 4096.0, 0.1, 70_000.0]);
        let mut y = [Tensor::zeros(&Type::f32([3]))];
        Cast { dtype: DType::F16 }.reference(&[&x], &mut y);
        assert_eq!(y[0].real::<f32>(), [1.0, 0.099_975_586, f32::INFINITY]);
    }

    #[test]
    fn whole_numbers_are_refused() {
        assert!(Cast { dtype: DType::F16 }.signature(&[Type::new(DType::U32, [2])]).is_err());
        assert!(Cast { dtype: DType::U32 }.signature(&[Type::f32([2])]).is_err());
    }
}
