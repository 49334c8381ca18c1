//! What flows into a model's linear layers over a text: inner products, ranges, samples.
//!
//! Several layers that read the same values are measured once. Inner products are summed up on the device, batch by batch, and
//! over batches in f64 on the host; as many layers are measured in one sweep as keep within a budget of bytes.

use super::linear::{Linear, forward};
use super::{Error, Result};
use crate::data::windows::Batch;
use crate::deploy::Deployment;
use crate::graph::Graph;
use crate::model::{Extent, Family, Mode, Weights};
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reduce::{Kind, ReduceEmit};
use crate::ops::reshape::ReshapeEmit;
use crate::ops::{self, Value};
use crate::tensor::Tensor;
use crate::tensor::algebra::add_scaled_wide;
use crate::train::{self, Target};
use rayon::prelude::*;
use std::collections::HashMap;

/// Bytes that inner products may take at once where nothing else is said.
pub const MEMORY_BYTES: u64 = 2 << 30;

/// Inner products of a layer's inputs: `sum over tokens of x x^T`.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    /// Inputs, K.
    pub size: usize,
    /// Tokens that were summed over.
    pub count: usize,
    /// The products, [K, K].
    pub matrix: Vec<f64>,
}

impl Gram {
    /// That of rows of `size` inputs each.
    pub fn of(inputs: &[f32], size: usize) -> Gram {
        let mut matrix = vec![0.0; size * size];
        matrix.par_chunks_mut(size.max(1)).enumerate().for_each(|(i, products)| {
            for row in inputs.chunks(size) {
                let x = f64::from(row[i]);
                add_scaled_wide(products, x, row);
            }
        });
        Gram { size, count: inputs.len() / size.max(1), matrix }
    }

    /// Sum of squares of an input.
    pub fn diagonal(&self, input: usize) -> f64 {
        self.matrix[input * self.size + input]
    }
}

/// What is known of each input of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Channels {
    /// Largest magnitude.
    pub largest: Vec<f32>,
    /// Mean magnitude.
    pub magnitude: Vec<f64>,
    /// Mean.
    pub mean: Vec<f64>,
}

/// What has been measured of a model, to be read instead of measured again; by the weights of the layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Inner products of inputs.
    pub grams: HashMap<String, Gram>,
    /// Ranges and means of inputs.
    pub channels: HashMap<String, Channels>,
}

/// A model with a text to measure it by.
pub struct Calibration<'a> {
    /// The model.
    pub family: &'a dyn Family,
    /// Its weights, as they are when they are measured.
    pub weights: &'a Weights,
    /// Where it runs.
    pub target: &'a Target,
    /// Windows of the text, every batch of the same size.
    pub batches: &'a [Batch],
    /// What has been measured of these weights with this text already.
    pub known: Option<&'a Statistics>,
    /// Bytes that inner products may take at once.
    pub memory_bytes: u64,
}

/// Bytes of the inner products of some layers while they are measured and used: a sum in f64 for each layer, and for each input once
/// more as much, as f32 on the device and on its way.
pub(super) fn gram_bytes(layers: &[&Linear]) -> u64 {
    let of = |(at, linear): (usize, &&Linear)| {
        let again = layers[..at].iter().any(|other| other.input == linear.input);
        (linear.cols * linear.cols) as u64 * if again { 8 } else { 16 }
    };
    layers.iter().enumerate().map(of).sum()
}

/// Layers one after another in as few portions as keep their inner products within a budget of bytes.
pub(super) fn portions<'a, 'b>(layers: &'a [&'b Linear], memory_bytes: u64) -> Result<Vec<&'a [&'b Linear]>> {
    let (mut portions, mut rest) = (vec![], layers);
    while let Some(first) = rest.first() {
        let need_bytes = gram_bytes(&[first]);
        if need_bytes > memory_bytes {
            return Err(Error::Memory { name: first.weight.clone(), need_bytes, have_bytes: memory_bytes });
        }
        let fits = |count: &usize| gram_bytes(&rest[..*count]) <= memory_bytes;
        let count = (1..=rest.len()).take_while(fits).last().unwrap_or(1);
        let (now, later) = rest.split_at(count);
        portions.push(now);
        rest = later;
    }
    Ok(portions)
}

