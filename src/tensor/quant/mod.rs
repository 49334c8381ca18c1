//! Quantised values.

pub mod blocks;
mod normal_float;

pub use normal_float::{NORMAL_FLOAT, nearest_normal_float};

use serde::{Deserialize, Serialize};

/// What a code stands for before its scale is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Grid {
    /// Itself.
    Integers,
    /// The entry of [`NORMAL_FLOAT`] with that number.
    NormalFloat,
}
