//! Shader text of quantising rows by subgroups in wide loads, for drivers that run on the CPU: there a load costs the same for 4
//! bytes and for 32, so that rows are read once, eight elements a lane.

use super::QuantizeRows;
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::tensor::{DType, Type};
use std::fmt::Write;

/// Elements of a load.
const CHUNK: usize = 8;
/// Loads of a lane that are kept; longer rows are read twice.
const MOST_HELD: usize = 32;
/// Workgroups: beyond, they walk on, since each has a price.
const MOST_GROUPS: usize = 256;
/// Names of a vector's parts.
const PARTS: [&str; 4] = ["x", "y", "z", "w"];

/// Writes a line of shader text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

/// The kernel, where there are subgroups of a fixed small size and rows of whole chunks in f32.
pub(super) fn variant(op: &QuantizeRows, x: &Type, caps: &Caps) -> Option<Variant> {
    let (rows, cols, lanes) = (x.shape.rows(), x.shape.last(), caps.subgroup_size as usize);
    let fits = caps.is_cpu && caps.subgroup && [4, 8].contains(&lanes) && x.dtype == DType::F32;
    if !fits || !cols.is_multiple_of(CHUNK) {
        return None;
    }
    let text = Text { chunks: cols / CHUNK, lanes, int64: caps.int64 };
    let array = if caps.int64 { "vec4<u64>" } else { "vec4<f32>" };
    let kernel = Kernel::new("quantize_rows_wide")
        .constant("LANES", lanes as u32)
        .paste(
            "INPUT",
            format!("@group(0) @binding(0) var<storage, read> x: array<{array}>;   // [rows, cols]"),
        )
        .paste("BODY", text.body());
    let [lowest, highest] = op.rule.bounds();
    let bindings = [Bind::Input(0), Bind::Output(0), Bind::Output(1)];
    let launch = Launch::new(kernel, bindings, rows.min(MOST_GROUPS)).param("rows", rows);
    let launch = launch.param("divisor", op.rule.divisor()).param("lowest", lowest).param("highest", highest);
    Some(Variant::single("quantize_rows_wide", launch))
}

struct Text {
    chunks: usize,
    lanes: usize,
    int64: bool,
}

impl Text {
    /// One row.
    fn body(&self) -> String {
        let mut text = String::new();
        let turns = self.chunks.div_ceil(self.lanes);
        line!(text, "let start = row * {}u;\nvar largest = 0u;", self.chunks);
        if turns <= MOST_HELD {
            for turn in 0..turns {
                self.read(&mut text, &turn.to_string(), &format!("{}u + lane", turn * self.lanes));
                self.measure(&mut text, &turn.to_string());
            }
            self.find_scale(&mut text);
            for turn in 0..turns {
                let ragged = (turn + 1) * self.lanes > self.chunks;
                self.write(&mut text, &turn.to_string(), ragged);
            }
            return text;
        }
        let head = format!("for (var first = 0u; first < {}u; first += {}u) {{", self.chunks, self.lanes);
        line!(text, "{head}");
        self.read(&mut text, "", "first + lane");
        self.measure(&mut text, "");
        line!(text, "}}");
        self.find_scale(&mut text);
        line!(text, "{head}");
        self.read(&mut text, "", "first + lane");
        self.write(&mut text, "", !self.chunks.is_multiple_of(self.lanes));
        line!(text, "}}");
        text
    }

    /// Reads chunk `at` of the row as `v{name}_0` ..; past the row's end its last one, which changes no maximum.
    fn read(&self, text: &mut String, name: &str, at: &str) {
        line!(text, "let at{name} = {at};\nlet place{name} = start + min(at{name}, {}u);", self.chunks - 1);
        if self.int64 {
            line!(text, "let v{name} = x[place{name}];");
            for (i, part) in PARTS.iter().enumerate() {
                line!(text, "let v{name}_{} = bitcast<f32>(u32(v{name}.{part}));", 2 * i);
                line!(text, "let v{name}_{} = bitcast<f32>(u32(v{name}.{part} >> 32u));", 2 * i + 1);
            }
            return;
        }
        for half in 0..2 {
            line!(text, "let v{name}h{half} = x[place{name} * 2u + {half}u];");
            for (i, part) in PARTS.iter().enumerate() {
                line!(text, "let v{name}_{} = v{name}h{half}.{part};", 4 * half + i);
            }
        }
    }

    fn measure(&self, text: &mut String, name: &str) {
        (0..CHUNK).for_each(|i| line!(text, "largest = max(largest, magnitude(v{name}_{i}));"));
    }

    /// Codes of a row without a scale are zeros, whatever its elements.
    fn find_scale(&self, text: &mut String) {
        line!(text, "let scale = scale_of(subgroupMax(largest), params.divisor);");
        line!(text, "if lane == 0u {{ s[row] = scale; }}\nlet factor = factor_of(scale);");
        line!(text, "let kept = select(0xffffffffu, 0u, factor == 0.0);");
    }

    fn write(&self, text: &mut String, name: &str, ragged: bool) {
        let word = |first: usize| {
            let codes: Vec<String> = (first..first + 4).map(|i| format!("v{name}_{i}")).collect();
            format!("word({}, factor) & kept", codes.join(", "))
        };
        let store = format!("q[place{name}] = vec2<u32>({}, {});", word(0), word(4));
        match ragged {
            true => line!(text, "if at{name} < {}u {{ {store} }}", self.chunks),
            false => line!(text, "{store}"),
        }
    }
}
