//! Shader text of the register-tiled matmul of codes, for drivers that run on the CPU.
//!
//! Such a driver has no instruction for products of bytes: a dot of four costs it eight unpackings, four products and four sums. But a
//! byte once unpacked to a float serves a whole row or column of the tile, and each product is then one fused
//! multiply-add, as in f32: exact as long as sums stay within 24 bits, while the operands are a quarter of the bytes.
//! Longer sums go in runs, whose ends are added up as i32 in the output's place.

use crate::ops::coded::unpack_bytes;
use std::fmt::Write;

/// Terms of a run: 1024 products of up to 128 * 128 sum up to 2^24 at most.
pub(super) const RUN: usize = 1024;

/// Rows whose sums go on side by side: while one product is under way, the other's begins.
const ABREAST: usize = 2;

/// Writes a line of shader text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

/// How products are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sum {
    /// Of unpacked floats.
    Fma,
    /// Of packed words, in i32.
    Dot,
}

/// What distinguishes one generated kernel from another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Template {
    pub sum: Sum,
    /// Invocations that share a tile: 1, or a subgroup, which then reads A together.
    pub lanes: usize,
    /// Rows of a tile, a multiple of the lanes.
    pub rows: usize,
    /// Columns of one lane, a multiple of four.
    pub columns: usize,
    /// Codes of one load and of one turn of the loop: 4 or 8.
    pub chunk: usize,
    /// True if sums go in runs, since K is longer than one, or for groups.
    pub in_runs: bool,
    /// Columns that share a scale: a run then is a group, whose scaled sum is added up as f32 in the output's place.
    pub group: Option<usize>,
    /// Write four elements at a time.
    pub fours: bool,
}

