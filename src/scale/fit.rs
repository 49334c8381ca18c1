//! Power laws through losses, with a floor or without.
//!
//! ```text
//! L(x)    = E + A / x^alpha
//! L(x, y) = E + A / x^alpha + B / y^beta
//! ```
//!
//! What is minimised is the sum of Huber losses (delta 1e-3) of `ln L - ln L(x)`, as Hoffmann et al. (2022) do, over `ln E`, `ln A` and
//! the exponents, so that no term falls below zero. Levenberg-Marquardt goes down from a grid of starts, each residual weighted
//! by what Huber's loss leaves of it.

use crate::tensor::random::Stream;

/// From here on a residual of the logarithm counts by its size and no longer by its square.
pub const HUBER: f64 = 1e-3;

/// Exponents looked at.
const EXPONENTS: [f64; 2] = [-3.0, 8.0];

/// A floor is not looked for below this share of the smallest loss.
const LEAST_FLOOR: f64 = 1e-4;

/// Steps downhill at most.
const STEPS: usize = 80;

/// A loss, and the logarithms of what it depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Of each variable.
    pub ln_x: Vec<f64>,
    /// Of the loss.
    pub ln_loss: f64,
}

impl Point {
    /// Of numbers above zero.
    pub fn new(x: &[f64], loss: f64) -> Point {
        Point { ln_x: x.iter().map(|x| x.ln()).collect(), ln_loss: loss.ln() }
    }
}

/// What a variable adds: `A / x^exponent`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// `ln(A / x0^exponent)`, the term in the middle of the points.
    ln_middle: f64,
    /// `ln x0`.
    ln_centre: f64,
    /// The exponent.
    pub exponent: f64,
}

impl Term {
    fn ln(&self, ln_x: f64) -> f64 {
        self.ln_middle - self.exponent * (ln_x - self.ln_centre)
    }

    /// A.
    pub fn amplitude(&self) -> f64 {
        self.ln(0.0).exp()
    }

    /// The scale of `(scale / x)^exponent`.
    pub fn scale(&self) -> f64 {
        (self.ln(0.0) / self.exponent).exp()
    }
}

/// A law.
#[derive(Clone, Debug, PartialEq)]
pub struct Law {
    /// E, which no size and no data take away; none if it was not looked for.
    pub floor: Option<f64>,
    /// One for each variable.
    pub terms: Vec<Term>,
    /// Sum of Huber losses.
    pub error: f64,
}

impl Law {
    /// Numbers that were fitted.
    pub fn count(&self) -> usize {
        usize::from(self.floor.is_some()) + 2 * self.terms.len()
    }

    /// The loss it expects.
    pub fn predict(&self, x: &[f64]) -> f64 {
        let terms = self.terms.iter().zip(x).map(|(term, x)| term.ln(x.ln()).exp());
        self.floor.unwrap_or(0.0) + terms.sum::<f64>()
    }
}

/// Fits a law to points that all have as many variables; none where there are fewer points than numbers to fit.
pub fn fit(points: &[Point], has_floor: bool) -> Option<Law> {
    let variables = points.first()?.ln_x.len();
    if points.len() < usize::from(has_floor) + 2 * variables {
        return None;
    }
    let problem = Problem::new(points, has_floor);
    let best = problem.starts().into_iter().map(|start| problem.descend(start));
    best.filter(|(_, error)| error.is_finite())
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(found, error)| problem.law(&found, error))
}

/// Laws through sets of points drawn anew with replacement, each set as large as all; sets in which fewer points differ than a law has
/// numbers are drawn again, and left out where none is found.
pub fn redrawn(points: &[Point], law: &Law, sets: usize, seed: u64) -> Vec<Law> {
    let mut random = Stream::new(&[seed as u32, (seed >> 32) as u32, 0x5ca1e]);
    let mut found = vec![];
    for _ in 0..sets {
        let drawn = (0..20).find_map(|_| {
            let set: Vec<Point> = (0..points.len())
                .map(|_| points[random.below(points.len() as u64) as usize].clone())
                .collect();
            (distinct(&set) >= law.count()).then_some(set)
        });
        let Some(set) = drawn else { continue };
        let problem = Problem { points: &set, ..Problem::new(points, law.floor.is_some()) };
        // Near the law of all points, and from a few places of the grid where that one is a corner.
        let grid = problem.starts();
        let few = (grid.len() / 3).max(1);
        let starts = std::iter::once(problem.numbers(law)).chain(grid.into_iter().step_by(few));
        let best = starts.map(|start| problem.descend(start)).min_by(|a, b| a.1.total_cmp(&b.1));
        found.extend(best.filter(|(_, error)| error.is_finite()).map(|(at, error)| problem.law(&at, error)));
    }
    found
}

