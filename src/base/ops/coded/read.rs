//! Codes read on the host.

use super::{Layout, NIBBLES, Packing};
use crate::ops::fast::widest;
use crate::tensor::quant::{Grid, NORMAL_FLOAT};
use crate::tensor::{Real, Tensor, View};

/// Codes in either packing.
#[derive(Clone, Copy)]
pub(in crate::ops) enum Codes<'a> {
    Bytes(&'a [i8]),
    Words(&'a [u32]),
}

/// A matrix of codes lent.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Stored<'a, R> {
    pub layout: Layout,
    pub codes: Codes<'a>,
    pub scales: &'a [R],
    pub offsets: Option<&'a [R]>,
}

impl<'a, R: Real> Stored<'a, R> {
    /// The matrix in the inputs of a reference.
    pub fn of_tensors(layout: Layout, inputs: &[&'a Tensor]) -> Self {
        let codes = match layout.packing {
            Packing::Bytes => Codes::Bytes(inputs[0].as_i8()),
            Packing::Nibbles => Codes::Words(inputs[0].as_u32()),
        };
        let offsets = layout.has_offsets.then(|| inputs[2].real());
        Stored { layout, codes, scales: inputs[1].real(), offsets }
    }

    /// One row as numbers.
    pub fn row(&self, number: usize, y: &mut [R]) {
        let Layout { lowest, cols, group, .. } = self.layout;
        let groups = self.layout.groups();
        for (at, y) in y.iter_mut().enumerate() {
            let code = match self.codes {
                Codes::Bytes(codes) => codes[number * cols + at].into(),
                Codes::Words(words) => {
                    let word = words[number * cols.div_ceil(NIBBLES) + at / NIBBLES];
                    let nibble = word >> shift(at % NIBBLES) & 15;
                    match self.layout.grid {
                        Grid::Integers => f64::from(nibble as i32 + lowest),
                        Grid::NormalFloat => NORMAL_FLOAT[nibble as usize].into(),
                    }
                }
            };
            let place = number * groups + at / group;
            *y = R::of(code) * self.scales[place]
                + self.offsets.map_or(R::default(), |offsets| offsets[place]);
        }
    }
}

/// Bits below element `at` of a word of nibbles.
pub(super) fn shift(at: usize) -> usize {
    at % 4 * 8 + at / 4 * 4
}

impl<'a> Stored<'a, f32> {
    /// The matrix in the inputs of a host path.
    pub fn of_views(layout: Layout, inputs: &[View<'a>]) -> Self {
        let codes = match layout.packing {
            Packing::Bytes => Codes::Bytes(inputs[0].as_i8()),
            Packing::Nibbles => Codes::Words(inputs[0].as_u32()),
        };
        let offsets = layout.has_offsets.then(|| inputs[2].floats());
        Stored { layout, codes, scales: inputs[1].floats(), offsets }
    }

    /// Scales and offsets of a row's groups.
    pub fn scales_of(&self, number: usize) -> (&'a [f32], Option<&'a [f32]>) {
        let groups = self.layout.groups();
        let of = |all: &'a [f32]| &all[number * groups..][..groups];
        (of(self.scales), self.offsets.map(of))
    }

    /// One row as numbers, by the widest vectors there are.
    pub fn row_fast(&self, number: usize, y: &mut [f32]) {
        let Layout { lowest, cols, group, .. } = self.layout;
        match self.codes {
            Codes::Bytes(codes) => widen(&codes[number * cols..][..cols], y),
            Codes::Words(words) => {
                let count = cols.div_ceil(NIBBLES);
                let words = &words[number * count..][..count];
                match self.layout.grid {
                    Grid::Integers => unpack(words, lowest, y),
                    Grid::NormalFloat => look_up(words, &NORMAL_FLOAT, y),
                }
            }
        }
        let (scales, offsets) = self.scales_of(number);
        scale(y, group, scales, offsets);
    }
}

widest! {
    fn widen(codes: &[i8], y: &mut [f32]) {
        y.iter_mut().zip(codes).for_each(|(y, &code)| *y = f32::from(code));
    }
}

widest! {
    fn unpack(words: &[u32], lowest: i32, y: &mut [f32]) {
        let (whole, rest) = y.as_chunks_mut::<NIBBLES>();
        for (y, &word) in whole.iter_mut().zip(words) {
            for (i, y) in y.iter_mut().enumerate() {
                *y = ((word >> shift(i) & 15) as i32 + lowest) as f32;
            }
        }
        for (i, y) in rest.iter_mut().enumerate() {
            *y = ((words[words.len() - 1] >> shift(i) & 15) as i32 + lowest) as f32;
        }
    }
}

widest! {
    fn look_up(words: &[u32], table: &[f32; 16], y: &mut [f32]) {
        let (whole, rest) = y.as_chunks_mut::<NIBBLES>();
        for (y, &word) in whole.iter_mut().zip(words) {
            for (i, y) in y.iter_mut().enumerate() {
                *y = table[(word >> shift(i) & 15) as usize];
            }
        }
        for (i, y) in rest.iter_mut().enumerate() {
            *y = table[(words[words.len() - 1] >> shift(i) & 15) as usize];
        }
    }
}

widest! {
    fn scale(y: &mut [f32], group: usize, scales: &[f32], offsets: Option<&[f32]>) {
        for (g, (y, &scale)) in y.chunks_mut(group).zip(scales).enumerate() {
            match offsets {
                None => y.iter_mut().for_each(|y| *y *= scale),
                Some(offsets) => y.iter_mut().for_each(|y| *y = *y * scale + offsets[g]),
            }
        }
    }
}
