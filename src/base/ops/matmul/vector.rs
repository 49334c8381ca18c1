//! Shader text of the matmul for a few rows of A: reading B, once and in wide loads, is all the work.
//!
//! B as [N, K] is walked along K by a team of lanes, each with sums of its own; B as [K, N] by columns. Teams are subgroups on
//! drivers that run on the CPU, where workgroup memory is slow; elsewhere sums meet in workgroup memory, as subgroups have no
//! size that every adapter shares.

use super::access::Access;
use super::geometry::Form;
use crate::ops::launch::Caps;
use crate::tensor::DType;
use std::fmt::Write;

/// Rows of A at most: beyond, tiles are faster.
const MOST_ROWS: usize = 8;
/// Sums that one team of lanes brings to an end: as many lanes then store one each.
const SUMS: usize = 8;
/// Workgroups on a driver that runs on the CPU: beyond, they walk on, since each has a price there.
const MOST_GROUPS: usize = 128;
/// Invocations of a workgroup that shares memory.
const SHARED_GROUP: usize = 128;

/// Writes a line of shader text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

/// What distinguishes one generated kernel from another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Template {
    form: Form,
    /// Rows of A.
    m: usize,
    /// Floats of one load.
    chunk: usize,
    /// How B is read.
    b: Access,
    /// How A is read.
    a: Access,
    /// Invocations of a subgroup, where that is what adds up.
    subgroup: Option<usize>,
    /// True if the lanes' last turn along K is not whole.
    ragged: bool,
}

impl Template {
    /// The kernels for these sizes on this adapter, the preferred one first.
    pub fn fitting(form: Form, operands: [DType; 2], [m, n, k]: [usize; 3], caps: &Caps) -> Vec<Template> {
        if m > MOST_ROWS {
            return vec![];
        }
        let along = if form == Form::Nt { k } else { n };
        let mut templates = vec![];
        if caps.subgroup && [4, 8].contains(&caps.subgroup_size) && m <= caps.subgroup_size as usize {
            let whole = |chunk: usize| along.is_multiple_of(chunk) && k.is_multiple_of(chunk);
            if let Some(chunk) = [8, 4].into_iter().find(|&chunk| whole(chunk)) {
                let [a, b] = operands.map(|dtype| Access::widest(dtype, along, chunk, caps.int64));
                let lanes = caps.subgroup_size as usize;
                let ragged = !(k / chunk).is_multiple_of(lanes);
                let subgroup = Some(lanes);
                templates.push(Template { form, m, chunk, b, a, subgroup, ragged });
            }
        }
        if caps.max_invocations as usize >= SHARED_GROUP && along.is_multiple_of(4) {
            let [a, b] = operands.map(|dtype| Access::widest(dtype, along, 4, false));
            let a = if form == Form::Nt { a } else { Access::narrow(operands[0]) };
            templates.push(Template { form, m, chunk: 4, b, a, subgroup: None, ragged: true });
        }
        if !caps.is_cpu {
            templates.reverse();
        }
        templates
    }

