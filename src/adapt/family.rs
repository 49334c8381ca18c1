//! A model with adapters as a family of its own: the same model, more parameters, a graph with paths through low ranks.

use super::{Adapter, Kind, Linear, Result};
use crate::graph::Graph;
use crate::model::{self, Family, Forward, Init, Interface, Mode, ParameterSpec, Reading, Weights};
use crate::ops::Value;
use crate::passes::{Factor, Pass, squares_name};
use crate::tensor::Tensor;
use serde_json::{Map, Value as Json};
use std::fmt::Debug;
use std::ops::Deref;

/// A family with adapters beside its linear layers. `F` holds or borrows the family without them.
#[derive(Debug)]
pub struct Adapted<F> {
    plain: F,
    adapters: Vec<Adapter>,
}

impl<F> Adapted<F> {
    /// The family `plain` with adapters.
    pub fn new(plain: F, adapters: Vec<Adapter>) -> Adapted<F> {
        Adapted { plain, adapters }
    }
}

impl<F> Adapted<F> {
    /// Writes a plain graph with the adapters into another, and gives what its results are there.
    ///
    /// A graph may be of a part of the model: then it has a part of the adapters.
    fn bring(&self, graph: &mut Graph, mut plain: Graph, trains: bool) -> model::Result<Vec<Value>> {
        for (number, adapter) in self.adapters.iter().enumerate() {
            let mut pass = adapter.pass(number, trains);
            pass.layers.retain(|weight, _| plain.named(weight).is_some());
            plain = pass.rewrite(&plain)?;
        }
        let map = graph.bring(&plain, "")?;
        Ok(plain.outputs().iter().map(|(_, value)| map[value.index()]).collect())
    }
}

impl<F> Family for Adapted<F>
where
    F: Deref + Debug + Send + Sync,
    F::Target: Family,
{
    fn name(&self) -> &'static str {
        self.plain.name()
    }

    fn vocabulary(&self) -> usize {
        self.plain.vocabulary()
    }

    fn context(&self) -> usize {
        self.plain.context()
    }

    fn parameters(&self) -> Vec<ParameterSpec> {
        let mut all = self.plain.parameters();
        all.extend(self.adapters.iter().flat_map(needed));
        all
    }

    fn interface(&self) -> Interface {
        self.plain.interface()
    }

    fn read(&self, graph: &mut Graph, reading: &Reading) -> model::Result<Forward> {
        let mut plain = Graph::new();
        let forward = self.plain.read(&mut plain, reading)?;
        let beside = forward.pooled.iter().chain(&forward.follows);
        let streams = forward.hidden.iter().chain(&forward.encoded).chain(beside);
        let wanted: Vec<Value> = [forward.logits].iter().chain(streams).copied().collect();
        wanted.iter().enumerate().for_each(|(at, &value)| plain.output(at.to_string(), value));
        let mut rest = self.bring(graph, plain, reading.mode == Mode::Train)?.into_iter();
        Ok(Forward {
            logits: rest.next().expect("the first that was wanted"),
            hidden: rest.by_ref().take(forward.hidden.len()).collect(),
            encoded: rest.by_ref().take(forward.encoded.len()).collect(),
            pooled: forward.pooled.and_then(|_| rest.next()),
            follows: rest.next(),
        })
    }

    fn remember(&self, graph: &mut Graph, reading: &Reading) -> model::Result<Vec<(String, Value)>> {
        let mut plain = Graph::new();
        let (names, values): (Vec<String>, Vec<Value>) =
            self.plain.remember(&mut plain, reading)?.into_iter().unzip();
        values.iter().enumerate().for_each(|(at, &value)| plain.output(at.to_string(), value));
        Ok(names.into_iter().zip(self.bring(graph, plain, reading.mode == Mode::Train)?).collect())
    }

    fn canonical_name(&self, stored: &str) -> Option<String> {
        self.plain.canonical_name(stored)
    }

    fn name_in_memory(&self, parameter: &str) -> String {
        self.plain.name_in_memory(parameter)
    }

    fn config(&self) -> Map<String, Json> {
        self.plain.config()
    }

    fn set_dropout(&mut self, _: f32) {
        unreachable!("dropout is set before there are adapters")
    }

    fn describe(&self) -> String {
        let adapters: Vec<String> = self.adapters.iter().map(Adapter::describe).collect();
        format!("{}; adapter {}", self.plain.describe(), adapters.join("; adapter "))
    }
}

/// The parameters that a graph has for an adapter beside those of the model.
pub fn needed(adapter: &Adapter) -> Vec<ParameterSpec> {
    let squares = |layer: &super::Layer| {
        let Linear { weight, outputs, .. } = &layer.linear;
        ParameterSpec::new(squares_name(weight), [*outputs], Init::Zeros)
    };
    let mut all = adapter.parameters();
    all.truncate(all.len() - adapter.whole.len());
    if adapter.kind == Kind::Dora {
        all.extend(adapter.layers.iter().map(squares));
    }
    all
}

/// Weights with what graphs read of them where outputs have magnitudes: sums of squares by output, however they are held.
pub fn with_squares(mut weights: Weights, adapters: &[Adapter]) -> Result<Weights> {
    for adapter in adapters.iter().filter(|adapter| adapter.kind == Kind::Dora) {
        for layer in &adapter.layers {
            let squares = squares(&weights, &layer.linear)?;
            let squares = squares.into_iter().map(|square| square as f32).collect();
            weights.set(squares_name(&layer.linear.weight), Tensor::f32([layer.linear.outputs], squares));
        }
    }
    Ok(weights)
}

/// For each output of a layer the sum of the squares of its weights.
pub(super) fn squares(weights: &Weights, linear: &Linear) -> Result<Vec<f64>> {
    let weight = weights.numbers(&linear.weight)?;
    let mut sums = vec![0.0; linear.outputs];
    for (row, numbers) in weight.real::<f32>().chunks(weight.shape[1]).enumerate() {
        let squares = numbers.iter().map(|&w| f64::from(w) * f64::from(w));
        match linear.turned {
            true => sums.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square),
            false => sums[row] = squares.sum(),
        }
    }
    Ok(sums)
}

/// Magnitudes that leave a model what it is: the norms of a layer's outputs.
pub(super) fn magnitudes(weights: &Weights, adapter: &Adapter) -> Result<Vec<(String, Tensor)>> {
    if adapter.kind == Kind::Lora {
        return Ok(vec![]);
    }
    let of = |layer: &super::Layer| {
        let norms = squares(weights, &layer.linear)?.into_iter().map(|square| square.sqrt() as f32).collect();
        let name = Factor::Magnitude.name(&layer.linear.weight, &adapter.name);
        Ok((name, Tensor::f32([layer.linear.outputs], norms)))
    };
    adapter.layers.iter().map(of).collect()
}

impl Adapter {
    /// What it is before the first step: it changes nothing of weights held so. What is trained whole begins as it is in `kept`.
    pub fn first(&self, held: &Weights, kept: &Weights, seed: u64) -> Result<Weights> {
        let mut first = model::initial(&self.parameters(), seed);
        for (name, tensor) in magnitudes(held, self)? {
            first.set(name, tensor);
        }
        for spec in &self.whole {
            first.set(spec.name.clone(), kept.get(&spec.name)?.clone());
        }
        Ok(first)
    }
}
