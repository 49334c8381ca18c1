//! Text pasted into the kernels of attention: bindings with their load and store functions, and unrolled lines.

use super::Attention;
use super::geometry::Geometry;
use crate::ops::launch::{Bind, Kernel, Launch};
use crate::tensor::DType;
use std::fmt::Write;

/// Words of `notes` before the mask: the rng.
pub(super) const NOTES_HEAD: usize = 2;

/// Lines with `{r}` and `{p}` filled in.
pub(super) struct Text {
    rows: usize,
    /// Parts of a row: of four elements, or whatever the kernel's `{p}` counts.
    pub parts: usize,
    lines: Vec<String>,
}

impl Text {
    /// Nothing yet.
    pub fn new(rows: usize, parts: usize) -> Self {
        Text { rows, parts, lines: vec![] }
    }

    /// One line.
    pub fn once(mut self, line: &str) -> Self {
        self.lines.push(line.into());
        self
    }

    /// One line, on a condition.
    pub fn when(self, condition: bool, line: &str) -> Self {
        if condition { self.once(line) } else { self }
    }

    /// All lines for each row, with `{r}` filled in.
    pub fn each_row(mut self, lines: &[&str]) -> Self {
        for r in 0..self.rows {
            self.lines.extend(lines.iter().map(|line| line.replace("{r}", &r.to_string())));
        }
        self
    }

    /// For each part: `head`, then `line` for each row.
    pub fn each_part(mut self, head: &[&str], line: &[&str]) -> Self {
        for p in 0..self.parts {
            let part = p.to_string();
            self.lines.extend(head.iter().map(|line| line.replace("{p}", &part)));
            for r in 0..self.rows {
                let row = r.to_string();
                self.lines.extend(line.iter().map(|l| l.replace("{p}", &part).replace("{r}", &row)));
            }
        }
        self
    }

    /// The whole.
    pub fn done(self) -> String {
        self.lines.join("\n")
    }
}

/// How many elements one load moves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// One: rows may start anywhere.
    One,
    /// A vector of four.
    Four,
    /// A vector of four f32, in two 64-bit words: a CPU driver pays for words, not for bytes.
    Words,
    /// Four f16 in one 64-bit word.
    HalfWords,
    /// Eight f32 in four 64-bit words, read through `chunk_NAME` as well.
    Eight,
    /// Eight f16 in four 32-bit words, read through `chunk_NAME` as well.
    HalfEight,
}

impl Access {
    /// The widest access for rows of `size`; words only where `words` says that they pay.
    pub fn widest(size: usize, dtype: DType, words: bool) -> Access {
        match dtype {
            _ if !size.is_multiple_of(4) => Access::One,
            DType::F16 if words => Access::HalfWords,
            DType::F32 if words => Access::Words,
            _ => Access::Four,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Access::One => "Elem",
            Access::Four => "vec4<Elem>",
            Access::Words => "vec2<u64>",
            Access::HalfWords => "u64",
            Access::Eight => "vec4<u64>",
            Access::HalfEight => "vec4<u32>",
        }
    }

    /// Element vector `x` from the words loaded as `x`.
    fn unpacked(self) -> &'static str {
        match self {
            Access::One | Access::Four => "vec4<f32>(x)",
            Access::Words => {
                "bitcast<vec4<f32>>(vec4<u32>(u32(x.x), u32(x.x >> 32u), u32(x.y), u32(x.y >> 32u)))"
            }
            Access::HalfWords => "vec4<f32>(unpack2x16float(u32(x)), unpack2x16float(u32(x >> 32u)))",
            Access::Eight => {
                "mat2x4<f32>(\
                 bitcast<vec4<f32>>(vec4<u32>(u32(x.x), u32(x.x >> 32u), u32(x.y), u32(x.y >> 32u))), \
                 bitcast<vec4<f32>>(vec4<u32>(u32(x.z), u32(x.z >> 32u), u32(x.w), u32(x.w >> 32u))))"
            }
            Access::HalfEight => {
                "mat2x4<f32>(vec4<f32>(unpack2x16float(x.x), unpack2x16float(x.y)), \
                 vec4<f32>(unpack2x16float(x.z), unpack2x16float(x.w)))"
            }
        }
    }
}

