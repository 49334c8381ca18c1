//! Rows of a table chosen by token, and the deterministic gradient of the table.
//!
//! `y[n, :] = weight[tokens[n], :]`
//! dweight[v, :] = sum over the positions n where token v stands of up[n, :], in the order of n
//!
//! Why the positions come sorted from the host: tokens are known there before the step, and with them in hand every row
//! of the gradient is a plain sum in a fixed order, without float atomics.

mod fast;

use super::coded::Layout;
use super::embedding_coded::EmbeddingCoded;
use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::reshape::ReshapeEmit;
use super::slice::{pack, wide};
use super::ties::{Port, Tie, same};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_inputs,
    expect_shape, in_precision,
};
use crate::tensor::{DType, Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// Looks rows up: weight [V, C], tokens U32 of any shape -> the tokens' shape with C behind it. Without gradient.
#[derive(Clone, Debug, Default)]
pub struct Embedding {
    /// Where the weight is some rows of a table: the token of the first one. Other tokens have zeros.
    pub part: Option<usize>,
}

/// The same with the positions sorted by token as further inputs, order `U32 [N]` and starts `U32 [V + 1]`, for training.
///
/// Of a part of a table the starts are those of its own tokens, and of the one behind them.
#[derive(Clone, Debug, Default)]
pub struct EmbeddingTrained {
    /// As in [`Embedding`].
    pub part: Option<usize>,
}

/// Gradient of the table: up `[N, C]`, order `U32 [N]`, starts `U32 [V + 1]` -> `[V, C]`.
#[derive(Clone, Debug)]
pub struct EmbeddingGradient;

/// Positions of `tokens` sorted by token, ties by position, and where each token's positions start: the inputs `order`
/// and `starts` of [`EmbeddingTrained`]. Refuses tokens outside the vocabulary.
pub fn sort_positions(tokens: &[u32], vocabulary: usize) -> Result<(Vec<u32>, Vec<u32>)> {
    let mut starts = vec![0u32; vocabulary + 1];
    for &token in tokens {
        let Some(count) = starts.get_mut(token as usize + 1) else {
            let (expected, got) = (format!("below {vocabulary}"), token.to_string());
            return Err(Error::Setting { op: "embedding", setting: "token", expected, got });
        };
        *count += 1;
    }
    for v in 0..vocabulary {
        starts[v + 1] += starts[v];
    }
    let mut next = starts.clone();
    let mut order = vec![0; tokens.len()];
    for (position, &token) in tokens.iter().enumerate() {
        let at = &mut next[token as usize];
        order[*at as usize] = position as u32;
        *at += 1;
    }
    Ok((order, starts))
}

fn signature(op: &'static str, weight: &Type, tokens: &Type) -> Result<Vec<Type>> {
    expect_float(op, "weight", weight)?;
    expect_dtype(op, "tokens", tokens, DType::U32)?;
    let &[vocabulary, columns] = &weight.shape[..] else {
        let expected = "[vocabulary, columns]".to_string();
        return Err(Error::Shape { op, input: "weight", expected, got: weight.shape.clone() });
    };
    if vocabulary == 0 {
        let expected = "at least one row".to_string();
        return Err(Error::Shape { op, input: "weight", expected, got: weight.shape.clone() });
    }
    Ok(vec![weight.with_shape([&tokens.shape[..], &[columns]].concat())])
}

/// The row of a token in a table, or in a part of one, of so many rows; none where another part has it.
///
/// Tokens are checked before they come here; one outside the whole table reads its last row rather than past it.
fn row_of(token: u32, rows: usize, part: Option<usize>) -> Option<usize> {
    match part {
        None => Some((token as usize).min(rows - 1)),
        Some(first) => (token as usize).checked_sub(first).filter(|row| *row < rows),
    }
}

fn look_up<R: Real>(weight: &Tensor, tokens: &Tensor, y: &mut Tensor, part: Option<usize>) {
    let (count, columns) = (weight.shape[0], weight.shape[1]);
    let weight = weight.real::<R>();
    let rows = y.real_mut::<R>().par_chunks_mut(columns.max(1)).zip(tokens.as_u32());
    rows.for_each(|(y, &token)| match row_of(token, count, part) {
        Some(row) => y.copy_from_slice(&weight[row * columns..][..columns]),
        None => y.fill(R::default()),
    });
}

fn settings(part: Option<usize>) -> String {
    part.map_or_else(String::new, |first| format!("from={first}"))
}

fn launch(part: Option<usize>, inputs: &[Type], outputs: &[Type]) -> Vec<Variant> {
    let [vocabulary, columns] = [inputs[0].shape[0], inputs[0].shape[1]];
    let width = wide(&[columns]);
    let count = outputs[0].shape.count() / width;
    let kernel = Kernel::new("embedding").retype("Elem", inputs[0].dtype).paste("WIDTH", pack(width));
    let launch = Launch::new(kernel, [Bind::Input(0), Bind::Input(1), Bind::Output(0)], spread(count))
        .param("count", count)
        .param("vocabulary", vocabulary)
        .param("columns", columns / width)
        .param("first", part.unwrap_or(0))
        .param("partial", part.is_some() as u32);
    vec![Variant::single(if width == 4 { "embedding_wide" } else { "embedding" }, launch)]
}

/// A column of the table is one of every row looked up; the rows of the table are called by number.
fn columns(inputs: &[Type], outputs: &[Type]) -> Vec<Tie> {
    let last = outputs[0].shape.len() - 1;
    vec![same((Port::Input(0), 1), (Port::Output(0), last), inputs[0].shape[1])]
}

impl Operator for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn settings(&self) -> String {
        settings(self.part)
    }

    fn of_rows(&self, first: usize) -> Option<Arc<dyn Operator>> {
        self.part.is_none().then(|| Arc::new(Embedding { part: Some(first) }) as _)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [weight, tokens] = expect_inputs(self.name(), inputs)?;
        signature(self.name(), weight, tokens)
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, look_up::<R>(inputs[0], inputs[1], &mut outputs[0], self.part));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        fast::look_up(&inputs[0], &inputs[1], &mut outputs[0], self.part);
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "to train the table, use the form that takes the positions sorted by token";
        Err(Error::NoGradient { op: "embedding", hint })
    }

    fn reading_codes(&self, input: usize, layout: Layout, turned: bool) -> Option<Arc<dyn Operator>> {
        (input == 0 && !turned && self.part.is_none()).then(|| Arc::new(EmbeddingCoded { layout }) as _)
    }

    fn ties(&self, inputs: &[Type], outputs: &[Type]) -> Vec<Tie> {
        columns(inputs, outputs)
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        launch(self.part, inputs, outputs)
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        moved(&inputs[1..], outputs)
    }
}

