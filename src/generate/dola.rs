//! Scores of a model against those of its own early layers (DoLa, Chuang et al. 2023): what only later layers know counts.
//!
//! At each token the head reads some early layers as it reads the last one. Taken is the layer whose distribution q is farthest from the
//! last one's, p, by the mean of KL(m, p) and KL(m, q) with m between both; a token's score is then log p - log q, where p is at least a
//! tenth of the likeliest token's. All others are never chosen. Early layers are read without the norm before the head, as in transformers.

use super::{Error, Result};
use crate::data::sampling::Unfit;
use crate::graph::Graph;
use crate::model::{Extent, Family, Mode, Reading};
use std::str::FromStr;

/// Share of the likeliest token's probability that a token must have.
const LEAST: f64 = 0.1;

/// Which early layers are read: zero is the embedding, one what the first layer gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EarlyLayers {
    /// Every other one of the lower half.
    Low,
    /// Every other one of the upper half.
    High,
    /// These.
    These(Vec<usize>),
}

impl FromStr for EarlyLayers {
    type Err = Error;

    fn from_str(text: &str) -> Result<EarlyLayers> {
        match text {
            "low" => Ok(EarlyLayers::Low),
            "high" => Ok(EarlyLayers::High),
            _ => {
                let numbers = text.split(',').map(|word| word.trim().parse::<usize>());
                let numbers = numbers.collect::<Result<Vec<_>, _>>().map_err(|_| unfit(text.to_string()))?;
                Ok(EarlyLayers::These(numbers))
            }
        }
    }
}

impl EarlyLayers {
    /// Their numbers in a model.
    pub fn of(&self, family: &dyn Family) -> Result<Vec<usize>> {
        family.interface().expect_causal()?;
        let mut graph = Graph::new();
        let reading = Reading::new(Extent { batch: 1, context: 1 }, Mode::Evaluate);
        let forward = family.read(&mut graph, &reading)?;
        // A table of tokens that is the head as well is read a second time.
        let uses = graph.uses();
        let head = graph.nodes().iter().find(|node| node.outputs.contains(&forward.logits));
        let tied = head.is_some_and(|node| node.inputs.iter().skip(1).any(|value| uses[value.index()] > 1));
        self.among(forward.hidden.len().saturating_sub(1), tied)
    }

    /// Their numbers in a model of so many layers. Where the head is the table of tokens, the embedding says no more than the token
    /// that stands there, and the lower half begins behind it.
    fn among(&self, layers: usize, tied: bool) -> Result<Vec<usize>> {
        let begin = if tied { layers.saturating_sub(1).min(2) } else { 0 };
        let [low, high] = if layers <= 40 { [layers / 2; 2] } else { [20, layers - 20] };
        let chosen: Vec<usize> = match self {
            EarlyLayers::Low if begin == layers / 2 => vec![begin],
            EarlyLayers::Low => (begin..low).step_by(2).collect(),
            EarlyLayers::High => (high..layers).step_by(2).collect(),
            EarlyLayers::These(numbers) => numbers.clone(),
        };
        match chosen.iter().find(|layer| **layer >= layers) {
            Some(layer) => Err(unfit(format!("layer {layer} of a model with {layers}"))),
            None if chosen.is_empty() => Err(unfit(format!("no layer of a model with {layers}"))),
            None => Ok(chosen),
        }
    }
}

fn unfit(got: String) -> Error {
    let expected = "low, high, or numbers such as 0,2,4 below that of the last layer";
    Error::Setting(Unfit { setting: "dola_layers", expected, got })
}

