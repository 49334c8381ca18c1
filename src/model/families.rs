//! The families there are, and the choice among them.

use super::llama::{Dialect, Llama, gated_width};
use super::{
    Activation, Archive, Bart, Bert, Config, Encoder, Error, Family, Gpt2, GptNeoX, Positions,
    RecurrentModel, RecurrentTranslator, Result, RowMlp, T5, Whisper,
};
use crate::ops::recurrent::Cell;
use serde_json::{Map, Value as Json};
use std::path::Path;

/// Sizes of a new model, as a recipe gives them. Not every family reads every field.
#[derive(Clone, Debug, PartialEq)]
pub struct Design {
    /// Blocks, one after the other.
    pub layers: usize,
    /// Attention heads in each block; they divide the width unless `head_size` is given.
    pub heads: usize,
    /// Heads of the keys and values, where they are shared by several queries; `heads` if absent.
    pub kv_heads: Option<usize>,
    /// Channels of a head; `width / heads` if absent.
    pub head_size: Option<usize>,
    /// Channels of the residual stream, C.
    pub width: usize,
    /// Width inside the feed-forward part; as [`Usual`] says if absent.
    pub hidden: Option<usize>,
    /// Most tokens in one sequence.
    pub context: usize,
    /// Tokens it knows, V.
    pub vocabulary: usize,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// Added to the variance in every norm.
    pub norm_epsilon: f32,
    /// Share of activations zeroed in training.
    pub dropout: f32,
    /// Linear layers and norms have biases.
    pub bias: bool,
    /// The output head shares the embedding's weights.
    pub tie: bool,
    /// Base of the rotary positions; the family's usual one if absent.
    pub rope_theta: Option<f64>,
    /// Keys that a query sees, its own among them; all if absent.
    pub window: Option<usize>,
}

impl Design {
    /// Refuses settings that a family has no use for, rather than to ignore them.
    pub(super) fn refuse_for(&self, family: &str, keys: &[&str]) -> Result<()> {
        let given = [
            ("kv_heads", self.kv_heads.map(|n| n.to_string())),
            ("head_size", self.head_size.map(|n| n.to_string())),
            ("rope_theta", self.rope_theta.map(|n| n.to_string())),
            ("window", self.window.map(|n| n.to_string())),
        ];
        match given.into_iter().find(|(key, value)| keys.contains(key) && value.is_some()) {
            Some((key, value)) => Err(Error::Setting {
                place: "the recipe".into(),
                key: key.into(),
                expected: format!("absent: the family {family} has no such setting"),
                got: value.expect("just found"),
            }),
            None => Ok(()),
        }
    }
}

/// The last token of a design's vocabulary, as a new encoder-decoder has it for start and padding.
pub(super) fn last_token(design: &Design) -> u32 {
    design.vocabulary.saturating_sub(1) as u32
}

/// The key that says where texts of a new encoder-decoder end: in the last token but one.
pub(super) fn end_before_last(design: &Design) -> Map<String, Json> {
    let end = design.vocabulary.saturating_sub(2);
    Map::from_iter([("eos_token_id".to_string(), Json::from(end))])
}

/// What a new model of a family has where nothing else is said.
#[derive(Clone, Copy, Debug)]
pub struct Usual {
    /// Activation of the feed-forward part.
    pub activation: &'static str,
    /// Added to the variance in every norm.
    pub norm_epsilon: f64,
    /// Linear layers have biases.
    pub bias: bool,
    /// The output head shares the embedding's weights.
    pub tie: bool,
    /// Width inside the feed-forward part, or units of a recurrent layer, by the width of the stream.
    pub hidden: fn(usize) -> usize,
    /// It has attention, and so heads.
    pub attends: bool,
    /// It reads rows of numbers, and so has neither a width of a stream nor a context.
    pub reads_rows: bool,
}

