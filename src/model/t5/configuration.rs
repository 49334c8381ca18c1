//! T5's `config.json`, read and written.

use super::super::config::shortest;
use super::super::{Activation, Config};
use super::{Result, T5};
use serde_json::{Map, Value as Json, json};

/// Keys that [`T5`] reads and writes; all others are kept as they came.
const OWN_KEYS: &[&str] = &[
    "model_type",
    "architectures",
    "is_encoder_decoder",
    "vocab_size",
    "n_positions",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_decoder_layers",
    "num_heads",
    "feed_forward_proj",
    "dense_act_fn",
    "is_gated_act",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "dropout_rate",
    "tie_word_embeddings",
    "scale_decoder_outputs",
    "initializer_factor",
    "decoder_start_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
];

/// The architecture without a decoder.
const ENCODER: &str = "T5EncoderModel";

/// Tokens of a sequence where nothing is said.
const USUAL_CONTEXT: usize = 512;

impl T5 {
    /// From the keys of a `config.json`, in either spelling; absent keys are as in transformers, whose defaults are T5-small's.
    pub fn from_config(config: &Config) -> Result<Self> {
        config.refuse_set(&[])?;
        let layers = config.count(&["num_layers"], 6)?;
        let tie = config.flag(&["tie_word_embeddings"], true)?;
        let (activation, gated) = feeding(config)?;
        let t5 = T5 {
            encoder_only: config.architectures()?.contains(&ENCODER),
            vocabulary: config.count(&["vocab_size"], 32128)?,
            context: config.count(&["n_positions"], USUAL_CONTEXT)?,
            width: config.count(&["d_model"], 512)?,
            layers,
            decoder_layers: config.count(&["num_decoder_layers"], layers)?,
            heads: config.count(&["num_heads"], 8)?,
            head_size: config.count(&["d_kv"], 64)?,
            hidden: config.count(&["d_ff"], 2048)?,
            activation,
            gated,
            buckets: config.count(&["relative_attention_num_buckets"], 32)?,
            farthest: config.count(&["relative_attention_max_distance"], 128)?,
            norm_epsilon: config.number(&["layer_norm_epsilon"], 1e-6)? as f32,
            dropout: config.share(&["dropout_rate"], 0.1)? as f32,
            tie,
            scale_output: config.flag(&["scale_decoder_outputs"], tie)?,
            factor: config.number(&["initializer_factor"], 1.0)?,
            start: config.token("decoder_start_token_id", 0)?,
            padding: config.token("pad_token_id", 0)?,
            kept: config.except(&[OWN_KEYS]),
        };
        t5.check(config.place(), |key| match key {
            "vocabulary" => "vocab_size",
            "buckets" => "relative_attention_num_buckets",
            "farthest" => "relative_attention_max_distance",
            "start" => "decoder_start_token_id",
            "padding" => "pad_token_id",
            other => other,
        })?;
        Ok(t5)
    }

    /// The keys of its `config.json`.
    pub(super) fn keys(&self) -> Map<String, Json> {
        // GELU by tanh is what the plain word means here: an inheritance that transformers keeps.
        let name = match self.activation {
            Activation::GeluTanh if self.gated => "gelu",
            other => other.name(),
        };
        let keys = json!({
            "architectures": [if self.encoder_only { ENCODER } else { "T5ForConditionalGeneration" }],
            "model_type": "t5",
            "is_encoder_decoder": true,
            "vocab_size": self.vocabulary,
            "n_positions": self.context,
            "d_model": self.width,
            "d_kv": self.head_size,
            "d_ff": self.hidden,
            "num_layers": self.layers,
            "num_decoder_layers": self.decoder_layers,
            "num_heads": self.heads,
            "feed_forward_proj": if self.gated { format!("gated-{name}") } else { name.to_string() },
            "dense_act_fn": self.activation.name(),
            "is_gated_act": self.gated,
            "relative_attention_num_buckets": self.buckets,
            "relative_attention_max_distance": self.farthest,
            "layer_norm_epsilon": shortest(self.norm_epsilon),
            "dropout_rate": shortest(self.dropout),
            "tie_word_embeddings": self.tie,
            "scale_decoder_outputs": self.scale_output,
            "initializer_factor": self.factor,
            "decoder_start_token_id": self.start,
            "pad_token_id": self.padding,
            "torch_dtype": "float32",
        });
        let Json::Object(mut keys) = keys else { unreachable!("the literal above is an object") };
        keys.extend(self.kept.clone());
        keys
    }
}

/// Activation and gate of the feed-forward part, from `feed_forward_proj`, such as `relu` or `gated-gelu`.
fn feeding(config: &Config) -> Result<(Activation, bool)> {
    let key = "feed_forward_proj";
    let word = config.word(&[key], "relu")?;
    let (name, gated) = word.strip_prefix("gated-").map_or((word, false), |name| (name, true));
    let name = if gated && name == "gelu" { "gelu_new" } else { name };
    let activation = Activation::named(name).filter(|a| *a != Activation::Prelu);
    let activation = activation
        .ok_or_else(|| config.refuse(key, format!("one of {}, or gated- and one", Activation::names())))?;
    Ok((activation, gated))
}
