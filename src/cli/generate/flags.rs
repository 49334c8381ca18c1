//! The flags that say how a text is written: names are those of transformers.

use crate::cli::Usage;
use crate::data::sampling::Sampling;
use crate::data::tokenizer::Tokenizer;
use crate::generate::{
    Beams, Contrast, Contrastive, EarlyStopping, Error, Grammar, Overflow, Settings, Spelling,
};
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value as Json;
use std::path::PathBuf;
use std::sync::Arc;

/// How a text is written.
#[derive(Args, Serialize)]
pub struct Flags {
    /// Tokens to write at most; the model's own end-of-text token ends the text sooner.
    #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub max_new_tokens: usize,
    /// Tokens before which the text does not end.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    min_new_tokens: usize,
    /// Draw each token by its probability.
    #[arg(long)]
    do_sample: bool,
    /// Divide the scores by this before drawing; 0 takes the best token.
    #[arg(long, value_name = "NUMBER")]
    temperature: Option<f64>,
    /// Draw from this many of the best tokens; 0 means all.
    #[arg(long, value_name = "COUNT")]
    top_k: Option<usize>,
    /// Draw from the best tokens that together have this probability.
    #[arg(long, value_name = "SHARE")]
    top_p: Option<f64>,
    /// Draw from tokens with at least this share of the likeliest one's probability.
    #[arg(long, value_name = "SHARE")]
    min_p: Option<f64>,
    /// Draw from locally typical tokens that together have this probability.
    #[arg(long, value_name = "SHARE")]
    typical_p: Option<f64>,
    /// Draw from tokens with at least this probability.
    #[arg(long, value_name = "SHARE")]
    epsilon_cutoff: Option<f64>,
    /// The same, with a limit that falls where the model is unsure.
    #[arg(long, value_name = "SHARE")]
    eta_cutoff: Option<f64>,
    /// Make the scores of tokens that stand in the text worse by this factor.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Take this off the score of every token that was written.
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f64,
    /// Take this off the score of a token each time that it was written.
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f64,
    /// No run of this many tokens stands in the text twice; 0 means that it may.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    no_repeat_ngram_size: usize,
    /// Never write this. May be given again.
    #[arg(long, value_name = "TEXT")]
    bad_words: Vec<String>,
    /// End where this was written, which is not shown. May be given again.
    #[arg(long, value_name = "TEXT")]
    stop_strings: Vec<String>,
    /// What is written must match this regular expression as a whole.
    #[arg(long, value_name = "PATTERN")]
    regex: Option<String>,
    /// What is written must be JSON that is valid by this schema: a file, or the schema itself. true is any JSON.
    #[arg(long, value_name = "SCHEMA", conflicts_with = "regex")]
    json_schema: Option<String>,
    /// What is written must be a JSON object.
    #[arg(long, conflicts_with_all = ["regex", "json_schema"])]
    json_object: bool,
    /// Put this before every prompt, and make what the text owes to it count for more.
    #[arg(long, value_name = "TEXT")]
    context: Option<String>,
    /// Beside --context: how much more it counts; 0 is nothing. [default: 0.5]
    #[arg(long, value_name = "NUMBER", requires = "context")]
    context_alpha: Option<f64>,
    /// Of the --top-k likeliest tokens [default: 4] take the one that is likely and unlike the text before it: contrastive search, with
    /// this share for unlikeness.
    #[arg(long, value_name = "SHARE", conflicts_with_all = [
        "do_sample", "temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "context", "num_beams",
        "num_return_sequences", "assistant_model", "dola_layers",
    ])]
    penalty_alpha: Option<f64>,
    /// Take scores against those of early layers, low, high or by number such as 0,2,4, whichever is farthest at each token (DoLa).
    #[arg(long, value_name = "LAYERS", conflicts_with = "assistant_model")]
    pub dola_layers: Option<String>,
    /// Let this smaller model, such as a pruned or distilled copy, write ahead; the text stays what the model writes alone.
    #[arg(long, value_name = "MODEL")]
    pub assistant_model: Option<PathBuf>,
    /// Beside --assistant-model: tokens that it writes ahead. [default: 5]
    #[arg(long, value_name = "COUNT", requires = "assistant_model")]
    num_assistant_tokens: Option<usize>,
    /// Write so many texts at once, and keep the likeliest as wholes.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    num_beams: usize,
    /// Give so many texts: the best of the beams, or as many drawn ones.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    num_return_sequences: usize,
    /// Of beams: the power of a text's length by which its sum of log-probabilities is divided. Above 0 longer texts gain. [default: 1]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// Of beams: stop once as many texts have ended as there are beams (true), when better ones are unlikely (false), or when there can
    /// be none (never). [default: false]
    #[arg(long, value_name = "WHEN", value_enum, num_args = 0..=1, default_missing_value = "true")]
    early_stopping: Option<Stopping>,
    /// Of beams: groups that choose one after the other.
    #[arg(long, value_name = "COUNT")]
    num_beam_groups: Option<usize>,
    /// Of groups: what a token's score loses for each beam of an earlier group that has just chosen it.
    #[arg(long, value_name = "NUMBER")]
    diversity_penalty: Option<f64>,
    /// Seed of the draws: the same seed gives the same text.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What becomes of a text that fills the model's context, and of a prompt that is longer.
    #[arg(long, value_enum, default_value_t = Full::Slide)]
    overflow: Full,
}

