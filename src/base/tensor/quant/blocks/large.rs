//! The bits of blocks of 256 elements: planes of codes, and scales of 4, 6 or 8 bits.

use super::superblock::{ELEMENTS, Parts};
use half::f16;

/// Codes of a few bits, packed so that runs of `width` bytes hold `8 / bits` runs of elements, the first in the lowest bits.
struct Plane {
    width: usize,
    bits: usize,
}

const NIBBLES: Plane = Plane { width: 32, bits: 4 };
const WIDE_NIBBLES: Plane = Plane { width: 64, bits: 4 };
const PAIRS: Plane = Plane { width: 32, bits: 2 };
const SINGLES: Plane = Plane { width: 32, bits: 1 };

impl Plane {
    /// Byte and shift of an element.
    fn place(&self, element: usize) -> (usize, usize) {
        let run = self.width * 8 / self.bits;
        let (byte, shift) = (element % self.width, element % run / self.width);
        (element / run * self.width + byte, shift * self.bits)
    }

    fn get(&self, bytes: &[u8], element: usize) -> u8 {
        let (byte, shift) = self.place(element);
        bytes[byte] >> shift & ((1 << self.bits) - 1)
    }

    /// Adds an element to bytes that were zero there; bits beyond the plane's are left out.
    fn put(&self, bytes: &mut [u8], element: usize, value: u8) {
        let (byte, shift) = self.place(element);
        bytes[byte] |= (value & ((1 << self.bits) - 1)) << shift;
    }
}

fn half(bytes: &[u8]) -> f16 {
    f16::from_le_bytes([bytes[0], bytes[1]])
}

fn codes(code: impl Fn(usize) -> i8) -> [i8; ELEMENTS] {
    std::array::from_fn(code)
}

/// Q2_K: 16 bytes with a scale low and a minimum high, 64 of codes, the two halves.
pub fn read_q2(bytes: &[u8]) -> Parts {
    let (multiples, rest) = bytes.split_at(16);
    Parts {
        codes: codes(|i| PAIRS.get(rest, i) as i8),
        scale: half(&rest[64..]),
        minimum: half(&rest[66..]),
        scales: std::array::from_fn(|g| (multiples[g] & 15) as i8),
        minima: std::array::from_fn(|g| (multiples[g] >> 4) as i8),
    }
}

/// Q3_K: 32 bytes of highest bits, of which zero takes four off; 64 of codes, 12 of scales, one half.
pub fn read_q3(bytes: &[u8]) -> Parts {
    let (high, rest) = bytes.split_at(32);
    let (low, rest) = rest.split_at(64);
    let multiple = |g: usize| {
        let low = rest[g % 8] >> (g / 8 * 4) & 15;
        let high = rest[8 + g % 4] >> (g / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    };
    Parts {
        codes: codes(|i| PAIRS.get(low, i) as i8 - 4 + 4 * SINGLES.get(high, i) as i8),
        scale: half(&rest[12..]),
        scales: std::array::from_fn(multiple),
        ..Parts::default()
    }
}

/// Q4_K: the two halves, 12 bytes of scales and minima, 128 of codes.
pub fn read_q4(bytes: &[u8]) -> Parts {
    let (scales, minima) = read_multiples(&bytes[4..16]);
    let codes = codes(|i| NIBBLES.get(&bytes[16..], i) as i8);
    Parts { codes, scale: half(bytes), minimum: half(&bytes[2..]), scales, minima }
}

/// Q5_K: as Q4_K, with 32 bytes of highest bits before the codes.
pub fn read_q5(bytes: &[u8]) -> Parts {
    let (scales, minima) = read_multiples(&bytes[4..16]);
    let (high, low) = bytes[16..].split_at(32);
    let codes = codes(|i| (NIBBLES.get(low, i) | SINGLES.get(high, i) << 4) as i8);
    Parts { codes, scale: half(bytes), minimum: half(&bytes[2..]), scales, minima }
}

/// Q6_K: 128 bytes of low nibbles, 64 of high pairs, 16 scales, one half.
pub fn read_q6(bytes: &[u8]) -> Parts {
    let (low, rest) = bytes.split_at(128);
    let (high, rest) = rest.split_at(64);
    Parts {
        codes: codes(|i| (WIDE_NIBBLES.get(low, i) | PAIRS.get(high, i) << 4) as i8 - 32),
        scale: half(&rest[16..]),
        scales: std::array::from_fn(|g| rest[g] as i8),
        ..Parts::default()
    }
}

/// Packs a Q4_K block.
pub fn write_q4(parts: &Parts, out: &mut [u8]) {
    out.fill(0);
    out[..2].copy_from_slice(&parts.scale.to_le_bytes());
    out[2..4].copy_from_slice(&parts.minimum.to_le_bytes());
    write_multiples(parts, &mut out[4..16]);
    for (i, &code) in parts.codes.iter().enumerate() {
        NIBBLES.put(&mut out[16..], i, code as u8);
    }
}

/// Packs a Q6_K block.
pub fn write_q6(parts: &Parts, out: &mut [u8]) {
    out.fill(0);
    let (low, rest) = out.split_at_mut(128);
    let (high, rest) = rest.split_at_mut(64);
    for (i, &code) in parts.codes.iter().enumerate() {
        let raw = (code + 32) as u8;
        WIDE_NIBBLES.put(low, i, raw);
        PAIRS.put(high, i, raw >> 4);
    }
    rest[..16].copy_from_slice(bytemuck::cast_slice(&parts.scales));
    rest[16..].copy_from_slice(&parts.scale.to_le_bytes());
}

/// Eight scales and eight minima of six bits: four bytes with scale g below two bits of scale g + 4, four of the minima
/// likewise, four with the other bits of both.
fn read_multiples(bytes: &[u8]) -> ([i8; 16], [i8; 16]) {
    let six = |from: usize, g: usize| match g {
        0..4 => bytes[from + g] & 63,
        4..8 => bytes[4 + g] >> from & 15 | bytes[from + g - 4] >> 2 & 0x30,
        _ => 0,
    };
    // The minima begin at byte 4 and have the upper nibbles, four bits up: one number says both.
    (std::array::from_fn(|g| six(0, g) as i8), std::array::from_fn(|g| six(4, g) as i8))
}

fn write_multiples(parts: &Parts, out: &mut [u8]) {
    for (from, multiples) in [(0, &parts.scales), (4, &parts.minima)] {
        for g in 0..4 {
            let (first, second) = (multiples[g] as u8, multiples[g + 4] as u8);
            out[from + g] = first & 63 | second >> 4 << 6;
            out[8 + g] |= (second & 15) << from;
        }
    }
}
