//! A whole model pruned by one of the methods.

use super::masks::matrix_of;
use super::{Error as Reason, SparseGpt, sparsegpt, wanda};
use crate::compress::calibrate::{layers_of, portions};
use crate::compress::method::extent_of;
use crate::compress::{
    Calibration, Error, Form, Gram, Linear, Named, Result, Selection, Statistics, output_error,
};
use crate::data::windows::Batch;
use crate::model::{Family, Quantized, Stored, Weights, turn};
use crate::tensor::Tensor;
use crate::tensor::mask::Mask;
use crate::tensor::sparse::{Pattern, Scope, Sparsity, magnitude, magnitude_across};
use crate::train::Target;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// What a report on a model that was pruned without structure must say.
pub const NO_SPEED: &str = "zeros are multiplied like other weights: this is an experiment in size and quality, and the model is not faster";

/// How weights are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// The smallest go, compared within this scope.
    Magnitude(Scope),
    /// The smallest go, weighed by their inputs; compared within rows.
    Wanda,
    /// Those that can be made up for best go, and the rest makes up for them.
    SparseGpt(SparseGpt),
}

impl Method {
    /// Name as in commands and recipes.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Magnitude(_) => "magnitude",
            Method::Wanda => "wanda",
            Method::SparseGpt(_) => "sparsegpt",
        }
    }

    /// Whether it needs a text.
    pub fn calibrates(&self) -> bool {
        !matches!(self, Method::Magnitude(_))
    }
}

/// What is to be done with a model.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: Method,
    /// How much goes.
    pub sparsity: Sparsity,
    /// The shares of layers of which not the same goes, by their weights.
    pub each: BTreeMap<String, f64>,
    /// Codes to make of what stays, in the same pass; SparseGPT alone.
    pub scheme: Option<Named>,
    /// Which layers.
    pub selection: Selection,
    /// Windows of a text to calibrate with, every batch of the same size; empty where there is none.
    pub batches: &'a [Batch],
    /// What has been measured of the weights as they come in, with the same windows.
    pub known: Option<&'a Statistics>,
    /// Bytes that what is measured may take at once.
    pub memory_bytes: u64,
}

impl Request<'_> {
    /// How much of a layer goes.
    fn of(&self, weight: &str) -> Sparsity {
        self.each.get(weight).map_or(self.sparsity, |&share| Sparsity::Share(share))
    }
}

/// What became of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Name of its weight.
    pub weight: String,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Share of its weights that are zero.
    pub sparsity: f64,
    /// Outputs of which no weight is left.
    pub empty_rows: usize,
    /// Mean squared change of its outputs on the text; none without one.
    pub output_error: Option<f64>,
}

/// A pruned model.
#[derive(Clone, Debug, PartialEq)]
pub struct Pruned {
    /// Its weights, as plain numbers with zeros or as codes.
    pub weights: Weights,
    /// What was removed, by the names of the weights; [out, in].
    pub masks: BTreeMap<String, Mask>,
    /// The layers in the order in which they are computed.
    pub outcomes: Vec<Outcome>,
}

impl Pruned {
    /// Share of the weights of all chosen layers that are zero.
    pub fn sparsity(&self) -> f64 {
        let count = |o: &Outcome| (o.rows * o.cols) as f64;
        let all: f64 = self.outcomes.iter().map(count).sum();
        self.outcomes.iter().map(|o| count(o) * o.sparsity).sum::<f64>() / all.max(1.0)
    }
}

/// Prunes a model's linear layers. What is measured is measured of the model as it comes in, for all layers at once.
pub fn prune(family: &dyn Family, weights: &Weights, target: &Target, request: &Request) -> Result<Pruned> {
    let method = request.method.name();
    request.sparsity.check().map_err(|_| Error::Setting {
        setting: "sparsity",
        expected: "0 or more and less than 1".into(),
        got: request.sparsity.to_string(),
    })?;
    if request.method.calibrates() && request.batches.is_empty() {
        return Err(Error::NoCalibration { method });
    }
    let scheme = scheme_of(request)?;
    let (_, all) = layers_of(family, extent_of(family, request.batches))?;
    let mut chosen: Vec<&Linear> = vec![];
    for linear in request.selection.of(&all)? {
        if !chosen.iter().any(|other| other.weight == linear.weight) {
            chosen.push(linear);
        }
    }
    if let Some((name, _)) = weights.stored().find(|(name, _)| chosen.iter().any(|l| l.weight == *name)) {
        return Err(Error::AlreadyQuantised { name: name.to_string() });
    }
    let (batches, known, memory_bytes) = (request.batches, request.known, request.memory_bytes);
    let calibration = Calibration { family, weights, target, batches, known, memory_bytes };
    let mut work = Work { pruned: weights.clone(), weights, grams: HashMap::new(), request, scheme };
    let mut masks = work.together(&chosen)?;
    let mut outcomes = vec![];
    let portions = if batches.is_empty() { vec![&chosen[..]] } else { portions(&chosen, memory_bytes)? };
    for portion in portions {
        // Those before are let go of first.
        work.grams.clear();
        if !batches.is_empty() {
            work.grams = calibration.grams(portion)?;
        }
        for linear in portion {
            let mask = masks.remove(&linear.weight);
            let (mask, outcome) = work.layer(linear, mask)?;
            masks.insert(linear.weight.clone(), mask);
            outcomes.push(outcome);
        }
    }
    Ok(Pruned { weights: work.pruned, masks, outcomes })
}

