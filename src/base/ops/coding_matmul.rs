//! Products with matrices of 8-bit codes whose other operand is coded on the way: quantise and multiply as one.
//!
//! `y_i = program((code(x) W_i^T) * x_scale * w_scale_i + bias)`: what [`QuantizeRows`] or [`QuantizeFixed`] and then [`MatmulInt8`]
//! give, for one matrix or several of one x. For few rows, where launching is much of the work, one dispatch does it all: every
//! workgroup finds the codes of x for itself. Sums are of whole numbers and exact.

use super::coded::{Layout, Packing};
use super::launch::{Bind, Caps, Kernel, Launch, Variant};
use super::matmul_coded::vector::{Coding, Template, with_params};
use super::matmul_int8::{MOST_TERMS, MatmulInt8};
use super::pointwise::{self, Pointwise};
use super::quantize_fixed::QuantizeFixed;
use super::quantize_rows::{QuantizeRows, Rule};
use super::side_by_side::{Step, sequence};
use super::{Cases, Cost, Emit, Error, Operator, Result, Site, Value};
use crate::tensor::quant::Grid;
use crate::tensor::{DType, Data, Tensor, Type, View, ViewMut};
use std::fmt::Write;
use std::sync::Arc;

/// Matrices at most.
pub const MOST_MATRICES: usize = 3;

/// Codes x [.., K] and multiplies. Inputs: x in f32, its scale `[1]` if that is fixed, then codes [N_i, K] as i8 and scales `[N_i]`
/// of each matrix, and the bias `[N]` where there is one matrix that has one. Outputs: [.., N_i] of each, or the one that a program
/// makes of them.
#[derive(Clone, Debug)]
pub struct CodingMatmul {
    /// Which codes x gets.
    pub rule: Rule,
    /// The scale of x is given; else each row has its own.
    pub fixed: bool,
    /// How many matrices there are, one to three.
    pub matrices: usize,
    /// Whether a last input is added to every row; of one matrix alone.
    pub has_bias: bool,
    /// A program of as many inputs as there are matrices and one output.
    pub program: Option<Pointwise>,
}

impl CodingMatmul {
    /// The product with one matrix.
    pub fn new(rule: Rule, fixed: bool) -> Self {
        CodingMatmul { rule, fixed, matrices: 1, has_bias: false, program: None }
    }

    /// Inputs before the matrices.
    fn before(&self) -> usize {
        1 + usize::from(self.fixed)
    }

    fn inputs(&self) -> usize {
        self.before() + 2 * self.matrices + usize::from(self.has_bias)
    }

    fn outputs(&self) -> usize {
        if self.program.is_some() { 1 } else { self.matrices }
    }

    /// What codes x.
    fn coder(&self) -> Arc<dyn Operator> {
        match self.fixed {
            true => Arc::new(QuantizeFixed { rule: self.rule }),
            false => Arc::new(QuantizeRows { rule: self.rule }),
        }
    }

    /// What multiplies codes with matrix `i`: with the program, if that needs no other's result.
    fn product(&self) -> MatmulInt8 {
        let activation = self.program.clone().filter(|_| self.matrices == 1);
        MatmulInt8 { has_bias: self.has_bias, activation, group: None }
    }

    /// Positions of the inputs that the product with matrix `i` reads beside codes and scales of x.
    fn own(&self, i: usize) -> [usize; 2] {
        [0, 1].map(|part| self.before() + 2 * i + part)
    }

    /// Types of codes and scales of x.
    fn coded(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        self.coder().signature(&inputs[..self.before()])
    }

    /// Types of the inputs of the product with matrix `i`.
    fn types(&self, coded: &[Type], inputs: &[Type], i: usize) -> Vec<Type> {
        let [codes, scales] = self.own(i).map(|at| inputs[at].clone());
        let bias = self.has_bias.then(|| inputs[self.inputs() - 1].clone());
        [coded[0].clone(), codes, coded[1].clone(), scales].into_iter().chain(bias).collect()
    }

    fn layout(&self, cols: usize) -> Layout {
        let (packing, grid) = (Packing::Bytes, Grid::Integers);
        Layout { packing, grid, lowest: -128, cols, group: cols, has_offsets: false }
    }

