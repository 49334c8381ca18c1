//! Blocks of GGUF: rows of floats cut into blocks of 32 or 256 elements, each with its own scales.
//!
//! Encoding gives the bytes of ggml's reference, and decoding its floats, bit for bit; where the reference searches for scales
//! (Q4_K, Q6_K) the search here is our own and only the layout is shared. Decoding goes through the same codes, scales and
//! minima as [`Coded`](super::Coded): `value = code * scale`, or `code * scale + minimum`, in f32.
//!
//! A scale that passes the range of f16 becomes infinite, as in the reference; [`Block::unpack`] refuses such a block.

mod coded;
mod large;
mod search;
mod small;
mod superblock;
#[cfg(test)]
mod tests;

use half::{bf16, f16};
use rayon::prelude::*;

/// How a row of elements is stored in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Block {
    /// Plain binary32.
    F32,
    /// Plain binary16.
    F16,
    /// Upper half of binary32.
    BF16,
    /// 8 bits, a scale for each 32.
    Q8_0,
    /// 4 bits, a scale for each 32.
    Q4_0,
    /// 4 bits, a scale and a minimum for each 32.
    Q4_1,
    /// 5 bits, a scale for each 32.
    Q5_0,
    /// 5 bits, a scale and a minimum for each 32.
    Q5_1,
    /// 2 bits in groups of 16 with scales and minima of 4 bits; decoded only.
    Q2K,
    /// 3 bits in groups of 16 with scales of 6 bits; decoded only.
    Q3K,
    /// 4 bits in groups of 32 with scales and minima of 6 bits.
    Q4K,
    /// 5 bits in groups of 32 with scales and minima of 6 bits; decoded only.
    Q5K,
    /// 6 bits in groups of 16 with scales of 8 bits.
    Q6K,
    /// 4 bits that index a table of 16 bytes, a scale for each 32; decoded only.
    Iq4Nl,
}

/// What can go wrong with blocks.
#[derive(Debug, thiserror::Error, Clone, PartialEq)]
pub enum Error {
    /// Rows are no whole number of blocks.
    #[error(
        "{block}: a row of {columns} elements is no whole number of blocks of {elements}\n  hint: keep this tensor in F16, or take a format with smaller blocks"
    )]
    Columns {
        /// Name of the format.
        block: &'static str,
        /// Elements of a block.
        elements: usize,
        /// Elements of a row.
        columns: usize,
    },
    /// The buffer does not hold whole rows.
    #[error("{block}: {got} {unit} given, expected {expected}")]
    Size {
        /// Name of the format.
        block: &'static str,
        /// What is counted.
        unit: &'static str,
        /// What was expected.
        expected: String,
        /// How many were given.
        got: usize,
    },
    /// A value to encode is NaN or infinite.
    #[error("{block}: element {at} is {got}, expected finite numbers")]
    NotFinite {
        /// Name of the format.
        block: &'static str,
        /// Index of the element, row-major.
        at: usize,
        /// The value.
        got: f32,
    },
    /// A stored scale is NaN or infinite.
    #[error(
        "{block}: the scale of group {group} is {got}, expected a finite number\n  hint: the weights pass the range of f16 scales; divide them, or take a format with f32 scales"
    )]
    Scale {
        /// Name of the format.
        block: &'static str,
        /// Index of the group, row-major.
        group: usize,
        /// The scale.
        got: f32,
    },
    /// There is no encoder.
    #[error("{block} is decoded only; formats to encode: {}", encodable())]
    DecodeOnly {
        /// Name of the format.
        block: &'static str,
    },
    /// Codes that the format cannot hold as they are.
    #[error(
        "{block} cannot hold these codes as they are: {reason}\n  hint: decode them to floats and encode those"
    )]
    Unfit {
        /// Name of the format.
        block: &'static str,
        /// What stands against it.
        reason: String,
    },
}

/// Result of work on blocks.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn encodable() -> String {
    let names: Vec<_> = Block::ALL.iter().filter(|b| b.can_encode()).map(|b| b.name()).collect();
    names.join(", ")
}

