//! From codes on the host to what devices hold.

use super::{Layout, NIBBLES, Packing};
use crate::tensor::Tensor;
use crate::tensor::quant::{Coded, Grid};

/// The code of nibble 0 for codes of two's complement.
const LOWEST_NIBBLE: i32 = -8;

impl Layout {
    /// How codes of these ranges are held: nibbles where 16 values do, bytes otherwise.
    pub fn of(coded: &Coded) -> Layout {
        let within = |lowest: i32| coded.lowest >= lowest && coded.highest < lowest + 16;
        let (packing, lowest) = match [0, LOWEST_NIBBLE].into_iter().find(|&lowest| within(lowest)) {
            Some(lowest) => (Packing::Nibbles, lowest),
            None => (Packing::Bytes, i32::from(i8::MIN)),
        };
        let has_offsets = coded.offsets().is_some() && coded.grid == Grid::Integers;
        Layout { packing, grid: coded.grid, lowest, cols: coded.cols, group: coded.group, has_offsets }
    }

    /// The same codes as bytes.
    pub fn in_bytes(self) -> Layout {
        Layout { packing: Packing::Bytes, lowest: i8::MIN.into(), ..self }
    }

    /// Codes, scales and, where there are some, offsets as this layout holds them.
    pub fn pack(&self, coded: &Coded) -> Vec<Tensor> {
        let (rows, groups) = (coded.rows, self.groups());
        let codes = match self.packing {
            Packing::Bytes => Tensor::i8([rows, self.cols], coded.codes.clone()),
            Packing::Nibbles => {
                let words = coded.codes.chunks(self.cols).flat_map(|row| row.chunks(NIBBLES));
                let word = |codes: &[i8]| {
                    codes.iter().enumerate().fold(0, |word, (at, &code)| {
                        let nibble = (i32::from(code) - self.lowest) as u32 & 15;
                        word | nibble << (at % 4 * 8 + at / 4 * 4)
                    })
                };
                Tensor::u32([rows, self.stored_cols()], words.map(word).collect())
            }
        };
        let mut parts = vec![codes, Tensor::f32([rows, groups], coded.scales.clone())];
        if self.has_offsets {
            let offsets = coded.offsets().expect("the layout is that of these codes");
            parts.push(Tensor::f32([rows, groups], offsets));
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::super::Stored;
    use super::*;
    use crate::tensor::quant::{Scheme, Share, encode};
    use crate::tensor::random::Stream;

    #[test]
    fn packed_codes_stand_for_the_same_numbers() {
        let mut random = Stream::new(&[5]);
        let x: Vec<f32> = (0..3 * 24).map(|_| random.normal() as f32).collect();
        let group = Share::Group(8);
        for (scheme, packing) in [
            (Scheme::symmetric(8, Share::Row), Packing::Bytes),
            (Scheme::asymmetric(8, group), Packing::Bytes),
            (Scheme::symmetric(4, group), Packing::Nibbles),
            (Scheme::symmetric(3, Share::Row), Packing::Nibbles),
            (Scheme::asymmetric(4, group), Packing::Nibbles),
            (Scheme::asymmetric(3, Share::Row), Packing::Nibbles),
            (Scheme::normal_float(8, false), Packing::Nibbles),
        ] {
            let coded = encode(&x, 3, 24, &scheme).unwrap();
            let layout = Layout::of(&coded);
            assert_eq!(layout.packing, packing, "{scheme:?}");
            let parts = layout.pack(&coded);
            let kinds: Vec<_> = parts.iter().map(Tensor::host_type).collect();
            assert_eq!(kinds, layout.types(3));
            let stored = Stored::<f32>::of_tensors(layout, &parts.iter().collect::<Vec<_>>());
            for (row, expected) in coded.decode().chunks(24).enumerate() {
                let mut got = vec![0.0; 24];
                stored.row(row, &mut got);
                let worst = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-5, "{scheme:?}: {worst}");
            }
        }
    }
}