/// Bindings of a kernel in order, with the text that declares them.
pub(super) struct Buffers {
    /// How rows are read; they are written in vectors of four wherever they can be read so.
    access: Access,
    size: usize,
    /// True if the first query's position is read, not given.
    cached: bool,
    /// True if that is read for each sequence, and the number of its cache.
    seated: bool,
    text: String,
    binds: Vec<Bind>,
}

impl Buffers {
    /// No bindings yet.
    pub fn new(g: &Geometry, access: Access) -> Self {
        Buffers { access, size: g.size, cached: false, seated: g.seated, text: String::new(), binds: vec![] }
    }

    /// A buffer of words, used by its name.
    pub fn words(mut self, name: &str, access: &str, kind: &str, bind: Bind) -> Self {
        self.declare(name, access, kind, bind);
        self
    }

    /// A buffer of rows to read through `load_NAME`; rows are counted from element `offset`.
    pub fn read(mut self, name: &str, offset: &str, bind: Bind) -> Self {
        self.declare(name, "read", self.access.kind(), bind);
        if matches!(self.access, Access::Eight | Access::HalfEight) {
            self.line(&format!("fn chunk_{name}(row: u32, chunk: u32) -> mat2x4<f32> {{"));
            self.line(&format!("    let x = {name}[(row + {offset}) / 8u + chunk];"));
            self.line(&format!("    return {};\n}}", self.access.unpacked()));
            return self;
        }
        let head = format!("fn load_{name}(row: u32, part: u32) -> vec4<f32> {{");
        if self.access != Access::One {
            self.line(&format!("{head}\n    let x = {name}[(row + {offset}) / 4u + part];"));
            self.line(&format!("    return {};\n}}", self.access.unpacked()));
            return self;
        }
        self.line(&format!(
            "{head}\n    let i = row + {offset} + part * 4u;\n    let rest = SIZE - part * 4u;"
        ));
        // The tail of the last row may be the end of the buffer.
        let at = |j: u32| format!("select(0.0, f32({name}[i + min({j}u, rest - 1u)]), rest > {j}u)");
        self.line(&format!("    return vec4<f32>(f32({name}[i]), {}, {}, {});\n}}", at(1), at(2), at(3)));
        self
    }

    /// Rows of 8-bit codes to read through `load_NAME`, each times its scale.
    pub fn read_codes(mut self, name: &str, codes: Bind, scales: Bind) -> Self {
        self.declare(name, "read", "u32", codes);
        self.declare(&format!("{name}_scale"), "read", "f32", scales);
        let four = |place: &str| {
            format!("vec4<f32>(unpack4xI8({name}[row / 4u + {place}])) * {name}_scale[row / SIZE]")
        };
        if matches!(self.access, Access::Eight | Access::HalfEight) {
            let [low, high] = ["chunk * 2u", "chunk * 2u + 1u"].map(four);
            self.line(&format!("fn chunk_{name}(row: u32, chunk: u32) -> mat2x4<f32> {{"));
            self.line(&format!("    return mat2x4<f32>({low}, {high});\n}}"));
            return self;
        }
        self.line(&format!(
            "fn load_{name}(row: u32, part: u32) -> vec4<f32> {{ return {}; }}",
            four("part")
        ));
        self
    }

    /// A buffer of rows to write through `store_NAME`.
    pub fn write(mut self, name: &str, offset: &str, bind: Bind) -> Self {
        let kind = if self.access == Access::One { "Elem" } else { "vec4<Elem>" };
        self.declare(name, "read_write", kind, bind);
        self.also(name, name, offset)
    }

    /// `store_NAME` into a buffer already declared.
    pub fn also(mut self, name: &str, buffer: &str, offset: &str) -> Self {
        let head = format!("fn store_{name}(row: u32, part: u32, x: vec4<f32>) {{");
        if self.access != Access::One {
            self.line(&format!("{head} {buffer}[(row + {offset}) / 4u + part] = vec4<Elem>(x); }}"));
            return self;
        }
        self.line(&format!(
            "{head}\n    let i = row + {offset} + part * 4u;\n    let rest = SIZE - part * 4u;"
        ));
        self.line(&format!("    {buffer}[i] = Elem(x.x);"));
        for (j, c) in [(1, 'y'), (2, 'z'), (3, 'w')] {
            self.line(&format!("    if rest > {j}u {{ {buffer}[i + {j}u] = Elem(x.{c}); }}"));
        }
        self.line("}");
        self
    }

