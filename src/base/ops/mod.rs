//! Operators: one file per family with signature, reference, gradient, launch and cases together.
//!
//! An operator never sees the graph. Derivatives and expansions write other operators through [`Emit`]; a graph records
//! them. Nodes hold `Arc<dyn Operator>`, so there is no list of operators to match on: what a pass or the planner needs
//! to know, the operator says itself.

pub mod attention;
pub mod attention_weights;
pub mod block_codes;
pub mod block_numbers;
pub mod cache_code;
pub mod cache_order;
pub mod cache_write;
mod case;
pub mod cast;
pub mod choose_token;
pub mod coded;
pub mod coding_matmul;
pub mod concat;
pub mod cross_entropy;
pub mod dequantize_coded;
pub mod dequantize_rows;
pub mod distillation;
pub mod dropout;
pub mod embedding;
pub mod embedding_coded;
mod emit;
pub mod expand;
pub mod fake_quantize;
mod fast;
pub mod gather;
pub mod launch;
pub mod layer_norm;
pub mod linear_codes;
pub mod losses;
pub mod matmul;
pub mod matmul_coded;
pub mod matmul_int8;
pub mod norm_weight;
pub mod optimizer;
pub mod pointwise;
pub mod positions;
pub mod quantize_columns;
pub mod quantize_fixed;
pub mod quantize_groups;
pub mod quantize_rows;
pub mod recurrent;
pub mod reduce;
pub mod reshape;
pub mod rms_norm;
pub mod rotary;
mod rows;
mod seats;
mod side_by_side;
pub mod slice;
pub mod softmax;
pub mod split;
pub mod ties;
pub mod transpose;

pub use case::{Case, Cases};
pub use emit::{Emit, Site, Value};
pub use fast::team::lead;

use crate::tensor::{DType, Data, Shape, Tensor, Type, View, ViewMut};
use launch::{Caps, Variant};
use std::fmt::Debug;
use std::sync::Arc;
use ties::Tie;

/// What can go wrong when an operator is built or applied.
#[derive(Debug, thiserror::Error, Clone, PartialEq)]
pub enum Error {
    /// Wrong number of inputs.
    #[error("{op}: takes {expected} inputs, got {got}")]
    InputCount {
        /// Operator.
        op: &'static str,
        /// Inputs it takes.
        expected: usize,
        /// Inputs given.
        got: usize,
    },
    /// An input has the wrong shape.
    #[error("{op}: input `{input}` has shape {got}, expected {expected}")]
    Shape {
        /// Operator.
        op: &'static str,
        /// Name of the input.
        input: &'static str,
        /// What the shape should have been, in words or sizes.
        expected: String,
        /// The shape given.
        got: Shape,
    },
    /// An input has the wrong element type.
    #[error("{op}: input `{input}` is {got}, expected {expected}")]
    Element {
        /// Operator.
        op: &'static str,
        /// Name of the input.
        input: &'static str,
        /// Types it takes.
        expected: &'static str,
        /// The type given.
        got: DType,
    },
    /// A setting of the operator is out of range.
    #[error("{op}: {setting} is {got}, expected {expected}")]
    Setting {
        /// Operator.
        op: &'static str,
        /// Name of the setting.
        setting: &'static str,
        /// Range allowed.
        expected: String,
        /// Value given.
        got: String,
    },
    /// A gradient was asked through something that has none.
    #[error("{op}: has no gradient\n  hint: {hint}")]
    NoGradient {
        /// Operator.
        op: &'static str,
        /// What to do instead.
        hint: &'static str,
    },
    /// A host value was wrong.
    #[error(transparent)]
    Tensor(#[from] crate::tensor::Error),
}

/// Result of building or applying an operator.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Work of one application, for floors and reports.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes that must be read and written at least.
    pub bytes: f64,
}

/// One kind of computation: what it needs, what it gives, its derivative and its kernels.
pub trait Operator: Debug + Send + Sync {
    /// Name as in the text form of a graph.
    fn name(&self) -> &'static str;

    /// Settings as text, such as `eps=1e-5`. Two operators with equal name and settings compute the same.
    fn settings(&self) -> String {
        String::new()
    }

    /// Types of the outputs for these types of the inputs, or why they do not fit.
    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>>;

