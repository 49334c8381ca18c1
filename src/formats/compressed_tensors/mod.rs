//! The convention of the compressed-tensors package: safetensors with codes, and `quantization_config` in `config.json`.
//!
//! A module `M` holds its weight as bytes (`M.weight` `I8`, "int-quantized") or packed in words (`M.weight_packed` `I32 [out, words]`,
//! `M.weight_shape` `I64 [2]`, "pack-quantized": code + 2^(bits-1), the first in the lowest bits). Both have `M.weight_scale` `[out, groups]`
//! and, where codes are asymmetric, `M.weight_zero_point`: `I8 [out, groups]`, packed along its first axis in the second form.

mod config;
mod pack;

pub use config::{Activations, Config, Group, Packing};
pub use pack::{read_all, write};

/// Name of the convention, as `quant_method` in `config.json`.
pub const METHOD: &str = "compressed-tensors";
