//! A folder with a model of runs: `ngram.json` says what it is, `ngram.safetensors` holds the tables, `tokenizer.json` lies beside them.

use super::smoothing::Smoothing;
use super::trie::{Level, Trie};
use super::{Error, MOST_ORDER, Model, Result};
use crate::data::tokenizer::{FILE_NAME, Tokenizer};
use crate::formats::{self, Archive, Element, write_whole};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Name of the file that says what a folder holds.
pub const CONFIG_FILE: &str = "ngram.json";
/// Name of the file with the tables.
pub const TABLES_FILE: &str = "ngram.safetensors";

/// Most tokens of a vocabulary: a distribution takes eight bytes of each.
const MOST_TOKENS: usize = 1 << 24;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    order: usize,
    vocabulary: usize,
    smoothing: Smoothing,
    /// Of counts of one, of two .., the last also of all that are larger, for each length of runs.
    discounts: Vec<Vec<f64>>,
}

/// True for a folder that holds such a model.
pub fn is_ngram(folder: &Path) -> bool {
    folder.join(CONFIG_FILE).is_file()
}

impl Model {
    /// Writes the three files into a folder that is there.
    pub fn save(&self, folder: &Path, tokenizer: &Tokenizer) -> Result<()> {
        let said = Said {
            order: self.order(),
            vocabulary: self.vocabulary(),
            smoothing: self.smoothing().clone(),
            discounts: self.discounts().to_vec(),
        };
        let path = folder.join(CONFIG_FILE);
        write_whole(&path, |out| {
            serde_json::to_writer_pretty(&mut *out, &said)?;
            out.write_all(b"\n")
        })
        .map_err(|source| formats::Error::of_file(&path, source))?;
        let mut tables = vec![];
        for (level, length) in self.trie().levels.iter().zip(1..) {
            for (part, list) in
                [("tokens", &level.tokens), ("counts", &level.counts), ("first", &level.first)]
            {
                tables.push((format!("{length}.{part}"), Tensor::u32([list.len()], list.clone())));
            }
        }
        let named: Vec<(&str, &Tensor)> = tables.iter().map(|(name, table)| (name.as_str(), table)).collect();
        Archive::write(&folder.join(TABLES_FILE), &named)?;
        Ok(tokenizer.save(folder)?)
    }

    /// Reads a folder.
    pub fn load(folder: &Path) -> Result<(Model, Tokenizer)> {
        let path = folder.join(CONFIG_FILE);
        let text = std::fs::read(&path).map_err(|source| formats::Error::of_file(&path, source))?;
        let damaged = |reason: String| Error::Damaged { path: path.clone(), reason };
        let said: Said = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        said.smoothing.check()?;
        let good = |d: &Vec<f64>| {
            let in_range = d.iter().zip(1..).all(|(d, most)| (0.0..=f64::from(most)).contains(d));
            d.len() == said.smoothing.discounted() && in_range
        };
        if !(1..=MOST_ORDER).contains(&said.order)
            || !(1..=MOST_TOKENS).contains(&said.vocabulary)
            || said.discounts.len() != said.order
            || !said.discounts.iter().all(good)
        {
            return Err(damaged("its sizes or discounts are out of range".into()));
        }
        let tables = folder.join(TABLES_FILE);
        let archive = Archive::open(&tables)?;
        let levels = (1..=said.order).map(|length| {
            let list = |part: &str| numbers(&archive, &format!("{length}.{part}"));
            Ok(Level { tokens: list("tokens")?, counts: list("counts")?, first: list("first")? })
        });
        let trie = Trie { levels: levels.collect::<Result<_>>()? };
        if !trie.is_sound(said.vocabulary) {
            return Err(Error::Damaged { path: tables, reason: "its tables do not fit together".into() });
        }
        let tokenizer = Tokenizer::load(&folder.join(FILE_NAME))?;
        if tokenizer.vocabulary_size() > said.vocabulary {
            let (got, known) = (tokenizer.vocabulary_size(), said.vocabulary);
            return Err(damaged(format!("it knows {known} tokens, the tokenizer beside it has {got}")));
        }
        Ok((Model::of(trie, said.vocabulary, said.smoothing, said.discounts), tokenizer))
    }
}

fn numbers(archive: &Archive, name: &str) -> Result<Vec<u32>> {
    let raw = archive.raw(name)?;
    if raw.element != Element::U32 {
        let (name, got) = (name.to_string(), raw.element.to_string());
        return Err(formats::Error::Element { name, expected: "U32", got }.into());
    }
    let words = raw.bytes.chunks_exact(4);
    Ok(words.map(|word| u32::from_le_bytes(word.try_into().expect("of four bytes"))).collect())
}
