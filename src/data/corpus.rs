//! The built-in corpus: simple stories from a grammar, with the entropy that a perfect model would reach.
//!
//! It is what kiln trains on when the user names no data. Story `n` of a seed is always the same text, on every
//! machine, and the exact floor of the loss is known, so a run can print how far it still is from it.

use std::sync::OnceLock;

use crate::data::Result;
use crate::data::grammar::{Grammar, Measure};
use crate::data::random::Random;
use crate::data::tokenizer::Tokenizer;

/// Characters of the corpus unless asked otherwise: about a mebibyte, all of it ASCII.
pub const DEFAULT_CHARACTERS: usize = 1 << 20;

/// What stands between two stories. It occurs nowhere else.
pub const SEPARATOR: &str = "\n\n";

/// The grammar of the built-in stories.
pub fn stories() -> &'static Grammar {
    static STORIES: OnceLock<Grammar> = OnceLock::new();
    STORIES.get_or_init(|| {
        Grammar::read(include_str!("../../assets/stories.grammar")).expect("the built-in grammar is tested")
    })
}

/// Whole stories, at least `characters` long together, each ended by [`SEPARATOR`].
pub fn generate(characters: usize, seed: u64) -> String {
    let grammar = stories();
    let mut text = String::with_capacity(characters + 4096);
    let mut story = 0;
    // The stories are ASCII: bytes are characters.
    while text.len() < characters {
        text.push_str(&grammar.write(&mut Random::new(seed, story)));
        story += 1;
    }
    text
}

/// The lowest loss that any model can expect on the endless stream of stories, in nats per character.
///
/// A model that sees a context of a few sentences cannot quite reach it: the names were said before.
pub fn nats_per_character() -> f64 {
    stories().measure().nats_per_character()
}

/// What a stretch of stories costs a reader who knows the grammar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    /// `-log p` of the whole stories in the stretch, in nats.
    pub nats: f64,
    /// Characters of those stories.
    pub characters: usize,
    /// Tokens of those stories.
    pub tokens: usize,
    /// How many stories there are.
    pub stories: usize,
}

impl Floor {
    /// Nats per character of just these stories.
    pub fn nats_per_character(&self) -> f64 {
        self.nats / self.characters as f64
    }

    /// Nats per token of just these stories: what to compare a validation loss with.
    pub fn nats_per_token(&self) -> f64 {
        self.nats / self.tokens as f64
    }
}

/// The floor of a stretch of the corpus, such as its validation part, in the tokens of `tokenizer`. A story that
/// is cut off at either end is left out; `None` if no whole story remains.
pub fn floor(text: &str, tokenizer: &Tokenizer) -> Result<Option<Floor>> {
    let Some(whole) = whole_stories(text) else {
        return Ok(None);
    };
    let mut floor = Floor { nats: 0.0, characters: 0, tokens: tokenizer.encode(whole)?.len(), stories: 0 };
    for story in whole.split_inclusive(SEPARATOR) {
        floor.nats -= stories().log_probability(story)?;
        floor.characters += story.chars().count();
        floor.stories += 1;
    }
    Ok(Some(floor))
}

/// The part of `text` from the first beginning of a story to the last end of one.
fn whole_stories(text: &str) -> Option<&str> {
    let end = text.rfind(SEPARATOR)? + SEPARATOR.len();
    let text = &text[..end];
    let first = text.find(SEPARATOR)? + SEPARATOR.len();
    // Only the first piece may be cut off; it is whole if the grammar has it.
    let start = if stories().log_probability(&text[..first]).is_ok() { 0 } else { first };
    (start < end).then(|| &text[start..])
}

/// Exact expectations over one story, its separator included.
pub fn measure() -> Measure {
    stories().measure()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_story_has_one_derivation_because_no_two_choices_can_go_on_alike() {
        assert_eq!(stories().ambiguity(), None);
    }

    #[test]
    fn every_story_is_found_again_with_one_derivation_and_the_mean_surprise_is_the_exact_entropy() {
        let count = 3000;
        let (mut sum, mut squares, mut lengths) = (0.0, 0.0, 0.0);
        for number in 0..count {
            let story = stories().write(&mut Random::new(2024, number));
            let derivations = stories().derivations(&story).unwrap();
            assert_eq!(derivations.count, 1, "{story}");
            let nats = -derivations.log_probability;
            (sum, squares, lengths) = (sum + nats, squares + nats * nats, lengths + story.len() as f64);
        }
        let count = count as f64;
        let mean = sum / count;
        let standard_error = ((squares / count - mean * mean) / count).sqrt();
        let exact = measure();
        assert!(
            (mean - exact.nats).abs() < 4.0 * standard_error,
            "{mean} +- {standard_error}, exact {}",
            exact.nats
        );
        assert!(
            (lengths / count / exact.characters - 1.0).abs() < 0.02,
            "{} and {}",
            lengths / count,
            exact.characters
        );
    }

    #[test]
    fn stories_end_in_the_separator_and_hold_it_nowhere_else() {
        for number in 0..500 {
            let story = stories().write(&mut Random::new(1, number));
            assert!(story.is_ascii() && !story.starts_with('\n'), "{story}");
            assert_eq!(story.find(SEPARATOR), Some(story.len() - SEPARATOR.len()), "{story}");
            assert!(!story.contains("  ") && !story.contains(" .") && !story.contains(" ,"), "{story}");
        }
    }

    #[test]
    fn the_corpus_is_a_function_of_its_seed_and_grows_at_its_end() {
        let long = generate(20_000, 7);
        assert!(long.len() >= 20_000 && long.len() < 22_000);
        assert!(long.starts_with(&generate(5_000, 7)));
        assert_ne!(generate(5_000, 8)[..200], long[..200]);
    }

    #[test]
    fn the_floor_of_a_stretch_counts_only_whole_stories() {
        let text = generate(30_000, 3);
        let tokenizer = Tokenizer::characters(&text);
        let whole = floor(&text, &tokenizer).unwrap().unwrap();
        assert_eq!(whole.characters, text.len());
        assert_eq!(whole.tokens, text.len());

        let first = text.find(SEPARATOR).unwrap() + SEPARATOR.len();
        let cut = floor(&text[5..text.len() - 5], &tokenizer).unwrap().unwrap();
        assert_eq!(cut.stories, whole.stories - 2);
        assert!(cut.characters < whole.characters - first);
        assert_eq!(floor(&text[5..100], &tokenizer).unwrap(), None);
        let close = cut.nats_per_character() / nats_per_character();
        assert!((0.9..1.1).contains(&close), "{close}");
    }
}
