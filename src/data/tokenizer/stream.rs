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
    /// Tokens given out last, then those still held back.
    ids: Vec<u32>,
    /// How many of `ids` were given out.
    given: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> DecodeStream<'a> {
        DecodeStream { tokenizer, ids: Vec::new(), given: 0 }
    }

    /// Takes the next id; gives the text that it completes, which may be empty.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        self.give(false)
    }

    /// Ends the stream; gives what was held back, with U+FFFD for a character that never became whole.
    pub fn finish(mut self) -> Result<String> {
        self.give(true)
    }

    fn give(&mut self, all: bool) -> Result<String> {
        let known = self.tokenizer.decode(&self.ids[..self.given])?;
        let now = self.tokenizer.decode(&self.ids)?;
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
}