    /// The slow, obvious computation on the host. Floats of `inputs` and `outputs` are all f32 or all f64
    /// (an f16 value is held as f32); `outputs` have their shapes and unspecified elements.
    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]);

    /// The same computation as an engine runs it: f32, over threads. [`Operator::reference`] is its referee.
    ///
    /// Where an output overwrites an input ([`Operator::in_place`]), the output holds the input's elements and the input
    /// comes without any.
    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        host_by_reference(self, inputs, outputs);
    }

    /// Gradients of the inputs, given those of the outputs (`None` where nothing flows back). Only inputs with
    /// `site.needs(i)` are asked for; an entry is `None` for inputs without gradient, such as token ids.
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>>;

    /// The same computation in smaller operators, for a fused operator.
    fn expand(&self, _emit: &mut dyn Emit, _inputs: &[Value]) -> Option<Result<Vec<Value>>> {
        None
    }

    /// Kernels for these types on this adapter, the preferred one first. Each variant computes the same.
    fn launch(&self, inputs: &[Type], outputs: &[Type], caps: &Caps) -> Vec<Variant>;

    /// Work of one application; by default no arithmetic and every value moved once.
    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 0.0, bytes }
    }

    /// True where arithmetic outweighs the moving of values, so that computing again is dear: products of matrices.
    fn is_heavy(&self) -> bool {
        false
    }

    /// Largest magnitude of an input's elements in trials on random numbers: one, unless rounding errors would grow from step to step.
    fn trial_bound(&self, _input: usize, _inputs: &[Type]) -> f32 {
        1.0
    }

    /// For operators that only rename: output 0 has the very elements of input 0, and no kernel runs.
    fn is_view(&self) -> bool {
        false
    }

    /// Pairs (output, input): the output overwrites the input's storage, which the graph must not read afterwards.
    fn in_place(&self) -> &'static [(usize, usize)] {
        &[]
    }

    /// This operator and so many like it as one: inputs are those they have in common ([`Operator::common_inputs`]) and then
    /// each one's own, outputs each one's output, or one that a program makes of them. For few rows, where launching is much of
    /// the work.
    fn grouped(&self, _count: usize, _program: Option<&pointwise::Pointwise>) -> Option<Arc<dyn Operator>> {
        None
    }

    /// For operators whose outputs are 8-bit codes of rows and their scales: which codes, and whether the scale is given.
    fn codes_rows(&self) -> Option<(quantize_rows::Rule, bool)> {
        None
    }

    /// The operator that codes its activations itself, where it now reads what one with [`Operator::codes_rows`] makes as its
    /// [`Operator::common_inputs`]: inputs are that one's and then its own others. For few rows.
    fn coding(&self, _rule: quantize_rows::Rule, _fixed: bool) -> Option<Arc<dyn Operator>> {
        None
    }

    /// For an operator that writes caches, its first two inputs: the one that writes codes and scales in place of each.
    fn writing_codes(&self) -> Option<Arc<dyn Operator>> {
        None
    }

    /// For an operator that reads caches: the one that reads codes and then their scales in place of each.
    fn over_codes(&self) -> Option<Arc<dyn Operator>> {
        None
    }

    /// Positions of the inputs that members of a group have in common, the activations first.
    fn common_inputs(&self) -> &'static [usize] {
        &[0]
    }

    /// The operator with a program of one input and one output applied to its first output.
    fn with_epilogue(&self, _program: &pointwise::Pointwise) -> Option<Arc<dyn Operator>> {
        None
    }

    /// The operator that writes its first output over its first input, of the same type; see [`Operator::in_place`].
    fn overwriting(&self) -> Option<Arc<dyn Operator>> {
        None
    }

    /// The scalar program of an operator that works element by element, for the fuse pass.
    fn pointwise(&self) -> Option<&pointwise::Pointwise> {
        None
    }

    /// The matmul that this is, for passes that multiply otherwise.
    fn matmul(&self) -> Option<&matmul::Matmul> {
        None
    }

    /// The attention that this is, for losses that look at what is attended to.
    fn attention(&self) -> Option<&attention::Attention> {
        None
    }

    /// The operator on the sum of its first input and one of the same type that comes last; the sum is a further, last output.
    fn with_residual(&self) -> Option<Arc<dyn Operator>> {
        None
    }

    /// The operator with one more input, of its first output's type and the last, that is added to that output.
    fn with_addend(&self) -> Option<Arc<dyn Operator>> {
        None
    }

    /// True for inputs that stay single where activations are stored as halves, such as tables of angles.
    fn keeps_single(&self, _input: usize) -> bool {
        false
    }

    /// The operator as it reads some inputs in 16 bits, whatever the adapter computes with, and those inputs. Its outputs and
    /// other inputs are f32.
    fn reading_halves(&self) -> Option<(Arc<dyn Operator>, &'static [usize])> {
        None
    }

    /// The operator with input `input`, a matrix, held as codes of `layout`: in its place come codes, scales and offsets. `turned`
    /// says that the codes are those of the matrix's transpose.
    fn reading_codes(
        &self,
        _input: usize,
        _layout: coded::Layout,
        _turned: bool,
    ) -> Option<Arc<dyn Operator>> {
        None
    }

    /// The operator on codes of its first two inputs, the second as rows or, if `turned`, as its transpose's: in their place come
    /// the codes of both and then the scales of the rows of both.
    fn on_codes(&self, _turned: bool) -> Option<Arc<dyn Operator>> {
        None
    }

    /// For an operator that looks rows of its first input up by number: the one that has a part of the rows, from `first` on, and
    /// gives zeros for all others. A last input, where there are more than two, has an entry for each row and one more.
    fn of_rows(&self, _first: usize) -> Option<Arc<dyn Operator>> {
        None
    }

    /// For an operator that sums over the rows of its inputs, its first output, and counts them, its third: the one that sums, for
    /// some of the rows, and whether the sum is divided by the count in the end.
    fn over_rows(&self) -> Option<(Arc<dyn Operator>, bool)> {
        None
    }

    /// Inputs whose elements, one for each channel of the output, scale it: gains and biases of a norm.
    fn gains(&self) -> &'static [usize] {
        &[]
    }

    /// Which positions of inputs and outputs stand and fall together; without any, nothing of them can be left out.
    fn ties(&self, _inputs: &[Type], _outputs: &[Type]) -> Vec<Tie> {
        vec![]
    }

    /// The operator with its float storage exchanged, if it carries a storage type of its own (a cast does).
    fn with_storage(&self, _dtype: DType) -> Option<Arc<dyn Operator>> {
        None
    }
}

