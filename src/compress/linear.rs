//! The linear layers of a model, found in its graph.

use super::{Error, Result};
use crate::graph::{Graph, Source};
use crate::model::{Extent, Family, Mode};
use crate::ops::Value;
pub use crate::passes::matches;

/// A linear layer: a product with a weight that is a parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Name of the weight.
    pub weight: String,
    /// Name of the bias, if it has one.
    pub bias: Option<String>,
    /// The weight is stored as [in, out].
    pub turned: bool,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// What is multiplied with the weight, in the graph.
    pub input: Value,
    /// The weight is also read by something that is no product, such as the lookup of tokens.
    pub shared: bool,
    /// The product gives the model's scores.
    pub is_head: bool,
}

/// The model's forward pass as it is evaluated, with its scores as the result `logits`.
pub(super) fn forward(family: &dyn Family, extent: Extent) -> Result<Graph> {
    let mut graph = Graph::new();
    let forward = family.forward(&mut graph, extent, Mode::Evaluate)?;
    graph.output("logits", forward.logits);
    Ok(graph)
}

/// All linear layers in the order in which they are computed.
pub fn linears(graph: &Graph) -> Vec<Linear> {
    let scores = graph.result("logits");
    let mut found: Vec<Linear> = vec![];
    for node in graph.nodes() {
        let [input, weight, rest @ ..] = &node.inputs[..] else { continue };
        let info = graph.info(*weight);
        let turned = match [false, true].into_iter().find(|&turned| node.op.on_codes(turned).is_some()) {
            Some(turned) if matches!(info.source, Source::Parameter) && info.kind.shape.len() == 2 => turned,
            _ => continue,
        };
        let name = |value: Value| graph.info(value).name.clone();
        let bias = rest.first().filter(|value| matches!(graph.info(**value).source, Source::Parameter));
        let [a, b] = [info.kind.shape[0], info.kind.shape[1]];
        let [rows, cols] = if turned { [b, a] } else { [a, b] };
        let other = |node: &crate::graph::Node| {
            node.inputs.iter().enumerate().any(|(at, value)| value == weight && at != 1)
                || node.inputs.get(1) == Some(weight) && node.op.on_codes(turned).is_none()
        };
        found.push(Linear {
            weight: name(*weight).expect("parameters are named when made"),
            bias: bias.and_then(|&value| name(value)),
            turned,
            rows,
            cols,
            input: *input,
            shared: graph.nodes().iter().any(other),
            is_head: scores == Some(node.outputs[0]),
        });
    }
    found
}

/// Which linear layers are meant, by patterns of the names of their weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Patterns of those that are; absent: all but the head and tables that are looked up as well.
    pub targets: Option<Vec<String>>,
    /// Patterns of those among them that are not.
    pub ignore: Vec<String>,
}

impl Selection {
    /// Every layer, the head and shared tables as well.
    pub fn all() -> Selection {
        Selection { targets: Some(vec!["*".to_string()]), ignore: vec![] }
    }

    /// The layers meant. A pattern that fits none is an error.
    pub fn of<'a>(&self, all: &'a [Linear]) -> Result<Vec<&'a Linear>> {
        let known = || all.iter().map(|linear| linear.weight.as_str()).collect::<Vec<_>>().join(", ");
        for pattern in self.targets.iter().flatten().chain(&self.ignore) {
            if !all.iter().any(|linear| matches(pattern, &linear.weight)) {
                return Err(Error::NoMatch { pattern: pattern.clone(), known: known() });
            }
        }
        let wanted = |linear: &Linear| match &self.targets {
            Some(targets) => targets.iter().any(|pattern| matches(pattern, &linear.weight)),
            None => !linear.is_head && !linear.shared,
        };
        let ignored = |linear: &Linear| self.ignore.iter().any(|pattern| matches(pattern, &linear.weight));
        let chosen: Vec<&Linear> = all.iter().filter(|linear| wanted(linear) && !ignored(linear)).collect();
        if chosen.is_empty() {
            let pattern = self.ignore.join(", ");
            return Err(Error::NoMatch { pattern: format!("all but {pattern}"), known: known() });
        }
        Ok(chosen)
    }
}
