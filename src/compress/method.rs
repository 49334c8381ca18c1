//! A whole model under a scheme, by one of the methods.

use super::calibrate::{Calibration, Channels, Gram, Statistics, layers_of, portions};
use super::correct::mean_change;
use super::fold::{Fold, folds, rescale};
use super::gptq::{self, Gptq, gptq_keeping, output_error};
use super::linear::{Linear, Selection};
use super::observe::Observer;
use super::scheme::{Form, Named};
use super::smooth::{largest_by_column, smooth};
use super::{Error, Result, awq};
use crate::data::windows::Batch;
use crate::deploy::Deployment;
use crate::model::{Extent, Family, Mode, Quantized, Stored, Weights, turn};
use crate::ops::coded::{Activations, FixedScale};
use crate::tensor::Tensor;
use crate::tensor::mask::Mask;
use crate::tensor::quant::{Coded, Scheme, encode, encode_double};
use crate::train::job::feeds_of;
use crate::train::{self, Target};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

/// How codes are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// Each weight becomes the nearest code.
    Nearest,
    /// Rounding errors are made up for; see [`Gptq`].
    Gptq(Gptq),
    /// Weights behind large inputs are scaled up first.
    Awq,
    /// Large activations are scaled down first, by this exponent.
    Smooth {
        /// Share of the difficulty that moves from activations to weights, in 0..=1.
        alpha: f32,
    },
}

impl Method {
    /// Name as in commands and recipes.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Nearest => "rtn",
            Method::Gptq(_) => "gptq",
            Method::Awq => "awq",
            Method::Smooth { .. } => "smoothquant",
        }
    }

    /// Whether it needs a text.
    pub fn calibrates(&self) -> bool {
        !matches!(self, Method::Nearest)
    }
}

/// Which scheme each layer's weight gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// The scheme of all that are not told apart.
    pub scheme: Named,
    /// Those of some, by their weights.
    pub each: BTreeMap<String, Named>,
}

impl From<Named> for Assignment {
    fn from(scheme: Named) -> Assignment {
        Assignment { scheme, each: BTreeMap::new() }
    }
}

impl Assignment {
    /// The scheme of a weight.
    pub fn of(&self, weight: &str) -> Named {
        self.each.get(weight).copied().unwrap_or(self.scheme)
    }
}

/// What is to be done with a model.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// The schemes.
    pub schemes: Assignment,
    /// The method.
    pub method: Method,
    /// Which layers.
    pub selection: Selection,
    /// Takes the mean change of a layer's output off its bias, where it has one. Needs a text.
    pub correct_bias: bool,
    /// How scales of activations are found where the scheme wants them beforehand.
    pub observer: Observer,
    /// Windows of a text to calibrate with, every batch of the same size; empty where there is none.
    pub batches: &'a [Batch],
    /// What has been measured of the weights as they come in, with the same windows.
    pub known: Option<&'a Statistics>,
    /// Bytes that what is measured may take at once.
    pub memory_bytes: u64,
}

impl Request<'_> {
    /// Refuses what needs a text where there is none, and settings out of range.
    fn expect_text(&self) -> Result<()> {
        self.observer.check()?;
        let all = self.schemes.each.values().chain([&self.schemes.scheme]);
        let method = if self.method.calibrates() {
            self.method.name()
        } else if self.correct_bias {
            "bias correction"
        } else if let Some(scheme) = all.into_iter().find(|scheme| scheme.measures()) {
            scheme.name
        } else {
            return Ok(());
        };
        if self.batches.is_empty() { Err(Error::NoCalibration { method }) } else { Ok(()) }
    }
}

/// What became of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Name of its weight.
    pub weight: String,
    /// Sizes of its weight.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Name of its scheme.
    pub scheme: &'static str,
    /// Bits of one weight, scales and zeros in.
    pub bits_per_weight: f64,
    /// Signal to noise of the weight, in dB.
    pub sqnr_db: f64,
    /// Mean squared change of its outputs on the text; none without one.
    pub output_error: Option<f64>,
    /// What was done beside rounding, in words.
    pub note: String,
}

