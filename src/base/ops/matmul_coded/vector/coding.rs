//! X coded on the way: the scales of its rows, found by every workgroup for itself.

use super::{SHARED_GROUP, Template};
use std::fmt::Write;

/// Writes a line of shader text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

impl Template {
    /// What comes before all tiles: the scales of X's rows, `x_scale{i}`, and what X is multiplied with for its codes.
    pub fn begin(&self, text: &mut String) {
        let Some(coding) = self.coding else { return };
        for i in 0..self.m {
            let Some(divisor) = coding.divisor else {
                line!(text, "let x_scale{i} = x_scale[0];\nlet factor{i} = factor_of(x_scale{i});");
                continue;
            };
            line!(text, "var largest{i} = 0u;");
            if self.owns {
                line!(text, "for (var at = 0u; at < {}u; at += 1u) {{", self.layout.cols / self.chunk());
                self.read_share(text, i);
                for part in 0..self.share() {
                    line!(text, "largest{i} = max(largest{i}, magnitude(own{i}_{part}));");
                }
                line!(text, "}}\nlet most{i} = subgroupMax(largest{i});");
            } else {
                let fours = self.layout.cols / 4;
                line!(text, "for (var at = local.x; at < {fours}u; at += {SHARED_GROUP}u) {{");
                line!(text, "let v = a[{}u + at];", fours * i);
                line!(text, "let two = max(magnitude(v.x), magnitude(v.y));");
                line!(
                    text,
                    "largest{i} = max(largest{i}, max(two, max(magnitude(v.z), magnitude(v.w))));\n}}"
                );
                line!(text, "workgroupBarrier();\nlargest_of[local.x] = largest{i};");
                line!(
                    text,
                    "for (var half = {}u; half > 0u; half /= 2u) {{\nworkgroupBarrier();",
                    SHARED_GROUP / 2
                );
                line!(text, "if local.x < half {{");
                line!(
                    text,
                    "largest_of[local.x] = max(largest_of[local.x], largest_of[local.x + half]);\n}}\n}}"
                );
                line!(text, "workgroupBarrier();\nlet most{i} = largest_of[0];");
            }
            line!(
                text,
                "let x_scale{i} = scale_of(most{i}, {divisor:?});\nlet factor{i} = factor_of(x_scale{i});"
            );
        }
        if !self.owns {
            line!(text, "if local.x == 0u {{");
            (0..self.m).for_each(|i| line!(text, "row_scales[{i}] = x_scale{i};"));
            line!(text, "}}\nworkgroupBarrier();");
        }
    }
}
