//! Text that must match a regular expression: tokens after which it could not any more are never chosen.
//!
//! The expression is an automaton over bytes whose states are made as they are needed. A token may end within a character, and within
//! any part of the expression; what counts is that some text goes on from there.

use super::{Error, Result};
use crate::data::tokenizer::Tokenizer;
use regex_automata::hybrid::LazyStateID;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};
use std::sync::Mutex;

/// Bytes for the automaton's states; one that needs more is refused.
const MOST_BYTES: usize = 256 << 20;

/// What a text must match as a whole.
pub struct Grammar {
    pattern: String,
    automaton: DFA,
    cache: Mutex<Cache>,
    /// Bytes of each token; none of what is no text, which is never chosen.
    tokens: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Grammar").field("pattern", &self.pattern).finish()
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Grammar) -> bool {
        self.pattern == other.pattern && self.tokens == other.tokens
    }
}

impl Grammar {
    /// A regular expression, as the crate `regex` reads it; it stands for the whole text, without anchors.
    pub fn regex(pattern: &str, tokenizer: &Tokenizer) -> Result<Grammar> {
        let wrong = |reason: String| Error::Pattern { pattern: pattern.to_string(), reason };
        let config = DFA::config()
            .match_kind(MatchKind::All)
            .cache_capacity(MOST_BYTES)
            .minimum_cache_clear_count(Some(0));
        let built = DFA::builder().configure(config).build(pattern);
        let automaton = built.map_err(|error| {
            let mut reason = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(inner) = source {
                reason = inner.to_string();
                source = inner.source();
            }
            wrong(reason)
        })?;
        let cache = Mutex::new(automaton.create_cache());
        let tokens = bytes_of_tokens(tokenizer)?;
        Ok(Grammar { pattern: pattern.to_string(), automaton, cache, tokens })
    }

    /// The expression.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Bans every token after which what was written could not match any more. Tokens of `ends` are for whole matches. False where
    /// nothing is left to choose: the text is complete, or there are no tokens for what must come.
    pub fn restrict(&self, scores: &mut [f32], written: &[u32], ends: &[u32]) -> bool {
        let mut cache = self.cache.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let cache = &mut *cache;
        let state = self.after(cache, written);
        let complete = state.is_some_and(|state| self.is_match(cache, state));
        let mut left = false;
        for (token, score) in scores.iter_mut().enumerate() {
            let open = match ends.contains(&(token as u32)) {
                true => complete,
                false => {
                    let bytes = self.tokens.get(token).filter(|bytes| !bytes.is_empty());
                    let next = |state| bytes.and_then(|bytes| self.walk(cache, state, bytes));
                    state.and_then(next).is_some()
                }
            };
            if !open {
                *score = f32::NEG_INFINITY;
            }
            left |= *score > f32::NEG_INFINITY;
        }
        left
    }

    /// True if something may follow what was written: a token, or one of `ends` behind a whole match.
    pub fn is_open(&self, written: &[u32], ends: &[u32]) -> bool {
        let most = ends.iter().map(|end| *end as usize + 1).max().unwrap_or(0);
        self.restrict(&mut vec![0.0; self.tokens.len().max(most)], written, ends)
    }

    /// True if the text of these tokens matches.
    pub fn matches(&self, written: &[u32]) -> bool {
        let mut cache = self.cache.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let state = self.after(&mut cache, written);
        state.is_some_and(|state| self.is_match(&mut cache, state))
    }

    fn after(&self, cache: &mut Cache, written: &[u32]) -> Option<LazyStateID> {
        let config = start::Config::new().anchored(Anchored::Yes);
        let mut state = self.automaton.start_state(cache, &config).ok()?;
        for &token in written {
            state = self.walk(cache, state, self.tokens.get(token as usize)?)?;
        }
        Some(state)
    }

    fn walk(&self, cache: &mut Cache, mut state: LazyStateID, bytes: &[u8]) -> Option<LazyStateID> {
        for &byte in bytes {
            state = self.automaton.next_state(cache, state, byte).ok()?;
            if state.is_dead() || state.is_quit() {
                return None;
            }
        }
        // A match is told one byte later: a state that only says that one ended before leads nowhere.
        let told = state.is_match() && !self.is_match(cache, state) && !self.goes_on(cache, state);
        (!told).then_some(state)
    }

    fn goes_on(&self, cache: &mut Cache, state: LazyStateID) -> bool {
        let next = |byte| self.automaton.next_state(cache, state, byte);
        (0..=255).map(next).any(|next| next.is_ok_and(|next| !next.is_dead() && !next.is_quit()))
    }

    fn is_match(&self, cache: &mut Cache, state: LazyStateID) -> bool {
        self.automaton.next_eoi_state(cache, state).is_ok_and(|state| state.is_match())
    }
}