/// Quantises a model's weights; gives those to store and what became of each layer.
///
/// Weights that are quantised already stay as they are; to choose one of them is an error.
pub fn quantize(
    family: &dyn Family,
    weights: &Weights,
    target: &Target,
    request: &Request,
) -> Result<(Weights, Vec<Outcome>)> {
    request.expect_text()?;
    let (_, all) = layers_of(family, extent_of(family, request.batches))?;
    let chosen = request.selection.of(&all)?;
    let is_chosen = |name: &str| chosen.iter().any(|linear| linear.weight == name);
    if let Some((name, _)) = weights.stored().find(|(name, _)| is_chosen(name)) {
        return Err(Error::AlreadyQuantised { name: name.to_string() });
    }
    let (weights, notes, known) = match request.method {
        Method::Awq | Method::Smooth { .. } => {
            let (weights, notes) = rescaled(family, weights, target, request)?;
            (weights, notes, None)
        }
        Method::Nearest | Method::Gptq(_) => (weights.clone(), HashMap::new(), request.known),
    };
    let mut work = Work { family, weights, target, request, all: &all, notes, known };
    let outcomes = work.code(&chosen)?;
    Ok((work.weights, outcomes))
}

/// Only moves scales between norms and layers, as AWQ or SmoothQuant choose them; what the model computes stays, which is proved on
/// the first batch. Gives the weights and what was done to each.
pub fn rescaled(
    family: &dyn Family,
    weights: &Weights,
    target: &Target,
    request: &Request,
) -> Result<(Weights, HashMap<String, String>)> {
    let method = request.method.name();
    let first = request.batches.first().ok_or(Error::NoCalibration { method })?;
    let (graph, all) = layers_of(family, extent_of(family, request.batches))?;
    let chosen = request.selection.of(&all)?;
    let before = probe(family, weights, target, first)?;
    let weights = weights.clone();
    let (notes, known) = (HashMap::new(), request.known);
    let mut work = Work { family, weights, target, request, all: &all, notes, known };
    match request.method {
        Method::Awq => work.awq(&chosen, &folds(&graph, &all))?,
        Method::Smooth { alpha } => work.smooth(&chosen, &folds(&graph, &all), alpha)?,
        Method::Nearest | Method::Gptq(_) => {}
    }
    let after = probe(family, &work.weights, target, first)?;
    expect_same(method, &before, &after)?;
    Ok((work.weights, work.notes))
}

/// Sizes of a graph for batches, or of a small one where there are none.
pub(super) fn extent_of(family: &dyn Family, batches: &[Batch]) -> Extent {
    match batches.first() {
        Some(batch) => Extent { batch: batch.rows, context: batch.context },
        None => Extent { batch: 1, context: family.context().min(8) },
    }
}

/// Share of the largest score by which scores may differ after scales were moved: sums come in another order of size.
const FOLDING: f32 = 1e-3;

/// Scores of a batch.
pub(super) fn probe(
    family: &dyn Family,
    weights: &Weights,
    target: &Target,
    batch: &Batch,
) -> Result<Vec<f32>> {
    let extent = Extent { batch: batch.rows, context: batch.context };
    let deployment = Deployment::new(weights).within(target);
    let graph = deployment.graph(family, extent, Mode::Evaluate, |graph, forward| {
        graph.output("logits", forward.logits);
        Ok(())
    })?;
    let (mut engine, plans) = deployment.engine(target, &[graph])?;
    let feeds = feeds_of(batch, extent);
    let list: Option<Vec<&Tensor>> = plans[0].feeds.iter().map(|feed| feeds.get(&feed.name)).collect();
    let list = list.expect("tokens are all that a forward pass takes");
    Ok(engine.run(0, &list).map_err(train::Error::from)?.swap_remove(0).real().to_vec())
}

/// Proves on a batch that moving scales left the model as it was.
pub(super) fn expect_same(method: &'static str, before: &[f32], after: &[f32]) -> Result<()> {
    let largest = before.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let off = before.iter().zip(after).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    // Written so that what is no number is refused.
    if off <= FOLDING * largest { Ok(()) } else { Err(Error::NotExact { method, off, largest }) }
}

struct Work<'a> {
    family: &'a dyn Family,
    weights: Weights,
    target: &'a Target,
    request: &'a Request<'a>,
    all: &'a [Linear],
    notes: HashMap<String, String>,
    known: Option<&'a Statistics>,
}

