//! Shader text of the matmul by cooperative matrices: staging, the unrolled products and the stores.
//!
//! Both operands have the matrices' own storage: nothing is rounded on the way. With 16 x 16 matrices workgroup memory holds
//! vec4, which Vulkan's loads take and which is written in wide stores; Metal lists 8 x 8 alone, and its loads want scalars.

use super::geometry::Form;
use crate::ops::launch::{Caps, Cooperative};
use crate::tensor::DType;
use std::fmt::Write;

/// Writes a line of shader text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

/// Elements of padding behind a staged line: 16 bytes in f16, so that loads of neighbouring lines meet in no bank.
const PADDING: usize = 8;
/// Subgroups larger than this are unknown.
const MOST_LANES: u32 = 128;

/// A size of tile: its variant's name, subgroups along rows and columns, and rows and columns of each.
#[derive(Clone, Copy, Debug)]
struct Cut {
    name: &'static str,
    grid: [usize; 2],
    block: [usize; 2],
}

/// The larger tile reads less for each product, the smaller one keeps more of a device busy.
const CUTS: [Cut; 2] = [
    Cut { name: "matmul_cooperative_large", grid: [2, 4], block: [64, 32] },
    Cut { name: "matmul_cooperative", grid: [2, 2], block: [32, 32] },
];

/// What distinguishes one generated kernel from another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Template {
    form: Form,
    cut: Cut,
    side: usize,
    /// Storage of both operands.
    operand: DType,
    /// Invocations of a workgroup.
    group: usize,
    /// Buffers that are staged in turn.
    buffers: usize,
}

impl Template {
    /// The kernels for these sizes and operands on this adapter, the larger tile first.
    pub(super) fn fitting(
        form: Form,
        operands: [DType; 2],
        [m, n, k]: [usize; 3],
        caps: &Caps,
    ) -> Vec<Template> {
        let [operand, other] = operands;
        let along = [if form == Form::Tn { m } else { k }, if form == Form::Nt { k } else { n }];
        let whole = along.iter().all(|axis| axis.is_multiple_of(4));
        let known = caps.subgroup && (1..=MOST_LANES).contains(&caps.subgroup_most);
        let named = operand != DType::F16 || caps.f16;
        if operand != other || !whole || !known || !named {
            return vec![];
        }
        let usable = |c: &&Cooperative| c.operands == operand && c.sums == DType::F32;
        let Some(kind) = caps.cooperative.iter().filter(usable).max_by_key(|c| c.side) else { return vec![] };
        let template = |cut: Cut| {
            let group = cut.grid[0] * cut.grid[1] * caps.subgroup_most as usize;
            let one = Template { form, cut, side: kind.side as usize, operand, group, buffers: 1 };
            let two = Template { buffers: 2, ..one };
            let most = caps.max_workgroup_bytes as usize;
            let fits = |t: &Template| t.group <= caps.max_invocations as usize && t.workgroup_bytes() <= most;
            [two, one].into_iter().find(fits)
        };
        CUTS.into_iter().filter_map(template).collect()
    }

