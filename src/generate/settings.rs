//! How a text is written: every setting under the name that transformers has for it.

use super::{Error, Grammar, Result};
use crate::data::sampling::{Sampling, Unfit};
use crate::ops::choose_token::Choice;
use serde_json::{Map, Value as Json};
use std::path::Path;
use std::sync::Arc;

/// What becomes of a text that fills the model's context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Overflow {
    /// It ends there, and a longer prompt is refused.
    #[default]
    Stop,
    /// Its older half is forgotten and the rest read anew; of a longer prompt the last tokens count.
    Slide,
}

/// What a text owes to its context is made to count for more (context-aware decoding, Shi et al. 2023): scores are `(1 + alpha)` times those
/// behind the prompt less `alpha` times those behind the same without its context.
#[derive(Clone, Debug, PartialEq)]
pub struct Contrast {
    /// The prompt without its context.
    pub without: Vec<u32>,
    /// How much; zero is nothing.
    pub alpha: f64,
}

impl Contrast {
    /// Takes what is owed to everything but the context off scores.
    pub fn apply(&self, scores: &mut [f32], without: &[f32]) {
        let alpha = self.alpha as f32;
        scores.iter_mut().zip(without).for_each(|(s, w)| *s = (1.0 + alpha) * *s - alpha * w);
    }
}

/// How one text is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Tokens to write at most.
    pub max_new_tokens: usize,
    /// Tokens before which no end is chosen.
    pub min_new_tokens: usize,
    /// Draw each token by its probability; else the best is taken.
    pub do_sample: bool,
    /// Scores are divided by it before drawing; zero takes the best.
    pub temperature: f64,
    /// Draw from this many of the best tokens; zero means all.
    pub top_k: usize,
    /// Draw from the best tokens that together have this probability.
    pub top_p: f64,
    /// Draw from tokens with at least this share of the likeliest one's probability.
    pub min_p: f64,
    /// Draw from locally typical tokens that together have this probability.
    pub typical_p: f64,
    /// Draw from tokens with at least this probability.
    pub epsilon_cutoff: f64,
    /// The same with a limit that falls with the entropy.
    pub eta_cutoff: f64,
    /// Factor on the scores of tokens that stand in the text.
    pub repetition_penalty: f64,
    /// Taken off the score of a token that was written.
    pub presence_penalty: f64,
    /// Taken off the score of a token each time that it was written.
    pub frequency_penalty: f64,
    /// No run of so many tokens stands in the text twice; zero means that it may.
    pub no_repeat_ngram_size: usize,
    /// Runs of tokens that are never written.
    pub bad_words: Vec<Vec<u32>>,
    /// Tokens that end the text (`eos_token_id`).
    pub ends: Vec<u32>,
    /// Texts that end it (`stop_strings`), for which there must be a tokenizer. They are not given out.
    pub stop: Vec<String>,
    /// What is written must match this as a whole: a regular expression, or a JSON schema.
    pub grammar: Option<Arc<Grammar>>,
    /// What the text owes to its context counts for more; takes a second row.
    pub contrast: Option<Contrast>,
    /// Seed of the draws. The same seed gives the same text, whatever is written beside it.
    pub seed: u64,
    /// What becomes of a text that fills the context.
    pub overflow: Overflow,
}

impl Settings {
    /// The best token each time.
    pub fn greedy(max_new_tokens: usize) -> Settings {
        Settings {
            max_new_tokens,
            min_new_tokens: 0,
            do_sample: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            epsilon_cutoff: 0.0,
            eta_cutoff: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            no_repeat_ngram_size: 0,
            bad_words: vec![],
            ends: vec![],
            stop: vec![],
            grammar: None,
            contrast: None,
            seed: 0,
            overflow: Overflow::Stop,
        }
    }

    /// The same drawn by `sampling`.
    pub fn sampled(max_new_tokens: usize, sampling: &Sampling) -> Settings {
        Settings {
            do_sample: sampling.temperature > 0.0,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            seed: sampling.seed,
            ..Settings::greedy(max_new_tokens)
        }
    }

    /// True where chance decides.
    pub fn draws(&self) -> bool {
        self.do_sample && self.temperature != 0.0
    }

    /// True where scores are changed on the host: where a choice needs what was written before, or a filter that devices do not have.
    pub fn needs_host(&self) -> bool {
        let filters = self.typical_p < 1.0 || self.epsilon_cutoff > 0.0 || self.eta_cutoff > 0.0;
        (self.draws() && filters)
            || self.grammar.is_some()
            || self.contrast.is_some()
            || self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.no_repeat_ngram_size > 0
            || self.min_new_tokens > 0
            || !self.bad_words.is_empty()
    }

