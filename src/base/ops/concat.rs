//! Values one after the other along an axis.

use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::reduce::split;
use super::slice::{SliceEmit, pack, wide};
use super::{Cases, Emit, Error, Operator, Result, Site, Value, expect_nameable, in_type};
use crate::tensor::{Data, Tensor, Type};
use std::fmt::Write;
use std::sync::Arc;

/// Inputs one launch takes: with the output they fill the storage buffers every adapter grants.
const PER_LAUNCH: usize = 7;

/// Joins its inputs along one axis; their other sizes agree.
#[derive(Clone, Debug)]
pub struct Concat {
    /// The axis.
    pub axis: usize,
}

impl Operator for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn settings(&self) -> String {
        format!("axis={}", self.axis)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = "concat";
        let Some(first) = inputs.first() else {
            return Err(Error::InputCount { op, expected: 1, got: 0 });
        };
        expect_nameable(op, "x", first)?;
        if self.axis >= first.shape.len() {
            let expected = format!("one with an axis {}", self.axis);
            return Err(Error::Shape { op, input: "x", expected, got: first.shape.clone() });
        }
        let mut sizes = first.shape.to_vec();
        sizes[self.axis] = 0;
        for x in inputs {
            if x.dtype != first.dtype {
                return Err(Error::Element { op, input: "x", expected: first.dtype.name(), got: x.dtype });
            }
            let others = |shape: &[usize]| [&shape[..self.axis], &shape[self.axis + 1..]].concat();
            if x.shape.len() != first.shape.len() || others(&x.shape) != others(&first.shape) {
                let expected = format!("{} but for axis {}", first.shape, self.axis);
                return Err(Error::Shape { op, input: "x", expected, got: x.shape.clone() });
            }
            sizes[self.axis] += x.shape[self.axis];
        }
        Ok(vec![first.with_shape(sizes)])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let [_, length, inner] = split(&outputs[0].shape, self.axis);
        let mut offset = 0;
        for input in inputs {
            let width = input.shape[self.axis] * inner;
            in_type!(input, outputs[0], |x, y| {
                let rows = y.chunks_mut((length * inner).max(1));
                for (y, x) in rows.zip(x.chunks(width.max(1))) {
                    y[offset..][..width].copy_from_slice(x);
                }
            });
            offset += width;
        }
    }

    /// Each input's gradient is its range of up.
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(up) = up[0] else { return Ok(vec![None; site.inputs.len()]) };
        let mut gradients = vec![None; site.inputs.len()];
        let mut start = 0;
        for (i, gradient) in gradients.iter_mut().enumerate() {
            let end = start + emit.type_of(site.input(i)).shape[self.axis];
            if site.needs(i) {
                *gradient = Some(emit.slice(up, self.axis, start, end)?);
            }
            start = end;
        }
        Ok(gradients)
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let [outer, length, inner] = split(&outputs[0].shape, self.axis);
        let widths: Vec<usize> = inputs.iter().map(|x| x.shape[self.axis] * inner).collect();
        let width = wide(&widths);
        let kernel = Kernel::new("concat").retype("Elem", outputs[0].dtype);
        let mut launches = vec![];
        let mut offset = 0;
        for (number, strips) in widths.chunks(PER_LAUNCH).enumerate() {
            let total = strips.iter().sum::<usize>();
            let first = number * PER_LAUNCH;
            let mut bindings: Vec<Bind> = (first..first + strips.len()).map(Bind::Input).collect();
            bindings.push(Bind::Output(0));
            let kernel = kernel
                .clone()
                .paste("DECLARATIONS", declarations(strips.len(), width))
                .paste("BODY", body(strips.len()));
            let count = outer * total / width;
            let mut launch = Launch::new(kernel, bindings, spread(count))
                .param("count", count)
                .param("total", total / width)
                .param("row", length * inner / width)
                .param("offset", offset / width);
            for (i, strip) in strips.iter().enumerate() {
                launch = launch.param(format!("width{i}"), strip / width);
            }
            launches.push(launch);
            offset += total;
        }
        let name = if width == 4 { "concat_wide" } else { "concat" };
        vec![Variant { name: name.to_string(), launches, scratch: vec![] }]
    }
}

