//! How strong each of several models is, where each comparison has two of them (Bradley and Terry 1952, "Rank analysis of incomplete
//! block designs").
//!
//! Model `i` is preferred to `j` with probability `1 / (1 + exp(s_j - s_i))`; a tie is half a win for each. The scores `s` that make the
//! judgements likeliest are found by Newton's method and have a mean of zero. Their covariance is the pseudo-inverse of Fisher's
//! information, `sum over pairs n_ij p_ij (1 - p_ij) (e_i - e_j)(e_i - e_j)'`. Scores are finite only where no models can be split
//! into two groups of which one has won nothing from the other (Ford 1957).

use super::Z;

/// A model's score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Strength {
    /// The score: of two models the difference is the logarithm of the odds that the first is preferred.
    pub score: f64,
    /// Its standard error.
    pub error: f64,
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
}

/// Scores of all models by `wins[i][j]`, how often `i` was preferred to `j`, with ties as halves on both sides.
///
/// None where there are no finite ones.
pub fn bradley_terry(wins: &[Vec<f64>]) -> Option<Vec<Strength>> {
    let count = wins.len();
    if count < 2 || !is_one_group(wins) {
        return None;
    }
    let mut scores = vec![0.0; count];
    // Newton's steps halve the number of wrong digits once near; halved steps keep it from leaping too far before that.
    for _ in 0..200 {
        let pull: Vec<f64> = (0..count).map(|i| pull(wins, &scores, i)).collect();
        let step = times(&covariance(wins, &scores)?, &pull);
        let mut length = 1.0;
        let now = likelihood(wins, &scores);
        let moved = loop {
            let moved: Vec<f64> =
                scores.iter().zip(&step).map(|(score, step)| score + length * step).collect();
            if likelihood(wins, &moved) >= now || length < 1e-9 {
                break moved;
            }
            length /= 2.0;
        };
        scores = moved;
        if step.iter().all(|step| step.abs() < 1e-12) {
            break;
        }
    }
    let covariance = covariance(wins, &scores)?;
    let strength = |i: usize| {
        let (score, error) = (scores[i], covariance[i][i].max(0.0).sqrt());
        Strength { score, error, low: score - Z * error, high: score + Z * error }
    };
    Some((0..count).map(strength).collect())
}

fn probability(scores: &[f64], i: usize, j: usize) -> f64 {
    1.0 / (1.0 + (scores[j] - scores[i]).exp())
}

/// The derivative of the likelihood's logarithm by a score.
fn pull(wins: &[Vec<f64>], scores: &[f64], i: usize) -> f64 {
    let others = (0..wins.len()).filter(|&j| j != i);
    others.map(|j| wins[i][j] - (wins[i][j] + wins[j][i]) * probability(scores, i, j)).sum()
}

fn likelihood(wins: &[Vec<f64>], scores: &[f64]) -> f64 {
    let mut sum = 0.0;
    for i in 0..wins.len() {
        for j in (0..wins.len()).filter(|&j| j != i && wins[i][j] > 0.0) {
            // The logarithm of the probability, without the loss of digits where it is small.
            sum -= wins[i][j] * (scores[j] - scores[i]).exp().ln_1p();
        }
    }
    sum
}

/// The pseudo-inverse of Fisher's information, for scores whose mean is zero.
fn covariance(wins: &[Vec<f64>], scores: &[f64]) -> Option<Vec<Vec<f64>>> {
    let count = wins.len();
    // What is added to every element makes the matrix invertible, and comes off the inverse again.
    let even = 1.0 / count as f64;
    let mut information = vec![vec![even; count]; count];
    for i in 0..count {
        for j in (0..count).filter(|&j| j != i) {
            let share = probability(scores, i, j);
            let weight = (wins[i][j] + wins[j][i]) * share * (1.0 - share);
            information[i][i] += weight;
            information[i][j] -= weight;
        }
    }
    let mut inverse = inverted(information)?;
    inverse.iter_mut().flatten().for_each(|element| *element -= even);
    Some(inverse)
}

