//! Back from a matrix of codes to numbers: `y[n, k] = code[n, k] * scale[n, k / group] + offset[n, k / group]`.
//!
//! For what reads a matrix of codes and has no kernel for it; see [`Layout`].

use super::coded::{Layout, Stored, layouts, sample};
use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::{Cases, Emit, Error, Operator, Result, Site, Value, in_precision};
use crate::ops::fast::rows_of_piece;
use crate::tensor::{Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// Numbers [N, K] from codes, scales and, where the layout has some, offsets.
#[derive(Clone, Debug)]
pub struct DequantizeCoded {
    /// How the matrix lies in memory.
    pub layout: Layout,
}

impl DequantizeCoded {
    fn compute<R: Real>(&self, inputs: &[&Tensor], y: &mut Tensor) {
        let stored = Stored::<R>::of_tensors(self.layout, inputs);
        y.real_mut::<R>().chunks_mut(self.layout.cols).enumerate().for_each(|(row, y)| stored.row(row, y));
    }
}

impl Operator for DequantizeCoded {
    fn name(&self) -> &'static str {
        "dequantize_coded"
    }

    fn settings(&self) -> String {
        self.layout.describe()
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let (op, expected) = (self.name(), self.layout.inputs());
        if inputs.len() != expected {
            return Err(Error::InputCount { op, expected, got: inputs.len() });
        }
        let rows = self.layout.expect(op, inputs)?;
        Ok(vec![inputs[1].with_shape([rows, self.layout.cols])])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let (stored, cols) = (Stored::of_views(self.layout, inputs), self.layout.cols);
        let each = rows_of_piece(inputs[0].shape[0], cols);
        outputs[0].floats().par_chunks_mut(each * cols).enumerate().for_each(|(piece, y)| {
            y.chunks_mut(cols).enumerate().for_each(|(i, y)| stored.row_fast(piece * each + i, y));
        });
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "codes are whole numbers: train through a fake quantisation instead";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        vec![launch(self.name(), &self.layout, inputs[0].shape[0], None)]
    }
}

/// Rows of a matrix as numbers: all of it in order, or those that the tokens behind it name.
pub(super) fn launch(name: &str, layout: &Layout, rows: usize, tokens: Option<usize>) -> Variant {
    let whole = layout.cols.is_multiple_of(4);
    let (parts, place) = (layout.inputs(), if tokens.is_some() { "row_of(i)" } else { "i" });
    let mut text = layout.declare(0, "params.cols");
    let mut bindings: Vec<Bind> = (0..parts).map(Bind::Input).collect();
    if tokens.is_some() {
        text += &format!("@group(0) @binding({parts}) var<storage, read> tokens: array<u32>;\n");
        text += "fn row_of(i: u32) -> u32 { return min(tokens[i], params.rows - 1u); }\n";
        bindings.push(Bind::Input(parts));
    }
    let (pack, read) = if whole { ("vec4<f32>", "weights_at") } else { ("f32", "weight_at") };
    let width = if whole { 4 } else { 1 };
    let binding = bindings.len();
    text +=
        &format!("@group(0) @binding({binding}) var<storage, read_write> y: array<{pack}>;   // [rows, K]\n");
    text += &format!("fn value(i: u32, at: u32) -> {pack} {{ return {read}({place}, at * {width}u); }}\n");
    bindings.push(Bind::Output(0));
    let count = tokens.unwrap_or(rows) * layout.cols / width;
    let launch = Launch::new(Kernel::new("dequantize_coded").paste("CODES", text), bindings, spread(count))
        .param("count", count)
        .param("rows", rows)
        .param("cols", layout.cols)
        .param("packs", layout.cols / width);
    Variant::single(if whole { format!("{name}_wide") } else { name.to_string() }, launch)
}

/// Builder of [`DequantizeCoded`].
pub trait DequantizeCodedEmit {
    /// The numbers [N, K] of a matrix of codes.
    fn dequantize_coded(&mut self, matrix: &super::matmul_coded::CodedMatrix) -> Result<Value>;
}

impl<E: Emit + ?Sized> DequantizeCodedEmit for E {
    fn dequantize_coded(&mut self, matrix: &super::matmul_coded::CodedMatrix) -> Result<Value> {
        self.apply_one(Arc::new(DequantizeCoded { layout: matrix.layout }), &matrix.values())
    }
}

/// Every layout: one element, columns that end within a word, a group, a four; more rows than invocations.
pub fn cases() -> Cases {
    let mut cases = Cases::new("dequantize_coded");
    for [rows, cols, group] in
        [[1, 1, 1], [7, 13, 13], [3, 64, 32], [5, 100, 64], [9, 72, 3], [2, 36, 24], [67, 160, 128]]
    {
        for layout in layouts(cols, group) {
            let inputs = sample(&mut cases, &layout, rows);
            let label = format!("{} of {rows} rows", layout.describe());
            cases.add(label, DequantizeCoded { layout }, inputs).no_gradient();
        }
    }
    cases
}
