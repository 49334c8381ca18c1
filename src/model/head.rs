//! Another head on a model: what stood on it is left out, and what it lacks is drawn.

use super::{Config, Error, Family, Labels, Result, Task, Weights, from_config, weights};
use serde_json::{Map, Value as Json, json};
use std::path::Path;

/// What is to stand on a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// Classes for each text, by their names.
    Sequence {
        /// What labels mean.
        labels: Labels,
        /// Names of the classes; one of any name where labels are a number.
        names: Vec<String>,
    },
    /// Classes for each token, by their names.
    Tokens {
        /// Names of the classes.
        names: Vec<String>,
    },
    /// Scores of tokens: hidden ones of an encoder, the next one of a decoder.
    Language,
    /// Scores of hidden tokens, and of whether a text follows another.
    Pretraining,
    /// Nothing: vectors of tokens.
    None,
}

/// Keys of a configuration that speak of classes.
const OF_CLASSES: [&str; 4] = ["id2label", "label2id", "problem_type", "num_labels"];

/// Key of the token that fills up texts.
const PADDING: &str = "pad_token_id";

/// Families on which a head can stand: any, or one for whole texts.
const ENCODERS: &[&str] = &["bert", "roberta", "distilbert"];
const CAUSAL: &[&str] = &["gpt2", "llama", "mistral", "qwen2", "qwen3", "gpt_neox"];

impl Head {
    fn class(&self, family: &str) -> &'static str {
        match self {
            Head::Language if ENCODERS.contains(&family) => "ForMaskedLM",
            Head::Language if family == "gpt2" => "LMHeadModel",
            Head::Language => "ForCausalLM",
            Head::Sequence { .. } => "ForSequenceClassification",
            Head::Tokens { .. } => "ForTokenClassification",
            Head::Pretraining => "ForPreTraining",
            Head::None => "Model",
        }
    }

    /// What a configuration says of its classes.
    fn keys(&self) -> Map<String, Json> {
        let mut keys = Map::new();
        if let Head::Sequence { names, .. } | Head::Tokens { names } = self {
            let numbered = || names.iter().enumerate();
            let by_number: Map<_, _> = numbered().map(|(id, name)| (id.to_string(), json!(name))).collect();
            let by_name: Map<_, _> = numbered().map(|(id, name)| (name.clone(), json!(id))).collect();
            keys.insert("id2label".into(), by_number.into());
            keys.insert("label2id".into(), by_name.into());
        }
        if let Head::Sequence { labels, .. } = self {
            keys.insert("problem_type".into(), json!(problem_type(*labels)));
        }
        keys
    }
}

/// What transformers calls the meaning of labels.
pub fn problem_type(labels: Labels) -> &'static str {
    match labels {
        Labels::One => "single_label_classification",
        Labels::Any => "multi_label_classification",
        Labels::Numbers => "regression",
    }
}

/// Names of a model's classes by their numbers, as its configuration has them, or `LABEL_0` and so on.
pub fn class_names(family: &dyn Family) -> Vec<String> {
    let classes = match family.interface().task {
        Task::SequenceClass { classes, .. } | Task::TokenClass { classes } => classes,
        Task::NextSentence => 2,
        _ => 0,
    };
    let config = family.config();
    let name = |id: usize| config.get("id2label")?.get(id.to_string())?.as_str().map(String::from);
    (0..classes).map(|id| name(id).unwrap_or_else(|| format!("LABEL_{id}"))).collect()
}

/// The same model with another head. A causal one has a token that fills up texts from then on.
pub fn with_head(family: &dyn Family, head: &Head) -> Result<Box<dyn Family>> {
    let mut keys = family.config();
    let class = keys.get("architectures").and_then(|list| list[0].as_str()).unwrap_or_default();
    let refuse =
        |expected: &str| Error::Task { expected: expected.into(), got: family.interface().task.describe() };
    let causal = CAUSAL.contains(&family.name());
    let own = ["LMHeadModel", "For", "Model"].iter().find_map(|end| class.find(end));
    let Some(own) =
        own.filter(|_| causal || ENCODERS.contains(&family.name())).map(|end| class[..end].to_string())
    else {
        let known = [ENCODERS, CAUSAL].concat().join(", ");
        return Err(refuse(&format!("one on which a head can stand: {known}")));
    };
    if causal {
        match head {
            Head::Language => {}
            Head::Sequence { .. } => {
                let padding = padding_of(&keys, family.vocabulary());
                keys.insert(PADDING.into(), padding.into());
            }
            _ => {
                return Err(refuse(
                    "an encoder, bert, roberta or distilbert: on a causal model there are heads for whole texts and next tokens alone",
                ));
            }
        }
    }
    if *head == Head::Pretraining && family.name() != "bert" {
        return Err(refuse("a bert, which alone learns whether a text follows another"));
    }
    keys.retain(|key, _| !OF_CLASSES.contains(&key.as_str()));
    keys.insert("architectures".into(), json!([format!("{own}{}", head.class(family.name()))]));
    keys.extend(head.keys());
    from_config(&Config::new("the model with its head", keys))
}

