//! The families there are, and the choice among them.

use super::{Activation, Config, Error, Family, Gpt2, Result};
use std::path::Path;

/// Sizes of a new model, as a recipe gives them. Not every family reads every field.
#[derive(Clone, Debug, PartialEq)]
pub struct Design {
    /// Blocks, one after the other.
    pub layers: usize,
    /// Attention heads in each block; they divide the width.
    pub heads: usize,
    /// Channels of the residual stream, C.
    pub width: usize,
    /// Width inside the feed-forward part; four times the width if absent.
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
}

/// A family: its `model_type`, the architectures of it that are supported, and how it is made.
struct Entry {
    name: &'static str,
    architectures: &'static [&'static str],
    read: fn(&Config) -> Result<Box<dyn Family>>,
    build: fn(&Design) -> Result<Box<dyn Family>>,
}

const FAMILIES: &[Entry] = &[Entry {
    name: "gpt2",
    architectures: &["GPT2LMHeadModel"],
    read: |config| Ok(Box::new(Gpt2::from_config(config)?)),
    build: |design| Ok(Box::new(Gpt2::from_design(design)?)),
}];

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

/// The model that a Hugging Face folder's `config.json` describes.
pub fn open(folder: &Path) -> Result<Box<dyn Family>> {
    from_config(&Config::read(folder)?)
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
            serde_json::json!({ "model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"] }),
            serde_json::json!({}),
        ] {
            let error = family_of(json).unwrap_err();
            assert!(matches!(&error, Error::Family { known, .. } if known.contains("gpt2")), "{error}");
        }
    }
}