    /// Name of the variant.
    pub fn name(&self) -> &'static str {
        if self.subgroup.is_some() { "matmul_vector" } else { "matmul_vector_shared" }
    }

    /// Lanes of a team.
    pub fn lanes(&self) -> usize {
        match (self.subgroup, self.form) {
            (Some(lanes), _) => lanes,
            (None, Form::Nt) => 32,
            (None, _) => 16,
        }
    }

    /// Invocations of a workgroup.
    pub fn group(&self) -> usize {
        self.subgroup.unwrap_or(SHARED_GROUP)
    }

    /// Columns that one team sums along K, for B as [N, K].
    fn columns(&self) -> usize {
        SUMS.min(self.lanes()) / self.m.next_power_of_two()
    }

    /// Columns of one workgroup.
    pub fn tile_n(&self) -> usize {
        match self.form {
            Form::Nt => self.columns() * (self.group() / self.lanes()),
            _ => self.lanes() * self.chunk,
        }
    }

    /// Workgroups for so many tiles.
    pub fn groups(&self, tiles: usize) -> usize {
        if self.subgroup.is_some() { tiles.min(MOST_GROUPS) } else { tiles }
    }

    /// Declarations of the operands and of shared memory.
    pub fn input(&self) -> String {
        let mut text = self.a.declare(0, "a", self.chunk) + &self.b.declare(1, "b", self.chunk);
        if self.subgroup.is_none() {
            let sums = if self.form == Form::Nt { self.columns() } else { self.chunk };
            line!(text, "var<workgroup> partial: array<f32, {}>;", self.group() * sums * self.m);
        }
        text
    }

    /// The loop and the stores.
    pub fn body(&self) -> String {
        let mut text = String::new();
        self.over_tiles(&mut text, |text| match self.form {
            Form::Nt => self.along_k(text),
            _ => self.along_n(text),
        });
        text
    }

    /// B as [N, K].
    fn along_k(&self, text: &mut String) {
        let store = "c[row * params.n + column] = Elem(finish(y0, bias_at(column)));";
        self.dot(text, &["b"], "params.n", "tile", store);
    }

    /// Columns of each of so many matrices that one team sums.
    pub fn columns_of_each(&self, matrices: usize) -> usize {
        self.columns() / matrices
    }

    /// Sums of some columns of `tile` along K for each of `matrices`, buffers that hold [`n`, K]; `store` is done by a lane for
    /// every `row` and `column` with what the matrices give there as `y0`, `y1` ..
    pub fn dot(&self, text: &mut String, matrices: &[&str], n: &str, tile: &str, store: &str) {
        let Template { m, chunk, .. } = *self;
        let (each, lanes) = (self.columns_of_each(matrices.len()), self.lanes());
        let teams = self.group() / lanes;
        // Sum number r belongs to matrix r / each.
        let columns = each * matrices.len();
        line!(text, "let chunks = params.k / {chunk}u;");
        line!(text, "let first = ({tile} * {teams}u + team) * {each}u;");
        for r in 0..columns {
            line!(text, "let b_at{r} = min(first + {}u, {n} - 1u) * chunks;", r % each);
            (0..m).for_each(|i| line!(text, "var s{r}_{i} = 0.0;"));
        }
        line!(text, "for (var start = 0u; start < chunks; start += {lanes}u) {{");
        match self.ragged {
            true => {
                line!(text, "let at = min(start + lane, chunks - 1u);\nlet live = start + lane < chunks;")
            }
            false => line!(text, "let at = start + lane;"),
        }
        for i in 0..m {
            self.a.read(text, chunk, "a", &format!("x{i}"), &format!("{i}u * chunks + at"));
            for j in 0..chunk {
                match self.ragged {
                    true => line!(text, "let a{i}_{j} = select(0.0, x{i}_{j}, live);"),
                    false => line!(text, "let a{i}_{j} = x{i}_{j};"),
                }
            }
        }
        for r in 0..columns {
            self.b.read(text, chunk, matrices[r / each], &format!("b{r}"), &format!("b_at{r} + at"));
            for i in 0..m {
                (0..chunk).for_each(|j| line!(text, "s{r}_{i} = fma(a{i}_{j}, b{r}_{j}, s{r}_{i});"));
            }
        }
        line!(text, "}}");
        // Lane i * each + column of a team stores row i of that column.
        let (values, stored) = (columns * m, each * m);
        (0..matrices.len()).for_each(|y| line!(text, "var y{y} = 0.0;"));
        if self.subgroup.is_some() {
            for (r, i) in (0..m).flat_map(|i| (0..columns).map(move |r| (r, i))) {
                let (y, place) = (r / each, i * each + r % each);
                line!(text, "let t{r}_{i} = subgroupAdd(s{r}_{i});");
                line!(text, "y{y} = select(y{y}, t{r}_{i}, lane == {place}u);");
            }
        } else {
            for (r, i) in (0..m).flat_map(|i| (0..columns).map(move |r| (r, i))) {
                let e = r / each * stored + i * each + r % each;
                line!(text, "partial[(team * {values}u + {e}u) * {lanes}u + lane] = s{r}_{i};");
            }
            line!(text, "workgroupBarrier();\nif lane < {stored}u {{");
            line!(text, "for (var j = 0u; j < {lanes}u; j += 1u) {{");
            for y in 0..matrices.len() {
                let e = format!("{}u + lane", y * stored);
                line!(text, "y{y} += partial[(team * {values}u + {e}) * {lanes}u + j];");
            }
            line!(text, "}}\n}}");
        }
        line!(text, "let column = first + lane % {each}u;\nlet row = lane / {each}u;");
        line!(text, "if lane < {stored}u && column < {n} {{\n{store}\n}}");
    }

    /// A loop over the tiles of a workgroup, each done by `each`.
    pub fn over_tiles(&self, text: &mut String, each: impl FnOnce(&mut String)) {
        match self.subgroup.is_some() {
            true => line!(text, "for (var tile = number; tile < params.tiles; tile += count) {{"),
            false => line!(text, "let tile = number;\n{{"),
        }
        each(text);
        line!(text, "}}");
    }

    /// The operands' accesses: of A, of B.
    pub fn accesses(&self) -> [Access; 2] {
        [self.a, self.b]
    }

    /// Floats of one load.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Declaration of the workgroup memory in which sums of B as [N, K] meet, if they do.
    pub fn shared(&self) -> String {
        if self.subgroup.is_some() {
            return String::new();
        }
        format!("var<workgroup> partial: array<f32, {}>;\n", self.group() * self.columns() * self.m)
    }

    /// B as [K, N].
    fn along_n(&self, text: &mut String) {
        let Template { m, chunk, .. } = *self;
        line!(text, "let column = (tile * LANES + lane) * {chunk}u;");
        line!(text, "let run = params.n / {chunk}u;");
        line!(text, "let b_at = min(tile * LANES + lane, run - 1u);");
        for i in 0..m {
            (0..chunk).for_each(|j| line!(text, "var s{j}_{i} = 0.0;"));
        }
        if self.subgroup.is_some() {
            line!(text, "for (var k = 0u; k < params.k; k += {chunk}u) {{");
            for i in 0..m {
                let at = format!("({i}u * params.k + k) / {chunk}u");
                self.a.read(text, chunk, "a", &format!("a{i}"), &at);
            }
            for step in 0..chunk {
                self.b.read(text, chunk, "b", &format!("b{step}"), &format!("b_at + (k + {step}u) * run"));
                for i in 0..m {
                    (0..chunk)
                        .for_each(|j| line!(text, "s{j}_{i} = fma(a{i}_{step}, b{step}_{j}, s{j}_{i});"));
                }
            }
            line!(text, "}}");
        } else {
            let teams = self.group() / self.lanes();
            line!(text, "for (var k = team; k < params.k; k += {teams}u) {{");
            self.b.read(text, chunk, "b", "b0", "b_at + k * run");
            for i in 0..m {
                let a = self.a.element("a", &format!("{i}u * params.k + k"));
                line!(text, "let a{i} = {a};");
                (0..chunk).for_each(|j| line!(text, "s{j}_{i} = fma(a{i}, b0_{j}, s{j}_{i});"));
            }
            line!(text, "}}");
            self.meet(text);
        }
        let stores =
            if self.subgroup.is_some() { "column < params.n" } else { "team == 0u && column < params.n" };
        line!(text, "if {stores} {{");
        for i in 0..m {
            for j in 0..chunk {
                line!(
                    text,
                    "c[{i}u * params.n + column + {j}u] = Elem(finish(s{j}_{i}, bias_at(column + {j}u)));"
                );
            }
        }
        line!(text, "}}");
    }

    /// Sums of all teams added up by the first one, through workgroup memory.
    fn meet(&self, text: &mut String) {
        let Template { m, chunk, .. } = *self;
        let (values, group) = (m * chunk, self.group());
        for i in 0..m {
            (0..chunk)
                .for_each(|j| line!(text, "partial[{}u + local.x] = s{j}_{i};", (i * chunk + j) * group));
        }
        line!(text, "workgroupBarrier();\nif team == 0u {{");
        line!(text, "for (var j = LANES; j < {group}u; j += LANES) {{");
        for e in 0..values {
            let (i, j) = (e / chunk, e % chunk);
            line!(text, "s{j}_{i} += partial[{}u + j + lane];", e * group);
        }
        line!(text, "}}\n}}");
    }
}
