//! Matrix multiplication by a matrix of codes: `C = activation(X W^T + bias)`, W [N, K] as [`Layout`] says, X and C in f32.
//!
//! The gradient of X is the product with W itself, `X W`, which is this operator too, transposed. Codes, scales and offsets
//! have none: they are what a model was quantised to. The plain kernel is the matmul's own, with W decoded as it is read.

mod cases;
pub mod group;
mod host;
mod launch;
pub(in crate::ops) mod vector;

pub use super::coded::{Layout, Packing};
pub use cases::cases;

use super::coded::{Stored, expect_activations, expect_bias};
use super::dequantize_coded::DequantizeCoded;
use super::launch::{Caps, Variant};
use super::matmul::{Form, Matmul};
use super::pointwise::Pointwise;
use super::reduce::ReduceEmit;
use super::{Cost, Emit, Error, Operator, Result, Site, Value, in_precision};
use crate::tensor::{Real, Shape, Tensor, Type, View, ViewMut};
use std::sync::Arc;

/// `C = activation(X W^T + bias)`, or, transposed, `X W`. Inputs: X [.., K], codes, scales, offsets where the layout has some,
/// and where `has_bias` the bias `[N]`; output: C [.., N]. Transposed, X is [.., N] and C [.., K], the bias `[K]`.
#[derive(Clone, Debug)]
pub struct MatmulCoded {
    /// How W lies in memory.
    pub layout: Layout,
    /// Whether a last input is added to every row.
    pub has_bias: bool,
    /// A program of one input and one output applied to each element.
    pub activation: Option<Pointwise>,
    /// Multiplies by W where otherwise by its transpose.
    pub transposed: bool,
}

/// Rows of X, rows of W, columns of W.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    m: usize,
    n: usize,
    k: usize,
}

impl MatmulCoded {
    /// A product with the transpose of such a matrix and nothing more.
    pub fn new(layout: Layout) -> Self {
        MatmulCoded { layout, has_bias: false, activation: None, transposed: false }
    }

    /// Adds a bias as last input.
    pub fn with_bias(self) -> Self {
        MatmulCoded { has_bias: true, ..self }
    }

    /// Applies a program of one input and one output to each element.
    pub fn with_activation(self, activation: Pointwise) -> Self {
        MatmulCoded { activation: Some(activation), ..self }
    }

    /// The product with the matrix itself: what this one's gradient needs.
    pub fn transposed(layout: Layout) -> Self {
        MatmulCoded { transposed: true, ..MatmulCoded::new(layout) }
    }

    /// Number of inputs.
    fn inputs(&self) -> usize {
        1 + self.layout.inputs() + usize::from(self.has_bias)
    }

    fn sizes(&self, x: &Shape, codes: &Shape) -> Sizes {
        Sizes { m: x.rows(), n: codes[0], k: self.layout.cols }
    }

    /// How the same product is written with W as numbers.
    fn plain(&self) -> Matmul {
        let form = if self.transposed { Form::Nn } else { Form::Nt };
        Matmul { has_bias: self.has_bias, activation: self.activation.clone(), ..Matmul::new(form) }
    }

    fn compute<R: Real>(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let Sizes { n, k, .. } = self.sizes(&inputs[0].shape, &inputs[1].shape);
        let stored = Stored::<R>::of_tensors(self.layout, &inputs[1..]);
        let mut weight = Tensor::zeros(&Type::new(inputs[0].data.dtype(), [n, k]));
        weight.real_mut::<R>().chunks_mut(k).enumerate().for_each(|(row, y)| stored.row(row, y));
        let mut operands = vec![inputs[0], &weight];
        operands.extend(&inputs[1 + self.layout.inputs()..]);
        self.plain().reference(&operands, outputs);
    }
}