/// [`Operator::host`] for operators and settings without a path of their own: the reference, with copies to and from it.
fn host_by_reference<O: Operator + ?Sized>(op: &O, inputs: &[View], outputs: &mut [ViewMut]) {
    let mut tensors: Vec<Tensor> = inputs.iter().map(View::to_tensor).collect();
    for &(output, input) in op.in_place() {
        tensors[input] = outputs[output].as_view().to_tensor();
    }
    let mut results: Vec<Tensor> = outputs.iter().map(|o| Tensor::zeros(&o.as_view().host_type())).collect();
    op.reference(&tensors.iter().collect::<Vec<_>>(), &mut results);
    for (output, result) in outputs.iter_mut().zip(&results) {
        output.bytes().copy_from_slice(View::of_tensor(result).bytes());
    }
}

/// Name of an operator family and what makes its cases.
pub type Family = (&'static str, fn() -> Cases);

/// All operator families: what the conformance harness and `kiln doctor` run through.
pub fn families() -> Vec<Family> {
    vec![
        ("pointwise", pointwise::cases),
        ("reshape", reshape::cases),
        ("expand", expand::cases),
        ("reduce", reduce::cases),
        ("matmul", matmul::cases),
        ("matmul_group", matmul::group::cases),
        ("transpose", transpose::cases),
        ("slice", slice::cases),
        ("concat", concat::cases),
        ("split", split::cases),
        ("cast", cast::cases),
        ("embedding", embedding::cases),
        ("dropout", dropout::cases),
        ("softmax", softmax::cases),
        ("layer_norm", layer_norm::cases),
        ("rms_norm", rms_norm::cases),
        ("norm_weight", norm_weight::cases),
        ("optimizer", optimizer::cases),
        ("adam_bytes", optimizer::bytes::cases),
        ("block_codes", block_codes::cases),
        ("block_numbers", block_numbers::cases),
        ("gradient_norm", optimizer::norm::cases),
        ("accumulate", optimizer::accumulate::cases),
        ("masked", optimizer::masked::cases),
        ("movement", optimizer::movement::cases),
        ("shrink", optimizer::shrink::cases),
        ("cross_entropy", cross_entropy::cases),
        ("gather", gather::cases),
        ("attention", attention::cases),
        ("attention_weights", attention_weights::cases),
        ("rotary", rotary::cases),
        ("cache_write", cache_write::cases),
        ("cache_code", cache_code::cases),
        ("cache_order", cache_order::cases),
        ("choose_token", choose_token::cases),
        ("attention_coded", attention::coded::cases),
        ("quantize_rows", quantize_rows::cases),
        ("quantize_columns", quantize_columns::cases),
        ("dequantize_rows", dequantize_rows::cases),
        ("matmul_int8", matmul_int8::cases),
        ("quantize_groups", quantize_groups::cases),
        ("quantize_fixed", quantize_fixed::cases),
        ("coding_matmul", coding_matmul::cases),
        ("matmul_coded", matmul_coded::cases),
        ("matmul_coded_group", matmul_coded::group::cases),
        ("dequantize_coded", dequantize_coded::cases),
        ("embedding_coded", embedding_coded::cases),
        ("linear_codes", linear_codes::cases),
        ("recurrent", recurrent::cases),
        ("line_scales", fake_quantize::scales::cases),
        ("fake_quantize", fake_quantize::cases),
    ]
}

/// The inputs as an array, or an error that says how many there should be.
pub(crate) fn expect_inputs<'a, const N: usize>(
    op: &'static str,
    inputs: &'a [Type],
) -> Result<&'a [Type; N]> {
    inputs.try_into().map_err(|_| Error::InputCount { op, expected: N, got: inputs.len() })
}

