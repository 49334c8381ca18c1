//! Shader text of the register-tiled matmul: one template for every storage, transpose and way of loading.
//!
//! Everything moves in *chunks* of four or eight floats along an operand's contiguous axis. A CPU driver pays for each
//! load and lane, hardly for its width: four 64-bit words (or four 32-bit words of f16 pairs) cost as much as one float.
//! Where the contiguous axis is not a multiple of the chunk, that operand alone is read element by element.
//!
//! Why the k loop is innermost in the text: a chunk of steps is summed into one accumulator before the next one is
//! touched, so a compiler with few registers spills each sum once in a chunk instead of each time.
//!
//! B may be a matrix of codes, whose rows then lie along N: they become numbers as they are read, in chunks of eight, each scaled
//! before it is multiplied, once for all rows of the tile.

use super::access::Access;
use super::geometry::{Form, Geometry};
use crate::ops::coded::{Layout, Packing};
use crate::ops::launch::Kernel;
use std::fmt::Write;

/// Writes a line of shader text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

/// Invocations per workgroup: what a CPU driver runs side by side in one vector.
const GROUP: usize = 8;
/// Tiles below which rows are cut finer, so that every core gets some.
const FEW_TILES: usize = 8;

/// What distinguishes one generated kernel from another.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Template {
    pub form: Form,
    /// Floats of a chunk, and steps along K of one turn of the loop: 4 or 8.
    pub chunk: usize,
    /// Invocations that share a tile: 1, or a subgroup that divides the chunk.
    pub lanes: usize,
    /// Rows of a tile, a multiple of the chunk.
    pub rows: usize,
    /// Columns of one lane, a multiple of the chunk.
    pub columns: usize,
    pub a: Access,
    pub b: Access,
    pub c: Access,
    /// True if K is not a multiple of the chunk.
    pub ragged_k: bool,
    /// How B lies in memory if it is a matrix of codes; the chunk is then eight.
    pub codes: Option<Layout>,
}

impl Template {
    /// Takes the most rows a tile that suit the sizes; the tiles of the whole batch.
    pub(in crate::ops) fn fit_rows(&mut self, sizes: &Geometry) -> usize {
        let tile_n = self.tile_n();
        let tiles = |rows| sizes.matrices() * sizes.m.div_ceil(rows) * sizes.n.div_ceil(tile_n);
        if self.lanes > 1 {
            let fits = |&rows: &usize| sizes.m > rows / 2 && tiles(rows) >= FEW_TILES;
            // Guarded single stores and packing to f16 are most of a driver's compile: there fewer rows halve it.
            let most = if matches!(self.c, Access::Single | Access::Pairs(_)) { 16 } else { 32 };
            self.rows = [32, 16].into_iter().filter(|&rows| rows <= most).find(fits).unwrap_or(8);
        }
        tiles(self.rows)
    }

    /// The kernel but for the output's declaration.
    pub(in crate::ops) fn kernel(&self) -> Kernel {
        Kernel::new("matmul_register")
            .constant("GROUP", GROUP.max(self.lanes) as u32)
            .constant("LANES", self.lanes as u32)
            .constant("TILE_M", self.rows as u32)
            .constant("TILE_N", self.tile_n() as u32)
            .paste("INPUT", self.input())
            .paste("BODY", self.body())
    }

    /// Workgroups for so many tiles.
    pub(in crate::ops) fn groups(&self, tiles: usize) -> usize {
        (tiles * self.lanes).div_ceil(GROUP.max(self.lanes))
    }

    /// Columns of a tile.
    pub(in crate::ops) fn tile_n(&self) -> usize {
        self.columns * self.lanes
    }

    /// The type of the output's array.
    pub(in crate::ops) fn output(&self) -> String {
        self.c.array(self.chunk)
    }

    /// Declarations of the operands.
    pub(in crate::ops) fn input(&self) -> String {
        let b = match &self.codes {
            Some(layout) => declare_codes(layout),
            None => self.b.declare(1, "b", self.chunk),
        };
        self.a.declare(0, "a", self.chunk) + &b
    }

