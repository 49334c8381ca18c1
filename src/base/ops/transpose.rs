//! Axes in another order: output axis k is input axis `order[k]`.

use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::reshape::ReshapeEmit;
use super::slice::{pack, wide};
use super::{Cases, Emit, Error, Operator, Result, Site, Value, expect_inputs, expect_nameable, in_type};
use crate::tensor::{Data, Shape, Tensor, Type, strides_of};
use rayon::prelude::*;
use std::fmt::Write;
use std::sync::Arc;

/// Side of the square that a workgroup turns in its memory.
const TILE: usize = 16;

/// Permutes the axes.
#[derive(Clone, Debug)]
pub struct Transpose {
    /// For each output axis the input axis it was.
    pub order: Vec<usize>,
}

/// Output sizes, and the input's element stride along each of them, with neighbours that move together merged.
fn merge(shape: &Shape, order: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let from = strides_of(shape);
    let mut sizes: Vec<usize> = vec![];
    let mut strides: Vec<usize> = vec![];
    for &axis in order.iter().filter(|&&axis| shape[axis] != 1) {
        match strides.last_mut() {
            Some(last) if *last == from[axis] * shape[axis] => {
                *last = from[axis];
                *sizes.last_mut().expect("as many sizes as strides") *= shape[axis];
            }
            _ => {
                sizes.push(shape[axis]);
                strides.push(from[axis]);
            }
        }
    }
    if sizes.is_empty() { (vec![1], vec![1]) } else { (sizes, strides) }
}

impl Operator for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn settings(&self) -> String {
        format!("order={:?}", self.order)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x] = expect_inputs("transpose", inputs)?;
        expect_nameable("transpose", "x", x)?;
        let mut sorted = self.order.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..x.shape.len()) {
            let expected = format!("one with the axes {:?} in some order", self.order);
            return Err(Error::Shape { op: "transpose", input: "x", expected, got: x.shape.clone() });
        }
        let sizes: Vec<usize> = self.order.iter().map(|&axis| x.shape[axis]).collect();
        Ok(vec![x.with_shape(sizes)])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let (sizes, strides) = merge(&inputs[0].shape, &self.order);
        let (&inner, outer) = sizes.split_last().expect("merging leaves an axis");
        let step = strides[outer.len()];
        in_type!(inputs[0], outputs[0], |x, y| {
            y.par_chunks_mut(inner.max(1)).enumerate().for_each(|(row, y)| {
                let (mut rest, mut start) = (row, 0);
                for (size, stride) in outer.iter().zip(&strides).rev() {
                    start += rest % size * stride;
                    rest /= size;
                }
                if step == 1 {
                    y.copy_from_slice(&x[start..][..inner]);
                } else {
                    y.iter_mut().zip(x[start..].iter().step_by(step)).for_each(|(y, &x)| *y = x);
                }
            })
        });
    }

    /// dx = up with the axes back in order
    fn gradient(&self, emit: &mut dyn Emit, _: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(up) = up[0] else { return Ok(vec![None]) };
        let mut back = vec![0; self.order.len()];
        self.order.iter().enumerate().for_each(|(to, &from)| back[from] = to);
        Ok(vec![Some(emit.transpose(up, &back)?)])
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let (sizes, strides) = merge(&inputs[0].shape, &self.order);
        let strided = strided(&sizes, &strides, &inputs[0], &outputs[0]);
        let mut variants = vec![strided];
        if let Some(tiled) = tiled(&sizes, &strides, &inputs[0]) {
            // Turning a square in workgroup memory keeps both sides of the copy contiguous; on a CPU driver that
            // memory is no nearer than the rest.
            variants.insert(if caps.is_cpu { 1 } else { 0 }, tiled);
        }
        variants
    }
}

fn strided(sizes: &[usize], strides: &[usize], x: &Type, y: &Type) -> Variant {
    let last = sizes.len() - 1;
    let unit = strides[last] == 1;
    let width = if unit { wide(&[&[sizes[last]], &strides[..last]].concat()) } else { 1 };
    let count = y.shape.count() / width;
    let mut text = format!("{}\nstruct Params {{\n    count: u32,\n", pack(width));
    let mut body = String::from("        var rest = i;\n        var source = 0u;\n");
    for axis in (0..sizes.len()).rev() {
        let _ = writeln!(text, "    stride{axis}: u32,");
        if axis == 0 {
            let _ = writeln!(body, "        source += rest * params.stride{axis};");
            continue;
        }
        let _ = writeln!(text, "    size{axis}: u32,");
        let _ = writeln!(body, "        source += rest % params.size{axis} * params.stride{axis};");
        let _ = writeln!(body, "        rest = rest / params.size{axis};");
    }
    text.push('}');
    let kernel =
        Kernel::new("transpose").retype("Elem", x.dtype).paste("DECLARATIONS", text).paste("BODY", body);
    let mut launch =
        Launch::new(kernel, [Bind::Input(0), Bind::Output(0)], spread(count)).param("count", count);
    for axis in 0..sizes.len() {
        let (size, stride) = match axis == last {
            true => (sizes[axis] / width, strides[axis]),
            false => (sizes[axis], strides[axis] / width),
        };
        launch = launch.param(format!("stride{axis}"), stride);
        if axis > 0 {
            launch = launch.param(format!("size{axis}"), size);
        }
    }
    Variant::single(if width == 4 { "transpose_wide" } else { "transpose" }, launch)
}

