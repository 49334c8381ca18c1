//! `config.json` of BERT and its relatives, read and written.

use super::super::config::{head_size, shortest};
use super::super::score::{classes_of, labels_of};
use super::super::{Config, Result, Task};
use super::{Bert, Encoder, EncoderDropouts};
use serde_json::{Map, Value as Json, json};

/// What the dialects call the same settings.
struct Keys {
    width: &'static str,
    layers: &'static str,
    heads: &'static str,
    hidden: &'static str,
    activation: &'static str,
    dropout: &'static str,
    attention_dropout: &'static str,
    classifier_dropout: &'static str,
}

const BERT: Keys = Keys {
    width: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    hidden: "intermediate_size",
    activation: "hidden_act",
    dropout: "hidden_dropout_prob",
    attention_dropout: "attention_probs_dropout_prob",
    classifier_dropout: "classifier_dropout",
};
const DISTILBERT: Keys = Keys {
    width: "dim",
    layers: "n_layers",
    heads: "n_heads",
    hidden: "hidden_dim",
    activation: "activation",
    dropout: "dropout",
    attention_dropout: "attention_dropout",
    classifier_dropout: "seq_classif_dropout",
};

/// Key of our own, by the name of the argument in transformers: false where the pooler was left out.
const POOLS_KEY: &str = "add_pooling_layer";

/// Keys that all dialects read and write beside those of [`Keys`].
const SHARED_KEYS: &[&str] = &[
    "model_type",
    "architectures",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "head_dim",
    "pad_token_id",
    "tie_word_embeddings",
    "initializer_range",
    POOLS_KEY,
    "dtype",
    "torch_dtype",
];

/// Settings of relatives that compute something else.
const REFUSED: &[&str] = &["is_decoder", "add_cross_attention", "embedding_size"];

/// Epsilon of all norms of a DistilBERT, which its configuration does not tell.
const DISTILBERT_EPSILON: f32 = 1e-12;

impl Keys {
    fn of(dialect: Encoder) -> &'static Keys {
        if dialect == Encoder::DistilBert { &DISTILBERT } else { &BERT }
    }

    fn all(&self) -> [&'static str; 8] {
        let Keys { width, layers, heads, hidden, activation, .. } = *self;
        let drops = [self.dropout, self.attention_dropout, self.classifier_dropout];
        [width, layers, heads, hidden, activation, drops[0], drops[1], drops[2]]
    }
}

impl Bert {
    /// From the keys of a `config.json`. The sizes must be there; other absent keys are as in transformers. What the model is for
    /// follows from its architecture.
    pub fn from_config(dialect: Encoder, config: &Config) -> Result<Self> {
        config.refuse_set(REFUSED)?;
        if config.word(&["position_embedding_type"], "absolute")? != "absolute" {
            return Err(config.refuse("position_embedding_type", "absolute"));
        }
        let keys = Keys::of(dialect);
        let (width, heads) = (config.needed_count(keys.width)?, config.needed_count(keys.heads)?);
        let dropout = config.share(&[keys.dropout], 0.1)?;
        let own = [SHARED_KEYS, &keys.all()];
        let bert = Bert {
            dialect,
            task: task_of(dialect, config)?,
            vocabulary: config.needed_count("vocab_size")?,
            positions: config.needed_count("max_position_embeddings")?,
            kinds: if dialect.has_kinds() { config.count(&["type_vocab_size"], 2)? } else { 1 },
            width,
            layers: config.needed_count(keys.layers)?,
            heads,
            head_size: head_size(config, keys.heads, width, heads)?,
            hidden: config.needed_count(keys.hidden)?,
            activation: config.activation(keys.activation, "gelu")?,
            norm_epsilon: match dialect {
                Encoder::DistilBert => DISTILBERT_EPSILON,
                _ => config.number(&["layer_norm_eps"], 1e-12)? as f32,
            },
            dropout: EncoderDropouts {
                hidden: dropout as f32,
                attention: config.share(&[keys.attention_dropout], 0.1)? as f32,
                classifier: config.share(&[keys.classifier_dropout], usual_drop(dialect, dropout))? as f32,
            },
            tie: config.flag(&["tie_word_embeddings"], true)?,
            pools: config.flag(&[POOLS_KEY], true)?,
            padding: padding_of(dialect, config)?,
            deviation: config.number(&["initializer_range"], 0.02)?,
            kept: config.except(&own),
        };
        bert.check(config.place(), |key| match key {
            "vocabulary" => "vocab_size",
            "context" => "max_position_embeddings",
            "width" => keys.width,
            "layers" => keys.layers,
            "heads" => keys.heads,
            "hidden" => keys.hidden,
            "activation" => keys.activation,
            "padding" => "pad_token_id",
            other => other,
        })?;
        Ok(bert)
    }