/// The scheme for codes, which must be one whose scales stay as they are found.
fn scheme_of(request: &Request) -> Result<Option<Named>> {
    let Some(named) = request.scheme else { return Ok(None) };
    let unfit = |hint| Error::Unfit { method: request.method.name(), scheme: named.name.into(), hint };
    if !matches!(request.method, Method::SparseGpt(_)) {
        return Err(unfit(
            "only sparsegpt prunes and makes codes in one pass; quantise in a pass behind this one",
        ));
    }
    match named.form {
        Form::Codes { scheme, .. } if crate::compress::gptq::is_fit(&scheme) && !named.measures() => {
            Ok(Some(named))
        }
        _ => Err(unfit(
            "give a scheme of codes such as int8 or int4-g128, or quantise in a pass behind this one",
        )),
    }
}

struct Work<'a> {
    weights: &'a Weights,
    pruned: Weights,
    grams: HashMap<String, Gram>,
    request: &'a Request<'a>,
    scheme: Option<Named>,
}

impl Work<'_> {
    /// The masks of layers that are compared with each other.
    fn together(&self, chosen: &[&Linear]) -> Result<BTreeMap<String, Mask>> {
        let (Method::Magnitude(Scope::Global), Sparsity::Share(share)) =
            (self.request.method, self.request.sparsity)
        else {
            return Ok(BTreeMap::new());
        };
        let matrices =
            chosen.iter().map(|linear| matrix_of(self.weights, linear)).collect::<Result<Vec<_>>>()?;
        let list: Vec<(&[f32], usize)> =
            matrices.iter().zip(chosen).map(|(matrix, linear)| (&matrix[..], linear.cols)).collect();
        let masks = magnitude_across(&list, share)
            .map_err(|(number, error)| wrong(&chosen[number].weight, error.into()))?;
        Ok(chosen.iter().map(|linear| linear.weight.clone()).zip(masks).collect())
    }

    /// Prunes one layer, for which a mask may stand already.
    fn layer(&mut self, linear: &Linear, mask: Option<Mask>) -> Result<(Mask, Outcome)> {
        let (name, cols) = (&linear.weight, linear.cols);
        let matrix = matrix_of(self.weights, linear)?;
        let gram = self.grams.get(name);
        let named = |source: Reason| wrong(name, source);
        let measured = || gram.expect("measured for methods that need it");
        let mut coded = None;
        let sparsity = self.request.of(name);
        let mut after = matrix.to_vec();
        let mask = match (mask, self.request.method) {
            (Some(mask), _) => mask,
            (None, Method::Magnitude(scope)) => {
                magnitude(&matrix, cols, sparsity, scope).map_err(|error| named(error.into()))?
            }
            (None, Method::Wanda) => wanda(&matrix, measured(), sparsity).map_err(named)?,
            (None, Method::SparseGpt(settings)) => {
                let scheme = self.scheme.and_then(|named| match named.fitting(cols).form {
                    Form::Codes { scheme, activations } => Some((scheme, activations)),
                    _ => None,
                });
                let only = scheme.as_ref().map(|(scheme, _)| scheme);
                let made = sparsegpt(&matrix, measured(), sparsity, &settings, only).map_err(named)?;
                after = made.matrix;
                coded = made.coded.zip(scheme.map(|(_, activations)| activations));
                made.mask
            }
        };
        mask.apply(&mut after);
        let outcome = Outcome {
            weight: name.clone(),
            rows: linear.rows,
            cols,
            sparsity: after.iter().filter(|x| **x == 0.0).count() as f64 / after.len().max(1) as f64,
            empty_rows: after.chunks(cols.max(1)).filter(|row| row.iter().all(|x| *x == 0.0)).count(),
            output_error: gram.map(|gram| output_error(&matrix, &after, linear.rows, gram)),
        };
        let shape = self.weights.get(name)?.shape.clone();
        match coded {
            Some((coded, activations)) => {
                let (turned, double) = (linear.turned, None);
                let codes = Quantized { shape, coded, double, turned, activations };
                self.pruned.store(name.clone(), Stored::Codes(codes));
            }
            None => {
                let own = if linear.turned { turn(&after, linear.rows, cols) } else { after };
                self.pruned.set(name.clone(), Tensor::f32(shape, own));
            }
        }
        Ok((mask, outcome))
    }
}

fn wrong(name: &str, source: Reason) -> Error {
    Error::Prune { name: name.to_string(), source }
}

/// Sparsity from a share or a pattern, of which exactly one must be given.
pub fn sparsity_of(share: Option<f64>, pattern: Option<&str>) -> Result<Sparsity> {
    let wrong =
        |expected: &str, got: String| Error::Setting { setting: "sparsity", expected: expected.into(), got };
    let sparsity = match (share, pattern) {
        (Some(share), None) => Sparsity::Share(share),
        (None, Some(text)) => {
            let (setting, expected) =
                ("pattern", "K:N such as 2:4, which keeps 2 of each 4 inputs; 0 < K < N");
            let wrong = |_| Error::Setting { setting, expected: expected.into(), got: format!("`{text}`") };
            Sparsity::Pattern(text.parse::<Pattern>().map_err(wrong)?)
        }
        (None, None) => return Err(wrong("a share such as 0.5, or `pattern`", "neither".into())),
        (Some(_), Some(_)) => return Err(wrong("a share such as 0.5, or `pattern`", "both".into())),
    };
    let check = sparsity.check().map_err(|_| wrong("0 or more and less than 1", sparsity.to_string()));
    check.map(|()| sparsity)
}