    /// One dispatch.
    fn vector(&self, template: &Template, columns: &[usize]) -> Variant {
        let together = if self.program.is_some() { self.matrices } else { 1 };
        let mut tiles: Vec<usize> = columns.iter().map(|n| n.div_ceil(template.tile(together))).collect();
        let (mut begin, mut body) = (String::new(), String::new());
        template.begin(&mut begin);
        let all: Vec<usize> = (0..self.matrices).collect();
        let bias = if self.has_bias { " + bias[column]" } else { "" };
        if self.program.is_some() {
            tiles.truncate(1);
            let sums: Vec<String> = all.iter().map(|i| format!("y{i}{bias}")).collect();
            let store = format!("c0[row * params.n0 + column] = finish({});", sums.join(", "));
            template.over_tiles(&mut body, |text| template.dot(text, &all, "params.n0", "tile", &store));
        } else {
            template.over_tiles(&mut body, |text| {
                for i in all.into_iter().rev() {
                    let (condition, tile) = match i {
                        0 => (String::new(), "tile".to_string()),
                        _ => (format!("if tile >= params.end{i} "), format!("(tile - params.end{i})")),
                    };
                    let n = format!("params.n{i}");
                    let store = format!("c{i}[row * {n} + column] = y0{bias};");
                    let _ = writeln!(text, "{condition}{{");
                    template.dot(text, &[i], &n, &tile, &store);
                    let _ = writeln!(text, "}}{}", if i > 0 { " else " } else { "" });
                }
            });
        }
        let kernel = Kernel::new("matmul_coded_vector")
            .constant("GROUP", template.group() as u32)
            .constant("LANES", template.lanes() as u32)
            .paste("INPUT", self.declare(template) + &template.shared(together))
            .paste("OUTPUT", self.declare_outputs())
            .paste("BEGIN", begin)
            .paste("BODY", body);
        let bindings: Vec<Bind> =
            (0..self.inputs()).map(Bind::Input).chain((0..self.outputs()).map(Bind::Output)).collect();
        let launch = Launch::new(kernel, bindings, template.groups(tiles.iter().sum()));
        let name = template.name().replace("matmul_coded", "coding_matmul");
        Variant::single(name, with_params(launch, columns, &tiles))
    }

    /// The inputs.
    fn declare(&self, template: &Template) -> String {
        let mut text = template.declare_x();
        if self.fixed {
            text += "@group(0) @binding(1) var<storage, read> x_scale: array<f32>;   // [1]\n";
        }
        for i in 0..self.matrices {
            text += &template.declare(i, self.own(i)[0]);
        }
        if self.has_bias {
            let binding = self.inputs() - 1;
            let _ =
                writeln!(text, "@group(0) @binding({binding}) var<storage, read> bias: array<f32>;   // [N]");
        }
        text
    }

    /// The outputs and what finishes a sum.
    fn declare_outputs(&self) -> String {
        let mut text = String::new();
        for i in 0..self.outputs() {
            let binding = self.inputs() + i;
            let _ =
                writeln!(text, "@group(0) @binding({binding}) var<storage, read_write> c{i}: array<f32>;");
        }
        if let Some(program) = &self.program {
            let inputs: Vec<String> = (0..self.matrices).map(|i| format!("x{i}: f32")).collect();
            let _ = writeln!(text, "fn finish({}) -> f32 {{", inputs.join(", "));
            text += &pointwise::ending(Some(program));
        }
        text
    }

    /// Codes first, then each product, then the program.
    fn apart(&self, inputs: &[Type], outputs: &[Type], caps: &Caps) -> Variant {
        let coded = self.coded(inputs).expect("the signature has accepted these operands");
        let given = |at: usize| (Bind::Input(at), inputs[at].clone());
        let codes = [0, 1].map(|i: usize| (Bind::Scratch(i), coded[i].clone()));
        let mut scratch: Vec<u64> = coded.iter().map(|kind| kind.size_bytes().next_multiple_of(4)).collect();
        let first = (0..self.before()).map(given).collect();
        let mut steps = vec![Step { op: self.coder(), inputs: first, outputs: codes.to_vec() }];
        let mut sums = vec![];
        for i in 0..self.matrices {
            let [own, scales] = self.own(i).map(given);
            let bias = self.has_bias.then(|| given(self.inputs() - 1));
            let operands =
                [codes[0].clone(), own, codes[1].clone(), scales].into_iter().chain(bias).collect();
            let place = match self.outputs() == self.matrices {
                true => (Bind::Output(i), outputs[i].clone()),
                false => {
                    scratch.push(outputs[0].size_bytes());
                    (Bind::Scratch(scratch.len() - 1), outputs[0].clone())
                }
            };
            sums.push(place.clone());
            steps.push(Step { op: Arc::new(self.product()), inputs: operands, outputs: vec![place] });
        }
        if let Some(program) = self.program.clone().filter(|_| self.matrices > 1) {
            let outputs = vec![(Bind::Output(0), outputs[0].clone())];
            steps.push(Step { op: Arc::new(program), inputs: sums, outputs });
        }
        sequence("coding_matmul_apart", &steps, scratch, caps)
    }

