//! Fake quantisation: each element as it would come back from its code, with gradients that pass straight through.
//!
//! `y = (clamp(round(x / s) + z, lowest, highest) - z) * s`, rounded half to even, with a scale s and perhaps a whole zero point z
//! for each line of elements ([`Sharing`]). Where s is zero, y is zero.
//!
//! Backward, rounding counts as the identity: `dx = up` where the code is inside the range, else zero. A scale that is learned
//! (LSQ, Esser et al. 2020) gets `ds = g * sum over its line of up * (code - z - x / s)` inside the range and
//! `up * (bound - z)` outside, with `g = 1 / sqrt(elements of the line * highest)`.

mod fast;
mod gradient;
mod lines;
pub mod scales;

pub use gradient::{FakeQuantizeGradient, StepGradient};
pub use lines::Sharing;

use super::launch::{Bind, Caps, Kernel, Variant, spread};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_float, expect_shape, in_precision,
};
use crate::tensor::{DType, Real, Shape, Tensor, Type, View, ViewMut};
use lines::Lines;
use rayon::prelude::*;
use std::sync::Arc;

/// Elements one thread of the host takes at a time.
const TAKE: usize = 4096;

/// Codes there are, how they share scales, and whether there are zero points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    /// Lowest code.
    pub lowest: i32,
    /// Highest code.
    pub highest: i32,
    /// Which elements share a scale.
    pub sharing: Sharing,
    /// Whether each line has a zero point as well.
    pub has_zeros: bool,
}

impl Steps {
    /// Symmetric codes from `lowest` to `highest`.
    pub fn symmetric(lowest: i32, highest: i32, sharing: Sharing) -> Steps {
        Steps { lowest, highest, sharing, has_zeros: false }
    }

    /// Scales for a tensor of this shape.
    pub fn lines(&self, shape: &Shape) -> usize {
        Lines::of(shape, self.sharing).count()
    }

    fn settings(&self) -> String {
        let zeros = if self.has_zeros { ",zeros" } else { "" };
        format!("codes={}..={},sharing={}{zeros}", self.lowest, self.highest, self.sharing.describe())
    }

    /// Checks x, s and z; they are followed by `rest` inputs.
    fn check(&self, op: &'static str, inputs: &[Type], rest: usize) -> Result<()> {
        let expected = 2 + self.has_zeros as usize + rest;
        if inputs.len() != expected {
            return Err(Error::InputCount { op, expected, got: inputs.len() });
        }
        let in_range = |code: i32| (-32768..=65535).contains(&code);
        if self.lowest >= self.highest
            || self.highest < 1
            || !in_range(self.lowest)
            || !in_range(self.highest)
        {
            let expected = "at most 16 bits, rising, with the highest above zero".to_string();
            return Err(Error::Setting { op, setting: "codes", expected, got: self.settings() });
        }
        expect_single(op, "x", &inputs[0])?;
        Lines::check(op, &inputs[0], self.sharing)?;
        let lines = Lines::of(&inputs[0].shape, self.sharing).count();
        for (name, of_line) in ["s", "z"].into_iter().zip(&inputs[1..2 + self.has_zeros as usize]) {
            expect_single(op, name, of_line)?;
            expect_shape(op, name, of_line, &[lines])?;
        }
        Ok(())
    }

    fn bounds<R: Real>(&self) -> [R; 2] {
        [self.lowest, self.highest].map(|code| R::of(code.into()))
    }

    /// Number of the input after x, s and z.
    fn next(&self) -> usize {
        2 + self.has_zeros as usize
    }

    /// A kernel that binds x, s, what `rest` says and then z, if there is one.
    fn kernel(&self, shader: &'static str, rest: &[Bind]) -> (Kernel, Vec<Bind>) {
        let mut bindings = vec![Bind::Input(0), Bind::Input(1)];
        bindings.extend(rest);
        let zeros = match self.has_zeros {
            false => "fn zero_of(line: u32) -> f32 { return 0.0; }".to_string(),
            true => format!(
                "@group(0) @binding({}) var<storage, read> z: array<f32>; // [lines]\n\
                 fn zero_of(line: u32) -> f32 {{ return z[line]; }}",
                bindings.len()
            ),
        };
        bindings.extend(self.has_zeros.then_some(Bind::Input(2)));
        (Kernel::new(shader).paste("ZEROS", zeros), bindings)
    }
}

/// What is known of an element: its scale, zero point and exact quotient.
#[derive(Clone, Copy)]
struct Exact<R> {
    scale: R,
    zero: R,
    quotient: R,
}

impl<R: Real> Exact<R> {
    fn of(x: R, scale: R, zero: R) -> Self {
        let quotient = if scale == R::default() { R::default() } else { x / scale };
        Exact { scale, zero, quotient }
    }

