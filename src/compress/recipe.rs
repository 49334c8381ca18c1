//! Recipes of compression: an ordered list of passes over a model, in TOML.
//!
//! ```toml
//! seed = 0
//!
//! [calibration]
//! text = ["stories.txt"]
//! windows = 128
//! context = 512
//! memory = "2GiB"
//!
//! [[pass]]
//! kind = "smoothquant"
//! alpha = 0.5
//!
//! [[pass]]
//! kind = "quantize"
//! scheme = "W8A8"
//! method = "gptq"
//! ignore = ["*down_proj*"]
//! ```
//!
//! The table of a pass is the struct that does it, see [`stages`]; a key it does not have is an error that names the nearest.

use super::calibrate::MEMORY_BYTES;
use super::stage::Stage;
use super::{Error, Result, stages};
use crate::train::recipe::Bytes;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is done to a model, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Where all randomness comes from.
    #[serde(default)]
    pub seed: u64,
    /// The text that passes measure with.
    #[serde(default)]
    pub calibration: Text,
    /// The text that passes train on: the keys of a training recipe's `[data]`.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub data: toml::Table,
    /// The passes.
    #[serde(rename = "pass", default)]
    pub passes: Vec<Entry>,
}

/// A text to measure with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Text {
    /// Files and folders.
    pub text: Vec<PathBuf>,
    /// Windows of it.
    pub windows: usize,
    /// Tokens in a window, at most the model's context.
    pub context: usize,
    /// `char`, or a `tokenizer.json`, instead of the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// When the model is measured.
    pub measure: Measure,
    /// What is measured may take so much memory at once, as `"2GiB"`: passes share what fits, and measure the rest piece by piece.
    pub memory: Bytes,
}

/// When the model is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Anew before each pass that needs it, as the passes before have left it.
    #[default]
    EachPass,
    /// Once for all passes, as it comes in.
    Start,
}

impl Default for Text {
    fn default() -> Self {
        let (measure, memory) = (Measure::default(), Bytes(MEMORY_BYTES));
        Text { text: vec![], windows: 128, context: 512, tokenizer: None, measure, memory }
    }
}

/// The passes there are: an entry for each, named as in a recipe.
macro_rules! entries {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// One pass of a recipe.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind", rename_all = "snake_case")]
        pub enum Entry {
            $($(#[$doc])* $name(stages::$name),)+
        }

        impl Entry {
            /// What does it.
            pub fn stage(&self) -> &dyn Stage {
                match self {
                    $(Entry::$name(stage) => stage,)+
                }
            }
        }

        $(impl From<stages::$name> for Entry {
            fn from(stage: stages::$name) -> Entry {
                Entry::$name(stage)
            }
        })+
    };
}

entries! {
    /// Blocks go.
    DropLayers,
    /// Heads, neurons and channels go.
    PruneStructured,
    /// Scales move from activations to weights.
    Smoothquant,
    /// Scales move to where a scheme would lose most.
    Awq,
    /// Weights become zero.
    Prune,
    /// What is left of a pruned model gets earlier weights.
    Rewind,
    /// The model is trained.
    Train,
    /// Weights become codes.
    Quantize,
    /// Weights become codes of different sizes within a budget.
    AssignBits,
}

impl Recipe {
    /// One without a text.
    pub fn of(passes: impl IntoIterator<Item = Entry>) -> Recipe {
        let (calibration, data) = (Text::default(), toml::Table::new());
        Recipe { seed: 0, calibration, data, passes: passes.into_iter().collect() }
    }

    /// Reads a recipe; `place` is named in errors.
    pub fn parse(place: &str, text: &str) -> Result<Recipe> {
        let wrong = |reason: String| Error::Recipe { place: place.to_string(), reason };
        let recipe: Recipe = toml::from_str(text).map_err(|error| wrong(nearest(error.to_string())))?;
        if recipe.passes.is_empty() {
            return Err(wrong(
                "there is no pass\n  hint: begin one with [[pass]] and kind = \"quantize\"".into(),
            ));
        }
        recipe.check()?;
        Ok(recipe)
    }

    /// The recipe as TOML; reading it gives the same recipe.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe holds only what TOML can say")
    }

    /// The passes.
    pub fn stages(&self) -> impl Iterator<Item = &dyn Stage> {
        self.passes.iter().map(Entry::stage)
    }

    /// Finds wrong names, numbers out of range and impossible orders before anything is read.
    pub fn check(&self) -> Result<()> {
        let mut last: Option<&dyn Stage> = None;
        for (at, stage) in self.stages().enumerate() {
            let before = || names(self.stages().take(at));
            let pruned = self.stages().take(at).any(Stage::prunes);
            stage.check().and_then(|()| fits(stage, at, pruned)).map_err(|source| {
                let (number, stage, before) = (at + 1, stage.kind(), before());
                Error::Stage { number, stage, before, source: Box::new(source) }
            })?;
            if let Some(last) = last.filter(|last| stage.order() < last.order()) {
                return Err(Error::Order {
                    number: at + 1,
                    stage: stage.kind(),
                    does: stage.order().words(),
                    before: last.kind(),
                    did: last.order().words(),
                });
            }
            // Training and calculation may take turns; what was done to the shape or made codes stays done.
            last = match last {
                Some(last) if last.order() >= stage.order() => Some(last),
                _ => Some(stage),
            };
        }
        Ok(())
    }

    /// Whether a pass needs a text to measure with.
    pub fn calibrates(&self) -> bool {
        self.stages().any(|stage| stage.needs().calibration)
    }

    /// Whether a pass needs the model as it came in.
    pub fn looks_back(&self) -> bool {
        self.trains() || self.stages().any(|stage| stage.needs().earlier == Some(0))
    }

    /// Whether a pass needs a text to train on.
    pub fn trains(&self) -> bool {
        self.stages().any(|stage| stage.needs().training)
    }
}