/// As in GPT-2.
const GPT2: Usual = Usual {
    activation: "gelu",
    norm_epsilon: 1e-5,
    bias: true,
    tie: true,
    hidden: |width| 4 * width,
    attends: true,
    reads_rows: false,
};
/// As in GPT-NeoX-20B.
const NEOX: Usual = Usual { tie: false, ..GPT2 };
/// As in Llama 2.
const LLAMA: Usual = Usual {
    activation: "silu",
    norm_epsilon: 1e-5,
    bias: false,
    tie: false,
    hidden: gated_width,
    attends: true,
    reads_rows: false,
};
/// As in Qwen2.
const QWEN: Usual = Usual { norm_epsilon: 1e-6, ..LLAMA };

/// As in BERT.
const BERT: Usual = Usual { activation: "gelu", norm_epsilon: 1e-12, ..GPT2 };
/// As in RoBERTa.
const ROBERTA: Usual = Usual { norm_epsilon: 1e-5, ..BERT };

/// As in T5 1.1, but for the head.
const T5_1: Usual = Usual { activation: "gelu_new", norm_epsilon: 1e-6, bias: false, ..GPT2 };
/// As in BART.
const BART: Usual = Usual { activation: "gelu", ..GPT2 };
/// As in the first Transformer.
const MARIAN: Usual = Usual { activation: "relu", ..BART };

/// As in PyTorch's example of a language model.
const RECURRENT: Usual =
    Usual { activation: "tanh", bias: true, tie: false, hidden: |width| width, attends: false, ..GPT2 };

/// As in scikit-learn.
const ROWS: Usual = Usual { activation: "relu", reads_rows: true, ..RECURRENT };

/// A family: its `model_type`, the architectures of it that are supported, and how it is made.
struct Entry {
    name: &'static str,
    architectures: &'static [&'static str],
    usual: Usual,
    read: fn(&Config) -> Result<Box<dyn Family>>,
    build: fn(&Design) -> Result<Box<dyn Family>>,
}