impl Work<'_> {
    fn calibration(&self) -> Calibration<'_> {
        self.calibration_of(&self.weights)
    }

    /// The same for weights as they were before.
    fn calibration_of<'a>(&'a self, weights: &'a Weights) -> Calibration<'a> {
        let (batches, memory_bytes) = (self.request.batches, self.request.memory_bytes);
        Calibration {
            family: self.family,
            weights,
            target: self.target,
            batches,
            known: self.known,
            memory_bytes,
        }
    }

    /// The codes that are asked for of a weight.
    fn codes(&self, weight: &str) -> Result<Scheme> {
        match self.request.schemes.of(weight).form {
            Form::Codes { scheme, .. } => Ok(scheme),
            _ => {
                let hint =
                    "give it a scheme of codes, such as int4-g128 or W8A8; this one takes `--method rtn`";
                Err(self.unfit(weight, hint))
            }
        }
    }

    fn unfit(&self, weight: &str, hint: &'static str) -> Error {
        let (method, scheme) = (self.request.method.name(), self.request.schemes.of(weight).name.to_string());
        Error::Unfit { method, scheme, hint }
    }

    /// Folds of which every layer is chosen.
    fn foldable<'a>(&self, chosen: &[&Linear], folds: &'a [Fold]) -> Result<Vec<&'a Fold>> {
        let is_chosen = |name: &String| chosen.iter().any(|linear| linear.weight == *name);
        let found: Vec<&Fold> = folds.iter().filter(|fold| fold.weights.iter().all(is_chosen)).collect();
        match found.is_empty() {
            true => Err(self.unfit(
                &chosen[0].weight,
                "scales fold into norms whose every reader is quantised: choose more layers",
            )),
            false => Ok(found),
        }
    }

    fn smooth(&mut self, chosen: &[&Linear], folds: &[Fold], alpha: f32) -> Result<()> {
        if !(0.0..=1.0).contains(&alpha) {
            return Err(Error::Setting {
                setting: "alpha",
                expected: "0 to 1".into(),
                got: alpha.to_string(),
            });
        }
        let found = self.foldable(chosen, folds)?;
        let layers = self.behind(&found);
        let channels = self.calibration().channels(&layers)?;
        for fold in found {
            let mut of_weights = vec![0.0f32; fold.size];
            for name in &fold.weights {
                let (matrix, _) = self.matrix(name)?;
                let largest = largest_by_column(&matrix, fold.size);
                of_weights.iter_mut().zip(largest).for_each(|(a, b)| *a = a.max(b));
            }
            let scales = smooth(&channels[&fold.weights[0]].largest, &of_weights, alpha);
            rescale(&mut self.weights, fold, self.all, &scales)?;
            self.note(fold, &format!("smoothed by {alpha}"));
        }
        Ok(())
    }

    fn awq(&mut self, chosen: &[&Linear], folds: &[Fold]) -> Result<()> {
        let found = self.foldable(chosen, folds)?;
        // All layers of a fold read the same.
        let of = |fold: &&Fold| self.all.iter().find(|linear| linear.weight == fold.weights[0]);
        let firsts: Vec<&Linear> = found.iter().filter_map(of).collect();
        let before = self.weights.clone();
        for portion in portions(&firsts, self.request.memory_bytes)? {
            let measured = self.calibration_of(&before).both(portion)?;
            let is_here = |fold: &&&Fold| portion.iter().any(|linear| linear.weight == fold.weights[0]);
            self.scale_up(
                &found.iter().copied().filter(|fold| is_here(&fold)).collect::<Vec<_>>(),
                &measured,
            )?;
        }
        Ok(())
    }

    /// Scales weights behind large inputs up, fold by fold.
    fn scale_up(&mut self, folds: &[&Fold], measured: &Statistics) -> Result<()> {
        let Statistics { channels, grams } = measured;
        for fold in folds {
            let first = &fold.weights[0];
            let scheme = self.codes(first)?;
            let matrices = fold.weights.iter().map(|name| Ok(self.matrix(name)?.0.into_owned()));
            let matrices = matrices.collect::<Result<Vec<_>>>()?;
            let list: Vec<(&[f32], usize)> = matrices.iter().map(|m| (&m[..], m.len() / fold.size)).collect();
            let found = awq::search(&list, &scheme, &channels[first], &grams[first])
                .map_err(|source| Error::Weight { name: first.clone(), source })?;
            rescale(&mut self.weights, fold, self.all, &found.scales)?;
            self.note(fold, &format!("scaled by means to the power of {:.2}", found.ratio));
        }
        Ok(())
    }

    /// The layers of folds.
    fn behind(&self, folds: &[&Fold]) -> Vec<&Linear> {
        let is_there = |linear: &&Linear| folds.iter().any(|fold| fold.weights.contains(&linear.weight));
        self.all.iter().filter(is_there).collect()
    }

    fn note(&mut self, fold: &Fold, text: &str) {
        fold.weights.iter().for_each(|name| {
            self.notes.insert(name.clone(), text.to_string());
        });
    }

    /// A weight as [out, in], and its layer.
    fn matrix(&self, name: &str) -> Result<(Cow<'_, [f32]>, &Linear)> {
        let linear =
            self.all.iter().find(|linear| linear.weight == name).expect("names come from the layers");
        let weight = self.weights.get(name)?.real::<f32>();
        let matrix = match linear.turned {
            true => Cow::Owned(turn(weight, linear.cols, linear.rows)),
            false => Cow::Borrowed(weight),
        };
        Ok((matrix, linear))
    }

    /// Stores every chosen weight as the scheme says.
    fn code(&mut self, chosen: &[&Linear]) -> Result<Vec<Outcome>> {
        let has_text = !self.request.batches.is_empty();
        let coded = |linear: &&Linear| {
            !matches!(self.request.schemes.of(&linear.weight).form, Form::Single | Form::Halves(_))
        };
        let measured = has_text && chosen.iter().any(coded);
        let portions = if measured { portions(chosen, self.request.memory_bytes)? } else { vec![chosen] };
        let channels = match self.request.correct_bias {
            true => self.calibration().channels(chosen)?,
            false => HashMap::new(),
        };
        let scales = self.input_scales(chosen)?;
        // All is measured of the model as it comes in, in however many portions.
        let before = (portions.len() > 1).then(|| self.weights.clone());
        let mut outcomes: Vec<Outcome> = vec![];
        for portion in portions {
            let weights = before.as_ref().unwrap_or(&self.weights);
            let grams = if measured { self.calibration_of(weights).grams(portion)? } else { HashMap::new() };
            for linear in portion {
                if !outcomes.iter().any(|outcome| outcome.weight == linear.weight) {
                    let scale = scales.get(&linear.weight).copied();
                    outcomes.push(self.layer(linear, grams.get(&linear.weight), &channels, scale)?);
                }
            }
        }
        Ok(outcomes)
    }

    /// Stores one weight as its scheme says.
    fn layer(
        &mut self,
        linear: &Linear,
        gram: Option<&Gram>,
        channels: &HashMap<String, Channels>,
        scale: Option<f32>,
    ) -> Result<Outcome> {
        let name = &linear.weight;
        let matrix = self.matrix(name)?.0.into_owned();
        let stored = self.stored(linear, &matrix, gram, scale)?;
        let after = match &stored {
            Some(Stored::Codes(quantized)) => quantized.coded.decode(),
            Some(Stored::Halves(dtype, _)) => matrix.iter().map(|&x| dtype.round(x)).collect(),
            None => matrix.clone(),
        };
        let mut note = self.notes.remove(name).unwrap_or_default();
        let asked = self.request.schemes.of(name);
        let scheme = asked.fitting(linear.cols);
        if scheme != asked {
            note = format!("rows of {} are no blocks of {}", linear.cols, asked.name);
        }
        if let (Some(channels), Some(bias)) = (channels.get(name), &linear.bias) {
            let change = mean_change(&matrix, &after, &channels.mean);
            let mut tensor = self.weights.get(bias)?.clone();
            tensor.real_mut::<f32>().iter_mut().zip(change).for_each(|(b, c)| *b -= c as f32);
            self.weights.set(bias.clone(), tensor);
            note += if note.is_empty() { "bias corrected" } else { ", bias corrected" };
        }
        if let Some(stored) = stored {
            self.weights.store(name.clone(), stored);
        }
        Ok(Outcome {
            weight: name.clone(),
            rows: linear.rows,
            cols: linear.cols,
            scheme: scheme.name,
            bits_per_weight: scheme.bits_per_weight(linear.rows, linear.cols),
            sqnr_db: sqnr_db(&matrix, &after),
            output_error: gram.map(|gram| output_error(&matrix, &after, linear.rows, gram)),
            note,
        })
    }

    /// Scales of the inputs of those layers that need them beforehand, by their weights.
    fn input_scales(&self, chosen: &[&Linear]) -> Result<HashMap<String, f32>> {
        let rule_of = |linear: &Linear| match self.request.schemes.of(&linear.weight).form {
            Form::Codes { activations: Activations::Fixed(rule, _), .. } => Some(rule),
            _ => None,
        };
        let wanted: Vec<&Linear> =
            chosen.iter().copied().filter(|linear| rule_of(linear).is_some()).collect();
        if wanted.is_empty() {
            return Ok(HashMap::new());
        }
        let magnitudes = self.calibration().magnitudes(&wanted)?;
        let scale = |linear: &&Linear| {
            let divisor = rule_of(linear).expect("chosen for having one").divisor();
            let range = magnitudes[&linear.weight].range(self.request.observer, divisor);
            (linear.weight.clone(), range / divisor)
        };
        Ok(wanted.iter().map(scale).collect())
    }

    /// A layer's weight under the scheme; none where it stays as it is.
    fn stored(
        &self,
        linear: &Linear,
        matrix: &[f32],
        gram: Option<&Gram>,
        input_scale: Option<f32>,
    ) -> Result<Option<Stored>> {
        let (name, rows, cols) = (&linear.weight, linear.rows, linear.cols);
        let shape = self.weights.get(name)?.shape.clone();
        let codes = |coded: Coded, double, activations| {
            let (shape, turned) = (shape.clone(), linear.turned);
            Some(Stored::Codes(Quantized { shape, coded, double, turned, activations }))
        };
        match self.request.schemes.of(name).fitting(cols).form {
            Form::Single => Ok(None),
            Form::Halves(dtype) => {
                let rounded = self.weights.get(name)?.real::<f32>().iter().map(|&x| dtype.round(x)).collect();
                Ok(Some(Stored::Halves(dtype, Tensor::f32(shape, rounded))))
            }
            Form::Blocks(block) => {
                if let Method::Gptq(_) = self.request.method {
                    return Err(self
                        .unfit(name, "blocks have scales of their own; choose int8, int4-g32 or int4-g128"));
                }
                let wrong = |source| Error::Block { name: name.clone(), source };
                let bytes = block.encode(matrix, cols).map_err(wrong)?;
                let coded = block.unpack(&bytes, cols).map_err(wrong)?;
                Ok(codes(coded, None, Activations::Numbers))
            }
            Form::Codes { scheme, activations } => {
                let activations = match (activations, input_scale) {
                    (Activations::Fixed(rule, _), Some(scale)) => {
                        Activations::Fixed(rule, FixedScale::of(scale))
                    }
                    (activations, _) => activations,
                };
                let wrong = |source| Error::Weight { name: name.clone(), source };
                if let Method::Gptq(settings) = self.request.method {
                    if !gptq::is_fit(&scheme) {
                        return Err(
                            self.unfit(name, "its scales are rounded too; choose int4-g32 or int4-g128")
                        );
                    }
                    expect_finite(name, matrix, cols)?;
                    let zeros = Mask::of_zeros(matrix, cols);
                    let gram = gram.expect("measured for methods that need it");
                    let coded = gptq_keeping(matrix, rows, &scheme, gram, &settings, &zeros)
                        .map_err(|source| Error::Gram { name: name.clone(), source })?;
                    return Ok(codes(coded, None, activations));
                }
                if scheme.double {
                    let (coded, double) = encode_double(matrix, rows, cols, &scheme).map_err(wrong)?;
                    return Ok(codes(coded, Some(double), activations));
                }
                Ok(codes(encode(matrix, rows, cols, &scheme).map_err(wrong)?, None, activations))
            }
        }
    }
}

fn expect_finite(name: &str, matrix: &[f32], cols: usize) -> Result<()> {
    match matrix.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let (row, column, got) = (at / cols, at % cols, matrix[at]);
            let source = crate::tensor::quant::Error::NotFinite { row, column, got };
            Err(Error::Weight { name: name.to_string(), source })
        }
    }
}

/// Power of `a` over that of what `b` is off by, in dB; infinite where they are equal.
pub(super) fn sqnr_db(a: &[f32], b: &[f32]) -> f64 {
    let power = |x: f64| x * x;
    let signal: f64 = a.iter().map(|&a| power(a.into())).sum();
    let noise: f64 = a.iter().zip(b).map(|(&a, &b)| power(f64::from(a) - f64::from(b))).sum();
    10.0 * (signal / noise).log10()
}