    /// The code before it is clamped.
    fn rounded(&self) -> R {
        R::of(self.quotient.wide().round_ties_even()) + self.zero
    }

    fn is_inside(&self, bounds: [R; 2]) -> bool {
        let code = self.rounded();
        code >= bounds[0] && code <= bounds[1]
    }

    /// The code less its zero point; NaN for a scale that is none.
    fn code(&self, bounds: [R; 2]) -> R {
        let code = self.rounded();
        let code = if code < bounds[0] { bounds[0] } else { code };
        (if code > bounds[1] { bounds[1] } else { code }) - self.zero
    }

    fn value(&self, bounds: [R; 2]) -> R {
        self.code(bounds) * self.scale
    }
}

/// Elements as they come back from their codes. Inputs: x in f32, s `[lines]` and, with zero points, z `[lines]`; output: y as x.
#[derive(Clone, Copy, Debug)]
pub struct FakeQuantize {
    /// The codes.
    pub steps: Steps,
}

impl Operator for FakeQuantize {
    fn name(&self) -> &'static str {
        "fake_quantize"
    }

    fn settings(&self) -> String {
        self.steps.settings()
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        self.steps.check(self.name(), inputs, 0)?;
        Ok(vec![inputs[0].clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, {
            let zeros = self.steps.has_zeros.then(|| inputs[2].real::<R>());
            let lines = Lines::of(&inputs[0].shape, self.steps.sharing);
            let (x, s) = (inputs[0].real::<R>(), inputs[1].real::<R>());
            let y = outputs[0].real_mut::<R>();
            each(lines, x, s, zeros, y, |y, exact, _| *y = exact.value(self.steps.bounds()));
        });
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let zeros = self.steps.has_zeros.then(|| inputs[2].floats());
        let lines = Lines::of(inputs[0].shape, self.steps.sharing);
        let (x, s, y) = (inputs[0].floats(), inputs[1].floats(), outputs[0].floats());
        match zeros {
            None => fast::values(lines, x, s, y, self.steps.bounds()),
            zeros => each(lines, x, s, zeros, y, |y, exact, _| *y = exact.value(self.steps.bounds())),
        }
    }

    /// Straight through where the code is inside the range; the scale learns.
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let mut gradients = vec![None; site.inputs.len()];
        let Some(up) = up[0] else { return Ok(gradients) };
        let inputs = [site.inputs, &[up]].concat();
        if site.needs(0) {
            let op = FakeQuantizeGradient { steps: self.steps };
            gradients[0] = Some(emit.apply_one(Arc::new(op), &inputs)?);
        }
        if site.needs(1) {
            gradients[1] = Some(emit.apply_one(Arc::new(StepGradient { steps: self.steps }), &inputs)?);
        }
        Ok(gradients)
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let count = inputs[0].shape.count();
        let lines = Lines::of(&inputs[0].shape, self.steps.sharing);
        let (kernel, bindings) = self.steps.kernel("fake_quantize", &[Bind::Output(0)]);
        let launch = lines.launch(kernel, bindings, spread(count)).param("count", count);
        let launch = launch.param("lowest", self.steps.lowest as f32);
        vec![Variant::single(self.name(), launch.param("highest", self.steps.highest as f32))]
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 6.0 * inputs[0].shape.count() as f64, bytes }
    }
}

/// What a learned scale begins with, line by line: `2 mean |x| / sqrt(highest)`.
pub fn mean_step(x: &Tensor, steps: Steps) -> Vec<f32> {
    let lines = Lines::of(&x.shape, steps.sharing);
    let x = x.to_f64();
    let of_line = |line| {
        let count = lines.elements(line).count() as f64;
        let mean = lines.elements(line).map(|i| x[i].abs()).sum::<f64>() / count;
        (2.0 * mean / f64::from(steps.highest).sqrt()) as f32
    };
    (0..lines.count()).map(of_line).collect()
}

/// Calls `write` with each element of `y`, over threads, and what is known of it.
fn each<R: Real>(
    lines: Lines,
    x: &[R],
    s: &[R],
    zeros: Option<&[R]>,
    y: &mut [R],
    write: impl Fn(&mut R, Exact<R>, usize) + Sync,
) {
    y.par_chunks_mut(TAKE).zip(x.par_chunks(TAKE)).enumerate().for_each(|(piece, (y, x))| {
        for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
            let element = piece * TAKE + i;
            let line = lines.line_of(element);
            let zero = zeros.map_or(R::default(), |z| z[line]);
            write(y, Exact::of(x, s[line], zero), element);
        }
    });
}

