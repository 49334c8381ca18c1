//! Everything computed element by element: single functions and fused chains of them, with broadcasting.
//!
//! A [`Pointwise`] is a small program: each step applies one row of the table to inputs or earlier results, in f32
//! whatever the storage. A single function is a program of one step; the fuse pass joins programs.

mod fast;
mod lower;
mod table;

pub(crate) use lower::ending;
pub use table::{FUNCTIONS, Function, function};

use super::reduce::ReduceEmit;
use super::ties::{self, Tie};
use super::{Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_float, in_precision};
use crate::ops::launch::{Caps, Variant};
use crate::tensor::{Real, Shape, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// Elements the host computes at a time: few enough to stay in the first cache.
const BLOCK: usize = 1024;

/// Where a step finds an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arg {
    /// Input of the operator.
    Input(usize),
    /// Result of an earlier step.
    Step(usize),
}

/// One function application.
#[derive(Clone, Debug)]
pub struct Step {
    /// The row.
    pub function: &'static Function,
    /// Its arguments.
    pub args: Vec<Arg>,
    /// Its constant, zero if it takes none.
    pub constant: f32,
}

/// A program over elements; all outputs have the shape that all inputs broadcast to.
#[derive(Clone, Debug)]
pub struct Pointwise {
    /// Number of inputs.
    pub inputs: usize,
    /// Steps in order.
    pub steps: Vec<Step>,
    /// Steps whose results are outputs.
    pub outputs: Vec<usize>,
}

impl Pointwise {
    /// A single function of the table.
    pub fn single(name: &str, constant: f32) -> Self {
        let function = function(name);
        let args = (0..function.arity).map(Arg::Input).collect();
        let steps = vec![Step { function, args, constant }];
        Pointwise { inputs: function.arity, steps, outputs: vec![0] }
    }

    fn compute<R: Real>(&self, inputs: &[&Tensor], outputs: &mut [Tensor], row: Row<R>) {
        let shape = outputs[0].shape.clone();
        let strides: Vec<_> = inputs.iter().map(|t| t.shape.broadcast_strides(&shape)).collect();
        let mut parts: Vec<_> = outputs.iter_mut().map(|t| t.real_mut::<R>().chunks_mut(BLOCK)).collect();
        let mut work = vec![];
        while let Some(first) = parts[0].next() {
            let rest = parts[1..].iter_mut().map(|p| p.next().expect("outputs have one length"));
            work.push(std::iter::once(first).chain(rest).collect::<Vec<_>>());
        }
        let full: Vec<bool> = inputs.iter().map(|t| t.shape.count() == shape.count()).collect();
        work.into_par_iter().enumerate().for_each(|(block, mut out)| {
            let start = block * BLOCK;
            let count = out[0].len();
            let gathered: Vec<Vec<R>> = (0..inputs.len())
                .map(|i| {
                    if full[i] { vec![] } else { gather(inputs[i].real(), &shape, &strides[i], start, count) }
                })
                .collect();
            let mut results: Vec<Vec<R>> = Vec::with_capacity(self.steps.len());
            for step in &self.steps {
                let mut y = vec![R::default(); count];
                let args: Vec<&[R]> = step
                    .args
                    .iter()
                    .map(|&arg| match arg {
                        Arg::Input(i) if full[i] => &inputs[i].real::<R>()[start..start + count],
                        Arg::Input(i) => gathered[i].as_slice(),
                        Arg::Step(s) => results[s].as_slice(),
                    })
                    .collect();
                row(step.function, &args, step.constant, &mut y);
                results.push(y);
            }
            for (out, &step) in out.iter_mut().zip(&self.outputs) {
                out.copy_from_slice(&results[step]);
            }
        });
    }
}

type Row<R> = fn(&Function, &[&[R]], f32, &mut [R]);

/// `count` elements from flat position `start` of `shape`, read with broadcast strides.
fn gather<R: Real>(x: &[R], shape: &Shape, strides: &[usize], start: usize, count: usize) -> Vec<R> {
    let mut at = vec![0; shape.len()];
    let mut rest = start;
    for axis in (0..shape.len()).rev() {
        at[axis] = rest % shape[axis];
        rest /= shape[axis];
    }
    let mut offset: usize = at.iter().zip(strides).map(|(a, s)| a * s).sum();
    let mut y = Vec::with_capacity(count);
    for _ in 0..count {
        y.push(x[offset]);
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            offset += strides[axis];
            if at[axis] < shape[axis] {
                break;
            }
            offset -= strides[axis] * shape[axis];
            at[axis] = 0;
        }
    }
    y
}

