//! The keys that describe a model, and in `read` the way back.

mod read;

use super::names::Architecture;
use super::{Error, Result};
use crate::formats::gguf::Value;
use crate::model::{Config, Family};
use serde_json::{Value as Json, json};

pub(super) use read::read;

/// Tensor with a divisor for the rate of each pair of rotary elements.
pub(super) const RATES: &str = "rope_freqs.weight";
/// Key with the template by which a chat becomes a text.
pub const TEMPLATE: &str = "tokenizer.chat_template";
/// Key of our own: the settings behind those divisors.
const RATES_KEY: &str = "kiln.rope.llama3";
/// Key of our own: the activation, where it is not the one that a family has in this format.
const ACTIVATION_KEY: &str = "kiln.activation";
/// What llama.cpp's converter finds in Llama 3.1 and 3.2: factor, low, high, original context.
const USUAL_RATES: &[(f64, f64, f64, usize)] = &[(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192)];

/// GPT-2's activation as its programs take it, and as it is defined.
const USUAL_GELU: &str = "gelu_new";
const EXACT_GELU: &str = "gelu";

/// What a family's configuration becomes.
pub(super) struct Described {
    /// Keys of the architecture.
    pub keys: Vec<(String, Value)>,
    /// Divisors of the rotary rates, where they are not all one.
    pub rates: Option<Vec<f32>>,
    /// What other programs may not follow.
    pub notes: Vec<String>,
}

/// The keys of a family.
pub(super) fn describe(family: &dyn Family, architecture: &Architecture) -> Result<Described> {
    let config = Config::new(format!("this {}", family.name()), family.config());
    let writer = Writer { family: family.name(), config, architecture: architecture.name, keys: vec![] };
    match family.name() {
        "gpt2" => writer.gpt2(),
        "gpt_neox" => writer.neox(),
        _ => writer.llama(),
    }
}

struct Writer<'a> {
    family: &'a str,
    config: Config,
    architecture: &'a str,
    keys: Vec<(String, Value)>,
}

