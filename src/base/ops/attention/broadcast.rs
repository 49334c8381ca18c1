//! Text of the kernels in which a subgroup shares what it reads: each lane loads some of the keys, all have them by broadcast.
//!
//! On a driver that runs on the CPU a load costs as much as a score of multiply-adds, for each lane. A lane alone (`lane`) reads
//! whole rows for a few rows of its own; here the rows of all lanes, neighbours in one head, walk together, and a row is read
//! once for them, eight elements by each lane. The walk, the masks and the online softmax are those of `lane`.

use super::Attention;
use super::geometry::Geometry;
use super::text::{
    Access, Text, columns, note_of_queries, open_keys, open_row, open_to_queries, open_to_row, text_of_row,
    texts_of_queries,
};
use crate::ops::launch::{Caps, Kernel};
use crate::tensor::DType;

/// Rows walked by at a time.
const COLUMNS: usize = 4;
/// Elements of one load.
const CHUNK: usize = 8;
/// Rows of a lane: forward, and the two halves of the backward step. More hardly gain, and take several times as long to compile.
const FORWARD: usize = 4;
const QUERIES: usize = 2;
const KEYS: usize = 2;
/// Elements of a row at most: beyond, a kernel takes seconds to compile.
const MOST: usize = 64;
const PARTS: [&str; 4] = ["x", "y", "z", "w"];

/// What distinguishes one kernel from another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Lanes of a subgroup, which is a workgroup.
    pub lanes: usize,
    /// Rows of one lane.
    pub rows: usize,
    /// Elements of a row.
    size: usize,
}

/// How rows are read, and shapes for the forward kernel and both halves of the backward step; none where this does not pay or
/// cannot be.
pub(super) fn fitting(g: &Geometry, dtype: DType, caps: &Caps) -> Option<(Access, [Shape; 3])> {
    let lanes = caps.subgroup_size as usize;
    let access = match dtype {
        DType::F32 if caps.int64 => Access::Eight,
        DType::F16 if caps.f16 => Access::HalfEight,
        _ => return None,
    };
    let possible = caps.is_cpu && caps.subgroup && [4, 8].contains(&lanes) && g.size.is_multiple_of(CHUNK);
    // Few rows leave lanes idle.
    if !possible || g.size > MOST || g.queries < lanes || g.keys < lanes {
        return None;
    }
    let shape = |rows: usize, length: usize| {
        let rows = rows.min((length / lanes).next_power_of_two());
        Shape { lanes, rows, size: g.size }
    };
    Some((access, [shape(FORWARD, g.queries), shape(QUERIES, g.queries), shape(KEYS, g.keys)]))
}

impl Shape {
    /// Rows that walk together.
    pub fn span(&self) -> usize {
        self.lanes * self.rows
    }

    fn text(&self) -> Text {
        Text::new(self.rows, self.size / 4)
    }

    fn chunks(&self) -> usize {
        self.size / CHUNK
    }

    /// Lines that read COLUMNS rows of `buffer`, the lanes together, as `{name}c0`, `{name}c1` ..; `row` names a row by `{j}`.
    fn read(&self, buffer: &str, name: &str, row: &str) -> String {
        let chunks = self.chunks();
        let loads = (COLUMNS * chunks).div_ceil(self.lanes);
        let line = |i: usize| {
            let row = row.replace("{j}", &format!("min({name}f{i} / {chunks}u, {}u)", COLUMNS - 1));
            format!(
                "let {name}f{i} = {}u + lane.x;\nlet {name}c{i} = chunk_{buffer}({row}, {name}f{i} % {chunks}u);",
                i * self.lanes
            )
        };
        (0..loads).map(line).collect::<Vec<_>>().join("\n")
    }

    /// The line that gives all lanes element `d` of column `j`, as `{tag}{j}d{d}`.
    fn broadcast(&self, name: &str, tag: &str, j: usize, d: usize) -> String {
        let flat = j * self.chunks() + d / CHUNK;
        let (load, lane) = (flat / self.lanes, flat % self.lanes);
        let (half, part) = (d % CHUNK / 4, PARTS[d % 4]);
        format!("let {tag}{j}d{d} = subgroupBroadcast({name}c{load}[{half}].{part}, {lane}u);")
    }

