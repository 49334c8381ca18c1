//! Weights held as codes in a safetensors archive, whichever convention wrote them.

use super::{Archive, Error, Result, compressed_tensors, own, sparse};
use crate::tensor::Tensor;
use crate::tensor::quant::{Coded, DoubleScales};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Key of `config.json` that says how weights are quantised.
pub const QUANTIZATION_KEY: &str = "quantization_config";

/// A weight as codes, with what its layer needs besides.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The weight, rows are outputs.
    pub coded: Coded,
    /// Scale of the layer's inputs, where they become codes by a scale that was measured beforehand.
    pub input_scale: Option<f32>,
    /// The scales as they are held in 8 bits; [`Coded::scales`] are what they stand for.
    pub double: Option<DoubleScales>,
}

impl From<Coded> for Layer {
    fn from(coded: Coded) -> Layer {
        Layer { coded, input_scale: None, double: None }
    }
}

/// What an archive holds.
#[derive(Debug, Default)]
pub struct Found {
    /// Weights as codes, by the name they have as floats: `model.layers.0.mlp.up_proj.weight`.
    pub coded: BTreeMap<String, Layer>,
    /// Weights that are stored without their zeros, by the name they have in full.
    pub sparse: BTreeMap<String, Tensor>,
    /// Names of the other tensors.
    pub plain: Vec<String>,
}

/// The `quant_method` of a `config.json`: what quantised the model, if anything did.
pub fn quantized_by(config: &Map<String, Value>) -> Option<&str> {
    let settings = config.get(QUANTIZATION_KEY).or_else(|| config.get("compression_config"))?;
    Some(settings.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method"))
}

/// Reads all weights that are codes or stored without their zeros, as `config.json` says; of a plain model, none.
pub fn read_coded(archive: &Archive, config: &Map<String, Value>) -> Result<Found> {
    let mut found = read_codes(archive, config)?;
    if let Some(form) = sparse::Form::of_config(config, archive)? {
        let (tensors, parts) = sparse::read_all(archive, form)?;
        found.sparse = tensors;
        found.plain.retain(|name| !parts.contains(name));
    }
    Ok(found)
}

fn read_codes(archive: &Archive, config: &Map<String, Value>) -> Result<Found> {
    match quantized_by(config) {
        None => Ok(Found { plain: archive.names().map(String::from).collect(), ..Found::default() }),
        Some(own::METHOD) => own::read_all(archive),
        Some(compressed_tensors::METHOD) => {
            let settings = compressed_tensors::Config::read(config, archive.path())?;
            compressed_tensors::read_all(archive, &settings)
        }
        Some(other) => Err(Error::Unsupported {
            path: archive.path().to_path_buf(),
            what: format!("a model quantised by {other}"),
            expected: format!("{} or {}", own::METHOD, compressed_tensors::METHOD),
        }),
    }
}
