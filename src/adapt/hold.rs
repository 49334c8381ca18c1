//! How weights that are not trained are held: those of a base beneath adapters, or of a teacher.

use super::{Error, Layers, Result};
use crate::model::{self, Family, Quantized, Stored, Weights};
use crate::ops::coded::Activations;
use crate::passes::{HEADS, matches};
use crate::tensor::quant::{self, Coded, DoubleScales, Scheme, Share, encode, encode_double};
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Codes with the scales that are themselves in 8 bits, if they are.
type Codes = (Coded, Option<DoubleScales>);

/// How weights that are not trained are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// As they are in their folder: 32 bits, or codes.
    #[default]
    F32,
    /// Matrices in 16 bits.
    F16,
    /// Linear layers in 8 bits with a scale for each output, other matrices in 16.
    Int8,
    /// Linear layers but the head in the 4-bit NormalFloat of QLoRA, scales of 64 weights in 8 bits, other matrices in 16.
    Nf4,
}

impl Hold {
    /// All of them by their names in recipes.
    pub const WORDS: [(&str, Hold); 4] =
        [("f32", Hold::F32), ("f16", Hold::F16), ("int8", Hold::Int8), ("nf4", Hold::Nf4)];

    /// The scheme of codes, where there are some.
    fn scheme(self) -> Option<Scheme> {
        match self {
            Hold::F32 | Hold::F16 => None,
            Hold::Int8 => Some(Scheme::symmetric(8, Share::Row)),
            Hold::Nf4 => Some(Scheme::normal_float(64, true)),
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hold::F32 => "as it is",
            Hold::F16 => "in f16",
            Hold::Int8 => "in int8",
            Hold::Nf4 => "in nf4",
        })
    }
}

/// Weights as they are to be held; what is not plain f32 stays as it is.
pub fn hold(mut weights: Weights, family: &dyn Family, how: Hold) -> Result<Weights> {
    if how == Hold::F32 {
        return Ok(weights);
    }
    let layers = Layers::of(family)?;
    // A head is most sensitive to few bits, and QLoRA leaves it out.
    let is_coded = |name: &str| how != Hold::Nf4 || !HEADS.iter().any(|pattern| matches(pattern, name));
    let plain: Vec<String> =
        weights.iter().filter(|(_, t)| t.shape.len() == 2).map(|(name, _)| name.to_string()).collect();
    for name in plain {
        let tensor = weights.get(&name)?;
        let linear = layers.find(&name).filter(|_| is_coded(&name));
        let stored = match (how.scheme(), linear) {
            (Some(scheme), Some(linear)) => codes_of(tensor, linear.turned, &scheme).map_err(|source| {
                let hint = "held as f32 it is taken as it is";
                Error::Base { name: name.clone(), problem: source.to_string(), hint }
            })?,
            _ => Stored::Halves(DType::F16, tensor.to_precision(DType::F16)),
        };
        weights.store(name, stored);
    }
    Ok(weights)
}

fn codes_of(tensor: &Tensor, turned: bool, scheme: &Scheme) -> quant::Result<Stored> {
    let [first, second] = [tensor.shape[0], tensor.shape[1]];
    let (coded, double) = match turned {
        true => coded(&model::turn(tensor.real(), first, second), second, first, scheme),
        false => coded(tensor.real(), first, second, scheme),
    }?;
    let (shape, activations) = (tensor.shape.clone(), Activations::Numbers);
    Ok(Stored::Codes(Quantized { shape, coded, double, turned, activations }))
}

fn coded(matrix: &[f32], rows: usize, cols: usize, scheme: &Scheme) -> quant::Result<Codes> {
    if scheme.double {
        return encode_double(matrix, rows, cols, scheme).map(|(coded, double)| (coded, Some(double)));
    }
    encode(matrix, rows, cols, scheme).map(|coded| (coded, None))
}
