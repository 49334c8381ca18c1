//! Numbers into codes of 8 bits, stochastically rounded: weights that are held as codes alone move by steps smaller than their own
//! spacing, on average.
//!
//! `s = max |x| / 127` over each 256 numbers, `q = floor(x / s + u)` with u uniform in 0..1: the mean of q s is x. (Q-GaLore, Zhang
//! et al. 2024, and torchao's quantised training hold weights so.) The randomness is a function of key, step and element, as in
//! [`super::optimizer::rounding`].
//!
//! Inputs in order: x F32 \[N\], codes I8 \[N\], scales F32 \[N / 256\], and scalars and control of the [optimiser](super::optimizer), of
//! which the step number and whether a step is made at all are read. Outputs, in place: codes, scales. N is a multiple of 256.

use super::launch::{Bind, Caps, Kernel, Launch, Variant};
use super::optimizer::bytes::GROUP;
use super::optimizer::{SCALARS, norm::CONTROL};
use super::{Cases, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_shape, in_precision};
use crate::tensor::random::philox;
use crate::tensor::{DType, Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// The largest code.
const HIGHEST: f64 = 127.0;
/// Scales below it count as zero: their quotients would not be numbers.
const SMALLEST: f64 = f32::MIN_POSITIVE as f64;
/// Workgroups beyond which they walk on instead.
const MOST_GROUPS: usize = 4096;

/// New codes and scales of numbers.
#[derive(Clone, Debug)]
pub struct BlockCodes {
    /// Key of the randomness.
    pub key: u32,
}

/// The scale of a block.
fn scale_of<R: Real>(x: &[R]) -> R {
    let most = x.iter().fold(R::default(), |most, &x| {
        let x = if x < R::default() { -x } else { x };
        if x > most { x } else { most }
    });
    let scale = most / R::of(HIGHEST);
    if scale.wide() >= SMALLEST { scale } else { R::default() }
}

/// `x / s + u` of an element, whose floor is its code.
fn place<R: Real>(key: u32, step: u32, element: usize, x: R, scale: R) -> R {
    let words = philox(key, [(element / 4) as u32, step]);
    let noise = (words[element % 4 / 2] >> (16 * (element % 2) as u32)) & 0xffff;
    x / scale + R::of((f64::from(noise) + 0.5) / 65536.0)
}

/// The nearest codes of numbers, for those to begin with.
pub fn nearest(x: &[f32]) -> (Vec<i8>, Vec<f32>) {
    let scales: Vec<f32> = x.chunks(GROUP).map(scale_of).collect();
    let code = |(x, &s): (&[f32], &f32)| {
        x.iter().map(|&x| if s == 0.0 { 0 } else { (x / s).round_ties_even() as i8 }).collect::<Vec<i8>>()
    };
    (x.chunks(GROUP).zip(&scales).flat_map(code).collect(), scales)
}

impl BlockCodes {
    fn block<R: Real>(&self, step: u32, first: usize, x: &[R], codes: &mut [i8]) -> R {
        let scale = scale_of(x);
        for (i, (code, &x)) in codes.iter_mut().zip(x).enumerate() {
            *code = match scale == R::default() {
                true => 0,
                false => {
                    place(self.key, step, first + i, x, scale).wide().floor().clamp(-HIGHEST, HIGHEST) as i8
                }
            };
        }
        scale
    }

    fn compute<R: Real>(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let [codes, scales] = outputs else { unreachable!("two outputs") };
        codes.as_i8_mut().copy_from_slice(inputs[1].as_i8());
        scales.real_mut::<R>().copy_from_slice(inputs[2].real::<R>());
        if inputs[4].real::<R>()[2] == R::default() {
            return;
        }
        let step = inputs[3].real::<R>()[4].wide() as u32;
        let blocks = codes.as_i8_mut().chunks_mut(GROUP).zip(scales.real_mut::<R>());
        for (number, ((codes, scale), x)) in blocks.zip(inputs[0].real::<R>().chunks(GROUP)).enumerate() {
            *scale = self.block(step, number * GROUP, x, codes);
        }
    }
}

impl Operator for BlockCodes {
    fn name(&self) -> &'static str {
        "block_codes"
    }

    fn settings(&self) -> String {
        format!("key={}", self.key)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let [x, codes, scales, scalars, control] = super::expect_inputs(op, inputs)?;
        let count = x.shape.count();
        if x.shape.len() != 1 || count == 0 || !count.is_multiple_of(GROUP) {
            let expected = format!("[a multiple of {GROUP}]");
            return Err(Error::Shape { op, input: "x", expected, got: x.shape.clone() });
        }
        super::expect_float(op, "x", x)?;
        expect_dtype(op, "codes", codes, DType::I8)?;
        expect_shape(op, "codes", codes, &[count])?;
        super::dequantize_rows::expect_scales(op, "scales", scales, &[count / GROUP])?;
        expect_shape(op, "scalars", scalars, &[SCALARS])?;
        expect_shape(op, "control", control, &[CONTROL])?;
        Ok(vec![codes.clone(), scales.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, outputs));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let [codes, scales] = outputs else { unreachable!("two outputs") };
        if inputs[4].floats()[2] == 0.0 {
            return;
        }
        let step = inputs[3].floats()[4] as u32;
        let blocks = codes.as_i8().par_chunks_mut(GROUP).zip(scales.floats());
        blocks.zip(inputs[0].floats().par_chunks(GROUP)).enumerate().for_each(
            |(number, ((codes, scale), x))| {
                *scale = self.block(step, number * GROUP, x, codes);
            },
        );
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: self.name(), hint: "an update stands behind the loss, not before it" })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let blocks = inputs[0].shape.count() / GROUP;
        // A GPU has a lane for each word of a block; a CPU driver fills one vector and goes round.
        let (name, lanes) =
            if caps.is_cpu { ("block_codes_lanes", 8) } else { ("block_codes_group", GROUP / 4) };
        let kernel = Kernel::new("block_codes").constant("LANES", lanes as u32);
        let bindings = [Bind::Output(0), Bind::Output(1), Bind::Input(0), Bind::Input(3), Bind::Input(4)];
        let launch = Launch::new(kernel, bindings, blocks.min(MOST_GROUPS));
        vec![Variant::single(name, launch.param("blocks", blocks).param("key", self.key))]
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 1), (1, 2)]
    }
}

