//! Teams of lanes that share K, whose sums meet in workgroup memory.

use super::{PARTS, Template};
use std::fmt::Write;

/// Writes a line of shader text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

impl Template {
    /// Chunks of K shared out to a team's lanes.
    pub(super) fn walk_team(&self, text: &mut String, matrices: &[usize], each: usize) {
        let (chunk, count) = (self.chunk(), each * matrices.len());
        line!(text, "for (var at = lane; at < chunks; at += {}u) {{", self.lanes);
        for i in 0..self.m {
            for four in 0..chunk / 4 {
                let row = self.layout.cols / 4 * i;
                line!(text, "let xv{i}_{four} = a[{row}u + at * {}u + {four}u];", chunk / 4);
                for (j, part) in PARTS.iter().enumerate() {
                    let x = format!("xv{i}_{four}.{part}");
                    match self.coding {
                        Some(_) => line!(text, "let x{i}_{} = coded({x}, factor{i});", four * 4 + j),
                        None => line!(text, "let x{i}_{} = {x};", four * 4 + j),
                    }
                }
            }
        }
        self.read_codes(text, matrices, each, "at");
        let per_group = chunk / self.groups_of_chunk();
        for g in 0..self.groups_of_chunk() {
            self.clear(text, count, g);
            let words = g * per_group / self.layout.of_word()..(g + 1) * per_group / self.layout.of_word();
            if self.layout.has_offsets {
                for i in 0..self.m {
                    let own: Vec<String> =
                        (g * per_group..(g + 1) * per_group).map(|e| format!("x{i}_{e}")).collect();
                    line!(text, "x_sum{i}_{g} = {};", own.join(" + "));
                }
            }
            for r in 0..count {
                for word in words.clone() {
                    let name = format!("w{r}_{word}");
                    self.layout.unpack(text, &self.word(r, word), &name, 0, self.table_lanes());
                    for (i, e) in (0..self.m).flat_map(|i| (0..self.layout.of_word()).map(move |e| (i, e))) {
                        let element = word * self.layout.of_word() + e;
                        line!(text, "t{r}_{i}_{g} = fma(x{i}_{element}, {name}_{e}, t{r}_{i}_{g});");
                    }
                }
            }
            if self.coding.is_some() {
                // Of one lane alone: few enough terms that f32 holds their sum.
                for (r, i) in (0..count).flat_map(|r| (0..self.m).map(move |i| (r, i))) {
                    line!(text, "s{r}_{i} += t{r}_{i}_{g};");
                }
                continue;
            }
            let (first, together) = (self.groups_of_chunk(), self.scales_together());
            let place = match self.layout.groups() {
                1 => "0u".to_string(),
                _ if self.chunks_of_group() > 1 => format!("at / {}u", self.chunks_of_group()),
                _ => format!("at * {}u + {}u", first / together, g / together),
            };
            let part = (together > 1).then(|| PARTS[g % together]);
            self.scale(text, matrices, each, g, &place, part);
        }
        line!(text, "}}");
    }

    /// The team's sums added up: lane `i * each + column` of it stores row i of that column.
    pub(super) fn meet(&self, text: &mut String, list: &[usize], each: usize, n: &str, store: &str) {
        let matrices = list.len();
        let (lanes, stored) = (self.lanes, each * self.m);
        let values = stored * matrices;
        for (r, i) in (0..self.m).flat_map(|i| (0..each * matrices).map(move |r| (r, i))) {
            let e = r / each * stored + i * each + r % each;
            line!(text, "partial[(team * {values}u + {e}u) * {lanes}u + lane] = s{r}_{i};");
        }
        line!(text, "workgroupBarrier();");
        line!(text, "for (var e = lane; e < {stored}u; e += {lanes}u) {{");
        line!(text, "let column = first + e % {each}u;\nlet row = e / {each}u;");
        for (y, matrix) in list.iter().enumerate() {
            let place = format!("(team * {values}u + {}u + e) * {lanes}u + j", y * stored);
            line!(text, "var sum{y} = {};", if self.coding.is_some() { "0i" } else { "0.0" });
            line!(text, "for (var j = 0u; j < {lanes}u; j += 1u) {{");
            if self.coding.is_none() {
                line!(text, "sum{y} += partial[{place}];\n}}\nlet y{y} = sum{y};");
                continue;
            }
            line!(text, "sum{y} += i32(partial[{place}]);\n}}");
            let scale = format!("scales{matrix}[min(column, {n} - 1u)]");
            line!(text, "let y{y} = f32(sum{y}) * {scale} * row_scales[row];");
        }
        line!(text, "if column < {n} {{\n{store}\n}}\n}}");
    }
}
