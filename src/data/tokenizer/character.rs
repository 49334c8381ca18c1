//! One token a character, numbered in the order of the code points, as nanoGPT does.
//!
//! In the file it is a word-level model whose words are single characters, with a pre-tokenizer that cuts after
//! every character: any tool that reads `tokenizer.json` encodes the same ids.

use std::collections::{BTreeSet, HashMap};

use rayon::prelude::*;
use serde_json::{Value, json};

use crate::data::{Error, Result};

/// Matches any one character in both regex dialects that the library may be built with; `(?s).` does in one only.
const ANY_CHARACTER: &str = r"[\s\S]";

/// Never in the vocabulary, so that an unknown character is an error and not a token.
const UNKNOWN: &str = "<unknown>";

const NONE: u32 = u32::MAX;

/// What a thread encodes at a time.
const PIECE_BYTES: usize = 1 << 20;

/// A vocabulary of characters.
#[derive(Clone, Debug)]
pub struct Characters {
    by_id: Vec<char>,
    /// Ids of the first 128 code points, which are nearly all characters of most texts.
    ascii: Box<[u32; 128]>,
    others: HashMap<char, u32>,
}

impl Characters {
    /// The sorted distinct characters of `text`.
    pub fn of(text: &str) -> Characters {
        let mut seen = [false; 128];
        let mut distinct = BTreeSet::new();
        for character in text.chars() {
            match seen.get_mut(character as usize) {
                Some(seen) => *seen = true,
                None => _ = distinct.insert(character),
            }
        }
        distinct.extend((0..128_u8).filter(|&code| seen[usize::from(code)]).map(char::from));
        Characters::from_list(distinct.into_iter().collect())
    }

    fn from_list(by_id: Vec<char>) -> Characters {
        let (mut ascii, mut others) = (Box::new([NONE; 128]), HashMap::new());
        for (id, &character) in (0..).zip(&by_id) {
            match ascii.get_mut(character as usize) {
                Some(slot) => *slot = id,
                None => _ = others.insert(character, id),
            }
        }
        Characters { by_id, ascii, others }
    }

    /// How many characters it knows.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The character of an id.
    pub fn character(&self, id: u32) -> Option<char> {
        self.by_id.get(id as usize).copied()
    }

    /// The id of a token that is one character.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        let mut characters = token.chars();
        let (first, rest) = (characters.next()?, characters.next());
        self.id_of(first).filter(|_| rest.is_none())
    }

    fn id_of(&self, character: char) -> Option<u32> {
        match self.ascii.get(character as usize) {
            Some(&id) => Some(id).filter(|&id| id != NONE),
            None => self.others.get(&character).copied(),
        }
    }

    /// Encodes a text of any length; threads share a long one.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if text.len() <= PIECE_BYTES {
            return self.encode_piece(text);
        }
        let pieces = pieces(text);
        match pieces.par_iter().map(|piece| self.encode_piece(piece)).collect::<Result<Vec<_>>>() {
            Ok(ids) => Ok(ids.concat()),
            // Counts from the beginning.
            Err(_) => self.encode_piece(text),
        }
    }

    fn encode_piece(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len());
        for (offset_characters, character) in text.chars().enumerate() {
            let vocabulary = self.len();
            let unknown = Error::UnknownCharacter { character, offset_characters, vocabulary };
            ids.push(self.id_of(character).ok_or(unknown)?);
        }
        Ok(ids)
    }

    /// The ids must be below the vocabulary's size.
    pub(super) fn decode(&self, ids: &[u32]) -> String {
        ids.iter().map(|&id| self.by_id[id as usize]).collect()
    }

    pub(super) fn to_json(&self) -> String {
        let words = self.by_id.iter().zip(0_u32..).map(|(character, id)| (character.to_string(), json!(id)));
        let vocabulary: serde_json::Map<String, Value> = words.collect();
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": split_every_character(),
            "post_processor": null,
            "decoder": { "type": "Fuse" },
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN },
        });
        serde_json::to_string_pretty(&file).expect("plain data is always written")
    }

    /// Recognises a file of the form that [`to_json`](Self::to_json) writes; everything else is left to the library.
    pub(super) fn from_json(json: &str) -> Option<Characters> {
        let file: Value = serde_json::from_str(json).ok()?;
        let plain = ["normalizer", "post_processor"].iter().all(|part| file[part].is_null())
            && file["added_tokens"].as_array().is_none_or(|tokens| tokens.is_empty())
            && file["pre_tokenizer"] == split_every_character()
            && file["decoder"]["type"] == "Fuse"
            && file["model"]["type"] == "WordLevel";
        if !plain {
            return None;
        }
        let vocabulary = file["model"]["vocab"].as_object()?;
        let mut by_id = vec![None; vocabulary.len()];
        for (word, id) in vocabulary {
            let mut characters = word.chars();
            let (character, rest) = (characters.next()?, characters.next());
            let slot = by_id.get_mut(usize::try_from(id.as_u64()?).ok()?)?;
            if rest.is_some() || slot.replace(character).is_some() {
                return None;
            }
        }
        Some(Characters::from_list(by_id.into_iter().collect::<Option<_>>()?))
    }
}

