//! Llama's `config.json`, read and written.

use super::super::Config;
use super::super::config::shortest;
use super::super::rope::{ROPE_KEYS, Rope, Spelling};
use super::{Dialect, Llama, Result, Score, check_layers, score, setting};
use serde_json::{Map, Value as Json, json};

/// Keys that [`Llama`] reads and writes besides those of the positions; all others are kept as they came.
const OWN_KEYS: &[&str] = &[
    "model_type",
    "architectures",
    "vocab_size",
    "max_position_embeddings",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "attention_dropout",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
    "initializer_range",
    "dtype",
    "torch_dtype",
];

/// Settings of relatives that compute something else.
const REFUSED: &[&str] = &["rope_interleaved", "no_rope_layers", "add_cross_attention"];

/// Head size of a Qwen3 whose configuration does not tell, and window of such a Mistral: as transformers has them.
const QWEN3_HEAD_SIZE: usize = 128;
const MISTRAL_WINDOW: usize = 4096;

/// First block of a Qwen with a window, where nothing is said.
const QWEN_FIRST_WINDOWED: usize = 28;

impl Llama {
    /// From the keys of a `config.json`, in either spelling. The sizes must be there; other absent keys are as in transformers.
    pub fn from_config(dialect: Dialect, config: &Config) -> Result<Self> {
        config.refuse_set(REFUSED)?;
        let width = config.needed_count("hidden_size")?;
        let heads = config.needed_count("num_attention_heads")?;
        let layers = config.needed_count("num_hidden_layers")?;
        check_layers(config.place(), "num_hidden_layers", layers)?;
        // Where it is null each head has keys of its own; an absent key means that for Llama alone.
        let tells = config.keys().contains_key("num_key_value_heads");
        let kv_heads = match dialect == Dialect::Llama || tells {
            true => config.count(&["num_key_value_heads"], heads)?,
            false => config.needed_count("num_key_value_heads")?,
        };
        let vocabulary = config.needed_count("vocab_size")?;
        let llama = Llama {
            dialect,
            vocabulary,
            context: config.needed_count("max_position_embeddings")?,
            width,
            layers,
            heads,
            kv_heads,
            head_size: head_size(dialect, config, width, heads)?,
            hidden: config.needed_count("intermediate_size")?,
            activation: config.activation("hidden_act", "silu")?,
            norm_epsilon: config.number(&["rms_norm_eps"], 1e-6)? as f32,
            dropout: config.share(&["attention_dropout"], 0.0)? as f32,
            attention_bias: dialect.may_have_bias() && config.flag(&["attention_bias"], false)?,
            feed_bias: dialect == Dialect::Llama && config.flag(&["mlp_bias"], false)?,
            tie: config.flag(&["tie_word_embeddings"], false)?,
            windows: windows(dialect, config, layers)?,
            rope: Rope::read(config, &spelling(dialect))?,
            deviation: config.number(&["initializer_range"], 0.02)?,
            score: Score::read(config, dialect.class(), vocabulary)?,
            kept: config.except(&[OWN_KEYS, ROPE_KEYS]),
        };
        llama.check(config.place(), |key| match key {
            "heads" => "num_attention_heads",
            "kv_heads" => "num_key_value_heads",
            "head_size" => "head_dim",
            "window" => "sliding_window",
            other => other,
        })?;
        Ok(llama)
    }

    /// The keys of its `config.json`.
    pub(super) fn keys(&self) -> Map<String, Json> {
        let keys = json!({
            "architectures": [score::class(self.dialect.class(), self.score.as_ref())],
            "model_type": self.dialect.name(),
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "hidden_act": self.activation.name(),
            "rms_norm_eps": shortest(self.norm_epsilon),
            "attention_dropout": shortest(self.dropout),
            "initializer_range": self.deviation,
            "tie_word_embeddings": self.tie,
            "torch_dtype": "float32",
        });
        let Json::Object(mut keys) = keys else { unreachable!("the literal above is an object") };
        self.rope.write(&mut keys, &spelling(self.dialect));
        self.write_windows(&mut keys);
        if self.dialect.may_have_bias() {
            keys.insert("attention_bias".into(), json!(self.attention_bias));
        }
        if self.dialect == Dialect::Llama {
            keys.insert("mlp_bias".into(), json!(self.feed_bias));
        }
        keys.extend(self.kept.clone());
        keys
    }

