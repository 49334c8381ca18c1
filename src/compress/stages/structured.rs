//! Passes that make a model smaller: heads, neurons and channels go, or whole blocks.

use super::super::calibrate::Calibration;
use super::super::stage::{Needs, Order, Promise, Report, Setting, Stage, Statistic, Subject};
use super::super::structured::{Amount, Part, Score, Shrunk, block_influence, shrink};
use super::super::{Error, Result, Selection};
use crate::model::keep_layers;
use serde::{Deserialize, Serialize};

/// Takes heads, neurons and channels out of the model. In each block equally many go, those of least score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneStructured {
    /// `magnitude`, `activation` or `taylor`.
    #[serde(default = "activation")]
    pub score: String,
    /// Heads of the keys that go, each with the queries that read it: a share of them, or how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<Amount>,
    /// Heads of the queries that go; where several read one head of the keys, equally many of each such group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<Amount>,
    /// Neurons of the feed-forward parts that go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neurons: Option<Amount>,
    /// Channels of the residual stream that go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<Amount>,
    /// Where a share is asked for, so many neurons and channels are left that this divides them: kernels like round numbers.
    #[serde(default = "eight")]
    pub multiple_of: usize,
}

fn activation() -> String {
    Score::Activation.name().into()
}

fn eight() -> usize {
    8
}

impl PruneStructured {
    fn score(&self) -> Result<Score> {
        let found = Score::ALL.into_iter().find(|score| score.name() == self.score);
        found.ok_or_else(|| Error::Setting {
            setting: "score",
            expected: Score::ALL.map(Score::name).join(", "),
            got: self.score.clone(),
        })
    }

    /// What goes, in the order in which it does.
    fn parts(&self) -> impl Iterator<Item = (Part, Amount)> {
        let all = [
            (Part::KeyHeads, self.kv_heads),
            (Part::Heads, self.heads),
            (Part::Neurons, self.neurons),
            (Part::Width, self.width),
        ];
        all.into_iter().filter_map(|(part, amount)| Some((part, amount?)))
    }
}

impl Stage for PruneStructured {
    fn kind(&self) -> &'static str {
        "prune_structured"
    }

    fn check(&self) -> Result<()> {
        self.score()?;
        if self.multiple_of == 0 {
            let (expected, got) = ("1 or more".into(), "0".into());
            return Err(Error::Setting { setting: "multiple_of", expected, got });
        }
        if self.parts().next().is_none() {
            let expected = "at least one of heads, kv_heads, neurons and width".into();
            return Err(Error::Setting {
                setting: "prune_structured",
                expected,
                got: "nothing to prune".into(),
            });
        }
        self.parts().try_for_each(|(part, amount)| amount.check(part))
    }

    fn order(&self) -> Order {
        Order::Shape
    }

    fn promise(&self) -> Promise {
        Promise::Shape
    }

    fn needs(&self) -> Needs {
        match self.score() {
            Ok(Score::Activation) => Needs::of(&[Statistic::Channels], &Selection::default()),
            Ok(score) => Needs { calibration: score.calibrates(), ..Needs::default() },
            Err(_) => Needs::default(),
        }
    }

    fn apply(&self, subject: &mut Subject, setting: &Setting) -> Result<Report> {
        let score = self.score()?;
        let before = subject.weights.count_elements();
        let (mut outcomes, mut words) = (vec![], vec![]);
        for (number, (part, amount)) in self.parts().enumerate() {
            let Shrunk { family, weights, outcomes: new } = {
                let calibration = Calibration {
                    family: subject.family.as_ref(),
                    weights: &subject.weights,
                    target: setting.target,
                    batches: if score.calibrates() { setting.batches } else { &[] },
                    // What was measured is of the model as it came in.
                    known: (number == 0).then_some(setting.known),
                    memory_bytes: setting.memory_bytes,
                };
                shrink(&calibration, part, score, amount, self.multiple_of)?
            };
            (subject.family, subject.weights) = (family, weights);
            let first = &new[0];
            words.push(format!("{} {} of {}", part.name(), first.after, first.before));
            outcomes.extend(new);
        }
        let after = subject.weights.count_elements();
        let summary = format!(
            "{} left by {}: {after} of {before} weights ({:.1} %)",
            words.join(", "),
            score.name(),
            100.0 * after as f64 / before as f64
        );
        let mut report = Report::new(summary).number("weights_before", before).number("weights", after);
        let keys = subject.family.config();
        if ["gpt2", "gpt_neox"].contains(&subject.family.name()) && keys.contains_key("head_dim") {
            report = report.note(
                "heads no longer share the width: config.json says so by `head_dim`, which other programs do not read for this family",
            );
        }
        Ok(report.of_layers(&outcomes))
    }
}