/// Builder of [`BlockCodes`].
pub trait BlockCodesEmit {
    /// Makes codes of numbers in place of the codes there are; returns codes and scales.
    fn block_codes(
        &mut self,
        key: u32,
        x: Value,
        before: [Value; 2],
        scalars: Value,
        control: Value,
    ) -> Result<[Value; 2]>;
}

impl<E: Emit + ?Sized> BlockCodesEmit for E {
    fn block_codes(
        &mut self,
        key: u32,
        x: Value,
        before: [Value; 2],
        scalars: Value,
        control: Value,
    ) -> Result<[Value; 2]> {
        let [codes, scales] = before;
        let made = self.apply(Arc::new(BlockCodes { key }), &[x, codes, scales, scalars, control])?;
        Ok([made[0], made[1]])
    }
}

/// One block and several, one of zeros, one of a number that is hardly any; a step that is not made.
pub fn cases() -> Cases {
    let mut cases = Cases::new("block_codes");
    for (blocks, key, step, goes) in
        [(1, 7, 1.0, 1.0), (5, 11, 900.0, 1.0), (67, 3, 2.0, 1.0), (2, 5, 4.0, 0.0)]
    {
        let op = BlockCodes { key };
        let mut x = cases.statistic([blocks * GROUP]);
        if blocks > 2 {
            let values = x.real_mut::<f32>();
            values[GROUP..2 * GROUP].fill(0.0);
            values[2 * GROUP..3 * GROUP].fill(0.0);
            values[2 * GROUP + 5] = 1e-38;
        }
        let (codes, scales) = (cases.codes([blocks * GROUP]), cases.statistic([blocks]));
        let scalars = vec![0.1, 1.0, 1.0, 0.0, step, 0.0, 0.0, 0.0];
        let control = vec![1.0, 1.0, goes, 0.0, 0.0, 0.0, 0.0, 0.0];
        let inputs = vec![x, codes, scales, Tensor::f32([SCALARS], scalars), Tensor::f32([CONTROL], control)];
        let of = op.clone();
        // A quotient this near to a whole number is rounded to it or to its neighbour by errors of the last bit.
        let ties = move |inputs: &[Tensor]| {
            let (wide, step) = (inputs[0].to_f64(), inputs[3].to_f64()[4] as u32);
            let near = |(element, &x): (usize, &f64)| {
                let start = element / GROUP * GROUP;
                let scale = scale_of(&wide[start..start + GROUP]);
                let at = if scale == 0.0 { 0.5 } else { place(of.key, step, element, x, scale) };
                (at - at.round()).abs() < 1e-4
            };
            wide.iter().enumerate().map(near).collect()
        };
        cases.add(format!("{blocks} blocks, goes {goes}"), op, inputs).no_gradient().either_step_at(ties);
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_between_codes_stay_on_average_where_they_are() {
        let mut x = vec![0.3f32; GROUP];
        x[0] = 127.0;
        let op = BlockCodes { key: 9 };
        let mut codes = vec![0i8; GROUP];
        let mut sum = 0.0;
        for step in 0..200 {
            assert_eq!(op.block(step, 0, &x, &mut codes), 1.0);
            sum += codes[1..].iter().map(|&c| f64::from(c)).sum::<f64>();
        }
        let mean = sum / (200.0 * 255.0);
        // Five deviations of a mean over so many draws of a share of 0.3.
        assert!((mean - 0.3).abs() < 5.0 * (0.21f64 / 51_000.0).sqrt(), "{mean}");
        assert_eq!(nearest(&x).0[1], 0, "rounded to nearest they would be lost");
    }

    #[test]
    fn codes_of_what_codes_stand_for_are_the_same_codes() {
        let x: Vec<f32> = (0..3 * GROUP).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.013).collect();
        let (codes, scales) = nearest(&x);
        let back: Vec<f32> = codes
            .chunks(GROUP)
            .zip(&scales)
            .flat_map(|(c, &s)| c.iter().map(move |&c| f32::from(c) * s))
            .collect();
        assert_eq!(nearest(&back).0, codes);
    }
}
