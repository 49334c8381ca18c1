//! Several matmuls of one A side by side in one dispatch, for the few rows of a text's next token.

use super::access::Access;
use super::geometry::Form;
use super::vector::Template;
use super::{Matmul, MatmulEmit};
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::ops::pointwise::{self, Pointwise};
use crate::ops::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_shape,
};
use crate::tensor::{DType, Data, Shape, Tensor, Type, View, ViewMut};
use std::fmt::Write;
use std::sync::Arc;

/// Matrices at most: with their outputs they fill the storage buffers every adapter grants.
pub const MOST_MATRICES: usize = 3;
/// Invocations of a workgroup of the plain kernel.
const PLAIN_GROUP: usize = 64;

/// `y_i = A B_i^T` for each of up to three B stored as `[N_i, K]`; with a program, one output `program(y_0, y_1, ..)` where
/// all have the same N.
#[derive(Clone, Debug)]
pub struct MatmulGroup {
    /// How many B there are, two or three.
    pub matrices: usize,
    /// A program of so many inputs and one output applied to each element.
    pub program: Option<Pointwise>,
}

/// Sizes of one application.
struct Sizes {
    m: usize,
    k: usize,
    columns: Vec<usize>,
}

impl MatmulGroup {
    fn sizes(&self, inputs: &[Type]) -> Sizes {
        let columns = inputs[1..].iter().map(|b| b.shape[0]).collect();
        Sizes { m: inputs[0].shape.rows(), k: inputs[0].shape.last(), columns }
    }

    /// Buffers of one dispatch.
    fn bindings(&self) -> Vec<Bind> {
        let outputs = if self.program.is_some() { 1 } else { self.matrices };
        (0..=self.matrices).map(Bind::Input).chain((0..outputs).map(Bind::Output)).collect()
    }

    /// Declarations of A and the B, and of the outputs with what finishes a sum.
    fn declarations(&self, [a, b]: [Access; 2], chunk: usize) -> [String; 2] {
        let mut input = a.declare(0, "a", chunk);
        let names = ["b0", "b1", "b2"];
        for (i, name) in names.iter().enumerate().take(self.matrices) {
            input += &b.declare(1 + i, name, chunk);
        }
        let mut output = String::new();
        let mut declare = |i: usize| {
            let binding = 1 + self.matrices + i;
            let _ = writeln!(
                output,
                "@group(0) @binding({binding}) var<storage, read_write> c{i}: array<Elem>; // [M, N]"
            );
        };
        match &self.program {
            None => (0..self.matrices).for_each(declare),
            Some(program) => {
                declare(0);
                let inputs: Vec<String> = (0..self.matrices).map(|i| format!("x{i}: f32")).collect();
                let _ = writeln!(output, "fn finish({}) -> f32 {{", inputs.join(", "));
                output += &pointwise::ending(Some(program));
            }
        }
        [input, output]
    }

    /// `finish(y0, y1)` and so on.
    fn finished(&self) -> String {
        let sums: Vec<String> = (0..self.matrices).map(|i| format!("y{i}")).collect();
        format!("finish({})", sums.join(", "))
    }

    fn launch_of(
        &self,
        kernel: Kernel,
        sizes: &Sizes,
        dtype: DType,
        groups: usize,
        tiles: [usize; 3],
    ) -> Launch {
        let n = |i: usize| sizes.columns.get(i).copied().unwrap_or(0);
        Launch::new(kernel.retype("Elem", dtype), self.bindings(), groups)
            .param("m", sizes.m)
            .param("k", sizes.k)
            .param("n0", n(0))
            .param("n1", n(1))
            .param("n2", n(2))
            .param("end1", tiles[0])
            .param("end2", tiles[0] + tiles[1])
            .param("tiles", tiles.iter().sum::<usize>())
    }