    /// Own rows of `buffer` as vectors `{name}{r}_{p}`, each times `factor`.
    fn own(&self, buffer: &str, name: &str, row: &str, factor: &str) -> String {
        let mut lines = vec![];
        for r in 0..self.rows {
            for c in 0..self.chunks() {
                lines.push(format!("let {name}{r}h{c} = chunk_{buffer}({row}{r}, {c}u);"));
                for half in 0..2 {
                    lines.push(format!("let {name}{r}_{} = {name}{r}h{c}[{half}]{factor};", 2 * c + half));
                }
            }
        }
        lines.join("\n")
    }

    /// A sum of products for each own row and column: `{sum}{r} += own . column`.
    fn scores(&self, sum: &str, own: &str, name: &str, tag: &str) -> String {
        let mut lines = vec![];
        for r in 0..self.rows {
            (0..COLUMNS).for_each(|j| lines.push(format!("var {sum}{r}j{j} = 0.0;")));
        }
        for d in 0..self.size {
            for j in 0..COLUMNS {
                lines.push(self.broadcast(name, tag, j, d));
                for r in 0..self.rows {
                    let x = format!("{own}{r}_{}.{}", d / 4, PARTS[d % 4]);
                    lines.push(format!("{sum}{r}j{j} = fma({x}, {tag}{j}d{d}, {sum}{r}j{j});"));
                }
            }
        }
        for r in 0..self.rows {
            let parts: Vec<String> = (0..COLUMNS).map(|j| format!("{sum}{r}j{j}")).collect();
            lines.push(format!("var {sum}{r} = Columns({});", parts.join(", ")));
        }
        lines.join("\n")
    }

    /// Scalars `{sum}{r}s{d}`, zero.
    fn zeros(&self, sum: &str) -> String {
        let all = (0..self.rows).flat_map(|r| (0..self.size).map(move |d| (r, d)));
        all.map(|(r, d)| format!("var {sum}{r}s{d} = 0.0;")).collect::<Vec<_>>().join("\n")
    }

    /// `sum += column * weight` for each own row, element and column; `before` is multiplied onto the sum first.
    fn weighted(&self, sum: &str, name: &str, tag: &str, weight: &str, before: &str) -> String {
        let mut lines = vec![];
        for d in 0..self.size {
            (0..COLUMNS).for_each(|j| lines.push(self.broadcast(name, tag, j, d)));
            for r in 0..self.rows {
                let sum = format!("{sum}{r}s{d}");
                let mut text = format!("{sum}{}", before.replace("{r}", &r.to_string()));
                for (j, part) in PARTS.iter().enumerate() {
                    text = format!("fma({tag}{j}d{d}, {weight}{r}.{part}, {text})");
                }
                lines.push(format!("{sum} = {text};"));
            }
        }
        lines.join("\n")
    }

    /// Part `p` of a sum of row `r` as a vector.
    fn part(&self, sum: &str, r: usize, p: usize) -> String {
        let parts: Vec<String> = (4 * p..4 * p + 4).map(|d| format!("{sum}{r}s{d}")).collect();
        format!("vec4<f32>({})", parts.join(", "))
    }

    fn kernel(&self, shader: &'static str) -> Kernel {
        Kernel::new(shader)
            .constant("LANES", self.lanes as u32)
            .constant("ROWS", self.rows as u32)
            .constant("SPAN", self.span() as u32)
            .constant("SHARED", 1)
            .paste("COLUMNS", columns(COLUMNS as u32))
    }
}

