//! What flows back through a fake quantisation: to the elements, and to scales that are learned.

use super::lines::Lines;
use super::{Exact, Steps, each, expect_single, fast};
use crate::ops::launch::{Bind, Caps, Variant, spread};
use crate::ops::{Emit, Error, Operator, Result, Site, Value, expect_shape, in_precision};
use crate::tensor::{Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;

/// dx = up where the code is inside the range, else zero. Inputs: x, s, perhaps z, and up as x.
#[derive(Clone, Copy, Debug)]
pub struct FakeQuantizeGradient {
    /// The codes.
    pub steps: Steps,
}

/// ds of each line. Inputs: x, s, perhaps z, and up as x; output: ds `[lines]`.
#[derive(Clone, Copy, Debug)]
pub struct StepGradient {
    /// The codes.
    pub steps: Steps,
}

fn check(steps: &Steps, op: &'static str, inputs: &[Type]) -> Result<()> {
    steps.check(op, inputs, 1)?;
    let up = &inputs[steps.next()];
    expect_single(op, "up", up)?;
    expect_shape(op, "up", up, &inputs[0].shape)
}

impl Operator for FakeQuantizeGradient {
    fn name(&self) -> &'static str {
        "fake_quantize_gradient"
    }

    fn settings(&self) -> String {
        self.steps.settings()
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        check(&self.steps, self.name(), inputs)?;
        Ok(vec![inputs[0].clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, {
            let zeros = self.steps.has_zeros.then(|| inputs[2].real::<R>());
            let lines = Lines::of(&inputs[0].shape, self.steps.sharing);
            let (x, s) = (inputs[0].real::<R>(), inputs[1].real::<R>());
            let up = inputs[self.steps.next()].real::<R>();
            let y = outputs[0].real_mut::<R>();
            let bounds = self.steps.bounds();
            each(lines, x, s, zeros, y, |y, exact, i| {
                *y = if exact.is_inside(bounds) { up[i] } else { R::default() }
            });
        });
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let zeros = self.steps.has_zeros.then(|| inputs[2].floats());
        let lines = Lines::of(inputs[0].shape, self.steps.sharing);
        let (x, s, y) = (inputs[0].floats(), inputs[1].floats(), outputs[0].floats());
        let (up, bounds) = (inputs[self.steps.next()].floats(), self.steps.bounds());
        match zeros {
            None => fast::gradients(lines, [x, s, up], y, bounds),
            zeros => each(lines, x, s, zeros, y, |y, exact, i| {
                *y = if exact.is_inside(bounds) { up[i] } else { 0.0 }
            }),
        }
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: self.name(), hint: "second derivatives are not supported" })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let count = inputs[0].shape.count();
        let lines = Lines::of(&inputs[0].shape, self.steps.sharing);
        let rest = [Bind::Output(0), Bind::Input(self.steps.next())];
        let (kernel, bindings) = self.steps.kernel("fake_quantize_gradient", &rest);
        let launch = lines.launch(kernel, bindings, spread(count)).param("count", count);
        let launch = launch.param("lowest", self.steps.lowest as f32);
        vec![Variant::single(self.name(), launch.param("highest", self.steps.highest as f32))]
    }
}

impl StepGradient {
    /// g = 1 / sqrt(elements of a line * highest code); a group that is shorter counts as a whole one.
    fn factor(&self, lines: Lines) -> f64 {
        1.0 / (lines.elements(0).count() as f64 * f64::from(self.steps.highest)).sqrt()
    }

    fn sums<R: Real>(&self, lines: Lines, [x, s, up]: [&[R]; 3], zeros: Option<&[R]>, ds: &mut [R]) {
        let (bounds, factor) = (self.steps.bounds(), R::of(self.factor(lines)));
        ds.par_iter_mut().enumerate().for_each(|(line, ds)| {
            let zero = zeros.map_or(R::default(), |z| z[line]);
            let term = |i: usize| {
                let exact = Exact::of(x[i], s[line], zero);
                let code = exact.code(bounds);
                up[i] * if exact.is_inside(bounds) { code - exact.quotient } else { code }
            };
            *ds = factor * lines.elements(line).map(term).sum();
        });
    }
}

impl Operator for StepGradient {
    fn name(&self) -> &'static str {
        "step_gradient"
    }

    fn settings(&self) -> String {
        self.steps.settings()
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        check(&self.steps, self.name(), inputs)?;
        Ok(vec![inputs[1].clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, {
            let lines = Lines::of(&inputs[0].shape, self.steps.sharing);
            let zeros = self.steps.has_zeros.then(|| inputs[2].real::<R>());
            let read = [0, 1, self.steps.next()].map(|i| inputs[i].real::<R>());
            self.sums(lines, read, zeros, outputs[0].real_mut());
        });
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let lines = Lines::of(inputs[0].shape, self.steps.sharing);
        let zeros = self.steps.has_zeros.then(|| inputs[2].floats());
        let (read, ds) = ([0, 1, self.steps.next()].map(|i| inputs[i].floats()), outputs[0].floats());
        if zeros.is_some() || lines.inner == 1 {
            return self.sums(lines, read, zeros, ds);
        }
        fast::column_sums(lines, read, ds, self.steps.bounds());
        let factor = self.factor(lines) as f32;
        ds.iter_mut().for_each(|ds| *ds *= factor);
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: self.name(), hint: "second derivatives are not supported" })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let lines = Lines::of(&inputs[0].shape, self.steps.sharing);
        let rest = [Bind::Output(0), Bind::Input(self.steps.next())];
        let (kernel, bindings) = self.steps.kernel("step_gradient", &rest);
        let factor = self.factor(lines) as f32;
        lines.variants(self.name(), kernel, &bindings, caps, |launch| {
            let launch = launch.param("lowest", self.steps.lowest as f32);
            launch.param("highest", self.steps.highest as f32).param("factor", factor)
        })
    }
}