/// Points of which no two depend on the same.
pub fn distinct(points: &[Point]) -> usize {
    let same = |a: &Point, b: &Point| a.ln_x.iter().zip(&b.ln_x).all(|(a, b)| (a - b).abs() < 1e-9);
    points
        .iter()
        .enumerate()
        .filter(|(at, point)| !points[..*at].iter().any(|other| same(other, point)))
        .count()
}

/// The bounds between which 95 of 100 numbers lie.
pub fn bounds(mut numbers: Vec<f64>) -> [f64; 2] {
    numbers.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let place = share * numbers.len().saturating_sub(1) as f64;
        let (below, part) = (place.floor() as usize, place.fract());
        let [low, high] = [below, (below + 1).min(numbers.len() - 1)].map(|at| numbers[at]);
        low + part * (high - low)
    };
    if numbers.is_empty() { [f64::NAN; 2] } else { [at(0.025), at(0.975)] }
}

/// What is to be fitted: numbers are `ln E` if there is a floor, then `ln` of the term in the middle and the exponent, by variable.
struct Problem<'a> {
    points: &'a [Point],
    has_floor: bool,
    /// Means of the logarithms of the variables.
    centres: Vec<f64>,
    /// Of all losses.
    ln_least: f64,
    ln_most: f64,
}

