//! Initial weights: a pure function of the seed, the parameter's name and its rule.
//!
//! Each parameter has a stream of its own, so that adding or leaving out one never changes another.

use super::{ParameterSpec, Weights};
use crate::tensor::Tensor;
use crate::tensor::random::Stream;
use rayon::prelude::*;

/// How the elements of a parameter start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero: biases.
    Zeros,
    /// All one: the gains of norms.
    Ones,
    /// All the same.
    Constant {
        /// The value.
        value: f64,
    },
    /// Normal with mean zero.
    Normal {
        /// Standard deviation.
        deviation: f64,
    },
    /// Uniform in `-bound..bound`.
    Uniform {
        /// Largest magnitude.
        bound: f64,
    },
}

impl Init {
    /// He et al. 2015, for layers before a rectifier: variance `2 / inputs` keeps the size of activations.
    pub fn kaiming(inputs: usize) -> Self {
        Init::Normal { deviation: (2.0 / inputs as f64).sqrt() }
    }

    /// Glorot and Bengio 2010, for layers before tanh or sigmoid: variance `2 / (inputs + outputs)`, uniform.
    pub fn xavier(inputs: usize, outputs: usize) -> Self {
        Init::Uniform { bound: (6.0 / (inputs + outputs) as f64).sqrt() }
    }

    /// The elements of the parameter `name`.
    pub fn draw(self, name: &str, count: usize, seed: u64) -> Vec<f32> {
        let mut stream = stream_of(name, seed);
        match self {
            Init::Zeros => vec![0.0; count],
            Init::Ones => vec![1.0; count],
            Init::Constant { value } => vec![value as f32; count],
            Init::Normal { deviation } => (0..count).map(|_| (stream.normal() * deviation) as f32).collect(),
            Init::Uniform { bound } => {
                (0..count).map(|_| ((2.0 * stream.uniform() - 1.0) * bound) as f32).collect()
            }
        }
    }
}

fn stream_of(name: &str, seed: u64) -> Stream {
    let mut words = vec![seed as u32, (seed >> 32) as u32, name.len() as u32];
    words.extend(name.bytes().map(u32::from));
    Stream::new(&words)
}

/// Initial weights of a whole model.
pub fn initial(parameters: &[ParameterSpec], seed: u64) -> Weights {
    let draw = |spec: &ParameterSpec| {
        let elements = spec.init.draw(&spec.name, spec.shape.count(), seed);
        (spec.name.clone(), Tensor::f32(spec.shape.clone(), elements))
    };
    parameters.par_iter().map(draw).collect::<Vec<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_and_deviation(x: &[f32]) -> (f64, f64) {
        let mean = x.iter().map(|&x| x as f64).sum::<f64>() / x.len() as f64;
        let square = x.iter().map(|&x| (x as f64 - mean).powi(2)).sum::<f64>();
        (mean, (square / x.len() as f64).sqrt())
    }

    #[test]
    fn the_draw_has_the_deviation_asked_for() {
        let (mean, deviation) =
            mean_and_deviation(&Init::Normal { deviation: 0.02 }.draw("w", 100_000, 1337));
        assert!(mean.abs() < 3e-4 && (deviation / 0.02 - 1.0).abs() < 0.01, "{mean} {deviation}");
        let (_, deviation) = mean_and_deviation(&Init::kaiming(50).draw("w", 100_000, 1));
        assert!((deviation / 0.2 - 1.0).abs() < 0.01, "{deviation}");
        // A uniform draw within b has deviation b / sqrt(3); Glorot's is sqrt(2 / (inputs + outputs)).
        let (_, deviation) = mean_and_deviation(&Init::xavier(120, 80).draw("w", 100_000, 1));
        assert!((deviation / 0.1 - 1.0).abs() < 0.01, "{deviation}");
    }

    #[test]
    fn seed_and_name_alone_decide_a_parameter() {
        let rule = Init::Normal { deviation: 1.0 };
        assert_eq!(rule.draw("a", 5, 7), rule.draw("a", 9, 7)[..5]);
        assert_ne!(rule.draw("a", 5, 7), rule.draw("b", 5, 7));
        assert_ne!(rule.draw("a", 5, 7), rule.draw("a", 5, 8));
        assert_ne!(rule.draw("a", 5, 7), rule.draw("a", 5, 7 | 1 << 32));
    }
}
