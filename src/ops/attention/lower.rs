//! Dispatches of attention: bindings with their load and store functions, parameters, variants.

use super::geometry::Geometry;
use super::{Attention, Layout, lane};
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::tensor::DType;
use std::fmt::Write;

/// Words of `notes` before the mask: the rng.
const NOTES_HEAD: usize = 2;

/// Bindings of a kernel in order, with the text that declares them.
pub(super) struct Buffers {
    /// Rows start at multiples of four elements: they are read four at a time.
    whole: bool,
    size: usize,
    text: String,
    binds: Vec<Bind>,
}

impl Buffers {
    fn new(g: &Geometry) -> Self {
        Buffers { whole: g.size.is_multiple_of(4), size: g.size, text: String::new(), binds: vec![] }
    }

    /// A buffer of words, used by its name.
    fn words(mut self, name: &str, access: &str, kind: &str, bind: Bind) -> Self {
        self.declare(name, access, kind, bind);
        self
    }

    /// A buffer of rows to read through `load_NAME`; rows are counted from element `offset`.
    fn read(mut self, name: &str, offset: &str, bind: Bind) -> Self {
        let kind = if self.whole { "vec4<Elem>" } else { "Elem" };
        self.declare(name, "read", kind, bind);
        let head = format!("fn load_{name}(row: u32, part: u32) -> vec4<f32> {{");
        if self.whole {
            let body = format!("return vec4<f32>({name}[(row + {offset}) / 4u + part]);");
            self.line(&format!("{head} {body} }}"));
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

    /// A buffer of rows to write through `store_NAME`.
    fn write(mut self, name: &str, offset: &str, bind: Bind) -> Self {
        let kind = if self.whole { "vec4<Elem>" } else { "Elem" };
        self.declare(name, "read_write", kind, bind);
        self.also(name, name, offset)
    }

    /// `store_NAME` into a buffer already declared.
    fn also(mut self, name: &str, buffer: &str, offset: &str) -> Self {
        let head = format!("fn store_{name}(row: u32, part: u32, x: vec4<f32>) {{");
        if self.whole {
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
    fn sources(self, how: &Attention) -> Self {
        let part = |i: usize| Bind::Input(i.min(how.sources() - 1));
        self.read("q", "0u", part(0)).read("k", "params.key_offset", part(1)).read(
            "v",
            "params.value_offset",
            part(2),
        )
    }

    /// mask and rng, as far as there are any, from input `first`.
    fn trailing(mut self, how: &Attention, first: usize) -> Self {
        if how.masked {
            self = self.words("mask", "read", "u32", Bind::Input(first));
        }
        if how.dropout.is_some() {
            self = self.words("rng", "read", "u32", Bind::Input(first + usize::from(how.masked)));
        }
        self
    }

    /// The dispatch: `groups` workgroups; invocations of a tiled kernel are numbered over `tiles` tiles.
    fn launch(self, kernel: Kernel, dtype: DType, g: &Geometry, tiles: usize, groups: usize) -> Launch {
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

/// Variants of the forward operator.
pub(super) fn forward(how: &Attention, g: &Geometry, dtype: DType, _caps: &Caps) -> Vec<Variant> {
    let buffers = || {
        Buffers::new(g).sources(how).trailing(how, how.sources()).write("out", "0u", Bind::Output(0)).words(
            "lse",
            "read_write",
            "f32",
            Bind::Output(1),
        )
    };
    let lanes = {
        let rows = lane::rows(g, g.queries, [8, 8, 4, 2]);
        let tiles = g.queries.div_ceil(rows);
        let groups = (g.batch * g.heads * tiles).div_ceil(lane::LANES);
        let launch = buffers().launch(lane::forward(how, g, rows), dtype, g, tiles, groups);
        Variant::single("attention_lane", launch)
    };
    vec![lanes]
}

/// Variants of the backward operator: notes first, then the queries' half and the keys' half, which write disjoint parts.
pub(super) fn backward(how: &Attention, g: &Geometry, dtype: DType, _caps: &Caps) -> Vec<Variant> {
    let n = how.sources();
    let (out, lse, up) = (Bind::Input(n), Bind::Input(n + 1), Bind::Input(n + 2));
    let notes = || Bind::Scratch(0);
    let rows = g.batch * g.heads * g.queries;
    let delta = Buffers::new(g)
        .read("out", "0u", out)
        .read("up", "0u", up)
        .words("lse", "read", "f32", lse)
        .trailing(how, n + 3)
        .words("notes", "read_write", "u32", notes())
        .launch(lane::delta(how, g), dtype, g, 1, rows.max(g.masked_words()).div_ceil(64));
    let reading = || Buffers::new(g).sources(how).read("up", "0u", up).words("notes", "read", "u32", notes());
    let queries = || reading().write("dq", "0u", Bind::Output(0));
    let keys = || match how.layout {
        Layout::Separate => reading().write("dk", "0u", Bind::Output(1)).write("dv", "0u", Bind::Output(2)),
        Layout::Packed { .. } => reading().write("dk", "params.key_offset", Bind::Output(0)).also(
            "dv",
            "dk",
            "params.value_offset",
        ),
    };
    let scratch = vec![4 * (NOTES_HEAD + g.masked_words() + 2 * rows) as u64];
    let lanes = {
        let rows = lane::rows(g, g.queries, [8, 4, 2, 1]);
        let tiles = g.queries.div_ceil(rows);
        let groups = (g.batch * g.heads * tiles).div_ceil(lane::LANES);
        let of_queries = queries().launch(lane::queries(how, g, rows), dtype, g, tiles, groups);
        let rows = lane::rows(g, g.keys, [4, 4, 2, 1]);
        let tiles = g.keys.div_ceil(rows);
        let groups = (g.batch * g.key_heads * tiles).div_ceil(lane::LANES);
        let of_keys = keys().launch(lane::keys(how, g, rows), dtype, g, tiles, groups);
        let launches = vec![delta, of_queries, of_keys];
        Variant { name: "attention_gradient_lane".into(), launches, scratch }
    };
    vec![lanes]
}
