//! Matrices of codes as devices hold them: what the operators that read them share.
//!
//! A matrix [N, K] has codes, a scale for each group of columns of a row, and perhaps an offset for each group:
//! `value = code * scale + offset`. Codes are bytes, or nibbles eight to a word: byte j of word w holds element 8w + j in its low
//! and element 8w + 4 + j in its high half, so that `word & 0x0f0f0f0f` are four elements in order. A nibble is the code less
//! the lowest one; elements of a row's last word that are not there may be anything.

mod dots;
mod pack;
mod read;
mod text;

pub(in crate::ops) use dots::{ROWS, Row};
pub(in crate::ops) use read::Stored;
pub(in crate::ops) use text::unpack_bytes;

use super::dequantize_rows::expect_scales;
use super::quantize_rows::Rule;
use super::{Error, Result, expect_dtype, expect_shape};
use crate::tensor::quant::Grid;
use crate::tensor::{DType, Data, Tensor, Type};

/// Nibbles of a word.
const NIBBLES: usize = 8;

/// How codes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// I8 [N, K].
    Bytes,
    /// U32 [N, K / 8], rounded up.
    Nibbles,
}

/// What a product's other operand is while it is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activations {
    /// Numbers as they come.
    #[default]
    Numbers,
    /// Codes of 8 bits with a scale for each row, that is for each token.
    Rows(Rule),
    /// Codes of 8 bits with one scale that was measured beforehand.
    Fixed(Rule, FixedScale),
}

/// A scale that does not change, by its bits: two are equal if they are the same number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FixedScale(u32);

impl FixedScale {
    /// Stands for one that is still to be measured.
    pub const UNKNOWN: FixedScale = FixedScale(0);

    /// The scale.
    pub fn of(scale: f32) -> FixedScale {
        FixedScale(scale.to_bits())
    }

    /// Its value.
    pub fn value(self) -> f32 {
        f32::from_bits(self.0)
    }
}

/// How a matrix of codes [N, K] lies in memory and what its codes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// How codes are stored.
    pub packing: Packing,
    /// What a code means: a whole number, or a row of the table of normal floats, which takes nibbles from 0 on.
    pub grid: Grid,
    /// The code that the nibble 0 stands for: -8 or 0. Bytes are the codes themselves.
    pub lowest: i32,
    /// Columns, K.
    pub cols: usize,
    /// Columns that share a scale; the last group of a row may be shorter.
    pub group: usize,
    /// Whether each group has an offset as well.
    pub has_offsets: bool,
}

impl Layout {
    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group.max(1))
    }

    /// Elements of the codes' storage for a row: bytes, or words.
    pub fn stored_cols(&self) -> usize {
        match self.packing {
            Packing::Bytes => self.cols,
            Packing::Nibbles => self.cols.div_ceil(NIBBLES),
        }
    }

    /// Inputs that hold a matrix: codes, scales and perhaps offsets.
    pub fn inputs(&self) -> usize {
        2 + usize::from(self.has_offsets)
    }

    /// Types of those inputs for a matrix of so many rows.
    pub fn types(&self, rows: usize) -> Vec<Type> {
        let dtype = if self.packing == Packing::Bytes { DType::I8 } else { DType::U32 };
        let mut types = vec![Type::new(dtype, [rows, self.stored_cols()])];
        types.resize(self.inputs(), Type::f32([rows, self.groups()]));
        types
    }

    /// As text, for an operator's settings.
    pub(in crate::ops) fn describe(&self) -> String {
        let packing = if self.packing == Packing::Bytes { "bytes" } else { "nibbles" };
        let grid = match self.grid {
            Grid::Integers => format!("from {}", self.lowest),
            Grid::NormalFloat => "normal floats".to_string(),
        };
        let offsets = if self.has_offsets { ",offsets" } else { "" };
        format!("{packing} {grid},cols={},group={}{offsets}", self.cols, self.group)
    }

    /// Checks the settings and the inputs that hold a matrix; gives its rows.
    pub(in crate::ops) fn expect(&self, op: &'static str, inputs: &[Type]) -> Result<usize> {
        self.expect_sound(op)?;
        let codes = &inputs[0];
        let types = self.types(codes.shape.first().copied().unwrap_or(0));
        expect_dtype(op, "codes", codes, types[0].dtype)?;
        if codes.shape.len() != 2 || codes.shape[0] == 0 || codes.shape != types[0].shape {
            let expected = format!("[rows, {}]", self.stored_cols());
            return Err(Error::Shape { op, input: "codes", expected, got: codes.shape.clone() });
        }
        for (input, got) in ["scales", "offsets"].into_iter().zip(&inputs[1..self.inputs()]) {
            expect_scales(op, input, got, &types[1].shape)?;
            expect_dtype(op, input, got, inputs[1].dtype)?;
        }
        Ok(codes.shape[0])
    }

    fn expect_sound(&self, op: &'static str) -> Result<()> {
        let refuse = |setting, expected: &str, got: String| {
            Err(Error::Setting { op, setting, expected: expected.to_string(), got })
        };
        if self.cols == 0 {
            return refuse("cols", "at least 1", "0".into());
        }
        if self.group == 0 || self.group > self.cols {
            return refuse("group", &format!("1 to {}", self.cols), self.group.to_string());
        }
        match (self.grid, self.packing) {
            (Grid::NormalFloat, Packing::Bytes) => {
                refuse("packing", "nibbles for normal floats", "bytes".into())
            }
            (Grid::NormalFloat, _) if self.lowest != 0 => {
                refuse("lowest", "0 for normal floats", self.lowest.to_string())
            }
            (Grid::Integers, Packing::Nibbles) if ![-8, 0].contains(&self.lowest) => {
                refuse("lowest", "-8 or 0", self.lowest.to_string())
            }
            _ => Ok(()),
        }
    }
}