    /// The loop and the stores.
    pub(in crate::ops) fn body(&self) -> String {
        let chunk = self.chunk;
        let mut text = String::new();
        self.bases(&mut text);
        for r in 0..self.rows {
            for c in 0..self.columns {
                line!(text, "var s{r}_{c} = 0.0;");
            }
        }
        let closes = self.over_k(&mut text);
        self.load_a(&mut text);
        self.load_b(&mut text);
        for r in 0..self.rows {
            for k in 0..chunk {
                line!(text, "let a{r}_{k} = {};", self.factor(r, k));
            }
            for c in 0..self.columns {
                for k in 0..chunk {
                    line!(text, "s{r}_{c} = fma(a{r}_{k}, b{k}_{c}, s{r}_{c});");
                }
            }
        }
        text.push_str(closes);
        self.store(&mut text);
        text
    }

    /// The head of the loop along K and its end: for codes along K, group by group, the scales read once for each.
    fn over_k(&self, text: &mut String) -> &'static str {
        let chunk = self.chunk;
        match self.codes {
            Some(layout) if self.form == Form::Nt => {
                let (groups, group) = (layout.groups(), layout.group);
                line!(text, "for (var group = 0u; group < {groups}u; group += 1u) {{");
                (0..self.columns)
                    .for_each(|c| self.read_scale(text, &layout, c, &format!("g_at{c} + group")));
                line!(text, "let end = min((group + 1u) * {group}u, params.k);");
                line!(text, "for (var k0 = group * {group}u; k0 < end; k0 += {chunk}u) {{");
                "}\n}\n"
            }
            _ => {
                line!(text, "for (var k0 = 0u; k0 < params.k; k0 += {chunk}u) {{");
                "}\n"
            }
        }
    }

    /// Scale and offset at a place, as `scale{name}` and `offset{name}`.
    fn read_scale(&self, text: &mut String, layout: &Layout, name: impl std::fmt::Display, at: &str) {
        line!(text, "let scale{name} = scales[{at}];");
        if layout.has_offsets {
            line!(text, "let offset{name} = offsets[{at}];");
        }
    }

    /// Lines that read a chunk of codes as `{name}_0`, `{name}_1` .., with the scale called `scale{scale}`.
    fn read_codes(&self, text: &mut String, layout: &Layout, name: &str, at: &str, scale: &str) {
        line!(text, "let {name}w = codes[{at}];");
        match layout.packing {
            Packing::Nibbles => layout.unpack(text, &format!("{name}w"), &format!("{name}q"), 0, self.lanes),
            Packing::Bytes => ["x", "y"].into_iter().enumerate().for_each(|(i, part)| {
                layout.unpack(text, &format!("{name}w.{part}"), &format!("{name}q"), 4 * i, self.lanes);
            }),
        }
        for i in 0..self.chunk {
            match layout.has_offsets {
                true => line!(text, "let {name}_{i} = fma({name}q_{i}, scale{scale}, offset{scale});"),
                false => line!(text, "let {name}_{i} = {name}q_{i} * scale{scale};"),
            }
        }
    }

    /// True if each lane holds other rows of `a` and all steps of a chunk; else each lane holds all rows of other steps.
    fn lanes_hold_rows(&self) -> bool {
        self.form != Form::Tn && !self.a.is_narrow()
    }

    /// Positions that do not change along K. Rows and columns past the end read the last one; their sums are not stored.
    fn bases(&self, text: &mut String) {
        let chunk = self.chunk;
        for j in 0..self.columns / chunk {
            line!(text, "let column_{j} = column0 + ({}u + lane) * {chunk}u;", j * self.lanes);
        }
        if self.lanes_hold_rows() {
            for j in 0..self.rows / self.lanes {
                let row = format!("min(row0 + {}u + lane, last_m)", j * self.lanes);
                line!(text, "let a_at{j} = (a_base + {row} * params.k) / {chunk}u;");
            }
        } else if !self.a.is_narrow() {
            for j in 0..self.rows / chunk {
                line!(
                    text,
                    "let a_at{j} = a_base / {chunk}u + min(row0 / {chunk}u + {j}u, last_m / {chunk}u);"
                );
            }
        } else {
            let stride = if self.form == Form::Tn { "" } else { " * params.k" };
            for r in 0..self.rows {
                line!(text, "let a_at{r} = a_base + min(row0 + {r}u, last_m){stride};");
            }
        }
        if let Some(layout) = self.codes {
            self.bases_of_codes(text, &layout);
        } else if self.form == Form::Nt || self.b.is_narrow() {
            let stride = if self.form == Form::Nt { " * params.k" } else { "" };
            let unit = if self.b.is_narrow() { 1 } else { chunk };
            for c in 0..self.columns {
                let column = format!("min(column_{} + {}u, last_n)", c / chunk, c % chunk);
                line!(text, "let b_at{c} = (b_base + {column}{stride}) / {unit}u;");
            }
        } else {
            for j in 0..self.columns / chunk {
                line!(
                    text,
                    "let b_at{j} = (b_base + min(column_{j}, last_n / {chunk}u * {chunk}u)) / {chunk}u;"
                );
            }
        }
    }

    /// Where rows of codes begin, or chunks of them, and their scales.
    fn bases_of_codes(&self, text: &mut String, layout: &Layout) {
        let chunk = self.chunk;
        layout.share_table(text, self.lanes);
        if self.form == Form::Nt {
            for c in 0..self.columns {
                line!(text, "let b_row{c} = min(column_{} + {}u, last_n);", c / chunk, c % chunk);
                line!(text, "let b_at{c} = b_row{c} * (params.k / {chunk}u);");
                line!(text, "let g_at{c} = b_row{c} * {}u;", layout.groups());
            }
            return;
        }
        for j in 0..self.columns / chunk {
            line!(text, "let b_first{j} = min(column_{j}, last_n / {chunk}u * {chunk}u);");
            line!(text, "let b_at{j} = b_first{j} / {chunk}u;");
            line!(text, "let g_at{j} = b_first{j} / {}u;", layout.group);
        }
    }

    /// Reads this turn's part of `a`. Past the end of K it is zero, so that whatever `b` holds there adds nothing.
    fn load_a(&self, text: &mut String) {
        let chunk = self.chunk;
        if self.lanes_hold_rows() {
            for j in 0..self.rows / self.lanes {
                self.read_chunk(text, self.a, "a", &format!("ar{j}"), &format!("a_at{j} + k0 / {chunk}u"));
            }
            return;
        }
        for q in 0..chunk / self.lanes {
            let k = format!("k0 + {}u + lane", q * self.lanes);
            line!(
                text,
                "let k_{q} = {};",
                if self.ragged_k { format!("min({k}, last_k)") } else { k.clone() }
            );
            if self.ragged_k {
                line!(text, "let live_{q} = {k} < params.k;");
            }
            let guard = |value: String| {
                if self.ragged_k { format!("select(0.0, {value}, live_{q})") } else { value }
            };
            if self.a.is_narrow() {
                for r in 0..self.rows {
                    let at = match self.form {
                        Form::Tn => format!("a_at{r} + k_{q} * params.m"),
                        _ => format!("a_at{r} + k_{q}"),
                    };
                    line!(text, "let ak{q}_{r} = {};", guard(self.a.element("a", &at)));
                }
                continue;
            }
            for j in 0..self.rows / chunk {
                let name = format!("ac{q}_{j}");
                self.read_chunk(
                    text,
                    self.a,
                    "a",
                    &name,
                    &format!("a_at{j} + k_{q} * (params.m / {chunk}u)"),
                );
                for i in 0..chunk {
                    line!(text, "let ak{q}_{} = {};", j * chunk + i, guard(format!("{name}_{i}")));
                }
            }
        }
    }

    /// Reads this turn's part of `b` as `b{k}_{column}`.
    fn load_b(&self, text: &mut String) {
        let chunk = self.chunk;
        if self.form == Form::Nt && !self.b.is_narrow() {
            for c in 0..self.columns {
                let (name, at) = (format!("bc{c}"), format!("b_at{c} + k0 / {chunk}u"));
                match &self.codes {
                    Some(layout) => self.read_codes(text, layout, &name, &at, &c.to_string()),
                    None => self.read_chunk(text, self.b, "b", &name, &at),
                }
                for k in 0..chunk {
                    line!(text, "let b{k}_{c} = bc{c}_{k};");
                }
            }
            return;
        }
        for k in 0..chunk {
            let step = format!("k0 + {k}u");
            line!(
                text,
                "let row_{k} = {};",
                if self.ragged_k { format!("min({step}, last_k)") } else { step }
            );
            if self.b.is_narrow() {
                for c in 0..self.columns {
                    let at = match self.form {
                        Form::Nt => format!("b_at{c} + row_{k}"),
                        _ => format!("b_at{c} + row_{k} * params.n"),
                    };
                    line!(text, "let b{k}_{c} = {};", self.b.element("b", &at));
                }
                continue;
            }
            for j in 0..self.columns / chunk {
                let (name, at) = (format!("bk{k}_{j}"), format!("b_at{j} + row_{k} * (params.n / {chunk}u)"));
                match &self.codes {
                    Some(layout) => {
                        let (scale, groups) = (format!("_{k}_{j}"), layout.groups());
                        self.read_scale(text, layout, &scale, &format!("row_{k} * {groups}u + g_at{j}"));
                        self.read_codes(text, layout, &name, &at, &scale);
                    }
                    None => self.read_chunk(text, self.b, "b", &name, &at),
                }
                for i in 0..chunk {
                    line!(text, "let b{k}_{} = {name}_{i};", j * chunk + i);
                }
            }
        }
    }

    /// Row `r` of `a` at step `k` of this turn, the same in every lane.
    fn factor(&self, r: usize, k: usize) -> String {
        let (value, lane) = match self.lanes_hold_rows() {
            true => (format!("ar{}_{k}", r / self.lanes), r % self.lanes),
            false => (format!("ak{}_{r}", k / self.lanes), k % self.lanes),
        };
        if self.lanes == 1 { value } else { format!("subgroupBroadcast({value}, {lane}u)") }
    }

    fn store(&self, text: &mut String) {
        let chunk = self.chunk;
        for j in 0..self.columns / chunk {
            for i in 0..chunk {
                line!(text, "let bias_{j}_{i} = bias_at(min(column_{j} + {i}u, last_n));");
            }
        }
        for r in 0..self.rows {
            line!(text, "if row0 + {r}u < params.m {{");
            line!(text, "let start = c_base + (row0 + {r}u) * params.n;");
            for j in 0..self.columns / chunk {
                for i in 0..chunk {
                    line!(text, "let y{j}_{i} = finish(s{r}_{}, bias_{j}_{i});", j * chunk + i);
                }
                self.store_chunk(text, j);
            }
            line!(text, "}}");
        }
    }

    /// Reads chunk number `at` of a buffer as `{name}_0`, `{name}_1` ..
    fn read_chunk(&self, text: &mut String, access: Access, buffer: &str, name: &str, at: &str) {
        access.read(text, self.chunk, buffer, name, at);
    }

    /// Writes `y{j}_0` .. at `column_{j}` of the row that begins at `start`, as far as there are columns.
    fn store_chunk(&self, text: &mut String, j: usize) {
        let chunk = self.chunk;
        if self.c == Access::Single {
            for i in 0..chunk {
                let column = format!("column_{j} + {i}u");
                line!(text, "if {column} < params.n {{ c[start + {column}] = Elem(y{j}_{i}); }}");
            }
            return;
        }
        line!(text, "if column_{j} < params.n {{");
        line!(text, "let at = (start + column_{j}) / {chunk}u;");
        let y = |i: usize| format!("y{j}_{i}");
        match self.c {
            Access::Words64 => {
                let bits = |i| format!("u64(bitcast<u32>({}))", y(i));
                let word = |i| format!("{} | ({} << 32u)", bits(2 * i), bits(2 * i + 1));
                let words: Vec<String> = (0..chunk / 2).map(word).collect();
                line!(text, "c[at] = vec{}<u64>({});", chunk / 2, words.join(", "));
            }
            Access::Pairs(_) => {
                let word = |i| format!("pack2x16float(vec2<f32>({}, {}))", y(2 * i), y(2 * i + 1));
                let words: Vec<String> = (0..chunk / 2).map(word).collect();
                line!(text, "c[at] = vec{}<u32>({});", chunk / 2, words.join(", "));
            }
            _ => {
                for four in 0..chunk / 4 {
                    let parts: Vec<String> = (0..4).map(|i| y(four * 4 + i)).collect();
                    line!(text, "c[at * {}u + {four}u] = vec4<f32>({});", chunk / 4, parts.join(", "));
                }
            }
        }
        line!(text, "}}");
    }
}

/// Declarations of a matrix of codes, read in chunks of eight.
fn declare_codes(layout: &Layout) -> String {
    let word = if layout.packing == Packing::Bytes { "vec2<u32>" } else { "u32" };
    let mut text = format!("@group(0) @binding(1) var<storage, read> codes: array<{word}>;\n");
    for (binding, name) in (2..).zip(["scales", "offsets"]).take(layout.inputs() - 1) {
        line!(text, "@group(0) @binding({binding}) var<storage, read> {name}: array<f32>;   // [N, groups]");
    }
    text + &layout.functions()
}