/// The token that fills up texts: the configuration's own, else the one that ends texts, else the last of all.
fn padding_of(keys: &Map<String, Json>, vocabulary: usize) -> u64 {
    let token = |key: &str| match keys.get(key) {
        Some(Json::Array(several)) => several.first().and_then(Json::as_u64),
        other => other.and_then(Json::as_u64),
    };
    let known = |token: &u64| *token < vocabulary as u64;
    token(PADDING).filter(known).or(token("eos_token_id").filter(known)).unwrap_or(vocabulary as u64 - 1)
}

/// What came of a head when weights were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// Modules that the folder does not have, or not in this shape: they begin anew.
    pub drawn: Vec<String>,
    /// Modules that the folder has and the model does not.
    pub dropped: Vec<String>,
}

impl Renewed {
    /// In one line, where there is something to say.
    pub fn describe(&self) -> Option<String> {
        let list = |modules: &[String]| modules.join(", ");
        match (self.drawn.is_empty(), self.dropped.is_empty()) {
            (true, true) => None,
            (true, false) => Some(format!("as in the folder; left out: {}", list(&self.dropped))),
            (false, true) => Some(format!("drawn anew: {}", list(&self.drawn))),
            (false, false) => {
                Some(format!("drawn anew: {}; left out: {}", list(&self.drawn), list(&self.dropped)))
            }
        }
    }
}

/// Weights of a folder for a model whose head may be another one: parameters of the head that the folder lacks, or has in another
/// shape, are drawn from the seed; with `anew` those that it has as well, but for a pooler.
pub fn read_with_head(path: &Path, family: &dyn Family, seed: u64, anew: bool) -> Result<Weights> {
    Weights::read_renewed(path, family, seed, anew)
}

/// What [`read_with_head`] does with the head.
pub fn renewed(path: &Path, family: &dyn Family, anew: bool) -> Result<Renewed> {
    weights::renewed(path, family, anew)
}

