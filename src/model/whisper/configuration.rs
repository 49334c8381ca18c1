//! Whisper's `config.json`, read and written.

use super::super::config::{shared_width, shortest};
use super::super::{Config, Error};
use super::{Activation, Marks, Result, Stack, Whisper};
use serde_json::{Map, Value as Json, json};

/// Keys that [`Whisper`] reads and writes; all others are kept as they came.
const OWN_KEYS: &[&str] = &[
    "model_type",
    "architectures",
    "is_encoder_decoder",
    "vocab_size",
    "num_mel_bins",
    "max_source_positions",
    "max_target_positions",
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_layers",
    "decoder_attention_heads",
    "decoder_ffn_dim",
    "num_hidden_layers",
    "activation_function",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "tie_word_embeddings",
    "init_std",
    "decoder_start_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
];

impl Whisper {
    /// From the keys of a `config.json`, in either spelling; absent keys are as in transformers.
    pub fn from_config(config: &Config) -> Result<Self> {
        for key in ["encoder_layerdrop", "decoder_layerdrop"] {
            if config.number(&[key], 0.0)? > 0.0 {
                return Err(config.refuse(key, "0: whole layers are not dropped here"));
            }
        }
        let stack = |layers, heads, hidden| -> Result<Stack> {
            let (layers, heads) = (config.count(&[layers], 4)?, config.count(&[heads], 6)?);
            Ok(Stack { layers, heads, hidden: config.count(&[hidden], 1536)? })
        };
        let whisper = Whisper {
            vocabulary: config.count(&["vocab_size"], 51865)?,
            bands: config.count(&["num_mel_bins"], 80)?,
            heard: config.count(&["max_source_positions"], 1500)?,
            written: config.count(&["max_target_positions"], 448)?,
            width: config.count(&["d_model"], 384)?,
            encoder: stack("encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")?,
            decoder: stack("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim")?,
            activation: config.activation("activation_function", "gelu")?,
            dropout: config.share(&["dropout"], 0.0)? as f32,
            attention_dropout: config.share(&["attention_dropout"], 0.0)? as f32,
            activation_dropout: config.share(&["activation_dropout"], 0.0)? as f32,
            tie: config.flag(&["tie_word_embeddings"], true)?,
            deviation: config.number(&["init_std"], 0.02)?,
            marks: Marks {
                start: config.token("decoder_start_token_id", 50257)?,
                padding: config.token("pad_token_id", 50256)?,
            },
            kept: config.except(&[OWN_KEYS]),
        };
        whisper.check(config)?;
        Ok(whisper)
    }

    /// Refuses what cannot be.
    fn check(&self, config: &Config) -> Result<()> {
        let place = config.place();
        shared_width(place, "encoder_attention_heads", self.width, self.encoder.heads)?;
        shared_width(place, "decoder_attention_heads", self.width, self.decoder.heads)?;
        if self.activation == Activation::Prelu {
            return Err(config.refuse("activation_function", "one without a learned slope"));
        }
        for (key, token) in
            [("decoder_start_token_id", self.marks.start), ("pad_token_id", self.marks.padding)]
        {
            if token as usize >= self.vocabulary {
                let (expected, got) = (format!("a token below {}", self.vocabulary), token.to_string());
                return Err(Error::Setting { place: place.into(), key: key.into(), expected, got });
            }
        }
        Ok(())
    }

    /// The keys of its `config.json`.
    pub(super) fn keys(&self) -> Map<String, Json> {
        let keys = json!({
            "architectures": ["WhisperForConditionalGeneration"],
            "model_type": "whisper",
            "is_encoder_decoder": true,
            "vocab_size": self.vocabulary,
            "num_mel_bins": self.bands,
            "max_source_positions": self.heard,
            "max_target_positions": self.written,
            "d_model": self.width,
            "encoder_layers": self.encoder.layers,
            "encoder_attention_heads": self.encoder.heads,
            "encoder_ffn_dim": self.encoder.hidden,
            "decoder_layers": self.decoder.layers,
            "decoder_attention_heads": self.decoder.heads,
            "decoder_ffn_dim": self.decoder.hidden,
            "activation_function": self.activation.name(),
            "dropout": shortest(self.dropout),
            "attention_dropout": shortest(self.attention_dropout),
            "activation_dropout": shortest(self.activation_dropout),
            "tie_word_embeddings": self.tie,
            "init_std": self.deviation,
            "decoder_start_token_id": self.marks.start,
            "pad_token_id": self.marks.padding,
            "torch_dtype": "float32",
        });
        let Json::Object(mut keys) = keys else { unreachable!("the literal above is an object") };
        keys.extend(self.kept.clone());
        keys
    }
}
