//! Shader text of the workgroup-tiled matmul: declarations, the unrolled sums and the stores.

use super::access::{PARTS, four};
use super::geometry::Form;
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

/// What distinguishes one generated kernel from another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Template {
    pub form: Form,
    /// Storage of `a` and of `b`.
    pub operands: [DType; 2],
    /// Quads of four rows each invocation owns.
    pub row_quads: usize,
    /// Quads of four columns each invocation owns.
    pub column_quads: usize,
    /// Read `a` four elements at a time: its contiguous axis is a multiple of four.
    pub a_fours: bool,
    /// The same for `b`.
    pub b_fours: bool,
    /// Write `c` four elements at a time.
    pub c_fours: bool,
}

impl Template {
    /// Rows and columns of a tile.
    pub(super) fn tile(&self) -> [usize; 2] {
        [self.row_quads * 4 * SIDE, self.column_quads * 4 * SIDE]
    }

    /// Depth staged at a time: 16 where both operands fit in the portable workgroup memory, else 8.
    pub(super) fn step(&self) -> usize {
        let bytes =
            |step| -> usize { self.staging(step).map(|[line, lines]| lines * (line + 1) * 16).iter().sum() };
        if bytes(16) <= PORTABLE_BYTES { 16 } else { 8 }
    }

    /// Vec4 per staged line and number of lines, of `a` and of `b`.
    pub(super) fn staging(&self, step: usize) -> [[usize; 2]; 2] {
        let [tile_m, tile_n] = self.tile();
        let a = if self.form == Form::Tn { [tile_m / 4, step] } else { [step / 4, tile_m] };
        let b = if self.form == Form::Nt { [step / 4, tile_n] } else { [tile_n / 4, step] };
        [a, b]
    }

    /// The type of the output's array.
    pub(super) fn output(&self) -> &'static str {
        if self.c_fours { "array<vec4<Elem>>" } else { "array<Elem>" }
    }

    /// Bindings of the operands and how a vec4 of them is read.
    pub(super) fn input(&self) -> String {
        let a_axes = if self.form == Form::Tn { ["k", "m"] } else { ["m", "k"] };
        let b_axes = if self.form == Form::Nt { ["n", "k"] } else { ["k", "n"] };
        let [a, b] = self.operands;
        four(0, "a", a, a_axes, self.a_fours) + &four(1, "b", b, b_axes, self.b_fours)
    }

    /// The accumulators: one vec4 of columns for each row.
    pub(super) fn sums(&self) -> String {
        let mut text = String::new();
        for r in 0..self.row_quads * 4 {
            for j in 0..self.column_quads {
                line!(text, "var s{r}_{j} = vec4<f32>();");
            }
        }
        text
    }

    /// Four steps along K.
    pub(super) fn multiply(&self) -> String {
        let mut text = String::new();
        for r in 0..self.row_quads * 4 {
            let (j, i) = (r / 4, r % 4);
            if self.form == Form::Tn {
                if i == 0 {
                    for k in 0..4 {
                        let quad = format!("{}u + lane_y", j * SIDE);
                        line!(text, "let am{k}_{j} = a_tile[(quad * 4u + {k}u) * (A_LINE + 1u) + {quad}];");
                    }
                }
            } else {
                let row = format!("{}u + lane_y * 4u", j * 4 * SIDE + i);
                line!(text, "let ar{r} = a_tile[({row}) * (A_LINE + 1u) + quad];");
            }
        }
        for j in 0..self.column_quads {
            for i in 0..4 {
                if self.form == Form::Nt {
                    // Neighbouring lanes take neighbouring lines: their stride is odd, so they meet in no bank.
                    let column = format!("{}u + lane_x", (j * 4 + i) * SIDE);
                    line!(text, "let bc{j}_{i} = b_tile[({column}) * (B_LINE + 1u) + quad];");
                } else {
                    let quad = format!("{}u + lane_x", j * SIDE);
                    line!(text, "let b{j}_{i} = b_tile[(quad * 4u + {i}u) * (B_LINE + 1u) + {quad}];");
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
    pub(super) fn store(&self) -> String {
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
