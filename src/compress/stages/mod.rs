//! The passes a recipe may name, one struct each: its fields are the keys of its table.

mod prune;
mod quantize;
mod rescale;
mod rewind;
mod structured;
mod train;

pub use prune::Prune;
pub use quantize::{AssignBits, Quantize};
pub use rescale::{Awq, Smoothquant};
pub use rewind::{Before, Rewind};
pub use structured::{DropLayers, PruneStructured};
pub use train::{ORIGINAL, Train};