/// The last two axes exchanged, the ones before in order: [batch, rows, columns] -> [batch, columns, rows].
fn tiled(sizes: &[usize], strides: &[usize], x: &Type) -> Option<Variant> {
    let [batch, columns, rows] = match (sizes, strides) {
        ([columns, rows], [1, step]) if step == columns => [1, *columns, *rows],
        ([batch, columns, rows], [_, 1, step]) if step == columns => [*batch, *columns, *rows],
        _ => return None,
    };
    let [across, down] = [columns.div_ceil(TILE), rows.div_ceil(TILE)];
    let kernel = Kernel::new("transpose_tile").retype("Elem", x.dtype);
    let launch = Launch::new(kernel, [Bind::Input(0), Bind::Output(0)], batch * across * down)
        .param("batch", batch)
        .param("rows", rows)
        .param("columns", columns);
    Some(Variant::single("transpose_tile", launch))
}

/// Builder of [`Transpose`].
pub trait TransposeEmit {
    /// Axes in another order; a reshape, or nothing, where no element moves.
    fn transpose(&mut self, x: Value, order: &[usize]) -> Result<Value>;
    /// The last two axes exchanged.
    fn swap_last(&mut self, x: Value) -> Result<Value>;
}

impl<E: Emit + ?Sized> TransposeEmit for E {
    fn transpose(&mut self, x: Value, order: &[usize]) -> Result<Value> {
        let op = Transpose { order: order.to_vec() };
        let x_type = self.type_of(x);
        let to = op.signature(std::slice::from_ref(&x_type))?.remove(0);
        if merge(&x_type.shape, order).0.len() == 1 {
            return self.reshape(x, to.shape);
        }
        self.apply_one(Arc::new(op), &[x])
    }

    fn swap_last(&mut self, x: Value) -> Result<Value> {
        let rank = self.type_of(x).shape.len();
        let mut order: Vec<usize> = (0..rank).collect();
        if rank < 2 {
            let expected = "at least two axes".to_string();
            return Err(Error::Shape { op: "transpose", input: "x", expected, got: self.type_of(x).shape });
        }
        order.swap(rank - 2, rank - 1);
        self.transpose(x, &order)
    }
}

/// Plain, batched, one past the tile, heads, all axes turned round, nothing moved; whole numbers.
pub fn cases() -> Cases {
    let mut cases = Cases::new("transpose");
    for (shape, order) in [
        (&[1][..], &[0][..]),
        (&[7, 13], &[1, 0]),
        (&[17, 33], &[1, 0]),
        (&[3, 16, 17], &[0, 2, 1]),
        (&[2, 5, 3, 8], &[0, 2, 1, 3]),
        (&[2, 5, 3, 7], &[0, 2, 1, 3]),
        (&[2, 3, 4, 5], &[3, 2, 1, 0]),
        (&[3, 1, 5], &[1, 0, 2]),
        (&[2, 3, 5, 2, 3], &[4, 0, 2, 1, 3]),
    ] {
        let x = cases.normal(shape);
        cases.add(format!("transpose{shape:?} {order:?}"), Transpose { order: order.to_vec() }, vec![x]);
    }
    let tokens = cases.indices([19, 5], 1000);
    cases.add("transpose of whole numbers", Transpose { order: vec![1, 0] }, vec![tokens]).no_gradient();
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_that_stay_together_are_merged() {
        assert_eq!(merge(&Shape::from([2, 3, 4, 5]), &[2, 3, 0, 1]), (vec![20, 6], vec![1, 20]));
        assert_eq!(merge(&Shape::from([2, 1, 4]), &[1, 0, 2]), (vec![8], vec![1]));
    }

    #[test]
    fn an_element_is_found_at_its_permuted_position() {
        let shape = [2, 3, 4];
        let x = Tensor::f32(shape, (0..24).map(|i| i as f32).collect());
        let mut y = [Tensor::zeros(&Type::f32([4, 2, 3]))];
        Transpose { order: vec![2, 0, 1] }.reference(&[&x], &mut y);
        for a in 0..2 {
            for b in 0..3 {
                for c in 0..4 {
                    assert_eq!(y[0].real::<f32>()[(c * 2 + a) * 3 + b], ((a * 3 + b) * 4 + c) as f32);
                }
            }
        }
    }

    #[test]
    fn an_order_that_is_no_permutation_is_refused() {
        let x = Type::f32([2, 3]);
        for order in [vec![0], vec![0, 0], vec![1, 2], vec![0, 1, 2]] {
            assert!(Transpose { order }.signature(std::slice::from_ref(&x)).is_err());
        }
    }
}
