//! The form of a regular expression: an automaton over bytes whose states are made as they are needed.

use super::Open;
use crate::generate::{Error, Result};
use regex_automata::hybrid::LazyStateID;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};
use std::sync::Mutex;

/// Bytes for the automaton's states; one that needs more is refused.
const MOST_BYTES: usize = 256 << 20;

/// What a text must match as a whole.
pub(super) struct Expression {
    automaton: DFA,
    cache: Mutex<Cache>,
}

impl Expression {
    /// Reads an expression.
    pub fn new(pattern: &str) -> Result<Expression> {
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
            Error::Pattern { pattern: pattern.to_string(), reason }
        })?;
        let cache = Mutex::new(automaton.create_cache());
        Ok(Expression { automaton, cache })
    }

    /// What may follow these tokens; `tokens` are the bytes of each.
    pub fn open(&self, written: &[u32], tokens: &[Vec<u8>]) -> Open {
        let mut cache = self.cache.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let cache = &mut *cache;
        let Some(state) = self.after(cache, written, tokens) else {
            return Open { tokens: vec![false; tokens.len()], complete: false };
        };
        let mut may = |bytes: &Vec<u8>| !bytes.is_empty() && self.walk(cache, state, bytes).is_some();
        let open = tokens.iter().map(&mut may).collect();
        Open { tokens: open, complete: self.is_match(cache, state) }
    }

    fn after(&self, cache: &mut Cache, written: &[u32], tokens: &[Vec<u8>]) -> Option<LazyStateID> {
        let config = start::Config::new().anchored(Anchored::Yes);
        let mut state = self.automaton.start_state(cache, &config).ok()?;
        for &token in written {
            state = self.walk(cache, state, tokens.get(token as usize)?)?;
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

#[cfg(test)]
mod tests {
    use crate::data::tokenizer::Tokenizer;
    use crate::generate::processors::greatest;
    use crate::generate::{Grammar, Spelling};

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
            let grammar = Grammar::regex(pattern, &Spelling::of(&tokenizer).unwrap()).unwrap();
            let written = write(&grammar, &[], vocabulary);
            let text = tokenizer.decode(&written).unwrap();
            let prefix = regex_automata::meta::Regex::new(&format!("^(?:{pattern})$")).unwrap();
            assert!(prefix.is_match(&text) || pattern == "(ab)+c", "{pattern}: {text}");
            assert_eq!(grammar.matches(&written), prefix.is_match(&text), "{pattern}: {text}");
        }
        let grammar = Grammar::regex("a*", &Spelling::of(&tokenizer).unwrap()).unwrap();
        let end = 5;
        let mut scores = vec![0.0; vocabulary];
        assert!(grammar.restrict(&mut scores, &[], &[end]) && scores[5] == 0.0);
        let open = scores.iter().filter(|score| **score == 0.0).count();
        assert_eq!(open, 2);
    }

    #[test]
    fn tokens_that_are_parts_of_characters_are_walked_by_their_bytes() {
        let tokenizer = Tokenizer::train_byte_pair("é é ab", 258).unwrap();
        let grammar = Grammar::regex("(é|日)+", &Spelling::of(&tokenizer).unwrap()).unwrap();
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
        let error = Grammar::regex("a(b", &Spelling::of(&tokenizer).unwrap()).unwrap_err().to_string();
        assert!(error.contains("a(b") && error.contains("unclosed"), "{error}");
    }
}
