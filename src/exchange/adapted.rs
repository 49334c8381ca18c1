//! Models that are a base and adapters beside it.

use super::{Opened, Result, any};
use crate::adapt::{self, Adapted, Hold, Loaded, Record, hold, is_adapter, merge, unmerge, with_squares};
use crate::data::tokenizer::{FILE_NAME, Tokenizer};
use crate::model::{Family, Weights};
use std::path::{Path, PathBuf};

/// A base and adapters that belong to it.
#[derive(Debug)]
pub struct Parts {
    /// The base, with its weights as they were held, and a tokenizer.
    pub base: Opened,
    /// The adapters.
    pub loaded: Loaded,
    /// The base is held otherwise than in its folder.
    held: bool,
}

/// What is named: a folder with adapters that says what they stand beside, or a model and folders of adapters for it.
///
/// None for a model without adapters.
pub fn parts(path: &Path, adapters: &[PathBuf]) -> Result<Option<Parts>> {
    let (mut folders, mut held) = (adapters.to_vec(), false);
    let mut base = if is_adapter(path) {
        folders.insert(0, path.to_path_buf());
        let record = Record::of(path)?;
        let mut base = any::open_plain(&record.base_of(path)?)?;
        record.expect(path, &base.weights)?;
        base.weights = hold(base.weights, base.family.as_ref(), record.hold)?;
        held = record.hold != Hold::F32;
        base
    } else if adapters.is_empty() {
        return Ok(None);
    } else {
        any::open_plain(path)?
    };
    // A run trains with a tokenizer of its own, which lies beside its adapters.
    if let Some(file) = folders.iter().map(|folder| folder.join(FILE_NAME)).find(|file| file.is_file()) {
        base.tokenizer = Some(Tokenizer::load(&file)?);
    }
    let loaded = adapt::load(&folders, base.family.as_ref())?;
    Ok(Some(Parts { base, loaded, held }))
}

impl Parts {
    /// The model with the adapters in its weights. What they change is f32 then, and so is all that training alone held in fewer bits.
    /// Gives the names of weights that were not f32 before.
    pub fn merged(self) -> Result<(Opened, Vec<String>)> {
        let Parts { mut base, loaded, held } = self;
        let mut widened = coded(&base.weights, &loaded);
        if held {
            widened = base.weights.stored().map(|(name, _)| name.to_string()).collect();
            base.weights = base.weights.widened();
        }
        for adapter in &loaded.adapters {
            merge(&mut base.weights, adapter, &loaded.factors)?;
        }
        Ok((base, widened))
    }

    /// The model without the adapters, which were merged into its weights before.
    pub fn unmerged(self) -> Result<Opened> {
        let Parts { mut base, loaded, .. } = self;
        for adapter in loaded.adapters.iter().rev() {
            unmerge(&mut base.weights, adapter, &loaded.factors)?;
        }
        Ok(base)
    }

    /// The model as it runs: where the adapters change codes these stay codes and the adapters stand beside them, and else they are
    /// merged.
    pub fn to_run(self) -> Result<Opened> {
        if coded(&self.base.weights, &self.loaded).is_empty() {
            return Ok(self.merged()?.0);
        }
        let Parts { base, loaded, .. } = self;
        let Loaded { adapters, factors } = loaded;
        let Opened { family, weights, tokenizer } = base;
        let mut weights = with_squares(weights, &adapters)?;
        weights.extend(factors);
        let family: Box<dyn Family> = Box::new(Adapted::new(family, adapters));
        Ok(Opened { family, weights, tokenizer })
    }
}

/// Names of weights that adapters change and that are not held as f32.
fn coded(weights: &Weights, loaded: &Loaded) -> Vec<String> {
    let changed = |name: &str| {
        loaded.adapters.iter().any(|adapter| {
            adapter.layers.iter().any(|layer| layer.linear.weight == name)
                || adapter.whole.iter().any(|spec| spec.name == name)
        })
    };
    weights.stored().map(|(name, _)| name).filter(|name| changed(name)).map(str::to_string).collect()
}
