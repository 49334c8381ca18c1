//! `adapter_config.json` of the package PEFT.

use super::{Adapter, Error, Kind, Layer, Layers, Linear, Result};
use crate::model::{Config, Family, Task};
use crate::passes::module_of;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Name of the file that says what an adapter is.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Name of the file with its numbers.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Settings that would change what an adapter computes, and are not computed here.
const REFUSED: &[&str] = &[
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// Ways to begin that leave the base as it is; others rewrite it, and the adapter then fits the rewritten one alone.
const HARMLESS: &[&str] = &["gaussian", "eva", "orthogonal"];

/// What a config says.
pub(super) struct Said {
    pub kind: Kind,
    pub rank: usize,
    pub alpha: f32,
    pub rank_stabilized: bool,
    pub dropout: f32,
    pub base: Option<String>,
    /// Modules that are trained whole, by the ends of their names.
    pub whole: Vec<String>,
    alphas: Vec<(String, f32)>,
}

impl Said {
    /// Reads the config of an adapter's folder.
    pub fn read(folder: &Path) -> Result<Said> {
        let config = Config::read(&folder.join(ADAPTER_CONFIG))?;
        if config.word(&["peft_type"], "")? != "LORA" {
            return Err(config.refuse("peft_type", "\"LORA\"").into());
        }
        config.refuse_set(REFUSED)?;
        if config.word(&["bias"], "none")? != "none" {
            return Err(config.refuse("bias", "\"none\": biases of the base are not trained here").into());
        }
        match config.keys().get("init_lora_weights") {
            None | Some(Value::Null | Value::Bool(_)) => {}
            Some(Value::String(word)) if HARMLESS.contains(&word.as_str()) => {}
            Some(_) => {
                let expected = "true or gaussian: others change the base, and PEFT converts such adapters when it saves them";
                return Err(config.refuse("init_lora_weights", expected).into());
            }
        }
        let rank = config.needed_count("r")?;
        let alpha = config.number(&["lora_alpha"], 8.0)? as f32;
        Ok(Said {
            kind: if config.flag(&["use_dora"], false)? { Kind::Dora } else { Kind::Lora },
            rank,
            alpha,
            rank_stabilized: config.flag(&["use_rslora"], false)?,
            dropout: config.share(&["lora_dropout"], 0.0)? as f32,
            base: Some(config.word(&["base_model_name_or_path"], "")?.to_string()).filter(|b| !b.is_empty()),
            whole: texts(&config, "modules_to_save")?,
            alphas: alphas(&config)?,
        })
    }

    /// Numerator of the scale of a module.
    pub fn alpha_of(&self, module: &str) -> f32 {
        let fits = |(key, _): &&(String, f32)| match key.strip_prefix('^') {
            Some(whole) => module == whole,
            None => {
                module == key || module.strip_suffix(key.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
        };
        self.alphas.iter().find(fits).map_or(self.alpha, |(_, alpha)| *alpha)
    }
}

fn texts(config: &Config, key: &str) -> Result<Vec<String>> {
    let value = config.keys().get(key).filter(|value| !value.is_null());
    let Some(value) = value else { return Ok(vec![]) };
    let all: Option<Vec<String>> =
        value.as_array().and_then(|list| list.iter().map(|v| v.as_str().map(str::to_string)).collect());
    all.ok_or_else(|| config.refuse(key, "a list of words").into())
}

/// Alphas of some modules. PEFT takes the keys for regular expressions; plain names mean the same here and there.
fn alphas(config: &Config) -> Result<Vec<(String, f32)>> {
    let key = "alpha_pattern";
    let refuse =
        || Error::from(config.refuse(key, "numbers by names of modules, without regular expressions"));
    match config.keys().get(key) {
        None | Some(Value::Null) => Ok(vec![]),
        Some(Value::Object(map)) => map
            .iter()
            .map(|(name, alpha)| {
                let plain = |c: char| c.is_alphanumeric() || ".-_".contains(c);
                let is_plain = name.strip_prefix('^').unwrap_or(name).chars().all(plain);
                let alpha = alpha.as_f64().filter(|alpha| alpha.is_finite() && is_plain);
                Ok((name.clone(), alpha.ok_or_else(refuse)? as f32))
            })
            .collect(),
        Some(_) => Err(refuse()),
    }
}

/// The config of an adapter of `family`, whose base lies at `base`.
pub fn config_of(adapter: &Adapter, family: &dyn Family, base: &Path) -> Result<Value> {
    let all = Layers::of(family)?;
    let chosen: Vec<&Linear> = adapter.layers.iter().map(|layer| &layer.linear).collect();
    let of_other = |value: fn(&Layer) -> Value, usual: Value| -> Map<String, Value> {
        let own = adapter.layers.iter().filter(|layer| value(layer) != usual);
        own.map(|layer| (format!("^{}", module_of(&layer.linear.weight)), value(layer))).collect()
    };
    let mut whole: Vec<&str> = adapter.whole.iter().map(|spec| super::layers::parent(&spec.name)).collect();
    whole.dedup();
    Ok(json!({
        "peft_type": "LORA",
        "task_type": task_of(family.interface().task),
        "base_model_name_or_path": base.display().to_string(),
        "r": adapter.rank,
        "lora_alpha": number(adapter.alpha),
        "lora_dropout": number(adapter.dropout),
        "use_rslora": adapter.rank_stabilized,
        "use_dora": adapter.kind == Kind::Dora,
        "target_modules": targets(&chosen, &all.linear),
        "rank_pattern": of_other(|layer| layer.rank.into(), adapter.rank.into()),
        "alpha_pattern": of_other(|layer| number(layer.alpha), number(adapter.alpha)),
        "modules_to_save": if whole.is_empty() { Value::Null } else { whole.into() },
        "fan_in_fan_out": chosen.iter().any(|linear| linear.turned),
        "bias": "none",
        "init_lora_weights": true,
        "inference_mode": true,
    }))
}

/// PEFT's word for what a model gives, where it has one.
fn task_of(task: Task) -> Option<&'static str> {
    match task {
        Task::NextToken => Some("CAUSAL_LM"),
        Task::SecondText | Task::Transcript => Some("SEQ_2_SEQ_LM"),
        Task::SequenceClass { .. } => Some("SEQ_CLS"),
        Task::TokenClass { .. } => Some("TOKEN_CLS"),
        Task::States => Some("FEATURE_EXTRACTION"),
        Task::HiddenToken | Task::NextSentence | Task::Pretraining => None,
    }
}

/// A number as one writes it: 16, not 16.0, and 0.1, not 0.10000000149.
fn number(x: f32) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e9 { json!(x as i64) } else { json!(crate::model::shortest(x)) }
}

/// The chosen layers by the last parts of their names where those mean no other layer, and else by their whole names.
fn targets(chosen: &[&Linear], all: &[Linear]) -> Vec<String> {
    let last = |linear: &Linear| module_of(&linear.weight).rsplit('.').next().unwrap_or_default().to_string();
    let mut ends: Vec<String> = chosen.iter().map(|linear| last(linear)).collect();
    ends.sort();
    ends.dedup();
    let meant = all.iter().filter(|linear| ends.contains(&last(linear))).count();
    match meant == chosen.len() {
        true => ends,
        false => chosen.iter().map(|linear| module_of(&linear.weight).to_string()).collect(),
    }
}
