//! Shader text that reads codes.

use super::{Layout, Packing};
use crate::tensor::quant::{Grid, NORMAL_FLOAT};
use std::fmt::Write;

/// Lanes that keep the table of normal floats between them.
const TABLE_LANES: usize = 8;

/// Writes a line of shader text.
macro_rules! line {
    ($text:expr, $($format:tt)*) => {{ let _ = writeln!($text, $($format)*); }};
}

impl Layout {
    /// Declarations of codes, scales and offsets from `binding` on, and the functions `weight_at(row, at)`, and `weights_at(row,
    /// at)` for four elements from a multiple of four on, as far as there are any; the matrix has `cols` columns.
    pub(in crate::ops) fn declare(&self, binding: usize, cols: &str) -> String {
        let mut text = String::new();
        let floats = ["scales", "offsets"].into_iter().take(self.inputs() - 1);
        let declare = |text: &mut String, at: usize, name: &str, element: &str, sizes: &str| {
            let binding = binding + at;
            line!(
                text,
                "@group(0) @binding({binding}) var<storage, read> {name}: array<{element}>;   // {sizes}"
            );
        };
        declare(
            &mut text,
            0,
            "codes",
            "u32",
            if self.packing == Packing::Bytes { "[N, K] bytes" } else { "[N, K / 8]" },
        );
        floats.enumerate().for_each(|(i, name)| declare(&mut text, 1 + i, name, "f32", "[N, groups]"));
        self.group_of(&mut text, cols);
        match self.packing {
            Packing::Bytes => self.bytes(&mut text, cols),
            Packing::Nibbles => self.nibbles(&mut text, cols),
        }
        self.four(&mut text, cols);
        text
    }

    /// Place of an element's scale, and the element that a code stands for there.
    fn group_of(&self, text: &mut String, cols: &str) {
        let group = self.group;
        match self.groups() {
            1 => line!(text, "fn group_of(row: u32, at: u32) -> u32 {{ return row; }}"),
            _ => line!(
                text,
                "fn group_of(row: u32, at: u32) -> u32 {{ return row * (({cols} + {}u) / {group}u) + at / {group}u; }}",
                group - 1
            ),
        }
        let offset = if self.has_offsets { " + offsets[group]" } else { "" };
        for (name, kind) in [("valued", "f32"), ("valued_four", "vec4<f32>")] {
            line!(
                text,
                "fn {name}(code: {kind}, group: u32) -> {kind} {{ return code * scales[group]{offset}; }}"
            );
        }
    }

    fn bytes(&self, text: &mut String, cols: &str) {
        line!(
            text,
            "fn code_at(row: u32, at: u32) -> f32 {{
    let i = row * {cols} + at;
    return f32(extractBits(bitcast<i32>(codes[i / 4u]), i % 4u * 8u, 8u));
}}"
        );
    }

    fn nibbles(&self, text: &mut String, cols: &str) {
        let value = match self.grid {
            Grid::Integers => format!("f32(i32(nibble) + {}i)", self.lowest),
            Grid::NormalFloat => "normal_float(nibble)".to_string(),
        };
        if self.grid == Grid::NormalFloat {
            text.push_str(&normal_float());
        }
        line!(
            text,
            "fn code_at(row: u32, at: u32) -> f32 {{
    let nibble = codes[row * (({cols} + 7u) / 8u) + at / 8u] >> (at % 4u * 8u + at / 4u % 2u * 4u) & 15u;
    return {value};
}}"
        );
    }

    /// Four elements at once where they lie in one word and one group; the columns are then a multiple of four.
    fn four(&self, text: &mut String, cols: &str) {
        line!(
            text,
            "fn weight_at(row: u32, at: u32) -> f32 {{ return valued(code_at(row, at), group_of(row, at)); }}
fn weights_at(row: u32, at: u32) -> vec4<f32> {{"
        );
        let together = self.cols.is_multiple_of(4) && (self.groups() == 1 || self.group.is_multiple_of(4));
        if !together {
            line!(
                text,
                "    var four = vec4<f32>();
    for (var i = 0u; i < min(4u, {cols} - at); i += 1u) {{ four[i] = weight_at(row, at + i); }}
    return four;
}}"
            );
            return;
        }
        match (self.packing, self.grid) {
            (Packing::Bytes, _) => {
                line!(text, "    let code = vec4<f32>(unpack4xI8(codes[(row * {cols} + at) / 4u]));");
            }
            (Packing::Nibbles, grid) => {
                line!(
                    text,
                    "    let word = codes[row * (({cols} + 7u) / 8u) + at / 8u] >> (at / 4u % 2u * 4u) & 0x0f0f0f0fu;
    let nibbles = unpack4xU8(word);"
                );
                let each = |i: usize| format!("normal_float(nibbles[{i}])");
                match grid {
                    Grid::Integers => {
                        line!(
                            text,
                            "    let code = vec4<f32>(vec4<i32>(nibbles) + vec4<i32>({}i));",
                            self.lowest
                        );
                    }
                    Grid::NormalFloat => {
                        line!(
                            text,
                            "    let code = vec4<f32>({}, {}, {}, {});",
                            each(0),
                            each(1),
                            each(2),
                            each(3)
                        );
                    }
                }
            }
        }
        line!(text, "    return valued_four(code, group_of(row, at));\n}}");
    }
}