impl Operator for Pointwise {
    fn name(&self) -> &'static str {
        if self.steps.len() == 1 { self.steps[0].function.name } else { "pointwise" }
    }

    fn settings(&self) -> String {
        if let [step] = &self.steps[..] {
            return if step.function.has_constant { format!("k={}", step.constant) } else { String::new() };
        }
        let arg = |a: &Arg| match a {
            Arg::Input(i) => format!("x{i}"),
            Arg::Step(s) => format!("t{s}"),
        };
        let text = |step: &Step| {
            let mut args: Vec<_> = step.args.iter().map(arg).collect();
            if step.function.has_constant {
                args.push(step.constant.to_string());
            }
            format!("{}({})", step.function.name, args.join(","))
        };
        let steps: Vec<_> = self.steps.iter().enumerate().map(|(i, s)| format!("t{i}={}", text(s))).collect();
        let outputs: Vec<_> = self.outputs.iter().map(|s| format!("t{s}")).collect();
        format!("{};{}", steps.join(";"), outputs.join(","))
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        if inputs.len() != self.inputs {
            return Err(Error::InputCount { op, expected: self.inputs, got: inputs.len() });
        }
        let mut shape = Shape::default();
        for x in inputs {
            expect_float(op, "x", x)?;
            if x.dtype != inputs[0].dtype {
                return Err(Error::Element {
                    op,
                    input: "x",
                    expected: inputs[0].dtype.name(),
                    got: x.dtype,
                });
            }
            shape = shape.broadcast(&x.shape)?;
        }
        Ok(vec![inputs[0].with_shape(shape); self.outputs.len()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, outputs, R::row()));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        fast::compute(self, inputs, outputs);
    }

    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let [step] = &self.steps[..] else {
            return self.gradient_of_steps(emit, site, up);
        };
        let Some(up) = up[0] else { return Ok(vec![None; self.inputs]) };
        let Some(derivative) = step.function.derivative else {
            let hint = "the second derivative of this function is not in the table";
            return Err(Error::NoGradient { op: step.function.name, hint });
        };
        let slope = table::Slope { x: site.inputs, y: site.output(0), up, k: step.constant };
        let mut gradients = vec![None; self.inputs];
        for (i, gradient) in gradients.iter_mut().enumerate() {
            if site.needs(i)
                && let Some(full) = derivative(emit, &slope, i)?
            {
                let shape = emit.type_of(site.input(i)).shape;
                *gradient = Some(emit.sum_to(full, &shape)?);
            }
        }
        Ok(gradients)
    }

    fn expand(&self, emit: &mut dyn Emit, inputs: &[Value]) -> Option<Result<Vec<Value>>> {
        (self.steps.len() > 1).then(|| {
            let results = self.emit_steps(emit, inputs)?;
            Ok(self.outputs.iter().map(|&s| results[s]).collect())
        })
    }

    fn ties(&self, inputs: &[Type], outputs: &[Type]) -> Vec<Tie> {
        ties::of_broadcast(inputs, &outputs[0].shape)
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        lower::variants(self, inputs, outputs, caps)
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: (outputs[0].shape.count() * self.steps.len()) as f64, bytes }
    }

    fn pointwise(&self) -> Option<&Pointwise> {
        Some(self)
    }
}

impl Pointwise {
    /// The steps written out as single functions.
    fn emit_steps(&self, emit: &mut dyn Emit, inputs: &[Value]) -> Result<Vec<Value>> {
        let mut results = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let args: Vec<Value> = step.args.iter().map(|&a| resolve(a, inputs, &results)).collect();
            results.push(emit.pointwise(step.function.name, &args, step.constant)?);
        }
        Ok(results)
    }

    /// Reverse sweep over the steps of a fused program; forward values are written out again and left to `tidy`.
    fn gradient_of_steps(
        &self,
        emit: &mut dyn Emit,
        site: &Site,
        up: &[Option<Value>],
    ) -> Result<Vec<Option<Value>>> {
        let results = self.emit_steps(emit, site.inputs)?;
        let mut of_steps: Vec<Option<Value>> = vec![None; self.steps.len()];
        let mut of_inputs: Vec<Option<Value>> = vec![None; self.inputs];
        for (&step, &up) in self.outputs.iter().zip(up) {
            of_steps[step] = sum_of(emit, of_steps[step], up)?;
        }
        for (number, step) in self.steps.iter().enumerate().rev() {
            let Some(up) = of_steps[number] else { continue };
            let inputs: Vec<Value> = step.args.iter().map(|&a| resolve(a, site.inputs, &results)).collect();
            let needed = vec![true; inputs.len()];
            let inner = Site { inputs: &inputs, outputs: &[results[number]], needed: &needed };
            let single = Pointwise::single(step.function.name, step.constant);
            let gradients = single.gradient(emit, &inner, &[Some(up)])?;
            for (&arg, gradient) in step.args.iter().zip(gradients) {
                let total = match arg {
                    Arg::Input(i) => &mut of_inputs[i],
                    Arg::Step(s) => &mut of_steps[s],
                };
                *total = sum_of(emit, *total, gradient)?;
            }
        }
        Ok(of_inputs)
    }
}

fn resolve(arg: Arg, inputs: &[Value], results: &[Value]) -> Value {
    match arg {
        Arg::Input(i) => inputs[i],
        Arg::Step(s) => results[s],
    }
}

