//! Shader text of the matmul of codes for a few rows of A: reading B, once and in wide loads, is all the work.
//!
//! A team of lanes walks along K over some rows of B, each lane with sums of its own. Teams are subgroups on drivers that run on
//! the CPU, where workgroup memory is slow; elsewhere sums meet in workgroup memory, as subgroups have no size that every
//! adapter shares.

use crate::ops::launch::Caps;
use std::fmt::Write;

/// Rows of A at most: beyond, tiles are faster.
const MOST_ROWS: usize = 4;
/// Sums that one team of lanes brings to an end: as many lanes then store one each.
const SUMS: usize = 8;
/// Workgroups on a driver that runs on the CPU: beyond, they walk on, since each has a price there.
const MOST_GROUPS: usize = 128;
/// Invocations of a workgroup that shares memory, and of a team in it.
const SHARED: [usize; 2] = [128, 32];

/// Writes a line of shader text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

/// What distinguishes one generated kernel from another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Template {
    /// Rows of A.
    m: usize,
    /// Words of one load: 1, 2 or 4.
    words: usize,
    /// Invocations of a subgroup, where that is what adds up.
    subgroup: Option<usize>,
    /// True if the lanes' last turn along K is not whole.
    ragged: bool,
    /// Columns that share a scale: what a lane sums of one load is then scaled at once.
    group: Option<usize>,
}

impl Template {
    /// The kernels for these sizes on this adapter, the preferred one first.
    pub fn fitting(m: usize, k: usize, group: Option<usize>, caps: &Caps) -> Vec<Template> {
        if m > MOST_ROWS {
            return vec![];
        }
        let whole = |words: &usize| {
            k.is_multiple_of(4 * words) && group.is_none_or(|group| group.is_multiple_of(4 * words))
        };
        let words = [4, 2, 1].into_iter().find(whole).unwrap_or(1);
        let mut templates = vec![];
        let mut add = |lanes: usize, subgroup| {
            let ragged = !(k / 4 / words).is_multiple_of(lanes);
            templates.push(Template { m, words, subgroup, ragged, group });
        };
        if caps.subgroup && [4, 8].contains(&caps.subgroup_size) && m <= caps.subgroup_size as usize {
            add(caps.subgroup_size as usize, Some(caps.subgroup_size as usize));
        }
        if caps.max_invocations as usize >= SHARED[0] {
            add(SHARED[1], None);
        }
        if !caps.is_cpu {
            templates.reverse();
        }
        templates
    }