    /// The keys of its `config.json`.
    pub(super) fn keys(&self) -> Map<String, Json> {
        let names = Keys::of(self.dialect);
        let keys = json!({
            "architectures": [format!("{}{}", self.dialect.class(), class_of(self.task))],
            "model_type": self.dialect.name(),
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.positions,
            names.width: self.width,
            names.layers: self.layers,
            names.heads: self.heads,
            names.hidden: self.hidden,
            names.activation: self.activation.name(),
            names.dropout: shortest(self.dropout.hidden),
            names.attention_dropout: shortest(self.dropout.attention),
            "initializer_range": self.deviation,
            "pad_token_id": self.padding,
            "tie_word_embeddings": self.tie,
            "torch_dtype": "float32",
        });
        let Json::Object(mut keys) = keys else { unreachable!("the literal above is an object") };
        if !self.pools {
            keys.insert(POOLS_KEY.into(), json!(false));
        }
        if self.dialect.has_kinds() {
            keys.insert("type_vocab_size".into(), json!(self.kinds));
            keys.insert("layer_norm_eps".into(), json!(shortest(self.norm_epsilon)));
        }
        // Absent is not the same as zero: then a classifier drops as much as is usual.
        let EncoderDropouts { hidden, classifier, .. } = self.dropout;
        if classifier != usual_drop(self.dialect, f64::from(hidden)) as f32 {
            keys.insert(names.classifier_dropout.into(), json!(shortest(classifier)));
        }
        if self.heads * self.head_size != self.width {
            keys.insert("head_dim".into(), json!(self.head_size));
        }
        keys.extend(self.kept.clone());
        keys
    }
}

/// Share that a classifier drops where nothing is said.
fn usual_drop(dialect: Encoder, hidden: f64) -> f64 {
    if dialect == Encoder::DistilBert { 0.2 } else { hidden }
}

/// What a class of transformers is called behind the name of its family.
fn class_of(task: Task) -> &'static str {
    match task {
        Task::SequenceClass { .. } => "ForSequenceClassification",
        Task::TokenClass { .. } => "ForTokenClassification",
        Task::States => "Model",
        Task::NextSentence => "ForNextSentencePrediction",
        Task::Pretraining => "ForPreTraining",
        _ => "ForMaskedLM",
    }
}

fn task_of(dialect: Encoder, config: &Config) -> Result<Task> {
    let architectures = config.architectures()?;
    let is = |class: &str| architectures.contains(&format!("{}{class}", dialect.class()).as_str());
    let classes = classes_of(config)?;
    if is("ForSequenceClassification") {
        let labels = labels_of(config, classes)?;
        return Ok(Task::SequenceClass { classes, labels });
    }
    if is("ForTokenClassification") {
        return Ok(Task::TokenClass { classes });
    }
    if is("ForNextSentencePrediction") {
        return Ok(Task::NextSentence);
    }
    if is("ForPreTraining") {
        return Ok(Task::Pretraining);
    }
    Ok(if is("ForMaskedLM") { Task::HiddenToken } else { Task::States })
}

fn padding_of(dialect: Encoder, config: &Config) -> Result<Option<u32>> {
    match config.keys().get("pad_token_id") {
        None => Ok(Some(dialect.usual_padding())),
        Some(Json::Null) => Ok(None),
        Some(number) => {
            let number = number.as_u64().and_then(|number| u32::try_from(number).ok());
            number.map(Some).ok_or_else(|| config.refuse("pad_token_id", "a token's number, or null"))
        }
    }
}
