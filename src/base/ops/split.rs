//! A value cut into pieces along an axis, all in one go: the counterpart of concat.

use super::cast::CastEmit;
use super::concat::ConcatEmit;
use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::slice::{pack, wide};
use super::ties::{Digit, Port, Tie, same};
use super::{Cases, Emit, Error, Operator, Result, Site, Value, expect_inputs, expect_nameable, in_type};
use crate::tensor::{Data, Tensor, Type, View, ViewMut};
use std::fmt::Write;
use std::sync::Arc;

/// Outputs one launch makes: with the input they fill the storage buffers every adapter grants.
const PER_LAUNCH: usize = 7;

/// Cuts one axis into pieces of the given sizes, which together are the axis.
///
/// Why not slices: the gradient of several slices of one value is a sum of values that are mostly zero; that of a split is a
/// single concat.
#[derive(Clone, Debug)]
pub struct Split {
    /// The axis.
    pub axis: usize,
    /// Sizes of the pieces.
    pub sizes: Vec<usize>,
}

impl Split {
    fn widths(&self, x: &[usize]) -> Vec<usize> {
        let inner: usize = x[self.axis + 1..].iter().product();
        self.sizes.iter().map(|size| size * inner).collect()
    }
}

impl Operator for Split {
    fn name(&self) -> &'static str {
        "split"
    }

    fn settings(&self) -> String {
        format!("axis={} sizes={:?}", self.axis, self.sizes)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x] = expect_inputs("split", inputs)?;
        expect_nameable("split", "x", x)?;
        let total: usize = self.sizes.iter().sum();
        if x.shape.get(self.axis) != Some(&total) || self.sizes.contains(&0) {
            let expected = format!("axis {} to be made of {:?}", self.axis, self.sizes);
            return Err(Error::Shape { op: "split", input: "x", expected, got: x.shape.clone() });
        }
        let piece = |&size: &usize| {
            let mut shape = x.shape.to_vec();
            shape[self.axis] = size;
            x.with_shape(shape)
        };
        Ok(self.sizes.iter().map(piece).collect())
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let widths = self.widths(&inputs[0].shape);
        let row: usize = widths.iter().sum();
        let mut offset = 0;
        for (output, width) in outputs.iter_mut().zip(widths) {
            in_type!(inputs[0], output, |x, y| {
                for (y, x) in y.chunks_mut(width.max(1)).zip(x.chunks(row.max(1))) {
                    y.copy_from_slice(&x[offset..][..width]);
                }
            });
            offset += width;
        }
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let x = inputs[0].bytes();
        let size = x.len() / inputs[0].shape.count().max(1);
        let widths = self.widths(inputs[0].shape);
        let row = size * widths.iter().sum::<usize>();
        let mut offset = 0;
        for (output, width) in outputs.iter_mut().zip(widths) {
            let width = size * width;
            for (y, x) in output.bytes().chunks_mut(width.max(1)).zip(x.chunks(row.max(1))) {
                y.copy_from_slice(&x[offset..][..width]);
            }
            offset += width;
        }
    }

    /// dx = the pieces' gradients joined, zeros for a piece that nothing reads
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        if up.iter().all(Option::is_none) {
            return Ok(vec![None]);
        }
        let mut pieces = vec![];
        for (&up, &output) in up.iter().zip(site.outputs) {
            let kind = emit.type_of(output);
            pieces.push(match up {
                Some(up) => up,
                None => {
                    let zeros = emit.constant(Tensor::zeros(&kind));
                    emit.cast(zeros, kind.dtype)?
                }
            });
        }
        Ok(vec![Some(emit.concat(&pieces, self.axis)?)])
    }

    fn ties(&self, inputs: &[Type], _outputs: &[Type]) -> Vec<Tie> {
        let (x, mut start, mut ties) = (&inputs[0].shape, 0, vec![]);
        for (number, &size) in self.sizes.iter().enumerate() {
            let piece = Port::Output(number);
            for axis in (0..x.len()).filter(|&axis| axis != self.axis) {
                ties.push(same((Port::Input(0), axis), (piece, axis), x[axis]));
            }
            let part = Digit::range(Port::Input(0), self.axis, start, size);
            ties.push(Tie::Same(part, Digit::axis(piece, self.axis, size)));
            start += size;
        }
        ties
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let x = &inputs[0];
        let outer: usize = x.shape[..self.axis].iter().product();
        let widths = self.widths(&x.shape);
        let width = wide(&widths);
        let row: usize = widths.iter().sum();
        let mut launches = vec![];
        let mut offset = 0;
        for (number, strips) in widths.chunks(PER_LAUNCH).enumerate() {
            let total = strips.iter().sum::<usize>();
            let first = number * PER_LAUNCH;
            let mut bindings = vec![Bind::Input(0)];
            bindings.extend((first..first + strips.len()).map(Bind::Output));
            let kernel = Kernel::new("split")
                .retype("Elem", x.dtype)
                .paste("DECLARATIONS", declarations(strips.len(), width))
                .paste("BODY", body(strips.len()));
            let count = outer * total / width;
            let mut launch = Launch::new(kernel, bindings, spread(count))
                .param("count", count)
                .param("total", total / width)
                .param("row", row / width)
                .param("offset", offset / width);
            for (i, strip) in strips.iter().enumerate() {
                launch = launch.param(format!("width{i}"), strip / width);
            }
            launches.push(launch);
            offset += total;
        }
        let name = if width == 4 { "split_wide" } else { "split" };
        vec![Variant { name: name.to_string(), launches, scratch: vec![] }]
    }
}