impl Template {
    /// The type of the output's array.
    pub(super) fn output(&self) -> &'static str {
        match (self.in_runs, self.fours) {
            (true, true) => "array<vec4<u32>>",
            (true, false) => "array<u32>",
            (false, true) => "array<vec4<f32>>",
            (false, false) => "array<f32>",
        }
    }

    /// Declarations of the operands.
    pub(super) fn input(&self) -> String {
        let word = if self.chunk == 8 { "vec2<u32>" } else { "u32" };
        let declare = |binding, name| {
            format!("@group(0) @binding({binding}) var<storage, read> {name}: array<{word}>;\n")
        };
        declare(0, "a") + &declare(1, "b")
    }

    /// The loop and the stores.
    pub(super) fn body(&self) -> String {
        let mut text = String::new();
        self.bases(&mut text);
        match self.in_runs {
            true => {
                let run = self.group.unwrap_or(RUN);
                line!(text, "for (var first = 0u; first < params.k; first += {run}u) {{");
                line!(text, "let end = min(first + {run}u, params.k) / {}u;", self.chunk);
            }
            false => line!(text, "let first = 0u;\nlet end = params.k / {}u;", self.chunk),
        }
        let zero = if self.sum == Sum::Fma { "0.0" } else { "0i" };
        for r in 0..self.rows {
            (0..self.columns).for_each(|c| line!(text, "var s{r}_{c} = {zero};"));
        }
        line!(text, "for (var k = first / {}u; k < end; k += 1u) {{", self.chunk);
        self.multiply(&mut text);
        line!(text, "}}");
        self.store(&mut text);
        if self.in_runs {
            line!(text, "}}");
        }
        text
    }

    /// Positions that do not change along K. Rows and columns past the end read the last one; their sums are not stored.
    fn bases(&self, text: &mut String) {
        line!(text, "let chunks = params.k / {}u;", self.chunk);
        line!(text, "let column = column0 + lane * {}u;", self.columns);
        for j in 0..self.rows / self.lanes {
            let row = format!("min(row0 + {}u + lane, last_m)", j * self.lanes);
            line!(text, "let a_at{j} = {row} * chunks;");
        }
        for c in 0..self.columns {
            line!(text, "let b_at{c} = min(column + {c}u, last_n) * chunks;");
        }
    }

    fn multiply(&self, text: &mut String) {
        for c in 0..self.columns {
            self.read(text, "b", c);
        }
        for j in 0..self.rows / self.lanes {
            self.read(text, "a", j);
        }
        let steps = if self.sum == Sum::Fma { self.chunk } else { self.chunk / 4 };
        for first in (0..self.rows).step_by(ABREAST) {
            for (r, k) in (first..first + ABREAST).flat_map(|r| (0..steps).map(move |k| (r, k))) {
                let own = format!("a{}_{k}", r / self.lanes);
                match self.lanes {
                    1 => line!(text, "let f{r}_{k} = {own};"),
                    _ => line!(text, "let f{r}_{k} = subgroupBroadcast({own}, {}u);", r % self.lanes),
                }
            }
            for (c, k) in (0..self.columns).flat_map(|c| (0..steps).map(move |k| (c, k))) {
                for r in first..first + ABREAST {
                    match self.sum {
                        Sum::Fma => line!(text, "s{r}_{c} = fma(f{r}_{k}, b{c}_{k}, s{r}_{c});"),
                        Sum::Dot => line!(text, "s{r}_{c} += dot4I8Packed(f{r}_{k}, b{c}_{k});"),
                    }
                }
            }
        }
    }

    /// Reads a chunk of row or column `i` of an operand as `a{i}_0`, `a{i}_1` ..: codes as floats, or words.
    fn read(&self, text: &mut String, operand: &str, i: usize) {
        line!(text, "let {operand}w{i} = {operand}[{operand}_at{i} + k];");
        for word in 0..self.chunk / 4 {
            let part = if self.chunk == 4 { "" } else { [".x", ".y"][word] };
            if self.sum == Sum::Dot {
                line!(text, "let {operand}{i}_{word} = {operand}w{i}{part};");
                continue;
            }
            unpack_bytes(text, &format!("{operand}w{i}{part}"), &format!("{operand}{i}"), 4 * word);
        }
    }

    fn store(&self, text: &mut String) {
        if self.in_runs {
            line!(text, "let is_last = end == chunks;");
        }
        for c in 0..self.columns {
            match self.group {
                None => line!(text, "let scale_{c} = b_scale[min(column + {c}u, last_n)];"),
                Some(group) => line!(
                    text,
                    "let scale_{c} = b_scale[min(column + {c}u, last_n) * ((params.k + {}u) / {group}u) + first / {group}u];",
                    group - 1
                ),
            }
            line!(text, "let bias_{c} = bias_at(min(column + {c}u, last_n));");
        }
        for r in 0..self.rows {
            line!(text, "if row0 + {r}u < params.m {{");
            line!(text, "let start = (row0 + {r}u) * params.n + column;");
            line!(text, "let row_scale = a_scale[row0 + {r}u];");
            for c in 0..self.columns {
                if self.fours && c % 4 == 0 {
                    line!(text, "if column + {c}u < params.n {{");
                    line!(text, "let at = (start + {c}u) / 4u;");
                    if self.in_runs {
                        line!(text, "var before = vec4<u32>();\nif first > 0u {{ before = c[at]; }}");
                    }
                } else if !self.fours {
                    line!(text, "if column + {c}u < params.n {{");
                    line!(text, "let at = start + {c}u;");
                    if self.in_runs {
                        line!(text, "var before = 0u;\nif first > 0u {{ before = c[at]; }}");
                    }
                }
                self.finish(text, r, c);
                if !self.fours {
                    line!(text, "c[at] = y{c};\n}}");
                } else if c % 4 == 3 {
                    let vector = if self.in_runs { "vec4<u32>" } else { "vec4<f32>" };
                    line!(text, "c[at] = {vector}(y{}, y{}, y{}, y{c});\n}}", c - 3, c - 2, c - 1);
                }
            }
            line!(text, "}}");
        }
    }

    /// What is stored of a sum, as `y{c}`: with runs, the i32 so far until the last one.
    fn finish(&self, text: &mut String, r: usize, c: usize) {
        let finished = |sum: &str| format!("finish({sum}, row_scale, scale_{c}, bias_{c})");
        if !self.in_runs {
            let sum = if self.sum == Sum::Fma { format!("s{r}_{c}") } else { format!("f32(s{r}_{c})") };
            line!(text, "let y{c} = {};", finished(&sum));
            return;
        }
        let before = if self.fours { format!("before[{}]", c % 4) } else { "before".to_string() };
        if self.group.is_some() {
            line!(text, "let t{c} = fma(f32(s{r}_{c}), scale_{c}, bitcast<f32>({before}));");
            let done = format!("finish(t{c}, row_scale, 1.0, bias_{c})");
            line!(text, "let y{c} = select(bitcast<u32>(t{c}), bitcast<u32>({done}), is_last);");
            return;
        }
        line!(text, "let t{c} = i32(s{r}_{c}) + bitcast<i32>({before});");
        let done = finished(&format!("f32(t{c})"));
        line!(text, "let y{c} = select(bitcast<u32>(t{c}), bitcast<u32>({done}), is_last);");
    }
}