/// When beams stop.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
enum Stopping {
    /// Once as many texts have ended as there are beams.
    True,
    /// When better ones are unlikely.
    False,
    /// When there can be no better ones.
    Never,
}

/// What becomes of a text that fills the context.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
enum Full {
    /// Its older half is forgotten; of a longer prompt the last tokens are used.
    Slide,
    /// It ends; a longer prompt is refused.
    Stop,
}

impl Flags {
    /// True where chance decides: greedy unless something speaks of it.
    fn draws(&self) -> bool {
        let shares = [self.temperature, self.top_p, self.min_p, self.typical_p];
        let more = [self.epsilon_cutoff, self.eta_cutoff];
        let top_k = self.top_k.is_some() && self.penalty_alpha.is_none();
        self.do_sample || top_k || shares.iter().chain(&more).any(Option::is_some)
    }

    /// Settings of a model without a session.
    pub fn sampling(&self) -> Sampling {
        if !self.draws() {
            return Sampling::greedy();
        }
        Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(1.0),
            seed: self.seed,
        }
    }

    /// The flags given that only a session has, for models without one.
    pub fn beyond_sampling(&self) -> Option<&'static str> {
        let given = [
            ("--min-new-tokens", self.min_new_tokens > 0),
            ("--min-p", self.min_p.is_some()),
            ("--typical-p", self.typical_p.is_some()),
            ("--epsilon-cutoff", self.epsilon_cutoff.is_some()),
            ("--eta-cutoff", self.eta_cutoff.is_some()),
            ("--repetition-penalty", self.repetition_penalty != 1.0),
            ("--presence-penalty", self.presence_penalty != 0.0),
            ("--frequency-penalty", self.frequency_penalty != 0.0),
            ("--no-repeat-ngram-size", self.no_repeat_ngram_size > 0),
            ("--bad-words", !self.bad_words.is_empty()),
            ("--stop-strings", !self.stop_strings.is_empty()),
            ("--regex", self.regex.is_some()),
            ("--json-schema", self.json_schema.is_some()),
            ("--json-object", self.json_object),
            ("--context", self.context.is_some()),
            ("--penalty-alpha", self.penalty_alpha.is_some()),
            ("--dola-layers", self.dola_layers.is_some()),
            ("--assistant-model", self.assistant_model.is_some()),
            ("--num-beams", self.num_beams > 1),
            ("--num-return-sequences", self.num_return_sequences > 1),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    /// How each text is written.
    pub fn settings(&self, tokenizer: Option<&Tokenizer>, ends: &[u32]) -> anyhow::Result<Settings> {
        let mut bad_words = vec![];
        for word in &self.bad_words {
            let tokenizer = tokenizer.ok_or(Error::NoTokenizer)?;
            // A word inside a text mostly begins with the space before it.
            for text in [word.clone(), format!(" {word}")] {
                let ids = tokenizer.encode(&text)?;
                if !ids.is_empty() && !bad_words.contains(&ids) {
                    bad_words.push(ids);
                }
            }
        }
        let grammar = self.grammar(tokenizer)?.map(Arc::new);
        let settings = Settings {
            grammar,
            min_new_tokens: self.min_new_tokens,
            min_p: self.min_p.unwrap_or(0.0),
            typical_p: self.typical_p.unwrap_or(1.0),
            epsilon_cutoff: self.epsilon_cutoff.unwrap_or(0.0),
            eta_cutoff: self.eta_cutoff.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            bad_words,
            ends: ends.to_vec(),
            stop: self.stop_strings.clone(),
            seed: self.seed,
            overflow: if self.overflow == Full::Slide { Overflow::Slide } else { Overflow::Stop },
            ..Settings::sampled(self.max_new_tokens, &self.sampling())
        };
        settings.check()?;
        Ok(settings)
    }

    /// What a text must match.
    fn grammar(&self, tokenizer: Option<&Tokenizer>) -> anyhow::Result<Option<Grammar>> {
        if self.regex.is_none() && self.json_schema.is_none() && !self.json_object {
            return Ok(None);
        }
        let absent = || {
            let text = "--regex, --json-schema and --json-object need the model's tokenizer.json, which its folder does not have";
            Usage(text.into())
        };
        let spelling = Spelling::of(tokenizer.ok_or_else(absent)?)?;
        let grammar = match (&self.regex, &self.json_schema) {
            (Some(pattern), _) => Grammar::regex(pattern, &spelling)?,
            (_, Some(schema)) => Grammar::schema(&schema_of(schema)?, &spelling)?,
            _ => Grammar::json_object(&spelling)?,
        };
        grammar.warnings().iter().for_each(|warning| eprintln!("schema   {warning}"));
        Ok(Some(grammar))
    }

    /// Puts the context before prompts: of each the settings with which it is written, and the whole prompt.
    pub fn in_context(
        &self,
        tokenizer: Option<&Tokenizer>,
        prompts: Vec<Vec<u32>>,
        settings: &Settings,
    ) -> anyhow::Result<Vec<(Vec<u32>, Settings)>> {
        let Some(context) = &self.context else {
            return Ok(prompts.into_iter().map(|prompt| (prompt, settings.clone())).collect());
        };
        let before = tokenizer.ok_or(Error::NoTokenizer)?.encode_with_special(context)?;
        let alpha = self.context_alpha.unwrap_or(0.5);
        let with = |prompt: Vec<u32>| {
            let contrast = Some(Contrast { without: prompt.clone(), alpha });
            let settings = Settings { contrast, ..settings.clone() };
            settings.check()?;
            Ok(([&before[..], &prompt].concat(), settings))
        };
        prompts.into_iter().map(with).collect()
    }

    /// How contrastive search is led, if there is any.
    pub fn contrastive(&self) -> anyhow::Result<Option<Contrastive>> {
        let Some(penalty_alpha) = self.penalty_alpha else { return Ok(None) };
        let contrastive = Contrastive { penalty_alpha, top_k: self.top_k.unwrap_or(4) };
        contrastive.check()?;
        Ok(Some(contrastive))
    }

    /// True where a text is put before every prompt.
    pub fn has_context(&self) -> bool {
        self.context.is_some()
    }

    /// Tokens that a draft writes ahead.
    pub fn ahead(&self) -> usize {
        self.num_assistant_tokens.unwrap_or(5)
    }

    /// How many texts each prompt gives.
    pub fn texts(&self) -> usize {
        self.num_return_sequences
    }

    /// How beams are led, if there are any. What does not go together is refused.
    pub fn beams(&self) -> anyhow::Result<Option<Beams>> {
        let usage = |text: String| Err(Usage(text).into());
        let of_beams = [
            ("--length-penalty", self.length_penalty.is_some()),
            ("--early-stopping", self.early_stopping.is_some()),
            ("--num-beam-groups", self.num_beam_groups.is_some()),
            ("--diversity-penalty", self.diversity_penalty.is_some()),
        ];
        if self.num_beams == 1 {
            if let Some((name, _)) = of_beams.into_iter().find(|(_, given)| *given) {
                return usage(format!("{name} is of beams, and there is one\n  hint: --num-beams 4"));
            }
            if self.num_return_sequences > 1 && !self.draws() {
                let text = "--num-return-sequences above 1 needs chance or beams: the best token each time gives one text\n  hint: --do-sample, or --num-beams";
                return usage(text.into());
            }
            if self.num_return_sequences == 0 {
                return usage("--num-return-sequences is 0, expected at least 1".into());
            }
            return Ok(None);
        }
        if self.assistant_model.is_some() {
            return usage(
                "--assistant-model does not go with --num-beams\n  hint: leave one of them out".into(),
            );
        }
        let beams = Beams {
            num_return_sequences: self.num_return_sequences,
            length_penalty: self.length_penalty.unwrap_or(1.0),
            early_stopping: match self.early_stopping {
                Some(Stopping::True) => EarlyStopping::Always,
                Some(Stopping::Never) => EarlyStopping::Never,
                Some(Stopping::False) | None => EarlyStopping::Likely,
            },
            num_beam_groups: self.num_beam_groups.unwrap_or(1),
            diversity_penalty: self.diversity_penalty.unwrap_or(0.0),
            ..Beams::of(self.num_beams)
        };
        beams.check()?;
        Ok(Some(beams))
    }
}

/// A schema from a file, or as it is given.
fn schema_of(given: &str) -> anyhow::Result<Json> {
    let is_json = given.trim_start().starts_with('{') || matches!(given.trim(), "true" | "false");
    let (text, from) = if is_json {
        (given.to_string(), "--json-schema".to_string())
    } else {
        let missing = |error| {
            let hint = "hint: give a file, or the schema itself, such as {\"type\": \"object\"}";
            Usage(format!("--json-schema names the file {given}, which cannot be read: {error}\n  {hint}"))
        };
        (std::fs::read_to_string(given).map_err(missing)?, given.to_string())
    };
    Ok(serde_json::from_str(&text).map_err(|error| Usage(format!("{from} is no JSON: {error}")))?)
}