fn declarations(outputs: usize, width: usize) -> String {
    let mut text =
        format!("{}\nstruct Params {{\n    count: u32, total: u32, row: u32, offset: u32,\n", pack(width));
    for i in 0..outputs {
        let _ = writeln!(text, "    width{i}: u32,");
    }
    text.push_str("}\n@group(0) @binding(0) var<storage, read> x: array<Pack>;\n");
    for i in 0..outputs {
        let number = i + 1;
        let _ = writeln!(text, "@group(0) @binding({number}) var<storage, read_write> out{i}: array<Pack>;");
    }
    text
}

/// Finds the piece that position `at` of the row belongs to and copies to it.
fn body(outputs: usize) -> String {
    let mut text = String::new();
    for i in 0..outputs {
        let _ = writeln!(text, "        if at < params.width{i} {{");
        let _ = writeln!(text, "            out{i}[outer * params.width{i} + at] = value;");
        let _ = writeln!(text, "            continue;\n        }}\n        at -= params.width{i};");
    }
    text
}

/// Builder of [`Split`].
pub trait SplitEmit {
    /// Pieces of the given sizes along an axis.
    fn split(&mut self, x: Value, axis: usize, sizes: &[usize]) -> Result<Vec<Value>>;
}

impl<E: Emit + ?Sized> SplitEmit for E {
    fn split(&mut self, x: Value, axis: usize, sizes: &[usize]) -> Result<Vec<Value>> {
        self.apply(Arc::new(Split { axis, sizes: sizes.to_vec() }), &[x])
    }
}

/// One piece, equal thirds, unequal pieces on each axis, more than a launch makes, whole numbers.
pub fn cases() -> Cases {
    let mut cases = Cases::new("split");
    for (shape, axis, sizes) in [
        (&[1][..], 0, &[1][..]),
        (&[5, 24], 1, &[8, 8, 8]),
        (&[7, 13], 1, &[1, 5, 7]),
        (&[7, 13], 0, &[4, 3]),
        (&[2, 5, 4], 1, &[2, 3]),
        (&[3, 45], 1, &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (&[131, 12], 1, &[8, 4]),
    ] {
        let x = cases.normal(shape);
        let op = Split { axis, sizes: sizes.to_vec() };
        cases.add(format!("split{shape:?} axis {axis} {sizes:?}"), op, vec![x]);
    }
    let tokens = cases.indices([3, 9], 99);
    let op = Split { axis: 1, sizes: vec![4, 5] };
    cases.add("split of whole numbers", op, vec![tokens]).no_gradient();
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_the_pieces_gives_the_value_again() {
        let x = Tensor::f32([2, 3], (0..6).map(|i| i as f32).collect());
        let mut y = [Tensor::zeros(&Type::f32([2, 2])), Tensor::zeros(&Type::f32([2, 1]))];
        Split { axis: 1, sizes: vec![2, 1] }.reference(&[&x], &mut y);
        assert_eq!(y[0].real::<f32>(), [0.0, 1.0, 3.0, 4.0]);
        let mut back = [Tensor::zeros(&Type::f32([2, 3]))];
        crate::ops::concat::Concat { axis: 1 }.reference(&[&y[0], &y[1]], &mut back);
        assert_eq!(back[0], x);
    }

    #[test]
    fn pieces_must_make_up_the_axis() {
        let x = Type::f32([2, 3]);
        for (axis, sizes) in [(1, vec![1, 1]), (1, vec![3, 0]), (2, vec![3]), (0, vec![3])] {
            assert!(Split { axis, sizes }.signature(std::slice::from_ref(&x)).is_err());
        }
    }
}