impl Operator for EmbeddingTrained {
    fn name(&self) -> &'static str {
        "embedding_trained"
    }

    fn settings(&self) -> String {
        settings(self.part)
    }

    fn of_rows(&self, first: usize) -> Option<Arc<dyn Operator>> {
        self.part.is_none().then(|| Arc::new(EmbeddingTrained { part: Some(first) }) as _)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let [weight, tokens, order, starts] = expect_inputs(op, inputs)?;
        let outputs = signature(op, weight, tokens)?;
        expect_dtype(op, "order", order, DType::U32)?;
        expect_dtype(op, "starts", starts, DType::U32)?;
        expect_shape(op, "order", order, &[tokens.shape.count()])?;
        expect_shape(op, "starts", starts, &[weight.shape[0] + 1])?;
        Ok(outputs)
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, look_up::<R>(inputs[0], inputs[1], &mut outputs[0], self.part));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        fast::look_up(&inputs[0], &inputs[1], &mut outputs[0], self.part);
    }

    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let (Some(up), true) = (up[0], site.needs(0)) else { return Ok(vec![None; 4]) };
        let columns = emit.type_of(site.input(0)).shape[1];
        let count = emit.type_of(site.input(1)).shape.count();
        let rows = emit.reshape(up, [count, columns].into())?;
        let dweight = emit.apply_one(Arc::new(EmbeddingGradient), &[rows, site.input(2), site.input(3)])?;
        Ok(vec![Some(dweight), None, None, None])
    }

    fn ties(&self, inputs: &[Type], outputs: &[Type]) -> Vec<Tie> {
        columns(inputs, outputs)
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        launch(self.part, inputs, outputs)
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        moved(&inputs[1..2], outputs)
    }
}