    /// Sums of all products, each made by `each` of operands there for it, and the program on them.
    fn compute(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let types: Vec<Type> = inputs.iter().map(|t| t.host_type()).collect();
        let mut coded: Vec<Tensor> = self
            .coded(&types)
            .expect("the signature has accepted these operands")
            .iter()
            .map(Tensor::zeros)
            .collect();
        self.coder().reference(&inputs[..self.before()], &mut coded);
        let mut sums: Vec<Tensor> = vec![];
        for i in 0..self.matrices {
            let at = if self.outputs() == self.matrices { i } else { 0 };
            let data = Data::zeros(outputs[at].data.dtype(), outputs[at].data.len());
            let mut sum = [Tensor { shape: outputs[at].shape.clone(), data }];
            let [codes, scales] = self.own(i).map(|at| inputs[at]);
            let bias = self.has_bias.then(|| inputs[inputs.len() - 1]);
            let operands: Vec<&Tensor> =
                [&coded[0], codes, &coded[1], scales].into_iter().chain(bias).collect();
            self.product().reference(&operands, &mut sum);
            sums.extend(sum);
        }
        match self.program.as_ref().filter(|_| self.matrices > 1) {
            Some(program) => program.reference(&sums.iter().collect::<Vec<_>>(), outputs),
            None => outputs.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum),
        }
    }
}

impl Operator for CodingMatmul {
    fn name(&self) -> &'static str {
        "coding_matmul"
    }

    fn settings(&self) -> String {
        let fixed = if self.fixed { ",fixed" } else { "" };
        let bias = if self.has_bias { ",bias" } else { "" };
        let mut text = format!("rule={}{fixed},matrices={}{bias}", self.rule.name(), self.matrices);
        if let Some(program) = &self.program {
            text += &format!(",then={}({})", program.name(), program.settings());
        }
        text
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let most = if self.has_bias { 1 } else { MOST_MATRICES };
        if !(1..=most).contains(&self.matrices) {
            let (expected, got) = (format!("1 to {most}"), self.matrices.to_string());
            return Err(Error::Setting { op, setting: "matrices", expected, got });
        }
        if inputs.len() != self.inputs() {
            return Err(Error::InputCount { op, expected: self.inputs(), got: inputs.len() });
        }
        super::dequantize_rows::expect_scales(op, "x", &inputs[0], &inputs[0].shape)?;
        let coded = self.coded(inputs)?;
        let bare = MatmulInt8 { has_bias: self.has_bias, ..MatmulInt8::default() };
        let mut outputs = vec![];
        for i in 0..self.matrices {
            outputs.extend(bare.signature(&self.types(&coded, inputs, i))?);
        }
        super::side_by_side::expect_program(op, self.program.as_ref(), outputs)
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        self.compute(inputs, outputs);
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let types: Vec<Type> = inputs.iter().map(View::host_type).collect();
        let mut coded: Vec<Tensor> = self
            .coded(&types)
            .expect("the signature has accepted these operands")
            .iter()
            .map(Tensor::zeros)
            .collect();
        let [codes, scales] = &mut coded[..] else { unreachable!("codes and scales") };
        let mut places = [ViewMut::of_tensor(codes), ViewMut::of_tensor(scales)];
        self.coder().host(&inputs[..self.before()], &mut places);
        let mut sums = vec![];
        for i in 0..self.matrices {
            let [own, scales] = self.own(i).map(|at| inputs[at]);
            let bias = self.has_bias.then(|| inputs[inputs.len() - 1]);
            let [x, x_scales] = [0, 1].map(|i: usize| View::of_tensor(&coded[i]));
            let operands: Vec<View> = [x, own, x_scales, scales].into_iter().chain(bias).collect();
            if self.outputs() == self.matrices {
                self.product().host(&operands, std::slice::from_mut(&mut outputs[i]));
                continue;
            }
            let mut sum = Tensor::zeros(&outputs[0].as_view().host_type());
            self.product().host(&operands, &mut [ViewMut::of_tensor(&mut sum)]);
            sums.push(sum);
        }
        if let Some(program) = self.program.as_ref().filter(|_| self.matrices > 1) {
            program.host(&sums.iter().map(View::of_tensor).collect::<Vec<_>>(), outputs);
        }
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "codes are whole numbers: train through a fake quantisation instead";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn grouped(&self, count: usize, program: Option<&Pointwise>) -> Option<Arc<dyn Operator>> {
        let plain = self.matrices == 1 && !self.has_bias && self.program.is_none();
        // A program makes one of two: more bind more buffers than every adapter grants.
        let most = if program.is_some() { 2 } else { MOST_MATRICES };
        (plain && (2..=most).contains(&count)).then(|| {
            Arc::new(CodingMatmul { matrices: count, program: program.cloned(), ..self.clone() }) as _
        })
    }

    fn common_inputs(&self) -> &'static [usize] {
        if self.fixed { &[0, 1] } else { &[0] }
    }

    fn with_epilogue(&self, program: &Pointwise) -> Option<Arc<dyn Operator>> {
        let simple = program.inputs == 1 && program.outputs.len() == 1;
        (self.program.is_none() && self.matrices == 1 && simple)
            .then(|| Arc::new(CodingMatmul { program: Some(program.clone()), ..self.clone() }) as _)
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let columns: Vec<usize> = (0..self.matrices).map(|i| inputs[self.own(i)[0]].shape[0]).collect();
        let divisor = (!self.fixed).then(|| self.rule.divisor());
        let coding = Coding { divisor, bounds: self.rule.bounds() };
        let layout = self.layout(inputs[0].shape.last());
        let fits = self.inputs() + self.outputs() <= caps.max_storage_buffers as usize;
        let mut variants: Vec<Variant> = Template::fitting(layout, inputs[0].shape.rows(), caps)
            .into_iter()
            .filter(|_| fits && inputs[0].dtype == DType::F32)
            .map(|template| self.vector(&template.coding(coding), &columns))
            .collect();
        variants.push(self.apart(inputs, outputs, caps));
        variants
    }

    fn is_heavy(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let columns: usize = (0..self.matrices).map(|i| inputs[self.own(i)[0]].shape[0]).sum();
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        let steps = self.program.as_ref().map_or(0, |p| p.steps.len() * outputs[0].shape.count());
        Cost { flops: (2 * inputs[0].shape.count() * columns + steps) as f64, bytes }
    }
}

