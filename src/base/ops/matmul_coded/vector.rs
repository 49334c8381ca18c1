//! Shader text of the matmul by codes for a few rows of X: reading W, once and in wide loads, is all the work.
//!
//! On drivers that run on the CPU each lane of a subgroup owns rows of W, and the lanes share what they read of X by broadcasts: a
//! load there costs the same for 4 bytes and for 32, a broadcast costs one instruction, and nothing is left to be summed across
//! lanes. Elsewhere a team of lanes walks along K over some rows of W, and sums meet in workgroup memory. Codes become numbers in
//! registers; a group's sum is scaled once.
//!
//! X may be coded on the way, to 8 bits with a scale for each row: then every workgroup finds the rows' scales for itself, sums are of
//! whole numbers and exact, f32 for so few terms that it holds them and i32 beyond.

mod coding;
mod own;
mod team;

use crate::ops::coded::Layout;
use crate::ops::launch::{Caps, Launch};
use std::fmt::Write;

/// Rows of X at most: beyond, tiles are faster.
const MOST_ROWS: usize = 8;
/// Sums of one lane that owns rows, at most.
const SUMS: usize = 8;
/// Rows of one lane, at most.
const MOST_OWN: usize = 4;
/// Workgroups on a driver that runs on the CPU: beyond, they walk on, since each has a price there.
const MOST_GROUPS: usize = 128;
/// Invocations of a workgroup that shares memory.
const SHARED_GROUP: usize = 128;
/// Products of two codes of 8 bits that f32 sums exactly.
const RUN: usize = 1024;
/// Names of a vector's parts.
const PARTS: [&str; 4] = ["x", "y", "z", "w"];

/// Writes a line of shader text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

/// What distinguishes one generated kernel from another.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Template {
    layout: Layout,
    /// Rows of X.
    m: usize,
    /// Words of one load: 1, 2, 4, or 8 by words of 64 bits.
    words: usize,
    /// Lanes of a team.
    lanes: usize,
    /// True where lanes own rows, in a subgroup.
    owns: bool,
    /// How X is coded, if it is: W then is of bytes with a scale a row.
    coding: Option<Coding>,
}

/// How rows of X become codes of 8 bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::ops) struct Coding {
    /// What the largest magnitude is divided by for a scale; without it, the scale is given in the buffer `x_scale`.
    pub divisor: Option<f32>,
    /// The lowest and the highest code.
    pub bounds: [f32; 2],
}

impl Template {
    /// The kernels for these sizes on this adapter, the preferred one first.
    pub fn fitting(layout: Layout, m: usize, caps: &Caps) -> Vec<Template> {
        if m > MOST_ROWS {
            return vec![];
        }
        let size = caps.subgroup_size as usize;
        let owns = (caps.subgroup && [4, 8].contains(&size)).then(|| {
            let most = if caps.int64 { 8 } else { 4 };
            // Each lane's share of X is one load, or two.
            let fits = |&words: &usize| {
                let chunk = words * layout.of_word();
                words <= most && chunk <= 8 * size && chunk.is_multiple_of(size)
            };
            let words = [8, 4, 2, 1].into_iter().filter(fits).find(|&words| suits(&layout, words))?;
            Some(Template { layout, m, words, lanes: size, owns: true, coding: None })
        });
        let shared = (caps.max_invocations as usize >= SHARED_GROUP).then(|| {
            let words = [4, 2, 1].into_iter().find(|&words| suits(&layout, words))?;
            let chunks = layout.cols / (words * layout.of_word());
            let lanes = if chunks >= 32 { 32 } else { chunks.next_power_of_two().max(4) };
            Some(Template { layout, m, words, lanes, owns: false, coding: None })
        });
        let mut templates: Vec<Template> = [owns, shared].into_iter().flatten().flatten().collect();
        if !caps.is_cpu {
            templates.reverse();
        }
        templates
    }

    /// The kernel that codes X on the way.
    pub fn coding(self, coding: Coding) -> Template {
        Template { coding: Some(coding), ..self }
    }

