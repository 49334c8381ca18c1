//! How numbers become codes.

use super::{Error, Grid, Result};
use serde::{Deserialize, Serialize};

/// How a scale follows from the numbers that share it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// The largest magnitude over `divisor`; code zero is zero. Several divisors are in use: 127 (GGUF's Q8_0, int8 training) and
    /// 127.5 (compressed-tensors) for 8 bits, 7 (AWQ) and 7.5 (GPTQ, compressed-tensors) for 4.
    Largest {
        /// What the largest magnitude is divided by.
        divisor: f32,
    },
    /// `(max - min) / (highest - lowest)` over a range widened to hold zero, which has a code of its own.
    Span,
}

/// Which numbers share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Share {
    /// All.
    Tensor,
    /// Those of one row: an output channel of weights, a token of activations.
    Row,
    /// So many neighbours within a row.
    Group(usize),
}

/// Where a quotient in the middle between two codes goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// To the even one: PyTorch, numpy, WGSL.
    Even,
    /// Away from zero: ggml.
    Away,
}

impl Rounding {
    /// The whole number nearest to `x`.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Rounding::Even => x.round_ties_even(),
            Rounding::Away => x.round(),
        }
    }
}

/// Everything that decides the codes of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scheme {
    /// What codes stand for.
    pub grid: Grid,
    /// The lowest code; -128 instead of 0 for the unsigned ones of 8 bits.
    pub lowest: i32,
    /// The highest code.
    pub highest: i32,
    /// How scales are found.
    pub scale: Scale,
    /// What shares a scale.
    pub share: Share,
    /// How quotients are rounded.
    pub rounding: Rounding,
    /// Scales are themselves held in 8 bits, as in QLoRA.
    pub double: bool,
}

impl Scheme {
    /// Symmetric codes of so many bits, all of two's complement, scales of largest magnitude over `2^(bits-1) - 1`.
    pub const fn symmetric(bits: u32, share: Share) -> Scheme {
        let half = 1 << (bits - 1);
        let scale = Scale::Largest { divisor: (half - 1) as f32 };
        Scheme {
            grid: Grid::Integers,
            lowest: -half,
            highest: half - 1,
            scale,
            share,
            rounding: Rounding::Even,
            double: false,
        }
    }

    /// Symmetric codes with the scale of compressed-tensors and GPTQ: the largest magnitude over half a step more.
    pub const fn wide(bits: u32, share: Share) -> Scheme {
        let divisor = ((1 << bits) - 1) as f32 / 2.0;
        Scheme { scale: Scale::Largest { divisor }, ..Scheme::symmetric(bits, share) }
    }

    /// Codes from 0 on (less 128 for 8 bits) over the range from the least number to the greatest.
    pub const fn asymmetric(bits: u32, share: Share) -> Scheme {
        let lowest = if bits == 8 { -128 } else { 0 };
        Scheme {
            lowest,
            highest: lowest + (1 << bits) - 1,
            scale: Scale::Span,
            ..Scheme::symmetric(bits, share)
        }
    }

    /// The 4-bit NormalFloat of QLoRA, scales in 8 bits if `double`.
    pub const fn normal_float(group: usize, double: bool) -> Scheme {
        Scheme {
            grid: Grid::NormalFloat,
            lowest: 0,
            highest: 15,
            scale: Scale::Largest { divisor: 1.0 },
            share: Share::Group(group),
            rounding: Rounding::Even,
            double,
        }
    }

    /// Bits of one code.
    pub fn bits(&self) -> u32 {
        u32::BITS - ((self.highest - self.lowest) as u32).leading_zeros()
    }

    /// True if code zero is zero, or the table's.
    pub fn is_symmetric(&self) -> bool {
        matches!(self.scale, Scale::Largest { .. })
    }

    /// Columns that share a scale in rows of `cols`; where groups do not divide them, the last one is shorter.
    pub fn group(&self, cols: usize) -> usize {
        match self.share {
            Share::Tensor | Share::Row => cols.max(1),
            Share::Group(group) => group.clamp(1, cols.max(1)),
        }
    }

    /// Whether the settings fit together.
    pub fn check(&self) -> Result<()> {
        let refuse = |setting, expected: &str, got: String| {
            Err(Error::Setting { setting, expected: expected.to_string(), got })
        };
        if self.lowest < -128 || self.highest > 127 || self.highest <= self.lowest {
            return refuse(
                "codes",
                "a range within -128..=127",
                format!("{}..={}", self.lowest, self.highest),
            );
        }
        if self.share == Share::Group(0) {
            return refuse("group", "at least 1", "0".into());
        }
        match self.scale {
            Scale::Largest { divisor } if !(divisor > 0.0 && divisor.is_finite()) => {
                refuse("divisor", "a number above zero", divisor.to_string())
            }
            Scale::Span if self.grid == Grid::NormalFloat => {
                refuse("scale", "the largest magnitude, as codes stand for a table", "the span".into())
            }
            _ => Ok(()),
        }
    }

    /// Bits that a weight takes with its share of scales and zeros, in a row of `cols`; scales as f16 unless they are doubled,
    /// zeros in the codes' bits.
    pub fn bits_per_weight(&self, rows: usize, cols: usize) -> f64 {
        let sharing = match self.share {
            Share::Tensor => (rows * cols) as f64,
            Share::Row => cols as f64,
            // The last group of a row may be shorter.
            Share::Group(group) => cols as f64 / cols.div_ceil(group.max(1)).max(1) as f64,
        };
        let scale = if self.double { 8.0 + 32.0 / 256.0 } else { 16.0 };
        let zero = if self.is_symmetric() { 0.0 } else { f64::from(self.bits()) };
        f64::from(self.bits()) + (scale + zero) / sharing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_divisors_are_those_in_use() {
        let wide = Scheme::wide(8, Share::Row);
        assert_eq!((wide.lowest, wide.highest, wide.scale), (-128, 127, Scale::Largest { divisor: 127.5 }));
        assert_eq!(Scheme::wide(4, Share::Row).scale, Scale::Largest { divisor: 7.5 });
        assert_eq!(Scheme::symmetric(4, Share::Row).scale, Scale::Largest { divisor: 7.0 });
        let unsigned = Scheme::asymmetric(4, Share::Group(32));
        assert_eq!((unsigned.lowest, unsigned.highest, unsigned.bits()), (0, 15, 4));
        assert_eq!(Scheme::asymmetric(3, Share::Row).bits(), 3);
        assert_eq!(Scheme::asymmetric(8, Share::Row).bits(), 8);
        assert!(Scheme::normal_float(64, true).check().is_ok());
    }

    #[test]
    fn settings_that_do_not_fit_are_refused() {
        let scheme = Scheme::symmetric(8, Share::Row);
        for wrong in [
            Scheme { lowest: -129, ..scheme },
            Scheme { highest: -128, ..scheme },
            Scheme { scale: Scale::Largest { divisor: 0.0 }, ..scheme },
            Scheme { scale: Scale::Span, ..Scheme::normal_float(32, false) },
        ] {
            assert!(wrong.check().is_err());
        }
        assert!(Scheme::symmetric(4, Share::Group(0)).check().is_err());
        assert_eq!(Scheme::symmetric(4, Share::Group(32)).group(16), 16);
    }

    #[test]
    fn overheads_are_counted() {
        assert_eq!(Scheme::symmetric(4, Share::Group(32)).bits_per_weight(8, 64), 4.5);
        let double = Scheme::normal_float(64, true).bits_per_weight(8, 64);
        assert!((double - 4.127).abs() < 1e-3);
    }
}