const FAMILIES: &[Entry] = &[
    Entry {
        name: "gpt2",
        architectures: &["GPT2LMHeadModel", "GPT2ForSequenceClassification"],
        usual: GPT2,
        read: |config| Ok(Box::new(Gpt2::from_config(config)?)),
        build: |design| Ok(Box::new(Gpt2::from_design(design)?)),
    },
    Entry {
        name: "llama",
        architectures: &["LlamaForCausalLM", "LlamaForSequenceClassification"],
        usual: LLAMA,
        read: |config| Ok(Box::new(Llama::from_config(Dialect::Llama, config)?)),
        build: |design| Ok(Box::new(Llama::from_design(Dialect::Llama, design)?)),
    },
    Entry {
        name: "mistral",
        architectures: &["MistralForCausalLM", "MistralForSequenceClassification"],
        usual: LLAMA,
        read: |config| Ok(Box::new(Llama::from_config(Dialect::Mistral, config)?)),
        build: |design| Ok(Box::new(Llama::from_design(Dialect::Mistral, design)?)),
    },
    Entry {
        name: "qwen2",
        architectures: &["Qwen2ForCausalLM", "Qwen2ForSequenceClassification"],
        usual: QWEN,
        read: |config| Ok(Box::new(Llama::from_config(Dialect::Qwen2, config)?)),
        build: |design| Ok(Box::new(Llama::from_design(Dialect::Qwen2, design)?)),
    },
    Entry {
        name: "qwen3",
        architectures: &["Qwen3ForCausalLM", "Qwen3ForSequenceClassification"],
        usual: QWEN,
        read: |config| Ok(Box::new(Llama::from_config(Dialect::Qwen3, config)?)),
        build: |design| Ok(Box::new(Llama::from_design(Dialect::Qwen3, design)?)),
    },
    Entry {
        name: "gpt_neox",
        architectures: &["GPTNeoXForCausalLM", "GPTNeoXForSequenceClassification"],
        usual: NEOX,
        read: |config| Ok(Box::new(GptNeoX::from_config(config)?)),
        build: |design| Ok(Box::new(GptNeoX::from_design(design)?)),
    },
    Entry {
        name: "bert",
        architectures: &[
            "BertForMaskedLM",
            "BertForPreTraining",
            "BertForNextSentencePrediction",
            "BertForSequenceClassification",
            "BertForTokenClassification",
            "BertModel",
        ],
        usual: BERT,
        read: |config| Ok(Box::new(Bert::from_config(Encoder::Bert, config)?)),
        build: |design| Ok(Box::new(Bert::from_design(Encoder::Bert, design)?)),
    },
    Entry {
        name: "roberta",
        architectures: &[
            "RobertaForMaskedLM",
            "RobertaForSequenceClassification",
            "RobertaForTokenClassification",
            "RobertaModel",
        ],
        usual: ROBERTA,
        read: |config| Ok(Box::new(Bert::from_config(Encoder::Roberta, config)?)),
        build: |design| Ok(Box::new(Bert::from_design(Encoder::Roberta, design)?)),
    },
    Entry {
        name: "distilbert",
        architectures: &[
            "DistilBertForMaskedLM",
            "DistilBertForSequenceClassification",
            "DistilBertForTokenClassification",
            "DistilBertModel",
        ],
        usual: BERT,
        read: |config| Ok(Box::new(Bert::from_config(Encoder::DistilBert, config)?)),
        build: |design| Ok(Box::new(Bert::from_design(Encoder::DistilBert, design)?)),
    },
    Entry {
        name: "t5",
        architectures: &["T5ForConditionalGeneration", "T5EncoderModel"],
        usual: T5_1,
        read: |config| Ok(Box::new(T5::from_config(config)?)),
        build: |design| Ok(Box::new(T5::from_design(design)?)),
    },
    Entry {
        name: "bart",
        architectures: &["BartForConditionalGeneration", "BartModel"],
        usual: BART,
        read: |config| Ok(Box::new(Bart::from_config(Positions::Learned, config)?)),
        build: |design| Ok(Box::new(Bart::from_design(Positions::Learned, design)?)),
    },
    Entry {
        name: "marian",
        architectures: &["MarianMTModel", "MarianModel"],
        usual: MARIAN,
        read: |config| Ok(Box::new(Bart::from_config(Positions::Sinusoidal, config)?)),
        build: |design| Ok(Box::new(Bart::from_design(Positions::Sinusoidal, design)?)),
    },
    Entry {
        name: "whisper",
        architectures: &["WhisperForConditionalGeneration", "WhisperModel"],
        usual: BART,
        read: |config| Ok(Box::new(Whisper::from_config(config)?)),
        build: |_| Err(heard()),
    },
    Entry {
        name: "lstm",
        architectures: &["LstmForCausalLM"],
        usual: RECURRENT,
        read: |config| Ok(Box::new(RecurrentModel::from_config(Cell::Lstm, config)?)),
        build: |design| Ok(Box::new(RecurrentModel::from_design(Cell::Lstm, design)?)),
    },
    Entry {
        name: "gru",
        architectures: &["GruForCausalLM"],
        usual: RECURRENT,
        read: |config| Ok(Box::new(RecurrentModel::from_config(Cell::Gru, config)?)),
        build: |design| Ok(Box::new(RecurrentModel::from_design(Cell::Gru, design)?)),
    },
    Entry {
        name: "rnn",
        architectures: &["RnnForCausalLM"],
        usual: RECURRENT,
        read: |config| Ok(Box::new(RecurrentModel::from_config(Cell::Tanh, config)?)),
        build: |design| Ok(Box::new(RecurrentModel::from_design(Cell::Tanh, design)?)),
    },
    Entry {
        name: "seq2seq",
        architectures: &["RecurrentForConditionalGeneration"],
        usual: RECURRENT,
        read: |config| Ok(Box::new(RecurrentTranslator::from_config(config)?)),
        build: |design| Ok(Box::new(RecurrentTranslator::from_design(design)?)),
    },
    Entry {
        name: "mlp",
        architectures: &["MlpForRowClassification"],
        usual: ROWS,
        read: |config| Ok(Box::new(RowMlp::from_config(config)?)),
        build: |design| Ok(Box::new(RowMlp::from_design(design)?)),
    },
];

