//! Matrix multiplication: `C[b] = activation(A[b] op B[b] + bias)`, batched, with either operand stored transposed.
//!
//! The sum over K is kept in f32 whatever the storage. Operands of 16 bits, f16 or bf16, are read as packed words, which
//! needs no 16-bit arithmetic; they may stand beside each other and beside f32 where the output is f32. The gradient of such
//! an operand then is f32 too: it comes from sums in f32, and nothing is gained by rounding it before what follows has seen it.
//!
//! Derivatives are matmuls of other forms, so no transpose is ever computed. `matmul_plain` is the referee. For GPUs there are
//! `matmul_tile` in several sizes, with K in parts where outputs are few, and `matmul_cooperative` where the hardware multiplies
//! small matrices; for drivers that run on the CPU `matmul_register` and, where subgroups have a fixed small size,
//! `matmul_broadcast`; `matmul_vector` is for the few rows of a text's next token.

pub(in crate::ops) mod access;
mod cooperative;
mod fast;
pub(in crate::ops) mod geometry;
pub mod group;
pub(in crate::ops) mod launch;
mod reference;
pub(in crate::ops) mod register;
pub(in crate::ops) mod tile;
mod vector;

pub use geometry::Form;

use super::coded::Layout;
use super::launch::{Caps, Variant};
use super::matmul_coded::MatmulCoded;
use super::matmul_int8::MatmulInt8;
use super::pointwise::Pointwise;
use super::reduce::ReduceEmit;
use super::reshape::ReshapeEmit;
use super::ties::{Port, Tie, same};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_any_float, expect_dtype, expect_shape,
    is_double,
};
use crate::tensor::{DType, Data, Shape, Tensor, Type, View, ViewMut};
use geometry::Geometry;
use std::sync::Arc;

/// `C = activation(A op B + bias)`. Inputs: A, B and, where `has_bias`, the bias `[N]`, stored as the output is.
#[derive(Clone, Debug)]
pub struct Matmul {
    /// Which operand is stored transposed.
    pub form: Form,
    /// Whether a third input is added to every row.
    pub has_bias: bool,
    /// A program of one input and one output applied to each element.
    pub activation: Option<Pointwise>,
    /// Storage of the output: without it that of both operands, f32 or f16; with it f32, from operands of any storage each.
    pub output: Option<DType>,
}

impl Matmul {
    /// A matmul of that form and nothing more.
    pub fn new(form: Form) -> Self {
        Matmul { form, has_bias: false, activation: None, output: None }
    }

    /// A matmul for operands of these types: stored as they are if they are alike and not bf16, in f32 otherwise.
    pub fn of(form: Form, a: DType, b: DType) -> Self {
        let output = (a != b || a == DType::BF16).then_some(DType::F32);
        Matmul { output, ..Matmul::new(form) }
    }

    /// Stores the output as `output`, whatever the operands are.
    pub fn with_output(self, output: DType) -> Self {
        Matmul { output: Some(output), ..self }
    }

    /// Adds a bias as third input.
    pub fn with_bias(self) -> Self {
        Matmul { has_bias: true, ..self }
    }

    /// Applies a program of one input and one output to each element.
    pub fn with_activation(self, activation: Pointwise) -> Self {
        Matmul { activation: Some(activation), ..self }
    }

    /// Storage of the output for these operands.
    fn stored(&self, a: &Type, b: &Type) -> Result<DType> {
        let refuse = |expected: &str, got: DType| {
            let (expected, got) = (expected.to_string(), got.to_string());
            Err(Error::Setting { op: "matmul", setting: "output", expected, got })
        };
        match self.output {
            None => {
                expect_dtype("matmul", "b", b, a.dtype)?;
                if a.dtype == DType::BF16 {
                    refuse("f32, where operands are bf16", a.dtype)
                } else {
                    Ok(a.dtype)
                }
            }
            Some(DType::F32) => expect_any_float("matmul", "b", b).map(|()| DType::F32),
            Some(other) => refuse("f32 or none", other),
        }
    }

    /// Whether a product with codes, which are summed over along their rows, is this one.
    fn reads_rows(&self, turned: bool) -> bool {
        let rows_are_columns = if turned { Form::Nn } else { Form::Nt };
        self.form == rows_are_columns && self.output.is_none_or(|output| output == DType::F32)
    }

    fn geometry(&self, inputs: &[Type]) -> Geometry {
        Geometry::of(self.form, &inputs[0].shape, &inputs[1].shape)
            .expect("the signature has accepted these operands")
    }