impl Writer<'_> {
    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.keys.push((format!("{}.{key}", self.architecture), value.into()));
    }

    /// A size of the model under another name.
    fn size(&mut self, key: &str, here: &'static str) -> Result<usize> {
        let size = self.config.needed_count(here)?;
        self.put(key, size as u32);
        Ok(size)
    }

    fn expect(&self, key: &str, good: &[Json]) -> Result<()> {
        let got = self.config.keys().get(key).unwrap_or(&Json::Null);
        if good.contains(got) {
            return Ok(());
        }
        let expected = good.iter().map(Json::to_string).collect::<Vec<_>>().join(" or ");
        let family = self.family.to_string();
        Err(Error::Setting { family, key: key.to_string(), expected, got: got.to_string() })
    }

    fn gpt2(mut self) -> Result<Described> {
        let mut notes = vec![];
        self.expect("activation_function", &[json!(USUAL_GELU), json!(EXACT_GELU)])?;
        if self.config.keys().get("activation_function") == Some(&json!(EXACT_GELU)) {
            self.keys.push((ACTIVATION_KEY.into(), EXACT_GELU.into()));
            notes.push(
                "other programs take GELU by its tanh form, and get logits that differ in the third digit"
                    .into(),
            );
        }
        self.expect("scale_attn_weights", &[json!(true)])?;
        self.expect("scale_attn_by_inverse_layer_idx", &[json!(false)])?;
        // Heads that no longer share the width, as pruning leaves them, have no key there.
        self.expect("head_dim", &[Json::Null])?;
        self.size("vocab_size", "vocab_size")?;
        self.size("context_length", "n_positions")?;
        self.size("embedding_length", "n_embd")?;
        self.size("block_count", "n_layer")?;
        self.size("feed_forward_length", "n_inner")?;
        self.size("attention.head_count", "n_head")?;
        self.put("attention.layer_norm_epsilon", self.config.needed_number("layer_norm_epsilon")? as f32);
        Ok(Described { keys: self.keys, rates: None, notes })
    }

    fn neox(mut self) -> Result<Described> {
        self.expect("hidden_act", &[json!(EXACT_GELU)])?;
        self.expect("attention_bias", &[json!(true)])?;
        self.expect("tie_word_embeddings", &[json!(false)])?;
        // Positions that are scaled, and heads that no longer share the width, have no key there.
        self.expect("rope_scaling", &[Json::Null])?;
        self.expect("head_dim", &[Json::Null])?;
        self.size("vocab_size", "vocab_size")?;
        self.size("context_length", "max_position_embeddings")?;
        let width = self.size("embedding_length", "hidden_size")?;
        self.size("block_count", "num_hidden_layers")?;
        self.size("feed_forward_length", "intermediate_size")?;
        let heads = self.size("attention.head_count", "num_attention_heads")?;
        let share = self.config.needed_number("rotary_pct")?;
        self.put("rope.dimension_count", (share * (width / heads) as f64) as u32);
        self.put("rope.freq_base", self.config.needed_number("rotary_emb_base")? as f32);
        self.put("use_parallel_residual", self.config.keys()["use_parallel_residual"] == json!(true));
        self.put("attention.layer_norm_epsilon", self.config.needed_number("layer_norm_eps")? as f32);
        let note = "other programs take GELU by its tanh form, and get logits that differ in the third digit";
        Ok(Described { keys: self.keys, rates: None, notes: vec![note.into()] })
    }

    fn llama(mut self) -> Result<Described> {
        self.expect("hidden_act", &[json!("silu"), json!("swish")])?;
        self.expect("use_sliding_window", &[json!(false), Json::Null])?;
        self.expect("partial_rotary_factor", &[json!(1.0), Json::Null])?;
        self.size("vocab_size", "vocab_size")?;
        self.size("context_length", "max_position_embeddings")?;
        self.size("embedding_length", "hidden_size")?;
        self.size("block_count", "num_hidden_layers")?;
        self.size("feed_forward_length", "intermediate_size")?;
        self.size("attention.head_count", "num_attention_heads")?;
        self.size("attention.head_count_kv", "num_key_value_heads")?;
        for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
            self.size(key, "head_dim")?;
        }
        self.put("attention.layer_norm_rms_epsilon", self.config.needed_number("rms_norm_eps")? as f32);
        self.put("rope.freq_base", self.config.needed_number("rope_theta")? as f32);
        let mut notes = vec![];
        if let Some(window) = self.config.keys().get("sliding_window").and_then(Json::as_u64) {
            self.put("attention.sliding_window", window as u32);
            let context = self.config.needed_count("max_position_embeddings")?;
            if (window as usize) < context {
                notes.push(format!(
                    "programs that know no window for llama will see all keys beyond {window} tokens"
                ));
            }
        }
        let rates = self.rotary()?;
        Ok(Described { keys: self.keys, rates, notes })
    }

    fn rotary(&mut self) -> Result<Option<Vec<f32>>> {
        let Some(table) = self.config.inner("rope_scaling")? else { return Ok(None) };
        match table.word(&["rope_type", "type"], "default")? {
            "linear" => {
                self.put("rope.scaling.type", "linear");
                self.put("rope.scaling.factor", table.needed_number("factor")? as f32);
                Ok(None)
            }
            "llama3" => {
                let number = |key| table.needed_number(key);
                let original = table.needed_count("original_max_position_embeddings")?;
                let settings =
                    (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?, original);
                let text = Json::Object(table.keys().clone()).to_string();
                self.keys.push((RATES_KEY.into(), text.as_str().into()));
                let theta = self.config.needed_number("rope_theta")?;
                Ok(Some(divisors(theta, self.config.needed_count("head_dim")?, settings)))
            }
            _ => Ok(None),
        }
    }
}

/// By what llama3's scaling divides the rate of each pair.
fn divisors(theta: f64, head: usize, (factor, low, high, original): (f64, f64, f64, usize)) -> Vec<f32> {
    let divisor = |pair: usize| {
        let rate = theta.powf(-2.0 * pair as f64 / head as f64);
        let turns = original as f64 * rate / std::f64::consts::TAU;
        let fast = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / (fast + (1.0 - fast) / factor)) as f32
    };
    (0..head / 2).map(divisor).collect()
}