impl Operator for MatmulCoded {
    fn name(&self) -> &'static str {
        "matmul_coded"
    }

    fn settings(&self) -> String {
        let mut text = self.layout.describe();
        for (flag, word) in [(self.transposed, ",transposed"), (self.has_bias, ",bias")] {
            text += if flag { word } else { "" };
        }
        if let Some(activation) = &self.activation {
            text += &format!(",then={}({})", activation.name(), activation.settings());
        }
        text
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        if inputs.len() != self.inputs() {
            return Err(Error::InputCount { op, expected: self.inputs(), got: inputs.len() });
        }
        let (x, rest) = (&inputs[0], &inputs[1..]);
        let rows = self.layout.expect(op, rest)?;
        let [summed, columns] =
            if self.transposed { [rows, self.layout.cols] } else { [self.layout.cols, rows] };
        expect_activations(op, x, summed)?;
        if let Some(bias) = rest.get(self.layout.inputs()) {
            expect_bias(op, bias, columns)?;
        }
        if let Some(activation) = &self.activation
            && (activation.inputs != 1 || activation.outputs.len() != 1)
        {
            let got = format!("{} inputs, {} outputs", activation.inputs, activation.outputs.len());
            let expected = "a program of one input and one output".to_string();
            return Err(Error::Setting { op, setting: "activation", expected, got });
        }
        Ok(vec![x.with_shape([&x.shape[..x.shape.len() - 1], &[columns]].concat())])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, outputs));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        host::compute(self, inputs, outputs[0].floats());
    }

    /// dX = up W, or up W^T where this is transposed; dbias = sum of up over rows.
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let mut gradients = vec![None; site.inputs.len()];
        let Some(mut up) = up[0] else { return Ok(gradients) };
        if let Some(activation) = &self.activation {
            // What goes into the activation is computed again: the fused operator does not keep it.
            let plain = MatmulCoded { activation: None, ..self.clone() };
            let sum = emit.apply_one(Arc::new(plain), site.inputs)?;
            let inner = Site { inputs: &[sum], outputs: site.outputs, needed: &[true] };
            let Some(through) = activation.gradient(emit, &inner, &[Some(up)])?[0] else {
                return Ok(gradients);
            };
            up = through;
        }
        if site.needs(0) {
            let back = MatmulCoded { transposed: !self.transposed, ..MatmulCoded::new(self.layout) };
            let matrix = &site.inputs[1..1 + self.layout.inputs()];
            gradients[0] = Some(emit.apply_one(Arc::new(back), &[&[up], matrix].concat())?);
        }
        let last = site.inputs.len() - 1;
        if self.has_bias && site.needs(last) {
            let shape = emit.type_of(site.input(last)).shape;
            gradients[last] = Some(emit.sum_to(up, &shape)?);
        }
        Ok(gradients)
    }

    fn expand(&self, emit: &mut dyn Emit, inputs: &[Value]) -> Option<Result<Vec<Value>>> {
        let end = 1 + self.layout.inputs();
        let mut expand = || {
            let decoded = DequantizeCoded { layout: self.layout };
            let mut operands = vec![inputs[0], emit.apply_one(Arc::new(decoded), &inputs[1..end])?];
            operands.extend(&inputs[end..]);
            Ok(vec![emit.apply_one(Arc::new(self.plain()), &operands)?])
        };
        Some(expand())
    }

    fn grouped(&self, count: usize, program: Option<&Pointwise>) -> Option<Arc<dyn Operator>> {
        let plain = !self.transposed && !self.has_bias && self.activation.is_none();
        // A program makes one of two: more bind more buffers than every adapter grants.
        let most = if program.is_some() { 2 } else { group::MOST_MATRICES };
        (plain && (2..=most).contains(&count)).then(|| {
            let (layout, program) = (self.layout, program.cloned());
            Arc::new(group::MatmulCodedGroup { layout, matrices: count, program }) as _
        })
    }

    fn with_epilogue(&self, program: &Pointwise) -> Option<Arc<dyn Operator>> {
        let simple = program.inputs == 1 && program.outputs.len() == 1;
        (self.activation.is_none() && simple)
            .then(|| Arc::new(self.clone().with_activation(program.clone())) as _)
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        launch::variants(self, self.sizes(&inputs[0].shape, &inputs[1].shape), caps)
    }

    fn is_heavy(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let Sizes { m, n, k } = self.sizes(&inputs[0].shape, &inputs[1].shape);
        let each = self.has_bias as usize + self.activation.as_ref().map_or(0, |a| a.steps.len());
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        let products = 2.0 * (m * n) as f64 * k as f64;
        Cost { flops: products + (outputs[0].shape.count() * each) as f64, bytes }
    }
}

/// A matrix of codes in a graph.
#[derive(Clone, Copy, Debug)]
pub struct CodedMatrix {
    /// How it lies in memory.
    pub layout: Layout,
    /// The codes.
    pub codes: Value,
    /// The scales, [N, groups].
    pub scales: Value,
    /// The offsets, [N, groups], if and only if the layout has some.
    pub offsets: Option<Value>,
}

impl CodedMatrix {
    /// Codes, scales, and offsets if there are some: the inputs that hold it.
    pub fn values(&self) -> Vec<Value> {
        [self.codes, self.scales].into_iter().chain(self.offsets).collect()
    }
}

/// Builder of [`MatmulCoded`].
pub trait MatmulCodedEmit {
    /// `x weight^T + bias`: the weight as [out, in].
    fn linear_coded(&mut self, x: Value, weight: &CodedMatrix, bias: Option<Value>) -> Result<Value>;
}

impl<E: Emit + ?Sized> MatmulCodedEmit for E {
    fn linear_coded(&mut self, x: Value, weight: &CodedMatrix, bias: Option<Value>) -> Result<Value> {
        let op = MatmulCoded { has_bias: bias.is_some(), ..MatmulCoded::new(weight.layout) };
        let mut inputs = vec![x];
        inputs.extend(weight.values());
        inputs.extend(bias);
        self.apply_one(Arc::new(op), &inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::coded::layouts;

    fn refused(op: MatmulCoded, inputs: &[Type]) -> String {
        op.signature(inputs).unwrap_err().to_string()
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let layout = layouts(40, 16)[1];
        let with = |x: &[usize]| [vec![Type::f32(x)], layout.types(6)].concat();
        let op = MatmulCoded::new(layout);
        assert_eq!(op.signature(&with(&[2, 3, 40])), Ok(vec![Type::f32([2, 3, 6])]));
        assert_eq!(MatmulCoded::transposed(layout).signature(&with(&[5, 6])), Ok(vec![Type::f32([5, 40])]));
        assert!(refused(op.clone(), &with(&[2, 6])).contains("`x` has shape"));
        assert!(refused(op.clone(), &with(&[2, 40])[..3]).contains("takes 4 inputs, got 3"));
        assert!(
            refused(op.clone().with_bias(), &[with(&[2, 40]), vec![Type::f32([40])]].concat())
                .contains("bias")
        );
        let mut wrong = with(&[2, 40]);
        wrong[2] = Type::f32([6, 2]);
        assert!(refused(op, &wrong).contains("`scales` has shape"));
    }
}