    fn write_windows(&self, keys: &mut Map<String, Json>) {
        let window = self.windows.iter().flatten().next();
        match self.dialect {
            Dialect::Llama => return,
            Dialect::Mistral => {}
            Dialect::Qwen2 | Dialect::Qwen3 => {
                let kind = |w: &Option<usize>| if w.is_some() { SLIDING } else { FULL };
                let first = self.windows.iter().position(Option::is_some).unwrap_or(QWEN_FIRST_WINDOWED);
                keys.insert("use_sliding_window".into(), json!(window.is_some()));
                keys.insert("layer_types".into(), self.windows.iter().map(kind).collect());
                keys.insert("max_window_layers".into(), json!(first));
            }
        }
        keys.insert("sliding_window".into(), json!(window));
    }
}

/// Entries of `layer_types`.
const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

fn spelling(dialect: Dialect) -> Spelling {
    let usual = Rope::plain(dialect.usual_theta());
    Spelling { theta: &["rope_theta"], share: &["partial_rotary_factor"], usual }
}

fn head_size(dialect: Dialect, config: &Config, width: usize, heads: usize) -> Result<usize> {
    let usual = match dialect {
        Dialect::Qwen3 => QWEN3_HEAD_SIZE,
        _ => width / heads,
    };
    let given = config.count(&["head_dim"], usual.max(1))?;
    let is_given = config.keys().get("head_dim").is_some_and(|value| !value.is_null());
    if !is_given && dialect != Dialect::Qwen3 && !width.is_multiple_of(heads) {
        let expected = format!("a divisor of hidden_size = {width}, or head_dim beside it");
        return Err(setting(config.place(), "num_attention_heads", &expected, heads.to_string()));
    }
    Ok(given)
}

/// By block, how many keys a query sees.
fn windows(dialect: Dialect, config: &Config, layers: usize) -> Result<Vec<Option<usize>>> {
    let key = "sliding_window";
    let absent = !config.keys().contains_key(key);
    let size = match config.count(&[key], MISTRAL_WINDOW)? {
        _ if config.keys().get(key).is_some_and(Json::is_null) => None,
        size => Some(size),
    };
    match dialect {
        Dialect::Llama => Ok(vec![None; layers]),
        Dialect::Mistral => Ok(vec![size; layers]),
        _ if !config.flag(&["use_sliding_window"], false)? => Ok(vec![None; layers]),
        _ if absent => Err(config.refuse(key, "a whole number, as use_sliding_window is true")),
        _ => {
            let slides = slides(config, layers)?;
            Ok(slides.into_iter().map(|slides| size.filter(|_| slides)).collect())
        }
    }
}

/// By block, whether a Qwen's attention has the window.
fn slides(config: &Config, layers: usize) -> Result<Vec<bool>> {
    let Some(types) = config.keys().get("layer_types").filter(|types| !types.is_null()) else {
        let first = match config.keys().get("max_window_layers").map(Json::as_u64) {
            None => QWEN_FIRST_WINDOWED as u64,
            Some(first) => first.ok_or_else(|| config.refuse("max_window_layers", "a whole number"))?,
        };
        return Ok((0..layers).map(|layer| layer as u64 >= first).collect());
    };
    let kind = |kind: &Json| match kind.as_str() {
        Some(SLIDING) => Some(true),
        Some(FULL) => Some(false),
        _ => None,
    };
    let kinds: Option<Vec<bool>> = types.as_array().and_then(|types| types.iter().map(kind).collect());
    kinds
        .filter(|kinds| kinds.len() == layers)
        .ok_or_else(|| config.refuse("layer_types", format!("{layers} words, each {FULL} or {SLIDING}")))
}