fn sum_of(emit: &mut dyn Emit, a: Option<Value>, b: Option<Value>) -> Result<Option<Value>> {
    match (a, b) {
        (Some(a), Some(b)) => Ok(Some(emit.add(a, b)?)),
        (one, other) => Ok(one.or(other)),
    }
}

/// Which of a row's two host functions a precision uses.
trait HostRow: Real {
    fn row() -> Row<Self>;
}
impl HostRow for f32 {
    fn row() -> Row<f32> {
        |function, args, k, y| (function.single)(args, k, y)
    }
}
impl HostRow for f64 {
    fn row() -> Row<f64> {
        |function, args, k, y| (function.double)(args, k, y)
    }
}

/// Builders of pointwise operators.
pub trait PointwiseEmit {
    /// Applies a row of the table; `constant` is ignored by rows without one.
    fn pointwise(&mut self, name: &str, args: &[Value], constant: f32) -> Result<Value>;

    /// `a + b`, broadcast.
    fn add(&mut self, a: Value, b: Value) -> Result<Value> {
        self.pointwise("add", &[a, b], 0.0)
    }
    /// `a - b`, broadcast.
    fn sub(&mut self, a: Value, b: Value) -> Result<Value> {
        self.pointwise("sub", &[a, b], 0.0)
    }
    /// `a * b`, broadcast.
    fn mul(&mut self, a: Value, b: Value) -> Result<Value> {
        self.pointwise("mul", &[a, b], 0.0)
    }
    /// `a / b`, broadcast.
    fn div(&mut self, a: Value, b: Value) -> Result<Value> {
        self.pointwise("div", &[a, b], 0.0)
    }
    /// `a * k`.
    fn scale(&mut self, a: Value, k: f32) -> Result<Value> {
        self.pointwise("scale", &[a], k)
    }
    /// `a + k`.
    fn shift(&mut self, a: Value, k: f32) -> Result<Value> {
        self.pointwise("shift", &[a], k)
    }
}

impl<E: Emit + ?Sized> PointwiseEmit for E {
    fn pointwise(&mut self, name: &str, args: &[Value], constant: f32) -> Result<Value> {
        self.apply_one(Arc::new(Pointwise::single(name, constant)), args)
    }
}

/// Every row on odd shapes, then broadcasting and fused programs.
pub fn cases() -> Cases {
    let mut cases = Cases::new("pointwise");
    for function in FUNCTIONS {
        let positive = matches!(function.name, "log" | "sqrt" | "div");
        // Away from zero: relu, sign and others have a kink or a jump there.
        let draw = |c: &mut Cases, shape: &[usize]| {
            if positive { c.uniform(shape, 0.3, 2.0) } else { c.normal(shape) }
        };
        for shape in [&[1][..], &[7, 13], &[1031], &[4, 64]] {
            let inputs = (0..function.arity).map(|_| draw(&mut cases, shape)).collect();
            let op = Pointwise::single(function.name, if function.has_constant { 0.3 } else { 0.0 });
            let case = cases.add(format!("{}{shape:?}", function.name), op, inputs);
            case.differentiable =
                function.derivative.is_some() && !matches!(function.name, "sign" | "greater" | "held");
        }
    }
    for (left, right) in [
        (&[3, 5][..], &[5][..]),
        (&[2, 3, 8], &[3, 1]),
        (&[4, 8], &[]),
        (&[2, 1, 3, 1, 5], &[1, 4, 1, 2, 1]),
        (&[7, 12], &[7, 1]),
    ] {
        let inputs = vec![cases.normal(left), cases.normal(right)];
        cases.add(format!("mul{left:?}x{right:?}"), Pointwise::single("mul", 0.0), inputs);
    }
    let fused = Pointwise {
        inputs: 3,
        steps: vec![
            Step { function: function("add"), args: vec![Arg::Input(0), Arg::Input(1)], constant: 0.0 },
            Step { function: function("gelu"), args: vec![Arg::Step(0)], constant: 0.0 },
            Step { function: function("mul"), args: vec![Arg::Step(1), Arg::Input(2)], constant: 0.0 },
        ],
        outputs: vec![0, 2],
    };
    for bias in [&[12][..], &[5, 1], &[]] {
        let inputs = vec![cases.normal([5, 12]), cases.normal(bias), cases.normal([5, 12])];
        cases.add(format!("add, gelu, mul fused, bias{bias:?}"), fused.clone(), inputs);
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gather_reads_broadcast_axes_again() {
        let shape = Shape::from([2, 3, 2]);
        let strides = Shape::from([3, 1]).broadcast_strides(&shape);
        let y = gather(&[10.0f32, 20.0, 30.0], &shape, &strides, 1, 8);
        assert_eq!(y, [10.0, 20.0, 20.0, 30.0, 30.0, 10.0, 10.0, 20.0]);
    }

    #[test]
    fn function_names_are_unique() {
        for (i, f) in FUNCTIONS.iter().enumerate() {
            assert!(FUNCTIONS[..i].iter().all(|g| g.name != f.name), "{} is there twice", f.name);
        }
    }
}
