//! Scales that move from a layer's inputs into its weight: what makes the inputs divides by them.
//!
//! A norm divides where its gains, one for each channel, are divided; nothing else in the model may read it but linear layers, whose
//! weights are multiplied. The model then computes what it did, up to rounding.

use super::Result;
use super::linear::Linear;
use crate::graph::{Graph, Source};
use crate::model::Weights;
use crate::tensor::Tensor;

/// Linear layers that read a norm which nothing else reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Fold {
    /// Names of the norm's parameters that scale its output.
    pub gains: Vec<String>,
    /// Names of the weights of the layers.
    pub weights: Vec<String>,
    /// Channels.
    pub size: usize,
}

/// All places of a graph where scales can be moved.
pub fn folds(graph: &Graph, linears: &[Linear]) -> Vec<Fold> {
    let mut found = vec![];
    for node in graph.nodes() {
        let names: Option<Vec<String>> =
            node.op.gains().iter().map(|&at| parameter(graph, node.inputs[at])).collect();
        let Some(gains) = names.filter(|gains| !gains.is_empty()) else { continue };
        let output = node.outputs[0];
        let alone = |gain: &String| {
            let value = graph.named(gain).expect("just found");
            graph.nodes().iter().flat_map(|n| &n.inputs).filter(|v| **v == value).count() == 1
        };
        let readers = graph.nodes().iter().filter(|n| n.inputs.contains(&output));
        let layer = |n: &crate::graph::Node| {
            let weight = n.inputs.get(1).and_then(|&w| parameter(graph, w))?;
            let linear = linears.iter().find(|l| l.weight == weight && l.input == output)?;
            (n.inputs[0] == output && !linear.shared).then_some(weight)
        };
        let weights: Option<Vec<String>> = readers.map(layer).collect();
        let Some(weights) = weights.filter(|weights| !weights.is_empty()) else { continue };
        let is_result = graph.outputs().iter().any(|(_, value)| *value == output);
        if gains.iter().all(alone) && !is_result {
            found.push(Fold { gains, weights, size: graph.kind(output).shape.last() });
        }
    }
    found
}

fn parameter(graph: &Graph, value: crate::ops::Value) -> Option<String> {
    let info = graph.info(value);
    matches!(info.source, Source::Parameter).then(|| info.name.clone()).flatten()
}

/// Divides the gains and multiplies the inputs of the weights by `scales`, one for each channel.
pub fn rescale(weights: &mut Weights, fold: &Fold, linears: &[Linear], scales: &[f32]) -> Result<()> {
    for name in &fold.gains {
        let mut gain = weights.get(name)?.clone();
        gain.real_mut::<f32>().iter_mut().zip(scales).for_each(|(x, s)| *x /= s);
        weights.set(name.clone(), gain);
    }
    for name in &fold.weights {
        let turned = linears.iter().find(|linear| linear.weight == *name).is_some_and(|linear| linear.turned);
        let mut weight = weights.get(name)?.clone();
        scale_inputs(&mut weight, turned, scales);
        weights.set(name.clone(), weight);
    }
    Ok(())
}

/// Multiplies what meets each input by its scale.
fn scale_inputs(weight: &mut Tensor, turned: bool, scales: &[f32]) {
    let cols = weight.shape.last();
    for (row, x) in weight.real_mut::<f32>().chunks_mut(cols).enumerate() {
        match turned {
            true => x.iter_mut().for_each(|x| *x *= scales[row]),
            false => x.iter_mut().zip(scales).for_each(|(x, s)| *x *= s),
        }
    }
}
