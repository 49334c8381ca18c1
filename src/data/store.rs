//! The token store: the text split into a training and a validation part, each tokenised once.
//!
//! The split is made in *characters*, before any token is: the last share of the text is for validation, as in
//! nanoGPT. No token straddles it, and changing the tokenizer does not move it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::data::tokenizer::Tokenizer;
use crate::data::tokens::Tokens;
use crate::data::{Error, Result};

/// One part of the text as token ids.
#[derive(Clone, Debug)]
pub struct Part {
    /// The token ids, shared by whoever reads windows from them.
    pub tokens: Tokens,
    /// Characters that they stand for.
    pub characters: usize,
    /// Bytes of UTF-8 that they stand for: what bits per byte are counted in.
    pub bytes: usize,
}

impl Part {
    /// Tokenises `text`.
    pub fn of(text: &str, tokenizer: &Tokenizer) -> Result<Part> {
        Ok(Part {
            tokens: tokenizer.encode(text)?.into(),
            characters: text.chars().count(),
            bytes: text.len(),
        })
    }
}

/// Both parts of a text.
#[derive(Clone, Debug)]
pub struct Store {
    /// What the model learns from.
    pub training: Part,
    /// What it is measured on; empty if the share is zero.
    pub validation: Part,
    /// Which training tokens are of which source.
    pub stretches: Vec<Stretch>,
}

/// The training tokens of one source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stretch {
    /// The source's path.
    pub name: String,
    /// How often windows of it are drawn, beside those of the others. Absent: by its size.
    pub weight: Option<f64>,
    /// Documents of it that are trained on.
    pub documents: usize,
    /// Where its tokens stand.
    pub tokens: Range<usize>,
}

impl Store {
    /// Nothing, where something else is learnt from.
    pub fn empty() -> Store {
        let none = || Part { tokens: vec![].into(), characters: 0, bytes: 0 };
        Store { training: none(), validation: none(), stretches: vec![] }
    }

    /// Splits `text` and tokenises both parts. `validation_share` is the last share of the characters.
    pub fn build(text: &str, tokenizer: &Tokenizer, validation_share: f64) -> Result<Store> {
        let (training, validation) = split(text, validation_share)?;
        let offset_characters = training.chars().count();
        let training = Part::of(training, tokenizer)?;
        let validation = Part::of(validation, tokenizer).map_err(|error| shift(error, offset_characters))?;
        Ok(Store { training, validation, stretches: vec![] })
    }
}

/// An unknown character is found by its place in the whole text.
pub(super) fn shift(error: Error, by_characters: usize) -> Error {
    match error {
        Error::UnknownCharacter { character, offset_characters, vocabulary } => Error::UnknownCharacter {
            character,
            offset_characters: offset_characters + by_characters,
            vocabulary,
        },
        other => other,
    }
}

/// The first `floor(characters * (1 - validation_share))` characters of `text`, and the others.
pub fn split(text: &str, validation_share: f64) -> Result<(&str, &str)> {
    if !(0.0..1.0).contains(&validation_share) {
        return Err(Error::ValidationShare { share: validation_share });
    }
    let characters = text.chars().count();
    let training = (characters as f64 * (1.0 - validation_share)) as usize;
    let middle = text.char_indices().nth(training).map_or(text.len(), |(at, _)| at);
    Ok(text.split_at(middle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_parts_join_to_the_text_and_never_overlap() {
        let text = "aé日b".repeat(25);
        for share in [0.0, 0.01, 0.1, 0.5, 0.333, 0.99] {
            let (training, validation) = split(&text, share).unwrap();
            assert_eq!(format!("{training}{validation}"), text);
            assert_eq!(training.chars().count(), (100.0 * (1.0 - share)) as usize);
        }
    }

    #[test]
    fn shares_that_leave_nothing_are_refused() {
        for share in [1.0, 1.5, -0.1, f64::NAN] {
            assert!(matches!(split("abc", share), Err(Error::ValidationShare { .. })));
        }
    }

    #[test]
    fn both_parts_know_their_characters_and_bytes() {
        let text = "aé日bcdefgh";
        let store = Store::build(text, &Tokenizer::characters(text), 0.1).unwrap();
        assert_eq!((store.training.characters, store.training.bytes), (9, 12));
        assert_eq!((store.validation.tokens.len(), store.validation.bytes), (1, 1));
    }

    #[test]
    fn an_unknown_character_of_the_validation_part_is_placed_in_the_whole_text() {
        let error = Store::build("aaaaaaaaab", &Tokenizer::characters("a"), 0.1).unwrap_err();
        assert!(
            matches!(error, Error::UnknownCharacter { character: 'b', offset_characters: 9, .. }),
            "{error}"
        );
    }
}
