//! BART's and Marian's `config.json`, read and written.

use super::super::Config;
use super::super::config::shortest;
use super::{Bart, Marks, Positions, Result, Stack};
use serde_json::{Map, Value as Json, json};

/// Keys that [`Bart`] reads and writes; all others are kept as they came.
const OWN_KEYS: &[&str] = &[
    "model_type",
    "architectures",
    "is_encoder_decoder",
    "vocab_size",
    "max_position_embeddings",
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
    "scale_embedding",
    "tie_word_embeddings",
    "init_std",
    "decoder_start_token_id",
    "pad_token_id",
    "dtype",
    "torch_dtype",
];

/// Settings of relatives that compute something else.
const REFUSED: &[&str] = &["normalize_before", "add_final_layer_norm"];

/// What absent keys mean, as in transformers.
struct Usual {
    vocabulary: usize,
    start: u32,
    padding: u32,
}

impl Positions {
    fn usual(self) -> Usual {
        match self {
            Positions::Learned => Usual { vocabulary: 50265, start: 2, padding: 1 },
            Positions::Sinusoidal => Usual { vocabulary: 58101, start: 58100, padding: 58100 },
        }
    }

    fn architecture(self) -> &'static str {
        if self == Positions::Learned { "BartForConditionalGeneration" } else { "MarianMTModel" }
    }
}

impl Bart {
    /// From the keys of a `config.json`, in either spelling.
    pub fn from_config(positions: Positions, config: &Config) -> Result<Self> {
        config.refuse_set(REFUSED)?;
        for key in ["encoder_layerdrop", "decoder_layerdrop"] {
            if config.number(&[key], 0.0)? > 0.0 {
                return Err(config.refuse(key, "0: whole layers are not dropped here"));
            }
        }
        if !config.flag(&["share_encoder_decoder_embeddings"], true)? {
            let expected = "true: two tables of tokens are not supported";
            return Err(config.refuse("share_encoder_decoder_embeddings", expected));
        }
        let usual = positions.usual();
        let stack = |layers, heads, hidden| -> Result<Stack> {
            let (layers, heads) = (config.count(&[layers], 12)?, config.count(&[heads], 16)?);
            Ok(Stack { layers, heads, hidden: config.count(&[hidden], 4096)? })
        };
        let bart = Bart {
            positions,
            vocabulary: config.count(&["vocab_size"], usual.vocabulary)?,
            context: config.count(&["max_position_embeddings"], 1024)?,
            width: config.count(&["d_model"], 1024)?,
            encoder: stack("encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")?,
            decoder: stack("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim")?,
            activation: config.activation("activation_function", "gelu")?,
            dropout: config.share(&["dropout"], 0.1)? as f32,
            attention_dropout: config.share(&["attention_dropout"], 0.0)? as f32,
            activation_dropout: config.share(&["activation_dropout"], 0.0)? as f32,
            scale_embedding: config.flag(&["scale_embedding"], false)?,
            tie: config.flag(&["tie_word_embeddings"], true)?,
            deviation: config.number(&["init_std"], 0.02)?,
            marks: Marks {
                start: config.token("decoder_start_token_id", usual.start)?,
                padding: config.token("pad_token_id", usual.padding)?,
            },
            kept: config.except(&[OWN_KEYS]),
        };
        bart.check(config.place(), |key| key)?;
        Ok(bart)
    }

    /// The keys of its `config.json`.
    pub(super) fn keys(&self) -> Map<String, Json> {
        let keys = json!({
            "architectures": [self.positions.architecture()],
            "model_type": self.positions.family(),
            "is_encoder_decoder": true,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
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
            "scale_embedding": self.scale_embedding,
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