impl Layout {
    /// Elements of a word.
    pub(in crate::ops) fn of_word(&self) -> usize {
        if self.packing == Packing::Bytes { 4 } else { 8 }
    }

    /// Functions that the lines of [`Layout::unpack`] call.
    pub(in crate::ops) fn functions(&self) -> String {
        if self.grid == Grid::NormalFloat { normal_float() } else { String::new() }
    }

    /// Lines that must stand before all that [`Layout::unpack`] gives for teams of so many lanes: each lane of a subgroup of eight
    /// keeps two normal floats for the others, which on a CPU takes a third of the instructions that selecting takes.
    pub(in crate::ops) fn share_table(&self, text: &mut String, lanes: usize) {
        if self.grid == Grid::NormalFloat && lanes == TABLE_LANES {
            line!(text, "let low_normals = normal_float(lane);\nlet high_normals = normal_float(lane + 8u);");
        }
    }

    /// Lines that give the elements of `word` as `{name}_{first}` and so on before their scale,
    /// in a team of so many lanes of a subgroup.
    pub(in crate::ops) fn unpack(
        &self,
        text: &mut String,
        word: &str,
        name: &str,
        first: usize,
        lanes: usize,
    ) {
        if self.grid == Grid::NormalFloat {
            for e in 0..8 {
                let (x, place) = (first + e, shift(e));
                if lanes != TABLE_LANES {
                    line!(text, "let {name}_{x} = normal_float({word} >> {place}u & 15u);");
                    continue;
                }
                line!(text, "let {name}_n{x} = {word} >> {place}u;");
                let half = |half: &str| format!("subgroupShuffle({half}_normals, {name}_n{x} & 7u)");
                let (low, high) = (half("low"), half("high"));
                line!(text, "let {name}_{x} = select({low}, {high}, ({name}_n{x} & 8u) != 0u);");
            }
            return;
        }
        match self.packing {
            Packing::Bytes => unpack_bytes(text, word, name, first),
            Packing::Nibbles => {
                let places: Vec<usize> = (0..8).map(shift).collect();
                place_in_floats(
                    text,
                    word,
                    name,
                    first,
                    Field { places: &places, width: 4, zero: -self.lowest },
                );
            }
        }
    }
}

/// Lines that give the four signed bytes of `word` as the floats `{name}_{first}` and so on.
pub(in crate::ops) fn unpack_bytes(text: &mut String, word: &str, name: &str, first: usize) {
    // Bytes of two's complement, read as unsigned ones of 128 more.
    let field = Field { places: &[0, 8, 16, 24], width: 8, zero: 128 };
    place_in_floats(text, &format!("{word} ^ 0x80808080u"), name, first, field);
}

/// Codes in a word.
struct Field<'a> {
    /// Bits below each.
    places: &'a [usize],
    /// Bits of each.
    width: usize,
    /// The code of zero.
    zero: i32,
}

/// Below the exponent of a power of two P, code c in the mantissa's lowest bits is the number P + c: a few bits are put into a
/// number, P is taken off, and that is the code exactly, without a shift for each or a conversion.
fn place_in_floats(text: &mut String, word: &str, name: &str, first: usize, field: Field) {
    line!(text, "let {name}_low{first} = {word};");
    // The mantissa has 23 bits: what lies higher is shifted down once for the whole word.
    let down = if field.width == 8 { 16 } else { 12 };
    line!(text, "let {name}_high{first} = {name}_low{first} >> {down}u;");
    for (e, &place) in field.places.iter().enumerate() {
        let (half, place) = if place + field.width > 20 { ("high", place - down) } else { ("low", place) };
        let mask = ((1u32 << field.width) - 1) << place;
        // 2^(23 - place): the code's lowest bit counts one.
        let power = (127 + 23 - place as u32) << 23;
        let off = (1i64 << (23 - place)) + i64::from(field.zero);
        let bits = format!("{name}_{half}{first} & {mask:#x}u | {power:#x}u");
        line!(text, "let {name}_{} = bitcast<f32>({bits}) - {off}.0;", first + e);
    }
}

/// Bits below element `at` of a word of nibbles.
fn shift(at: usize) -> usize {
    at % 4 * 8 + at / 4 * 4
}

/// The table of normal floats as selections, bit by bit: it then needs no memory, which is slow to index.
fn normal_float() -> String {
    let mut text = String::from("fn normal_float(nibble: u32) -> f32 {\n");
    let mut names: Vec<String> = NORMAL_FLOAT.iter().map(|x| format!("f32({x:?})")).collect();
    for bit in 0..4 {
        line!(text, "    let b{bit} = (nibble & {}u) != 0u;", 1 << bit);
        let pairs = names.chunks(2).enumerate();
        names = pairs
            .map(|(i, pair)| {
                line!(text, "    let v{bit}_{i} = select({}, {}, b{bit});", pair[0], pair[1]);
                format!("v{bit}_{i}")
            })
            .collect();
    }
    text + "    return v3_0;\n}\n"
}