    /// How a device chooses the token at a place, drawn with this key.
    pub fn choice(&self, key: u32, place: u32, told: bool) -> Choice {
        if !self.draws() {
            return Choice { told, ..Choice::BEST };
        }
        Choice {
            temperature: self.temperature as f32,
            top_k: u32::try_from(self.top_k).unwrap_or(0),
            top_p: self.top_p as f32,
            min_p: self.min_p as f32,
            noise: Some([key, place]),
            told,
        }
    }

    /// Refuses what is out of range.
    pub fn check(&self) -> Result<()> {
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let finite = |x: f64| x.is_finite();
        let rules: [(&'static str, f64, bool, &'static str); 10] = [
            (
                "temperature",
                self.temperature,
                finite(self.temperature) && self.temperature >= 0.0,
                "zero or more",
            ),
            ("top_p", self.top_p, share(self.top_p) && self.top_p > 0.0, "above 0 and at most 1"),
            ("min_p", self.min_p, share(self.min_p), "0 to 1"),
            (
                "typical_p",
                self.typical_p,
                share(self.typical_p) && self.typical_p > 0.0,
                "above 0 and at most 1",
            ),
            (
                "epsilon_cutoff",
                self.epsilon_cutoff,
                (0.0..1.0).contains(&self.epsilon_cutoff),
                "0 to below 1",
            ),
            ("eta_cutoff", self.eta_cutoff, (0.0..1.0).contains(&self.eta_cutoff), "0 to below 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                finite(self.repetition_penalty) && self.repetition_penalty > 0.0,
                "above zero",
            ),
            ("presence_penalty", self.presence_penalty, finite(self.presence_penalty), "a number"),
            ("frequency_penalty", self.frequency_penalty, finite(self.frequency_penalty), "a number"),
            (
                "min_new_tokens",
                self.min_new_tokens as f64,
                self.min_new_tokens <= self.max_new_tokens,
                "at most max_new_tokens",
            ),
        ];
        if let Some((setting, got, _, expected)) = rules.into_iter().find(|(_, _, fits, _)| !fits) {
            return Err(Error::Setting(Unfit { setting, expected, got: got.to_string() }));
        }
        if let Some(contrast) = self.contrast.as_ref().filter(|c| !c.alpha.is_finite() || c.alpha < 0.0) {
            let (expected, got) = ("zero or more", contrast.alpha.to_string());
            return Err(Error::Setting(Unfit { setting: "context_alpha", expected, got }));
        }
        match self.stop.iter().any(String::is_empty) {
            true => {
                let expected = "texts with at least one character";
                Err(Error::Setting(Unfit { setting: "stop_strings", expected, got: "\"\"".into() }))
            }
            false => Ok(()),
        }
    }
}

/// Tokens that end a text: what a folder's `generation_config.json` says, or else the model's `config.json`; none where both are silent.
pub fn end_tokens(config: &Map<String, Json>, folder: Option<&Path>) -> Vec<u32> {
    let own = folder.and_then(|folder| std::fs::read(folder.join("generation_config.json")).ok());
    let own: Option<Map<String, Json>> = own.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let said = own.as_ref().and_then(|own| own.get("eos_token_id")).filter(|value| !value.is_null());
    match said.or(config.get("eos_token_id")) {
        Some(Json::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        let plain = Settings::greedy(3);
        assert!(plain.check().is_ok());
        for (name, wrong) in [
            ("temperature", Settings { temperature: f64::NAN, ..plain.clone() }),
            ("top_p", Settings { top_p: 0.0, ..plain.clone() }),
            ("min_p", Settings { min_p: 1.5, ..plain.clone() }),
            ("typical_p", Settings { typical_p: -0.1, ..plain.clone() }),
            ("epsilon_cutoff", Settings { epsilon_cutoff: 1.0, ..plain.clone() }),
            ("eta_cutoff", Settings { eta_cutoff: -1.0, ..plain.clone() }),
            ("repetition_penalty", Settings { repetition_penalty: 0.0, ..plain.clone() }),
            ("frequency_penalty", Settings { frequency_penalty: f64::INFINITY, ..plain.clone() }),
            ("min_new_tokens", Settings { min_new_tokens: 4, ..plain.clone() }),
            ("stop_strings", Settings { stop: vec![String::new()], ..plain.clone() }),
        ] {
            let error = wrong.check().unwrap_err().to_string();
            assert!(error.contains(name), "{name}: {error}");
        }
    }
}
