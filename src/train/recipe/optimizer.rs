//! The optimiser and the clipping of a recipe.

use serde::{Serialize, Serializer};
use toml::Value;

use super::error::Error;
use super::read::Section;
use crate::passes::matches;

/// How gradients become updates.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Optimizer {
    /// The update rule.
    #[serde(flatten)]
    pub rule: Rule,
    /// Weight decay, whatever the rule.
    #[serde(flatten)]
    pub decay: Decay,
}

/// The update rule and its constants, named as in the papers.
#[allow(missing_docs, reason = "the constants have their names from the papers")]
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Rule {
    /// `w <- w - rate * g`
    GradientDescent,
    /// Gradient descent along a running sum of gradients.
    Sgd { momentum: f64, dampening: f64, nesterov: bool },
    /// Running means of the gradient and of its square; decay goes through the gradient.
    Adam { betas: [f64; 2], eps: f64 },
    /// Adam with decay taken off the weight itself.
    Adamw { betas: [f64; 2], eps: f64 },
    /// Adam's step scaled, tensor by tensor, to the norm of the weights.
    Lamb { betas: [f64; 2], eps: f64 },
}

/// Weight decay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decay {
    /// Share of a weight taken off per step and unit of learning rate.
    pub weight_decay: f64,
    /// Taken off the weight itself, rather than added to the gradient.
    pub decoupled: bool,
    /// Tensors left alone: name patterns with `*`, and the word `1d` for every tensor of fewer than two dimensions.
    pub no_decay: Vec<String>,
}

/// What keeps a gradient from growing too large.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clip {
    /// Nothing: `"none"`.
    None,
    /// The gradients are scaled together so that their global norm is at most this: `1.0` or `{ norm = 1.0 }`.
    Norm(f64),
    /// Each element is clamped to plus or minus this: `{ value = 0.5 }`.
    Value(f64),
}

impl Serialize for Clip {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Clip::None => serializer.serialize_str("none"),
            Clip::Norm(limit) => serializer.collect_map([("norm", limit)]),
            Clip::Value(limit) => serializer.collect_map([("value", limit)]),
        }
    }
}

/// Stands in `no_decay` for the tensors of fewer than two dimensions: biases and norm scales.
const ONE_DIMENSION: &str = "1d";

impl Decay {
    /// Whether a tensor of that name and number of dimensions decays.
    pub fn applies(&self, name: &str, dimensions: usize) -> bool {
        !self.no_decay.iter().any(|pattern| match pattern.as_str() {
            ONE_DIMENSION => dimensions < 2,
            pattern => matches(pattern, name),
        })
    }
}

const KINDS: &[(&str, &str)] = &[
    ("adamw", "adamw"),
    ("adam", "adam"),
    ("sgd", "sgd"),
    ("lamb", "lamb"),
    ("gradient_descent", "gradient_descent"),
];

/// Reads `train.optimizer`: a table, or only the kind as text.
pub(super) fn optimizer(train: &Section) -> Result<Optimizer, Error> {
    if let Some(Value::String(_)) = train.value("optimizer") {
        let kind = train.word("optimizer", KINDS)?.or("adamw");
        let empty = train.without("optimizer");
        return Ok(Optimizer { rule: rule(&empty, kind)?, decay: decay(&empty, kind)? });
    }
    // Opened twice: which keys are known depends on the kind.
    let any = ["kind", "momentum", "dampening", "nesterov", "betas", "eps"];
    let shared = ["kind", "weight_decay", "decoupled", "no_decay"];
    let kind = train.inner("optimizer", &[&any[..], &shared[..]].concat())?.word("kind", KINDS)?.or("adamw");
    let own: &[&str] = match kind {
        "gradient_descent" => &[],
        "sgd" => &["momentum", "dampening", "nesterov"],
        _ => &["betas", "eps"],
    };
    let section = train.inner("optimizer", &[own, &shared].concat())?;
    Ok(Optimizer { rule: rule(&section, kind)?, decay: decay(&section, kind)? })
}

fn rule(section: &Section, kind: &str) -> Result<Rule, Error> {
    match kind {
        "gradient_descent" => return Ok(Rule::GradientDescent),
        "sgd" => return momentum(section),
        _ => {}
    }
    let hint = "the usual pair is [0.9, 0.999]";
    let fits = |betas: &[f64; 2]| betas.iter().all(|beta| (0.0..1.0).contains(beta));
    let betas = section.pair("betas")?.must(fits, "two numbers from 0 to below 1", hint)?;
    let eps_hint = "the usual value is 1e-8; it keeps the update finite where the gradient is zero";
    let eps = section.number("eps")?.must(|&eps| eps > 0.0, "above zero", eps_hint)?;
    match kind {
        "adam" => Ok(Rule::Adam { betas: betas.or([0.9, 0.999]), eps: eps.or(1e-8) }),
        "lamb" => Ok(Rule::Lamb { betas: betas.or([0.9, 0.999]), eps: eps.or(1e-6) }),
        _ => Ok(Rule::Adamw { betas: betas.or([0.9, 0.99]), eps: eps.or(1e-8) }),
    }
}

