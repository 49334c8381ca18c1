//! A pass that removes weights without structure.

use super::super::prune::{Method, NO_SPEED, Outcome, Request, SparseGpt, prune, sparsity_of};
use super::super::scheme::named;
use super::super::sensitivity::Sensitivity;
use super::super::stage::{Needs, Order, Promise, Report, Setting, Stage, Statistic, Subject};
use super::super::{Error, Result, Selection, matches};
use crate::model::Family;
use crate::tensor::sparse::{Scope, Sparsity};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Sets weights of linear layers to zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// `magnitude`, `wanda` or `sparsegpt`.
    #[serde(default = "magnitude")]
    pub method: String,
    /// Share of the weights that goes; or `pattern`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<f64>,
    /// So many of each few consecutive inputs stay: `2:4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// magnitude: which weights are compared, `row`, `layer` or `global`.
    #[serde(default = "layer")]
    pub scope: String,
    /// sparsegpt: see [`SparseGpt::damping`].
    #[serde(default = "damping")]
    pub damping: f64,
    /// sparsegpt: see [`SparseGpt::block`].
    #[serde(default = "block")]
    pub block: usize,
    /// sparsegpt: name of the scheme of codes that what stays becomes in the same pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// A file of `kiln sensitivity --prune`: each layer loses what it minds least, `sparsity` of all together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<PathBuf>,
    /// Patterns of weights; absent: all but the head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
    /// Patterns of those left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
}

fn magnitude() -> String {
    "magnitude".into()
}

fn layer() -> String {
    Scope::default().name().into()
}

fn damping() -> f64 {
    SparseGpt::default().damping
}

fn block() -> usize {
    SparseGpt::default().block
}

impl Prune {
    /// A method with its defaults.
    pub fn by(method: &str) -> Prune {
        let keys = toml::Table::from_iter([("method".to_string(), toml::Value::String(method.into()))]);
        keys.try_into().expect("every other key has a default")
    }

    fn selection(&self) -> Selection {
        Selection { targets: self.targets.clone(), ignore: self.ignore.clone() }
    }

    /// What goes of each layer where that is not the same, and the layers.
    fn shares(&self, family: &dyn Family) -> Result<(BTreeMap<String, f64>, Selection)> {
        let (Some(path), Some(sparsity)) = (&self.sensitivity, self.sparsity) else {
            return Ok((BTreeMap::new(), self.selection()));
        };
        let mut known = Sensitivity::read(path)?;
        if known.pruned_by.is_none() {
            let reason =
                "it tells nothing of pruning\n  hint: kiln sensitivity MODEL --prune 0.3,0.5,0.7".into();
            return Err(Error::Recipe { place: path.display().to_string(), reason });
        }
        known.expect_of(family)?;
        // Of the layers that were measured those that are meant.
        let meant = |weight: &str| {
            let fits = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, weight));
            self.targets.as_deref().is_none_or(fits) && !fits(&self.ignore)
        };
        known.layers.retain(|layer| meant(&layer.weight));
        let (each, _) = known.assign_shares(sparsity)?;
        let targets = Some(each.keys().cloned().collect());
        Ok((each, Selection { targets, ignore: vec![] }))
    }

    /// What chooses the weights.
    pub fn method(&self) -> Result<Method> {
        let wrong = |setting, expected: &str, got: &dyn ToString| Error::Setting {
            setting,
            expected: expected.into(),
            got: got.to_string(),
        };
        let scope = Scope::ALL.into_iter().find(|scope| scope.name() == self.scope);
        let scope = scope.ok_or_else(|| wrong("scope", "row, layer or global", &self.scope))?;
        if !self.damping.is_finite() || self.damping < 0.0 {
            return Err(wrong("damping", "0 or more", &self.damping));
        }
        if self.block == 0 {
            return Err(wrong("block", "1 or more", &self.block));
        }
        match self.method.as_str() {
            "magnitude" => Ok(Method::Magnitude(scope)),
            "wanda" => Ok(Method::Wanda),
            "sparsegpt" => {
                let (damping, block) = (self.damping, self.block);
                Ok(Method::SparseGpt(SparseGpt { damping, block, inclusive: false }))
            }
            _ => Err(wrong("method", "magnitude, wanda or sparsegpt", &self.method)),
        }
    }
}

impl Stage for Prune {
    fn kind(&self) -> &'static str {
        "prune"
    }

    fn check(&self) -> Result<()> {
        self.scheme.as_deref().map(named).transpose()?;
        let sparsity = sparsity_of(self.sparsity, self.pattern.as_deref())?;
        let method = self.method()?;
        let uniform = matches!(sparsity, Sparsity::Pattern(_)) || method == Method::Magnitude(Scope::Global);
        if self.sensitivity.is_some() && uniform {
            let expected =
                "absent with a pattern and with scope global: they say themselves what goes where".into();
            return Err(Error::Setting { setting: "sensitivity", expected, got: "a file".into() });
        }
        Ok(())
    }

    fn order(&self) -> Order {
        if self.scheme.is_some() { Order::Codes } else { Order::Weights }
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn prunes(&self) -> bool {
        true
    }

    fn needs(&self) -> Needs {
        match self.method().is_ok_and(|method| method.calibrates()) {
            true => Needs::of(&[Statistic::Gram], &self.selection()),
            false => Needs::default(),
        }
    }

    fn apply(&self, subject: &mut Subject, setting: &Setting) -> Result<Report> {
        let method = self.method()?;
        // Without need of a text none is read for the report's sake.
        let batches = if method.calibrates() { setting.batches } else { &[] };
        let (each, selection) = self.shares(subject.family.as_ref())?;
        let request = Request {
            method,
            sparsity: sparsity_of(self.sparsity, self.pattern.as_deref())?,
            each,
            scheme: self.scheme.as_deref().map(named).transpose()?,
            selection,
            batches,
            known: Some(setting.known),
            memory_bytes: setting.memory_bytes,
        };
        let made = prune(subject.family.as_ref(), &subject.weights, setting.target, &request)?;
        let sparsity = made.sparsity();
        subject.weights = made.weights;
        let asked = request.sparsity;
        let count = made.outcomes.len();
        let summary =
            format!("{:.2} % of {count} layers removed by {} ({asked})", 100.0 * sparsity, method.name());
        let report = Report::new(summary).number("sparsity", sparsity).note(NO_SPEED);
        let empty: usize = made.outcomes.iter().map(|outcome: &Outcome| outcome.empty_rows).sum();
        let report = match empty {
            0 => report,
            _ => report.note(format!("{empty} outputs have no weight left")),
        };
        Ok(report.of_layers(&made.outcomes))
    }
}