/// The forward kernel.
pub(super) fn forward(how: &Attention, shape: Shape) -> Kernel {
    let seen =
        format!("let seen{{r}} = within(Positions(s) + steps(1u), reach{{r}}) & {};", open_to_row(how));
    let text_of = text_of_row(how, "mask[", "first + {r}u");
    let start = shape
        .text()
        .when(how.dropout.is_some(), "let seed = vec2<u32>(rng[0], rng[1]);")
        .each_row(&[
            "let row{r} = query_row(b, first + {r}u, h);",
            "let reach{r} = reach_of_query(b, first + {r}u);",
            &text_of,
            "let number{r} = (b * params.heads + h) * params.queries + first + {r}u;",
            "var m{r} = LOWEST;",
            "var l{r} = 0.0;",
        ])
        .once(&shape.own("q", "q", "row", " * (params.scale * LOG2E)"))
        .once(&shape.zeros("o"));
    let scores = shape
        .text()
        .once(&shape.read("k", "k", "key_row(b, s + {j}, g)"))
        .once(&shape.scores("x", "q", "k", "kb"));
    let factors = "w{r} *= dropout_factors(seed, number{r} * params.keys + s, 1u);";
    let weights = shape.text().once(&open_keys(how, "mask[", "s", [COLUMNS as u32, 1])).each_row(&[
        &seen,
        "let n{r} = max(m{r}, largest(select(Columns(LOWEST), x{r}, seen{r})));",
        "let c{r} = exp2(m{r} - n{r});",
        "var w{r} = select(Columns(0.0), exp2(x{r} - Columns(n{r})), seen{r});",
        "l{r} = l{r} * c{r} + total(w{r});",
        "m{r} = n{r};",
        if how.dropout.is_some() { factors } else { "" },
    ]);
    let values = shape
        .text()
        .once(&shape.read("v", "v", "key_row(b, s + {j}, g)"))
        .once(&shape.weighted("o", "v", "vb", "w", " * c{r}"));
    let mut finish = shape.text();
    for r in 0..shape.rows {
        // A row that sees nothing has l = 0, and gives zeros.
        finish = finish
            .once(&format!("if first + {r}u < params.queries {{"))
            .once(&format!("let i{r} = select(0.0, 1.0 / l{r}, l{r} > 0.0);"))
            .once(&format!("lse[number{r}] = select(0.0, m{r} / LOG2E + log(l{r}), l{r} > 0.0);"));
        for p in 0..finish.parts {
            let part = shape.part("o", r, p);
            finish = finish.once(&format!("store_out(out_row(b, first + {r}u, h), {p}u, {part} * i{r});"));
        }
        finish = finish.once("}");
    }
    shape
        .kernel("attention_lane")
        .paste("START", start.done())
        .paste("SCORES", scores.done())
        .paste("WEIGHTS", weights.done())
        .paste("VALUES", values.done())
        .paste("FINISH", finish.done())
}

/// The backward kernel of the queries.
pub(super) fn queries(how: &Attention, shape: Shape) -> Kernel {
    let seen =
        format!("let seen{{r}} = within(Positions(s) + steps(1u), reach{{r}}) & {};", open_to_row(how));
    let text_of = text_of_row(how, "notes[2u + ", "first + {r}u");
    let start = shape
        .text()
        .once("let seed = vec2<u32>(notes[0], notes[1]);")
        .each_row(&[
            "let row{r} = query_row(b, first + {r}u, h);",
            "let from{r} = out_row(b, first + {r}u, h);",
            "let reach{r} = reach_of_query(b, first + {r}u);",
            &text_of,
            "let number{r} = (b * params.heads + h) * params.queries + min(first + {r}u, params.queries - 1u);",
            "let lse{r} = bitcast<f32>(notes[params.notes + number{r}]);",
            "let delta{r} = bitcast<f32>(notes[params.notes + rows + number{r}]);",
        ])
        .once(&shape.own("q", "q", "row", " * (params.scale * LOG2E)"))
        .once(&shape.own("up", "u", "from", ""))
        .once(&shape.zeros("d"));
    let scores = shape
        .text()
        .once(&shape.read("k", "k", "key_row(b, s + {j}, g)"))
        .once(&shape.scores("x", "q", "k", "kb"))
        .once(&shape.read("v", "v", "key_row(b, s + {j}, g)"))
        .once(&shape.scores("y", "u", "v", "vb"));
    let factors = "y{r} *= dropout_factors(seed, number{r} * params.keys + s, 1u);";
    let slopes = shape.text().once(&open_keys(how, "notes[2u + ", "s", [COLUMNS as u32, 1])).each_row(&[
        &seen,
        "let w{r} = select(Columns(0.0), exp2(x{r} - Columns(lse{r})), seen{r});",
        if how.dropout.is_some() { factors } else { "" },
        "let e{r} = w{r} * (y{r} - Columns(delta{r}));",
    ]);
    let sums = shape.text().once(&shape.weighted("d", "k", "ka", "e", ""));
    let mut finish = shape.text();
    for r in 0..shape.rows {
        finish = finish.once(&format!("if first + {r}u < params.queries {{"));
        for p in 0..finish.parts {
            let part = shape.part("d", r, p);
            finish = finish.once(&format!("store_dq(row{r}, {p}u, {part} * params.scale);"));
        }
        finish = finish.once("}");
    }
    backward(shape, "attention_query_lane", [start, scores, slopes, sums, finish])
}

