//! Neuron, layer, multi-layer perceptron.
//!
//! A neuron is `activation(w . x + b)`; a layer is many over the same inputs, `activation(x W^T + b)` with W [out, in] as PyTorch has
//! it; an MLP is layers one after the other.

use super::layers::Layers;
use super::{Activation, Error, Init, Mode, ParameterSpec, Result};
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::matmul::Form;

/// Slope of PReLU before training, as in its paper (He et al. 2015).
const INITIAL_SLOPE: f64 = 0.25;

/// A multi-layer perceptron: a classifier under cross-entropy, a regressor under squared error.
#[derive(Clone, Debug, PartialEq)]
pub struct Mlp {
    /// Inputs, neurons of each hidden layer, outputs.
    pub sizes: Vec<usize>,
    /// Activation of the hidden layers.
    pub activation: Activation,
    /// Activation of the last layer.
    pub output: Activation,
    /// Share of the hidden neurons that is zeroed in training.
    pub dropout: f32,
}

impl Mlp {
    /// Layers of these sizes; the last one is left linear.
    pub fn new(sizes: &[usize], activation: Activation) -> Result<Self> {
        if sizes.len() < 2 || sizes.contains(&0) {
            let expected = "inputs, any hidden layers, outputs; none of them zero".to_string();
            let (place, key, got) = ("mlp".to_string(), "sizes".to_string(), format!("{sizes:?}"));
            return Err(Error::Setting { place, key, expected, got });
        }
        Ok(Mlp { sizes: sizes.to_vec(), activation, output: Activation::Identity, dropout: 0.0 })
    }

    /// A single neuron.
    pub fn neuron(inputs: usize, activation: Activation) -> Result<Self> {
        Ok(Mlp { output: activation, ..Mlp::new(&[inputs, 1], activation)? })
    }

    fn layers(&self) -> impl Iterator<Item = (String, usize, usize, Activation)> {
        let last = self.sizes.len() - 2;
        self.sizes.windows(2).enumerate().map(move |(i, pair)| {
            let activation = if i == last { self.output } else { self.activation };
            (format!("layers.{i}"), pair[0], pair[1], activation)
        })
    }