    fn declare(&mut self, name: &str, access: &str, kind: &str, bind: Bind) {
        let number = self.binds.len();
        self.line(&format!("@group(0) @binding({number}) var<storage, {access}> {name}: array<{kind}>;"));
        self.binds.push(bind);
    }

    fn line(&mut self, line: &str) {
        writeln!(self.text, "{line}").expect("writing to a string");
    }

    /// q, k and v, wherever they lie.
    pub fn sources(self, how: &Attention) -> Self {
        let part = |i: usize| Bind::Input(i.min(how.sources() - 1));
        self.read("q", "0u", part(0)).read("k", "params.key_offset", part(1)).read(
            "v",
            "params.value_offset",
            part(2),
        )
    }

    /// q, and k and v as codes behind which their scales come.
    pub fn coded_sources(self) -> Self {
        let input = Bind::Input;
        self.read("q", "0u", input(0)).read_codes("k", input(1), input(2)).read_codes("v", input(3), input(4))
    }

    /// mask and rng, as far as there are any, from input `first`.
    pub fn trailing(mut self, how: &Attention, first: usize) -> Self {
        if how.masked {
            self = self.words("mask", "read", "u32", Bind::Input(first));
        }
        if how.dropout.is_some() {
            self = self.words("rng", "read", "u32", Bind::Input(first + usize::from(how.masked)));
        }
        if how.cached {
            self = self.words("position", "read", "u32", Bind::Input(first));
        }
        self.cached = how.cached;
        self
    }

    /// The dispatch: `groups` workgroups; invocations of a tiled kernel are numbered over `tiles` tiles.
    pub fn launch(
        mut self,
        kernel: Kernel,
        dtype: DType,
        g: &Geometry,
        tiles: usize,
        groups: usize,
    ) -> Launch {
        let (shift, cache) = match (self.cached, self.seated) {
            (true, true) => ("i32(position[2u * b])", "position[2u * b + 1u]"),
            (true, false) => ("i32(position[0])", "b"),
            (false, _) => ("params.shift", "b"),
        };
        self.line(&format!("fn shift_of_queries(b: u32) -> i32 {{ return {shift}; }}"));
        self.line(&format!("fn cache_of(b: u32) -> u32 {{ return {cache}; }}"));
        let kernel =
            kernel.retype("Elem", dtype).constant("SIZE", self.size as u32).paste("BUFFERS", self.text);
        let reach = |x: i64| i32::try_from(x).expect("positions fit in 31 bits");
        Launch::new(kernel, self.binds, groups)
            .param("batch", g.batch)
            .param("queries", g.queries)
            .param("keys", g.keys)
            .param("heads", g.heads)
            .param("key_heads", g.key_heads)
            .param("tiles", tiles)
            .param("query_stride", g.query_stride)
            .param("key_stride", g.key_stride)
            .param("key_offset", g.key_offset)
            .param("value_offset", g.value_offset)
            .param("shift", reach(g.shift))
            .param("before", reach(g.before))
            .param("after", reach(g.after))
            .param("scale", g.scale)
            .param("salt", g.salt)
            .param("threshold", g.threshold)
            .param("kept", g.kept)
            .param("notes", NOTES_HEAD + g.masked_words())
    }
}

/// A vector of `count` items made by `item`, such as `vec4<f32>(x0, x1, x2, x3)`.
fn vector(kind: &str, count: u32, item: impl Fn(u32) -> String) -> String {
    let items: Vec<String> = (0..count).map(item).collect();
    format!("{kind}({})", items.join(", "))
}

