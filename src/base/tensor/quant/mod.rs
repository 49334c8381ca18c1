//! Quantised matrices on the host: how numbers become codes, as plain data, and the slow, exact way there and back.
//!
//! A [`Scheme`] says everything that decides a code: its range, how a scale follows from the numbers that share it, how many
//! share one, and the rounding. [`Coded`] is what comes out, whatever the scheme; file formats and devices pack it in their own ways.

pub mod blocks;
mod dynamic;
mod encode;
mod normal_float;
mod scheme;

pub use dynamic::{DoubleScales, dynamic_map};
pub use encode::{encode, encode_double, round_to};
pub use normal_float::{NORMAL_FLOAT, nearest_normal_float};
pub use scheme::{Rounding, Scale, Scheme, Share};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// What can go wrong when numbers are to become codes.
#[derive(Debug, thiserror::Error, Clone, PartialEq)]
pub enum Error {
    /// The matrix holds something that no code stands for.
    #[error(
        "element {column} of row {row} is {got}, expected a finite number\n  hint: the weights are damaged, or training diverged"
    )]
    NotFinite {
        /// Row.
        row: usize,
        /// Column.
        column: usize,
        /// What stands there.
        got: f32,
    },
    /// The number of elements is not that of the matrix.
    #[error("{rows} rows of {cols} columns are {expected} elements, got {got}")]
    Count {
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
        /// Elements expected.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// A setting of the scheme is out of range.
    #[error("{setting} is {got}, expected {expected}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// Range allowed.
        expected: String,
        /// Value given.
        got: String,
    },
}

/// Result of coding.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Index of the first element that is NaN or infinite.
fn first_not_finite(values: &[f32]) -> Option<usize> {
    // A search that stops early looks at a flag for each element; nearly always there is nothing to find.
    const PIECE: usize = 1 << 14;
    let is_bad = |piece: &[f32]| piece.iter().fold(false, |bad, x| bad | !x.is_finite());
    let piece = values.par_chunks(PIECE).position_first(is_bad)? * PIECE;
    values[piece..].iter().position(|x| !x.is_finite()).map(|at| piece + at)
}

/// What a code stands for before its scale is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grid {
    /// Itself.
    Integers,
    /// The entry of [`NORMAL_FLOAT`] with that number.
    NormalFloat,
}

/// Where the codes' zero lies.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// At code zero.
    Centred,
    /// At these codes, one for each scale: `value = (code - zero) * scale`.
    Zeros(Vec<i32>),
    /// Code zero stands for these numbers, one for each scale: `value = code * scale + minimum`.
    Minima(Vec<f32>),
}

/// A matrix as codes with scales, [rows, cols]; the columns are what a product sums over.
#[derive(Clone, Debug, PartialEq)]
pub struct Coded {
    /// Rows: outputs of a linear layer.
    pub rows: usize,
    /// Columns: its inputs.
    pub cols: usize,
    /// Columns that share a scale; the last group of a row may be shorter.
    pub group: usize,
    /// What a code stands for.
    pub grid: Grid,
    /// The lowest code there may be.
    pub lowest: i32,
    /// The highest code there may be.
    pub highest: i32,
    /// The codes, row by row. Those of 0..=255 are held less 128, and so are their zeros.
    pub codes: Vec<i8>,
    /// A scale for each group of each row.
    pub scales: Vec<f32>,
    /// Where zero lies.
    pub origin: Origin,
}

impl Coded {
    /// Groups in a row.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// Bits that one code needs.
    pub fn bits(&self) -> u32 {
        u32::BITS - ((self.highest - self.lowest) as u32).leading_zeros()
    }