/// Checks a bias: f32, or f64 in the referee, one for each row.
pub(in crate::ops) fn expect_bias(op: &'static str, bias: &Type, count: usize) -> Result<()> {
    expect_scales(op, "bias", bias, &[count])
}

/// Checks activations that are multiplied with codes: f32, or f64 in the referee, with so many columns.
pub(in crate::ops) fn expect_activations(op: &'static str, x: &Type, cols: usize) -> Result<()> {
    let mut expected = x.shape.to_vec();
    match expected.last_mut() {
        Some(last) => *last = cols,
        None => expected.push(cols),
    }
    expect_shape(op, "x", x, &expected)?;
    expect_scales(op, "x", x, &x.shape)?;
    match x.shape.contains(&0) {
        false => Ok(()),
        true => Err(Error::Shape { op, input: "x", expected: "elements".into(), got: x.shape.clone() }),
    }
}

/// A matrix at random for the cases of operators: codes, scales, and offsets where there are some.
pub(in crate::ops) fn sample(cases: &mut super::Cases, layout: &Layout, rows: usize) -> Vec<Tensor> {
    let kind = layout.types(rows).swap_remove(0);
    let bytes = cases.codes([rows, kind.shape[1] * if kind.dtype == DType::I8 { 1 } else { 4 }]);
    let codes = match layout.packing {
        Packing::Bytes => bytes,
        Packing::Nibbles => {
            let of = |bytes: &[i8]| u32::from_le_bytes([0, 1, 2, 3].map(|i| bytes[i] as u8));
            let words = bytes.as_i8().chunks(4).map(of).collect();
            Tensor { shape: kind.shape, data: Data::U32(words) }
        }
    };
    let mut parts = vec![codes];
    parts.resize_with(layout.inputs(), || cases.statistic([rows, layout.groups()]));
    parts
}

/// Layouts for the cases of operators, for so many columns: both packings, each grid and origin, groups of which the last is shorter.
pub(in crate::ops) fn layouts(cols: usize, group: usize) -> Vec<Layout> {
    let bytes = Layout {
        packing: Packing::Bytes,
        grid: Grid::Integers,
        lowest: -128,
        cols,
        group,
        has_offsets: false,
    };
    let nibbles = Layout { packing: Packing::Nibbles, lowest: -8, ..bytes };
    vec![
        bytes,
        Layout { has_offsets: true, ..bytes },
        nibbles,
        Layout { lowest: 0, has_offsets: true, ..nibbles },
        Layout { lowest: 0, grid: Grid::NormalFloat, ..nibbles },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(layout: Layout) -> String {
        let inputs = layout.types(3);
        layout.expect("matmul_coded", &inputs).unwrap_err().to_string()
    }

    #[test]
    fn layouts_that_make_no_sense_are_refused() {
        for layout in layouts(40, 16) {
            assert_eq!(layout.expect("matmul_coded", &layout.types(3)), Ok(3));
            assert!(refusal(Layout { group: 0, ..layout }).contains("group is 0"));
            assert!(refusal(Layout { group: 41, ..layout }).contains("1 to 40"));
            assert!(layout.expect("matmul_coded", &Layout { cols: 48, ..layout }.types(3)).is_err());
            assert!(layout.expect("matmul_coded", &layout.types(0)).is_err());
        }
        let [bytes, _, nibbles, _, normal] = layouts(40, 16).try_into().unwrap();
        assert!(refusal(Layout { lowest: -7, ..nibbles }).contains("-8 or 0"));
        assert!(refusal(Layout { lowest: -8, ..normal }).contains("lowest is -8"));
        assert!(refusal(Layout { grid: Grid::NormalFloat, ..bytes }).contains("nibbles"));
    }
}
