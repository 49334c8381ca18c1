//! A recipe's text where it is streamed: which files, what a tokenizer learns from, and what is measured.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Result;
use super::recipe::{Recipe, Tokenizer as Wanted, Validation};
use crate::data::sources::{Bad, Settings, Source, gather};
use crate::data::store::Store;
use crate::data::stream::{self, Library, Streamed};
use crate::data::tokenizer::Tokenizer;

/// A byte-level BPE is trained on so much from the front.
const SAMPLE_BYTES: usize = 64 << 20;

/// The most tokens of either part that are held for measuring.
const MOST_MEASURED: usize = 1 << 22;

/// Files that are streamed.
pub struct Streams {
    /// Each with its share of the windows.
    libraries: Vec<(Arc<Library>, f64)>,
    buffer: usize,
}

impl Streams {
    /// Finds the files of a recipe that streams them. Sources with weights are streams of their own; without, all are one.
    pub fn open(recipe: &Recipe) -> Result<Option<Streams>> {
        let data = &recipe.data;
        let Some(streaming) = &data.streaming else { return Ok(None) };
        let open = |sources: &[Source], share| -> Result<_> {
            Ok((Arc::new(Library::open(sources, data.skip_bad, data.validation.share())?), share))
        };
        let libraries = match data.text.iter().any(|source| source.weight.is_some()) {
            false => vec![open(&data.text, 1.0)?],
            true => {
                let weight = |source: &Source| source.weight.unwrap_or(1.0);
                let sum: f64 = data.text.iter().map(weight).sum();
                let one = |source: &Source| open(std::slice::from_ref(source), weight(source) / sum);
                data.text.iter().map(one).collect::<Result<_>>()?
            }
        };
        Ok(Some(Streams { libraries, buffer: streaming.buffer }))
    }

    /// What the recipe's tokenizer is made from: every character that occurs, or the beginning of the text.
    pub fn sample(&self, recipe: &Recipe) -> Result<String> {
        let mut characters = BTreeSet::new();
        let mut text = String::new();
        let is_char = match recipe.data.tokenizer {
            Wanted::Char => true,
            Wanted::Bpe(_) => false,
            Wanted::File(_) | Wanted::Model => return Ok(text),
        };
        for (library, _) in &self.libraries {
            for held in [false, true] {
                library.read(held, &mut |row| {
                    match is_char {
                        true => characters.extend(row.text.chars()),
                        false => text.extend([&row.text, "\n"]),
                    }
                    Ok(is_char || text.len() < SAMPLE_BYTES)
                })?;
            }
        }
        if let (true, Validation::Text(sources)) = (is_char, &recipe.data.validation) {
            characters.extend(gather(sources, settings(recipe))?.text().chars());
        }
        // Line ends stand behind documents.
        characters.extend(is_char.then_some('\n'));
        Ok(if is_char { characters.into_iter().collect() } else { text })
    }

    /// What is measured: the first documents that are trained on, and the first that are held back.
    pub fn store(&self, recipe: &Recipe, tokenizer: &Tokenizer, context: usize) -> Result<Store> {
        let train = &recipe.train;
        let needed = train.batch * train.evaluate.batches * context + 1;
        let needed = (needed / self.libraries.len()).clamp(context + 1, MOST_MEASURED);
        let part = |held| -> Result<_> {
            let one = |(library, _): &(Arc<Library>, f64)| {
                stream::excerpt(library, held, tokenizer, recipe.data.separator, needed)
            };
            let parts = self.libraries.iter().map(one).collect::<crate::data::Result<Vec<_>>>()?;
            let tokens: Vec<u32> = parts.iter().flat_map(|part| part.tokens.all().into_owned()).collect();
            let (characters, bytes) = (parts.iter().map(|p| p.characters), parts.iter().map(|p| p.bytes));
            let (characters, bytes) = (characters.sum(), bytes.sum());
            Ok(crate::data::store::Part { tokens: tokens.into(), characters, bytes })
        };
        let validation = match &recipe.data.validation {
            Validation::Share(_) => part(true)?,
            Validation::Text(sources) => gather(sources, settings(recipe))?.store(tokenizer, 0.0)?.training,
        };
        Ok(Store { training: part(false)?, validation, stretches: vec![] })
    }

    /// Training windows from the start.
    pub fn batches(&self, recipe: &Recipe, tokenizer: &Tokenizer, context: usize) -> Result<Streamed> {
        let (rows, seed) = (recipe.train.batch, recipe.train.seed);
        let (separator, buffer) = (recipe.data.separator, self.buffer);
        let settings = stream::Settings { separator, buffer, context, rows, seed };
        Ok(Streamed::new(&self.libraries, tokenizer, &settings)?)
    }

    /// Rows that could not be read and were passed over so far.
    pub fn passed_over(&self) -> Bad {
        let mut all = Bad::default();
        self.libraries.iter().for_each(|(library, _)| all.add(&library.passed_over()));
        all
    }

    /// In words.
    pub fn describe(&self) -> String {
        let files: usize = self.libraries.iter().map(|(library, _)| library.files()).sum();
        let plural = if files == 1 { "file" } else { "files" };
        format!("stream   {files} {plural}, a buffer of {} documents; what is measured is held", self.buffer)
    }
}

fn settings(recipe: &Recipe) -> Settings {
    Settings { separator: recipe.data.separator, skip_bad: recipe.data.skip_bad }
}
