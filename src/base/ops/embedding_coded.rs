//! Rows of a table of codes chosen by token, as numbers: `y[n, :] = decoded(table)[tokens[n], :]`.

use super::coded::{Layout, Stored, layouts, sample};
use super::dequantize_coded::launch;
use super::launch::{Caps, Variant};
use super::matmul_coded::CodedMatrix;
use super::{Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, in_precision};
use crate::ops::fast::rows_of_piece;
use crate::tensor::{DType, Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// Looks rows up: codes, scales and, where the layout has some, offsets of a table [V, K], tokens U32 of any shape -> the
/// tokens' shape with K behind it.
#[derive(Clone, Debug)]
pub struct EmbeddingCoded {
    /// How the table lies in memory.
    pub layout: Layout,
}

impl EmbeddingCoded {
    /// Tokens are checked before they come here; one outside the table reads its last row rather than past it.
    fn compute<R: Real>(&self, inputs: &[&Tensor], y: &mut Tensor) {
        let stored = Stored::<R>::of_tensors(self.layout, inputs);
        let (last, tokens) = (inputs[0].shape[0] - 1, inputs[self.layout.inputs()].as_u32());
        let rows = y.real_mut::<R>().chunks_mut(self.layout.cols).zip(tokens);
        rows.for_each(|(y, &token)| stored.row((token as usize).min(last), y));
    }
}

impl Operator for EmbeddingCoded {
    fn name(&self) -> &'static str {
        "embedding_coded"
    }

    fn settings(&self) -> String {
        self.layout.describe()
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let (op, expected) = (self.name(), 1 + self.layout.inputs());
        if inputs.len() != expected {
            return Err(Error::InputCount { op, expected, got: inputs.len() });
        }
        self.layout.expect(op, inputs)?;
        let tokens = &inputs[expected - 1];
        expect_dtype(op, "tokens", tokens, DType::U32)?;
        Ok(vec![inputs[1].with_shape([&tokens.shape[..], &[self.layout.cols]].concat())])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let (stored, cols) = (Stored::of_views(self.layout, inputs), self.layout.cols);
        let (last, tokens) = (inputs[0].shape[0] - 1, inputs[self.layout.inputs()].as_u32());
        let each = rows_of_piece(tokens.len(), cols);
        let pieces = outputs[0].floats().par_chunks_mut(each * cols).zip(tokens.par_chunks(each));
        pieces.for_each(|(y, tokens)| {
            let rows = y.chunks_mut(cols).zip(tokens);
            rows.for_each(|(y, &token)| stored.row_fast((token as usize).min(last), y));
        });
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "codes are whole numbers: train through a fake quantisation instead";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let count = inputs[self.layout.inputs()].shape.count();
        vec![launch(self.name(), &self.layout, inputs[0].shape[0], Some(count))]
    }

    /// Each row chosen is read and written once; the rest of the table stays where it is.
    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let (tokens, rows) = (&inputs[self.layout.inputs()], inputs[0].shape[0] as f64);
        let table: f64 = inputs[..self.layout.inputs()].iter().map(|t| t.size_bytes() as f64).sum();
        let read = table / rows * tokens.shape.count() as f64;
        Cost { flops: 0.0, bytes: read + (tokens.size_bytes() + outputs[0].size_bytes()) as f64 }
    }
}

/// Builder of [`EmbeddingCoded`].
pub trait EmbeddingCodedEmit {
    /// Rows of a `table` of codes by token, as numbers.
    fn embedding_coded(&mut self, table: &CodedMatrix, tokens: Value) -> Result<Value>;
}

impl<E: Emit + ?Sized> EmbeddingCodedEmit for E {
    fn embedding_coded(&mut self, table: &CodedMatrix, tokens: Value) -> Result<Value> {
        let mut inputs = table.values();
        inputs.push(tokens);
        self.apply_one(Arc::new(EmbeddingCoded { layout: table.layout }), &inputs)
    }
}

/// Every layout: one token, duplicates, tokens that never occur, fours and odd columns.
pub fn cases() -> Cases {
    let mut cases = Cases::new("embedding_coded");
    for (vocabulary, cols, group, shape) in
        [(1, 1, 1, &[1][..]), (11, 6, 4, &[4, 9]), (131, 72, 32, &[3, 5]), (5, 12, 12, &[67])]
    {
        for layout in layouts(cols, group) {
            let mut inputs = sample(&mut cases, &layout, vocabulary);
            inputs.push(cases.indices(shape, vocabulary as u64));
            let label = format!("{} of {vocabulary} rows, tokens{shape:?}", layout.describe());
            cases.add(label, EmbeddingCoded { layout }, inputs).no_gradient();
        }
    }
    cases
}