impl Calibration<'_> {
    /// Sizes of a batch.
    pub fn extent(&self) -> Result<Extent> {
        let first = self.batches.first().ok_or(Error::ShortCalibration { expected: 1, got: 0 })?;
        Ok(Extent { batch: first.rows, context: first.context })
    }

    /// Inner products of the inputs of each layer, by its weight.
    pub fn grams(&self, layers: &[&Linear]) -> Result<HashMap<String, Gram>> {
        let (mut grams, rest) = known_of(layers, self.known.map(|known| &known.grams));
        grams.extend(self.measure(&rest, &[])?.grams);
        Ok(grams)
    }

    /// Ranges and means of each input of each layer, by its weight.
    pub fn channels(&self, layers: &[&Linear]) -> Result<HashMap<String, Channels>> {
        let (mut channels, rest) = known_of(layers, self.known.map(|known| &known.channels));
        channels.extend(self.measure(&[], &rest)?.channels);
        Ok(channels)
    }

    /// Both of the same layers, in one sweep where neither is known.
    pub fn both(&self, layers: &[&Linear]) -> Result<Statistics> {
        match self.known {
            None => self.measure(layers, layers),
            Some(_) => Ok(Statistics { grams: self.grams(layers)?, channels: self.channels(layers)? }),
        }
    }

    /// Inner products of the inputs of some layers, and ranges and means of those of others, measured in one sweep over the text. Whether
    /// all fit into memory at once is for `portions` to say beforehand.
    pub fn measure(&self, grams: &[&Linear], channels: &[&Linear]) -> Result<Statistics> {
        let mut found = Statistics::default();
        if grams.is_empty() && channels.is_empty() {
            return Ok(found);
        }
        let share = 1.0 / self.batches.len().max(1) as f64;
        let Sums { mut products, channels: ranges, tokens } = self.sweep_both(grams, channels, share)?;
        let leader = |linear: &&Linear| {
            &grams.iter().find(|other| other.input == linear.input).expect("itself at least").weight
        };
        let leaders: Vec<&String> = grams.iter().map(leader).collect();
        for (at, linear) in grams.iter().enumerate() {
            // The last of those that read the same takes the sums, so that there are no more copies than layers.
            let matrix = match leaders[at + 1..].contains(&leaders[at]) {
                true => products[leaders[at]].clone(),
                false => products.remove(leaders[at]).expect("each input was measured"),
            };
            found.grams.insert(linear.weight.clone(), Gram { size: linear.cols, count: tokens, matrix });
        }
        found.channels = shared(channels, ranges);
        Ok(found)
    }

    /// One sweep for the inner products of some layers and the ranges of others.
    fn sweep_both(&self, grams: &[&Linear], channels: &[&Linear], share: f64) -> Result<Sums> {
        let mut all: Vec<&Linear> = grams.to_vec();
        all.extend(channels.iter().filter(|linear| !grams.iter().any(|other| other.weight == linear.weight)));
        let reads = |list: &[&Linear], x: Value| list.iter().any(|linear| linear.input == x);
        let measure = |graph: &mut Graph, linear: &Linear, x: Value| {
            let mut results = vec![];
            if reads(grams, linear.input) {
                results.push(graph.matmul_form(Form::Tn, x, x)?);
            }
            if reads(channels, linear.input) {
                let magnitude = graph.pointwise("abs", &[x], 0.0)?;
                results.push(graph.reduce(Kind::Maximum, magnitude, 0)?);
                results.push(graph.reduce(Kind::Mean, magnitude, 0)?);
                results.push(graph.reduce(Kind::Mean, x, 0)?);
            }
            Ok(results)
        };
        let mut sums = Sums::default();
        let of = |list: &[&Linear], linear: &Linear| {
            list.iter().find(|other| other.input == linear.input).map(|first| first.weight.clone())
        };
        sums.tokens = self.sweep(&all, measure, |linear, mut results| {
            if let Some(name) = of(grams, linear) {
                let product = results[0].real::<f32>();
                let sum = sums.products.entry(name).or_insert_with(|| vec![0.0; product.len()]);
                sum.iter_mut().zip(product).for_each(|(sum, &x)| *sum += f64::from(x));
                results = &results[1..];
            }
            if let Some(name) = of(channels, linear) {
                let size = results[0].data.len();
                let zero = || Channels {
                    largest: vec![0.0; size],
                    magnitude: vec![0.0; size],
                    mean: vec![0.0; size],
                };
                let all: &mut Channels = sums.channels.entry(name).or_insert_with(zero);
                all.largest.iter_mut().zip(results[0].real::<f32>()).for_each(|(a, b)| *a = a.max(*b));
                let add = |to: &mut [f64], from: &Tensor| {
                    to.iter_mut().zip(from.real::<f32>()).for_each(|(a, b)| *a += share * f64::from(*b));
                };
                add(&mut all.magnitude, &results[1]);
                add(&mut all.mean, &results[2]);
            }
        })?;
        Ok(sums)
    }

    /// Hands over the inputs of each layer, batch by batch, with the name of its weight.
    pub(super) fn each_input(&self, layers: &[&Linear], mut see: impl FnMut(&str, &[f32])) -> Result<()> {
        // A result must be made by an operator: the layer's input may be read by others in its place.
        let keep = |graph: &mut Graph, _: &Linear, x: Value| Ok(vec![graph.scale(x, 1.0)?]);
        self.sweep(layers, keep, |first, results| {
            let readers = layers.iter().filter(|l| l.input == first.input);
            readers.for_each(|l| see(&l.weight, results[0].real()));
        })?;
        Ok(())
    }

    /// Runs all batches; of each layer's inputs, as rows, what `measure` makes is handed to `see` with the first layer that reads
    /// them. Gives the number of tokens.
    fn sweep(
        &self,
        layers: &[&Linear],
        measure: impl Fn(&mut Graph, &Linear, Value) -> ops::Result<Vec<Value>>,
        mut see: impl FnMut(&Linear, &[Tensor]),
    ) -> Result<usize> {
        let extent = self.extent()?;
        let mut firsts: Vec<&Linear> = vec![];
        for linear in layers {
            if !firsts.iter().any(|first| first.input == linear.input) {
                firsts.push(linear);
            }
        }
        let deployment = Deployment::new(self.weights).within(self.target);
        let mut made = vec![];
        let graph = deployment.graph(self.family, extent, Mode::Evaluate, |graph, _| {
            for linear in &firsts {
                let shape = graph.kind(linear.input).shape.clone();
                let x = graph.reshape(linear.input, [shape.rows(), shape.last()].into()).map_err(wrong)?;
                let results = measure(graph, linear, x).map_err(wrong)?;
                made.push(results.len());
                for (at, value) in results.into_iter().enumerate() {
                    graph.output(format!("{}.{at}", linear.weight), value);
                }
            }
            Ok(())
        })?;
        let (mut engine, plans) = deployment.engine(self.target, &[graph])?;
        for batch in self.batches {
            let feeds = train::job::feeds_of(batch, extent);
            let list: Option<Vec<&Tensor>> =
                plans[0].feeds.iter().map(|feed| feeds.get(&feed.name)).collect();
            let list = list.expect("tokens are all that a forward pass takes");
            let results = engine.run(0, &list).map_err(train::Error::from)?;
            let mut rest = &results[..];
            for (linear, &count) in firsts.iter().zip(&made) {
                let (now, later) = rest.split_at(count);
                see(linear, now);
                rest = later;
            }
        }
        Ok(self.batches.len() * extent.positions())
    }
}