/// Whether a pass can stand behind `at` others, of which some may prune.
fn fits(stage: &dyn Stage, at: usize, pruned: bool) -> Result<()> {
    if pruned && !stage.keeps_zeros() {
        let expected = "true behind a pass that prunes".to_string();
        return Err(Error::Setting { setting: "prune.keep_zeros", expected, got: "false".into() });
    }
    match stage.needs().earlier {
        Some(number) if number > at => {
            let expected = format!("the number of a pass before this one, at most {at}");
            Err(Error::Setting { setting: "to", expected, got: number.to_string() })
        }
        _ => Ok(()),
    }
}

/// Kinds of passes, or `none`.
pub(super) fn names<'a>(stages: impl Iterator<Item = &'a dyn Stage>) -> String {
    let names: Vec<_> = stages.map(Stage::kind).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// serde's list of keys, with the nearest one named.
fn nearest(reason: String) -> String {
    let words: Vec<&str> = reason.split('`').skip(1).step_by(2).collect();
    let ([got, known @ ..], true) = (&words[..], reason.contains("unknown")) else { return reason };
    let near = known.iter().map(|word| (strsim::jaro_winkler(got, word), word));
    match near.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((nearness, word)) if nearness > 0.7 => {
            format!("{}\n  hint: did you mean `{word}`?", reason.trim_end())
        }
        _ => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_read_and_written_as_it_was() {
        let text = "[calibration]\ntext = [\"a.txt\"]\n[[pass]]\nkind = \"smoothquant\"\n\n[[pass]]\nkind = \"quantize\"\nscheme = \"W8A8\"\n";
        let recipe = Recipe::parse("r.toml", text).unwrap();
        assert_eq!(recipe.passes.len(), 2);
        let written = toml::to_string(&recipe).unwrap();
        assert_eq!(Recipe::parse("again", &written).unwrap(), recipe);
    }

    #[test]
    fn unknown_keys_kinds_schemes_and_methods_are_told_before_anything_runs() {
        let pass =
            |text: &str| Recipe::parse("r.toml", &format!("[[pass]]\n{text}")).unwrap_err().to_string();
        assert!(pass("kind = \"quantise\"").contains("did you mean `quantize`"));
        assert!(pass("kind = \"quantize\"\nscheme = \"int9\"").contains("no scheme `int9`"));
        assert!(pass("kind = \"quantize\"\nschema = \"int8\"").contains("did you mean `scheme`"));
        assert!(pass("kind = \"quantize\"\nscheme = \"int8\"\nmethod = \"best\"").contains("rtn or gptq"));
        assert!(Recipe::parse("r.toml", "").unwrap_err().to_string().contains("[[pass]]"));
        assert!(Recipe::parse("r.toml", "[calibratoin]").is_err());
    }

    #[test]
    fn amounts_and_scores_of_structured_pruning_are_checked_before_anything_runs() {
        let pass = |text: &str| {
            Recipe::parse("r.toml", &format!("[[pass]]\nkind = {text}")).unwrap_err().to_string()
        };
        for (text, hint) in [
            ("\"prune_structured\"", "at least one of heads"),
            ("\"prune_structured\"\nheads = 1.0", "heads is 1, expected a share above 0 and below 1"),
            ("\"prune_structured\"\nneurons = 0", "neurons is 0"),
            ("\"prune_structured\"\nwidth = -0.5", "width is -0.5"),
            ("\"prune_structured\"\nheads = 0.5\nscore = \"random\"", "magnitude, activation, taylor"),
            ("\"prune_structured\"\nhead = 0.5", "did you mean `heads`"),
            ("\"drop_layers\"", "neither"),
            ("\"drop_layers\"\nlayers = [1]\ncount = 1", "both"),
            ("\"drop_layers\"\nlayers = []", "at least one"),
            ("\"drop_layers\"\ncount = 1\nscore = \"depth\"", "block_influence"),
        ] {
            let error = pass(text);
            assert!(error.contains(hint), "{text}: {error}");
        }
        let text = "[[pass]]\nkind = \"prune_structured\"\nheads = 0.3\nneurons = 128\n\n[[pass]]\nkind = \"drop_layers\"\ncount = 2";
        let recipe = Recipe::parse("r.toml", text).unwrap();
        assert_eq!(Recipe::parse("again", &recipe.to_toml()).unwrap(), recipe);
        let error = Recipe::parse(
            "r.toml",
            "[[pass]]\nkind = \"prune\"\nsparsity = 0.5\n[[pass]]\nkind = \"drop_layers\"\ncount = 1",
        );
        let error = error.unwrap_err().to_string();
        assert!(error.contains("put it before `prune`"), "{error}");
    }

    #[test]
    fn weights_are_not_changed_once_they_are_codes() {
        let text = "[[pass]]\nkind = \"quantize\"\nscheme = \"int8\"\n[[pass]]\nkind = \"smoothquant\"";
        let error = Recipe::parse("r.toml", text).unwrap_err().to_string();
        assert!(error.contains("pass 2 `smoothquant` changes weights, but `quantize` before it"), "{error}");
    }
}