    /// Its parameters: `layers.0.weight [out, in]`, `layers.0.bias [out]`, and with PReLU `layers.0.slope [out]`.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let mut list = vec![];
        for (module, inputs, outputs, activation) in self.layers() {
            let init = match activation {
                Activation::Identity | Activation::Tanh | Activation::Sigmoid => {
                    Init::xavier(inputs, outputs)
                }
                _ => Init::kaiming(inputs),
            };
            list.push(ParameterSpec::new(format!("{module}.weight"), [outputs, inputs], init));
            list.push(ParameterSpec::new(format!("{module}.bias"), [outputs], Init::Zeros));
            if activation == Activation::Prelu {
                let slope = Init::Constant { value: INITIAL_SLOPE };
                list.push(ParameterSpec::new(format!("{module}.slope"), [outputs], slope));
            }
        }
        list
    }

    /// Declares the parameters and writes the layers; `x` is [B, in], the result [B, out].
    pub fn forward(&self, graph: &mut Graph, x: Value) -> Result<Value> {
        Ok(self.write(graph, x, Mode::Evaluate)?.0)
    }

    /// The same for a mode, beside the result what each hidden layer gives.
    pub(super) fn write(&self, graph: &mut Graph, x: Value, mode: Mode) -> Result<(Value, Vec<Value>)> {
        let mut layers = Layers::declare(graph, &self.parameters(), mode, self.dropout > 0.0);
        let (mut x, mut hidden, last) = (x, vec![], self.sizes.len() - 2);
        for (number, (module, _, _, activation)) in self.layers().enumerate() {
            let sums = layers.linear(graph, &module, Form::Nt, x)?;
            x = layers.activate(graph, &module, activation, sums)?;
            if number < last {
                hidden.push(x);
                x = layers.dropout(graph, &module, self.dropout, x)?;
            }
        }
        Ok((x, hidden))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Feeds, evaluate, gradient};
    use crate::model::{count_elements, initial};
    use crate::ops::losses::{LossEmit, Reduction};
    use crate::tensor::{DType, Tensor, Type};

    #[test]
    fn a_neuron_weighs_its_inputs_and_adds_its_bias() {
        let neuron = Mlp::neuron(2, Activation::Tanh).unwrap();
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([1, 2]));
        let y = neuron.forward(&mut graph, x).unwrap();
        graph.output("y", y);
        let feeds = Feeds::new()
            .with("x", Tensor::f32([1, 2], vec![2.0, -3.0]))
            .with("layers.0.weight", Tensor::f32([1, 2], vec![0.5, 0.25]))
            .with("layers.0.bias", Tensor::f32([1], vec![1.0]));
        // tanh(2 * 0.5 - 3 * 0.25 + 1) = tanh(1.25)
        let y = evaluate(&graph, &feeds, DType::F64).unwrap()["y"].to_f64()[0];
        assert!((y - 1.25f64.tanh()).abs() < 1e-12, "{y}");
    }

    #[test]
    fn every_activation_builds_and_prelu_learns_a_slope() {
        for name in ["relu", "leaky_relu", "prelu", "tanh", "sigmoid", "gelu", "gelu_new", "silu", "linear"] {
            let mlp = Mlp::new(&[3, 5, 4, 2], Activation::named(name).unwrap()).unwrap();
            let slopes = if name == "prelu" { 5 + 4 } else { 0 };
            assert_eq!(count_elements(&mlp.parameters()), 3 * 5 + 5 + 5 * 4 + 4 + 4 * 2 + 2 + slopes);
            let mut graph = Graph::new();
            let x = graph.input("x", Type::f32([7, 3]));
            let y = mlp.forward(&mut graph, x).unwrap();
            graph.verify().unwrap();
            assert_eq!(*graph.kind(y), Type::f32([7, 2]));
        }
    }

    /// Mean squared error on "exclusive or" after plain gradient descent.
    fn loss_on_exclusive_or(mlp: &Mlp, steps: usize) -> f64 {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([4, 2]));
        let y = mlp.forward(&mut graph, x).unwrap();
        let target = graph.input("target", Type::f32([4, 1]));
        let loss = graph.squared_error(y, target, Reduction::Mean).unwrap();
        graph.output("loss", loss);
        let named: Vec<(String, Value)> = graph.parameters().map(|(n, v)| (n.to_string(), v)).collect();
        let values: Vec<Value> = named.iter().map(|(_, v)| *v).collect();
        for ((name, _), slope) in named.iter().zip(gradient(&mut graph, loss, &values).unwrap()) {
            graph.output(name.clone(), slope.unwrap());
        }
        let mut feeds = initial(&mlp.parameters(), 1)
            .feeds()
            .with("x", Tensor::f32([4, 2], vec![0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]))
            .with("target", Tensor::f32([4, 1], vec![0.0, 1.0, 1.0, 0.0]));
        let mut last = f64::NAN;
        for _ in 0..steps {
            let results = evaluate(&graph, &feeds, DType::F32).unwrap();
            last = results["loss"].to_f64()[0];
            for (name, _) in &named {
                let mut weight = feeds.get(name).unwrap().clone();
                let slope = results[name].real::<f32>();
                weight.real_mut::<f32>().iter_mut().zip(slope).for_each(|(w, g)| *w -= 0.2 * g);
                feeds.set(name.clone(), weight);
            }
        }
        last
    }

    #[test]
    fn a_hidden_layer_learns_what_a_single_neuron_cannot() {
        let neuron = Mlp::neuron(2, Activation::Identity).unwrap();
        // The best plane through the four corners is 0.5 everywhere: an error of a quarter.
        assert!(loss_on_exclusive_or(&neuron, 300) > 0.249);
        let mlp = Mlp::new(&[2, 8, 1], Activation::Tanh).unwrap();
        let loss = loss_on_exclusive_or(&mlp, 1000);
        assert!(loss < 0.01, "{loss}");
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for sizes in [&[][..], &[3], &[3, 0, 1]] {
            assert!(matches!(Mlp::new(sizes, Activation::Relu), Err(Error::Setting { .. })));
        }
    }
}
