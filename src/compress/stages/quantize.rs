//! Passes that make codes of weights.

use super::super::gptq::Gptq;
use super::super::method::{Assignment, Method, Outcome, Request, quantize};
use super::super::observe::Observer;
use super::super::scheme::named;
use super::super::sensitivity::{Sensitivity, sensitivity};
use super::super::stage::{Needs, Order, Promise, Report, Setting, Stage, Statistic, Subject};
use super::super::{Calibration, Error, Result, Selection};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Codes weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantize {
    /// Name of the scheme.
    pub scheme: String,
    /// `rtn` or `gptq`.
    #[serde(default = "rtn")]
    pub method: String,
    /// gptq: see [`Gptq::damping`].
    #[serde(default = "damping")]
    pub damping: f64,
    /// gptq: see [`Gptq::act_order`].
    #[serde(default)]
    pub act_order: bool,
    /// Takes the mean change of outputs off biases.
    #[serde(default)]
    pub correct_bias: bool,
    /// Patterns of weights; absent: all but the head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
    /// Patterns of those left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
}

/// Codes weights, each by the scheme that fits it best within a budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssignBits {
    /// Bits per weight over all chosen layers.
    pub budget: f64,
    /// Schemes to choose from.
    pub choices: Vec<String>,
    /// `rtn` or `gptq`.
    #[serde(default = "rtn")]
    pub method: String,
    /// A file of `kiln sensitivity`; absent: measured here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sensitivity: Option<PathBuf>,
    /// Patterns of weights; absent: all but the head.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Vec<String>>,
    /// Patterns of those left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
}

fn rtn() -> String {
    "rtn".into()
}

fn damping() -> f64 {
    Gptq::default().damping
}

impl Quantize {
    /// A scheme by round to nearest, on all layers but the head.
    pub fn to(scheme: impl Into<String>) -> Quantize {
        let (method, damping) = (rtn(), damping());
        Quantize {
            scheme: scheme.into(),
            method,
            damping,
            act_order: false,
            correct_bias: false,
            targets: None,
            ignore: vec![],
        }
    }

    fn selection(&self) -> Selection {
        Selection { targets: self.targets.clone(), ignore: self.ignore.clone() }
    }
}

impl AssignBits {
    fn selection(&self) -> Selection {
        Selection { targets: self.targets.clone(), ignore: self.ignore.clone() }
    }
}

impl Stage for Quantize {
    fn kind(&self) -> &'static str {
        "quantize"
    }

    fn check(&self) -> Result<()> {
        named(&self.scheme)?;
        method_of(&self.method, self.damping, self.act_order).map(drop)
    }

    fn order(&self) -> Order {
        Order::Codes
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        if self.method == "gptq" {
            needs = Needs::of(&[Statistic::Gram], &self.selection());
        }
        if self.correct_bias {
            needs.statistics.push((Statistic::Channels, self.selection()));
        }
        let measures = named(&self.scheme).is_ok_and(|scheme| scheme.measures());
        needs.calibration = self.method == "gptq" || self.correct_bias || measures;
        needs
    }

    fn apply(&self, subject: &mut Subject, setting: &Setting) -> Result<Report> {
        let method = method_of(&self.method, self.damping, self.act_order)?;
        let schemes = named(&self.scheme)?.into();
        make_codes(subject, setting, schemes, method, self.correct_bias, self.selection())
    }
}

impl Stage for AssignBits {
    fn kind(&self) -> &'static str {
        "assign_bits"
    }

    fn check(&self) -> Result<()> {
        self.choices.iter().try_for_each(|choice| named(choice).map(drop))?;
        if !self.budget.is_finite() || self.budget <= 0.0 {
            let (expected, got) = ("bits per weight above 0".into(), self.budget.to_string());
            return Err(Error::Setting { setting: "budget", expected, got });
        }
        method_of(&self.method, 0.0, false).map(drop)
    }

    fn order(&self) -> Order {
        Order::Codes
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn needs(&self) -> Needs {
        let mut needs = Needs::default();
        if self.method == "gptq" {
            needs = Needs::of(&[Statistic::Gram], &self.selection());
        }
        needs.calibration = self.method == "gptq" || self.sensitivity.is_none();
        needs
    }

    fn apply(&self, subject: &mut Subject, setting: &Setting) -> Result<Report> {
        let selection = self.selection();
        let known = match &self.sensitivity {
            Some(path) => {
                let known = Sensitivity::read(path)?;
                known.expect_of(subject.family.as_ref())?;
                if known.pruned_by.is_some() {
                    let reason = "it tells of pruning, not of schemes\n  hint: kiln sensitivity MODEL --schemes int8,int4-g32";
                    return Err(Error::Recipe { place: path.display().to_string(), reason: reason.into() });
                }
                known
            }
            None => {
                let schemes = self.choices.iter().map(|name| named(name)).collect::<Result<Vec<_>>>()?;
                let (target, batches) = (setting.target, setting.batches);
                let (family, weights) = (subject.family.as_ref(), &subject.weights);
                let (known, memory_bytes) = (Some(setting.known), setting.memory_bytes);
                let calibration = Calibration { family, weights, target, batches, known, memory_bytes };
                sensitivity(&calibration, &selection, &schemes)?
            }
        };
        let (schemes, _) = known.assign(self.budget, Some(&self.choices))?;
        let known: Vec<String> = schemes.each.keys().cloned().collect();
        let selection = Selection { targets: Some(known), ignore: selection.ignore };
        let method = method_of(&self.method, damping(), false)?;
        make_codes(subject, setting, schemes, method, false, selection)
    }
}

fn make_codes(
    subject: &mut Subject,
    setting: &Setting,
    schemes: Assignment,
    method: Method,
    correct_bias: bool,
    selection: Selection,
) -> Result<Report> {
    let request = Request {
        schemes,
        method,
        selection,
        correct_bias,
        observer: Observer::MeanSquare,
        batches: setting.batches,
        known: Some(setting.known),
        memory_bytes: setting.memory_bytes,
    };
    let (weights, outcomes) = quantize(subject.family.as_ref(), &subject.weights, setting.target, &request)?;
    subject.weights = weights;
    let elements = |o: &Outcome| (o.rows * o.cols) as f64;
    let all: f64 = outcomes.iter().map(elements).sum();
    let bits: f64 = outcomes.iter().map(|o| elements(o) * o.bits_per_weight).sum::<f64>() / all.max(1.0);
    let summary = format!("{} layers at {bits:.3} bits per weight by {}", outcomes.len(), method.name());
    Ok(Report::new(summary).number("bits_per_weight", bits).of_layers(&outcomes))
}

fn method_of(name: &str, damping: f64, act_order: bool) -> Result<Method> {
    match name {
        "rtn" => Ok(Method::Nearest),
        "gptq" => Ok(Method::Gptq(Gptq { damping, act_order })),
        _ => Err(Error::Setting { setting: "method", expected: "rtn or gptq".into(), got: name.to_string() }),
    }
}