/// Checks that an input holds f32, or f64 in the referee: weights and their scales are never stored shorter.
fn expect_single(op: &'static str, input: &'static str, got: &Type) -> Result<()> {
    expect_float(op, input, got)?;
    match got.dtype {
        DType::F16 => Err(Error::Element { op, input, expected: "f32", got: got.dtype }),
        _ => Ok(()),
    }
}

/// Builder of [`FakeQuantize`].
pub trait FakeQuantizeEmit {
    /// Elements of `x` as they come back from codes with these scales and, where `steps` has them, zero points.
    fn fake_quantize(&mut self, x: Value, scales: Value, zeros: Option<Value>, steps: Steps)
    -> Result<Value>;
}

impl<E: Emit + ?Sized> FakeQuantizeEmit for E {
    fn fake_quantize(
        &mut self,
        x: Value,
        scales: Value,
        zeros: Option<Value>,
        steps: Steps,
    ) -> Result<Value> {
        let steps = Steps { has_zeros: zeros.is_some(), ..steps };
        let inputs: Vec<Value> = [x, scales].into_iter().chain(zeros).collect();
        self.apply_one(Arc::new(FakeQuantize { steps }), &inputs)
    }
}

/// Shapes of the cases with a way to share each: one element, primes, ragged groups, long lines, many lines.
fn shapes() -> [(&'static [usize], Sharing); 9] {
    [
        (&[1], Sharing::Rows),
        (&[7, 13], Sharing::Rows),
        (&[7, 13], Sharing::Columns),
        (&[2, 3, 64], Sharing::Columns),
        (&[5, 70], Sharing::RowGroups(32)),
        (&[70, 5], Sharing::ColumnGroups(32)),
        (&[3, 701], Sharing::Tensor),
        (&[2, 2052], Sharing::Rows),
        (&[67, 33], Sharing::Rows),
    ]
}

/// Inputs of a case: elements not near the middle between two codes, some outside the range, and a line of scale zero.
fn inputs(cases: &mut Cases, shape: &[usize], steps: Steps) -> Vec<Tensor> {
    let count: usize = shape.iter().product();
    let lines = Lines::of(&shape.into(), steps.sharing);
    let mut scales = cases.uniform([lines.count()], 0.1, 2.0).to_precision(DType::F32);
    if lines.count() > 3 {
        scales.real_mut::<f32>()[2] = 0.0;
    }
    let zeros: Vec<f32> = (0..lines.count()).map(|line| (line % 5) as f32 - 2.0).collect();
    let codes = cases.targets(shape, 2 * steps.lowest - 3, 2 * steps.highest + 3).to_f64();
    let parts = cases.uniform(shape, -0.45, 0.45).to_f64();
    let s = scales.real::<f32>();
    let x = (0..count).map(|i| ((codes[i] + parts[i]) * f64::from(s[lines.line_of(i)])) as f32).collect();
    let mut inputs = vec![Tensor::f32(shape, x), scales];
    if steps.has_zeros {
        inputs.push(Tensor::f32([lines.count()], zeros));
    }
    inputs
}

/// Every way to share with codes of two, four and eight bits, with zero points and without; each operator by itself.
pub fn cases() -> Cases {
    let mut cases = Cases::new("fake_quantize");
    for (lowest, highest, has_zeros) in [(-2, 1, false), (-8, 7, false), (-127, 127, false), (0, 15, true)] {
        for (shape, sharing) in shapes() {
            let steps = Steps { lowest, highest, sharing, has_zeros };
            let label = format!("{} {shape:?}", steps.settings());
            let mut given = inputs(&mut cases, shape, steps);
            // Rounding is no function that differences could follow: the unit tests and PyTorch's numbers check gradients.
            cases.add(label.clone(), FakeQuantize { steps }, given.clone()).no_gradient();
            given.push(cases.statistic(shape));
            cases.add(label.clone(), FakeQuantizeGradient { steps }, given.clone()).no_gradient();
            let length = shape.iter().product();
            // A code less its quotient is at most a half, while both are as large as the codes.
            cases.add(label, StepGradient { steps }, given).no_gradient().sums(length).slack(16.0);
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_do_not_rise_and_scales_that_do_not_fit_are_refused() {
        let of = |lowest, highest, scales: usize| {
            let steps = Steps::symmetric(lowest, highest, Sharing::Columns);
            FakeQuantize { steps }.signature(&[Type::f32([3, 4]), Type::f32([scales])])
        };
        assert!(of(-4, 3, 4).is_ok());
        assert!(of(3, 3, 4).is_err() && of(-4, 0, 4).is_err() && of(-4, 3, 3).is_err());
        let half = Type::new(DType::F16, [3, 4]);
        let steps = Steps::symmetric(-4, 3, Sharing::Tensor);
        assert!(FakeQuantize { steps }.signature(&[half, Type::f32([1])]).is_err());
    }
}