    /// Gradients of A and B from that of C, summed over the batch where an operand was broadcast.
    fn gradient_of_operands(
        &self,
        emit: &mut dyn Emit,
        site: &Site,
        up: Value,
    ) -> Result<[Option<Value>; 2]> {
        let (a, b) = (site.input(0), site.input(1));
        let (a_shape, b_shape) = (emit.type_of(a).shape, emit.type_of(b).shape);
        let mut gradients = [None, None];
        if site.needs(0) {
            let da = match self.form {
                Form::Nn => emit.matmul_form(Form::Nt, up, b)?,
                Form::Nt => emit.matmul_form(Form::Nn, up, b)?,
                Form::Tn => emit.matmul_form(Form::Nt, b, up)?,
            };
            gradients[0] = Some(emit.sum_to(da, &a_shape)?);
        }
        if site.needs(1) {
            // Against one B the rows of the whole batch are summed within the matmul itself.
            let shared = self.form != Form::Tn && b_shape.len() == 2;
            let rows = |emit: &mut dyn Emit, x: Value| {
                let shape = emit.type_of(x).shape;
                if shared { emit.reshape(x, Shape::from([shape.rows(), shape.last()])) } else { Ok(x) }
            };
            let (a, up) = (rows(emit, a)?, rows(emit, up)?);
            let db = match self.form {
                Form::Nn => emit.matmul_form(Form::Tn, a, up)?,
                Form::Nt => emit.matmul_form(Form::Tn, up, a)?,
                Form::Tn => emit.matmul_form(Form::Nn, a, up)?,
            };
            gradients[1] = Some(emit.sum_to(db, &b_shape)?);
        }
        Ok(gradients)
    }

    /// Through the activation: what goes into it is computed again, since the fused matmul does not keep it.
    fn gradient_of_sum(
        &self,
        emit: &mut dyn Emit,
        site: &Site,
        activation: &Pointwise,
        up: Value,
    ) -> Result<Option<Value>> {
        let plain = Matmul { activation: None, ..self.clone() };
        let sum = emit.apply_one(Arc::new(plain), site.inputs)?;
        let inner = Site { inputs: &[sum], outputs: site.outputs, needed: &[true] };
        Ok(activation.gradient(emit, &inner, &[Some(up)])?[0])
    }
}