    /// Name of the variant.
    pub(super) fn name(&self) -> &'static str {
        self.cut.name
    }

    /// Storage of both operands.
    pub(super) fn operand(&self) -> DType {
        self.operand
    }

    /// Rows and columns of a tile.
    pub(super) fn tile(&self) -> [usize; 2] {
        [0, 1].map(|axis| self.cut.grid[axis] * self.cut.block[axis])
    }

    /// Constants of the shader.
    pub(super) fn constants(&self) -> [(&'static str, usize); 8] {
        let [tile_m, tile_n] = self.tile();
        let [a_size, b_size] = self.sizes();
        [
            ("GROUP", self.group),
            ("SUBGROUPS", self.cut.grid[0] * self.cut.grid[1]),
            ("SIDE", self.side),
            ("TILE_M", tile_m),
            ("TILE_N", tile_n),
            ("STEP", self.step()),
            ("A_SIZE", a_size),
            ("B_SIZE", b_size),
        ]
    }

    /// Depth staged at a time: 64 bytes.
    fn step(&self) -> usize {
        64 / self.operand.size_bytes()
    }

    /// Elements that a unit of workgroup memory holds.
    fn unit(&self) -> usize {
        if self.side == 16 { 4 } else { 1 }
    }

    /// Lines along an operand's stored rows, and elements of each, unpadded.
    fn staged(&self, operand: usize) -> [usize; 2] {
        let tile = self.tile()[operand];
        let across = [Form::Tn, Form::Nt][operand];
        // A is stored along K but for TN, B along N but for NT.
        match (operand == 0) != (self.form == across) {
            true => [tile, self.step()],
            false => [self.step(), tile],
        }
    }

    /// Units from one staged line to the next.
    fn pitch(&self, operand: usize) -> usize {
        (self.staged(operand)[1] + PADDING) / self.unit()
    }

    /// Units of one buffer of each operand.
    fn sizes(&self) -> [usize; 2] {
        [0, 1].map(|operand| self.staged(operand)[0] * self.pitch(operand))
    }

    fn workgroup_bytes(&self) -> usize {
        let staged: usize = self.sizes().iter().sum();
        let sums = self.cut.grid[0] * self.cut.grid[1] * self.side * self.side * 4;
        self.buffers * staged * self.unit() * self.operand.size_bytes() + sums
    }

    /// Bindings of the operands and how four elements of each are read.
    pub(super) fn input(&self) -> String {
        let a_axes = if self.form == Form::Tn { ["k", "m"] } else { ["m", "k"] };
        let b_axes = if self.form == Form::Nt { ["n", "k"] } else { ["k", "n"] };
        let mut text = String::new();
        for (binding, name, axes) in [(0, "a", a_axes), (1, "b", b_axes)] {
            let corner = |axis| if axis == "k" { "k0" } else { "first" };
            line!(text, "@group(0) @binding({binding}) var<storage, read> {name}: array<vec4<Operand>>;");
            line!(
                text,
                "fn read_{name}(base: u32, line: u32, at: u32, first: u32, k0: u32) -> vec4<Operand> {{"
            );
            line!(text, "    let y = {} + line;\n    let x = {} + at;", corner(axes[0]), corner(axes[1]));
            line!(
                text,
                "    if y >= params.{} || x >= params.{} {{ return vec4<Operand>(); }}",
                axes[0],
                axes[1]
            );
            line!(text, "    return {name}[(base + y * params.{} + x) / 4u];\n}}", axes[1]);
        }
        text
    }

    /// Workgroup memory of the operands.
    pub(super) fn staging(&self) -> String {
        let unit = if self.unit() == 4 { "vec4<Operand>" } else { "Operand" };
        let one = |name: &str, upper: &str| {
            format!("var<workgroup> {name}_tile: array<{unit}, {}u * {upper}_SIZE>;\n", self.buffers)
        };
        one("a", "A") + &one("b", "B")
    }

    /// The sums, the subgroup's place in the tile, and the first step's elements.
    pub(super) fn begin(&self) -> String {
        let [block_m, block_n] = self.cut.block;
        let mut text = String::new();
        line!(text, "let own_row = own / {}u * {block_m}u;", self.cut.grid[1]);
        line!(text, "let own_column = own % {}u * {block_n}u;", self.cut.grid[1]);
        for (i, j) in self.matrices() {
            line!(text, "var s{i}_{j} = {}();", self.matrix("f32", "C"));
        }
        let declare = if self.buffers == 2 { "var" } else { "let" };
        line!(text, "{declare} stage_a = 0u;\n{declare} stage_b = 0u;");
        self.fetch(&mut text, "var ", "0u");
        text
    }

    /// Fetched elements into workgroup memory.
    pub(super) fn stage(&self) -> String {
        let mut text = String::new();
        self.each_quad(&mut text, |text, name, operand, word, place| {
            let [line, at] = place;
            let pitch = self.pitch(operand);
            let unit = self.unit();
            let start = format!("stage_{name} + {line} * {pitch}u + {at} / {unit}u");
            if unit == 4 {
                line!(text, "{name}_tile[{start}] = {name}_next{word};");
                return;
            }
            for (i, part) in super::access::PARTS.iter().enumerate() {
                line!(text, "{name}_tile[{start} + {i}u] = {name}_next{word}.{part};");
            }
        });
        text
    }

    /// The next step's elements. Past the end of K they are zero.
    pub(super) fn ahead(&self) -> String {
        let mut text = String::new();
        self.fetch(&mut text, "", "k0 + STEP");
        text
    }

    fn fetch(&self, text: &mut String, declare: &str, k: &str) {
        if !declare.is_empty() {
            for (name, operand) in [("a", 0), ("b", 1)] {
                (0..self.words(operand))
                    .for_each(|word| line!(text, "{declare}{name}_next{word} = vec4<Operand>();"));
            }
        }
        self.each_quad(text, |text, name, _, word, [line, at]| {
            let first = if name == "a" { "row0" } else { "column0" };
            line!(text, "{name}_next{word} = read_{name}({name}_base, {line}, {at}, {first}, {k});");
        });
    }

    /// Vec4 of an operand that each invocation stages.
    fn words(&self, operand: usize) -> usize {
        let [lines, along] = self.staged(operand);
        (lines * along / 4).div_ceil(self.group)
    }

    /// Lines for each vec4 that an invocation stages, with its line and element as text.
    fn each_quad(&self, text: &mut String, write: impl Fn(&mut String, &str, usize, usize, [String; 2])) {
        for (name, operand) in [("a", 0), ("b", 1)] {
            let [lines, along] = self.staged(operand);
            let (quads, all) = (along / 4, lines * along / 4);
            for word in 0..self.words(operand) {
                let at = format!("(lane + {}u)", word * self.group);
                let guarded = (word + 1) * self.group > all;
                if guarded {
                    line!(text, "if {at} < {all}u {{");
                }
                write(
                    text,
                    name,
                    operand,
                    word,
                    [format!("({at} / {quads}u)"), format!("({at} % {quads}u * 4u)")],
                );
                if guarded {
                    line!(text, "}}");
                }
            }
        }
    }

    /// All products of a step.
    pub(super) fn multiply(&self) -> String {
        let Template { side, .. } = *self;
        let [block_m, block_n] = self.cut.block;
        let unit = self.unit();
        let mut text = String::new();
        for turn in 0..self.step() / side {
            let k = turn * side;
            for (operand, name, place, count, use_as) in
                [(0, "a", "own_row", block_m / side, "A"), (1, "b", "own_column", block_n / side, "B")]
            {
                let pitch = self.pitch(operand);
                let along_k = self.staged(operand)[1] == self.step();
                // A by rows lies along K, B by rows lies along N.
                let load = if (operand == 0) == along_k { "coopLoadT" } else { "coopLoad" };
                for i in 0..count {
                    let at = format!("({place} + {}u)", i * side);
                    let start = match along_k {
                        true => format!("{at} * {pitch}u + {}u", k / unit),
                        false => format!("{}u + {at} / {unit}u", k * pitch),
                    };
                    let matrix = self.matrix("Operand", use_as);
                    line!(
                        text,
                        "let {name}{turn}_{i} = {load}<{matrix}>(&{name}_tile[stage_{name} + {start}], {pitch}u);"
                    );
                }
            }
            for (i, j) in self.matrices() {
                line!(text, "s{i}_{j} = coopMultiplyAdd(a{turn}_{i}, b{turn}_{j}, s{i}_{j});");
            }
        }
        text
    }

    /// The end of a step: nobody may still read what is staged next.
    pub(super) fn turn(&self) -> &'static str {
        match self.buffers {
            1 => "workgroupBarrier();\n",
            _ => "stage_a = A_SIZE - stage_a;\nstage_b = B_SIZE - stage_b;\n",
        }
    }

    /// One matrix of each subgroup at a time through workgroup memory, then bias, activation and the guarded stores.
    pub(super) fn store(&self) -> String {
        let Template { side, .. } = *self;
        let [block_m, block_n] = self.cut.block;
        let across = self.cut.grid[1];
        let mut text = String::new();
        for (i, j) in self.matrices() {
            line!(text, "coopStoreT(s{i}_{j}, &sums[own * AREA], SIDE);\nworkgroupBarrier();");
            line!(text, "for (var e = lane; e < SUBGROUPS * AREA; e += GROUP) {{");
            line!(text, "let block = e / AREA;");
            line!(text, "let row = row0 + block / {across}u * {block_m}u + {}u + e % AREA / SIDE;", i * side);
            line!(text, "let column = column0 + block % {across}u * {block_n}u + {}u + e % SIDE;", j * side);
            line!(text, "if row < params.m && column < params.n {{");
            line!(
                text,
                "c[c_base + row * params.n + column] = Elem(finish(sums[e], bias_at(column)));\n}}\n}}"
            );
            line!(text, "workgroupBarrier();");
        }
        text
    }

    fn matrices(&self) -> impl Iterator<Item = (usize, usize)> {
        let [rows, columns] = self.cut.block.map(|size| size / self.side);
        (0..rows).flat_map(move |i| (0..columns).map(move |j| (i, j)))
    }

    fn matrix(&self, element: &str, use_as: &str) -> String {
        format!("coop_mat{0}x{0}<{element}, {use_as}>", self.side)
    }
}
