//! How kernels read and write buffers: which WGSL array, and the text that moves a chunk or an element of it.
//!
//! Operands of 16 bits are bound as 32-bit words, two elements each, and widened by the kernel: that needs no 16-bit
//! arithmetic of the adapter, and a word is what its memory moves anyway.

use crate::tensor::DType;
use std::fmt::Write;

pub(in crate::ops) const PARTS: [&str; 4] = ["x", "y", "z", "w"];

/// Writes a line of shader text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

/// A float of 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Half {
    F16,
    Bf16,
}

impl Half {
    /// The half that a storage type is, if it is one.
    pub(in crate::ops) fn of(dtype: DType) -> Option<Half> {
        match dtype {
            DType::F16 => Some(Half::F16),
            DType::BF16 => Some(Half::Bf16),
            _ => None,
        }
    }

    /// Lines that widen the two elements of `word` as `{low}` and `{high}`.
    fn widen(self, text: &mut String, word: &str, low: &str, high: &str) {
        match self {
            Half::F16 => {
                line!(text, "let {low}p = unpack2x16float({word});");
                line!(text, "let {low} = {low}p.x;\nlet {high} = {low}p.y;");
            }
            Half::Bf16 => {
                line!(text, "let {low} = bitcast<f32>({word} << 16u);");
                line!(text, "let {high} = bitcast<f32>({word} & 0xffff0000u);");
            }
        }
    }

    /// Expression for the element of `word` in its lower half.
    fn low(self, word: &str) -> String {
        match self {
            Half::F16 => format!("unpack2x16float({word}).x"),
            Half::Bf16 => format!("bitcast<f32>(({word}) << 16u)"),
        }
    }
}

/// How one buffer is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) enum Access {
    /// Element by element; only an output has elements of f16 so.
    Single,
    /// A chunk as vec4<f32>, one or two.
    Fours,
    /// A chunk as one vector of 64-bit words.
    Words64,
    /// Halves one by one, out of the 32-bit words that hold them.
    Halves(Half),
    /// A chunk of halves as one vector of 32-bit words.
    Pairs(Half),
}

impl Access {
    /// The widest way to read an operand along an axis of this length.
    pub(in crate::ops) fn widest(dtype: DType, axis: usize, chunk: usize, int64: bool) -> Access {
        match (Half::of(dtype), axis.is_multiple_of(chunk)) {
            (Some(half), true) => Access::Pairs(half),
            (Some(half), false) => Access::Halves(half),
            (None, true) if int64 => Access::Words64,
            (None, true) => Access::Fours,
            (None, false) => Access::Single,
        }
    }

    /// The widest way to write an output along an axis of this length: a half alone needs a type of its own.
    pub(in crate::ops) fn widest_output(dtype: DType, axis: usize, chunk: usize, int64: bool) -> Access {
        match Access::widest(dtype, axis, chunk, int64) {
            Access::Halves(_) => Access::Single,
            wide => wide,
        }
    }

    /// The way to read an operand element by element.
    pub(in crate::ops) fn narrow(dtype: DType) -> Access {
        Half::of(dtype).map_or(Access::Single, Access::Halves)
    }

    /// True if elements are moved one at a time.
    pub(in crate::ops) fn is_narrow(self) -> bool {
        matches!(self, Access::Single | Access::Halves(_))
    }

    /// The type of a buffer that is moved so.
    pub(in crate::ops) fn array(self, chunk: usize) -> String {
        match self {
            Access::Single => "array<Elem>".to_string(),
            Access::Fours => "array<vec4<f32>>".to_string(),
            Access::Words64 => format!("array<vec{}<u64>>", chunk / 2),
            Access::Halves(_) => "array<u32>".to_string(),
            Access::Pairs(_) => format!("array<vec{}<u32>>", chunk / 2),
        }
    }

