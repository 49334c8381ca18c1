//! Tokens hidden from a model that learns to guess them, as BERT does.
//!
//! Of the tokens a share is chosen to be guessed. Most of these are replaced by the mask, some by a token at random, and the rest
//! stay, so that the model cannot rely on seeing what it is asked for. Which ones follows from a key alone.

use super::tokenizer::Tokenizer;
use super::windows::{Batch, IGNORED};
use super::{Error, Result};
use crate::tensor::random::Stream;

/// How tokens are hidden.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Masking {
    /// Share of the tokens that are to be guessed.
    pub share: f64,
    /// Share of those that the mask replaces.
    pub hidden: f64,
    /// Share of those that a token at random replaces.
    pub random: f64,
    /// All tokens of a word are chosen, or none.
    pub whole_words: bool,
}

/// As in BERT.
impl Default for Masking {
    fn default() -> Self {
        Masking { share: 0.15, hidden: 0.8, random: 0.1, whole_words: false }
    }
}

/// Names of masks in vocabularies.
const MASKS: [&str; 2] = ["[MASK]", "<mask>"];

/// How a token stands to the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Joint {
    /// It begins a word.
    Starts,
    /// It goes on with a word.
    Continues,
    /// It is a letter: it goes on with a word if the one before it is one.
    Letter,
    /// It is never hidden.
    Special,
}

/// What hides the tokens of one vocabulary.
#[derive(Clone, Debug)]
pub struct Hider {
    masking: Masking,
    mask: u32,
    joints: Vec<Joint>,
}

/// The tokenizer's own mask, if it has one.
pub fn mask_of(tokenizer: &Tokenizer) -> Option<u32> {
    MASKS.iter().find_map(|name| tokenizer.token_id(name))
}

impl Hider {
    /// For a model that knows `vocabulary` tokens. Where the tokenizer has no mask, it is the model's first token beyond it.
    pub fn new(masking: Masking, tokenizer: &Tokenizer, vocabulary: usize) -> Result<Hider> {
        let known = tokenizer.vocabulary_size();
        let beyond = (known < vocabulary).then_some(known as u32);
        let mask = mask_of(tokenizer).or(beyond);
        let mask = mask.ok_or_else(|| Error::NoMask { names: MASKS.join(" or "), vocabulary })?;
        let special = tokenizer.special_tokens();
        let name = |id: u32| tokenizer.token_name(id).unwrap_or_default();
        let marks = (0..known as u32).any(|id| name(id).starts_with(['Ġ', '▁']));
        let joint = |id: u32| match name(id) {
            _ if special.contains(&id) => Joint::Special,
            name if name.starts_with("##") => Joint::Continues,
            name if marks && !name.starts_with(['Ġ', '▁', 'Ċ']) => Joint::Continues,
            name if name.chars().count() == 1 && name.chars().all(char::is_alphanumeric) && !marks => {
                Joint::Letter
            }
            _ => Joint::Starts,
        };
        Ok(Hider { masking, mask, joints: (0..known as u32).map(joint).collect() })
    }

    /// The batch with tokens hidden, and as targets what they were. At least one token is to be guessed.
    pub fn hide(&self, batch: &Batch, key: &[u32]) -> Batch {
        let mut stream = Stream::new(key);
        let mut hidden = Batch { targets: vec![IGNORED; batch.tokens.len()], ..batch.clone() };
        for row in 0..batch.rows {
            let from = row * batch.context;
            let tokens = &batch.tokens[from..from + batch.context];
            for word in self.words(tokens) {
                if stream.uniform() < self.masking.share {
                    word.for_each(|at| self.replace(&mut hidden, from + at, &mut stream));
                }
            }
        }
        let may = |token: &u32| self.joint(*token) != Joint::Special;
        if hidden.counted() == 0 && batch.tokens.iter().any(may) {
            let places: Vec<usize> = (0..batch.tokens.len()).filter(|&at| may(&batch.tokens[at])).collect();
            let at = places[stream.below(places.len() as u64) as usize];
            self.replace(&mut hidden, at, &mut stream);
        }
        hidden
    }

    fn joint(&self, token: u32) -> Joint {
        self.joints.get(token as usize).copied().unwrap_or(Joint::Special)
    }