impl Operator for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn settings(&self) -> String {
        let mut text = format!("form={}", self.form.name());
        if self.has_bias {
            text += ",bias";
        }
        if let Some(output) = self.output {
            text += &format!(",output={output}");
        }
        if let Some(activation) = &self.activation {
            text += &format!(",then={}({})", activation.name(), activation.settings());
        }
        text
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let expected = if self.has_bias { 3 } else { 2 };
        if inputs.len() != expected {
            return Err(Error::InputCount { op: "matmul", expected, got: inputs.len() });
        }
        let (a, b) = (&inputs[0], &inputs[1]);
        expect_any_float("matmul", "a", a)?;
        let c = Type::new(self.stored(a, b)?, geometry::output(self.form, a, b)?);
        if let Some(bias) = inputs.get(2) {
            expect_dtype("matmul", "bias", bias, c.dtype)?;
            expect_shape("matmul", "bias", bias, &[c.shape.last()])?;
        }
        if let Some(activation) = &self.activation
            && (activation.inputs != 1 || activation.outputs.len() != 1)
        {
            let got = format!("{} inputs, {} outputs", activation.inputs, activation.outputs.len());
            let expected = "a program of one input and one output".to_string();
            return Err(Error::Setting { op: "matmul", setting: "activation", expected, got });
        }
        Ok(vec![c])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let sizes = Geometry::of(self.form, &inputs[0].shape, &inputs[1].shape)
            .expect("the signature has accepted these operands");
        if is_double(inputs, outputs) {
            let [a, b] = [0, 1].map(|i: usize| inputs[i].real::<f64>());
            let c = outputs[0].real_mut::<f64>();
            sizes.double(self.form, a, b, c);
            if let Some(bias) = inputs.get(2) {
                add_rows(c, bias.real(), |c: f64, x: f64| c + x);
            }
        } else {
            let [a, b] = [0, 1].map(|i: usize| inputs[i].real::<f32>());
            let c = outputs[0].real_mut::<f32>();
            sizes.single(self.form, a, b, c);
            if let Some(bias) = inputs.get(2) {
                add_rows(c, bias.real(), |c: f32, x: f32| c + x);
            }
        }
        if let Some(activation) = &self.activation {
            let shape = outputs[0].shape.clone();
            let data = std::mem::replace(&mut outputs[0].data, Data::F32(vec![]));
            outputs[0].data = Data::zeros(data.dtype(), data.len());
            activation.reference(&[&Tensor { shape, data }], outputs);
        }
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        fast::compute(self, inputs, outputs[0].floats());
    }

    /// NN: dA = up B^T, dB = A^T up; NT: dA = up B, dB = up^T A; TN: dA = B up^T, dB = A up; dbias = sum of up over rows.
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let none = vec![None; site.inputs.len()];
        let Some(up) = up[0] else { return Ok(none) };
        let up = match &self.activation {
            Some(activation) => self.gradient_of_sum(emit, site, activation, up)?,
            None => Some(up),
        };
        let Some(up) = up else { return Ok(none) };
        let mut gradients = self.gradient_of_operands(emit, site, up)?.to_vec();
        if self.has_bias {
            let shape = emit.type_of(site.input(2)).shape;
            gradients.push(if site.needs(2) { Some(emit.sum_to(up, &shape)?) } else { None });
        }
        Ok(gradients)
    }

    fn expand(&self, emit: &mut dyn Emit, inputs: &[Value]) -> Option<Result<Vec<Value>>> {
        (self.has_bias || self.activation.is_some()).then(|| {
            let bare = Matmul { output: self.output, ..Matmul::new(self.form) };
            let mut y = emit.apply_one(Arc::new(bare), &inputs[..2])?;
            if self.has_bias {
                y = emit.apply_one(Arc::new(Pointwise::single("add", 0.0)), &[y, inputs[2]])?;
            }
            if let Some(activation) = &self.activation {
                y = emit.apply_one(Arc::new(activation.clone()), &[y])?;
            }
            Ok(vec![y])
        })
    }

    fn reading_halves(&self) -> Option<(Arc<dyn Operator>, &'static [usize])> {
        Some((Arc::new(self.clone().with_output(DType::F32)), &[0, 1]))
    }

    fn reading_codes(&self, input: usize, layout: Layout, turned: bool) -> Option<Arc<dyn Operator>> {
        let (has_bias, activation) = (self.has_bias, self.activation.clone());
        (input == 1 && self.reads_rows(turned))
            .then(|| Arc::new(MatmulCoded { layout, has_bias, activation, transposed: false }) as _)
    }

    fn on_codes(&self, turned: bool) -> Option<Arc<dyn Operator>> {
        let (has_bias, activation) = (self.has_bias, self.activation.clone());
        self.reads_rows(turned).then(|| Arc::new(MatmulInt8 { has_bias, activation, group: None }) as _)
    }

    fn matmul(&self) -> Option<&Matmul> {
        Some(self)
    }

    fn grouped(&self, count: usize, program: Option<&Pointwise>) -> Option<Arc<dyn Operator>> {
        let plain =
            self.form == Form::Nt && !self.has_bias && self.activation.is_none() && self.output.is_none();
        (plain && (2..=group::MOST_MATRICES).contains(&count))
            .then(|| Arc::new(group::MatmulGroup { matrices: count, program: program.cloned() }) as _)
    }

    fn with_epilogue(&self, program: &Pointwise) -> Option<Arc<dyn Operator>> {
        let simple = program.inputs == 1 && program.outputs.len() == 1;
        (self.activation.is_none() && simple)
            .then(|| Arc::new(self.clone().with_activation(program.clone())) as _)
    }

    fn ties(&self, inputs: &[Type], outputs: &[Type]) -> Vec<Tie> {
        let (a, b, c) = (&inputs[0].shape, &inputs[1].shape, &outputs[0].shape);
        let (in_a, in_b, out) = (Port::Input(0), Port::Input(1), Port::Output(0));
        if b.len() != 2 {
            return vec![];
        }
        let (behind, columns) = (a.len() - 1, c.len() - 1);
        let [[m, k], [n, summed]] = match self.form {
            Form::Nn => [[behind - 1, behind], [1, 0]],
            Form::Nt => [[behind - 1, behind], [0, 1]],
            Form::Tn => [[behind, behind - 1], [1, 0]],
        };
        let mut ties = vec![
            same((in_a, k), (in_b, summed), a[k]),
            same((in_a, m), (out, columns - 1), a[m]),
            same((in_b, n), (out, columns), b[n]),
        ];
        ties.extend((0..behind - 1).map(|axis| same((in_a, axis), (out, axis), a[axis])));
        ties.extend(self.has_bias.then(|| same((Port::Input(2), 0), (out, columns), b[n])));
        ties
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let types = [inputs[0].dtype, inputs[1].dtype, outputs[0].dtype];
        launch::variants(self, self.geometry(inputs), types, caps)
    }

    fn is_heavy(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let sizes = self.geometry(inputs);
        let each = self.has_bias as usize + self.activation.as_ref().map_or(0, |a| a.steps.len());
        let products = 2 * sizes.k + each;
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: (sizes.matrices() * sizes.m * sizes.n) as f64 * products as f64, bytes }
    }
}

