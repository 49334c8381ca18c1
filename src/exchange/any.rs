//! A model from whatever holds one: a folder as Hugging Face has it, a GGUF file, or a base and adapters.

use super::{Result, adapted, import_gguf};
use crate::data::tokenizer::{FILE_NAME, Tokenizer};
use crate::model::{self, Family, Weights};
use std::path::{Path, PathBuf};

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

/// Opens a folder or a GGUF file. Where a folder holds adapters, they are merged into the weights of their base.
pub fn open(path: &Path) -> Result<Opened> {
    match adapted::parts(path, &[])? {
        Some(parts) => Ok(parts.merged()?.0),
        None => open_plain(path),
    }
}

/// The same without the tokenizer of a folder, for those who bring tokens.
pub fn open_model(path: &Path) -> Result<Opened> {
    match adapted::parts(path, &[])? {
        Some(parts) => Ok(parts.merged()?.0),
        None => without_tokenizer(path),
    }
}

/// Opens a model to run it, with adapters if there are some; see [`Parts::to_run`](super::Parts::to_run).
pub fn open_to_run(path: &Path, adapters: &[PathBuf]) -> Result<Opened> {
    match adapted::parts(path, adapters)? {
        Some(parts) => parts.to_run(),
        None => open_plain(path),
    }
}

/// Opens the model of one of several tasks that a folder has heads for.
pub fn open_of_task(path: &Path, task: &str) -> Result<Opened> {
    let (family, weights) = model::open_of_task(path, task)?;
    let file = path.join(FILE_NAME);
    let tokenizer = if file.exists() { Some(Tokenizer::load(&file)?) } else { None };
    Ok(Opened { family, weights, tokenizer })
}

/// Opens what holds a whole model.
pub(super) fn open_plain(path: &Path) -> Result<Opened> {
    let mut opened = without_tokenizer(path)?;
    let file = path.join(FILE_NAME);
    if opened.tokenizer.is_none() && file.exists() {
        opened.tokenizer = Some(Tokenizer::load(&file)?);
    }
    Ok(opened)
}

fn without_tokenizer(path: &Path) -> Result<Opened> {
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
