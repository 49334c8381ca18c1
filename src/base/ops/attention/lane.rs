//! Text of the kernels that keep whole rows in named registers: what wins on a driver that runs on the CPU.
//!
//! There an indexed local array is slow and a load costs as much as a score of multiply-adds, so everything is named, unrolled
//! and used for several rows. `name{r}_{p}` is part `p` (four elements) of row `r` of an invocation's own tile.

use super::Attention;
use super::geometry::Geometry;
use super::text::{
    Text, columns, note_of_queries, open_keys, open_row, open_to_queries, open_to_row, text_of_row,
    texts_of_queries,
};
use crate::ops::launch::Kernel;

/// Invocations of a workgroup: one vector of the widest common CPU driver.
pub(super) const LANES: usize = 8;

/// Rows of an invocation and columns of a turn, by head size (to 32, 64, 128 and beyond): forward, and the two halves of
/// the backward step. Twice the rows run a tenth faster on lavapipe and take it five times as long to compile.
pub(super) const FORWARD: [[usize; 2]; 4] = [[4, 2], [4, 2], [2, 2], [1, 2]];
pub(super) const QUERIES: [[usize; 2]; 4] = [[4, 4], [2, 4], [2, 2], [1, 2]];
pub(super) const KEYS: [[usize; 2]; 4] = [[2, 4], [2, 2], [1, 2], [1, 2]];

/// The sizes of a kernel for this head size; no more rows than there are.
pub(super) fn sizes(g: &Geometry, available: usize, by_size: [[usize; 2]; 4]) -> [usize; 2] {
    let class = [32, 64, 128].iter().position(|&limit| g.size <= limit).unwrap_or(3);
    let [rows, columns] = by_size[class];
    [rows.min(available.next_power_of_two()), columns]
}

/// Part `{p}` of the rows of `buffer` at `row0`, `row1` .., one for each column.
fn loads(count: u32, buffer: &str, row: &str) -> String {
    let loads: Vec<String> = (0..count).map(|j| format!("load_{buffer}({row}{j}, {{p}}u)")).collect();
    format!("mat{count}x4<f32>({})", loads.join(", "))
}

/// Lines `let row0 = function(b, first, head);` and so on, one for each column.
fn rows_of(count: u32, row: &str, function: &str, first: &str, head: &str) -> String {
    let line = |j: u32| format!("let {row}{j} = {function}(b, {first} + {j}u, {head});");
    (0..count).map(line).collect::<Vec<_>>().join("\n")
}

