//! How loss falls with size, text and compute: a ladder of models trained on one text, and laws through their losses.
//!
//! ```text
//! recipe + ladder -> rungs -> runs -> results --+-- laws: L(N), L(C), L(N, D), the largest rung foretold
//!                                               +-- tasks: where accuracy leaves chance
//! ```

pub mod emergence;
mod error;
pub mod fit;
pub mod ladder;
pub mod laws;
pub mod rungs;
pub mod sizes;
pub mod study;

pub use error::{Error, Result};
