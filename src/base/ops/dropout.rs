//! Dropout: elements are zeroed at random and the others scaled up, so that the mean stays.
//!
//! `y[i] = x[i] / (1 - p)` if element i is kept, else 0. What is kept follows from the counter in `rng`, the salt and i alone:
//! the gradient draws the same mask again, and a resumed run the masks of the run that never stopped.

use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::slice::wide;
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_inputs,
    expect_shape, in_precision,
};
use crate::tensor::random::keep_element;
use crate::tensor::{DType, Real, Tensor, Type};
use rayon::prelude::*;
use std::sync::Arc;

/// Elements the host draws at a time.
const BLOCK: usize = 4096;

/// Zeroes each element with probability `p`; inputs x and rng `U32 [2]`, (key of the run, counter of the micro-step).
#[derive(Clone, Debug)]
pub struct Dropout {
    /// Share of elements dropped, in `0.0..1.0`.
    pub p: f32,
    /// Number of the operator within the model: two with one salt would drop the same elements.
    pub salt: u32,
}

impl Dropout {
    /// Random words below this are dropped.
    fn threshold(&self) -> u32 {
        (self.p as f64 * 4_294_967_296.0) as u32
    }

    fn scale(&self) -> f64 {
        1.0 / (1.0 - self.p as f64)
    }

    fn compute<R: Real>(&self, x: &Tensor, rng: &Tensor, y: &mut Tensor) {
        let rng = [rng.as_u32()[0], rng.as_u32()[1]];
        let (threshold, scale) = (self.threshold(), R::of(self.scale()));
        let blocks = y.real_mut::<R>().par_chunks_mut(BLOCK).zip(x.real::<R>().par_chunks(BLOCK));
        blocks.enumerate().for_each(|(block, (y, x))| {
            for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
                let element = (block * BLOCK + i) as u32;
                let kept = keep_element(rng, self.salt, element, threshold);
                *y = if kept { x * scale } else { R::default() };
            }
        });
    }
}

impl Operator for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn settings(&self) -> String {
        format!("p={} salt={}", self.p, self.salt)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x, rng] = expect_inputs("dropout", inputs)?;
        expect_float("dropout", "x", x)?;
        expect_dtype("dropout", "rng", rng, DType::U32)?;
        expect_shape("dropout", "rng", rng, &[2])?;
        if !(0.0..1.0).contains(&self.p) {
            let (expected, got) = ("in 0.0..1.0".to_string(), self.p.to_string());
            return Err(Error::Setting { op: "dropout", setting: "p", expected, got });
        }
        Ok(vec![x.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs[0], inputs[1], &mut outputs[0]));
    }

    /// dx = dropout of up with the same mask
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let (Some(up), true) = (up[0], site.needs(0)) else { return Ok(vec![None; 2]) };
        Ok(vec![Some(emit.apply_one(Arc::new(self.clone()), &[up, site.input(1)])?), None])
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let width = wide(&[inputs[0].shape.count()]);
        let count = inputs[0].shape.count() / width;
        let (name, shader) =
            if width == 4 { ("dropout_wide", "dropout_wide") } else { ("dropout", "dropout") };
        let kernel = Kernel::new(shader).retype("Elem", inputs[0].dtype);
        let launch = Launch::new(kernel, [Bind::Input(0), Bind::Input(1), Bind::Output(0)], spread(count))
            .param("count", count)
            .param("salt", self.salt)
            .param("threshold", self.threshold())
            .param("scale", self.scale() as f32);
        vec![Variant::single(name, launch)]
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = (inputs[0].size_bytes() + outputs[0].size_bytes()) as f64;
        Cost { flops: inputs[0].shape.count() as f64, bytes }
    }
}

/// Builder of [`Dropout`].
pub trait DropoutEmit {
    /// Drops each element with probability `p`; nothing is recorded for `p` zero.
    fn dropout(&mut self, x: Value, rng: Value, p: f32, salt: u32) -> Result<Value>;
}

impl<E: Emit + ?Sized> DropoutEmit for E {
    fn dropout(&mut self, x: Value, rng: Value, p: f32, salt: u32) -> Result<Value> {
        if p == 0.0 {
            return Ok(x);
        }
        self.apply_one(Arc::new(Dropout { p, salt }), &[x, rng])
    }
}

/// One element, primes, fours, several probabilities.
pub fn cases() -> Cases {
    let mut cases = Cases::new("dropout");
    for (shape, p) in [(&[1][..], 0.5), (&[7, 13], 0.1), (&[1031], 0.9), (&[5, 64], 0.25), (&[3, 4], 0.0)] {
        let x = cases.normal(shape);
        let rng = cases.indices([2], 1 << 32);
        cases.add(format!("dropout{shape:?} p {p}"), Dropout { p, salt: 7 }, vec![x, rng]);
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drop(p: f32, salt: u32, step: u32) -> Vec<f32> {
        let x = Tensor::f32([20_000], vec![1.0; 20_000]);
        let mut y = [x.clone()];
        Dropout { p, salt }.reference(&[&x, &Tensor::u32([2], vec![42, step])], &mut y);
        y[0].real::<f32>().to_vec()
    }

    #[test]
    fn the_mean_stays_and_the_share_dropped_is_p() {
        for p in [0.1, 0.5, 0.8] {
            let y = drop(p, 1, 3);
            let dropped = y.iter().filter(|&&y| y == 0.0).count() as f32 / 2e4;
            let mean = y.iter().sum::<f32>() / 2e4;
            // Four standard deviations of a share over 20,000 draws are below 0.015.
            assert!((dropped - p).abs() < 0.015 && (mean - 1.0).abs() < 0.06, "{dropped} {mean}");
        }
    }

    #[test]
    fn masks_differ_between_salts_and_steps_and_repeat_otherwise() {
        assert_eq!(drop(0.5, 1, 3), drop(0.5, 1, 3));
        assert_ne!(drop(0.5, 1, 3), drop(0.5, 2, 3));
        assert_ne!(drop(0.5, 1, 3), drop(0.5, 1, 4));
    }

    #[test]
    fn dropping_all_or_a_negative_share_is_refused() {
        let inputs = [Type::f32([3]), Type::new(DType::U32, [2])];
        for p in [1.0, -0.1, f32::NAN] {
            assert!(Dropout { p, salt: 0 }.signature(&inputs).is_err());
        }
    }
}
