//! Passes that only move scales between norms and layers, so that codes will fit better.

use super::super::method::{Assignment, Method, Request, rescaled};
use super::super::observe::Observer;
use super::super::scheme::named;
use super::super::stage::{Needs, Order, Promise, Report, Setting, Stage, Statistic, Subject};
use super::super::{Error, Result, Selection};
use serde::{Deserialize, Serialize};

/// Moves scales from activations to weights; changes nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Smoothquant {
    /// Share of the difficulty that moves.
    #[serde(default = "half")]
    pub alpha: f32,
    /// Patterns of weights; absent: all but the head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
    /// Patterns of those left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
}

/// Moves scales so that weights behind large inputs keep more precision under a scheme; changes nothing else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Awq {
    /// The scheme the weights will have.
    pub scheme: String,
    /// Patterns of weights; absent: all but the head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
    /// Patterns of those left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
}

fn half() -> f32 {
    0.5
}

impl Smoothquant {
    fn selection(&self) -> Selection {
        Selection { targets: self.targets.clone(), ignore: self.ignore.clone() }
    }
}

impl Awq {
    fn selection(&self) -> Selection {
        Selection { targets: self.targets.clone(), ignore: self.ignore.clone() }
    }
}

impl Stage for Smoothquant {
    fn kind(&self) -> &'static str {
        "smoothquant"
    }

    fn check(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.alpha) {
            return Ok(());
        }
        let (expected, got) = ("0 to 1".into(), self.alpha.to_string());
        Err(Error::Setting { setting: "alpha", expected, got })
    }

    fn order(&self) -> Order {
        Order::Weights
    }

    fn promise(&self) -> Promise {
        Promise::Exact
    }

    fn needs(&self) -> Needs {
        Needs::of(&[Statistic::Channels], &self.selection())
    }

    fn apply(&self, subject: &mut Subject, setting: &Setting) -> Result<Report> {
        let method = Method::Smooth { alpha: self.alpha };
        move_scales(subject, setting, named("W8A8")?.into(), method, self.selection())
    }
}

impl Stage for Awq {
    fn kind(&self) -> &'static str {
        "awq"
    }

    fn check(&self) -> Result<()> {
        named(&self.scheme).map(drop)
    }

    fn order(&self) -> Order {
        Order::Weights
    }

    fn promise(&self) -> Promise {
        Promise::Exact
    }

    fn needs(&self) -> Needs {
        Needs::of(&[Statistic::Gram, Statistic::Channels], &self.selection())
    }

    fn apply(&self, subject: &mut Subject, setting: &Setting) -> Result<Report> {
        move_scales(subject, setting, named(&self.scheme)?.into(), Method::Awq, self.selection())
    }
}

fn move_scales(
    subject: &mut Subject,
    setting: &Setting,
    schemes: Assignment,
    method: Method,
    selection: Selection,
) -> Result<Report> {
    let request = Request {
        schemes,
        method,
        selection,
        correct_bias: false,
        observer: Observer::MeanSquare,
        batches: setting.batches,
        known: Some(setting.known),
        memory_bytes: setting.memory_bytes,
    };
    let (weights, notes) = rescaled(subject.family.as_ref(), &subject.weights, setting.target, &request)?;
    subject.weights = weights;
    let mut moved: Vec<_> = notes.into_iter().collect();
    moved.sort();
    let summary = format!("moved scales of {} weights; scores on a probe batch stay", moved.len());
    let layer = |(weight, note)| serde_json::json!({ "weight": weight, "note": note });
    Ok(Report::new(summary).of_layers(moved.into_iter().map(layer)))
}
