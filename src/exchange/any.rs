//! A model from whatever holds one: a folder as Hugging Face has it, or a GGUF file.

use super::{Result, import_gguf};
use crate::data::tokenizer::{FILE_NAME, Tokenizer};
use crate::model::{self, Family, Weights};
use std::path::Path;

/// A model with its weights.
#[derive(Debug)]
pub struct Opened {
    /// The family, configured.
    pub family: Box<dyn Family>,
    /// Its weights.
    pub weights: Weights,
    /// Its tokenizer, if there is one.
    pub tokenizer: Option<Tokenizer>,
}

/// True for the path of a file that is called GGUF.
pub fn is_gguf(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Opens a folder or a GGUF file.
pub fn open(path: &Path) -> Result<Opened> {
    let mut opened = open_model(path)?;
    let file = path.join(FILE_NAME);
    if opened.tokenizer.is_none() && file.exists() {
        opened.tokenizer = Some(Tokenizer::load(&file)?);
    }
    Ok(opened)
}

/// The same without the tokenizer of a folder, for those who bring tokens.
pub fn open_model(path: &Path) -> Result<Opened> {
    if is_gguf(path) {
        let imported = import_gguf(path)?;
        return Ok(Opened {
            family: imported.family,
            weights: imported.weights,
            tokenizer: imported.tokenizer,
        });
    }
    let family = model::open(path)?;
    let weights = Weights::read(path, family.as_ref())?;
    Ok(Opened { family, weights, tokenizer: None })
}
