//! Text of the kernels that keep whole rows in named registers: what wins on a driver that runs on the CPU.
//!
//! There an indexed local array is slow and a load costs as much as a score of multiply-adds, so everything is named, unrolled
//! and used for several rows. `name{r}_{p}` is part `p` (four elements) of row `r` of an invocation's own tile.

use super::Attention;
use super::geometry::Geometry;
use crate::ops::launch::Kernel;

/// Invocations of a workgroup: one vector of the widest common CPU driver.
pub(super) const LANES: usize = 8;

/// Rows of an invocation by head size (to 32, 64, 128 and beyond), no more than there are: two or more rows' worth of named
/// vectors must stay within the first cache.
pub(super) fn rows(g: &Geometry, available: usize, by_size: [usize; 4]) -> usize {
    let class = [32, 64, 128].iter().position(|&limit| g.size <= limit).unwrap_or(3);
    by_size[class].min(available.next_power_of_two())
}

/// Lines with `{r}` and `{p}` filled in.
struct Text {
    rows: usize,
    parts: usize,
    lines: Vec<String>,
}

impl Text {
    fn new(g: &Geometry, rows: usize) -> Self {
        Text { rows, parts: g.size.div_ceil(4), lines: vec![] }
    }

    fn once(mut self, line: &str) -> Self {
        self.lines.push(line.into());
        self
    }

    fn when(self, condition: bool, line: &str) -> Self {
        if condition { self.once(line) } else { self }
    }

    /// All lines for each row.
    fn each_row(mut self, lines: &[&str]) -> Self {
        for r in 0..self.rows {
            self.lines.extend(lines.iter().map(|line| line.replace("{r}", &r.to_string())));
        }
        self
    }

