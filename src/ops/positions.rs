//! Sinusoidal positions (Vaswani et al. 2017, section 3.5), as a table known beforehand.
//!
//! `p[t, 2i] = sin(t / 10000^(2i / C))`, `p[t, 2i + 1] = cos(t / 10000^(2i / C))`. Learned positions are a parameter of the
//! same shape; rotary ones turn queries and keys instead (see `rotary`).

use super::{Emit, Error, Result, Value};
use crate::tensor::Tensor;

/// The table [time, channels]; `channels` is even.
pub fn sinusoidal(time: usize, channels: usize) -> Result<Tensor> {
    if time == 0 || channels == 0 || !channels.is_multiple_of(2) {
        let (expected, got) =
            ("at least one position and an even width".to_string(), format!("{time} x {channels}"));
        return Err(Error::Setting { op: "sinusoidal", setting: "shape", expected, got });
    }
    let at = |t: usize, c: usize| {
        let angle = t as f64 / 10_000f64.powf((c - c % 2) as f64 / channels as f64);
        if c.is_multiple_of(2) { angle.sin() } else { angle.cos() }
    };
    let table = (0..time).flat_map(|t| (0..channels).map(move |c| at(t, c) as f32)).collect();
    Ok(Tensor::f32([time, channels], table))
}

/// Builder of sinusoidal positions.
pub trait PositionsEmit {
    /// The table [time, channels] as a constant, to be added to embeddings.
    fn sinusoidal_positions(&mut self, time: usize, channels: usize) -> Result<Value>;
}

impl<E: Emit + ?Sized> PositionsEmit for E {
    fn sinusoidal_positions(&mut self, time: usize, channels: usize) -> Result<Value> {
        Ok(self.constant(sinusoidal(time, channels)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_the_paper() {
        let table = sinusoidal(3, 4).unwrap();
        let expected = [
            [0.0, 1.0, 0.0, 1.0],
            [1f64.sin(), 1f64.cos(), 0.01f64.sin(), 0.01f64.cos()],
            [2f64.sin(), 2f64.cos(), 0.02f64.sin(), 0.02f64.cos()],
        ];
        for (a, b) in table.to_f64().iter().zip(expected.iter().flatten()) {
            assert!((a - b).abs() < 1e-7, "{a} {b}");
        }
        assert!(sinusoidal(3, 5).is_err());
    }
}
