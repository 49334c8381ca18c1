//! Blocks of 32 elements: an f16 scale, perhaps an f16 minimum, then codes of 4, 5 or 8 bits.
//!
//! Codes of 4 bits lie two in a byte, element j low and element j + 16 high; fifth bits stand together in a word of 32.

use super::Block;
use half::f16;

/// Elements of a small block.
pub const ELEMENTS: usize = 32;
/// Where the second half of the elements begins, the high nibbles.
const HALF: usize = ELEMENTS / 2;

/// Values that the codes of IQ4_NL stand for, from ggml's `kvalues_iq4nl`.
const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The parts of a block.
pub struct Parts {
    /// Codes as they count, offsets taken off.
    pub codes: [i8; ELEMENTS],
    /// The step.
    pub scale: f16,
    /// Value of code zero; zero in formats without.
    pub minimum: f16,
}

/// How a small block is laid out.
#[derive(Clone, Copy)]
pub struct Format {
    bits: u32,
    has_minimum: bool,
    has_table: bool,
}

impl Format {
    /// The layout of a format; `None` for formats with other blocks.
    pub fn of(block: Block) -> Option<Format> {
        let (bits, has_minimum) = match block {
            Block::Q8_0 => (8, false),
            Block::Q4_0 | Block::Iq4Nl => (4, false),
            Block::Q4_1 => (4, true),
            Block::Q5_0 => (5, false),
            Block::Q5_1 => (5, true),
            _ => return None,
        };
        Some(Format { bits, has_minimum, has_table: block == Block::Iq4Nl })
    }

    /// What is added to a code before it is stored as an unsigned number of less than eight bits.
    fn offset(self) -> i8 {
        if self.has_minimum { 0 } else { 1 << (self.bits - 1) }
    }

    /// Codes, scale and minimum for floats, as ggml's reference chooses them.
    pub fn choose(self, x: &[f32]) -> Parts {
        match (self.bits, self.has_minimum) {
            (8, _) => choose_bytes(x),
            (_, false) => self.choose_from_extreme(x),
            (_, true) => self.choose_from_range(x),
        }
    }

    /// The element of largest magnitude becomes the lowest code exactly, whatever its sign.
    fn choose_from_extreme(self, x: &[f32]) -> Parts {
        // From the first on: of a block of zeros the sign of that one decides the sign of the scale, as in the gguf package.
        let extreme = x.iter().fold(x[0], |most, &v| if v.abs() > most.abs() { v } else { most });
        let offset = self.offset();
        let scale = extreme / -f32::from(offset);
        let inverse = inverse_of(scale);
        let code = |v: f32| stored(v * inverse + (f32::from(offset) + 0.5), 2 * offset as i32 - 1) - offset;
        Parts { codes: codes(x, code), scale: f16::from_f32(scale), minimum: f16::ZERO }
    }

    /// The codes span smallest to largest element.
    fn choose_from_range(self, x: &[f32]) -> Parts {
        // Of equals the last: of a block of zeros that one decides the sign of the minimum, as in the gguf package.
        let lowest = x.iter().fold(f32::INFINITY, |least, &v| if v <= least { v } else { least });
        let highest = x.iter().fold(f32::NEG_INFINITY, |most, &v| if v >= most { v } else { most });
        let top = (1 << self.bits) - 1;
        let scale = (highest - lowest) / top as f32;
        let inverse = inverse_of(scale);
        let code = |v: f32| stored((v - lowest) * inverse + 0.5, top);
        Parts { codes: codes(x, code), scale: f16::from_f32(scale), minimum: f16::from_f32(lowest) }
    }

    /// Packs a block; `out` has its size.
    pub fn write(self, parts: &Parts, out: &mut [u8]) {
        let (head, rest) = out.split_at_mut(2);
        head.copy_from_slice(&parts.scale.to_le_bytes());
        let (minimum, rest) = rest.split_at_mut(2 * usize::from(self.has_minimum));
        if self.has_minimum {
            minimum.copy_from_slice(&parts.minimum.to_le_bytes());
        }
        if self.bits == 8 {
            rest.copy_from_slice(bytemuck::cast_slice(&parts.codes));
            return;
        }
        let raw = parts.codes.map(|code| (code + self.offset()) as u8);
        let (fifth, nibbles) = rest.split_at_mut(4 * usize::from(self.bits == 5));
        if self.bits == 5 {
            let word = (0..ELEMENTS).fold(0u32, |word, i| word | u32::from(raw[i] >> 4) << i);
            fifth.copy_from_slice(&word.to_le_bytes());
        }
        for (j, byte) in nibbles.iter_mut().enumerate() {
            *byte = raw[j] & 15 | raw[j + HALF] << 4;
        }
    }

    /// Unpacks a block.
    pub fn read(self, bytes: &[u8]) -> Parts {
        let scale = f16::from_le_bytes([bytes[0], bytes[1]]);
        let (minimum, rest) = match self.has_minimum {
            true => (f16::from_le_bytes([bytes[2], bytes[3]]), &bytes[4..]),
            false => (f16::ZERO, &bytes[2..]),
        };
        let mut codes = [0; ELEMENTS];
        if self.bits == 8 {
            codes.copy_from_slice(bytemuck::cast_slice(rest));
            return Parts { codes, scale, minimum };
        }
        let (fifth, nibbles) = match self.bits {
            5 => (u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]), &rest[4..]),
            _ => (0, rest),
        };
        for (i, code) in codes.iter_mut().enumerate() {
            let low = nibbles[i % HALF] >> (i / HALF * 4) & 15;
            let raw = low | ((fifth >> i & 1) << 4) as u8;
            *code = if self.has_table { TABLE[usize::from(raw)] } else { raw as i8 - self.offset() };
        }
        Parts { codes, scale, minimum }
    }
}

/// Largest magnitude to 127, halves away from zero.
fn choose_bytes(x: &[f32]) -> Parts {
    let most = x.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let scale = most / 127.0;
    let inverse = inverse_of(scale);
    let code = |v: f32| {
        let rounded = (v * inverse).round();
        if rounded.is_finite() { rounded as i8 } else { 0 }
    };
    Parts { codes: codes(x, code), scale: f16::from_f32(scale), minimum: f16::ZERO }
}

fn codes(x: &[f32], code: impl Fn(f32) -> i8) -> [i8; ELEMENTS] {
    std::array::from_fn(|i| code(x[i]))
}

/// One over the scale before it is rounded to f16; zero for zero. Infinite where the scale is below 2.9e-39.
fn inverse_of(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Cuts the fraction off. What is not finite, of scales too small to invert, becomes zero as it does on x86.
fn stored(x: f32, top: i32) -> i8 {
    if x.is_finite() { (x as i32).clamp(0, top) as i8 } else { 0 }
}