    /// For each part: `head`, then `line` for each row.
    fn each_part(mut self, head: &[&str], line: &[&str]) -> Self {
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

    fn done(self) -> String {
        self.lines.join("\n")
    }
}

/// Lines that say which of four keys the padding mask leaves open, from buffer `name` starting at word `offset`.
fn open_keys(how: &Attention, name: &str, offset: &str) -> String {
    if !how.masked {
        return "let open = vec4<bool>(true);".into();
    }
    let word = |j: u32| format!("{name}[{offset}b * params.keys + min(s + {j}u, params.keys - 1u)] != 0u");
    format!("let open = vec4<bool>({}, {}, {}, {});", word(0), word(1), word(2), word(3))
}

const FOUR_K: &str =
    "mat4x4<f32>(load_k(at0, {p}u), load_k(at1, {p}u), load_k(at2, {p}u), load_k(at3, {p}u))";
const FOUR_V: &str =
    "mat4x4<f32>(load_v(at0, {p}u), load_v(at1, {p}u), load_v(at2, {p}u), load_v(at3, {p}u))";
const FOUR_Q: &str =
    "mat4x4<f32>(load_q(at0, {p}u), load_q(at1, {p}u), load_q(at2, {p}u), load_q(at3, {p}u))";
const FOUR_UP: &str =
    "mat4x4<f32>(load_up(up0, {p}u), load_up(up1, {p}u), load_up(up2, {p}u), load_up(up3, {p}u))";

/// The forward kernel.
pub(super) fn forward(how: &Attention, g: &Geometry, rows: usize) -> Kernel {
    let text = || Text::new(g, rows);
    let dropped = how.dropout.is_some();
    let start = text()
        .when(dropped, "let seed = vec2<u32>(rng[0], rng[1]);")
        .each_row(&[
            "let row{r} = query_row(b, first + {r}u, h);",
            "let reach{r} = reach_of_query(first + {r}u);",
            "let number{r} = (b * params.heads + h) * params.queries + first + {r}u;",
            "var m{r} = LOWEST;",
            "var l{r} = 0.0;",
        ])
        .each_part(
            &[],
            &[
                "let q{r}_{p} = load_q(row{r}, {p}u) * (params.scale * LOG2E);",
                "var o{r}_{p} = vec4<f32>(0.0);",
            ],
        );
    let scores = text().each_row(&["var x{r} = vec4<f32>(0.0);"]).each_part(
        &[&format!("let k{{p}} = transpose({FOUR_K});")],
        &["x{r} = add_product(x{r}, k{p}, q{r}_{p});"],
    );
    let factors = "w{r} *= dropout_factors(seed, number{r} * params.keys + s, 1u);";
    let weights = text().once(&open_keys(how, "mask", "")).each_row(&[
        "let seen{r} = within(s, reach{r}) & open;",
        "let n{r} = max(m{r}, largest(select(vec4<f32>(LOWEST), x{r}, seen{r})));",
        "let c{r} = exp2(m{r} - n{r});",
        "var w{r} = select(vec4<f32>(0.0), exp2(x{r} - vec4<f32>(n{r})), seen{r});",
        "l{r} = l{r} * c{r} + total(w{r});",
        "m{r} = n{r};",
        if dropped { factors } else { "" },
    ]);
    let values = text().each_part(
        &[&format!("let v{{p}} = {FOUR_V};")],
        &["o{r}_{p} = add_product(o{r}_{p} * c{r}, v{p}, w{r});"],
    );
    let mut finish = text();
    for r in 0..rows {
        // A row that sees nothing has l = 0, and gives zeros.
        finish = finish
            .once(&format!("if first + {r}u < params.queries {{"))
            .once(&format!("let i{r} = select(0.0, 1.0 / l{r}, l{r} > 0.0);"))
            .once(&format!("lse[number{r}] = select(0.0, m{r} / LOG2E + log(l{r}), l{r} > 0.0);"));
        for p in 0..finish.parts {
            let store = format!("store_out(out_row(b, first + {r}u, h), {p}u, o{r}_{p} * i{r});");
            finish = finish.once(&store);
        }
        finish = finish.once("}");
    }
    Kernel::new("attention_lane")
        .constant("LANES", LANES as u32)
        .constant("ROWS", rows as u32)
        .paste("START", start.done())
        .paste("SCORES", scores.done())
        .paste("WEIGHTS", weights.done())
        .paste("VALUES", values.done())
        .paste("FINISH", finish.done())
}

/// The kernel that gathers the notes for the backward step.
pub(super) fn delta(how: &Attention, g: &Geometry) -> Kernel {
    let text = Text::new(g, 1)
        .when(how.dropout.is_some(), "if id < 2u { notes[id] = rng[id]; }")
        .when(how.dropout.is_none(), "if id < 2u { notes[id] = 0u; }")
        .when(how.masked, "if id < params.batch * params.keys { notes[2u + id] = mask[id]; }");
    let parts = text.parts as u32;
    Kernel::new("attention_delta").constant("PARTS", parts).paste("COPY", text.done())
}

/// The backward kernel of the queries.
pub(super) fn queries(how: &Attention, g: &Geometry, rows: usize) -> Kernel {
    let text = || Text::new(g, rows);
    let start = text()
        .once("let seed = vec2<u32>(notes[0], notes[1]);")
        .each_row(&[
            "let row{r} = query_row(b, first + {r}u, h);",
            "let from{r} = out_row(b, first + {r}u, h);",
            "let reach{r} = reach_of_query(first + {r}u);",
            "let number{r} = (b * params.heads + h) * params.queries + min(first + {r}u, params.queries - 1u);",
            "let lse{r} = bitcast<f32>(notes[params.notes + number{r}]);",
            "let delta{r} = bitcast<f32>(notes[params.notes + rows + number{r}]);",
        ])
        .each_part(
            &[],
            &[
                "let q{r}_{p} = load_q(row{r}, {p}u) * (params.scale * LOG2E);",
                "let u{r}_{p} = load_up(from{r}, {p}u);",
                "var d{r}_{p} = vec4<f32>(0.0);",
            ],
        );
    let scores = text()
        .each_row(&["var x{r} = vec4<f32>(0.0);", "var y{r} = vec4<f32>(0.0);"])
        .each_part(
            &[&format!("let k{{p}} = {FOUR_K};"), "let kt{p} = transpose(k{p});"],
            &["x{r} = add_product(x{r}, kt{p}, q{r}_{p});"],
        )
        .each_part(
            &[&format!("let v{{p}} = transpose({FOUR_V});")],
            &["y{r} = add_product(y{r}, v{p}, u{r}_{p});"],
        );
    let factors = "y{r} *= dropout_factors(seed, number{r} * params.keys + s, 1u);";
    let slopes = text().once(&open_keys(how, "notes", "2u + ")).each_row(&[
        "let seen{r} = within(s, reach{r}) & open;",
        "let w{r} = select(vec4<f32>(0.0), exp2(x{r} - vec4<f32>(lse{r})), seen{r});",
        if how.dropout.is_some() { factors } else { "" },
        "let e{r} = w{r} * (y{r} - vec4<f32>(delta{r}));",
    ]);
    let sums = text().each_part(&[], &["d{r}_{p} = add_product(d{r}_{p}, k{p}, e{r});"]);
    let mut finish = text();
    for r in 0..rows {
        finish = finish.once(&format!("if first + {r}u < params.queries {{"));
        for p in 0..finish.parts {
            finish = finish.once(&format!("store_dq(row{r}, {p}u, d{r}_{p} * params.scale);"));
        }
        finish = finish.once("}");
    }
    backward("attention_query_lane", rows, [start, scores, slopes, sums, finish])
}

/// The backward kernel of the keys and values.
pub(super) fn keys(how: &Attention, g: &Geometry, rows: usize) -> Kernel {
    let text = || Text::new(g, rows);
    let open = if how.masked {
        "let open{r} = notes[2u + b * params.keys + min(first + {r}u, params.keys - 1u)] != 0u;"
    } else {
        "let open{r} = true;"
    };
    let start = text()
        .once("let seed = vec2<u32>(notes[0], notes[1]);")
        .each_row(&[
            "let row{r} = key_row(b, first + {r}u, g);",
            "let reach{r} = reach_of_key(first + {r}u);",
            open,
        ])
        .each_part(
            &[],
            &[
                "let k{r}_{p} = load_k(row{r}, {p}u) * (params.scale * LOG2E);",
                "let v{r}_{p} = load_v(row{r}, {p}u);",
                "var dk{r}_{p} = vec4<f32>(0.0);",
                "var dv{r}_{p} = vec4<f32>(0.0);",
            ],
        );
    let scores = text()
        .each_row(&["var x{r} = vec4<f32>(0.0);", "var y{r} = vec4<f32>(0.0);"])
        .each_part(
            &[&format!("let q{{p}} = {FOUR_Q};"), "let qt{p} = transpose(q{p});"],
            &["x{r} = add_product(x{r}, qt{p}, k{r}_{p});"],
        )
        .each_part(
            &[&format!("let u{{p}} = {FOUR_UP};"), "let ut{p} = transpose(u{p});"],
            &["y{r} = add_product(y{r}, ut{p}, v{r}_{p});"],
        );
    let note = |name: &str, offset: &str| {
        let word = |j: u32| {
            format!("bitcast<f32>(notes[params.notes + {offset}base + min(t + {j}u, params.queries - 1u)])")
        };
        format!("let {name} = vec4<f32>({}, {}, {}, {});", word(0), word(1), word(2), word(3))
    };
    let factors = "let f{r} = dropout_factors(seed, (base + t) * params.keys + first + {r}u, params.keys);";
    let slopes = text()
        .once("let base = (b * params.heads + h) * params.queries;")
        .once(&note("lse", ""))
        .once(&note("delta", "rows + "))
        .each_row(&[
            "let seen{r} = within(t, reach{r}) & vec4<bool>(open{r});",
            if how.dropout.is_some() { factors } else { "let f{r} = vec4<f32>(1.0);" },
            "var w{r} = select(vec4<f32>(0.0), exp2(x{r} - lse), seen{r});",
            "let e{r} = w{r} * (y{r} * f{r} - delta);",
            "w{r} *= f{r};",
        ]);
    let sums = text().each_part(
        &[],
        &[
            "dk{r}_{p} = add_product(dk{r}_{p}, q{p}, e{r});",
            "dv{r}_{p} = add_product(dv{r}_{p}, u{p}, w{r});",
        ],
    );
    let mut finish = text();
    for r in 0..rows {
        finish = finish.once(&format!("if first + {r}u < params.keys {{"));
        for p in 0..finish.parts {
            finish = finish
                .once(&format!("store_dk(row{r}, {p}u, dk{r}_{p} * params.scale);"))
                .once(&format!("store_dv(row{r}, {p}u, dv{r}_{p});"));
        }
        finish = finish.once("}");
    }
    backward("attention_key_lane", rows, [start, scores, slopes, sums, finish])
}

fn backward(shader: &'static str, rows: usize, texts: [Text; 5]) -> Kernel {
    let mut kernel = Kernel::new(shader).constant("LANES", LANES as u32).constant("ROWS", rows as u32);
    for (name, text) in ["START", "SCORES", "SLOPES", "SUMS", "FINISH"].into_iter().zip(texts) {
        kernel = kernel.paste(name, text.done());
    }
    kernel
}
