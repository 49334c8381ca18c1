//! Shader text of the workgroup-tiled matmul of codes: the unrolled sums and the stores.

use std::fmt::Write;

/// Invocations along each axis of the workgroup.
pub(super) const SIDE: usize = 16;
/// Invocations of the workgroup.
pub(super) const GROUP: usize = SIDE * SIDE;
/// Codes along K that are staged at a time.
pub(super) const STAGE: usize = 32;

/// Writes a line of shader text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

/// What distinguishes one generated kernel from another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Template {
    /// Rows and columns of one invocation.
    pub side: usize,
    /// Products by `dot4I8Packed`, else by `dot` of unpacked words: which of them a driver turns into its own instruction varies.
    pub packed: bool,
    /// Columns that share a scale, whole stages of them.
    pub group: Option<usize>,
}

impl Template {
    /// The accumulators.
    pub(super) fn sums(&self) -> String {
        let mut text = String::new();
        for r in 0..self.side {
            for c in 0..self.side {
                line!(text, "var s{r}_{c} = 0i;");
                if self.group.is_some() {
                    line!(text, "var y{r}_{c} = 0.0;");
                }
            }
        }
        text
    }

    /// At a group's end its sums, scaled, go to those of all groups.
    pub(super) fn end_group(&self) -> String {
        let Some(group) = self.group else { return String::new() };
        let mut text = String::new();
        line!(text, "let next = (first + STEP) * 4u;\nif next % {group}u == 0u || next >= params.k {{");
        line!(
            text,
            "let group_at = first * 4u / {group}u;\nlet of_row = (params.k + {}u) / {group}u;",
            group - 1
        );
        for c in 0..self.side {
            line!(text, "let place{c} = min(column0 + {}u + lane_x, params.n - 1u);", c * SIDE);
            line!(text, "let scale{c} = b_scale[place{c} * of_row + group_at];");
            for r in 0..self.side {
                line!(text, "y{r}_{c} = fma(f32(s{r}_{c}), scale{c}, y{r}_{c});\ns{r}_{c} = 0i;");
            }
        }
        line!(text, "}}");
        text
    }

    /// Four steps along K. Lanes take rows and columns 16 apart, so that neighbours read neighbouring lines.
    pub(super) fn multiply(&self) -> String {
        let mut text = String::new();
        for (operand, lane) in [("a", "lane_y"), ("b", "lane_x")] {
            for i in 0..self.side {
                line!(text, "let {operand}{i} = {operand}_tile[({}u + {lane}) * LINE + word];", i * SIDE);
            }
        }
        for r in 0..self.side {
            for c in 0..self.side {
                let product = match self.packed {
                    true => format!("dot4I8Packed(a{r}, b{c})"),
                    false => format!("dot(unpack4xI8(a{r}), unpack4xI8(b{c}))"),
                };
                line!(text, "s{r}_{c} += {product};");
            }
        }
        text
    }

    /// Scales, bias, activation and the guarded stores.
    pub(super) fn store(&self) -> String {
        let mut text = String::new();
        for c in 0..self.side {
            line!(text, "let n{c} = column0 + {}u + lane_x;", c * SIDE);
            match self.group {
                Some(_) => line!(text, "let scale{c} = 1.0;"),
                None => line!(text, "let scale{c} = b_scale[min(n{c}, params.n - 1u)];"),
            }
            line!(text, "let bias{c} = bias_at(min(n{c}, params.n - 1u));");
        }
        for r in 0..self.side {
            line!(text, "let m{r} = row0 + {}u + lane_y;", r * SIDE);
            line!(text, "if m{r} < params.m {{");
            line!(text, "let row_scale = a_scale[m{r}];");
            for c in 0..self.side {
                let sum = if self.group.is_some() { format!("y{r}_{c}") } else { format!("f32(s{r}_{c})") };
                let value = format!("finish({sum}, row_scale, scale{c}, bias{c})");
                line!(text, "if n{c} < params.n {{ c[m{r} * params.n + n{c}] = {value}; }}");
            }
            line!(text, "}}");
        }
        text
    }
}