impl Block {
    /// All formats.
    pub const ALL: [Block; 14] = [
        Block::F32,
        Block::F16,
        Block::BF16,
        Block::Q8_0,
        Block::Q4_0,
        Block::Q4_1,
        Block::Q5_0,
        Block::Q5_1,
        Block::Q2K,
        Block::Q3K,
        Block::Q4K,
        Block::Q5K,
        Block::Q6K,
        Block::Iq4Nl,
    ];

    /// Name as GGUF tools write it.
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// The format of that name, in either case.
    pub fn named(name: &str) -> Option<Block> {
        Block::ALL.into_iter().find(|block| block.name().eq_ignore_ascii_case(name))
    }

    /// Elements of one block.
    pub fn elements(self) -> usize {
        self.facts().1
    }

    /// Bytes of one block.
    pub fn size_bytes(self) -> usize {
        self.facts().2
    }

    /// Elements that share a scale, where there are scales.
    pub fn group(self) -> Option<usize> {
        match self {
            Block::F32 | Block::F16 | Block::BF16 => None,
            Block::Q2K | Block::Q3K | Block::Q6K => Some(16),
            _ => Some(32),
        }
    }

    /// Bits of one element, scales included.
    pub fn bits_per_weight(self) -> f64 {
        8.0 * self.size_bytes() as f64 / self.elements() as f64
    }

    /// True where floats can be encoded; the others are decoded only.
    pub fn can_encode(self) -> bool {
        !matches!(self, Block::Q2K | Block::Q3K | Block::Q5K | Block::Iq4Nl)
    }

    /// True for plain floats, which have no codes.
    pub fn is_float(self) -> bool {
        self.group().is_none()
    }

    /// Name, elements, bytes.
    fn facts(self) -> (&'static str, usize, usize) {
        match self {
            Block::F32 => ("F32", 1, 4),
            Block::F16 => ("F16", 1, 2),
            Block::BF16 => ("BF16", 1, 2),
            Block::Q8_0 => ("Q8_0", 32, 34),
            Block::Q4_0 => ("Q4_0", 32, 18),
            Block::Q4_1 => ("Q4_1", 32, 20),
            Block::Q5_0 => ("Q5_0", 32, 22),
            Block::Q5_1 => ("Q5_1", 32, 24),
            Block::Q2K => ("Q2_K", 256, 84),
            Block::Q3K => ("Q3_K", 256, 110),
            Block::Q4K => ("Q4_K", 256, 144),
            Block::Q5K => ("Q5_K", 256, 176),
            Block::Q6K => ("Q6_K", 256, 210),
            Block::Iq4Nl => ("IQ4_NL", 32, 18),
        }
    }

    /// This format, or where rows of so many elements are no whole blocks the nearest one that they are whole blocks of, as
    /// llama.cpp chooses it.
    pub fn fitting(self, columns: usize) -> Block {
        let smaller = match self {
            _ if columns.is_multiple_of(self.elements()) => return self,
            Block::Q4K => Block::Q5_0,
            Block::Q6K => Block::Q8_0,
            _ => Block::F16,
        };
        smaller.fitting(columns)
    }

    /// Bytes of a row of so many elements, which must be whole blocks.
    pub fn row_bytes(self, columns: usize) -> Result<usize> {
        let (block, elements, bytes) = self.facts();
        match columns % elements {
            0 => Ok(columns / elements * bytes),
            _ => Err(Error::Columns { block, elements, columns }),
        }
    }

    /// Rows of `columns` floats as bytes, row by row.
    pub fn encode(self, values: &[f32], columns: usize) -> Result<Vec<u8>> {
        let row_bytes = self.row_bytes(columns)?;
        if !self.can_encode() {
            return Err(Error::DecodeOnly { block: self.name() });
        }
        self.whole_rows("elements", values.len(), columns)?;
        if let Some(at) = super::first_not_finite(values) {
            return Err(Error::NotFinite { block: self.name(), at, got: values[at] });
        }
        let mut bytes = vec![0; values.len().checked_div(columns).unwrap_or(0) * row_bytes];
        if bytes.is_empty() {
            return Ok(bytes);
        }
        let rows = bytes.par_chunks_mut(row_bytes).zip(values.par_chunks(columns));
        rows.for_each(|(out, row)| {
            let blocks = out.chunks_exact_mut(self.size_bytes()).zip(row.chunks_exact(self.elements()));
            blocks.for_each(|(out, x)| self.encode_block(x, out));
        });
        Ok(bytes)
    }