    /// The numbers that the codes stand for, row by row.
    pub fn decode(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.codes.len()];
        if self.cols > 0 {
            values.chunks_mut(self.cols).enumerate().for_each(|(row, values)| self.decode_row(row, values));
        }
        values
    }

    /// The numbers of one row.
    pub fn decode_row(&self, row: usize, values: &mut [f32]) {
        let codes = &self.codes[row * self.cols..][..self.cols];
        let pieces = values.chunks_mut(self.group).zip(codes.chunks(self.group));
        for (at, (values, codes)) in pieces.enumerate() {
            let number = row * self.groups() + at;
            let scale = self.scales[number];
            let each = values.iter_mut().zip(codes);
            match (&self.origin, self.grid) {
                (_, Grid::NormalFloat) => {
                    each.for_each(|(value, &code)| *value = NORMAL_FLOAT[code as usize & 15] * scale);
                }
                (Origin::Centred, _) => each.for_each(|(value, &code)| *value = f32::from(code) * scale),
                (Origin::Zeros(zeros), _) => {
                    let zero = zeros[number];
                    each.for_each(|(value, &code)| *value = (i32::from(code) - zero) as f32 * scale);
                }
                (Origin::Minima(minima), _) => {
                    let minimum = minima[number];
                    each.for_each(|(value, &code)| *value = f32::from(code) * scale + minimum);
                }
            }
        }
    }

    /// What is added to `code * scale`, one for each scale; none where zero is code zero.
    pub fn offsets(&self) -> Option<Vec<f32>> {
        match &self.origin {
            Origin::Centred => None,
            Origin::Minima(minima) => Some(minima.clone()),
            Origin::Zeros(zeros) => {
                Some(zeros.iter().zip(&self.scales).map(|(&zero, scale)| -(zero as f32) * scale).collect())
            }
        }
    }

    /// True if the parts fit together and every code lies in its range: for what comes from a file.
    pub fn is_sound(&self) -> bool {
        let scales = self.group > 0 && self.scales.len() == self.rows.saturating_mul(self.groups());
        let origin = match &self.origin {
            Origin::Centred => true,
            Origin::Zeros(zeros) => zeros.len() == self.scales.len(),
            Origin::Minima(minima) => minima.len() == self.scales.len(),
        };
        let range = self.lowest..=self.highest;
        let codes = self.codes.len() == self.rows.saturating_mul(self.cols);
        codes && scales && origin && self.codes.iter().all(|&code| range.contains(&i32::from(code)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coded(origin: Origin) -> Coded {
        Coded {
            rows: 2,
            cols: 3,
            group: 2,
            grid: Grid::Integers,
            lowest: 0,
            highest: 15,
            codes: vec![0, 15, 3, 1, 2, 4],
            scales: vec![0.5, 1.0, 2.0, 0.25],
            origin,
        }
    }

    #[test]
    fn the_three_origins_mean_what_they_say() {
        assert_eq!(coded(Origin::Centred).decode(), [0.0, 7.5, 3.0, 2.0, 4.0, 1.0]);
        let zeros = coded(Origin::Zeros(vec![1, 3, 0, 4]));
        assert_eq!(zeros.decode(), [-0.5, 7.0, 0.0, 2.0, 4.0, 0.0]);
        assert_eq!(zeros.offsets().unwrap(), [-0.5, -3.0, 0.0, -1.0]);
        assert_eq!(coded(Origin::Minima(vec![1.0, 0.0, -1.0, 8.0])).decode(), [1.0, 8.5, 3.0, 1.0, 3.0, 9.0]);
        let table = Coded { grid: Grid::NormalFloat, ..coded(Origin::Centred) };
        assert_eq!(table.decode()[..2], [-0.5, 0.5]);
    }

    #[test]
    fn the_first_element_that_is_no_number_is_found_in_any_piece() {
        let mut values = vec![1.0; 40_000];
        assert_eq!((first_not_finite(&values), first_not_finite(&[])), (None, None));
        values[39_999] = f32::NEG_INFINITY;
        assert_eq!(first_not_finite(&values), Some(39_999));
        values[16_384] = f32::NAN;
        assert_eq!(first_not_finite(&values), Some(16_384));
    }

    #[test]
    fn parts_that_do_not_fit_together_are_not_sound() {
        let sound = coded(Origin::Centred);
        assert!(sound.is_sound());
        assert_eq!(sound.bits(), 4);
        assert!(!Coded { highest: 14, ..sound.clone() }.is_sound());
        assert!(!Coded { group: 1, ..sound.clone() }.is_sound());
        assert!(!Coded { group: 0, ..sound.clone() }.is_sound());
        assert!(!Coded { rows: usize::MAX, ..sound.clone() }.is_sound());
        assert!(!Coded { origin: Origin::Zeros(vec![0]), ..sound }.is_sound());
    }
}