/// What `attention.wgsl` wants declared for scores that are handled `count` columns at a time, two or four.
pub(super) fn columns(count: u32) -> String {
    let names = ["x", "y", "z", "w"];
    let across = |function: &str| {
        let pair = |a: &str, b: &str| function.replace("A", a).replace("B", b);
        if count == 2 { pair("x.x", "x.y") } else { pair(&pair("x.x", "x.y"), &pair("x.z", "x.w")) }
    };
    // The innermost product stands last, added to x.
    let sum = |terms: u32, wide: &str, m: &str| {
        (0..terms).rev().fold("x".to_string(), |inner, i| {
            format!("fma({m}[{i}], {wide}(w.{}), {inner})", names[i as usize])
        })
    };
    let kept = |i: u32| format!("keep_element(rng, params.salt, element + {i}u * apart, params.threshold)");
    [
        format!("const COLUMNS = {count}u;"),
        format!("alias Columns = vec{count}<f32>;"),
        format!("alias Positions = vec{count}<u32>;"),
        format!("alias Marks = vec{count}<bool>;"),
        format!("fn add_scores(x: Columns, m: mat{count}x4<f32>, w: vec4<f32>) -> Columns {{"),
        format!("    let n = transpose(m);\n    return {};\n}}", sum(4, "Columns", "n")),
        format!("fn add_weighted(x: vec4<f32>, m: mat{count}x4<f32>, w: Columns) -> vec4<f32> {{"),
        format!("    return {};\n}}", sum(count, "vec4<f32>", "m")),
        format!("fn largest(x: Columns) -> f32 {{ return {}; }}", across("max(A, B)")),
        format!("fn total(x: Columns) -> f32 {{ return {}; }}", across("(A + B)")),
        "fn steps(apart: u32) -> Positions {".to_string(),
        format!("    return {};\n}}", vector("Positions", count, |i| format!("{i}u * apart"))),
        "fn dropout_factors(rng: vec2<u32>, element: u32, apart: u32) -> Columns {".to_string(),
        format!("    let kept = {};", vector("Marks", count, kept)),
        "    return select(Columns(0.0), Columns(params.kept), kept);\n}".to_string(),
    ]
    .join("\n")
}

/// The line that says which positions from `first`, counted and spaced by `steps`, the mask leaves open: to all rows, or to those
/// of the same text.
pub(super) fn open_keys(how: &Attention, buffer: &str, first: &str, [count, apart]: [u32; 2]) -> String {
    if !how.masked {
        return "let open = Marks(true);".into();
    }
    let word = |j: u32| format!("{buffer}b * params.keys + min({first} + {}u, params.keys - 1u)]", j * apart);
    if how.segmented {
        return format!("let texts = {};", vector("Positions", count, word));
    }
    format!("let open = {};", vector("Marks", count, |j| format!("{} != 0u", word(j))))
}

/// What stands behind `&` for row `{r}`, after [`open_keys`].
pub(super) fn open_to_row(how: &Attention) -> &'static str {
    if how.segmented { "(texts == Positions(text{r}))" } else { "open" }
}

/// The line that declares of which text row `{r}` is, which stands at `at`; of none is a number that no key has.
pub(super) fn text_of_row(how: &Attention, buffer: &str, at: &str) -> String {
    if !how.segmented {
        return String::new();
    }
    let word = format!("{buffer}b * params.keys + min({at}, params.keys - 1u)]");
    format!("let text{{r}} = select({word}, 0xffffffffu, {word} == 0u);")
}

/// The line that says whether key `{r}`, which stands at `at`, is open to queries.
pub(super) fn open_row(how: &Attention, at: &str) -> String {
    match how {
        _ if how.segmented => text_of_row(how, "notes[2u + ", at),
        _ if how.masked => {
            format!("let open{{r}} = notes[2u + b * params.keys + min({at}, params.keys - 1u)] != 0u;")
        }
        _ => "let open{r} = true;".into(),
    }
}

/// The line that reads of which texts queries from `first` on are, where that matters.
pub(super) fn texts_of_queries(how: &Attention, first: &str, steps: [u32; 2]) -> String {
    if how.segmented { open_keys(how, "notes[2u + ", first, steps) } else { String::new() }
}

/// What stands behind `&` for key `{r}`, after [`open_row`] and [`texts_of_queries`].
pub(super) fn open_to_queries(how: &Attention) -> &'static str {
    if how.segmented { "(texts == Positions(text{r}))" } else { "Marks(open{r})" }
}

/// The line `let name = ..` of floats in the notes of queries from `first` on, at `offset` words.
pub(super) fn note_of_queries(name: &str, offset: &str, first: &str, [count, apart]: [u32; 2]) -> String {
    let word = |j: u32| {
        let at = format!("min({first} + {}u, params.queries - 1u)", j * apart);
        format!("bitcast<f32>(notes[params.notes + {offset}base + {at}])")
    };
    format!("let {name} = {};", vector("Columns", count, word))
}