    /// The floats of rows of `columns` elements.
    pub fn decode(self, bytes: &[u8], columns: usize) -> Result<Vec<f32>> {
        let row_bytes = self.row_bytes(columns)?;
        self.whole_rows("bytes", bytes.len(), row_bytes)?;
        let mut values = vec![0.0; bytes.len().checked_div(row_bytes).unwrap_or(0) * columns];
        if values.is_empty() {
            return Ok(values);
        }
        let rows = values.par_chunks_mut(columns).zip(bytes.par_chunks(row_bytes));
        rows.for_each(|(out, row)| {
            let blocks = out.chunks_exact_mut(self.elements()).zip(row.chunks_exact(self.size_bytes()));
            blocks.for_each(|(out, bytes)| self.decode_block(bytes, out));
        });
        Ok(values)
    }

    fn whole_rows(self, unit: &'static str, got: usize, row: usize) -> Result<()> {
        if got.checked_rem(row).unwrap_or(got) == 0 {
            return Ok(());
        }
        let expected = format!("a multiple of {row}");
        Err(Error::Size { block: self.name(), unit, expected, got })
    }

    fn encode_block(self, x: &[f32], out: &mut [u8]) {
        match self {
            Block::F32 => out.copy_from_slice(&x[0].to_le_bytes()),
            Block::F16 => out.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
            Block::BF16 => out.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
            Block::Q4K => large::write_q4(&search::affine(x), out),
            Block::Q6K => large::write_q6(&search::symmetric(x), out),
            _ => {
                let format = small::Format::of(self).expect("decode-only formats are refused before");
                format.write(&format.choose(x), out);
            }
        }
    }

    fn decode_block(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Block::F32 => out[0] = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Block::F16 => out[0] = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Block::BF16 => out[0] = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            _ => {
                let group = self.group().expect("plain floats are handled above");
                let mut codes = [0; superblock::ELEMENTS];
                let (mut scales, mut minima) = ([0.0; superblock::GROUPS], [0.0; superblock::GROUPS]);
                self.read_block(bytes, &mut codes, &mut scales, &mut minima);
                for (i, (value, &code)) in out.iter_mut().zip(&codes).enumerate() {
                    let product = f32::from(code) * scales[i / group];
                    *value = if self.has_minima() { product + minima[i / group] } else { product };
                }
            }
        }
    }

    /// True where a value is `code * scale + minimum`.
    pub fn has_minima(self) -> bool {
        matches!(self, Block::Q4_1 | Block::Q5_1 | Block::Q2K | Block::Q4K | Block::Q5K)
    }

    /// Codes, scales and minima of one block; `minima` is left alone where there are none.
    fn read_block(self, bytes: &[u8], codes: &mut [i8], scales: &mut [f32], minima: &mut [f32]) {
        if let Some(format) = small::Format::of(self) {
            let parts = format.read(bytes);
            codes[..small::ELEMENTS].copy_from_slice(&parts.codes);
            (scales[0], minima[0]) = (parts.scale.to_f32(), parts.minimum.to_f32());
            return;
        }
        let parts = match self {
            Block::Q2K => large::read_q2(bytes),
            Block::Q3K => large::read_q3(bytes),
            Block::Q4K => large::read_q4(bytes),
            Block::Q5K => large::read_q5(bytes),
            _ => large::read_q6(bytes),
        };
        codes[..superblock::ELEMENTS].copy_from_slice(&parts.codes);
        let (d, m) = (parts.scale.to_f32(), parts.minimum.to_f32());
        let groups = superblock::ELEMENTS / self.group().expect("large blocks have groups");
        for g in 0..groups {
            scales[g] = d * f32::from(parts.scales[g]);
            if self.has_minima() {
                minima[g] = -(m * f32::from(parts.minima[g]));
            }
        }
    }
}

impl std::fmt::Display for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
