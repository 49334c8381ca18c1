//! The parts of a block of 256 elements, before they are packed into bits.

use half::f16;

/// Elements of a large block.
pub const ELEMENTS: usize = 256;
/// Most groups of a large block.
pub const GROUPS: usize = 16;

/// `value = code * (scale * scales[g]) - minimum * minima[g]` in group g.
pub struct Parts {
    /// Codes as they count, offsets taken off.
    pub codes: [i8; ELEMENTS],
    /// Scale of the scales.
    pub scale: f16,
    /// Scale of the minima.
    pub minimum: f16,
    /// Whole multiples of `scale`, one a group.
    pub scales: [i8; GROUPS],
    /// Whole multiples of `minimum`, one a group.
    pub minima: [i8; GROUPS],
}

impl Default for Parts {
    fn default() -> Self {
        Parts {
            codes: [0; ELEMENTS],
            scale: f16::ZERO,
            minimum: f16::ZERO,
            scales: [0; GROUPS],
            minima: [0; GROUPS],
        }
    }
}