fn add_rows<R: Copy>(c: &mut [R], bias: &[R], add: fn(R, R) -> R) {
    for row in c.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(c, &x)| *c = add(*c, x));
    }
}

/// Builders of matmuls.
pub trait MatmulEmit {
    /// `A B` with the last two axes of each; the axes before them are broadcast.
    fn matmul(&mut self, a: Value, b: Value) -> Result<Value>;
    /// A matmul with an operand stored transposed; operands of different types, and of bf16, give f32.
    fn matmul_form(&mut self, form: Form, a: Value, b: Value) -> Result<Value>;
    /// `X W + bias` with W as [in, out] (`Form::Nn`) or [out, in] (`Form::Nt`).
    fn linear(&mut self, form: Form, x: Value, weight: Value, bias: Option<Value>) -> Result<Value>;
}

impl<E: Emit + ?Sized> MatmulEmit for E {
    fn matmul(&mut self, a: Value, b: Value) -> Result<Value> {
        self.matmul_form(Form::Nn, a, b)
    }

    fn matmul_form(&mut self, form: Form, a: Value, b: Value) -> Result<Value> {
        let op = Matmul::of(form, self.type_of(a).dtype, self.type_of(b).dtype);
        self.apply_one(Arc::new(op), &[a, b])
    }

    fn linear(&mut self, form: Form, x: Value, weight: Value, bias: Option<Value>) -> Result<Value> {
        match bias {
            Some(bias) => {
                let op = Matmul::of(form, self.type_of(x).dtype, self.type_of(weight).dtype);
                self.apply_one(Arc::new(op.with_bias()), &[x, weight, bias])
            }
            None => self.matmul_form(form, x, weight),
        }
    }
}

/// One element, primes, multiples of the chunk, one past each tile; broadcast batches; bias and activation.
pub fn cases() -> Cases {
    let mut cases = Cases::new("matmul");
    for form in [Form::Nn, Form::Nt, Form::Tn] {
        let sizes = [[1, 1, 1], [7, 13, 11], [5, 65, 3], [8, 8, 8], [33, 72, 24], [65, 16, 40], [24, 65, 17]];
        for [m, n, k] in sizes {
            add_case(&mut cases, Matmul::new(form), &[], [m, n, k]);
        }
        add_case(&mut cases, Matmul::new(form).with_bias(), &[], [17, 24, 16]);
    }
    // Larger than every tile, with tails.
    for form in [Form::Nn, Form::Nt, Form::Tn] {
        add_case(&mut cases, Matmul::new(form), &[], [264, 136, 72]).no_gradient();
        add_case(&mut cases, Matmul::new(form), &[], [131, 65, 33]).no_gradient();
    }
    for (a, b) in [
        (&[2, 3, 5, 33][..], &[3, 33, 13][..]),
        (&[3, 5, 8], &[8, 16]),
        (&[4, 7], &[3, 7, 5]),
        (&[2, 1, 9, 8], &[2, 4, 8, 8]),
    ] {
        let (x, y) = (cases.normal(a), cases.normal(b));
        let length = a[a.len() - 1];
        cases.add(format!("batch {a:?} x {b:?}"), Matmul::new(Form::Nn), vec![x, y]).sums(length);
    }
    for form in [Form::Nt, Form::Tn] {
        add_case(&mut cases, Matmul::new(form), &[3], [9, 16, 24]);
    }
    // Few outputs with long sums, in parts that are even and uneven.
    for (form, sizes) in [(Form::Nn, [20, 40, 300]), (Form::Nt, [9, 67, 256]), (Form::Tn, [72, 7, 521])] {
        add_case(&mut cases, Matmul::new(form), &[], sizes).no_gradient();
        add_case(&mut cases, Matmul::new(form).with_bias(), &[2], sizes).no_gradient();
    }
    // Few rows: one chunk, several turns with a ragged end, columns past the last team's.
    for form in [Form::Nn, Form::Nt] {
        for sizes in [
            [1, 8, 8],
            [1, 24, 576],
            [3, 100, 88],
            [2, 1040, 12],
            [4, 12, 264],
            [1, 7, 64],
            [6, 40, 264],
            [8, 17, 100],
        ] {
            add_case(&mut cases, Matmul::new(form), &[], sizes).no_gradient();
        }
        add_case(&mut cases, Matmul::new(form).with_bias(), &[2, 1], [1, 72, 136]).no_gradient();
    }
    // Operands of 16 bits beside each other and beside f32, with an output in f32: whole chunks and none.
    for form in [Form::Nn, Form::Nt, Form::Tn] {
        for (halves, sizes) in [
            ([true, true], &[[7, 13, 11], [33, 72, 24], [65, 16, 40]][..]),
            ([true, false], &[[33, 72, 24], [24, 65, 17]]),
            ([false, true], &[[33, 72, 24], [24, 65, 17], [2, 16, 88]]),
        ] {
            sizes.iter().for_each(|&sizes| add_mixed(&mut cases, form, halves, sizes));
        }
    }
    for (name, constant) in [("gelu_tanh", 0.0), ("relu", 0.0), ("scale", 0.5)] {
        let op = Matmul::new(Form::Nn).with_bias().with_activation(Pointwise::single(name, constant));
        let case = add_case(&mut cases, op, &[], [9, 24, 16]);
        case.differentiable = name != "relu";
    }
    cases
}

