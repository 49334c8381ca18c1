//! What of a text can be shown while it is written: whole characters, and nothing of a text that ends it.

use crate::data::tokenizer::{Tokenizer, Unspoken};
use crate::generate::Result;

/// The text of what is written.
#[derive(Debug)]
pub(super) struct Spoken {
    /// Tokens that were given.
    pub prompt: usize,
    decoding: Unspoken,
    /// Text that may be the beginning of a stop text.
    held: String,
    stopped: Option<String>,
}

impl Spoken {
    /// Nothing written behind these tokens.
    pub fn new(prompt: &[u32]) -> Spoken {
        // Some decoders treat the first token of a text in their own way: the last one given is its context.
        let last = &prompt[prompt.len().saturating_sub(1)..];
        Spoken { prompt: prompt.len(), decoding: Unspoken::behind(last), held: String::new(), stopped: None }
    }

    /// The stop text that was written.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    /// Takes a token; gives the text that cannot change any more.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32, stops: &[String]) -> Result<String> {
        let added = self.decoding.push(tokenizer, token)?;
        Ok(self.give(&added, stops, false))
    }

    /// The rest, once nothing more comes.
    pub fn finish(&mut self, tokenizer: &Tokenizer, stops: &[String]) -> Result<String> {
        let added = self.decoding.finish(tokenizer)?;
        Ok(self.give(&added, stops, true))
    }

    fn give(&mut self, added: &str, stops: &[String], all: bool) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        self.held += added;
        let found = stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop))).min();
        if let Some((at, stop)) = found {
            self.stopped = Some(stop.clone());
            let mut text = std::mem::take(&mut self.held);
            text.truncate(at);
            return text;
        }
        let begins = |at: &usize| stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let kept = self.held.char_indices().map(|(at, _)| at).find(begins).filter(|_| !all);
        let rest = self.held.split_off(kept.unwrap_or(self.held.len()));
        std::mem::replace(&mut self.held, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_text_over_several_tokens_is_never_shown_and_what_only_looked_like_it_is() {
        let tokenizer = Tokenizer::characters("abcdef");
        let ids = |text: &str| tokenizer.encode(text).unwrap();
        let stops = ["cde".to_string(), "ff".to_string()];
        let run = |text: &str| {
            let mut spoken = Spoken::new(&ids("a"));
            let mut parts: Vec<String> = vec![];
            for id in ids(text) {
                parts.push(spoken.push(&tokenizer, id, &stops).unwrap());
                if spoken.stopped().is_some() {
                    break;
                }
            }
            parts.push(spoken.finish(&tokenizer, &stops).unwrap());
            (parts.concat(), spoken.stopped().map(str::to_string), parts)
        };
        let (text, stopped, parts) = run("abcdeab");
        assert_eq!((text.as_str(), stopped.as_deref()), ("ab", Some("cde")));
        assert_eq!(parts[..3], ["a", "b", ""]);
        let (text, stopped, _) = run("acdacd");
        assert_eq!((text.as_str(), stopped), ("acdacd", None));
        let (text, stopped, _) = run("cdff");
        assert_eq!((text.as_str(), stopped.as_deref()), ("cd", Some("ff")));
    }
}