fn split_every_character() -> Value {
    json!({ "type": "Split", "pattern": { "Regex": ANY_CHARACTER }, "behavior": "Isolated", "invert": false })
}

fn pieces(mut text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    while text.len() > PIECE_BYTES {
        let at = (PIECE_BYTES..).find(|&at| text.is_char_boundary(at)).expect("the end is one");
        let (piece, rest) = text.split_at(at);
        pieces.push(piece);
        text = rest;
    }
    pieces.push(text);
    pieces
}

#[cfg(test)]
mod tests {
    use super::super::tests::RHYME;
    use super::*;

    #[test]
    fn ids_are_ranks_among_the_sorted_distinct_characters() {
        let characters = Characters::of("cab\ncé");
        assert_eq!(characters.by_id, ['\n', 'a', 'b', 'c', 'é']);
        assert_eq!(characters.encode("abcé\n").unwrap(), [1, 2, 3, 4, 0]);
        assert_eq!(characters.decode(&[4, 1]), "éa");
    }

    #[test]
    fn an_unknown_character_is_named_with_its_offset() {
        let error = Characters::of("aé").encode("éaß").unwrap_err();
        assert!(
            matches!(error, Error::UnknownCharacter { character: 'ß', offset_characters: 2, vocabulary: 2 }),
            "{error}"
        );
    }

    #[test]
    fn the_library_reads_the_saved_file_and_encodes_the_same() {
        let characters = Characters::of(RHYME);
        let library: tokenizers::Tokenizer = characters.to_json().parse().unwrap();
        let encoding = library.encode(RHYME, true).unwrap();
        assert_eq!(encoding.get_ids(), characters.encode(RHYME).unwrap());
        assert_eq!(library.decode(encoding.get_ids(), true).unwrap(), RHYME);
        assert!(library.encode("Ω", false).is_err(), "an unknown character is an error there too");
    }

    #[test]
    fn a_file_that_is_not_of_single_characters_is_left_to_the_library() {
        let json = Characters::of("ab").to_json();
        assert!(Characters::from_json(&json).is_some());
        for (from, to) in
            [("\"a\"", "\"aa\""), ("\"b\": 1", "\"b\": 2"), ("Fuse", "ByteFallback"), ("Isolated", "Removed")]
        {
            assert!(json.contains(from), "{from} is in {json}");
            assert!(Characters::from_json(&json.replace(from, to)).is_none(), "{from} -> {to}");
        }
    }

    #[test]
    fn a_long_text_in_pieces_has_the_ids_and_the_errors_of_the_whole() {
        let text = "a\u{65e5}b".repeat(PIECE_BYTES / 2);
        let characters = Characters::of("ab\u{65e5}");
        assert_eq!(characters.encode(&text).unwrap(), characters.encode_piece(&text).unwrap());
        let wrong = format!("{text}?");
        let error = characters.encode(&wrong).unwrap_err();
        let at = text.chars().count();
        assert!(
            matches!(error, Error::UnknownCharacter { offset_characters, .. } if offset_characters == at)
        );
    }
}