/// What a family usually has; an unknown one is refused when it is built, so here it is taken for the first.
pub fn usual(family: &str) -> Usual {
    FAMILIES.iter().find(|entry| entry.name == family).unwrap_or(&FAMILIES[0]).usual
}

/// Names of all families, for messages.
pub fn family_names() -> String {
    FAMILIES.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ")
}

/// A new model of a family.
pub fn build(family: &str, design: &Design) -> Result<Box<dyn Family>> {
    let entry = FAMILIES.iter().find(|entry| entry.name == family);
    let entry = entry.ok_or_else(|| unknown("the recipe", format!("`{family}`")))?;
    (entry.build)(design)
}

/// The model that a Hugging Face folder's `config.json` describes, without parts that its weights lack and it can do without.
pub fn open(folder: &Path) -> Result<Box<dyn Family>> {
    let mut family = from_config(&Config::read(folder)?)?;
    // Weights that are not there, or damaged, are for those to report who need them.
    if let Ok(archive) = Archive::open(folder) {
        family.fit(&archive.names().collect::<Vec<_>>());
    }
    Ok(family)
}

/// The model of a configuration: its architecture decides, its `model_type` where no architecture is given.
pub fn from_config(config: &Config) -> Result<Box<dyn Family>> {
    let (kind, architectures) = (config.model_type()?, config.architectures()?);
    let fits = |entry: &&Entry| match architectures.is_empty() {
        true => entry.name == kind,
        false => architectures.iter().any(|a| entry.architectures.contains(a)),
    };
    let Some(entry) = FAMILIES.iter().find(fits) else {
        let got = format!("`{kind}` (architectures: {})", architectures.join(", "));
        return Err(unknown(config.place(), got));
    };
    if !kind.is_empty() && kind != entry.name {
        let expected = format!("`{}`, as the architecture is {}", entry.name, architectures.join(", "));
        return Err(config.refuse("model_type", expected));
    }
    (entry.read)(config)
}

/// Why there is no new model that hears: recipes have text alone to learn from.
fn heard() -> Error {
    Error::Setting {
        place: "the recipe".into(),
        key: "family".into(),
        expected: "one that learns from text; a whisper is opened from a folder".into(),
        got: "whisper".into(),
    }
}

fn unknown(place: &str, got: String) -> Error {
    let list = |entry: &Entry| format!("{} ({})", entry.name, entry.architectures.join(", "));
    let known = FAMILIES.iter().map(list).collect::<Vec<_>>().join("; ");
    Error::Family { place: place.to_string(), got, known }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family_of(json: serde_json::Value) -> Result<Box<dyn Family>> {
        from_config(&Config::new("config.json", json.as_object().unwrap().clone()))
    }

    #[test]
    fn the_architecture_decides_and_the_model_type_where_there_is_none() {
        let arch = serde_json::json!(["GPT2LMHeadModel"]);
        assert_eq!(family_of(serde_json::json!({ "architectures": arch })).unwrap().name(), "gpt2");
        assert_eq!(family_of(serde_json::json!({ "model_type": "gpt2" })).unwrap().name(), "gpt2");
        let contradiction = serde_json::json!({ "architectures": arch, "model_type": "bert" });
        assert!(matches!(family_of(contradiction), Err(Error::Setting { key, .. }) if key == "model_type"));
    }

    #[test]
    fn an_unknown_family_is_named_with_those_there_are() {
        for json in [
            serde_json::json!({ "model_type": "mamba" }),
            serde_json::json!({ "model_type": "gpt2", "architectures": ["GPT2ForTokenClassification"] }),
            serde_json::json!({}),
        ] {
            let error = family_of(json).unwrap_err();
            let lists = |known: &str| family_names().split(", ").all(|name| known.contains(name));
            assert!(matches!(&error, Error::Family { known, .. } if lists(known)), "{error}");
        }
    }
}