fn momentum(section: &Section) -> Result<Rule, Error> {
    let share = |value: &f64| (0.0..1.0).contains(value);
    let hint = "the usual value is 0.9";
    let momentum = section.number("momentum")?.must(share, "from 0 to below 1", hint)?.or(0.0);
    let hint = "the usual value is 0";
    let fits = |value: &f64| (0.0..=1.0).contains(value);
    let dampening = section.number("dampening")?.must(fits, "from 0 to 1", hint)?.or(0.0);
    let expected = "false unless momentum is above 0 and dampening is 0";
    let fits = |&nesterov: &bool| !nesterov || (momentum > 0.0 && dampening == 0.0);
    let nesterov = section.flag("nesterov")?.must(fits, expected, "set momentum = 0.9")?.or(false);
    Ok(Rule::Sgd { momentum, dampening, nesterov })
}

fn decay(section: &Section, kind: &str) -> Result<Decay, Error> {
    let adamw = kind == "adamw";
    let decoupled = section.flag("decoupled")?;
    // LAMB's decay enters its update before the trust ratio, never the gradient.
    let hint = "leave it out, or choose kind = \"adam\" for decay through the gradient";
    let fits = |&decoupled: &bool| decoupled || kind != "lamb";
    let decoupled = decoupled.must(fits, "true, as LAMB has it", hint)?;
    let hint = "0 turns it off; the usual value is 0.1 or less";
    let weight_decay = section.number("weight_decay")?.must(|&decay| decay >= 0.0, "zero or more", hint)?;
    Ok(Decay {
        weight_decay: weight_decay.or(if adamw { 0.1 } else { 0.0 }),
        decoupled: decoupled.or(adamw || kind == "lamb"),
        no_decay: section.texts("no_decay")?.or(vec![ONE_DIMENSION.to_string()]),
    })
}

/// Reads `train.clip`: a number, `"none"`, or a table with one of `norm` and `value`.
pub(super) fn clip(train: &Section) -> Result<Clip, Error> {
    let hint = "leave nothing unclipped by mistake: write clip = \"none\" to turn it off";
    let above_zero = |limit: &f64| *limit > 0.0;
    match train.value("clip") {
        Some(Value::String(_)) => Ok(train.word("clip", &[("none", Clip::None)])?.or(Clip::None)),
        Some(Value::Table(_)) => {
            let section = train.inner("clip", &["norm", "value"])?;
            let norm = section.number("norm")?.must(above_zero, "above zero", hint)?;
            let value = section.number("value")?.must(above_zero, "above zero", hint)?;
            match (norm.get(), value.get()) {
                (Some(&limit), None) => Ok(Clip::Norm(limit)),
                (None, Some(&limit)) => Ok(Clip::Value(limit)),
                (None, None) => norm.need("give norm = 1.0 or value = 0.5").map(Clip::Norm),
                (Some(_), Some(_)) => {
                    Err(value
                        .impossible("absent beside `norm`".to_string(), "keep one of the two".to_string()))
                }
            }
        }
        Some(Value::Integer(_) | Value::Float(_)) | None => {
            Ok(Clip::Norm(train.number("clip")?.must(above_zero, "above zero", hint)?.or(1.0)))
        }
        Some(_) => Err(train.wrong_type("clip", "a number, \"none\" or a table")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_and_norms_do_not_decay_unless_the_recipe_says_so() {
        let decay = |patterns: &[&str]| Decay {
            weight_decay: 0.1,
            decoupled: true,
            no_decay: patterns.iter().map(|pattern| pattern.to_string()).collect(),
        };
        assert!(!decay(&["1d"]).applies("h.0.attn.c_attn.bias", 1));
        assert!(decay(&["1d"]).applies("h.0.attn.c_attn.weight", 2));
        assert!(decay(&[]).applies("h.0.attn.c_attn.bias", 1));
        assert!(!decay(&["w*.weight"]).applies("wte.weight", 2));
        assert!(decay(&["w*.weight"]).applies("h.0.attn.c_attn.weight", 2));
    }
}
