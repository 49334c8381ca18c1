//! Quantised values.

pub mod blocks;
