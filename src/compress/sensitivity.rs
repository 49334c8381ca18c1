//! How much a model minds each layer being coded: one gradient over a text tells it for every scheme at once.
//!
//! Near a minimum the loss rises by `1/2 dw^T H dw` when weights change by dw. H is taken for diagonal and, as the text is what the
//! model was made for, for the mean squared gradient of a token (Fisher): `1/2 sum of T mean(g^2) dw^2`, g the gradient of a window of
//! T tokens. It is an estimate: errors of different weights are taken not to meet.

use super::calibrate::{Calibration, layers_of};
use super::linear::{Linear, Selection};
use super::method::extent_of;
use super::scheme::{Form, Named, named};
use super::{Error, Result};
use crate::deploy::Deployment;
use crate::graph::gradient;
use crate::model::{self, Family, Mode, turn};
use crate::ops::Value;
use crate::ops::pointwise::PointwiseEmit;
use crate::tensor::Tensor;
use crate::tensor::quant::encode;
use crate::train::{self, job::feeds_of};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// What is known of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerScore {
    /// Name of its weight.
    pub weight: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Estimated rise of the loss in nats, by scheme.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loss: BTreeMap<String, f64>,
    /// Measured rise of the loss in nats with this layer alone pruned, by the share that went.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pruned: BTreeMap<String, f64>,
}

/// What is known of a model, to be kept and used for any budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sensitivity {
    /// Name of the family.
    pub family: String,
    /// Tokens of the text that was used.
    pub tokens: usize,
    /// The method of pruning, where losses of pruned layers were measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned_by: Option<String>,
    /// The layers in the order in which they are computed.
    pub layers: Vec<LayerScore>,
}

/// Estimates how much the loss rises with each layer under each scheme. Schemes are rounded to nearest.
pub fn sensitivity(
    calibration: &Calibration,
    selection: &Selection,
    schemes: &[Named],
) -> Result<Sensitivity> {
    let extent = calibration.extent()?;
    let (_, all) = layers_of(calibration.family, extent)?;
    let chosen = selection.of(&all)?;
    let mut layers = vec![];
    let mut rest: &[&Linear] = &chosen;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |linear: &&&Linear| {
            // As f32 on the device and on its way, and a sum in f64.
            bytes += 16 * (linear.cols * linear.rows) as u64;
            bytes <= calibration.memory_bytes
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (now, later) = rest.split_at(count);
        rest = later;
        let squares = mean_squares(calibration, now)?;
        for linear in now {
            let weight = calibration.weights.get(&linear.weight)?.real::<f32>();
            let fisher = &squares[&linear.weight];
            let mut loss = BTreeMap::new();
            for scheme in schemes {
                let change = change_under(weight, linear, scheme)?;
                let sum: f64 = change.iter().zip(fisher).map(|(d, g)| f64::from(*d).powi(2) * g).sum();
                loss.insert(scheme.name.to_string(), 0.5 * extent.context as f64 * sum);
            }
            let (rows, cols) = (linear.rows, linear.cols);
            let (weight, pruned) = (linear.weight.clone(), BTreeMap::new());
            layers.push(LayerScore { weight, rows, cols, loss, pruned });
        }
    }
    let tokens = calibration.batches.len() * extent.positions();
    Ok(Sensitivity { family: calibration.family.name().to_string(), tokens, pruned_by: None, layers })
}

