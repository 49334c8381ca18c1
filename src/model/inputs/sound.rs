//! What a model hears: bands of a spectrogram over time, as floats.

use super::super::{Result, Sound};
use super::refuse;
use crate::formats::Raw;
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// Name in transformers.
pub(super) const NAME: &str = "input_features";

/// The features [B, bands, frames], where a model hears; else none may be given.
pub(super) fn read(given: &BTreeMap<String, Raw>, sound: Option<Sound>) -> Result<Option<Tensor>> {
    let raw = match (given.get(NAME), sound) {
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(refuse(NAME, "absent: the model reads input_ids", "given")),
        (None, Some(_)) => return Err(refuse(NAME, "there, as the model hears it", "absent")),
        (Some(raw), Some(_)) => raw,
    };
    let Sound { bands, frames, .. } = sound.expect("it was there just now");
    match raw.shape[..] {
        [batch, b, f] if batch > 0 && [b, f] == [bands, frames] => {
            let floats = raw.floats().ok_or_else(|| refuse(NAME, "floats", raw.element.to_string()))?;
            Ok(Some(Tensor::f32([batch, bands, frames], floats)))
        }
        _ => Err(refuse(NAME, format!("of shape [B, {bands}, {frames}]"), raw.shape.to_string())),
    }
}