impl<'a> Problem<'a> {
    fn new(points: &'a [Point], has_floor: bool) -> Problem<'a> {
        let count = points.len() as f64;
        let variables = points.first().map_or(0, |point| point.ln_x.len());
        let centre = |at: usize| points.iter().map(|point| point.ln_x[at]).sum::<f64>() / count;
        let losses = points.iter().map(|point| point.ln_loss);
        Problem {
            points,
            has_floor,
            centres: (0..variables).map(centre).collect(),
            ln_least: losses.clone().fold(f64::INFINITY, f64::min),
            ln_most: losses.fold(f64::NEG_INFINITY, f64::max),
        }
    }

    fn first(&self) -> usize {
        usize::from(self.has_floor)
    }

    fn law(&self, numbers: &[f64], error: f64) -> Law {
        let term =
            |(pair, &ln_centre): (&[f64], &f64)| Term { ln_middle: pair[0], ln_centre, exponent: pair[1] };
        let terms = numbers[self.first()..].chunks(2).zip(&self.centres).map(term).collect();
        Law { floor: self.has_floor.then(|| numbers[0].exp()), terms, error }
    }

    fn numbers(&self, law: &Law) -> Vec<f64> {
        let floor = law.floor.map(f64::ln);
        let terms = law.terms.iter().zip(&self.centres);
        floor.into_iter().chain(terms.flat_map(|(term, &centre)| [term.ln(centre), term.exponent])).collect()
    }

    /// A grid of exponents and of shares of the floor.
    fn starts(&self) -> Vec<Vec<f64>> {
        // Of two variables fewer, since every pair is tried.
        let exponents: &[f64] = match self.centres.len() {
            1 => &[0.05, 0.2, 0.5, 1.0, 2.0, -0.2],
            _ => &[0.1, 0.3, 0.8],
        };
        let shares: &[f64] = if self.has_floor { &[0.05, 0.4, 0.8, 0.97] } else { &[0.0] };
        let middle = self.points.iter().map(|p| p.ln_loss).sum::<f64>() / self.points.len() as f64;
        let variables = self.centres.len();
        let mut starts = vec![];
        for &share in shares {
            let floor = share * self.ln_least.exp();
            let ln_rest = ((middle.exp() - floor) / variables as f64).max(1e-12).ln();
            for which in 0..exponents.len().pow(variables as u32) {
                let floor = self.has_floor.then(|| floor.ln());
                let terms = (0..variables).flat_map(|at| {
                    let exponent = exponents[which / exponents.len().pow(at as u32) % exponents.len()];
                    [ln_rest, exponent]
                });
                starts.push(floor.into_iter().chain(terms).collect());
            }
        }
        starts
    }

    /// The logarithm of the loss at a point, and its derivatives by the numbers.
    fn at(&self, numbers: &[f64], point: &Point, slope: &mut [f64]) -> f64 {
        let first = self.first();
        let away = |at: usize| point.ln_x[at] - self.centres[at];
        let ln_term = |at: usize| numbers[first + 2 * at] - numbers[first + 2 * at + 1] * away(at);
        let terms = (0..self.centres.len()).map(ln_term);
        let most = terms.clone().chain(numbers[..first].iter().copied()).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = terms.chain(numbers[..first].iter().copied()).map(|ln| (ln - most).exp()).sum();
        let total = most + sum.ln();
        if self.has_floor {
            slope[0] = (numbers[0] - total).exp();
        }
        for at in 0..self.centres.len() {
            let share = (ln_term(at) - total).exp();
            slope[first + 2 * at] = share;
            slope[first + 2 * at + 1] = -share * away(at);
        }
        total
    }

    fn error(&self, numbers: &[f64]) -> f64 {
        let mut slope = vec![0.0; numbers.len()];
        self.points.iter().map(|point| huber(self.at(numbers, point, &mut slope) - point.ln_loss)).sum()
    }

    fn held(&self, numbers: &mut [f64]) {
        let first = self.first();
        if self.has_floor {
            numbers[0] = numbers[0].clamp(self.ln_least + LEAST_FLOOR.ln(), self.ln_most);
        }
        for pair in numbers[first..].chunks_mut(2) {
            pair[0] = pair[0].clamp(self.ln_least - 30.0, self.ln_most + 1.0);
            pair[1] = pair[1].clamp(EXPONENTS[0], EXPONENTS[1]);
        }
    }

    /// Levenberg and Marquardt's way down from a start.
    fn descend(&self, mut numbers: Vec<f64>) -> (Vec<f64>, f64) {
        self.held(&mut numbers);
        let count = numbers.len();
        let (mut error, mut damping) = (self.error(&numbers), 1e-2);
        let mut slope = vec![0.0; count];
        for _ in 0..STEPS {
            let mut normal = vec![vec![0.0; count + 1]; count];
            for point in self.points {
                let residual = self.at(&numbers, point, &mut slope) - point.ln_loss;
                let weight = if residual.abs() <= HUBER { 1.0 } else { HUBER / residual.abs() };
                for row in 0..count {
                    for column in 0..count {
                        normal[row][column] += weight * slope[row] * slope[column];
                    }
                    normal[row][count] -= weight * slope[row] * residual;
                }
            }
            let mut better = None;
            while damping < 1e12 && better.is_none() {
                let mut damped = normal.clone();
                (0..count).for_each(|at| damped[at][at] += damping * (normal[at][at] + 1e-12));
                let mut next = numbers.clone();
                if let Some(step) = solve(damped) {
                    next.iter_mut().zip(step).for_each(|(number, step)| *number += step);
                    self.held(&mut next);
                }
                let reached = self.error(&next);
                match reached < error {
                    true => better = Some((next, reached)),
                    false => damping *= 4.0,
                }
            }
            let Some((next, reached)) = better else { break };
            let is_done = error - reached <= 1e-6 * error || reached < 1e-28;
            (numbers, error, damping) = (next, reached, (damping * 0.2).max(1e-12));
            if is_done {
                break;
            }
        }
        (numbers, error)
    }
}

fn huber(residual: f64) -> f64 {
    match residual.abs() {
        size if size <= HUBER => 0.5 * size * size,
        size => HUBER * (size - 0.5 * HUBER),
    }
}

/// Solves `[N, N + 1]` by elimination with the largest pivot of each column; none where there is none.
fn solve(mut rows: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let count = rows.len();
    for column in 0..count {
        let pivot =
            (column..count).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))?;
        rows.swap(column, pivot);
        if rows[column][column].abs() < 1e-300 {
            return None;
        }
        let above = rows[column].clone();
        for row in rows.iter_mut().skip(column + 1) {
            let factor = row[column] / above[column];
            row.iter_mut().zip(&above).skip(column).for_each(|(x, above)| *x -= factor * above);
        }
    }
    let mut found = vec![0.0; count];
    for row in (0..count).rev() {
        let known: f64 = (row + 1..count).map(|at| rows[row][at] * found[at]).sum();
        found[row] = (rows[row][count] - known) / rows[row][row];
    }
    found.iter().all(|x| x.is_finite()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f64, expected: f64, share: f64) {
        assert!((got / expected - 1.0).abs() < share, "{got}, expected {expected}");
    }

    #[test]
    fn exponents_floor_and_amplitude_of_an_exact_law_are_found() {
        for (floor, amplitude, exponent) in [(1.69, 406.4, 0.34), (0.5, 20.0, 0.1), (2.0, 1e4, 0.9)] {
            let points: Vec<Point> = [5e3, 2e4, 8e4, 3e5, 1e6, 7e6]
                .map(|n: f64| Point::new(&[n], floor + amplitude / n.powf(exponent)))
                .to_vec();
            let law = fit(&points, true).unwrap();
            near(law.terms[0].exponent, exponent, 1e-3);
            near(law.floor.unwrap(), floor, 1e-3);
            near(law.terms[0].amplitude(), amplitude, 1e-2);
            near(law.predict(&[1e8]), floor + amplitude / 1e8f64.powf(exponent), 1e-3);
        }
    }

    #[test]
    fn the_law_of_size_and_data_is_that_of_its_paper() {
        let law = |n: f64, d: f64| 1.69 + 406.4 / n.powf(0.34) + 410.7 / d.powf(0.28);
        let sizes = [1e6, 4e6, 1.6e7, 6.4e7];
        let points: Vec<Point> = sizes
            .iter()
            .flat_map(|&n| [2.0, 20.0, 200.0].map(|ratio| Point::new(&[n, ratio * n], law(n, ratio * n))))
            .collect();
        let found = fit(&points, true).unwrap();
        near(found.terms[0].exponent, 0.34, 0.01);
        near(found.terms[1].exponent, 0.28, 0.01);
        near(found.floor.unwrap(), 1.69, 0.01);
        near(found.predict(&[1e9, 2e10]), law(1e9, 2e10), 1e-3);
    }

    #[test]
    fn a_law_under_noise_lies_within_the_bounds_of_its_redrawn_sets() {
        let mut random = Stream::new(&[3]);
        let mut noisy = |n: f64| (1.5 + 30.0 / n.powf(0.3)) * (1.0 + 0.003 * random.normal());
        let points: Vec<Point> = (0..30)
            .map(|at| {
                let n = 5e3 * 1.5f64.powi(at / 2);
                Point::new(&[n], noisy(n))
            })
            .collect();
        let law = fit(&points, true).unwrap();
        let laws = redrawn(&points, &law, 100, 1);
        assert_eq!(laws.len(), 100);
        let [low, high] = bounds(laws.iter().map(|law| law.terms[0].exponent).collect());
        assert!(low < 0.3 && 0.3 < high && high - low < 0.1, "{low} {high}");
        let [low, high] = bounds(laws.iter().map(|law| law.floor.unwrap()).collect());
        assert!(low < 1.5 && 1.5 < high, "{low} {high}");
    }

    #[test]
    fn one_loss_far_off_moves_the_law_little() {
        let mut points: Vec<Point> = (0..9)
            .map(|at| 1e4 * 3f64.powi(at))
            .map(|n| Point::new(&[n], 2.0 + 50.0 / n.powf(0.4)))
            .collect();
        points[4].ln_loss += 0.2;
        near(fit(&points, true).unwrap().terms[0].exponent, 0.4, 0.02);
    }

    #[test]
    fn two_points_give_a_line_and_three_numbers_are_not_fitted_to_them() {
        let points = [Point::new(&[1e3], 4.0), Point::new(&[1e5], 2.0)];
        assert!(fit(&points, true).is_none() && fit(&[], false).is_none());
        let law = fit(&points, false).unwrap();
        near(law.terms[0].exponent, 2f64.ln() / 100f64.ln(), 1e-6);
        assert!(redrawn(&points[..1], &law, 10, 0).is_empty(), "one point alone gives no line");
    }

    #[test]
    fn losses_that_rise_have_an_exponent_below_zero() {
        let points: Vec<Point> = [1e3, 1e4, 1e5].map(|n: f64| Point::new(&[n], n.powf(0.1))).to_vec();
        near(fit(&points, false).unwrap().terms[0].exponent, -0.1, 1e-6);
    }

    #[test]
    fn points_of_one_size_are_one_point() {
        let points = [1.0, 2.0, 3.0].map(|loss| Point::new(&[1e4], loss));
        assert_eq!(distinct(&points), 1);
    }
}
