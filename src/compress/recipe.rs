//! Recipes of compression: an ordered list of passes over a model's weights, in TOML.
//!
//! ```toml
//! [calibration]
//! text = ["stories.txt"]
//! windows = 128
//! context = 512
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

use super::gptq::Gptq;
use super::linear::Selection;
use super::method::{Assignment, Method, Outcome, Request, quantize, rescaled};
use super::observe::Observer;
use super::scheme::named;
use super::sensitivity::{Sensitivity, sensitivity};
use super::{Calibration, Error, Result};
use crate::data::windows::Batch;
use crate::model::{Family, Weights};
use crate::train::Target;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What is done to a model, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The text that passes measure with.
    #[serde(default)]
    pub calibration: Text,
    /// The passes.
    #[serde(rename = "pass", default)]
    pub passes: Vec<Stage>,
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
}

impl Default for Text {
    fn default() -> Self {
        Text { text: vec![], windows: 128, context: 512, tokenizer: None }
    }
}

/// One pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Stage {
    /// Moves scales from activations to weights; changes nothing else.
    Smoothquant {
        /// Share of the difficulty that moves.
        #[serde(default = "half")]
        alpha: f32,
        /// Patterns of weights; absent: all but the head.
        targets: Option<Vec<String>>,
        /// Patterns of those left out.
        #[serde(default)]
        ignore: Vec<String>,
    },
    /// Moves scales so that weights behind large inputs keep more precision under a scheme; changes nothing else.
    Awq {
        /// The scheme the weights will have.
        scheme: String,
        /// Patterns of weights; absent: all but the head.
        targets: Option<Vec<String>>,
        /// Patterns of those left out.
        #[serde(default)]
        ignore: Vec<String>,
    },
    /// Codes weights.
    Quantize {
        /// Name of the scheme.
        scheme: String,
        /// `rtn` or `gptq`.
        #[serde(default = "rtn")]
        method: String,
        /// Patterns of weights; absent: all but the head.
        targets: Option<Vec<String>>,
        /// Patterns of those left out.
        #[serde(default)]
        ignore: Vec<String>,
        /// gptq: see [`Gptq::damping`].
        #[serde(default = "damping")]
        damping: f64,
        /// gptq: see [`Gptq::act_order`].
        #[serde(default)]
        act_order: bool,
        /// Takes the mean change of outputs off biases.
        #[serde(default)]
        correct_bias: bool,
    },
    /// Codes weights, each by the scheme that fits it best within a budget.
    AssignBits {
        /// Bits per weight over all chosen layers.
        budget: f64,
        /// Schemes to choose from.
        choices: Vec<String>,
        /// `rtn` or `gptq`.
        #[serde(default = "rtn")]
        method: String,
        /// A file of `kiln sensitivity`; absent: measured here.
        sensitivity: Option<PathBuf>,
        /// Patterns of weights; absent: all but the head.
        targets: Option<Vec<String>>,
        /// Patterns of those left out.
        #[serde(default)]
        ignore: Vec<String>,
    },
}

fn half() -> f32 {
    0.5
}

fn rtn() -> String {
    "rtn".into()
}

fn damping() -> f64 {
    Gptq::default().damping
}

impl Recipe {
    /// Reads a recipe; `place` is named in errors.
    pub fn parse(place: &str, text: &str) -> Result<Recipe> {
        let wrong = |reason: String| Error::Recipe { place: place.to_string(), reason };
        let recipe: Recipe = toml::from_str(text).map_err(|error| wrong(nearest(error.to_string())))?;
        if recipe.passes.is_empty() {
            return Err(wrong(
                "there is no pass\n  hint: begin one with [[pass]] and kind = \"quantize\"".into(),
            ));
        }
        for stage in &recipe.passes {
            stage.check()?;
        }
        Ok(recipe)
    }

    /// Whether a pass needs a text.
    pub fn calibrates(&self) -> bool {
        self.passes.iter().any(Stage::calibrates)
    }

