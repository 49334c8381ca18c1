//! Decoding one token at a time, for text that is printed while it is generated.

use super::Tokenizer;
use crate::data::Result;

/// Stands for bytes that are not a whole character yet.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Gives out text as soon as it cannot change any more.
///
/// A token may hold part of a character, and some decoders treat the first token of a text in their own way. So
/// the last tokens given out are decoded again with the new ones, and only what is added is returned.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    unspoken: Unspoken,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> DecodeStream<'a> {
        DecodeStream { tokenizer, unspoken: Unspoken::default() }
    }

    /// Takes the next id; gives the text that it completes, which may be empty.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.unspoken.push(self.tokenizer, id)
    }

    /// Ends the stream; gives what was held back, with U+FFFD for a character that never became whole.
    pub fn finish(mut self) -> Result<String> {
        self.unspoken.finish(self.tokenizer)
    }
}

/// The tokens of a [`DecodeStream`], without the tokenizer, for those who own it elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Unspoken {
    /// Tokens given out last, then those still held back.
    ids: Vec<u32>,
    /// How many of `ids` were given out.
    given: usize,
}

impl Unspoken {
    /// A stream behind tokens that were given out.
    pub fn behind(ids: &[u32]) -> Unspoken {
        Unspoken { ids: ids.to_vec(), given: ids.len() }
    }

    /// Takes the next id; gives the text that it completes, which may be empty.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        self.ids.push(id);
        self.give(tokenizer, false)
    }

    /// What was held back, with U+FFFD for a character that never became whole.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        self.give(tokenizer, true)
    }

    fn give(&mut self, tokenizer: &Tokenizer, all: bool) -> Result<String> {
        // The library decodes a run of byte tokens together: one that is no UTF-8 makes the whole run U+FFFD.
        if !all && self.ids.last().is_some_and(|&id| is_byte(tokenizer, id)) {
            return Ok(String::new());
        }
        let known = tokenizer.decode(&self.ids[..self.given])?;
        let now = tokenizer.decode(&self.ids)?;
        let added = now.strip_prefix(known.as_str()).unwrap_or("");
        if added.is_empty() || (added.ends_with(REPLACEMENT) && !all) {
            return Ok(String::new());
        }
        let added = added.to_owned();
        // The tokens just given out stay as the context of the next; older ones are no longer needed.
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        Ok(added)
    }
}

/// Whether a token is one byte by name, such as `<0x0A>`, as where bytes stand in for unknown characters.
fn is_byte(tokenizer: &Tokenizer, id: u32) -> bool {
    let name = tokenizer.token_name(id).unwrap_or_default();
    let digits = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| u8::from_str_radix(digits, 16).is_ok())
}

#[cfg(test)]
mod tests {
    use super::super::tests::RHYME;
    use super::*;

    #[test]
    fn a_stream_gives_the_same_text_as_decoding_at_once_and_never_half_a_character() {
        let tokenizers = [Tokenizer::train_byte_pair(RHYME, 257).unwrap(), Tokenizer::characters(RHYME)];
        for tokenizer in tokenizers {
            let mut stream = tokenizer.decode_stream();
            let mut text = String::new();
            for id in tokenizer.encode(RHYME).unwrap() {
                let piece = stream.push(id).unwrap();
                assert!(!piece.contains(REPLACEMENT), "{piece:?}");
                text += &piece;
            }
            text += &stream.finish().unwrap();
            assert_eq!(text, RHYME);
        }
    }

    #[test]
    fn a_character_cut_off_at_the_end_is_marked_when_the_stream_ends() {
        let tokenizer = Tokenizer::train_byte_pair("x", 257).unwrap();
        let ids = tokenizer.encode("日").unwrap();
        let mut stream = tokenizer.decode_stream();
        assert_eq!(stream.push(ids[0]).unwrap(), "");
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    }

    #[test]
    fn byte_tokens_that_are_no_character_together_do_not_silence_what_follows() {
        let json = r#"{
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null,
            "decoder": { "type": "Sequence", "decoders": [{ "type": "ByteFallback" }, { "type": "Fuse" }] },
            "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "byte_fallback": true, "merges": [],
                       "vocab": { "<unk>": 0, "a": 1, "<0x32>": 2, "<0xEA>": 3 } }
        }"#;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), json).unwrap();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        let ids = [1, 2, 1, 2, 3, 1, 1, 2];
        let mut stream = tokenizer.decode_stream();
        let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        text += &stream.finish().unwrap();
        assert_eq!(text, "a2a\u{fffd}\u{fffd}aa2");
        assert_eq!(text, tokenizer.decode(&ids).unwrap());
    }
}
