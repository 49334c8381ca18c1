//! Several matmuls of one X by matrices of codes side by side in one dispatch, for the few rows of a text's next token.

use super::vector::{Template, with_params};
use super::{Layout, MatmulCoded};
use crate::ops::coded::{layouts, sample};
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::ops::pointwise::{self, Pointwise};
use crate::ops::side_by_side::{Member, expect_program, host, one_by_one, reference};
use crate::ops::{Cases, Cost, Emit, Error, Operator, Result, Site, Value};
use crate::tensor::{Tensor, Type, View, ViewMut};
use std::fmt::Write;
use std::sync::Arc;

/// Matrices at most.
pub const MOST_MATRICES: usize = 3;

/// `y_i = X W_i^T` for each of up to three W of one layout; with a program, one output `program(y_0, y_1, ..)` where all have as
/// many rows. Inputs: X, then codes, scales and offsets of each.
#[derive(Clone, Debug)]
pub struct MatmulCodedGroup {
    /// How each W lies in memory.
    pub layout: Layout,
    /// How many W there are, two or three.
    pub matrices: usize,
    /// A program of so many inputs and one output applied to each element.
    pub program: Option<Pointwise>,
}

impl MatmulCodedGroup {
    /// The products alone.
    fn members(&self) -> Vec<Member> {
        let op: Arc<dyn Operator> = Arc::new(MatmulCoded::new(self.layout));
        let parts = self.layout.inputs();
        let member = |i: usize| {
            let inputs = [0].into_iter().chain(1 + i * parts..1 + (i + 1) * parts).collect();
            Member { op: op.clone(), inputs }
        };
        (0..self.matrices).map(member).collect()
    }

    /// Rows of each W.
    fn columns(&self, inputs: &[Type]) -> Vec<usize> {
        (0..self.matrices).map(|i| inputs[1 + i * self.layout.inputs()].shape[0]).collect()
    }

    fn outputs(&self) -> usize {
        if self.program.is_some() { 1 } else { self.matrices }
    }

    /// Buffers of one dispatch.
    fn bindings(&self) -> Vec<Bind> {
        let inputs = 1 + self.matrices * self.layout.inputs();
        (0..inputs).map(Bind::Input).chain((0..self.outputs()).map(Bind::Output)).collect()
    }

    /// The outputs and what finishes a sum.
    fn declare_outputs(&self) -> String {
        let mut text = String::new();
        let first = 1 + self.matrices * self.layout.inputs();
        for i in 0..self.outputs() {
            let binding = first + i;
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

    fn vector(&self, template: &Template, columns: &[usize]) -> Variant {
        let mut body = String::new();
        let together = if self.program.is_some() { self.matrices } else { 1 };
        let mut tiles: Vec<usize> = columns.iter().map(|n| n.div_ceil(template.tile(together))).collect();
        let all: Vec<usize> = (0..self.matrices).collect();
        if self.program.is_some() {
            tiles.truncate(1);
            let sums: Vec<String> = all.iter().map(|i| format!("y{i}")).collect();
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
                    let store = format!("c{i}[row * {n} + column] = y0;");
                    let _ = writeln!(text, "{condition}{{");
                    template.dot(text, &[i], &n, &tile, &store);
                    let _ = writeln!(text, "}}{}", if i > 0 { " else " } else { "" });
                }
            });
        }
        let mut input = template.declare_x();
        for i in 0..self.matrices {
            input += &template.declare(i, 1 + i * self.layout.inputs());
        }
        let kernel = Kernel::new("matmul_coded_vector")
            .constant("GROUP", template.group() as u32)
            .constant("LANES", template.lanes() as u32)
            .paste("INPUT", input + &template.shared(together))
            .paste("OUTPUT", self.declare_outputs())
            .paste("BEGIN", "")
            .paste("BODY", body);
        let launch = Launch::new(kernel, self.bindings(), template.groups(tiles.iter().sum()));
        Variant::single(template.name().replace("vector", "group"), with_params(launch, columns, &tiles))
    }
}

impl Operator for MatmulCodedGroup {
    fn name(&self) -> &'static str {
        "matmul_coded_group"
    }

    fn settings(&self) -> String {
        let mut text = format!("matrices={},{}", self.matrices, self.layout.describe());
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
        let expected = 1 + self.matrices * self.layout.inputs();
        if inputs.len() != expected {
            return Err(Error::InputCount { op, expected, got: inputs.len() });
        }
        let mut outputs = vec![];
        for member in self.members() {
            outputs.extend(member.op.signature(&member.types(inputs))?);
        }
        expect_program(op, self.program.as_ref(), outputs)
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        reference(&self.members(), self.program.as_ref(), inputs, outputs);
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        host(&self.members(), self.program.as_ref(), inputs, outputs);
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: self.name(), hint: "train with matmuls of their own" })
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let (columns, m) = (self.columns(inputs), inputs[0].shape.rows());
        let fits = self.bindings().len() <= caps.max_storage_buffers as usize;
        let templates = Template::fitting(self.layout, m, caps);
        let mut variants: Vec<Variant> =
            templates.iter().filter(|_| fits).map(|template| self.vector(template, &columns)).collect();
        let name = "matmul_coded_group_apart";
        variants.push(one_by_one(name, &self.members(), self.program.as_ref(), inputs, outputs, caps));
        variants
    }

    fn is_heavy(&self) -> bool {
        true
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let columns: usize = self.columns(inputs).iter().sum();
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        let steps = self.program.as_ref().map_or(0, |p| p.steps.len() * outputs[0].shape.count());
        Cost { flops: (2 * inputs[0].shape.count() * columns + steps) as f64, bytes }
    }
}

/// One to eight rows; rows of W past a tile; every layout; side by side and through a program.
pub fn cases() -> Cases {
    let mut cases = Cases::new("matmul_coded_group");
    let gated = Pointwise::single("mul", 0.0);
    for (m, k, group, columns) in [
        (1, 64, 32, &[8, 40][..]),
        (1, 576, 64, &[65, 9, 33]),
        (2, 24, 8, &[5, 3]),
        (4, 72, 72, &[24, 1, 100]),
        (8, 13, 5, &[4, 9]),
    ] {
        for layout in layouts(k, group) {
            let mut inputs = vec![cases.normal([m, k])];
            columns.iter().for_each(|&n| inputs.extend(sample(&mut cases, &layout, n)));
            let op = MatmulCodedGroup { layout, matrices: columns.len(), program: None };
            let label = format!("{} m{m} {columns:?}", layout.describe());
            cases.add(label, op, inputs).sums(k).no_gradient();
            let n = columns[0];
            let mut inputs = vec![cases.normal([m, k])];
            (0..2).for_each(|_| inputs.extend(sample(&mut cases, &layout, n)));
            let op = MatmulCodedGroup { layout, matrices: 2, program: Some(gated.clone()) };
            let label = format!("{} m{m} product of {n}", layout.describe());
            // Each sum's error is multiplied by the other sum, which grows with the root of K.
            cases.add(label, op, inputs).sums(k).no_gradient().slack((k as f64).sqrt());
        }
    }
    cases
}
