//! A range of one axis, and its gradient: the range put back among zeros.
//!
//! y[o, j, i] = x[o, start + j, i] for j in 0..end - start

use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::reduce::split;
use super::ties::{Digit, Port, Tie, same};
use super::{Cases, Emit, Error, Operator, Result, Site, Value, expect_inputs, expect_nameable, in_type};
use crate::tensor::{Data, Tensor, Type};
use rayon::prelude::*;
use std::sync::Arc;

/// Keeps `start..end` of one axis.
#[derive(Clone, Debug)]
pub struct Slice {
    /// The axis.
    pub axis: usize,
    /// First position kept.
    pub start: usize,
    /// First position no longer kept.
    pub end: usize,
}

/// Places its input at `start` of an axis of `length` positions that is zero elsewhere.
#[derive(Clone, Debug)]
pub struct SliceGradient {
    /// The axis.
    pub axis: usize,
    /// Where the input begins.
    pub start: usize,
    /// Size of the axis.
    pub length: usize,
}

impl Operator for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn settings(&self) -> String {
        format!("axis={} range={}..{}", self.axis, self.start, self.end)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x] = expect_inputs("slice", inputs)?;
        expect_nameable("slice", "x", x)?;
        if self.axis >= x.shape.len() || self.start >= self.end || self.end > x.shape[self.axis] {
            let expected = format!("an axis {} that contains {}..{}", self.axis, self.start, self.end);
            return Err(Error::Shape { op: "slice", input: "x", expected, got: x.shape.clone() });
        }
        let mut sizes = x.shape.to_vec();
        sizes[self.axis] = self.end - self.start;
        Ok(vec![x.with_shape(sizes)])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let [_, length, inner] = split(&inputs[0].shape, self.axis);
        let (width, offset) = ((self.end - self.start) * inner, self.start * inner);
        in_type!(inputs[0], outputs[0], |x, y| {
            y.par_chunks_mut(width.max(1)).enumerate().for_each(|(o, y)| {
                y.copy_from_slice(&x[o * length * inner + offset..][..width]);
            })
        });
    }

    /// dx = up among zeros
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(up) = up[0] else { return Ok(vec![None]) };
        let length = emit.type_of(site.input(0)).shape[self.axis];
        let op = SliceGradient { axis: self.axis, start: self.start, length };
        Ok(vec![Some(emit.apply_one(Arc::new(op), &[up])?)])
    }

    fn ties(&self, inputs: &[Type], _outputs: &[Type]) -> Vec<Tie> {
        let (shape, x, y) = (&inputs[0].shape, Port::Input(0), Port::Output(0));
        let tie = |axis| match axis == self.axis {
            false => same((x, axis), (y, axis), shape[axis]),
            true => {
                let size = self.end - self.start;
                Tie::Same(Digit::range(x, axis, self.start, size), Digit::axis(y, axis, size))
            }
        };
        (0..shape.len()).map(tie).collect()
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        copy("slice", "forward", [&inputs[0], &outputs[0]], self.axis, self.start)
    }
}

impl Operator for SliceGradient {
    fn name(&self) -> &'static str {
        "slice_gradient"
    }

    fn settings(&self) -> String {
        format!("axis={} start={} length={}", self.axis, self.start, self.length)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [up] = expect_inputs("slice_gradient", inputs)?;
        expect_nameable("slice_gradient", "up", up)?;
        if self.axis >= up.shape.len() || self.start + up.shape[self.axis] > self.length {
            let expected = format!("one that fits {} positions from {}", self.length, self.start);
            let got = up.shape.clone();
            return Err(Error::Shape { op: "slice_gradient", input: "up", expected, got });
        }
        let mut sizes = up.shape.to_vec();
        sizes[self.axis] = self.length;
        Ok(vec![up.with_shape(sizes)])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let [_, length, inner] = split(&inputs[0].shape, self.axis);
        let (width, offset) = (length * inner, self.start * inner);
        in_type!(inputs[0], outputs[0], |x, y| {
            y.par_chunks_mut((self.length * inner).max(1)).enumerate().for_each(|(o, y)| {
                y.fill(Default::default());
                y[offset..][..width].copy_from_slice(&x[o * width..][..width]);
            })
        });
    }

    /// Its own gradient is the slice again.
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(up) = up[0] else { return Ok(vec![None]) };
        let size = emit.type_of(site.input(0)).shape[self.axis];
        Ok(vec![Some(emit.slice(up, self.axis, self.start, self.start + size)?)])
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        copy("slice_gradient", "backward", [&inputs[0], &outputs[0]], self.axis, self.start)
    }
}

