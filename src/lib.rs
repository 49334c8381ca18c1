//! Train, fine-tune and compress language models on any GPU that wgpu reaches.

#![warn(missing_docs)]

pub mod adapt;
#[cfg(feature = "audio")]
pub mod audio;
pub mod cli;
pub mod compare;
pub mod compress;
pub mod data;
pub mod deploy;
pub mod embed;
pub mod evaluate;
pub mod exchange;
pub mod formats;
pub mod generate;
#[cfg(feature = "gpu")]
pub mod gpu;
#[cfg(feature = "judge")]
pub mod judge;
pub mod metrics;
pub mod model;
pub mod ngram;
pub mod passes;
pub mod retrieve;
pub mod scale;
#[cfg(feature = "serve")]
pub mod serve;
pub mod tasks;
pub mod train;
pub mod transcribe;

pub use kiln_base::{graph, ops, plan, tensor};

/// The README's Rust is compiled with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
