//! How much a model minds each layer being pruned: the loss on a text with that layer alone pruned, for each share, less the loss of the
//! whole model.
//!
//! Measured, not estimated: half of a layer's weights gone is no small change. That is a sweep over the text for each layer and share.

use super::{Method, Request, prune};
use crate::compress::calibrate::layers_of;
use crate::compress::{Calibration, Error, LayerScore, Result, Selection, Sensitivity};
use crate::evaluate::mean_loss;
use crate::model::Weights;
use crate::tensor::sparse::Sparsity;
use std::collections::BTreeMap;

/// Name of a share in a file of sensitivities.
pub fn name_of(share: f64) -> String {
    share.to_string()
}

/// Measures how much the loss rises with each layer pruned alone by each share of its weights. `say` gets a line for each layer.
pub fn pruning_sensitivity(
    calibration: &Calibration,
    selection: &Selection,
    method: Method,
    shares: &[f64],
    say: &dyn Fn(&str),
) -> Result<Sensitivity> {
    let extent = calibration.extent()?;
    let (_, all) = layers_of(calibration.family, extent)?;
    let chosen = selection.of(&all)?;
    let whole = loss_of(calibration, calibration.weights)?;
    say(&format!("loss     {whole:.4} of the whole model"));
    let mut layers: Vec<LayerScore> = vec![];
    for (number, linear) in chosen.iter().enumerate() {
        if layers.iter().any(|layer| layer.weight == linear.weight) {
            continue;
        }
        let selection = Selection { targets: Some(vec![linear.weight.clone()]), ignore: vec![] };
        let known = match method.calibrates() {
            true => Some(calibration.measure(&[linear], &[])?),
            false => None,
        };
        let mut pruned = BTreeMap::new();
        for &share in shares {
            let request = Request {
                method,
                sparsity: Sparsity::Share(share),
                each: BTreeMap::new(),
                scheme: None,
                selection: selection.clone(),
                batches: if method.calibrates() { calibration.batches } else { &[] },
                known: known.as_ref(),
                memory_bytes: calibration.memory_bytes,
            };
            let made = prune(calibration.family, calibration.weights, calibration.target, &request)?;
            pruned.insert(name_of(share), loss_of(calibration, &made.weights)? - whole);
        }
        say(&format!("layer {} of {}  {}", number + 1, chosen.len(), linear.weight));
        let (weight, rows, cols) = (linear.weight.clone(), linear.rows, linear.cols);
        layers.push(LayerScore { weight, rows, cols, loss: BTreeMap::new(), pruned });
    }
    let (family, tokens) =
        (calibration.family.name().to_string(), calibration.batches.len() * extent.positions());
    Ok(Sensitivity { family, tokens, pruned_by: Some(method.name().to_string()), layers })
}

/// Mean loss of a token of the text, in nats.
fn loss_of(calibration: &Calibration, weights: &Weights) -> Result<f64> {
    let extent = calibration.extent()?;
    Ok(mean_loss(calibration.family, weights, calibration.target, extent, calibration.batches)?.0)
}

impl Sensitivity {
    /// The share of each layer's weights that goes, so that together `sparsity` of all go at the least sum of measured losses; of the
    /// shares that were measured, and none. Gives that sum as well.
    pub fn assign_shares(&self, sparsity: f64) -> Result<(BTreeMap<String, f64>, f64)> {
        let mut choices = vec![];
        let mut shares = vec![];
        for layer in &self.layers {
            let count = (layer.rows * layer.cols) as f64;
            let read = |(name, &loss): (&String, &f64)| Some((name.parse::<f64>().ok()?, loss));
            let mut list = vec![(0.0, 0.0)];
            list.extend(layer.pruned.iter().filter_map(read));
            shares.push(list.iter().map(|(share, _)| *share).collect::<Vec<_>>());
            // What stays is what counts against the budget.
            let choice =
                |&(share, loss): &(f64, f64)| crate::compress::Choice { bits: count * (1.0 - share), loss };
            choices.push(list.iter().map(choice).collect::<Vec<_>>());
        }
        let total: f64 = self.layers.iter().map(|layer| (layer.rows * layer.cols) as f64).sum();
        // Shares are decimal fractions: a sum of them that is meant to be just enough must not fail by a rounding.
        let picked = crate::compress::assign(&choices, (1.0 - sparsity) * total * (1.0 + 1e-9));
        let picked = picked.ok_or_else(|| {
            let most = |list: &Vec<f64>| list.iter().copied().fold(0.0, f64::max);
            let counts = self.layers.iter().map(|layer| (layer.rows * layer.cols) as f64);
            let most: f64 = shares.iter().zip(counts).map(|(list, count)| most(list) * count).sum();
            let expected = format!("at most {:.4}, the most that was measured", most / total.max(1.0));
            Error::Setting { setting: "sparsity", expected, got: sparsity.to_string() }
        })?;
        let loss = picked.iter().zip(&choices).map(|(&at, list)| list[at].loss).sum();
        let each = picked.iter().zip(&shares).zip(&self.layers);
        Ok((each.map(|((&at, list), layer)| (layer.weight.clone(), list[at])).collect(), loss))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(weight: &str, cols: usize, losses: [f64; 2]) -> LayerScore {
        let pruned = [("0.5", losses[0]), ("0.75", losses[1])].map(|(name, loss)| (name.to_string(), loss));
        LayerScore { weight: weight.into(), rows: 8, cols, loss: BTreeMap::new(), pruned: pruned.into() }
    }

    fn known() -> Sensitivity {
        let layers = vec![layer("tough", 32, [0.001, 0.002]), layer("tender", 32, [0.5, 3.0])];
        Sensitivity { family: "gpt2".into(), tokens: 1, pruned_by: Some("wanda".into()), layers }
    }

    #[test]
    fn layers_that_mind_least_lose_most_within_the_budget() {
        let (shares, loss) = known().assign_shares(0.375).unwrap();
        assert_eq!((shares["tough"], shares["tender"], loss), (0.75, 0.0, 0.002));
        let (shares, loss) = known().assign_shares(0.6).unwrap();
        assert_eq!((shares["tough"], shares["tender"], loss), (0.75, 0.5, 0.502));
        assert_eq!(known().assign_shares(0.0).unwrap().1, 0.0);
    }

    #[test]
    fn more_than_was_measured_is_an_error() {
        let error = known().assign_shares(0.8).unwrap_err().to_string();
        assert!(error.contains("sparsity is 0.8, expected at most 0.7500"), "{error}");
    }
}