/// Rows of both sides, measured in fours where every length allows it.
fn copy(name: &str, entry: &'static str, [x, y]: [&Type; 2], axis: usize, start: usize) -> Vec<Variant> {
    let [_, x_length, inner] = split(&x.shape, axis);
    let [_, y_length, _] = split(&y.shape, axis);
    let lengths = [x_length * inner, y_length * inner, start * inner];
    let width = wide(&lengths);
    let count = y.shape.count() / width;
    let kernel = Kernel::new("slice").entry(entry).retype("Elem", x.dtype).paste("WIDTH", pack(width));
    let launch = Launch::new(kernel, [Bind::Input(0), Bind::Output(0)], spread(count))
        .param("count", count)
        .param("x_row", lengths[0] / width)
        .param("y_row", lengths[1] / width)
        .param("offset", lengths[2] / width);
    vec![Variant::single(if width == 4 { format!("{name}_wide") } else { name.to_string() }, launch)]
}

/// Four if all lengths are multiples of it, else one.
pub(super) fn wide(lengths: &[usize]) -> usize {
    if lengths.iter().all(|l| l.is_multiple_of(4)) { 4 } else { 1 }
}

/// What a shader moves at a time: one element or four.
pub(super) fn pack(width: usize) -> &'static str {
    if width == 4 { "alias Pack = vec4<Elem>;" } else { "alias Pack = Elem;" }
}

/// Builder of [`Slice`].
pub trait SliceEmit {
    /// `start..end` of one axis; nothing is recorded if that is all of it.
    fn slice(&mut self, x: Value, axis: usize, start: usize, end: usize) -> Result<Value>;
}

impl<E: Emit + ?Sized> SliceEmit for E {
    fn slice(&mut self, x: Value, axis: usize, start: usize, end: usize) -> Result<Value> {
        if start == 0 && self.type_of(x).shape.get(axis) == Some(&end) {
            return Ok(x);
        }
        self.apply_one(Arc::new(Slice { axis, start, end }), &[x])
    }
}

/// First, middle and last axis; one position; fours and odd lengths; whole numbers.
pub fn cases() -> Cases {
    let mut cases = Cases::new("slice");
    for (shape, axis, start, end) in [
        (&[1][..], 0, 0, 1),
        (&[7, 13], 1, 12, 13),
        (&[7, 13], 0, 2, 5),
        (&[3, 5, 8], 1, 1, 4),
        (&[3, 24], 1, 8, 16),
        (&[2, 131, 3], 1, 1, 130),
    ] {
        let x = cases.normal(shape);
        cases.add(format!("slice{shape:?} axis {axis} {start}..{end}"), Slice { axis, start, end }, vec![x]);
    }
    for (shape, axis, start, length) in [
        (&[1][..], 0, 0, 1),
        (&[3, 8], 1, 8, 24),
        (&[3, 5], 1, 2, 7),
        (&[2, 3, 4], 1, 1, 6),
        (&[2, 3], 0, 0, 131),
    ] {
        let x = cases.normal(shape);
        let op = SliceGradient { axis, start, length };
        cases.add(format!("slice_gradient{shape:?} axis {axis} at {start} of {length}"), op, vec![x]);
    }
    let tokens = cases.indices([3, 9], 1000);
    cases.add("slice of whole numbers", Slice { axis: 1, start: 1, end: 9 }, vec![tokens]).no_gradient();
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slicing_the_gradient_of_a_slice_gives_the_slice_again() {
        let x = Tensor::f32([2, 3, 2], (0..12).map(|i| i as f32).collect());
        let slice = Slice { axis: 1, start: 1, end: 3 };
        let mut y = [Tensor::zeros(&Type::f32([2, 2, 2]))];
        slice.reference(&[&x], &mut y);
        assert_eq!(y[0].real::<f32>(), [2.0, 3.0, 4.0, 5.0, 8.0, 9.0, 10.0, 11.0]);
        let mut back = [Tensor::zeros(&Type::f32([2, 3, 2]))];
        SliceGradient { axis: 1, start: 1, length: 3 }.reference(&[&y[0]], &mut back);
        assert_eq!(back[0].real::<f32>(), [0.0, 0.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0, 8.0, 9.0, 10.0, 11.0]);
    }

    #[test]
    fn a_range_past_the_axis_is_refused() {
        let x = Type::f32([2, 3]);
        for (axis, start, end) in [(1, 0, 4), (1, 2, 2), (2, 0, 1)] {
            assert!(Slice { axis, start, end }.signature(std::slice::from_ref(&x)).is_err());
        }
    }
}
