//! Shader text of the workgroup-tiled matmul: declarations, the unrolled sums and the stores.

use super::access::{PARTS, four};
use super::geometry::{Form, Geometry};
use crate::ops::launch::Kernel;
use crate::tensor::DType;
use std::fmt::Write;

/// Writes a line of shader text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

/// Invocations along each axis of the workgroup.
const SIDE: usize = 16;
/// Portable bytes of workgroup memory.
const PORTABLE_BYTES: usize = 16 << 10;
/// Bytes of a staged vec4.
const QUAD_BYTES: usize = 16;

/// What distinguishes one generated kernel from another.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Template {
    pub form: Form,
    /// Storage of `a` and of `b`.
    pub operands: [DType; 2],
    /// Quads of four rows each invocation owns.
    pub row_quads: usize,
    /// Quads of four columns each invocation owns.
    pub column_quads: usize,
    /// Buffers that are staged in turn: one, or two so that fetching goes on while the other is multiplied.
    pub buffers: usize,
    /// Read `a` four elements at a time: its contiguous axis is a multiple of four.
    pub a_fours: bool,
    /// The same for `b`.
    pub b_fours: bool,
    /// Write `c` four elements at a time.
    pub c_fours: bool,
}

impl Template {
    /// Rows and columns of a tile.
    pub(in crate::ops) fn tile(&self) -> [usize; 2] {
        [self.row_quads * 4 * SIDE, self.column_quads * 4 * SIDE]
    }

    /// Tiles of the whole batch.
    pub(in crate::ops) fn tiles(&self, sizes: &Geometry) -> usize {
        let [tile_m, tile_n] = self.tile();
        sizes.matrices() * sizes.m.div_ceil(tile_m) * sizes.n.div_ceil(tile_n)
    }

    /// Depth staged at a time: 16 where both operands fit in the portable workgroup memory, else 8.
    pub(in crate::ops) fn step(&self) -> usize {
        if self.buffer_bytes(16) <= PORTABLE_BYTES { 16 } else { 8 }
    }

    /// Workgroup memory it takes.
    pub(in crate::ops) fn workgroup_bytes(&self) -> usize {
        self.buffers * self.buffer_bytes(self.step())
    }

    fn buffer_bytes(&self, step: usize) -> usize {
        self.staging(step).map(|[line, lines]| lines * (line + 1) * QUAD_BYTES).iter().sum()
    }

    /// Vec4 per staged line and number of lines, of `a` and of `b`.
    pub(in crate::ops) fn staging(&self, step: usize) -> [[usize; 2]; 2] {
        let [tile_m, tile_n] = self.tile();
        let a = if self.form == Form::Tn { [tile_m / 4, step] } else { [step / 4, tile_m] };
        let b = if self.form == Form::Nt { [step / 4, tile_n] } else { [tile_n / 4, step] };
        [a, b]
    }

