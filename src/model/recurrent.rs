//! Recurrent language models.

mod stack;

pub use stack::{RecurrentStack, Run};
