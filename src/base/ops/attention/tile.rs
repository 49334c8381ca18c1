//! Text of the kernels that stage tiles in workgroup memory: what wins on GPUs.
//!
//! `{r}` counts the four rows of an invocation, `{p}` chunks of 32 elements of a head: see `attention_block.wgsl`.

use super::Attention;
use super::geometry::Geometry;
use super::text::{
    Text, columns, note_of_queries, open_keys, open_row, open_to_queries, open_to_row, text_of_row,
    texts_of_queries,
};
use crate::ops::launch::Kernel;

/// Rows of a tile, one workgroup's.
pub(super) const ROWS: usize = 32;

/// Vectors of four of a chunk.
const CHUNK: usize = 8;

fn text(g: &Geometry) -> Text {
    Text::new(4, g.size.div_ceil(4 * CHUNK))
}

/// A function that copies a chunk of 32 rows of a buffer into one side of the tiles; rows past the end repeat the last.
fn stage(side: &str, buffer: &str, row: &str) -> String {
    format!(
        "fn {side}_{buffer}(b: u32, first: u32, head: u32, chunk: u32, lane: u32) {{
    for (var i = lane; i < 256u; i += 64u) {{
        let part = chunk * 8u + i % 8u;
        var x = vec4<f32>(0.0);
        if part < PARTS {{ x = load_{buffer}({row}(b, first + i / 8u, head), part); }}
        {side}[i / 8u * STRIDE + i % 8u] = x;
    }}
}}"
    )
}

/// Lines that stage chunk `{p}` between barriers and then add to `{sum}`.
fn staged(calls: &[&str], then: &str) -> Vec<String> {
    let mut lines = vec!["workgroupBarrier();".to_string()];
    lines.extend(calls.iter().map(|call| format!("{call}, {{p}}u, lane);")));
    lines.extend(["workgroupBarrier();".to_string(), then.to_string()]);
    lines
}