/// One row and several, sums past what f32 holds, columns that end within a chunk; a scale of each row and a fixed one; one matrix with
/// bias and activation, several side by side and through a program.
pub fn cases() -> Cases {
    let mut cases = Cases::new("coding_matmul");
    let plain = |fixed| CodingMatmul::new(Rule::Narrow, fixed);
    for fixed in [false, true] {
        for (m, k, n) in
            [(1, 32, 8), (1, 576, 70), (2, 88, 33), (3, 7, 5), (4, 1536, 20), (8, 96, 17), (12, 64, 40)]
        {
            add_case(&mut cases, plain(fixed), m, k, &[n]);
        }
        let biased = CodingMatmul { has_bias: true, ..plain(fixed) };
        add_case(&mut cases, biased.clone(), 1, 64, &[24]);
        let activation = Some(Pointwise::single("gelu_tanh", 0.0));
        add_case(&mut cases, CodingMatmul { program: activation, rule: Rule::Wide, ..biased }, 2, 64, &[24]);
        for (m, k, columns) in [(1, 576, &[40, 8, 9][..]), (2, 24, &[5, 3]), (4, 13, &[8, 30])] {
            let matrices = columns.len();
            add_case(&mut cases, CodingMatmul { matrices, ..plain(fixed) }, m, k, columns);
            let program = Some(Pointwise::single("mul", 0.0));
            let op = CodingMatmul { matrices: 2, program, ..plain(fixed) };
            add_case(&mut cases, op, m, k, &[columns[0]; 2]);
        }
    }
    // The longest sums of the lowest codes.
    let k = 4096;
    let (x, scales) = (Tensor::f32([2, k], vec![-1.0; 2 * k]), Tensor::f32([9], vec![1.0; 9]));
    let w = Tensor::i8([9, k], vec![i8::MIN; 9 * k]);
    cases.add("all lowest", plain(false), vec![x, w, scales]).no_gradient();
    cases
}

fn add_case(cases: &mut Cases, op: CodingMatmul, m: usize, k: usize, columns: &[usize]) {
    assert!(k <= MOST_TERMS);
    // A fourth of a step from a code, and the largest on one: rounding errors decide nothing.
    let mut x: Vec<f32> =
        cases.codes([m, k]).as_i8().iter().map(|&c| (f32::from(c.max(-126)) + 0.25) / 128.0).collect();
    x.chunks_mut(k).for_each(|row| row[k / 2] = op.rule.divisor() / 128.0);
    let mut inputs = vec![Tensor::f32([m, k], x)];
    inputs.extend(op.fixed.then(|| Tensor::f32([1], vec![1.0 / 128.0])));
    for &n in columns {
        inputs.extend([cases.codes([n, k]), cases.statistic([n])]);
    }
    inputs.extend(op.has_bias.then(|| cases.statistic([columns[0]])));
    let label = format!("{} m{m} k{k} {columns:?}", op.settings());
    cases.add(label, op, inputs).no_gradient();
}