/// Each row chosen is read once and written once; the rest of the table stays where it is.
fn moved(tokens: &[Type], rows: &[Type]) -> Cost {
    Cost { flops: 0.0, bytes: (tokens[0].size_bytes() + 2 * rows[0].size_bytes()) as f64 }
}

impl EmbeddingGradient {
    fn compute<R: Real>(&self, inputs: &[&Tensor], y: &mut Tensor) {
        let columns = inputs[0].shape[1];
        let (up, order, starts) = (inputs[0].real::<R>(), inputs[1].as_u32(), inputs[2].as_u32());
        y.real_mut::<R>().par_chunks_mut(columns.max(1)).enumerate().for_each(|(v, y)| {
            y.fill(R::default());
            for &position in &order[starts[v] as usize..starts[v + 1] as usize] {
                let row = &up[position as usize * columns..][..columns];
                y.iter_mut().zip(row).for_each(|(y, &x)| *y += x);
            }
        });
    }
}

impl Operator for EmbeddingGradient {
    fn name(&self) -> &'static str {
        "embedding_gradient"
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let [up, order, starts] = expect_inputs(op, inputs)?;
        expect_float(op, "up", up)?;
        expect_dtype(op, "order", order, DType::U32)?;
        expect_dtype(op, "starts", starts, DType::U32)?;
        let &[count, columns] = &up.shape[..] else {
            let expected = "[positions, columns]".to_string();
            return Err(Error::Shape { op, input: "up", expected, got: up.shape.clone() });
        };
        expect_shape(op, "order", order, &[count])?;
        if starts.shape.len() != 1 || starts.shape[0] < 2 {
            let expected = "[vocabulary + 1]".to_string();
            return Err(Error::Shape { op, input: "starts", expected, got: starts.shape.clone() });
        }
        Ok(vec![up.with_shape([starts.shape[0] - 1, columns])])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        fast::gradient(inputs, &mut outputs[0]);
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "second derivatives of the embedding are not offered";
        Err(Error::NoGradient { op: "embedding_gradient", hint })
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let [count, columns] = [inputs[0].shape[0], inputs[0].shape[1]];
        let width = wide(&[columns]);
        let values = if width == 4 { "alias Total = vec4<f32>;" } else { "alias Total = f32;" };
        let kernel = Kernel::new("embedding_gradient")
            .retype("Elem", inputs[0].dtype)
            .paste("WIDTH", format!("{}\n{values}", pack(width)));
        let elements = outputs[0].shape.count() / width;
        let bindings = [Bind::Input(0), Bind::Input(1), Bind::Input(2), Bind::Output(0)];
        let launch = Launch::new(kernel, bindings, spread(elements))
            .param("count", elements)
            .param("positions", count)
            .param("columns", columns / width);
        let name = if width == 4 { "embedding_gradient_wide" } else { "embedding_gradient" };
        vec![Variant::single(name, launch)]
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: inputs[0].shape.count() as f64, bytes }
    }
}