/// Checks one input's shape.
pub(crate) fn expect_shape(
    op: &'static str,
    input: &'static str,
    got: &Type,
    expected: &[usize],
) -> Result<()> {
    if *got.shape == *expected {
        return Ok(());
    }
    Err(Error::Shape { op, input, expected: format!("{expected:?}"), got: got.shape.clone() })
}

/// Checks that an input holds floats that are computed with; bf16 is storage, which matmul and cast alone read.
pub(crate) fn expect_float(op: &'static str, input: &'static str, got: &Type) -> Result<()> {
    if got.dtype.is_float() && got.dtype != DType::BF16 {
        return Ok(());
    }
    Err(Error::Element { op, input, expected: "f32 or f16", got: got.dtype })
}

/// Checks that an input has elements WGSL can name, for operators that move elements without looking at them.
pub(crate) fn expect_nameable(op: &'static str, input: &'static str, got: &Type) -> Result<()> {
    match got.dtype {
        DType::BF16 => Err(Error::Element { op, input, expected: "any type but bf16", got: got.dtype }),
        _ => Ok(()),
    }
}

/// Checks that an input holds floats in any storage.
pub(crate) fn expect_any_float(op: &'static str, input: &'static str, got: &Type) -> Result<()> {
    if got.dtype.is_float() {
        return Ok(());
    }
    Err(Error::Element { op, input, expected: "a float type", got: got.dtype })
}

/// Checks one input's element type.
pub(crate) fn expect_dtype(op: &'static str, input: &'static str, got: &Type, expected: DType) -> Result<()> {
    if got.dtype == expected {
        return Ok(());
    }
    Err(Error::Element { op, input, expected: expected.name(), got: got.dtype })
}

/// Runs `$body` with `$real` standing for the precision in which the outputs (or else the inputs) hold their floats.
macro_rules! in_precision {
    ($inputs:expr, $outputs:expr, $real:ident, $body:expr) => {
        if $crate::ops::is_double($inputs, $outputs) {
            type $real = f64;
            $body
        } else {
            type $real = f32;
            $body
        }
    };
}
pub(crate) use in_precision;

/// Runs `$body` with `$x` and `$y` standing for the elements of an input and an output that have one type, whatever it is.
macro_rules! in_type {
    ($input:expr, $output:expr, |$x:ident, $y:ident| $body:expr) => {
        match (&$input.data, &mut $output.data) {
            (Data::F64($x), Data::F64($y)) => $body,
            (Data::F32($x), Data::F32($y)) => $body,
            (Data::I32($x), Data::I32($y)) => $body,
            (Data::U32($x), Data::U32($y)) => $body,
            (Data::I8($x), Data::I8($y)) => $body,
            (x, y) => panic!("the element type stays: {} from {}", y.dtype(), x.dtype()),
        }
    };
}
pub(crate) use in_type;

/// True when the floats at hand are f64.
pub(crate) fn is_double(inputs: &[&Tensor], outputs: &[Tensor]) -> bool {
    let double = |t: &Tensor| matches!(t.data, Data::F64(_));
    outputs.iter().any(double) || inputs.iter().any(|t| double(t))
}
