//! Whether a difference is more than chance: segments are drawn anew, the same ones for both sides (Koehn 2004).
//!
//! A segment is a text, a question or a stretch of tokens; a score is a function of sums over segments. Sets of as many segments are
//! drawn with replacement, and the score of each is taken.

use super::sums;
use crate::tensor::random::Stream;

/// Sets drawn unless told otherwise.
pub const USUAL: usize = 1000;

/// Share of the sets between the bounds.
const CONFIDENCE: f64 = 0.95;

/// A score, and between what bounds it lies in 95 of 100 sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Of the segments as they are.
    pub value: f64,
    /// Its standard error: the spread over sets.
    pub error: f64,
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

impl Interval {
    /// A score of which no sets were drawn: nothing is known of its error.
    pub fn certain(value: f64) -> Interval {
        Interval { value, error: f64::NAN, low: f64::NAN, high: f64::NAN }
    }
}

/// A difference of two scores of the same segments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The second less the first.
    pub interval: Interval,
    /// How often chance alone gives a difference as large, in either direction: sets are moved to a mean of zero.
    pub p_value: f64,
}

/// Which segments make each set: drawn once, so that all models see the same ones.
#[derive(Clone, Debug)]
pub struct Draws {
    sets: Vec<Vec<u32>>,
}

impl Draws {
    /// `resamples` sets of as many segments as there are.
    pub fn new(segments: usize, resamples: usize, seed: u64) -> Draws {
        let mut random = Stream::new(&[seed as u32, (seed >> 32) as u32, 0xb007]);
        let bound = segments as u64;
        let mut set = || (0..segments).map(|_| random.below(bound) as u32).collect();
        Draws { sets: (0..resamples).map(|_| set()).collect() }
    }

    /// Whether there are no sets.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// The score of each set.
    fn scores(&self, segments: &[Vec<f64>], score: &dyn Fn(&[f64]) -> f64) -> Vec<f64> {
        let of = |set: &Vec<u32>| score(&sums(set.iter().map(|&at| &segments[at as usize])));
        self.sets.iter().map(of).collect()
    }

    /// A score with its bounds.
    pub fn interval(&self, segments: &[Vec<f64>], score: &dyn Fn(&[f64]) -> f64) -> Interval {
        around(score(&sums(segments)), self.scores(segments, score))
    }

    /// The score of `b` less that of `a`, over the same segments.
    pub fn difference(&self, a: &[Vec<f64>], b: &[Vec<f64>], score: &dyn Fn(&[f64]) -> f64) -> Difference {
        let value = score(&sums(b)) - score(&sums(a));
        let (of_a, of_b) = (self.scores(a, score), self.scores(b, score));
        let apart: Vec<f64> = of_a.iter().zip(&of_b).map(|(a, b)| b - a).collect();
        let mean = apart.iter().sum::<f64>() / apart.len().max(1) as f64;
        // One part in a billion is the rounding of sums in another order.
        let least = value.abs() * (1.0 - 1e-9) - 1e-12;
        let as_large = apart.iter().filter(|apart| (*apart - mean).abs() >= least).count();
        let p_value = (as_large + 1) as f64 / (apart.len() + 1) as f64;
        Difference { interval: around(value, apart), p_value }
    }
}

fn around(value: f64, mut scores: Vec<f64>) -> Interval {
    if scores.is_empty() {
        return Interval::certain(value);
    }
    let count = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / count;
    let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
    scores.sort_by(f64::total_cmp);
    let at = |share: f64| {
        // Between two scores in proportion, as NumPy's percentiles.
        let place = share * (count - 1.0);
        let (below, part) = (place.floor() as usize, place.fract());
        let above = scores[(below + 1).min(scores.len() - 1)];
        scores[below] + part * (above - scores[below])
    };
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Interval { value, error: (squares / (count - 1.0).max(1.0)).sqrt(), low: at(tail), high: at(1.0 - tail) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(sums: &[f64]) -> f64 {
        sums[0] / sums[1]
    }

    /// Numbers around `middle` with a spread of one.
    fn numbers(seed: u32, count: usize, middle: f64) -> Vec<Vec<f64>> {
        let mut random = Stream::new(&[seed]);
        let mut normal = || (0..12).map(|_| random.uniform()).sum::<f64>() - 6.0;
        (0..count).map(|_| vec![middle + normal(), 1.0]).collect()
    }

    #[test]
    fn the_error_of_a_mean_is_the_spread_over_the_root_of_the_count() {
        let segments = numbers(1, 400, 5.0);
        let Interval { value, error, low, high } = Draws::new(400, 2000, 0).interval(&segments, &mean);
        assert!((error - 0.05).abs() < 0.006, "{error}");
        assert!((high - low - 2.0 * 1.96 * error).abs() < 0.1 * error && low < value && value < high);
    }

    #[test]
    fn a_thing_does_not_differ_from_itself_and_sides_changed_change_the_sign() {
        let (a, b) = (numbers(2, 80, 0.0), numbers(3, 80, 0.3));
        let draws = Draws::new(80, 1000, 4);
        let same = draws.difference(&a, &a, &mean);
        assert_eq!(
            (same.interval.value, same.interval.low, same.interval.high, same.p_value),
            (0.0, 0.0, 0.0, 1.0)
        );
        let (ab, ba) = (draws.difference(&a, &b, &mean), draws.difference(&b, &a, &mean));
        assert!((ab.interval.value + ba.interval.value).abs() < 1e-12 && ab.p_value == ba.p_value);
        assert!((ab.interval.low + ba.interval.high).abs() < 1e-9);
    }

    #[test]
    fn the_same_seed_gives_the_same_sets_and_another_one_others() {
        let (a, b) = (numbers(2, 30, 0.0), numbers(3, 30, 0.1));
        let of = |seed| Draws::new(30, 1000, seed).difference(&a, &b, &mean);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn a_small_gain_everywhere_is_sure_where_pairs_go_together_and_noise_is_not() {
        let a = numbers(5, 200, 0.0);
        let better: Vec<Vec<f64>> = a.iter().map(|row| vec![row[0] + 0.05, 1.0]).collect();
        let draws = Draws::new(200, 1000, 6);
        let sure = draws.difference(&a, &better, &mean);
        assert!(sure.p_value < 0.002 && sure.interval.low > 0.0, "{sure:?}");
        let unsure = draws.difference(&a, &numbers(7, 200, 0.05), &mean);
        assert!(unsure.p_value > 0.05, "{unsure:?}");
    }

    #[test]
    fn without_a_difference_small_p_values_are_as_rare_as_they_say() {
        // Of 200 pairs without one, about 20 should have a p-value of at most a tenth.
        let small = |seed: u32| {
            let (a, b) = (numbers(2 * seed + 100, 40, 0.0), numbers(2 * seed + 101, 40, 0.0));
            Draws::new(40, 200, u64::from(seed)).difference(&a, &b, &mean).p_value <= 0.1
        };
        let count = (0..200).filter(|&seed| small(seed)).count();
        assert!((8..=34).contains(&count), "{count}");
    }
}