/// The backward kernel of the keys and values.
pub(super) fn keys(how: &Attention, shape: Shape) -> Kernel {
    let seen =
        format!("let seen{{r}} = within(Positions(t) + steps(1u), reach{{r}}) & {};", open_to_queries(how));
    let open = open_row(how, "first + {r}u");
    let start = shape
        .text()
        .once("let seed = vec2<u32>(notes[0], notes[1]);")
        .each_row(&[
            "let row{r} = key_row(b, first + {r}u, g);",
            "let reach{r} = reach_of_key(b, first + {r}u);",
            &open,
        ])
        .once(&shape.own("k", "k", "row", " * (params.scale * LOG2E)"))
        .once(&shape.own("v", "v", "row", ""))
        .once(&shape.zeros("dk"))
        .once(&shape.zeros("dv"));
    let scores = shape
        .text()
        .once(&shape.read("q", "q", "query_row(b, t + {j}, h)"))
        .once(&shape.scores("x", "k", "q", "qb"))
        .once(&shape.read("up", "u", "out_row(b, t + {j}, h)"))
        .once(&shape.scores("y", "v", "u", "ub"));
    let factors = "let f{r} = dropout_factors(seed, (base + t) * params.keys + first + {r}u, params.keys);";
    let slopes = shape
        .text()
        .once("let base = (b * params.heads + h) * params.queries;")
        .once(&note_of_queries("lse", "", "t", [COLUMNS as u32, 1]))
        .once(&note_of_queries("delta", "rows + ", "t", [COLUMNS as u32, 1]))
        .once(&texts_of_queries(how, "t", [COLUMNS as u32, 1]))
        .each_row(&[
            &seen,
            if how.dropout.is_some() { factors } else { "let f{r} = Columns(1.0);" },
            "var w{r} = select(Columns(0.0), exp2(x{r} - lse), seen{r});",
            "let e{r} = w{r} * (y{r} * f{r} - delta);",
            "w{r} *= f{r};",
        ]);
    let sums = shape
        .text()
        .once(&shape.weighted("dk", "q", "qa", "e", ""))
        .once(&shape.weighted("dv", "u", "ua", "w", ""));
    let mut finish = shape.text();
    for r in 0..shape.rows {
        finish = finish.once(&format!("if first + {r}u < params.keys {{"));
        for p in 0..finish.parts {
            let (dk, dv) = (shape.part("dk", r, p), shape.part("dv", r, p));
            finish = finish
                .once(&format!("store_dk(row{r}, {p}u, {dk} * params.scale);"))
                .once(&format!("store_dv(row{r}, {p}u, {dv});"));
        }
        finish = finish.once("}");
    }
    backward(shape, "attention_key_lane", [start, scores, slopes, sums, finish])
}

fn backward(shape: Shape, shader: &'static str, texts: [Text; 5]) -> Kernel {
    let names = ["START", "SCORES", "SLOPES", "SUMS", "FINISH"];
    let pasted = names.into_iter().zip(texts);
    pasted.fold(shape.kernel(shader), |kernel, (name, text)| kernel.paste(name, text.done()))
}
