//! Counts turned into numbers with bounds: plain functions.

mod agreement;
mod shares;
mod strengths;

pub use agreement::{cohen_kappa, krippendorff_alpha};
pub use shares::{sign_test, wilson};
pub use strengths::{Strength, bradley_terry};

/// The 97.5th percentile of the standard normal: bounds hold 95 of 100 times.
pub const Z: f64 = 1.959_963_984_540_054;