    /// The declaration of an operand that is read so.
    pub(in crate::ops) fn declare(self, binding: usize, name: &str, chunk: usize) -> String {
        let array = match self {
            Access::Single => "array<f32>".to_string(),
            wide => wide.array(chunk),
        };
        format!("@group(0) @binding({binding}) var<storage, read> {name}: {array};\n")
    }

    /// Expression for element `at` of a buffer that is read one at a time.
    pub(in crate::ops) fn element(self, buffer: &str, at: &str) -> String {
        match self {
            Access::Halves(half) => half.low(&format!("{buffer}[({at}) / 2u] >> (({at}) % 2u * 16u)")),
            _ => format!("{buffer}[{at}]"),
        }
    }

    /// Lines that read chunk number `at` of a buffer as `{name}_0`, `{name}_1` ..
    pub(in crate::ops) fn read(self, text: &mut String, chunk: usize, buffer: &str, name: &str, at: &str) {
        if self == Access::Fours {
            let fours = chunk / 4;
            for four in 0..fours {
                line!(text, "let {name}v{four} = {buffer}[({at}) * {fours}u + {four}u];");
                for (i, part) in PARTS.iter().enumerate() {
                    line!(text, "let {name}_{} = {name}v{four}.{part};", four * 4 + i);
                }
            }
            return;
        }
        line!(text, "let {name}v = {buffer}[{at}];");
        for (i, part) in PARTS.iter().take(chunk / 2).enumerate() {
            let word = format!("{name}v.{part}");
            let [low, high] = [i * 2, i * 2 + 1].map(|i| format!("{name}_{i}"));
            if let Access::Pairs(half) = self {
                half.widen(text, &word, &low, &high);
            } else {
                line!(text, "let {low} = bitcast<f32>(u32({word}));");
                line!(text, "let {high} = bitcast<f32>(u32({word} >> 32u));");
            }
        }
    }
}

/// A function `read_{name}` that reads one element of an operand, with its declaration.
pub(in crate::ops) fn single(binding: usize, name: &str, dtype: DType) -> String {
    let access = Access::narrow(dtype);
    let element = access.element(name, "at");
    access.declare(binding, name, 1) + &format!("fn read_{name}(at: u32) -> f32 {{ return {element}; }}\n")
}

/// Declares an operand stored as lines along `axes[0]` and elements along `axes[1]`, and the function that reads four
/// elements of it; `line` and `at` count from the tile's corner, whose place along K is `k0` and otherwise `first`.
pub(in crate::ops) fn four(binding: usize, name: &str, dtype: DType, axes: [&str; 2], fours: bool) -> String {
    let corner = |axis| if axis == "k" { "k0" } else { "first" };
    let access = match (Half::of(dtype), fours) {
        (Some(half), true) => Access::Pairs(half),
        (None, true) => Access::Fours,
        (_, false) => Access::narrow(dtype),
    };
    let mut text = access.declare(binding, name, 4);
    line!(text, "fn read_{name}(base: u32, line: u32, at: u32, first: u32, k0: u32) -> vec4<f32> {{");
    line!(text, "    let y = {} + line;", corner(axes[0]));
    line!(text, "    let x = {} + at;", corner(axes[1]));
    line!(text, "    if y >= params.{} || x >= params.{} {{ return vec4<f32>(); }}", axes[0], axes[1]);
    line!(text, "    let start = base + y * params.{} + x;", axes[1]);
    if fours {
        access.read(&mut text, 4, name, "four", "start / 4u");
        line!(text, "    return vec4<f32>(four_0, four_1, four_2, four_3);\n}}");
        return text;
    }
    line!(text, "    var four = vec4<f32>({}, 0.0, 0.0, 0.0);", access.element(name, "start"));
    for (i, part) in PARTS.iter().enumerate().skip(1) {
        let element = access.element(name, &format!("start + {i}u"));
        line!(text, "    if x + {i}u < params.{} {{ four.{part} = {element}; }}", axes[1]);
    }
    line!(text, "    return four;\n}}");
    text
}