    fn vector(&self, template: &Template, sizes: &Sizes, dtype: DType) -> Variant {
        let teams = template.group() / template.lanes();
        let (mut tiles, mut body) = ([0; 3], String::new());
        match &self.program {
            Some(_) => {
                tiles[0] = sizes.columns[0].div_ceil(template.columns_of_each(self.matrices) * teams);
                let store = format!("c0[row * params.n0 + column] = Elem({});", self.finished());
                let names = &["b0", "b1", "b2"][..self.matrices];
                template.over_tiles(&mut body, |text| template.dot(text, names, "params.n0", "tile", &store));
            }
            None => {
                for (tiles, n) in tiles.iter_mut().zip(&sizes.columns) {
                    *tiles = n.div_ceil(template.columns_of_each(1) * teams);
                }
                template.over_tiles(&mut body, |text| {
                    for i in (0..self.matrices).rev() {
                        let (condition, tile) = match i {
                            0 => (String::new(), "tile".to_string()),
                            _ => (format!("if tile >= params.end{i} "), format!("(tile - params.end{i})")),
                        };
                        let (b, n) = (format!("b{i}"), format!("params.n{i}"));
                        let store = format!("c{i}[row * {n} + column] = Elem(y0);");
                        let _ = writeln!(text, "{condition}{{");
                        template.dot(text, &[&b], &n, &tile, &store);
                        let _ = writeln!(text, "}}{}", if i > 0 { " else " } else { "" });
                    }
                });
            }
        }
        let [input, output] = self.declarations(template.accesses(), template.chunk());
        let kernel = Kernel::new("matmul_group")
            .constant("GROUP", template.group() as u32)
            .constant("LANES", template.lanes() as u32)
            .paste("INPUT", input + &template.shared())
            .paste("OUTPUT", output)
            .paste("BODY", body);
        let groups = template.groups(tiles.iter().sum());
        let name = template.name().replace("vector", "group");
        Variant::single(name, self.launch_of(kernel, sizes, dtype, groups, tiles))
    }

    /// One invocation for each output.
    fn plain(&self, sizes: &Sizes, [operands @ .., c]: [DType; 3]) -> Variant {
        let accesses = operands.map(Access::narrow);
        let mut counts = [0; 3];
        match &self.program {
            Some(_) => counts[0] = sizes.m * sizes.columns[0],
            None => counts.iter_mut().zip(&sizes.columns).for_each(|(count, n)| *count = sizes.m * n),
        }
        let mut body = "let at = number * GROUP + local.x;\nif at >= params.tiles { return; }\n".to_string();
        let sum = |i: usize, y: usize| {
            format!(
                "var y{y} = 0.0;\nfor (var k = 0u; k < params.k; k += 1u) {{\ny{y} = fma({}, {}, y{y});\n}}\n",
                accesses[0].element("a", "place / n * params.k + k"),
                accesses[1].element(&format!("b{i}"), "place % n * params.k + k")
            )
        };
        match &self.program {
            Some(_) => {
                body += "let place = at;\nlet n = params.n0;\n";
                (0..self.matrices).for_each(|i| body += &sum(i, i));
                body += &format!("c0[place] = Elem({});\n", self.finished());
            }
            None => {
                for i in (0..self.matrices).rev() {
                    let start = if i == 0 { "0u".to_string() } else { format!("params.end{i}") };
                    body +=
                        &format!("if at >= {start} {{\nlet place = at - {start};\nlet n = params.n{i};\n");
                    body += &sum(i, 0);
                    body += &format!("c{i}[place] = Elem(y0);\nreturn;\n}}\n");
                }
            }
        }
        let [input, output] = self.declarations(accesses, 1);
        let kernel = Kernel::new("matmul_group")
            .constant("GROUP", PLAIN_GROUP as u32)
            .constant("LANES", PLAIN_GROUP as u32)
            .paste("INPUT", input)
            .paste("OUTPUT", output)
            .paste("BODY", body);
        let groups = counts.iter().sum::<usize>().div_ceil(PLAIN_GROUP);
        Variant::single("matmul_group_plain", self.launch_of(kernel, sizes, c, groups, counts))
    }
}