    /// Name of the variant.
    pub fn name(&self) -> &'static str {
        if self.owns { "matmul_coded_vector" } else { "matmul_coded_vector_shared" }
    }

    /// Lanes of a team.
    pub fn lanes(&self) -> usize {
        self.lanes
    }

    /// Invocations of a workgroup.
    pub fn group(&self) -> usize {
        if self.owns { self.lanes } else { SHARED_GROUP }
    }

    /// Rows of each of so many matrices: of a lane that owns them, or of a team.
    fn rows_of_each(&self, matrices: usize) -> usize {
        let rows = SUMS / self.m.next_power_of_two();
        if self.owns { (rows.min(MOST_OWN) / matrices).max(1) } else { (rows / matrices).max(1) }
    }

    /// Rows of each of so many matrices that a workgroup brings to an end.
    pub fn tile(&self, matrices: usize) -> usize {
        let rows = self.rows_of_each(matrices);
        if self.owns { rows * self.lanes } else { rows * (SHARED_GROUP / self.lanes) }
    }

    /// Workgroups for so many tiles.
    pub fn groups(&self, tiles: usize) -> usize {
        if self.owns { tiles.min(MOST_GROUPS) } else { tiles }
    }

    /// Lanes of a subgroup that all do the same.
    fn table_lanes(&self) -> usize {
        if self.owns { self.lanes } else { 1 }
    }

    /// Elements of a load of codes.
    fn chunk(&self) -> usize {
        self.words * self.layout.of_word()
    }

    /// Groups that a load of codes reaches into, where it holds them whole.
    fn groups_of_chunk(&self) -> usize {
        match self.layout.groups() {
            1 => 1,
            _ => (self.chunk() / self.layout.group).max(1),
        }
    }

    /// Loads of codes in a group, where it holds them whole.
    fn chunks_of_group(&self) -> usize {
        self.layout.group.div_ceil(self.chunk()).max(1)
    }

    /// Floats of X that each lane reads of a chunk, where lanes share them.
    fn share(&self) -> usize {
        self.chunk() / self.lanes
    }

    /// Groups whose scales are read together.
    fn scales_together(&self) -> usize {
        let per = self.groups_of_chunk();
        [4, 2]
            .into_iter()
            .find(|&n| per.is_multiple_of(n) && self.layout.groups().is_multiple_of(n))
            .unwrap_or(1)
    }

    /// Declaration of X at binding 0.
    pub fn declare_x(&self) -> String {
        let array = match (self.owns, self.share()) {
            (true, 1) => "f32",
            (true, 2) => "vec2<f32>",
            (true, 8) if self.words == 8 => "vec4<u64>",
            _ => "vec4<f32>",
        };
        format!("@group(0) @binding(0) var<storage, read> a: array<{array}>;   // [M, K]\n")
    }

    /// Declarations of matrix number `i` from `binding` on.
    pub fn declare(&self, i: usize, binding: usize) -> String {
        let codes = match self.words {
            1 => "u32".to_string(),
            8 => "vec4<u64>".to_string(),
            words => format!("vec{words}<u32>"),
        };
        let scales = match self.scales_together() {
            1 => "f32".to_string(),
            together => format!("vec{together}<f32>"),
        };
        let mut text = String::new();
        line!(text, "@group(0) @binding({binding}) var<storage, read> codes{i}: array<{codes}>;");
        for (at, name) in ["scales", "offsets"].into_iter().enumerate().take(self.layout.inputs() - 1) {
            let binding = binding + 1 + at;
            line!(text, "@group(0) @binding({binding}) var<storage, read> {name}{i}: array<{scales}>;");
        }
        text
    }

    /// Functions the body calls, and the workgroup memory in which sums of so many matrices meet.
    pub fn shared(&self, matrices: usize) -> String {
        let mut text = self.layout.functions();
        if !self.owns {
            let sums = self.rows_of_each(matrices) * matrices * self.m;
            line!(text, "var<workgroup> partial: array<f32, {}>;", SHARED_GROUP * sums);
        }
        let Some(coding) = self.coding else { return text };
        let [low, high] = coding.bounds;
        line!(
            text,
            "fn coded(x: f32, factor: f32) -> f32 {{ return round(clamp(x * factor, {low:?}, {high:?})); }}"
        );
        if !self.owns {
            line!(text, "var<workgroup> largest_of: array<u32, {SHARED_GROUP}>;");
            line!(text, "var<workgroup> row_scales: array<f32, {}>;", self.m);
        }
        text
    }

    /// A loop over the tiles of a workgroup, each done by `each`.
    pub fn over_tiles(&self, text: &mut String, each: impl FnOnce(&mut String)) {
        self.layout.share_table(text, self.table_lanes());
        match self.owns {
            true => line!(text, "for (var tile = number; tile < params.tiles; tile += count) {{"),
            false => line!(text, "let tile = number;\n{{"),
        }
        each(text);
        line!(text, "}}");
    }

    /// Sums of rows of `tile` of each of `matrices`, which have `n` rows; `store` is done for every row `row` of X and
    /// `column` of C with what the matrices give there as `y0`, `y1` ..
    pub fn dot(&self, text: &mut String, matrices: &[usize], n: &str, tile: &str, store: &str) {
        let each = self.rows_of_each(matrices.len());
        let count = each * matrices.len();
        line!(
            text,
            "let chunks = {}u;\nlet groups = {}u;",
            self.layout.cols / self.chunk(),
            self.layout.groups()
        );
        match self.owns {
            true => line!(text, "let first = {tile} * {}u + lane;", self.tile(matrices.len())),
            false => line!(text, "let first = ({tile} * {}u + team) * {each}u;", SHARED_GROUP / self.lanes),
        }
        for r in 0..count {
            let step = if self.owns { self.lanes } else { 1 };
            line!(text, "let row{r} = min(first + {}u, {n} - 1u);", r % each * step);
            line!(text, "let b_at{r} = row{r} * chunks;");
            line!(text, "let g_at{r} = row{r} * {}u;", self.layout.groups() / self.scales_together());
            (0..self.m).for_each(|i| line!(text, "var s{r}_{i} = 0.0;"));
        }
        match self.owns {
            true => self.walk_groups(text, matrices, each),
            false => self.walk_team(text, matrices, each),
        }
        match self.owns {
            true => self.store_own(text, matrices.len(), each, n, store),
            false => self.meet(text, matrices, each, n, store),
        }
    }

    /// Sums of a group, before its scale: `t{r}_{i}_{group}`, and of X alone, where offsets need it.
    fn clear(&self, text: &mut String, count: usize, group: usize) {
        for i in 0..self.m {
            (0..count).for_each(|r| line!(text, "var t{r}_{i}_{group} = 0.0;"));
            if self.layout.has_offsets {
                line!(text, "var x_sum{i}_{group} = 0.0;");
            }
        }
    }

    /// Ends a group: its sums with scale and offset go to the row's.
    fn scale(
        &self,
        text: &mut String,
        matrices: &[usize],
        each: usize,
        group: usize,
        place: &str,
        part: Option<&str>,
    ) {
        let part = part.map_or(String::new(), |part| format!(".{part}"));
        for r in 0..each * matrices.len() {
            let matrix = matrices[r / each];
            line!(text, "let scale{r}_{group} = scales{matrix}[g_at{r} + {place}]{part};");
            if self.layout.has_offsets {
                line!(text, "let offset{r}_{group} = offsets{matrix}[g_at{r} + {place}]{part};");
            }
            for i in 0..self.m {
                line!(text, "s{r}_{i} = fma(scale{r}_{group}, t{r}_{i}_{group}, s{r}_{i});");
                if self.layout.has_offsets {
                    line!(text, "s{r}_{i} = fma(offset{r}_{group}, x_sum{i}_{group}, s{r}_{i});");
                }
            }
        }
    }

    /// Loads chunk `at` of each row of W.
    fn read_codes(&self, text: &mut String, matrices: &[usize], each: usize, at: &str) {
        for r in 0..each * matrices.len() {
            line!(text, "let q{r} = codes{}[b_at{r} + {at}];", matrices[r / each]);
        }
    }

    /// Word number `word` of what was loaded of row `r`.
    fn word(&self, r: usize, word: usize) -> String {
        match self.words {
            1 => format!("q{r}"),
            8 if word.is_multiple_of(2) => format!("u32(q{r}.{})", PARTS[word / 2]),
            8 => format!("u32(q{r}.{} >> 32u)", PARTS[word / 2]),
            _ => format!("q{r}.{}", PARTS[word]),
        }
    }
}

/// The parameters: rows and tiles of each matrix.
pub(in crate::ops) fn with_params(launch: Launch, columns: &[usize], tiles: &[usize]) -> Launch {
    let of = |list: &[usize], i: usize| list.get(i).copied().unwrap_or(0);
    launch
        .param("n0", of(columns, 0))
        .param("n1", of(columns, 1))
        .param("n2", of(columns, 2))
        .param("end1", of(tiles, 0))
        .param("end2", of(tiles, 0) + of(tiles, 1))
        .param("tiles", tiles.iter().sum::<usize>())
}

/// True if loads of so many words stay within rows, and either hold groups whole or are held by them.
fn suits(layout: &Layout, words: usize) -> bool {
    let chunk = words * layout.of_word();
    let holds =
        layout.groups() == 1 || layout.group.is_multiple_of(chunk) || chunk.is_multiple_of(layout.group);
    // A group within a chunk is of whole words, so that words are unpacked once.
    let whole = layout.groups() == 1 || layout.group.is_multiple_of(layout.of_word());
    layout.cols.is_multiple_of(chunk) && holds && whole
}
