//! Element types.

use half::{bf16, f16};

/// How one element is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE binary64; on the host only, as the referee's precision.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16; sums are kept in f32 whatever the storage.
    F16,
    /// The upper half of binary32, in storage alone: the range of f32 with eight bits of precision.
    BF16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// Signed 8-bit integer; on a device four lie in a 32-bit word, the first in its lowest byte.
    I8,
}

impl DType {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 | DType::I32 | DType::U32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::I8 => 1,
        }
    }

    /// True for the floating-point types, the only ones gradients flow through.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    /// True for floats of two bytes, which the host holds as f32 rounded to them.
    pub fn is_half(self) -> bool {
        matches!(self, DType::F16 | DType::BF16)
    }

    /// The stored value nearest to `x`, ties to even; NaN stays NaN. Types other than the halves hold any f32 as it is.
    pub fn round(self, x: f32) -> f32 {
        match self {
            DType::F16 => f16::from_f32(x).to_f32(),
            DType::BF16 => bf16::from_f32(x).to_f32(),
            _ => x,
        }
    }

    /// Short name as in the graph's text form.
    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I32 => "i32",
            DType::U32 => "u32",
            DType::I8 => "i8",
        }
    }

    /// Largest relative rounding error of one stored value.
    pub fn epsilon(self) -> f64 {
        match self {
            DType::F64 => f64::EPSILON,
            DType::F32 => f32::EPSILON as f64,
            DType::F16 => 9.765625e-4,
            DType::BF16 => 3.90625e-3,
            DType::I32 | DType::U32 | DType::I8 => 0.0,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_nearest_and_ties_to_even() {
        // bf16 keeps eight bits: between 1 and 1 + 2^-7 the tie goes to the even 1, the next one up to 1 + 2^-6.
        assert_eq!(DType::BF16.round(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(DType::BF16.round(1.0 + 3.0 / 256.0), 1.0 + 1.0 / 64.0);
        assert_eq!(DType::BF16.round(1.0 + 1.1 / 256.0), 1.0 + 1.0 / 128.0);
        assert_eq!(DType::F16.round(1.0 + 1.0 / 2048.0), 1.0);
        assert_eq!(DType::BF16.round(f32::MAX), f32::INFINITY);
        for dtype in [DType::F16, DType::BF16] {
            assert!(dtype.round(f32::NAN).is_nan());
            // A NaN whose payload lies in the bits that are cut off must not become an infinity.
            assert!(dtype.round(f32::from_bits(0x7f80_0001)).is_nan());
        }
    }
}
