//! The form of a JSON schema. The crate `llguidance` reads the schema and says which tokens may follow; here it is asked as a function of
//! what was written, with readers of several texts kept, so that each token is read once.

use super::{Open, Spelling};
use crate::generate::{Error, Result};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value as Json, json};
use std::sync::{Arc, Mutex};

/// Texts of which the reader is kept.
const MOST_HELD: usize = 32;

/// Bytes of a token most; the trie has no room for longer ones, which are never chosen.
const MOST_BYTES: usize = 512;

/// White space between the parts of a text. Without a bound, a model that has not learned JSON writes nothing else.
const SPACE: &str = r"\x20|\r?\n[\x20\x09]{0,40}";

/// What a text must be valid by.
pub(super) struct Schema {
    fresh: Matcher,
    /// The one that was used last stands last.
    held: Mutex<Vec<Held>>,
}

/// A text with its reader.
struct Held {
    written: Vec<u32>,
    reader: Matcher,
    open: Option<Open>,
}

impl Schema {
    /// Reads a schema; with it what its reader warns of.
    pub fn new(schema: &Json, spelling: &Spelling) -> Result<(Schema, Vec<String>)> {
        let refused = |reason: String| Error::Schema { reason };
        let factory = spelling.reader.get_or_init(|| reader(spelling.tokens()));
        let factory = factory.as_ref().map_err(|reason| refused(reason.clone()))?;
        let mut schema = if *schema == Json::Bool(true) { json!({}) } else { schema.clone() };
        if let Some(keys) = schema.as_object_mut() {
            keys.entry("x-guidance").or_insert_with(|| json!({ "whitespace_pattern": SPACE }));
        }
        let parser = factory.create_parser(TopLevelGrammar::from_json_schema(schema));
        let mut fresh = Matcher::new(Ok(parser.map_err(|error| refused(said(error)))?));
        let warnings = fresh.grammar_warnings();
        Ok((Schema { fresh, held: Mutex::new(vec![]) }, warnings))
    }

    /// What may follow these tokens; `tokens` are the bytes of each.
    pub fn open(&self, written: &[u32], tokens: &[Vec<u8>]) -> Open {
        let mut held = self.held.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let known = held.iter().position(|held| held.written == written && held.open.is_some());
        let of_text = match known {
            Some(at) => Some(held.remove(at)),
            None => self.read(&mut held, written, tokens),
        };
        let nothing = Open { tokens: vec![false; tokens.len()], complete: false };
        let Some(mut of_text) = of_text else { return nothing };
        let open = of_text.open.take().unwrap_or_else(|| of_text.ask(tokens.len()));
        if !of_text.reader.is_error() {
            of_text.open = Some(open.clone());
            held.push(of_text);
        }
        open
    }

    /// A reader that has read these tokens: one that has read the beginning goes on, or else a copy of the nearest goes back and then on.
    /// None where they do not follow the schema.
    fn read(&self, held: &mut Vec<Held>, written: &[u32], tokens: &[Vec<u8>]) -> Option<Held> {
        let spelled = |token: &u32| tokens.get(*token as usize).is_some_and(|bytes| !bytes.is_empty());
        if !written.iter().all(spelled) {
            return None;
        }
        let common = |other: &Held| other.written.iter().zip(written).take_while(|(a, b)| a == b).count();
        let nearest = (0..held.len()).max_by_key(|&at| common(&held[at]));
        let mut of_text = match nearest.map(|at| (at, common(&held[at]))) {
            Some((at, shared)) if shared == held[at].written.len() => held.remove(at),
            Some((at, shared)) if shared > 0 => {
                let mut reader = held[at].reader.clone();
                reader.rollback(held[at].written.len() - shared).ok()?;
                Held { written: written[..shared].to_vec(), reader, open: None }
            }
            _ => Held { written: vec![], reader: self.fresh.clone(), open: None },
        };
        if held.len() >= MOST_HELD {
            held.remove(0);
        }
        let rest = &written[of_text.written.len()..];
        if of_text.reader.try_consume_tokens(rest).ok()? < rest.len() {
            return None;
        }
        Some(Held { written: written.to_vec(), open: None, ..of_text })
    }
}

impl Held {
    fn ask(&mut self, count: usize) -> Open {
        let complete = self.reader.is_accepting().unwrap_or(false);
        let mask = match self.reader.is_stopped() {
            true => None,
            // An error means that no token is left, or that the schema asks for more work than its reader does.
            false => self.reader.compute_mask().ok(),
        };
        let may = |token| mask.as_ref().is_some_and(|mask| mask.is_allowed(token as u32));
        Open { tokens: (0..count).map(may).collect(), complete }
    }
}

/// What makes readers over these tokens. Behind them stands one that ends texts, of which there may be none or several in truth.
fn reader(tokens: &[Vec<u8>]) -> Result<ParserFactory, String> {
    // 0xff begins what is no text there, and is part of no character.
    let is_text =
        |bytes: &&Vec<u8>| bytes.len() <= MOST_BYTES && !bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER);
    let mut words: Vec<Vec<u8>> =
        tokens.iter().map(|bytes| Some(bytes).filter(is_text).cloned().unwrap_or_default()).collect();
    words.push([&[TokTrie::SPECIAL_TOKEN_MARKER], "<end>".as_bytes()].concat());
    let info = TokRxInfo::new(words.len() as u32, tokens.len() as u32);
    let spelled: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
    let mut factory = ParserFactory::new_simple(&spelled).map_err(said)?;
    factory.quiet().limits_mut().verbose_errors = false;
    Ok(factory)
}

/// An error with what caused it, each once.
fn said(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> String {
    let error = error.into();
    let mut all = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !all.contains(&words) {
            all = format!("{all}: {words}");
        }
        cause = inner.source();
    }
    all
}
