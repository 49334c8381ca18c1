//! Products of one row of numbers with rows of codes, which are read once and decoded nowhere but in registers.

use super::read::{Codes, Stored, shift};
use super::{Layout, NIBBLES};
use crate::ops::fast::widest;
use crate::tensor::quant::Grid;

/// Rows multiplied at a time: sums of one alone would wait for each other.
pub(in crate::ops) const ROWS: usize = 4;

/// Sums kept of each row, and columns read at a time.
const SUMS: usize = 16;

/// Words of nibbles read at a time.
const WORDS: usize = SUMS / NIBBLES;

/// Of each row its sums, by word and nibble or one after the other.
type Sums<const N: usize> = [[f32; SUMS]; N];

/// One row X of numbers, with what products by codes need of it.
pub(in crate::ops) struct Row<'a> {
    x: &'a [f32],
    /// The sum of each group, where codes have offsets.
    sums: Vec<f32>,
}

impl<'a> Row<'a> {
    pub fn new(x: &'a [f32], layout: Layout) -> Row<'a> {
        let sums = match layout.has_offsets {
            true => x.chunks(layout.group.max(1)).map(|x| x.iter().sum()).collect(),
            false => vec![],
        };
        Row { x, sums }
    }
}

impl Stored<'_, f32> {
    /// Whether [`Stored::dots`] can read this layout: groups of whole vectors, and codes that are numbers themselves.
    pub fn has_dots(&self) -> bool {
        let Layout { grid, cols, group, .. } = self.layout;
        grid == Grid::Integers && group > 0 && group.is_multiple_of(SUMS) && cols.is_multiple_of(SUMS)
    }

    /// Products of X with `N` rows from `first` on.
    pub fn dots<const N: usize>(&self, first: usize, row: &Row) -> [f32; N] {
        let Layout { lowest, cols, group, .. } = self.layout;
        let groups = self.layout.groups();
        let scales = &self.scales[first * groups..][..N * groups];
        let mut sums = [[0.0; SUMS]; N];
        match self.codes {
            Codes::Bytes(codes) => {
                let codes = &codes[first * cols..][..N * cols];
                bytes(codes, row.x, group, scales, sums.as_flattened_mut());
            }
            Codes::Words(words) => {
                let words = &words[first * cols / NIBBLES..][..N * cols / NIBBLES];
                nibbles(words, lowest, row.x, group, scales, sums.as_flattened_mut());
            }
        }
        let mut products = sums.map(total);
        if let Some(offsets) = self.offsets {
            for (i, product) in products.iter_mut().enumerate() {
                let offsets = &offsets[(first + i) * groups..][..groups];
                *product += offsets.iter().zip(&row.sums).map(|(offset, sum)| offset * sum).sum::<f32>();
            }
        }
        products
    }
}

fn total(mut sums: [f32; SUMS]) -> f32 {
    let mut half = SUMS / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

widest! {
    fn bytes(codes: &[i8], x: &[f32], group: usize, scales: &[f32], sums: &mut [f32]) {
        match sums.as_chunks_mut::<SUMS>().0 {
            [sums] => bytes_of(codes, x, group, scales, std::array::from_mut(sums)),
            sums => match sums.first_chunk_mut::<ROWS>() {
                Some(sums) => bytes_of(codes, x, group, scales, sums),
                None => unreachable!("one row or several"),
            },
        }
    }
}

#[inline(always)]
fn bytes_of<const N: usize>(codes: &[i8], x: &[f32], group: usize, scales: &[f32], sums: &mut Sums<N>) {
    let (k, groups) = (x.len(), scales.len() / N);
    for (g, x) in x.chunks(group).enumerate() {
        let parts = x.as_chunks::<SUMS>().0;
        let mut rows: [&[[i8; SUMS]]; N] = [&[]; N];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = &codes[i * k + g * group..][..x.len()].as_chunks().0[..parts.len()];
        }
        let mut own = [[0.0f32; SUMS]; N];
        for (p, x) in parts.iter().enumerate() {
            for i in 0..N {
                for l in 0..SUMS {
                    own[i][l] += f32::from(rows[i][p][l]) * x[l];
                }
            }
        }
        scaled_onto(sums, &own, |i| scales[i * groups + g]);
    }
}

widest! {
    fn nibbles(words: &[u32], lowest: i32, x: &[f32], group: usize, scales: &[f32], sums: &mut [f32]) {
        match sums.as_chunks_mut::<SUMS>().0 {
            [sums] => nibbles_of(words, lowest, x, group, scales, std::array::from_mut(sums)),
            sums => match sums.first_chunk_mut::<ROWS>() {
                Some(sums) => nibbles_of(words, lowest, x, group, scales, sums),
                None => unreachable!("one row or several"),
            },
        }
    }
}

#[inline(always)]
fn nibbles_of<const N: usize>(
    words: &[u32],
    lowest: i32,
    x: &[f32],
    group: usize,
    scales: &[f32],
    sums: &mut Sums<N>,
) {
    let (k, groups) = (x.len(), scales.len() / N);
    for (g, x) in x.chunks(group).enumerate() {
        let parts = x.as_chunks::<SUMS>().0;
        let mut rows: [&[[u32; WORDS]]; N] = [&[]; N];
        for (i, row) in rows.iter_mut().enumerate() {
            let first = (i * k + g * group) / NIBBLES;
            *row = &words[first..][..x.len() / NIBBLES].as_chunks().0[..parts.len()];
        }
        let mut own = [[0.0f32; SUMS]; N];
        for (p, x) in parts.iter().enumerate() {
            for i in 0..N {
                for w in 0..WORDS {
                    for l in 0..NIBBLES {
                        let code = (rows[i][p][w] >> shift(l) & 15) as i32 + lowest;
                        own[i][w * NIBBLES + l] += code as f32 * x[w * NIBBLES + l];
                    }
                }
            }
        }
        scaled_onto(sums, &own, |i| scales[i * groups + g]);
    }
}

#[inline(always)]
fn scaled_onto<const N: usize>(sums: &mut Sums<N>, own: &Sums<N>, scale: impl Fn(usize) -> f32) {
    for i in 0..N {
        let scale = scale(i);
        for l in 0..SUMS {
            sums[i][l] += own[i][l] * scale;
        }
    }
}