    /// Name of the variant.
    pub fn name(&self) -> &'static str {
        if self.subgroup.is_some() { "matmul_int8_vector" } else { "matmul_int8_vector_shared" }
    }

    /// Lanes of a team.
    pub fn lanes(&self) -> usize {
        self.subgroup.unwrap_or(SHARED[1])
    }

    /// Invocations of a workgroup.
    pub fn group(&self) -> usize {
        self.subgroup.unwrap_or(SHARED[0])
    }

    /// Columns of one team.
    fn columns(&self) -> usize {
        SUMS.min(self.lanes()) / self.m.next_power_of_two()
    }

    /// Columns of one workgroup.
    pub fn tile_n(&self) -> usize {
        self.columns() * (self.group() / self.lanes())
    }

    /// Workgroups for so many tiles.
    pub fn groups(&self, tiles: usize) -> usize {
        if self.subgroup.is_some() { tiles.min(MOST_GROUPS) } else { tiles }
    }

    /// Declarations of the operands and of shared memory.
    pub fn input(&self) -> String {
        let array = if self.words == 1 { "u32".to_string() } else { format!("vec{}<u32>", self.words) };
        let mut text = String::new();
        for (binding, name) in ["a", "b"].iter().enumerate() {
            line!(text, "@group(0) @binding({binding}) var<storage, read> {name}: array<{array}>;");
        }
        if self.subgroup.is_none() {
            let count = self.group() * self.columns() * self.m;
            line!(text, "var<workgroup> partial: array<{}, {count}>;", self.sum());
        }
        text
    }

    /// The loop and the stores.
    pub fn body(&self) -> String {
        let (m, columns, lanes) = (self.m, self.columns(), self.lanes());
        let mut text = String::new();
        match self.subgroup.is_some() {
            true => line!(text, "for (var tile = number; tile < params.tiles; tile += count) {{"),
            false => line!(text, "let tile = number;\n{{"),
        }
        line!(text, "let chunks = params.k / {}u;", 4 * self.words);
        line!(text, "let first = (tile * {}u + team) * {columns}u;", self.group() / lanes);
        for r in 0..columns {
            line!(text, "let b_at{r} = min(first + {r}u, params.n - 1u) * chunks;");
            (0..m).for_each(|i| line!(text, "var s{r}_{i} = {}(0);", self.sum()));
        }
        line!(text, "for (var start = 0u; start < chunks; start += {lanes}u) {{");
        match self.ragged {
            true => {
                line!(text, "let at = min(start + lane, chunks - 1u);\nlet live = start + lane < chunks;")
            }
            false => line!(text, "let at = start + lane;"),
        }
        for i in 0..m {
            line!(text, "let x{i} = a[{i}u * chunks + at];");
            for w in 0..self.words {
                let word = self.part(&format!("x{i}"), w);
                match self.ragged {
                    true => line!(text, "let a{i}_{w} = select(0u, {word}, live);"),
                    false => line!(text, "let a{i}_{w} = {word};"),
                }
            }
        }
        for r in 0..columns {
            line!(text, "let b{r} = b[b_at{r} + at];");
            if let Some(group) = self.group {
                let row =
                    format!("min(first + {r}u, params.n - 1u) * ((params.k + {}u) / {group}u)", group - 1);
                line!(text, "let scale{r} = b_scale[{row} + at * {}u / {group}u];", 4 * self.words);
            }
            for i in 0..m {
                let product =
                    |w: usize| format!("dot4I8Packed(a{i}_{w}, {})", self.part(&format!("b{r}"), w));
                let products: Vec<String> = (0..self.words).map(product).collect();
                match self.group {
                    Some(_) => line!(text, "s{r}_{i} += f32({}) * scale{r};", products.join(" + ")),
                    None => products.iter().for_each(|product| line!(text, "s{r}_{i} += {product};")),
                }
            }
        }
        line!(text, "}}");
        self.meet(&mut text);
        line!(text, "let column = first + lane % {columns}u;");
        line!(text, "if lane < {}u && column < params.n {{", columns * m);
        line!(text, "let row = lane / {columns}u;");
        let scale = if self.group.is_some() { "1.0" } else { "b_scale[column]" };
        line!(text, "let done = finish(f32(y), a_scale[row], {scale}, bias_at(column));");
        line!(text, "c[row * params.n + column] = done;\n}}\n}}");
        text
    }

    /// Type of a lane's sums.
    fn sum(&self) -> &'static str {
        if self.group.is_some() { "f32" } else { "i32" }
    }

    fn part(&self, vector: &str, word: usize) -> String {
        if self.words == 1 { vector.to_string() } else { format!("{vector}.{}", ["x", "y", "z", "w"][word]) }
    }

    /// The team's sums added up: lane `e` of it leaves with sum number `e` as `y`.
    fn meet(&self, text: &mut String) {
        let (columns, lanes) = (self.columns(), self.lanes());
        let values = columns * self.m;
        line!(text, "var y = {}(0);", self.sum());
        for e in 0..values {
            let (r, i) = (e % columns, e / columns);
            match self.subgroup.is_some() {
                true => line!(text, "let t{e} = subgroupAdd(s{r}_{i});\ny = select(y, t{e}, lane == {e}u);"),
                false => line!(text, "partial[(team * {values}u + {e}u) * {lanes}u + lane] = s{r}_{i};"),
            }
        }
        if self.subgroup.is_none() {
            line!(text, "workgroupBarrier();\nif lane < {values}u {{");
            line!(text, "for (var j = 0u; j < {lanes}u; j += 1u) {{");
            line!(text, "y += partial[(team * {values}u + lane) * {lanes}u + j];\n}}\n}}");
        }
    }
}
