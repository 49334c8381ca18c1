//! Sinusoidal positions (Vaswani et al. 2017, section 3.5), as a table known beforehand.
//!
//! `p[t, 2i] = sin(t / 10000^(2i / C))`, `p[t, 2i + 1] = cos(t / 10000^(2i / C))`. Learned positions are a parameter of the
//! same shape; rotary ones turn queries and keys instead (see `rotary`). Where a bias is learned for each distance of a key from
//! its query, far distances share one: see [`Buckets`].

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

/// The same with all sines in the first half of the channels and all cosines in the second, as Marian has it.
pub fn sinusoidal_halves(time: usize, channels: usize) -> Result<Tensor> {
    let table = sinusoidal(time, channels)?;
    let half = |start: usize| (start..channels).step_by(2);
    let row = |row: &[f32]| half(0).chain(half(1)).map(|c| row[c]).collect::<Vec<_>>();
    let data = table.real::<f32>().chunks(channels).flat_map(row).collect();
    Ok(Tensor::f32([time, channels], data))
}

/// How distances of keys from queries share a number of learned biases (Raffel et al. 2020, section 2.1).
///
/// Half the buckets, of a direction if there are two, hold one distance each; the others widen as logarithms do up to `farthest`,
/// and the last one holds all beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Buckets in all.
    pub count: usize,
    /// Distance from which on all share the last bucket.
    pub farthest: usize,
    /// Keys after the query have buckets of their own, the upper half; else they share that of distance zero.
    pub both: bool,
}

impl Buckets {
    /// The bucket of a key `distance` places after its query, before it where negative.
    pub fn of(&self, distance: i64) -> u32 {
        let count = if self.both { self.count / 2 } else { self.count };
        let upper = if self.both && distance > 0 { count } else { 0 };
        let apart = if self.both { distance.unsigned_abs() } else { distance.min(0).unsigned_abs() } as usize;
        let single = count / 2;
        let bucket = match apart < single {
            true => apart,
            false => {
                // In f32, as the models were trained: what lies on an edge falls to the same side.
                let share = (apart as f32 / single as f32).ln()
                    / (self.farthest as f64 / single as f64).ln() as f32
                    * (count - single) as f32;
                (single + share as usize).min(count - 1)
            }
        };
        (upper + bucket) as u32
    }
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

    #[test]
    fn halves_hold_the_same_sines_and_cosines() {
        let (pairs, halves) = (sinusoidal(3, 6).unwrap().to_f64(), sinusoidal_halves(3, 6).unwrap().to_f64());
        assert_eq!(halves[6..12], [6, 8, 10, 7, 9, 11].map(|at| pairs[at]));
    }

    #[test]
    fn near_distances_have_buckets_of_their_own_and_far_ones_share_them() {
        // As `T5Attention._relative_position_bucket` of transformers gives them for 32 buckets up to 128.
        let both = Buckets { count: 32, farthest: 128, both: true };
        let of = |buckets: Buckets, all: &[i64]| all.iter().map(|&d| buckets.of(d)).collect::<Vec<_>>();
        let distances = [0, -1, -7, -8, -11, -12, -16, -127, -128, -500, 1, 7, 8, 500];
        assert_eq!(of(both, &distances), [0, 1, 7, 8, 8, 9, 10, 15, 15, 15, 17, 23, 24, 31]);
        let before = Buckets { both: false, ..both };
        assert_eq!(
            of(before, &[3, 0, -1, -15, -16, -20, -32, -64, -127, -128]),
            [0, 0, 1, 15, 16, 17, 21, 26, 31, 31]
        );
    }
}
