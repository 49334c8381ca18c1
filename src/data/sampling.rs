//! Which token comes next, given the scores of all.

use crate::tensor::random::Stream;

/// How a token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Scores are divided by this; zero takes the best token always.
    pub temperature: f64,
    /// Only this many of the best tokens may come; zero means all.
    pub top_k: usize,
    /// Only the best tokens that together have this probability may come.
    pub top_p: f64,
    /// The draws repeat for the same seed.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Always the best token.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// Checks the ranges.
    pub fn check(&self) -> Result<(), Unfit> {
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            let got = self.temperature.to_string();
            return Err(Unfit { setting: "temperature", expected: "zero or more", got });
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            let got = self.top_p.to_string();
            return Err(Unfit { setting: "top-p", expected: "above 0 and at most 1", got });
        }
        Ok(())
    }
}

/// A setting out of range.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{setting} is {got}, expected {expected}")]
pub struct Unfit {
    /// Its name.
    pub setting: &'static str,
    /// The range.
    pub expected: &'static str,
    /// The value given.
    pub got: String,
}

/// Draws a token. Ties and the order of equals are by token number, so that the result is the same everywhere.
pub fn sample(logits: &[f32], sampling: &Sampling, random: &mut Stream) -> u32 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let score = |i: usize| if logits[i].is_nan() { f32::NEG_INFINITY } else { logits[i] };
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
    if sampling.temperature == 0.0 {
        return order[0] as u32;
    }
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let best = score(order[0]) as f64;
    let weights: Vec<f64> =
        order.iter().map(|&i| ((score(i) as f64 - best) / sampling.temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut kept = 0;
    let mut mass = 0.0;
    while kept < weights.len() && (kept == 0 || mass < sampling.top_p * total) {
        mass += weights[kept];
        kept += 1;
    }
    let mut left = random.uniform() * mass;
    for (place, weight) in weights[..kept].iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return order[place] as u32;
        }
    }
    order[kept - 1] as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_temperature_takes_the_first_of_the_best() {
        let mut random = Stream::new(&[1]);
        assert_eq!(sample(&[0.0, 2.0, 2.0, f32::NAN], &Sampling::greedy(), &mut random), 1);
    }

    #[test]
    fn only_the_best_k_and_the_nucleus_are_drawn_in_proportion() {
        let logits = [0.0f32, 0.7, 1.4, -3.0];
        let mut random = Stream::new(&[2]);
        let mut count = |sampling: Sampling| {
            let mut counts = [0.0; 4];
            (0..20_000)
                .for_each(|_| counts[sample(&logits, &sampling, &mut random) as usize] += 1.0 / 20_000.0);
            counts
        };
        let all = count(Sampling::default());
        let total: f64 = logits.iter().map(|&x| (x as f64).exp()).sum();
        logits
            .iter()
            .zip(all)
            .for_each(|(&x, share)| assert!(((x as f64).exp() / total - share).abs() < 0.015));
        let two = count(Sampling { top_k: 2, ..Sampling::default() });
        assert!(two[0] == 0.0 && two[3] == 0.0 && two[1] > 0.2);
        let nucleus = count(Sampling { top_p: 0.5, ..Sampling::default() });
        assert!((nucleus[2] - 1.0).abs() < 1e-9, "{nucleus:?}");
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        assert!(Sampling { temperature: -1.0, ..Sampling::default() }.check().is_err());
        assert!(Sampling { top_p: 0.0, ..Sampling::default() }.check().is_err());
    }
}
