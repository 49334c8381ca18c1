//! Scales of activations that are known beforehand, from what flowed into a layer over a text.

use super::calibrate::Calibration;
use super::linear::Linear;
use super::{Error, Result};
use std::collections::HashMap;

/// Bins of the magnitudes.
const BINS: usize = 4096;
/// Ranges that are tried for the least mean squared error, as shares of the largest magnitude.
const TRIALS: usize = 100;

/// How the range of activations follows from what was seen. Beyond it they are clamped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Observer {
    /// The largest magnitude.
    MinMax,
    /// The magnitude that so many of a hundred do not pass.
    Percentile(f64),
    /// That of which the mean squared error of rounding and clamping is least.
    MeanSquare,
}

/// Magnitudes counted in bins up to the largest.
#[derive(Clone, Debug, PartialEq)]
pub struct Magnitudes {
    /// The largest.
    pub largest: f32,
    /// Counts of even bins from zero on.
    pub bins: Vec<u64>,
}

impl Magnitudes {
    fn new(largest: f32) -> Magnitudes {
        Magnitudes { largest, bins: vec![0; BINS] }
    }

    fn add(&mut self, values: &[f32]) {
        if self.largest > 0.0 {
            let scale = BINS as f32 / self.largest;
            for x in values {
                self.bins[((x.abs() * scale) as usize).min(BINS - 1)] += 1;
            }
        }
    }

    /// The range that an observer finds.
    pub fn range(&self, observer: Observer, steps: f32) -> f32 {
        let width = f64::from(self.largest) / BINS as f64;
        match observer {
            Observer::MinMax => self.largest,
            Observer::Percentile(percent) => {
                let total: u64 = self.bins.iter().sum();
                let wanted = total as f64 * percent / 100.0;
                let mut seen = 0;
                let enough = |count: &u64| {
                    seen += count;
                    seen as f64 >= wanted
                };
                let bin = self.bins.iter().position(enough).unwrap_or(BINS - 1);
                ((bin + 1) as f64 * width) as f32
            }
            Observer::MeanSquare => {
                let error = |range: f64| -> f64 {
                    let step = range / f64::from(steps);
                    let of_bin = |(bin, &count): (usize, &u64)| {
                        let x = (bin as f64 + 0.5) * width;
                        let back = (x / step).round().min(f64::from(steps)) * step;
                        // Within a bin wider than a step rounding itself is not seen: it is a twelfth of a step squared.
                        let own = if width > step { step * step / 12.0 } else { 0.0 };
                        count as f64 * ((x - back).powi(2) + own)
                    };
                    self.bins.iter().enumerate().map(of_bin).sum()
                };
                let ranges =
                    (TRIALS / 5..=TRIALS).map(|at| f64::from(self.largest) * at as f64 / TRIALS as f64);
                ranges.min_by(|a, b| error(*a).total_cmp(&error(*b))).unwrap_or(0.0) as f32
            }
        }
    }
}

impl Observer {
    /// Whether its setting is in range.
    pub fn check(self) -> Result<()> {
        match self {
            Observer::Percentile(p) if !(p > 0.0 && p <= 100.0) => Err(Error::Setting {
                setting: "percentile",
                expected: "above 0 to 100".into(),
                got: p.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

impl Calibration<'_> {
    /// Magnitudes of all inputs of each layer, by its weight.
    pub fn magnitudes(&self, layers: &[&Linear]) -> Result<HashMap<String, Magnitudes>> {
        let channels = self.channels(layers)?;
        let largest = |name: &String| channels[name].largest.iter().copied().fold(0.0f32, f32::max);
        let mut found: HashMap<String, Magnitudes> =
            layers.iter().map(|l| (l.weight.clone(), Magnitudes::new(largest(&l.weight)))).collect();
        self.each_input(layers, |name, values| found.get_mut(name).expect("one of the layers").add(values))?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random::Stream;

    fn seen(outlier: f32) -> Magnitudes {
        let mut random = Stream::new(&[9]);
        let values: Vec<f32> = (0..20_000).map(|_| random.normal() as f32).chain([outlier]).collect();
        let mut magnitudes = Magnitudes::new(values.iter().fold(0.0, |m, x| m.max(x.abs())));
        magnitudes.add(&values);
        magnitudes
    }

    #[test]
    fn the_largest_counts_the_percentile_leaves_it_out_and_the_mean_square_lies_between() {
        let with = seen(40.0);
        assert_eq!(with.range(Observer::MinMax, 127.0), 40.0);
        let percentile = with.range(Observer::Percentile(99.9), 127.0);
        assert!((percentile - 3.29).abs() < 0.3, "{percentile}");
        let best = with.range(Observer::MeanSquare, 127.0);
        assert!(best < 40.0 && best > percentile, "{best}");
        // Without an outlier the range hardly shrinks.
        let plain = seen(0.0);
        assert!(plain.range(Observer::MeanSquare, 127.0) > 0.8 * plain.largest);
        assert!(
            Observer::Percentile(101.0).check().is_err() && Observer::Percentile(f64::NAN).check().is_err()
        );
    }

    #[test]
    fn nothing_but_zeros_has_the_range_zero() {
        let mut zeros = Magnitudes::new(0.0);
        zeros.add(&[0.0; 8]);
        for observer in [Observer::MinMax, Observer::Percentile(99.0), Observer::MeanSquare] {
            assert_eq!(zeros.range(observer, 127.0), 0.0);
        }
    }
}
