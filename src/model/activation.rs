//! Activations by name.

use crate::graph::Graph;
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::{Result, Value};

/// A function between two layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// x itself.
    Identity,
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// max(x, 0).
    Relu,
    /// x where positive, `slope` x elsewhere.
    LeakyRelu {
        /// Slope below zero.
        slope: f32,
    },
    /// As leaky ReLU, with a learned slope.
    Prelu,
    /// x times the normal distribution function of x.
    Gelu,
    /// Its approximation by tanh, as GPT-2 has it.
    GeluTanh,
    /// x times the sigmoid of x.
    Silu,
}

/// Names as in configurations and recipes; the first of a kind is the one written.
const NAMES: &[(&str, Activation)] = &[
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_tanh", Activation::GeluTanh),
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("tanh", Activation::Tanh),
    ("sigmoid", Activation::Sigmoid),
    ("linear", Activation::Identity),
    ("leaky_relu", Activation::LeakyRelu { slope: 0.01 }),
    ("prelu", Activation::Prelu),
];

impl Activation {
    /// The activation of that name. `leaky_relu` has the slope 0.01.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(n, _)| *n == name).map(|&(_, activation)| activation)
    }

    /// All names there are, for messages.
    pub fn names() -> String {
        NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    /// Name as in a configuration.
    pub fn name(self) -> &'static str {
        let same = |a: &Activation| std::mem::discriminant(a) == std::mem::discriminant(&self);
        NAMES.iter().find(|(_, a)| same(a)).map(|(name, _)| *name).expect("every activation has a name")
    }

    /// Applies it; `slope` is the learned one of [`Activation::Prelu`] and ignored by the others.
    pub(super) fn apply(self, graph: &mut Graph, x: Value, slope: Option<Value>) -> Result<Value> {
        let row = match self {
            Activation::Identity => return Ok(x),
            Activation::Prelu => {
                let slope = slope.expect("layers with PReLU declare a slope");
                return graph.pointwise("prelu", &[x, slope], 0.0);
            }
            Activation::LeakyRelu { slope } => return graph.pointwise("leaky_relu", &[x], slope),
            Activation::Sigmoid => "sigmoid",
            Activation::Tanh => "tanh",
            Activation::Relu => "relu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::Silu => "silu",
        };
        graph.pointwise(row, &[x], 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_written_is_read_back_as_the_same_function() {
        for (_, activation) in NAMES {
            assert_eq!(Activation::named(activation.name()), Some(*activation));
        }
        assert_eq!(Activation::named("swoosh"), None);
    }
}
