//! The text that a recipe names, read and cut into what is trained on and what is measured.

use std::borrow::Cow;
use std::path::Path;

use super::caches::cache_folder;
use super::recipe::{self, Recipe, Validation};
use super::{Result, job};
use crate::data::cache::{Cache, Found, Key};
use crate::data::corpus;
use crate::data::sources::{Gathered, Settings, gather};
use crate::data::store::Store;
use crate::data::tokenizer::Tokenizer;

/// Bytes of a text from which on it is worth keeping its tokens.
const WORTH_BYTES: usize = 1 << 20;

/// A recipe's text.
pub struct Texts {
    training: Gathered,
    /// A text of its own to measure on.
    validation: Option<Gathered>,
    share: f64,
    cache: Option<Cache>,
    /// What a person should know of what was passed over, kept or made anew.
    pub told: Vec<String>,
}

impl Texts {
    /// Reads all of it; of a recipe without text, the built-in corpus.
    pub fn read(recipe: &Recipe) -> Result<Texts> {
        let data = &recipe.data;
        let settings = Settings { separator: data.separator, skip_bad: data.skip_bad };
        let training = match data.text.is_empty() {
            true => Gathered::of_text(corpus::generate(job::CORPUS_CHARACTERS, recipe.train.seed)),
            false => gather(&data.text, settings)?,
        };
        let validation = match &data.validation {
            Validation::Share(_) => None,
            Validation::Text(sources) => Some(gather(sources, settings)?),
        };
        let cache = match &data.cache {
            recipe::Cache::Folder(folder) => Some(Cache::at(folder)),
            recipe::Cache::Usual if !data.text.is_empty() && training.text().len() >= WORTH_BYTES => {
                cache_folder().map(|folder| Cache::at(folder.join("tokens")))
            }
            recipe::Cache::Usual | recipe::Cache::Off => None,
        };
        let bad = [Some(&training), validation.as_ref()].into_iter().flatten();
        let told = bad.filter_map(|gathered| gathered.bad.told()).map(|told| format!("warning: {told}"));
        let told = told.collect();
        Ok(Texts { training, validation, share: data.validation.share(), cache, told })
    }

    /// A text that is at hand.
    pub fn of(text: String) -> Texts {
        let training = Gathered::of_text(text);
        Texts { training, validation: None, share: 0.0, cache: None, told: vec![] }
    }

    /// All that is trained on and, where it is of the same text, measured.
    pub fn text(&self) -> &str {
        self.training.text()
    }

    /// All characters, so that a vocabulary of characters knows those that are only measured too.
    pub fn alphabet(&self) -> Cow<'_, str> {
        match &self.validation {
            None => Cow::Borrowed(self.text()),
            Some(validation) => Cow::Owned([self.text(), validation.text()].concat()),
        }
    }

    /// Documents that are trained on, and those that are held back: the last share of all, or those of the other text.
    pub fn documents(&self) -> [Vec<&str>; 2] {
        let mut training = self.training.texts();
        let held = match &self.validation {
            Some(validation) => validation.texts(),
            None => {
                let count = (training.len() as f64 * self.share).round() as usize;
                training.split_off(training.len() - count.min(training.len()))
            }
        };
        [training, held]
    }

    /// A byte-level BPE trained on the text, or the one that an earlier run has trained on it.
    pub fn byte_pair(&mut self, vocabulary: usize) -> Result<Tokenizer> {
        let train = |text: &str| Tokenizer::train_byte_pair(text, vocabulary);
        let Some(cache) = &self.cache else { return Ok(train(self.text())?) };
        let parts = [env!("CARGO_PKG_VERSION").as_bytes(), &vocabulary.to_le_bytes(), self.text().as_bytes()];
        let key = Key::of(&parts);
        let kept = cache.tokenizer(&key);
        // One that cannot be read is made anew, as if it were not there.
        if let Some(kept) = kept.and_then(|json| Tokenizer::from_json(&json, Path::new("the cache")).ok()) {
            return Ok(kept);
        }
        let tokenizer = train(self.text())?;
        if let Err(error) = cache.keep_tokenizer(&key, &tokenizer.to_json()?) {
            self.told.push(format!("warning: the tokenizer is not kept for the next run: {error}"));
        }
        Ok(tokenizer)
    }

    /// Both parts as tokens, made or, where an earlier run has made them, read.
    pub fn store(&mut self, tokenizer: &Tokenizer) -> Result<Store> {
        let Some(cache) = self.cache.clone() else { return self.tokenise(tokenizer) };
        let validation = self.validation.as_ref().map_or([0; 32], Gathered::hash);
        let key = Key::of(&[
            &self.training.hash(),
            &validation,
            &self.share.to_le_bytes(),
            tokenizer.to_json()?.as_bytes(),
        ]);
        match cache.load(&key) {
            Found::Whole(store) => {
                self.told.push(format!("tokens   read from {}", cache.file(&key).display()));
                return Ok(store);
            }
            Found::Damaged(reason) => self.told.push(format!("warning: tokens made anew: {reason}")),
            Found::Nothing => {}
        }
        let store = self.tokenise(tokenizer)?;
        match cache.save(&key, &store, tokenizer.vocabulary_size()) {
            Ok(kept) => Ok(kept),
            Err(error) => {
                self.told.push(format!("warning: tokens are not kept for the next run: {error}"));
                Ok(store)
            }
        }
    }

    fn tokenise(&self, tokenizer: &Tokenizer) -> Result<Store> {
        Ok(match &self.validation {
            None => self.training.store(tokenizer, self.share)?,
            Some(validation) => self.training.store_beside(tokenizer, validation)?,
        })
    }
}