/// Gauss and Jordan's elimination with the greatest pivot of each column.
fn inverted(mut matrix: Vec<Vec<f64>>) -> Option<Vec<Vec<f64>>> {
    let count = matrix.len();
    let mut inverse: Vec<Vec<f64>> =
        (0..count).map(|i| (0..count).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for column in 0..count {
        let pivot =
            (column..count).max_by(|&a, &b| matrix[a][column].abs().total_cmp(&matrix[b][column].abs()))?;
        if matrix[pivot][column].abs() < 1e-300 {
            return None;
        }
        matrix.swap(column, pivot);
        inverse.swap(column, pivot);
        let factor = 1.0 / matrix[column][column];
        matrix[column].iter_mut().chain(&mut inverse[column]).for_each(|element| *element *= factor);
        for row in (0..count).filter(|&row| row != column) {
            let factor = matrix[row][column];
            for at in 0..count {
                matrix[row][at] -= factor * matrix[column][at];
                inverse[row][at] -= factor * inverse[column][at];
            }
        }
    }
    Some(inverse)
}

fn times(matrix: &[Vec<f64>], vector: &[f64]) -> Vec<f64> {
    matrix.iter().map(|row| row.iter().zip(vector).map(|(a, b)| a * b).sum()).collect()
}

/// Whether every model is reached from every other by wins.
fn is_one_group(wins: &[Vec<f64>]) -> bool {
    let count = wins.len();
    let reached = |edge: &dyn Fn(usize, usize) -> bool| {
        let (mut seen, mut open) = (vec![false; count], vec![0]);
        seen[0] = true;
        while let Some(i) = open.pop() {
            for j in (0..count).filter(|&j| edge(i, j)) {
                if !std::mem::replace(&mut seen[j], true) {
                    open.push(j);
                }
            }
        }
        seen.into_iter().all(|seen| seen)
    };
    reached(&|i, j| wins[i][j] > 0.0) && reached(&|i, j| wins[j][i] > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn near(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-9, "{got}, expected {expected}");
    }

    #[test]
    fn scores_and_errors_of_three_models_are_those_of_statsmodels() {
        // statsmodels 0.15, GLM with the binomial family over differences of models, without a constant; then the mean taken off.
        let wins = [vec![0.0, 14.5, 9.0], vec![5.5, 0.0, 7.0], vec![3.0, 6.0, 0.0]];
        let strengths = bradley_terry(&wins).unwrap();
        let scores = [0.690_951_717_354_944, -0.272_237_719_844_354, -0.418_713_997_510_590];
        let errors = [0.270_494_401_287_286, 0.248_538_335_366_942, 0.286_251_010_413_018];
        for ((strength, score), error) in strengths.iter().zip(scores).zip(errors) {
            near(strength.score, score);
            near(strength.error, error);
            near(strength.high - strength.low, 2.0 * 1.959_963_984_540_054 * error);
        }
    }

    #[test]
    fn the_scores_of_two_models_are_half_the_logarithm_of_their_odds() {
        let strengths = bradley_terry(&[vec![0.0, 30.0], vec![10.0, 0.0]]).unwrap();
        near(strengths[0].score, 3.0_f64.ln() / 2.0);
        near(strengths[1].score, -(3.0_f64.ln()) / 2.0);
        // The difference has the variance 1 / (n p q), each score a quarter of it.
        near(strengths[0].error, (1.0 / (40.0 * 0.75 * 0.25_f64)).sqrt() / 2.0);
    }

    #[test]
    fn a_model_that_never_lost_has_no_finite_score() {
        assert_eq!(bradley_terry(&[vec![0.0, 5.0], vec![0.0, 0.0]]), None);
        // Two groups that never met.
        let mut apart = vec![vec![0.0; 4]; 4];
        for (i, j) in [(0, 1), (1, 0), (2, 3), (3, 2)] {
            apart[i][j] = 3.0;
        }
        assert_eq!(bradley_terry(&apart), None);
    }

    #[test]
    fn a_lopsided_contest_still_finds_its_scores() {
        let strengths = bradley_terry(&[vec![0.0, 9_999.5], vec![0.5, 0.0]]).unwrap();
        near(strengths[0].score - strengths[1].score, 19_999.0_f64.ln());
    }
}