/// Mean over windows of the squared gradient of each element of each weight, in the weight's own layout.
fn mean_squares(calibration: &Calibration, layers: &[&Linear]) -> Result<HashMap<String, Vec<f64>>> {
    calibration.family.interface().expect_causal()?;
    let extent = calibration.extent()?;
    let deployment = Deployment::new(calibration.weights);
    let graph = deployment.graph(calibration.family, extent, Mode::Evaluate, |graph, forward| {
        let loss = model::loss(graph, forward.logits, 0.0)?;
        let find = |linear: &&Linear| graph.named(&linear.weight).expect("the layer comes from this family");
        let wrt: Vec<Value> = layers.iter().map(find).collect();
        let gradients = gradient(graph, loss, &wrt).map_err(model::Error::from)?;
        for (linear, gradient) in layers.iter().zip(gradients) {
            let gradient = gradient.expect("the loss depends on every layer");
            let square = graph.pointwise("square", &[gradient], 0.0);
            let square = square.map_err(|source| model::Error::from(crate::graph::Error::from(source)))?;
            graph.output(&linear.weight, square);
        }
        Ok(())
    })?;
    let (mut engine, plans) = deployment.engine(calibration.target, &[graph])?;
    let names: Vec<String> = plans[0].reads.iter().map(|read| read.name.clone()).collect();
    let mut sums: HashMap<String, Vec<f64>> = HashMap::new();
    let share = 1.0 / calibration.batches.len() as f64;
    for batch in calibration.batches {
        let feeds = feeds_of(batch, extent);
        let list: Option<Vec<&Tensor>> = plans[0].feeds.iter().map(|feed| feeds.get(&feed.name)).collect();
        let list = list.expect("tokens and targets are all that a loss takes");
        let results = engine.run(0, &list).map_err(train::Error::from)?;
        for (name, squares) in names.iter().zip(&results) {
            let sum = sums.entry(name.clone()).or_insert_with(|| vec![0.0; squares.data.len()]);
            sum.iter_mut().zip(squares.real::<f32>()).for_each(|(sum, &x)| *sum += share * f64::from(x));
        }
    }
    Ok(sums)
}

/// What a scheme changes of a weight, in the weight's own layout.
fn change_under(weight: &[f32], linear: &Linear, scheme: &Named) -> Result<Vec<f32>> {
    let name = || linear.weight.clone();
    let (rows, cols) = (linear.rows, linear.cols);
    let matrix = if linear.turned { turn(weight, cols, rows) } else { weight.to_vec() };
    let after = match scheme.fitting(cols).form {
        Form::Single => matrix.clone(),
        Form::Halves(dtype) => matrix.iter().map(|&x| dtype.round(x)).collect(),
        Form::Blocks(block) => {
            let wrong = |source| Error::Block { name: name(), source };
            block.decode(&block.encode(&matrix, cols).map_err(wrong)?, cols).map_err(wrong)?
        }
        Form::Codes { scheme, .. } => encode(&matrix, rows, cols, &scheme)
            .map_err(|source| Error::Weight { name: name(), source })?
            .decode(),
    };
    let change: Vec<f32> = matrix.iter().zip(&after).map(|(a, b)| b - a).collect();
    Ok(if linear.turned { turn(&change, rows, cols) } else { change })
}

impl Sensitivity {
    /// Reads a file that was kept.
    pub fn read(path: &Path) -> Result<Sensitivity> {
        let place = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::Recipe { place: place.clone(), reason: error.to_string() })?;
        Sensitivity::parse(&place, &text)
    }

    /// Refuses what was measured on another model: of another family, or with layers that are not there or of another size.
    pub fn expect_of(&self, family: &dyn Family) -> Result<()> {
        let foreign = |reason: String| Err(Error::Foreign { reason });
        if self.family != family.name() {
            return foreign(format!("that is {}, this is {}", self.family, family.name()));
        }
        let (_, all) = layers_of(family, extent_of(family, &[]))?;
        for LayerScore { weight, rows, cols, .. } in &self.layers {
            match all.iter().find(|linear| linear.weight == *weight) {
                None => return foreign(format!("there is no layer `{weight}` here")),
                Some(Linear { rows: r, cols: c, .. }) if (r, c) != (rows, cols) => {
                    return foreign(format!("`{weight}` is {rows} x {cols} there and {r} x {c} here"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Reads what was kept; schemes must be known.
    pub fn parse(place: &str, text: &str) -> Result<Sensitivity> {
        let wrong = |reason: String| Error::Recipe { place: place.to_string(), reason };
        let read: Sensitivity = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        for layer in &read.layers {
            for (scheme, loss) in &layer.loss {
                named(scheme)?;
                if !loss.is_finite() {
                    return Err(wrong(format!("the loss of `{}` under {scheme} is {loss}", layer.weight)));
                }
            }
            let is_share = |name: &&String| name.parse().is_ok_and(|share| (0.0..1.0).contains(&share));
            if let Some(name) = layer.pruned.keys().find(|name| !is_share(name)) {
                return Err(wrong(format!("`{name}` is no share of the weights of `{}`", layer.weight)));
            }
        }
        Ok(read)
    }
}