impl Operator for MatmulGroup {
    fn name(&self) -> &'static str {
        "matmul_group"
    }

    fn settings(&self) -> String {
        let mut text = format!("matrices={}", self.matrices);
        if let Some(program) = &self.program {
            text += &format!(",then={}({})", program.name(), program.settings());
        }
        text
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        if !(2..=MOST_MATRICES).contains(&self.matrices) {
            let (expected, got) = (format!("2 to {MOST_MATRICES}"), self.matrices.to_string());
            return Err(Error::Setting { op, setting: "matrices", expected, got });
        }
        let expected = 1 + self.matrices;
        if inputs.len() != expected {
            return Err(Error::InputCount { op, expected, got: inputs.len() });
        }
        let plain = Matmul::new(Form::Nt);
        expect_float(op, "a", &inputs[0])?;
        let mut outputs = vec![];
        for b in &inputs[1..] {
            expect_dtype(op, "b", b, inputs[0].dtype)?;
            if b.shape.len() != 2 {
                let expected = "two axes, [N, K]".to_string();
                return Err(Error::Shape { op, input: "b", expected, got: b.shape.clone() });
            }
            outputs.extend(plain.signature(&[inputs[0].clone(), b.clone()])?);
        }
        let Some(program) = &self.program else { return Ok(outputs) };
        if program.inputs != self.matrices || program.outputs.len() != 1 {
            let got = format!("{} inputs, {} outputs", program.inputs, program.outputs.len());
            let expected = format!("a program of {} inputs and one output", self.matrices);
            return Err(Error::Setting { op, setting: "program", expected, got });
        }
        for b in &inputs[2..] {
            expect_shape(op, "b", b, &inputs[1].shape)?;
        }
        outputs.truncate(1);
        Ok(outputs)
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let plain = Matmul::new(Form::Nt);
        let Some(program) = &self.program else {
            for (&b, y) in inputs[1..].iter().zip(outputs) {
                plain.reference(&[inputs[0], b], std::slice::from_mut(y));
            }
            return;
        };
        let mut sums = vec![];
        for &b in &inputs[1..] {
            let data = Data::zeros(outputs[0].data.dtype(), outputs[0].data.len());
            let mut sum = [Tensor { shape: outputs[0].shape.clone(), data }];
            plain.reference(&[inputs[0], b], &mut sum);
            sums.extend(sum);
        }
        program.reference(&sums.iter().collect::<Vec<_>>(), outputs);
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let plain = Matmul::new(Form::Nt);
        let Some(program) = &self.program else {
            for (&b, y) in inputs[1..].iter().zip(outputs) {
                plain.host(&[inputs[0], b], std::slice::from_mut(y));
            }
            return;
        };
        let kind = outputs[0].as_view().host_type();
        let mut sums: Vec<Tensor> = (0..self.matrices).map(|_| Tensor::zeros(&kind)).collect();
        for (&b, sum) in inputs[1..].iter().zip(&mut sums) {
            plain.host(&[inputs[0], b], &mut [ViewMut::of_tensor(sum)]);
        }
        let sums: Vec<View> = sums.iter().map(View::of_tensor).collect();
        program.host(&sums, outputs);
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: self.name(), hint: "train with matmuls of their own" })
    }

    fn expand(&self, emit: &mut dyn Emit, inputs: &[Value]) -> Option<Result<Vec<Value>>> {
        let mut expand = || {
            let sums = inputs[1..]
                .iter()
                .map(|&b| emit.matmul_form(Form::Nt, inputs[0], b))
                .collect::<Result<Vec<_>>>()?;
            match &self.program {
                Some(program) => Ok(vec![emit.apply_one(Arc::new(program.clone()), &sums)?]),
                None => Ok(sums),
            }
        };
        Some(expand())
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let sizes = self.sizes(inputs);
        let (operand, c) = (inputs[0].dtype, outputs[0].dtype);
        let widest = sizes.columns.iter().copied().max().unwrap_or(1);
        let together = if self.program.is_some() { self.matrices } else { 1 };
        let mut variants: Vec<Variant> =
            Template::fitting(Form::Nt, [operand; 2], [sizes.m, widest, sizes.k], caps)
                .iter()
                .filter(|template| template.columns_of_each(together) > 0)
                .map(|template| self.vector(template, &sizes, c))
                .collect();
        variants.push(self.plain(&sizes, [operand, operand, c]));
        variants
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let Sizes { m, k, columns } = self.sizes(inputs);
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        let steps = self.program.as_ref().map_or(0, |p| p.steps.len() * m * columns[0]);
        Cost { flops: (2 * m * k * columns.iter().sum::<usize>() + steps) as f64, bytes }
    }
}

/// One to four rows, columns past a tile, K of whole and broken chunks; side by side and through a program.
pub fn cases() -> Cases {
    let mut cases = Cases::new("matmul_group");
    let gated = Pointwise::single("mul", 0.0);
    for (m, k, columns) in [
        (1, 8, &[8, 8][..]),
        (1, 24, &[65, 9, 9]),
        (1, 7, &[5, 3]),
        (2, 100, &[40, 17, 33]),
        (4, 72, &[24, 1, 260]),
        (3, 576, &[12, 4]),
    ] {
        let a = cases.normal([m, k]);
        let mut inputs = vec![a.clone()];
        inputs.extend(columns.iter().map(|&n| cases.normal([n, k])));
        let op = MatmulGroup { matrices: columns.len(), program: None };
        cases.add(format!("m{m} k{k} {columns:?}"), op, inputs).sums(k).no_gradient();
        let n = columns[0];
        let inputs = vec![a, cases.normal([n, k]), cases.normal([n, k])];
        let op = MatmulGroup { matrices: 2, program: Some(gated.clone()) };
        let case = cases.add(format!("m{m} k{k} product of {n}"), op, inputs).sums(k).no_gradient();
        // Each sum's error is multiplied by the other sum, which grows with the root of K.
        case.slack((k as f64).sqrt());
    }
    let inputs = vec![cases.normal(Shape::from([1, 1, 40])), cases.normal([9, 40]), cases.normal([9, 40])];
    let op = MatmulGroup { matrices: 2, program: None };
    cases.add("three axes", op, inputs).sums(40).no_gradient();
    cases
}