/// The module of a parameter: its name without the last word.
pub(super) fn module_of(name: &str) -> String {
    name.rsplit_once('.').map_or(name, |(module, _)| module).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Design, build, initial};

    fn guesser() -> Box<dyn Family> {
        let design = Design {
            layers: 1,
            heads: 2,
            kv_heads: None,
            head_size: None,
            width: 8,
            hidden: None,
            context: 6,
            vocabulary: 11,
            activation: crate::model::Activation::Gelu,
            norm_epsilon: 1e-12,
            dropout: 0.0,
            bias: true,
            tie: true,
            rope_theta: None,
            window: None,
        };
        build("bert", &design).unwrap()
    }

    fn sequence(names: &[&str]) -> Head {
        Head::Sequence { labels: Labels::One, names: names.iter().map(|name| name.to_string()).collect() }
    }

    #[test]
    fn a_head_is_added_to_an_encoder_that_guessed_tokens_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let before = guesser();
        let first = initial(&before.parameters(), 3);
        first.save(folder.path(), before.as_ref()).unwrap();
        let after = with_head(before.as_ref(), &sequence(&["no", "yes", "who knows"])).unwrap();
        assert_eq!(after.interface().task, Task::SequenceClass { classes: 3, labels: Labels::One });
        assert_eq!(class_names(after.as_ref()), ["no", "yes", "who knows"]);
        assert_eq!(after.config()["label2id"]["yes"], 1);
        assert!(Weights::read(folder.path(), after.as_ref()).is_err(), "without leave nothing is drawn");
        let weights = read_with_head(folder.path(), after.as_ref(), 5, false).unwrap();
        let renewed = renewed(folder.path(), after.as_ref(), false).unwrap();
        weights.check(&after.parameters()).unwrap();
        assert_eq!(renewed.drawn, ["bert.pooler.dense", "classifier"]);
        assert_eq!(
            renewed.dropped,
            ["cls.predictions", "cls.predictions.transform.LayerNorm", "cls.predictions.transform.dense"]
        );
        let words = "bert.embeddings.word_embeddings.weight";
        assert_eq!(weights.get(words).unwrap(), first.get(words).unwrap());
        let drawn = initial(&after.parameters(), 5);
        assert_eq!(weights.get("classifier.weight").unwrap(), drawn.get("classifier.weight").unwrap());
    }

    #[test]
    fn a_head_of_as_many_classes_is_kept_and_one_of_more_is_drawn_anew() {
        let folder = tempfile::tempdir().unwrap();
        let before = with_head(guesser().as_ref(), &sequence(&["a", "b"])).unwrap();
        initial(&before.parameters(), 3).save(folder.path(), before.as_ref()).unwrap();
        let opened = super::super::open(folder.path()).unwrap();
        assert_eq!(opened.parameters(), before.parameters());
        let of = |family: &dyn Family, anew| renewed(folder.path(), family, anew).unwrap();
        assert_eq!(of(opened.as_ref(), false), Renewed::default());
        assert_eq!(of(opened.as_ref(), true).drawn, ["classifier"], "the pooler stays");
        let wider = with_head(opened.as_ref(), &sequence(&["a", "b", "c"])).unwrap();
        let weights = read_with_head(folder.path(), wider.as_ref(), 5, false).unwrap();
        weights.check(&wider.parameters()).unwrap();
        let renewed = of(wider.as_ref(), false);
        assert_eq!(renewed.drawn, ["classifier"]);
        assert!(renewed.describe().unwrap().contains("drawn anew: classifier"));
    }

    #[test]
    fn tokens_numbers_and_nothing_may_stand_there_but_not_on_a_causal_model() {
        let before = guesser();
        let numbers = Head::Sequence { labels: Labels::Numbers, names: vec!["LABEL_0".into()] };
        let task = |head: &Head| with_head(before.as_ref(), head).unwrap().interface().task;
        assert_eq!(task(&numbers), Task::SequenceClass { classes: 1, labels: Labels::Numbers });
        assert_eq!(
            task(&Head::Tokens { names: vec!["O".into(), "B-X".into()] }),
            Task::TokenClass { classes: 2 }
        );
        assert_eq!(task(&Head::None), Task::States);
        let keys = json!({ "architectures": ["GPT2LMHeadModel"], "vocab_size": 9, "n_positions": 8, "n_embd": 8,
                           "n_layer": 1, "n_head": 2 });
        let gpt = from_config(&Config::new("c", keys.as_object().unwrap().clone())).unwrap();
        assert!(matches!(with_head(gpt.as_ref(), &Head::None), Err(Error::Task { .. })));
        let lstm = json!({ "architectures": ["LstmForCausalLM"], "vocab_size": 9, "hidden_size": 8 });
        let lstm = from_config(&Config::new("c", lstm.as_object().unwrap().clone())).unwrap();
        assert!(matches!(with_head(lstm.as_ref(), &sequence(&["a", "b"])), Err(Error::Task { .. })));
    }

    #[test]
    fn a_score_for_whole_texts_stands_on_a_causal_model_in_the_place_of_its_head() {
        let folder = tempfile::tempdir().unwrap();
        let keys = json!({ "architectures": ["LlamaForCausalLM"], "vocab_size": 9, "max_position_embeddings": 8, "hidden_size": 8,
                           "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "eos_token_id": [5, 6] });
        let before = from_config(&Config::new("c", keys.as_object().unwrap().clone())).unwrap();
        initial(&before.parameters(), 3).save(folder.path(), before.as_ref()).unwrap();
        let after = with_head(before.as_ref(), &sequence(&["no", "yes"])).unwrap();
        assert_eq!(after.config()["architectures"], json!(["LlamaForSequenceClassification"]));
        assert_eq!(after.config()["pad_token_id"], 5, "texts are filled up by what ends them");
        let renewed = renewed(folder.path(), after.as_ref(), false).unwrap();
        assert_eq!(
            (renewed.drawn, renewed.dropped),
            (vec!["score".to_string()], vec!["lm_head".to_string()])
        );
        let weights = read_with_head(folder.path(), after.as_ref(), 5, false).unwrap();
        weights.check(&after.parameters()).unwrap();
        let wider = with_head(after.as_ref(), &sequence(&["a", "b", "c"])).unwrap();
        assert_eq!(wider.interface().task, Task::SequenceClass { classes: 3, labels: Labels::One });
    }
}