/// Both score tiles of the backward step, or one: (sum, left, right) for each.
fn scores(g: &Geometry, tiles: &[(&str, &str, &str)]) -> String {
    let mut all = text(g);
    for (sum, left, right) in tiles {
        let lines = staged(&[left, right], &format!("{sum} = add_score_tile({sum}, row, column);"));
        all = all.each_part(&lines.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
    }
    all.done()
}

/// `{sum}{p} += weights * right` for each chunk.
fn weighted(g: &Geometry, sum: &str, right: &str) -> Text {
    let lines = staged(&[right], &format!("{sum}{{p}} = add_weighted_tile({sum}{{p}}, row, column);"));
    text(g).each_part(&lines.iter().map(String::as_str).collect::<Vec<_>>(), &[])
}

/// Stores of each row and chunk, guarded.
fn finish(g: &Geometry, inside: &str, before: &[&str], stores: &[&str]) -> Text {
    let mut all = text(g);
    for r in 0..4 {
        let named = |line: &str| line.replace("{r}", &r.to_string());
        all = all.once(&named(&format!("if {inside} {{")));
        for line in before {
            all = all.once(&named(line));
        }
        for p in 0..all.parts {
            all = all.once(&format!("if {}u + column < PARTS {{", p * CHUNK));
            for line in stores {
                let line = named(line).replace("{p}", &p.to_string());
                all = all.once(&line.replace("{at}", &format!("{}u + column", p * CHUNK)));
            }
            all = all.once("}");
        }
        all = all.once("}");
    }
    all
}

fn kernel(shader: &'static str, g: &Geometry, stages: &[String]) -> Kernel {
    let parts = g.size.div_ceil(4) as u32;
    Kernel::new(shader)
        .constant("PARTS", parts)
        .paste("COLUMNS", columns(4))
        .paste("STAGES", stages.join("\n"))
}

/// The forward kernel.
pub(super) fn forward(how: &Attention, g: &Geometry) -> Kernel {
    let dropped = how.dropout.is_some();
    let seen = format!("let seen{{r}} = within(at, reach{{r}}) & {};", open_to_row(how));
    let text_of = text_of_row(how, "mask[", "t{r}");
    let start = text(g)
        .when(dropped, "let seed = vec2<u32>(rng[0], rng[1]);")
        .each_row(&[
            "let t{r} = first + row + 8u * {r}u;",
            "let reach{r} = reach_of_query(b, t{r});",
            &text_of,
            "let number{r} = (b * params.heads + h) * params.queries + t{r};",
            "var m{r} = LOWEST;",
            "var l{r} = 0.0;",
        ])
        .each_part(&["var o{p} = mat4x4<f32>();"], &[]);
    let mask = text(g)
        .once(&open_keys(how, "mask[", "s + column", [4, 8]))
        .each_row(&[&seen, "x[{r}] = select(vec4<f32>(LOWEST), x[{r}], seen{r});"]);
    let factors = "w{r} *= dropout_factors(seed, number{r} * params.keys + s + column, 8u);";
    let weights = text(g)
        .each_row(&[
            "let n{r} = max(m{r}, top[{r}]);",
            "let c{r} = exp2(m{r} - n{r});",
            "var w{r} = select(vec4<f32>(0.0), exp2(x[{r}] - vec4<f32>(n{r})), seen{r});",
            "l{r} = l{r} * c{r} + total(w{r});",
            "m{r} = n{r};",
            if dropped { factors } else { "" },
        ])
        .each_part(&["o{p} = mat4x4<f32>(o{p}[0] * c0, o{p}[1] * c1, o{p}[2] * c2, o{p}[3] * c3);"], &[])
        .once("put_weights(mat4x4<f32>(w0, w1, w2, w3), row, column);");
    let sums = "partial[lane] = vec4<f32>(l0, l1, l2, l3);
    workgroupBarrier();
    var sums = partial[row * 8u];
    for (var j = 1u; j < 8u; j += 1u) { sums += partial[row * 8u + j]; }\n";
    let ends = finish(
        g,
        "t{r} < params.queries",
        &[
            "let to{r} = out_row(b, t{r}, h);",
            // A row that sees nothing has no sum, and gives zeros.
            "let i{r} = select(0.0, 1.0 / sums[{r}], sums[{r}] > 0.0);",
            "if column == 0u { lse[number{r}] = select(0.0, m{r} / LOG2E + log(sums[{r}]), sums[{r}] > 0.0); }",
        ],
        &["store_out(to{r}, {at}, o{p}[{r}] * i{r});"],
    );
    let stages =
        [stage("left", "q", "query_row"), stage("right", "k", "key_row"), stage("right", "v", "key_row")];
    kernel("attention_tile", g, &stages)
        .paste("START", start.done())
        .paste("SCORES", scores(g, &[("x", "left_q(b, first, h", "right_k(b, s, g")]))
        .paste("MASK", mask.done())
        .paste("WEIGHTS", weights.done())
        .paste("VALUES", weighted(g, "o", "right_v(b, s, g").done())
        .paste("FINISH", sums.to_string() + &ends.done())
}

/// The backward kernel of the queries.
pub(super) fn queries(how: &Attention, g: &Geometry) -> Kernel {
    let seen = format!("let seen{{r}} = within(at, reach{{r}}) & {};", open_to_row(how));
    let text_of = text_of_row(how, "notes[2u + ", "t{r}");
    let start = text(g)
        .once("let seed = vec2<u32>(notes[0], notes[1]);")
        .each_row(&[
            "let t{r} = first + row + 8u * {r}u;",
            "let reach{r} = reach_of_query(b, t{r});",
            &text_of,
            "let number{r} = (b * params.heads + h) * params.queries + min(t{r}, params.queries - 1u);",
            "let lse{r} = bitcast<f32>(notes[params.notes + number{r}]);",
            "let delta{r} = bitcast<f32>(notes[params.notes + rows + number{r}]);",
        ])
        .each_part(&["var d{p} = mat4x4<f32>();"], &[]);
    let factors = "y[{r}] *= dropout_factors(seed, number{r} * params.keys + s + column, 8u);";
    let slopes = text(g).once(&open_keys(how, "notes[2u + ", "s + column", [4, 8])).each_row(&[
        &seen,
        if how.dropout.is_some() { factors } else { "" },
        "x[{r}] = select(vec4<f32>(0.0), exp2(x[{r}] - vec4<f32>(lse{r})), seen{r});",
        "x[{r}] *= y[{r}] - vec4<f32>(delta{r});",
    ]);
    let ends = finish(
        g,
        "t{r} < params.queries",
        &["let to{r} = query_row(b, t{r}, h);"],
        &["store_dq(to{r}, {at}, d{p}[{r}] * params.scale);"],
    );
    let stages = [
        stage("left", "q", "query_row"),
        stage("left", "up", "out_row"),
        stage("right", "k", "key_row"),
        stage("right", "v", "key_row"),
    ];
    let tiles =
        [("x", "left_q(b, first, h", "right_k(b, s, g"), ("y", "left_up(b, first, h", "right_v(b, s, g")];
    kernel("attention_query_tile", g, &stages)
        .paste("START", start.done())
        .paste("SCORES", scores(g, &tiles))
        .paste("SLOPES", slopes.done())
        .paste("SUMS", weighted(g, "d", "right_k(b, s, g").done())
        .paste("FINISH", ends.done())
}

/// The backward kernel of the keys and values.
pub(super) fn keys(how: &Attention, g: &Geometry) -> Kernel {
    let seen = format!("let seen{{r}} = within(at, reach{{r}}) & {};", open_to_queries(how));
    let open = open_row(how, "s{r}");
    let start = text(g)
        .once("let seed = vec2<u32>(notes[0], notes[1]);")
        .each_row(&["let s{r} = first + row + 8u * {r}u;", "let reach{r} = reach_of_key(b, s{r});", &open])
        .each_part(&["var dk{p} = mat4x4<f32>();", "var dv{p} = mat4x4<f32>();"], &[]);
    let factors =
        "let f{r} = dropout_factors(seed, (base + t + column) * params.keys + s{r}, 8u * params.keys);";
    let slopes = text(g)
        .once("let base = (b * params.heads + h) * params.queries;")
        .once(&note_of_queries("lse", "", "t + column", [4, 8]))
        .once(&note_of_queries("delta", "rows + ", "t + column", [4, 8]))
        .once(&texts_of_queries(how, "t + column", [4, 8]))
        .each_row(&[
            &seen,
            if how.dropout.is_some() { factors } else { "let f{r} = vec4<f32>(1.0);" },
            "x[{r}] = select(vec4<f32>(0.0), exp2(x[{r}] - lse), seen{r});",
            "y[{r}] = x[{r}] * (y[{r}] * f{r} - delta);",
            "x[{r}] *= f{r};",
        ]);
    let sums = weighted(g, "dv", "right_up(b, t, h")
        .once("workgroupBarrier();")
        .once("put_weights(y, row, column);")
        .done();
    let sums = [sums, weighted(g, "dk", "right_q(b, t, h").done()].join("\n");
    let ends = finish(
        g,
        "s{r} < params.keys",
        &["let to{r} = key_row(b, s{r}, g);"],
        &["store_dk(to{r}, {at}, dk{p}[{r}] * params.scale);", "store_dv(to{r}, {at}, dv{p}[{r}]);"],
    );
    let stages = [
        stage("left", "k", "key_row"),
        stage("left", "v", "key_row"),
        stage("right", "q", "query_row"),
        stage("right", "up", "out_row"),
    ];
    let tiles =
        [("x", "left_k(b, first, g", "right_q(b, t, h"), ("y", "left_v(b, first, g", "right_up(b, t, h")];
    kernel("attention_key_tile", g, &stages)
        .paste("START", start.done())
        .paste("SCORES", scores(g, &tiles))
        .paste("SLOPES", slopes.done())
        .paste("SUMS", sums)
        .paste("FINISH", ends.done())
}