    /// Applies all passes; gives the weights and what became of each coded layer.
    pub fn apply(
        &self,
        family: &dyn Family,
        weights: &Weights,
        target: &Target,
        batches: &[Batch],
        see: &mut dyn FnMut(usize, &Stage),
    ) -> Result<(Weights, Vec<Outcome>)> {
        let (mut weights, mut outcomes) = (weights.clone(), vec![]);
        for (number, stage) in self.passes.iter().enumerate() {
            see(number, stage);
            let before: Vec<_> = self.passes[..number].iter().map(Stage::name).collect();
            let done = stage.apply(family, &weights, target, batches).map_err(|source| Error::Stage {
                number: number + 1,
                stage: stage.name(),
                before: if before.is_empty() { "none".into() } else { before.join(", ") },
                source: Box::new(source),
            })?;
            weights = done.0;
            outcomes.extend(done.1);
        }
        Ok((weights, outcomes))
    }
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

impl Stage {
    /// Its kind, as it is written.
    pub fn name(&self) -> &'static str {
        match self {
            Stage::Smoothquant { .. } => "smoothquant",
            Stage::Awq { .. } => "awq",
            Stage::Quantize { .. } => "quantize",
            Stage::AssignBits { .. } => "assign_bits",
        }
    }

    fn calibrates(&self) -> bool {
        match self {
            Stage::Smoothquant { .. } | Stage::Awq { .. } => true,
            Stage::Quantize { method, correct_bias, scheme, .. } => {
                method == "gptq" || *correct_bias || named(scheme).is_ok_and(|scheme| scheme.measures())
            }
            Stage::AssignBits { method, sensitivity, .. } => method == "gptq" || sensitivity.is_none(),
        }
    }

    /// Finds wrong names before anything is computed.
    fn check(&self) -> Result<()> {
        match self {
            Stage::Smoothquant { .. } => Ok(()),
            Stage::Awq { scheme, .. } => named(scheme).map(drop),
            Stage::Quantize { scheme, method, .. } => {
                named(scheme).and(method_of(method, 0.0, false).map(drop))
            }
            Stage::AssignBits { choices, method, .. } => {
                choices.iter().try_for_each(|choice| named(choice).map(drop))?;
                method_of(method, 0.0, false).map(drop)
            }
        }
    }

    fn selection(&self) -> Selection {
        let (Stage::Smoothquant { targets, ignore, .. }
        | Stage::Awq { targets, ignore, .. }
        | Stage::Quantize { targets, ignore, .. }
        | Stage::AssignBits { targets, ignore, .. }) = self;
        Selection { targets: targets.clone(), ignore: ignore.clone() }
    }

    fn apply(
        &self,
        family: &dyn Family,
        weights: &Weights,
        target: &Target,
        batches: &[Batch],
    ) -> Result<(Weights, Vec<Outcome>)> {
        let selection = self.selection();
        let request = |schemes: Assignment, method, correct_bias, selection| Request {
            schemes,
            method,
            selection,
            correct_bias,
            observer: Observer::MeanSquare,
            batches,
        };
        match self {
            Stage::Smoothquant { alpha, .. } => {
                let method = Method::Smooth { alpha: *alpha };
                let request = request(named("W8A8")?.into(), method, false, selection);
                Ok((rescaled(family, weights, target, &request)?.0, vec![]))
            }
            Stage::Awq { scheme, .. } => {
                let request = request(named(scheme)?.into(), Method::Awq, false, selection);
                Ok((rescaled(family, weights, target, &request)?.0, vec![]))
            }
            Stage::Quantize { scheme, method, damping, act_order, correct_bias, .. } => {
                let method = method_of(method, *damping, *act_order)?;
                let request = request(named(scheme)?.into(), method, *correct_bias, selection);
                quantize(family, weights, target, &request)
            }
            Stage::AssignBits { budget, choices, method, sensitivity: file, .. } => {
                let known = match file {
                    Some(path) => read(path)?,
                    None => {
                        let schemes = choices.iter().map(|name| named(name)).collect::<Result<Vec<_>>>()?;
                        sensitivity(&Calibration { family, weights, target, batches }, &selection, &schemes)?
                    }
                };
                let (schemes, _) = known.assign(*budget, Some(choices))?;
                let known: Vec<String> = schemes.each.keys().cloned().collect();
                let selection = Selection { targets: Some(known), ignore: selection.ignore };
                let method = method_of(method, damping(), false)?;
                quantize(family, weights, target, &request(schemes, method, false, selection))
            }
        }
    }
}

fn read(path: &Path) -> Result<Sensitivity> {
    let place = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::Recipe { place: place.clone(), reason: error.to_string() })?;
    Sensitivity::parse(&place, &text)
}

fn method_of(name: &str, damping: f64, act_order: bool) -> Result<Method> {
    match name {
        "rtn" => Ok(Method::Nearest),
        "gptq" => Ok(Method::Gptq(Gptq { damping, act_order })),
        _ => Err(Error::Setting { setting: "method", expected: "rtn or gptq".into(), got: name.to_string() }),
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
}
