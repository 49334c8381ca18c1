//! Blocks as [`Coded`], and back where the codes fit.
//!
//! Any block becomes codes with f32 scales without loss: an f16 times a whole number of 8 bits is an f32. The way back must find
//! the f16 and the whole numbers again; it takes the largest numbers that fit, which is how encoders choose them, so the bytes
//! of an encoder come back too.

use super::superblock::{self, Parts};
use super::{Block, Error, Result, large, small};
use crate::tensor::quant::{Coded, Grid, Origin};
use half::f16;
use rayon::prelude::*;

/// Multiples that scales and minima of a large block may be.
struct Multiples {
    lowest: i32,
    highest: i32,
}

const SIX_BITS: Multiples = Multiples { lowest: 0, highest: 63 };
const EIGHT_BITS: Multiples = Multiples { lowest: -128, highest: 127 };

impl Block {
    /// Range of the codes; `None` for plain floats.
    pub fn codes(self) -> Option<(i32, i32)> {
        Some(match self {
            Block::F32 | Block::F16 | Block::BF16 => return None,
            Block::Q8_0 => (-128, 127),
            Block::Q4_0 => (-8, 7),
            Block::Q4_1 | Block::Q4K => (0, 15),
            Block::Q5_0 => (-16, 15),
            Block::Q5_1 | Block::Q5K => (0, 31),
            Block::Q2K => (0, 3),
            Block::Q3K => (-4, 3),
            Block::Q6K => (-32, 31),
            Block::Iq4Nl => (-127, 113),
        })
    }

    /// Rows of `columns` elements as codes; scales that are no finite numbers are refused, and so are plain floats.
    pub fn unpack(self, bytes: &[u8], columns: usize) -> Result<Coded> {
        let (Some((lowest, highest)), Some(group)) = (self.codes(), self.group()) else {
            return Err(self.unfit("plain floats have no codes".into()));
        };
        let row_bytes = self.row_bytes(columns)?;
        self.whole_rows("bytes", bytes.len(), row_bytes)?;
        let rows = bytes.len().checked_div(row_bytes).unwrap_or(0);
        let (elements, groups) = (self.elements(), self.elements() / group);
        let count = rows * columns;
        let mut codes = vec![0; count];
        let (mut scales, mut minima) = (vec![0.0; count / group], vec![0.0; count / group]);
        let places = codes
            .par_chunks_mut(elements)
            .zip(scales.par_chunks_mut(groups).zip(minima.par_chunks_mut(groups)));
        places.zip(bytes.par_chunks(self.size_bytes())).for_each(|((codes, (scales, minima)), bytes)| {
            self.read_block(bytes, codes, scales, minima);
        });
        for list in [&scales, &minima] {
            if let Some(group) = list.iter().position(|x| !x.is_finite()) {
                return Err(Error::Scale { block: self.name(), group, got: list[group] });
            }
        }
        let origin = if self.has_minima() { Origin::Minima(minima) } else { Origin::Centred };
        Ok(Coded { rows, cols: columns, group, grid: Grid::Integers, lowest, highest, codes, scales, origin })
    }