/// Scores of the last layer against those of the early one that is farthest from it.
pub(super) fn against_early(last: &[f32], early: &[&[f32]]) -> Vec<f32> {
    let own = logarithms(last);
    let early: Vec<Vec<f64>> = early.iter().map(|scores| logarithms(scores)).collect();
    let far: Vec<f64> = early.iter().map(|other| divergence(&own, other)).collect();
    let farthest = (0..early.len()).reduce(|best, at| if far[at] > far[best] { at } else { best });
    let Some(farthest) = farthest else { return last.to_vec() };
    let least = own.iter().copied().fold(f64::NEG_INFINITY, f64::max) + LEAST.ln();
    let score = |(own, early): (&f64, &f64)| match *own >= least {
        true => (own - early) as f32,
        false => f32::NEG_INFINITY,
    };
    own.iter().zip(&early[farthest]).map(score).collect()
}

/// Mean of KL(m, p) and KL(m, q), with m between both, of logarithms of probabilities.
fn divergence(p: &[f64], q: &[f64]) -> f64 {
    let of = |(p, q): (&f64, &f64)| {
        let between = 0.5 * (p.exp() + q.exp());
        if between > 0.0 { between * (between.ln() - 0.5 * (p + q)) } else { 0.0 }
    };
    p.iter().zip(q).map(of).sum()
}

fn logarithms(scores: &[f32]) -> Vec<f64> {
    let best = scores.iter().copied().filter(|score| !score.is_nan()).fold(f32::NEG_INFINITY, f32::max);
    let best = f64::from(best);
    let total: f64 = scores.iter().map(|&score| (f64::from(score) - best).exp()).sum();
    scores.iter().map(|&score| f64::from(score) - best - total.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::tests::families;

    #[test]
    fn halves_and_numbers_are_those_of_the_models_layers() {
        let among = |text: &str, layers, tied| text.parse::<EarlyLayers>().unwrap().among(layers, tied);
        for (text, layers, tied, expected) in [
            ("low", 12, false, vec![0, 2, 4]),
            ("low", 12, true, vec![2, 4]),
            ("high", 12, true, vec![6, 8, 10]),
            ("low", 5, true, vec![2]),
            ("high", 5, true, vec![2, 4]),
            ("low", 2, true, vec![1]),
            ("low", 2, false, vec![0]),
            ("low", 48, true, (2..20).step_by(2).collect()),
            ("high", 48, false, (28..48).step_by(2).collect()),
            ("3, 1", 4, false, vec![3, 1]),
        ] {
            assert_eq!(among(text, layers, tied).unwrap(), expected, "{text} of {layers}");
        }
        assert!(among("0,4", 4, false).unwrap_err().to_string().contains("layer 4 of a model with 4"));
        assert!(among("low", 3, true).unwrap_err().to_string().contains("no layer"));
        assert!("lower".parse::<EarlyLayers>().unwrap_err().to_string().contains("dola_layers is lower"));
        // Tied heads of two layers: the embedding does not count.
        let (_, family) = families(8).swap_remove(0);
        assert_eq!(EarlyLayers::Low.of(&*family).unwrap(), [1]);
    }

    #[test]
    fn scores_are_taken_against_the_layer_that_is_farthest_and_only_of_likely_tokens() {
        // From the formula in 64 bits elsewhere.
        let last = [2.0, 1.5, -1.0, 0.3, 1.9, -0.2];
        let early: [&[f32]; 3] = [
            &[1.0, 1.2, 0.0, 0.1, 1.1, 0.2],
            &[0.1, -2.0, 3.0, 0.4, 0.2, 1.0],
            &[2.1, 1.4, -0.9, 0.2, 1.8, -0.1],
        ];
        let expected = [2.137_870_4, 3.737_870_4, f32::NEG_INFINITY, 0.137_870_39, 1.937_870_4, -0.962_129_6];
        for (got, expected) in against_early(&last, &early).iter().zip(expected) {
            assert!((got - expected).abs() < 1e-5 || *got == expected, "{got}, expected {expected}");
        }
        let nearest = against_early(&last, &early[2..]);
        assert!((nearest[0] + 0.113_809_41).abs() < 1e-5 && nearest[2] == f32::NEG_INFINITY, "{nearest:?}");
    }
}
