//! Lanes of a subgroup that each own rows of W and share what they read of X.

use super::{PARTS, RUN, Template};
use std::fmt::Write;

/// Writes a line of shader text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

impl Template {
    /// All groups in order by one lane.
    pub(super) fn walk_groups(&self, text: &mut String, matrices: &[usize], each: usize) {
        if self.coding.is_some() {
            return self.walk_runs(text, matrices, each);
        }
        let long = self.chunks_of_group();
        let many = self.layout.groups() > 1 && long > 1;
        match (self.layout.groups(), long) {
            (1, _) => line!(text, "let group = 0u;\n{{"),
            (_, 1) => line!(text, "for (var at = 0u; at < chunks; at += 1u) {{"),
            _ => line!(text, "for (var group = 0u; group < groups; group += 1u) {{"),
        }
        if long > 1 || self.layout.groups() == 1 {
            self.clear(text, each * matrices.len(), 0);
            let (from, to) = match many {
                true => (format!("group * {long}u"), format!("min((group + 1u) * {long}u, chunks)")),
                false => ("0u".to_string(), "chunks".to_string()),
            };
            line!(text, "for (var at = {from}; at < {to}; at += 1u) {{");
            self.multiply_shared(text, matrices, each, false);
            line!(text, "}}");
            self.scale(text, matrices, each, 0, "group", None);
        } else {
            self.multiply_shared(text, matrices, each, true);
        }
        line!(text, "}}");
    }

    /// Whole numbers in order by one lane: runs that f32 sums exactly go to sums in i32.
    pub(super) fn walk_runs(&self, text: &mut String, matrices: &[usize], each: usize) {
        let (count, run) = (each * matrices.len(), RUN / self.chunk());
        let sums: Vec<(usize, usize)> = (0..count).flat_map(|r| (0..self.m).map(move |i| (r, i))).collect();
        sums.iter().for_each(|(r, i)| line!(text, "var u{r}_{i} = 0i;"));
        line!(text, "for (var base = 0u; base < chunks; base += {run}u) {{");
        self.clear(text, count, 0);
        line!(text, "for (var at = base; at < min(base + {run}u, chunks); at += 1u) {{");
        self.multiply_shared(text, matrices, each, false);
        line!(text, "}}");
        sums.iter().for_each(|(r, i)| line!(text, "u{r}_{i} += i32(t{r}_{i}_0);"));
        line!(text, "}}");
        for (r, i) in sums {
            line!(text, "s{r}_{i} = f32(u{r}_{i}) * scales{}[g_at{r}];", matrices[r / each]);
        }
    }

    /// Chunk `at` of the rows a lane owns, X by broadcasts; with `ends`, the groups within it are begun and ended.
    pub(super) fn multiply_shared(&self, text: &mut String, matrices: &[usize], each: usize, ends: bool) {
        let (share, count) = (self.share(), each * matrices.len());
        for i in 0..self.m {
            self.read_share(text, i);
            if self.coding.is_some() {
                (0..share).for_each(|p| line!(text, "let code{i}_{p} = coded(own{i}_{p}, factor{i});"));
            }
        }
        let own = if self.coding.is_some() { "code" } else { "own" };
        self.read_codes(text, matrices, each, "at");
        let per_group = self.chunk() / self.groups_of_chunk();
        for g in 0..self.groups_of_chunk() {
            if ends {
                self.clear(text, count, g);
            }
            let group = if ends { g } else { 0 };
            for word in g * per_group / self.layout.of_word()..(g + 1) * per_group / self.layout.of_word() {
                for i in 0..self.m {
                    for e in 0..self.layout.of_word() {
                        let element = word * self.layout.of_word() + e;
                        let (part, lane) = (element % share, element / share);
                        line!(text, "let x{i}_{element} = subgroupBroadcast({own}{i}_{part}, {lane}u);");
                    }
                }
                for r in 0..count {
                    let name = format!("w{r}_{word}");
                    self.layout.unpack(text, &self.word(r, word), &name, 0, self.table_lanes());
                    for i in 0..self.m {
                        for e in 0..self.layout.of_word() {
                            let element = word * self.layout.of_word() + e;
                            let sum = format!("t{r}_{i}_{group}");
                            line!(text, "{sum} = fma(x{i}_{element}, {name}_{e}, {sum});");
                        }
                    }
                }
            }
            if self.layout.has_offsets {
                // Lanes add up their own share first.
                for i in 0..self.m {
                    let own: Vec<String> = (0..share).map(|part| format!("own{i}_{part}")).collect();
                    line!(text, "let own_sum{i}_{g} = {};", own.join(" + "));
                    for lane in g * per_group / share..(g + 1) * per_group / share {
                        line!(text, "x_sum{i}_{group} += subgroupBroadcast(own_sum{i}_{g}, {lane}u);");
                    }
                }
            }
            if ends {
                let (first, together) = (self.groups_of_chunk(), self.scales_together());
                let place = format!("at * {}u + {}u", first / together, g / together);
                let part = (together > 1).then(|| PARTS[g % together]);
                self.scale(text, matrices, each, g, &place, part);
            }
        }
    }

    /// This lane's share of chunk `at` of row `i` of X.
    pub(super) fn read_share(&self, text: &mut String, i: usize) {
        let share = self.share();
        let wide = self.words == 8 && share == 8;
        let at = |part: usize, of: usize| {
            let row = self.layout.cols / share * of * i;
            format!("a[{row}u + (at * {}u + lane) * {of}u + {part}u]", self.lanes)
        };
        if wide {
            line!(text, "let own{i} = {};", at(0, 1));
            for (j, part) in PARTS.iter().enumerate() {
                line!(text, "let own{i}_{} = bitcast<f32>(u32(own{i}.{part}));", 2 * j);
                line!(text, "let own{i}_{} = bitcast<f32>(u32(own{i}.{part} >> 32u));", 2 * j + 1);
            }
            return;
        }
        match share {
            1 => line!(text, "let own{i}_0 = {};", at(0, 1)),
            2 => {
                line!(text, "let own{i} = {};\nlet own{i}_0 = own{i}.x;\nlet own{i}_1 = own{i}.y;", at(0, 1))
            }
            _ => {
                for four in 0..share / 4 {
                    line!(text, "let own{i}v{four} = {};", at(four, share / 4));
                    for (j, part) in PARTS.iter().enumerate() {
                        line!(text, "let own{i}_{} = own{i}v{four}.{part};", four * 4 + j);
                    }
                }
            }
        }
    }

    /// Each lane stores the rows it owns.
    pub(super) fn store_own(&self, text: &mut String, matrices: usize, each: usize, n: &str, store: &str) {
        for r in 0..each {
            line!(text, "{{\nlet column = first + {}u;\nif column < {n} {{", r * self.lanes);
            for i in 0..self.m {
                line!(text, "{{\nlet row = {i}u;");
                let scale = if self.coding.is_some() { format!(" * x_scale{i}") } else { String::new() };
                (0..matrices).for_each(|y| line!(text, "let y{y} = s{}_{i}{scale};", y * each + r));
                line!(text, "{store}\n}}");
            }
            line!(text, "}}\n}}");
        }
    }
}