/// Takes whole blocks out of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DropLayers {
    /// The blocks that go, counted from zero; or `count`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
    /// How many go: those that change the stream least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// How that is measured: `block_influence`.
    #[serde(default = "influence")]
    pub score: String,
}

fn influence() -> String {
    "block_influence".into()
}

impl DropLayers {
    /// The blocks that go, with the scores of all where they were measured.
    fn chosen(&self, calibration: &Calibration) -> Result<(Vec<usize>, Option<Vec<f64>>)> {
        let scores = match calibration.batches.is_empty() {
            true => None,
            false => Some(block_influence(calibration)?),
        };
        let mut dropped = match (&self.layers, self.count, &scores) {
            (Some(layers), _, _) => layers.clone(),
            (None, Some(count), Some(scores)) => {
                if count >= scores.len() {
                    let (expected, got) =
                        (format!("less than all {} layers", scores.len()), count.to_string());
                    return Err(Error::Setting { setting: "count", expected, got });
                }
                let mut order: Vec<usize> = (0..scores.len()).collect();
                order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
                order.truncate(count);
                order
            }
            _ => return Err(Error::NoCalibration { method: "drop_layers" }),
        };
        dropped.sort_unstable();
        Ok((dropped, scores))
    }
}

impl Stage for DropLayers {
    fn kind(&self) -> &'static str {
        "drop_layers"
    }

    fn check(&self) -> Result<()> {
        let wrong = |setting, expected: &str, got: String| {
            Err(Error::Setting { setting, expected: expected.into(), got })
        };
        if self.score != influence() {
            return wrong("score", "block_influence", self.score.clone());
        }
        match (&self.layers, self.count) {
            (Some(_), Some(_)) => wrong("drop_layers", "either layers or count", "both".into()),
            (None, None) => wrong("drop_layers", "either layers or count", "neither".into()),
            (Some(layers), _) if layers.is_empty() => wrong("layers", "at least one", "none".into()),
            (_, Some(0)) => wrong("count", "1 or more", "0".into()),
            _ => Ok(()),
        }
    }

    fn order(&self) -> Order {
        Order::Shape
    }

    fn promise(&self) -> Promise {
        Promise::Shape
    }

    fn needs(&self) -> Needs {
        Needs { calibration: self.count.is_some(), ..Needs::default() }
    }

    fn apply(&self, subject: &mut Subject, setting: &Setting) -> Result<Report> {
        let calibration = Calibration {
            family: subject.family.as_ref(),
            weights: &subject.weights,
            target: setting.target,
            batches: setting.batches,
            known: None,
            memory_bytes: setting.memory_bytes,
        };
        let (dropped, scores) = self.chosen(&calibration)?;
        let layers = depth(subject);
        if let Some(layer) = dropped.iter().find(|&&layer| layer >= layers) {
            let (expected, got) = (format!("layers 0 to {}", layers.saturating_sub(1)), layer.to_string());
            return Err(Error::Setting { setting: "layers", expected, got });
        }
        let kept: Vec<usize> = (0..layers).filter(|layer| !dropped.contains(layer)).collect();
        let before = subject.weights.count_elements();
        subject.family = keep_layers(subject.family.as_ref(), &kept)?;
        subject.weights = subject.weights.keep_layers(&kept);
        let after = subject.weights.count_elements();
        let summary = format!(
            "layers {dropped:?} dropped, {} of {layers} left: {after} of {before} weights ({:.1} %)",
            kept.len(),
            100.0 * after as f64 / before as f64
        );
        let report = Report::new(summary).number("weights_before", before).number("weights", after);
        let of = |(layer, score): (usize, &f64)| serde_json::json!({ "layer": layer, "block_influence": score, "dropped": dropped.contains(&layer) });
        Ok(match scores {
            Some(scores) => report.of_layers(scores.iter().enumerate().map(of)),
            None => report,
        })
    }
}

/// Blocks of a model.
fn depth(subject: &Subject) -> usize {
    let keys = subject.family.config();
    let depth = ["n_layer", "num_hidden_layers"].iter().find_map(|key| keys.get(*key)?.as_u64());
    depth.unwrap_or(0) as usize
}