/// What one sweep adds up, by the first of the layers that read the same.
#[derive(Default)]
struct Sums {
    products: HashMap<String, Vec<f64>>,
    channels: HashMap<String, Channels>,
    tokens: usize,
}

/// What is known of layers already, and the layers of which it is not.
fn known_of<'a, T: Clone>(
    layers: &[&'a Linear],
    known: Option<&HashMap<String, T>>,
) -> (HashMap<String, T>, Vec<&'a Linear>) {
    let (mut found, mut rest) = (HashMap::new(), vec![]);
    for linear in layers {
        match known.and_then(|known| known.get(&linear.weight)) {
            Some(kept) => drop(found.insert(linear.weight.clone(), kept.clone())),
            None => rest.push(*linear),
        }
    }
    (found, rest)
}

/// What was measured for the first layer of those that read the same, for all of them.
fn shared<T: Clone>(layers: &[&Linear], found: HashMap<String, T>) -> HashMap<String, T> {
    let of = |linear: &&Linear| {
        let first = layers.iter().find(|other| other.input == linear.input).expect("itself at least");
        (linear.weight.clone(), found[&first.weight].clone())
    };
    layers.iter().map(of).collect()
}

fn wrong(source: ops::Error) -> crate::deploy::Error {
    crate::deploy::Error::Model(crate::graph::Error::from(source).into())
}

/// The model's linear layers, in a graph of the size of the batches.
pub(super) fn layers_of(family: &dyn Family, extent: Extent) -> Result<(Graph, Vec<Linear>)> {
    let graph = forward(family, extent)?;
    let layers = super::linears(&graph);
    Ok((graph, layers))
}