    /// The type of the output's array.
    pub(in crate::ops) fn output(&self) -> &'static str {
        if self.c_fours { "array<vec4<Elem>>" } else { "array<Elem>" }
    }

    /// Bindings of the operands and how a vec4 of them is read.
    pub(in crate::ops) fn input(&self) -> String {
        let a_axes = if self.form == Form::Tn { ["k", "m"] } else { ["m", "k"] };
        let b_axes = if self.form == Form::Nt { ["n", "k"] } else { ["k", "n"] };
        let [a, b] = self.operands;
        four(0, "a", a, a_axes, self.a_fours) + &four(1, "b", b, b_axes, self.b_fours)
    }

    /// The kernel but for what is declared: operands, as [`Template::input`] does or in another way, and the output.
    pub(in crate::ops) fn kernel(&self, input: String) -> Kernel {
        let [tile_m, tile_n] = self.tile();
        let [[a_line, a_lines], [b_line, b_lines]] = self.staging(self.step());
        Kernel::new("matmul_tile")
            .constant("TILE_M", tile_m as u32)
            .constant("TILE_N", tile_n as u32)
            .constant("STEP", self.step() as u32)
            .constant("A_LINE", a_line as u32)
            .constant("A_LINES", a_lines as u32)
            .constant("B_LINE", b_line as u32)
            .constant("B_LINES", b_lines as u32)
            .constant("BUFFERS", self.buffers as u32)
            .paste("INPUT", input)
            .paste("SUMS", self.sums())
            .paste("BEGIN", self.begin())
            .paste("STAGE", self.stage())
            .paste("AHEAD", self.ahead())
            .paste("MULTIPLY", self.multiply())
            .paste("TURN", self.turn())
            .paste("STORE", self.store())
    }

    /// The accumulators: one vec4 of columns for each row.
    pub(in crate::ops) fn sums(&self) -> String {
        let mut text = String::new();
        for r in 0..self.row_quads * 4 {
            for j in 0..self.column_quads {
                line!(text, "var s{r}_{j} = vec4<f32>();");
            }
        }
        text
    }

    /// Which buffer comes first, and with two of them the first step's elements.
    pub(in crate::ops) fn begin(&self) -> String {
        if self.buffers == 1 {
            return "let stage_a = 0u;\nlet stage_b = 0u;\n".to_string();
        }
        let mut text = "var stage_a = 0u;\nvar stage_b = 0u;\n".to_string();
        self.fetch(&mut text, "var ", "k_first");
        text
    }

    /// This step's elements into workgroup memory.
    pub(in crate::ops) fn stage(&self) -> String {
        let mut text = String::new();
        for (name, first) in [("a", "row0"), ("b", "column0")] {
            let upper = name.to_uppercase();
            if self.buffers == 1 {
                line!(text, "for (var word = lane; word < {upper}_LINES * {upper}_LINE; word += 256u) {{");
                line!(text, "let line = word / {upper}_LINE;\nlet quad = word % {upper}_LINE;");
                let place = format!("line * ({upper}_LINE + 1u) + quad");
                line!(
                    text,
                    "{name}_tile[{place}] = read_{name}({name}_base, line, quad * 4u, {first}, k0);\n}}"
                );
                continue;
            }
            for word in 0..self.words(name) {
                let at = format!("(lane + {}u)", word * SIDE * SIDE);
                let place = format!("{at} / {upper}_LINE * ({upper}_LINE + 1u) + {at} % {upper}_LINE");
                line!(text, "{name}_tile[stage_{name} + {place}] = {name}_next{word};");
            }
        }
        text
    }

    /// With two buffers, the next step's elements are fetched while this one's are multiplied.
    pub(in crate::ops) fn ahead(&self) -> String {
        let mut text = String::new();
        if self.buffers == 2 {
            self.fetch(&mut text, "", "k0 + STEP");
        }
        text
    }

    /// The end of a step: nobody may still read what is staged next.
    pub(in crate::ops) fn turn(&self) -> &'static str {
        match self.buffers {
            1 => "workgroupBarrier();\n",
            _ => "stage_a = A_SIZE - stage_a;\nstage_b = B_SIZE - stage_b;\n",
        }
    }

    /// Reads the elements of the step at `k` that this invocation stages. Past the end of K they are zero.
    fn fetch(&self, text: &mut String, declare: &str, k: &str) {
        for (name, first) in [("a", "row0"), ("b", "column0")] {
            let upper = name.to_uppercase();
            for word in 0..self.words(name) {
                let at = format!("(lane + {}u)", word * SIDE * SIDE);
                let place = format!("{at} / {upper}_LINE, {at} % {upper}_LINE * 4u");
                line!(text, "{declare}{name}_next{word} = read_{name}({name}_base, {place}, {first}, {k});");
            }
        }
    }

    /// Vec4 of an operand that each invocation stages.
    fn words(&self, name: &str) -> usize {
        let [line, lines] = self.staging(self.step())[usize::from(name == "b")];
        line * lines / (SIDE * SIDE)
    }

    /// Four steps along K.
    pub(in crate::ops) fn multiply(&self) -> String {
        let mut text = String::new();
        for r in 0..self.row_quads * 4 {
            let (j, i) = (r / 4, r % 4);
            if self.form == Form::Tn {
                if i == 0 {
                    for k in 0..4 {
                        let quad = format!("{}u + lane_y", j * SIDE);
                        line!(
                            text,
                            "let am{k}_{j} = a_tile[stage_a + (quad * 4u + {k}u) * (A_LINE + 1u) + {quad}];"
                        );
                    }
                }
            } else {
                let row = format!("{}u + lane_y * 4u", j * 4 * SIDE + i);
                line!(text, "let ar{r} = a_tile[stage_a + ({row}) * (A_LINE + 1u) + quad];");
            }
        }
        for j in 0..self.column_quads {
            for i in 0..4 {
                if self.form == Form::Nt {
                    // Neighbouring lanes take neighbouring lines: their stride is odd, so they meet in no bank.
                    let column = format!("{}u + lane_x", (j * 4 + i) * SIDE);
                    line!(text, "let bc{j}_{i} = b_tile[stage_b + ({column}) * (B_LINE + 1u) + quad];");
                } else {
                    let quad = format!("{}u + lane_x", j * SIDE);
                    line!(
                        text,
                        "let b{j}_{i} = b_tile[stage_b + (quad * 4u + {i}u) * (B_LINE + 1u) + {quad}];"
                    );
                }
            }
            if self.form == Form::Nt {
                for (k, part) in PARTS.iter().enumerate() {
                    let of = |i| format!("bc{j}_{i}.{part}");
                    line!(text, "let b{j}_{k} = vec4<f32>({}, {}, {}, {});", of(0), of(1), of(2), of(3));
                }
            }
        }
        for (k, part) in PARTS.iter().enumerate() {
            for r in 0..self.row_quads * 4 {
                let factor = match self.form {
                    Form::Tn => format!("am{k}_{}.{}", r / 4, PARTS[r % 4]),
                    _ => format!("ar{r}.{part}"),
                };
                for j in 0..self.column_quads {
                    line!(text, "s{r}_{j} = fma(vec4<f32>({factor}), b{j}_{k}, s{r}_{j});");
                }
            }
        }
        text
    }

    /// Bias, activation and the guarded stores.
    pub(in crate::ops) fn store(&self) -> String {
        let mut text = String::new();
        for j in 0..self.column_quads {
            for (i, part) in PARTS.iter().enumerate() {
                let place = match self.form {
                    Form::Nt => format!("{}u + lane_x", (j * 4 + i) * SIDE),
                    _ => format!("{}u + lane_x * 4u", j * 4 * SIDE + i),
                };
                line!(text, "let column{j}{part} = column0 + {place};");
                line!(text, "let bias{j}{part} = bias_at(min(column{j}{part}, params.n - 1u));");
            }
        }
        for r in 0..self.row_quads * 4 {
            let row = format!("row0 + {}u + lane_y * 4u", r / 4 * 4 * SIDE + r % 4);
            line!(text, "if {row} < params.m {{");
            line!(text, "let start = c_base + ({row}) * params.n;");
            for j in 0..self.column_quads {
                let value = |part: &str| format!("finish(s{r}_{j}.{part}, bias{j}{part})");
                if self.c_fours {
                    let values = PARTS.map(value).join(", ");
                    line!(text, "if column{j}x < params.n {{");
                    line!(text, "c[(start + column{j}x) / 4u] = vec4<Elem>(vec4<f32>({values})); }}");
                    continue;
                }
                for part in PARTS {
                    let column = format!("column{j}{part}");
                    line!(text, "if {column} < params.n {{ c[start + {column}] = Elem({}); }}", value(part));
                }
            }
            line!(text, "}}");
        }
        text
    }
}