/// Builders of the embedding.
pub trait EmbeddingEmit {
    /// Rows of `weight` by token, without gradient.
    fn embedding(&mut self, weight: Value, tokens: Value) -> Result<Value>;
    /// Rows of `weight` by token, with what [`sort_positions`] says of the tokens.
    fn embedding_trained(
        &mut self,
        weight: Value,
        tokens: Value,
        order: Value,
        starts: Value,
    ) -> Result<Value>;
}

impl<E: Emit + ?Sized> EmbeddingEmit for E {
    fn embedding(&mut self, weight: Value, tokens: Value) -> Result<Value> {
        self.apply_one(Arc::new(Embedding::default()), &[weight, tokens])
    }

    fn embedding_trained(
        &mut self,
        weight: Value,
        tokens: Value,
        order: Value,
        starts: Value,
    ) -> Result<Value> {
        self.apply_one(Arc::new(EmbeddingTrained::default()), &[weight, tokens, order, starts])
    }
}

/// One token, duplicates, tokens that never occur, fours and odd columns, a long run of one token.
pub fn cases() -> Cases {
    let mut cases = Cases::new("embedding");
    for (vocabulary, columns, shape) in
        [(1, 1, &[1][..]), (11, 6, &[4, 9]), (131, 8, &[3, 5]), (5, 12, &[67]), (2, 64, &[2, 129])]
    {
        let label = format!("{vocabulary}x{columns} tokens{shape:?}");
        let tokens = cases.indices(shape, vocabulary as u64);
        let count = tokens.shape.count();
        let (order, starts) =
            sort_positions(tokens.as_u32(), vocabulary).expect("tokens are drawn from the vocabulary");
        let (order, starts) = (Tensor::u32([count], order), Tensor::u32([vocabulary + 1], starts));
        let weight = cases.normal([vocabulary, columns]);
        let inputs = vec![weight.clone(), tokens.clone()];
        cases.add(format!("embedding {label}"), Embedding::default(), inputs).no_gradient();
        let inputs = vec![weight.clone(), tokens.clone(), order.clone(), starts.clone()];
        cases.add(format!("embedding_trained {label}"), EmbeddingTrained::default(), inputs).sums(count);
        if vocabulary > 1 {
            // The second half of the rows as a part of the table.
            let first = vocabulary / 2;
            let rows = weight.rows(first..vocabulary);
            let of_rows = starts.rows(first..vocabulary + 1);
            let part = Some(first);
            cases
                .add(
                    format!("embedding part {label}"),
                    Embedding { part },
                    vec![rows.clone(), tokens.clone()],
                )
                .no_gradient();
            let inputs = vec![rows, tokens, order.clone(), of_rows];
            cases
                .add(format!("embedding_trained part {label}"), EmbeddingTrained { part }, inputs)
                .sums(count);
        }
        let inputs = vec![cases.normal([count, columns]), order, starts];
        let case = cases.add(format!("embedding_gradient {label}"), EmbeddingGradient, inputs);
        case.no_gradient().sums(count);
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_sorted_by_token_and_then_by_place() {
        let (order, starts) = sort_positions(&[2, 0, 2, 3, 0], 5).unwrap();
        assert_eq!((order, starts), (vec![1, 4, 0, 2, 3], vec![0, 2, 2, 4, 5, 5]));
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_refused() {
        assert!(sort_positions(&[0, 5], 5).is_err());
        assert!(sort_positions(&[u32::MAX], 5).is_err());
    }

    #[test]
    fn the_table_collects_up_where_its_token_stood() {
        let (order, starts) = sort_positions(&[2, 0, 2], 3).unwrap();
        let up = Tensor::f32([3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let mut y = [Tensor::f32([3, 2], vec![9.0; 6])];
        let (order, starts) = (Tensor::u32([3], order), Tensor::u32([4], starts));
        EmbeddingGradient.reference(&[&up, &order, &starts], &mut y);
        assert_eq!(y[0].real::<f32>(), [3.0, 4.0, 0.0, 0.0, 6.0, 8.0]);
    }
}