fn add_case<'a>(
    cases: &'a mut Cases,
    op: Matmul,
    batch: &[usize],
    [m, n, k]: [usize; 3],
) -> &'a mut super::Case {
    let shape = |sizes: [usize; 2]| Shape::new([batch, &sizes[..]].concat());
    let a = cases.normal(shape(if op.form == Form::Tn { [k, m] } else { [m, k] }));
    let b = cases.normal(shape(if op.form == Form::Nt { [n, k] } else { [k, n] }));
    let mut inputs = vec![a, b];
    if op.has_bias {
        inputs.push(cases.normal([n]));
    }
    let label = format!("{} {batch:?} m{m} n{n} k{k}", op.settings());
    cases.add(label, op, inputs).sums(k)
}

/// A case with a bias whose operands marked in `halves` follow the storage; the rest is f32.
fn add_mixed(cases: &mut Cases, form: Form, halves: [bool; 2], [m, n, k]: [usize; 3]) {
    let shapes =
        [if form == Form::Tn { [k, m] } else { [m, k] }, if form == Form::Nt { [n, k] } else { [k, n] }];
    let mut inputs = vec![];
    for (shape, half) in shapes.into_iter().zip(halves) {
        inputs.push(if half { cases.normal(shape) } else { cases.statistic(shape) });
    }
    inputs.push(cases.statistic([n]));
    let op = Matmul::new(form).with_bias().with_output(DType::F32);
    let label = format!("{} {halves:?} m{m} n{n} k{k}", op.settings());
    cases.add(label, op, inputs).sums(k);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(op: &Matmul, a: DType, b: DType) -> Result<DType> {
        Ok(op.signature(&[Type::new(a, [2, 3]), Type::new(b, [3, 4])])?[0].dtype)
    }

    #[test]
    fn operands_of_different_storage_need_an_output_in_single_precision() {
        let plain = Matmul::new(Form::Nn);
        assert_eq!(stored(&plain, DType::F16, DType::F16), Ok(DType::F16));
        assert!(stored(&plain, DType::F16, DType::F32).is_err());
        let error = stored(&plain, DType::BF16, DType::BF16).unwrap_err().to_string();
        assert!(error.contains("f32, where operands are bf16"), "{error}");
        let single = Matmul::new(Form::Nn).with_output(DType::F32);
        for (a, b) in [(DType::BF16, DType::F32), (DType::F16, DType::BF16), (DType::F32, DType::F32)] {
            assert_eq!(stored(&single, a, b), Ok(DType::F32));
        }
        assert!(stored(&single, DType::F32, DType::U32).is_err());
        assert!(stored(&Matmul::new(Form::Nn).with_output(DType::BF16), DType::BF16, DType::BF16).is_err());
    }
}