/// Bytes that each token adds to a text.
fn bytes_of_tokens(tokenizer: &Tokenizer) -> Result<Vec<Vec<u8>>> {
    let special = tokenizer.special_tokens();
    // Some decoders treat the first token of a text in their own way, so that one stands before.
    let before: Vec<u32> = (0..tokenizer.vocabulary_size() as u32)
        .find(|id| {
            !special.contains(id) && tokenizer.decode(&[*id]).is_ok_and(|text| text.len() == 1 && text != " ")
        })
        .into_iter()
        .collect();
    let known = tokenizer.decode(&before)?;
    let mut all = vec![];
    for id in 0..tokenizer.vocabulary_size() as u32 {
        let bytes = match special.contains(&id) {
            true => vec![],
            false => {
                let whole = tokenizer.decode(&[&before[..], &[id]].concat())?;
                let added = whole.strip_prefix(known.as_str()).unwrap_or("");
                let name = tokenizer.token_name(id).unwrap_or_default();
                match added.contains(char::REPLACEMENT_CHARACTER) || added.is_empty() {
                    true => bytes_of_name(&name),
                    false => added.as_bytes().to_vec(),
                }
            }
        };
        all.push(bytes);
    }
    Ok(all)
}

/// Bytes of a token that is no whole character, by its name: `<0x0A>`, or letters that stand for bytes as GPT-2 has them.
fn bytes_of_name(name: &str) -> Vec<u8> {
    let digits = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    if let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
        return vec![byte];
    }
    name.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_default()
}

/// The byte that a letter stands for: printable ones for themselves, the others in their order from U+0100 on.
fn byte_of(letter: char) -> Option<u8> {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(letter) {
        code @ 0..=255 => u8::try_from(code).ok().filter(|byte| plain(*byte)),
        code => (0..=255u8).filter(|byte| !plain(*byte)).nth((code - 256) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::processors::greatest;

    /// Writes by scores that prefer later tokens, and a little less with each place.
    fn write(grammar: &Grammar, ends: &[u32], vocabulary: usize) -> Vec<u32> {
        let mut written = vec![];
        for place in 0..40 {
            let mut scores: Vec<f32> =
                (0..vocabulary).map(|token| ((token * 7 + place * 3) % 11) as f32).collect();
            if !grammar.restrict(&mut scores, &written, ends) {
                break;
            }
            let token = greatest(&scores);
            if ends.contains(&token) {
                break;
            }
            written.push(token);
        }
        written
    }

    #[test]
    fn what_is_written_matches_and_ends_only_where_it_is_whole() {
        let tokenizer = Tokenizer::characters("0123456789-abc \"{}:é");
        let vocabulary = tokenizer.vocabulary_size();
        for pattern in [r"[0-9]{3}-[0-9]{2}", r#"\{"a": (b|cab)\}"#, "(ab)+c", "é{2}"] {
            let grammar = Grammar::regex(pattern, &tokenizer).unwrap();
            let written = write(&grammar, &[], vocabulary);
            let text = tokenizer.decode(&written).unwrap();
            let prefix = regex_automata::meta::Regex::new(&format!("^(?:{pattern})$")).unwrap();
            assert!(prefix.is_match(&text) || pattern == "(ab)+c", "{pattern}: {text}");
            assert_eq!(grammar.matches(&written), prefix.is_match(&text), "{pattern}: {text}");
        }
        let grammar = Grammar::regex("a*", &tokenizer).unwrap();
        let end = 5;
        let mut scores = vec![0.0; vocabulary];
        assert!(grammar.restrict(&mut scores, &[], &[end]) && scores[5] == 0.0);
        let open = scores.iter().filter(|score| **score == 0.0).count();
        assert_eq!(open, 2);
    }

    #[test]
    fn tokens_that_are_parts_of_characters_are_walked_by_their_bytes() {
        let tokenizer = Tokenizer::train_byte_pair("é é ab", 258).unwrap();
        let grammar = Grammar::regex("(é|日)+", &tokenizer).unwrap();
        for text in ["é", "日é", "日日日"] {
            let ids = tokenizer.encode(text).unwrap();
            assert!(grammar.matches(&ids), "{text}: {ids:?}");
            for at in 0..ids.len() {
                let mut scores = vec![0.0; tokenizer.vocabulary_size()];
                grammar.restrict(&mut scores, &ids[..at], &[]);
                assert_eq!(scores[ids[at] as usize], 0.0, "{text} at {at}");
            }
        }
        assert!(!grammar.matches(&tokenizer.encode("a").unwrap()));
    }

    #[test]
    fn a_bad_expression_is_refused_with_its_reason() {
        let tokenizer = Tokenizer::characters("ab");
        let error = Grammar::regex("a(b", &tokenizer).unwrap_err().to_string();
        assert!(error.contains("a(b") && error.contains("unclosed"), "{error}");
    }
}