/// The forward kernel.
pub(super) fn forward(how: &Attention, g: &Geometry, [rows, count]: [usize; 2]) -> Kernel {
    let count = count as u32;
    let text = || Text::new(rows, g.size.div_ceil(4));
    let dropped = how.dropout.is_some();
    let seen =
        format!("let seen{{r}} = within(Positions(s) + steps(1u), reach{{r}}) & {};", open_to_row(how));
    let text_of = text_of_row(how, "mask[", "first + {r}u");
    let start = text()
        .when(dropped, "let seed = vec2<u32>(rng[0], rng[1]);")
        .each_row(&[
            "let row{r} = query_row(b, first + {r}u, h);",
            "let reach{r} = reach_of_query(b, first + {r}u);",
            &text_of,
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
    let scores = text()
        .once(&rows_of(count, "at", "key_row", "s", "g"))
        .each_row(&["var x{r} = Columns(0.0);"])
        .each_part(
            &[&format!("let k{{p}} = {};", loads(count, "k", "at"))],
            &["x{r} = add_scores(x{r}, k{p}, q{r}_{p});"],
        );
    let factors = "w{r} *= dropout_factors(seed, number{r} * params.keys + s, 1u);";
    let weights = text().once(&open_keys(how, "mask[", "s", [count, 1])).each_row(&[
        &seen,
        "let n{r} = max(m{r}, largest(select(Columns(LOWEST), x{r}, seen{r})));",
        "let c{r} = exp2(m{r} - n{r});",
        "var w{r} = select(Columns(0.0), exp2(x{r} - Columns(n{r})), seen{r});",
        "l{r} = l{r} * c{r} + total(w{r});",
        "m{r} = n{r};",
        if dropped { factors } else { "" },
    ]);
    let values = text().each_part(
        &[&format!("let v{{p}} = {};", loads(count, "v", "at"))],
        &["o{r}_{p} = add_weighted(o{r}_{p} * c{r}, v{p}, w{r});"],
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
        .constant("SPAN", rows as u32)
        .paste("COLUMNS", columns(count))
        .paste("START", start.done())
        .paste("SCORES", scores.done())
        .paste("WEIGHTS", weights.done())
        .paste("VALUES", values.done())
        .paste("FINISH", finish.done())
}

/// The kernel that gathers the notes for the backward step.
pub(super) fn delta(how: &Attention, g: &Geometry) -> Kernel {
    let text = Text::new(1, g.size.div_ceil(4))
        .when(how.dropout.is_some(), "if id < 2u { notes[id] = rng[id]; }")
        .when(how.dropout.is_none(), "if id < 2u { notes[id] = 0u; }")
        .when(how.masked, "if id < params.batch * params.keys { notes[2u + id] = mask[id]; }");
    let parts = text.parts as u32;
    Kernel::new("attention_delta")
        .constant("PARTS", parts)
        .paste("COLUMNS", columns(4))
        .paste("COPY", text.done())
}

/// The backward kernel of the queries.
pub(super) fn queries(how: &Attention, g: &Geometry, [rows, count]: [usize; 2]) -> Kernel {
    let count = count as u32;
    let text = || Text::new(rows, g.size.div_ceil(4));
    let seen =
        format!("let seen{{r}} = within(Positions(s) + steps(1u), reach{{r}}) & {};", open_to_row(how));
    let text_of = text_of_row(how, "notes[2u + ", "first + {r}u");
    let start = text()
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
        .each_part(
            &[],
            &[
                "let q{r}_{p} = load_q(row{r}, {p}u) * (params.scale * LOG2E);",
                "let u{r}_{p} = load_up(from{r}, {p}u);",
                "var d{r}_{p} = vec4<f32>(0.0);",
            ],
        );
    let scores = text()
        .once(&rows_of(count, "at", "key_row", "s", "g"))
        .each_row(&["var x{r} = Columns(0.0);", "var y{r} = Columns(0.0);"])
        .each_part(
            &[&format!("let k{{p}} = {};", loads(count, "k", "at"))],
            &["x{r} = add_scores(x{r}, k{p}, q{r}_{p});"],
        )
        .each_part(
            &[&format!("let v{{p}} = {};", loads(count, "v", "at"))],
            &["y{r} = add_scores(y{r}, v{p}, u{r}_{p});"],
        );
    let factors = "y{r} *= dropout_factors(seed, number{r} * params.keys + s, 1u);";
    let slopes = text().once(&open_keys(how, "notes[2u + ", "s", [count, 1])).each_row(&[
        &seen,
        "let w{r} = select(Columns(0.0), exp2(x{r} - Columns(lse{r})), seen{r});",
        if how.dropout.is_some() { factors } else { "" },
        "let e{r} = w{r} * (y{r} - Columns(delta{r}));",
    ]);
    let sums = text().each_part(&[], &["d{r}_{p} = add_weighted(d{r}_{p}, k{p}, e{r});"]);
    let mut finish = text();
    for r in 0..rows {
        finish = finish.once(&format!("if first + {r}u < params.queries {{"));
        for p in 0..finish.parts {
            finish = finish.once(&format!("store_dq(row{r}, {p}u, d{r}_{p} * params.scale);"));
        }
        finish = finish.once("}");
    }
    backward("attention_query_lane", [rows, count as usize], [start, scores, slopes, sums, finish])
}

/// The backward kernel of the keys and values.
pub(super) fn keys(how: &Attention, g: &Geometry, [rows, count]: [usize; 2]) -> Kernel {
    let count = count as u32;
    let text = || Text::new(rows, g.size.div_ceil(4));
    let seen =
        format!("let seen{{r}} = within(Positions(t) + steps(1u), reach{{r}}) & {};", open_to_queries(how));
    let open = open_row(how, "first + {r}u");
    let start = text()
        .once("let seed = vec2<u32>(notes[0], notes[1]);")
        .each_row(&[
            "let row{r} = key_row(b, first + {r}u, g);",
            "let reach{r} = reach_of_key(b, first + {r}u);",
            &open,
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
        .once(&rows_of(count, "at", "query_row", "t", "h"))
        .once(&rows_of(count, "up", "out_row", "t", "h"))
        .each_row(&["var x{r} = Columns(0.0);", "var y{r} = Columns(0.0);"])
        .each_part(
            &[&format!("let q{{p}} = {};", loads(count, "q", "at"))],
            &["x{r} = add_scores(x{r}, q{p}, k{r}_{p});"],
        )
        .each_part(
            &[&format!("let rise{{p}} = {};", loads(count, "up", "up"))],
            &["y{r} = add_scores(y{r}, rise{p}, v{r}_{p});"],
        );
    let factors = "let f{r} = dropout_factors(seed, (base + t) * params.keys + first + {r}u, params.keys);";
    let slopes = text()
        .once("let base = (b * params.heads + h) * params.queries;")
        .once(&note_of_queries("lse", "", "t", [count, 1]))
        .once(&note_of_queries("delta", "rows + ", "t", [count, 1]))
        .once(&texts_of_queries(how, "t", [count, 1]))
        .each_row(&[
            &seen,
            if how.dropout.is_some() { factors } else { "let f{r} = Columns(1.0);" },
            "var w{r} = select(Columns(0.0), exp2(x{r} - lse), seen{r});",
            "let e{r} = w{r} * (y{r} * f{r} - delta);",
            "w{r} *= f{r};",
        ]);
    let sums = text().each_part(
        &[],
        &[
            "dk{r}_{p} = add_weighted(dk{r}_{p}, q{p}, e{r});",
            "dv{r}_{p} = add_weighted(dv{r}_{p}, rise{p}, w{r});",
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
    backward("attention_key_lane", [rows, count as usize], [start, scores, slopes, sums, finish])
}

fn backward(shader: &'static str, [rows, count]: [usize; 2], texts: [Text; 5]) -> Kernel {
    let mut kernel = Kernel::new(shader)
        .constant("LANES", LANES as u32)
        .constant("ROWS", rows as u32)
        .constant("SPAN", rows as u32)
        .paste("COLUMNS", columns(count as u32));
    for (name, text) in ["START", "SCORES", "SLOPES", "SUMS", "FINISH"].into_iter().zip(texts) {
        kernel = kernel.paste(name, text.done());
    }
    kernel
}