fn declarations(inputs: usize, width: usize) -> String {
    let mut text =
        format!("{}\nstruct Params {{\n    count: u32, total: u32, row: u32, offset: u32,\n", pack(width));
    for i in 0..inputs {
        let _ = writeln!(text, "    width{i}: u32,");
    }
    text.push_str("}\n");
    for i in 0..inputs {
        let _ = writeln!(text, "@group(0) @binding({i}) var<storage, read> in{i}: array<Pack>;");
    }
    let _ = writeln!(text, "@group(0) @binding({inputs}) var<storage, read_write> y: array<Pack>;");
    text
}

/// Finds the strip that holds position `at` of the row and copies from it.
fn body(inputs: usize) -> String {
    let mut text = String::new();
    for i in 0..inputs {
        let _ = writeln!(text, "        if at < params.width{i} {{");
        let _ = writeln!(text, "            y[to] = in{i}[outer * params.width{i} + at];");
        let _ = writeln!(text, "            continue;\n        }}\n        at -= params.width{i};");
    }
    text
}

/// Builder of [`Concat`].
pub trait ConcatEmit {
    /// Joins values along an axis; a single one is returned as it is.
    fn concat(&mut self, inputs: &[Value], axis: usize) -> Result<Value>;
}

impl<E: Emit + ?Sized> ConcatEmit for E {
    fn concat(&mut self, inputs: &[Value], axis: usize) -> Result<Value> {
        match inputs {
            [one] => Ok(*one),
            _ => self.apply_one(Arc::new(Concat { axis }), inputs),
        }
    }
}

/// One, two, three and more inputs than a launch takes; first, middle and last axis; fours; whole numbers.
pub fn cases() -> Cases {
    let mut cases = Cases::new("concat");
    for (shapes, axis) in [
        (&[&[1][..]][..], 0),
        (&[&[3, 5], &[3, 2]], 1),
        (&[&[3, 5], &[2, 5], &[1, 5]], 0),
        (&[&[2, 3, 4], &[2, 1, 4]], 1),
        (&[&[7, 8], &[7, 12]], 1),
        (&[&[129, 1], &[129, 1], &[129, 3]], 1),
    ] {
        let inputs = shapes.iter().map(|&shape| cases.normal(shape)).collect();
        cases.add(format!("concat{shapes:?} axis {axis}"), Concat { axis }, inputs);
    }
    let inputs = (1..=9).map(|n| cases.normal([3, n])).collect();
    cases.add("concat of nine", Concat { axis: 1 }, inputs);
    let inputs = vec![cases.indices([2, 3], 99), cases.indices([2, 4], 99)];
    cases.add("concat of whole numbers", Concat { axis: 1 }, inputs).no_gradient();
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_all_inputs_follow_each_other() {
        let a = Tensor::f32([2, 1], vec![1.0, 2.0]);
        let b = Tensor::f32([2, 2], vec![3.0, 4.0, 5.0, 6.0]);
        let mut y = [Tensor::zeros(&Type::f32([2, 3]))];
        Concat { axis: 1 }.reference(&[&a, &b], &mut y);
        assert_eq!(y[0].real::<f32>(), [1.0, 3.0, 4.0, 2.0, 5.0, 6.0]);
    }

    #[test]
    fn other_axes_must_agree() {
        let op = Concat { axis: 1 };
        assert!(op.signature(&[Type::f32([2, 1]), Type::f32([3, 1])]).is_err());
        assert!(op.signature(&[]).is_err());
        assert_eq!(op.signature(&[Type::f32([2, 1]), Type::f32([2, 4])]), Ok(vec![Type::f32([2, 5])]));
    }
}