    /// Codes as blocks of the same values, bit for bit; an error where this format cannot hold them.
    pub fn pack(self, coded: &Coded) -> Result<Vec<u8>> {
        if !self.can_encode() {
            return Err(Error::DecodeOnly { block: self.name() });
        }
        let (Some((lowest, highest)), Some(group)) = (self.codes(), self.group()) else {
            return Err(self.unfit("plain floats have no codes".into()));
        };
        let row_bytes = self.row_bytes(coded.cols)?;
        if !coded.is_sound() || coded.grid != Grid::Integers {
            return Err(self.unfit("they are no whole numbers with a scale each group".into()));
        }
        // A wider group is as many groups with one scale.
        if !coded.group.is_multiple_of(group) && coded.group < coded.cols {
            return Err(self.unfit(format!("groups of {} are no multiple of {group}", coded.group)));
        }
        let minima = match &coded.origin {
            Origin::Centred => None,
            Origin::Minima(minima) if self.has_minima() => Some(minima),
            Origin::Minima(_) => return Err(self.unfit("they have minima".into())),
            Origin::Zeros(_) => return Err(self.unfit("they have zeros between the codes".into())),
        };
        if coded.lowest < lowest || coded.highest > highest {
            let got = format!("codes of {}..={} pass {lowest}..={highest}", coded.lowest, coded.highest);
            return Err(self.unfit(got));
        }
        let blocks = coded.cols / self.elements();
        let mut bytes = vec![0; coded.rows * row_bytes];
        bytes.par_chunks_mut(self.size_bytes()).enumerate().try_for_each(|(number, out)| {
            let (row, from) = (number / blocks, number % blocks * self.elements());
            let codes = &coded.codes[row * coded.cols + from..][..self.elements()];
            let of = |list: &[f32], g: usize| list[row * coded.groups() + (from + g * group) / coded.group];
            let scales: Vec<f32> = (0..self.elements() / group).map(|g| of(&coded.scales, g)).collect();
            let minimum = |g| minima.map_or(0.0, |minima| of(minima, g));
            let minima: Vec<f32> = (0..scales.len()).map(minimum).collect();
            self.pack_block(codes, &scales, &minima, out)
        })?;
        Ok(bytes)
    }

    fn pack_block(self, codes: &[i8], scales: &[f32], minima: &[f32], out: &mut [u8]) -> Result<()> {
        let whole = |x: f32| {
            let half = f16::from_f32(x);
            let exact = half.to_f32().to_bits() == x.to_bits();
            if exact { Ok(half) } else { Err(self.unfit(format!("{x:e} is no f16"))) }
        };
        if let Some(format) = small::Format::of(self) {
            let codes = codes.try_into().expect("a small block has 32 codes");
            let parts = small::Parts { codes, scale: whole(scales[0])?, minimum: whole(minima[0])? };
            format.write(&parts, out);
            return Ok(());
        }
        let mut parts =
            Parts { codes: codes.try_into().expect("a large block has 256 codes"), ..Parts::default() };
        let range = if self == Block::Q6K { EIGHT_BITS } else { SIX_BITS };
        let no_scale = || self.unfit("no f16 has all scales of a block as its multiples".into());
        parts.scale = common(scales, &range, &mut parts.scales).ok_or_else(no_scale)?;
        if self.has_minima() {
            // Stored with the other sign; zero stays as it is written, so that it is taken off and not added.
            let below: Vec<f32> = minima.iter().map(|&m| 0.0 - m).collect();
            parts.minimum = common(&below, &range, &mut parts.minima).ok_or_else(no_scale)?;
        }
        match self {
            Block::Q4K => large::write_q4(&parts, out),
            _ => large::write_q6(&parts, out),
        }
        Ok(())
    }

    fn unfit(self, reason: String) -> Error {
        Error::Unfit { block: self.name(), reason }
    }
}

/// An f16 of which all numbers are whole multiples within the range, and the multiples; those of the largest magnitude are tried
/// first for the largest number. `None` if there is none.
fn common(numbers: &[f32], range: &Multiples, multiples: &mut [i8; superblock::GROUPS]) -> Option<f16> {
    let extreme = numbers.iter().fold(0.0f32, |most, &x| if x.abs() > most.abs() { x } else { most });
    if extreme == 0.0 {
        multiples.fill(0);
        return Some(f16::ZERO);
    }
    let reach = range.highest.max(-range.lowest);
    let candidates =
        (1..=reach).rev().flat_map(|m| [-m, m]).filter(|m| (range.lowest..=range.highest).contains(m));
    for candidate in candidates {
        let unit = f16::from_f32(extreme / candidate as f32);
        let exact = |x: f32, m: f32| (unit.to_f32() * m).to_bits() == x.to_bits() || (x == 0.0 && m == 0.0);
        if !exact(extreme, candidate as f32) {
            continue;
        }
        let mut fits = |(multiple, &x): (&mut i8, &f32)| {
            let whole = (x / unit.to_f32()).round_ties_even();
            *multiple = whole as i8;
            whole >= range.lowest as f32 && whole <= range.highest as f32 && exact(x, whole)
        };
        if multiples.iter_mut().zip(numbers).all(&mut fits) {
            return Some(unit);
        }
    }
    None
}