    /// Stretches of tokens that are hidden together.
    fn words(&self, tokens: &[u32]) -> Vec<std::ops::Range<usize>> {
        let mut words: Vec<std::ops::Range<usize>> = vec![];
        let mut before = Joint::Special;
        for (at, &token) in tokens.iter().enumerate() {
            let joint = self.joint(token);
            let joins = match joint {
                Joint::Continues => before != Joint::Special,
                Joint::Letter => before == Joint::Letter,
                _ => false,
            };
            match words.last_mut() {
                Some(word) if joins && self.masking.whole_words => word.end = at + 1,
                _ if joint != Joint::Special => words.push(at..at + 1),
                _ => {}
            }
            before = joint;
        }
        words
    }

    fn replace(&self, batch: &mut Batch, at: usize, stream: &mut Stream) {
        let Masking { hidden, random, .. } = self.masking;
        batch.targets[at] = batch.tokens[at] as i32;
        let lot = stream.uniform();
        if lot < hidden {
            batch.tokens[at] = self.mask;
        } else if lot < hidden + random {
            batch.tokens[at] = stream.below(self.joints.len() as u64) as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "the old mill turns when the wind is high, and stands when it is low. ";

    fn batch(tokenizer: &Tokenizer, rows: usize, context: usize) -> Batch {
        let tokens = tokenizer.encode(&TEXT.repeat(rows * context / TEXT.len() + 1)).unwrap();
        let tokens = tokens[..rows * context].to_vec();
        Batch { targets: vec![0; tokens.len()], tokens, rows, context }
    }

    fn hider(masking: Masking) -> (Tokenizer, Hider) {
        let tokenizer = Tokenizer::characters(TEXT);
        let vocabulary = tokenizer.vocabulary_size() + 1;
        let hider = Hider::new(masking, &tokenizer, vocabulary).unwrap();
        (tokenizer, hider)
    }

    #[test]
    fn the_shares_are_those_asked_for_and_the_rest_stays() {
        let (tokenizer, hider) = hider(Masking::default());
        let batch = batch(&tokenizer, 64, 512);
        let hidden = hider.hide(&batch, &[7, 1]);
        let mask = tokenizer.vocabulary_size() as u32;
        let (mut masked, mut changed, mut kept) = (0.0, 0.0, 0.0);
        for ((&was, &is), &target) in batch.tokens.iter().zip(&hidden.tokens).zip(&hidden.targets) {
            if target == IGNORED {
                assert_eq!(was, is);
                continue;
            }
            assert_eq!(target, was as i32);
            match is {
                _ if is == mask => masked += 1.0,
                _ if is == was => kept += 1.0,
                _ => changed += 1.0,
            }
        }
        let all = masked + changed + kept;
        let near = |x: f64, expected: f64| assert!((x - expected).abs() < 0.02, "{x}, expected {expected}");
        near(all / batch.tokens.len() as f64, 0.15);
        near(masked / all, 0.8);
        // One in so many tokens at random is the one that was there.
        near(changed / all, 0.1);
        near(kept / all, 0.1);
    }

    #[test]
    fn the_key_alone_decides() {
        let (tokenizer, hider) = hider(Masking::default());
        let batch = batch(&tokenizer, 2, 64);
        assert_eq!(hider.hide(&batch, &[1, 2]), hider.hide(&batch, &[1, 2]));
        assert_ne!(hider.hide(&batch, &[1, 2]), hider.hide(&batch, &[1, 3]));
    }

    #[test]
    fn whole_words_are_hidden_whole() {
        let (tokenizer, hider) = hider(Masking { hidden: 1.0, random: 0.0, whole_words: true, share: 0.3 });
        let batch = batch(&tokenizer, 1, 68);
        let hidden = hider.hide(&batch, &[5]);
        assert!(hidden.counted() > 0 && hidden.counted() < 60);
        let letter = |token: u32| tokenizer.token_name(token).unwrap().chars().all(char::is_alphanumeric);
        for at in 1..batch.tokens.len() {
            if letter(batch.tokens[at - 1]) && letter(batch.tokens[at]) {
                let is = |at: usize| hidden.targets[at] == IGNORED;
                assert_eq!(is(at - 1), is(at), "a word is hidden in part at {at}");
            }
        }
    }

    #[test]
    fn something_is_always_to_be_guessed_and_a_mask_must_be_there() {
        let (tokenizer, hider) = hider(Masking { share: 0.0, ..Masking::default() });
        assert_eq!(hider.hide(&batch(&tokenizer, 1, 8), &[3]).counted(), 1);
        let error = Hider::new(Masking::default(), &tokenizer, tokenizer.vocabulary_size()).unwrap_err();
        assert!(matches!(error, Error::NoMask { .. }), "{error}");
    }
}
