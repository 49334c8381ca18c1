//! Texts that end a text, for those who look at it as a whole: beams and contrastive search.

use super::{Error, Result};
use crate::data::tokenizer::Tokenizer;

/// Texts that end a text, with what reads tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stops<'a> {
    tokenizer: &'a Tokenizer,
    texts: &'a [String],
}

impl<'a> Stops<'a> {
    /// None where there are no such texts; without a tokenizer they are refused.
    pub fn of(tokenizer: Option<&'a Tokenizer>, texts: &'a [String]) -> Result<Option<Stops<'a>>> {
        if texts.is_empty() {
            return Ok(None);
        }
        let tokenizer = tokenizer.ok_or(Error::NoTokenizer)?;
        Ok(Some(Stops { tokenizer, texts }))
    }

    /// True where the last token of a text completes one of them behind its first `prompt` tokens.
    pub fn end(&self, text: &[u32], prompt: usize) -> Result<bool> {
        // A token that says anything has a byte at least: further back nothing can begin that ends now.
        let longest = self.texts.iter().map(String::len).max().unwrap_or(0);
        let first = text.len().saturating_sub(longest + 8).max(prompt);
        // Some decoders treat the first token of a text in their own way: the one before is its context.
        let before = first.saturating_sub(1);
        let known = self.tokenizer.decode(&text[before..first])?;
        let whole = self.tokenizer.decode(&text[before..])?;
        let added = whole.strip_prefix(known.as_str()).unwrap_or(&whole);
        Ok(self.texts.iter().any(|stop| added.contains(stop)))
    }
}

/// What of a written text stands before the first of these texts.
pub fn before_stop<'a>(text: &'a str, stops: &[String]) -> &'a str {
    let first = stops.iter().filter_map(|stop| text.find(stop.as_str())).min();
    &text[..first.unwrap_or(text.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_text_counts_where_it_is_complete_and_was_written() {
        let tokenizer = Tokenizer::train_byte_pair("日本 ab", 258).unwrap();
        let ids = |text: &str| tokenizer.encode(text).unwrap();
        let texts = ["本a".to_string(), "ab".to_string()];
        let stops = Stops::of(Some(&tokenizer), &texts).unwrap().unwrap();
        let text = ids("b日本a");
        for count in 0..text.len() {
            assert!(!stops.end(&text[..count], 0).unwrap(), "{count}");
        }
        assert!(stops.end(&text, 0).unwrap());
        // What was given does not count, nor what began there.
        assert!(!stops.end(&text, text.len() - 1).unwrap() && !stops.end(&text, text.len()).unwrap());
        assert!(stops.end(&ids(&"b".repeat(99).replace("bbbbb", "ba")), 0).is_ok());
        assert!(matches!(Stops::of(None, &texts), Err(Error::NoTokenizer)));
        assert!(Stops::of(None, &[]).unwrap().is_none());
        assert_eq!((before_stop("xxaby本a", &texts), before_stop("日", &texts)), ("xx", "日"));
    }
}
