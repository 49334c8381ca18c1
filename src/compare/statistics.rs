//! What two models' scores of the same text say of each other: divergences, agreement, and how sure each figure is.
//!
//! Neighbouring tokens depend on each other, so errors of means come from the means of windows, not of tokens. Quantiles have
//! intervals between two of the measured values, by the binomial distribution of ranks.

use rayon::prelude::*;

/// Standard errors to either side of a mean that hold it 95 times in a hundred.
const SIDES: f64 = 1.96;

/// A mean and how far it may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// The mean.
    pub value: f64,
    /// Its standard error; none from a single window.
    pub error: Option<f64>,
}

impl Mean {
    /// Of sums over windows, each with how many were summed. Windows of no element do not count.
    pub fn of(windows: &[(f64, usize)]) -> Mean {
        let full: Vec<&(f64, usize)> = windows.iter().filter(|window| window.1 > 0).collect();
        let count: usize = full.iter().map(|window| window.1).sum();
        let value = full.iter().map(|window| window.0).sum::<f64>() / count as f64;
        let k = full.len() as f64;
        // Of a ratio of sums: what each window's sum is off by, were the mean that of all.
        let off = |&&(sum, n): &&(f64, usize)| (sum - value * n as f64).powi(2);
        let error = (full.len() > 1)
            .then(|| (full.iter().map(off).sum::<f64>() * k / (k - 1.0)).sqrt() / count as f64);
        Mean { value, error }
    }

    /// The interval that holds the mean 95 times in a hundred.
    pub fn interval(&self) -> Option<[f64; 2]> {
        self.error.map(|error| [self.value - SIDES * error, self.value + SIDES * error])
    }

    /// e to the mean, with the error that it then has.
    pub fn exp(&self) -> Mean {
        let value = self.value.exp();
        Mean { value, error: self.error.map(|error| value * error) }
    }
}

/// A quantile and between which measured values it lies 95 times in a hundred.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantile {
    /// The quantile.
    pub value: f64,
    /// Lower end; the least value where there are too few to tell.
    pub low: f64,
    /// Upper end; the largest value where there are too few to tell.
    pub high: f64,
}

impl Quantile {
    /// That of sorted values below which `share` of them lie; none of no values.
    pub fn of(sorted: &[f64], share: f64) -> Option<Quantile> {
        let last = sorted.len().checked_sub(1)?;
        let at = |place: f64| {
            let place = place.clamp(0.0, last as f64);
            let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        let n = sorted.len() as f64;
        let sides = SIDES * (n * share * (1.0 - share)).sqrt();
        let rank = |place: f64| sorted[place.clamp(0.0, last as f64) as usize];
        Some(Quantile {
            value: at(share * last as f64),
            low: rank((n * share - sides).floor()),
            high: rank((n * share + sides).ceil()),
        })
    }
}

/// What one token says of two models.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenFigures {
    /// Divergence of the second's distribution from the first's, in nats.
    pub divergence: f64,
    /// Negative log-likelihood of the token that came, by either.
    pub losses: [f64; 2],
    /// Both find the same token likeliest.
    pub agrees: bool,
}

impl TokenFigures {
    /// Of two rows of scores and the token that came.
    pub fn of(first: &[f32], second: &[f32], came: usize) -> TokenFigures {
        let (of_first, of_second) = (log_sum(first), log_sum(second));
        let mut divergence = 0.0;
        for (&a, &b) in first.iter().zip(second) {
            let (log_p, log_q) = (f64::from(a) - of_first, f64::from(b) - of_second);
            let p = log_p.exp();
            // A share of nothing diverges by nothing, whatever the other says.
            if p > 0.0 {
                divergence += p * (log_p - log_q);
            }
        }
        let losses = [of_first - f64::from(first[came]), of_second - f64::from(second[came])];
        // Rounding may take the sum of equals just below zero.
        TokenFigures { divergence: not_below_zero(divergence), losses, agrees: best(first) == best(second) }
    }
}

/// Keeps what is no number, unlike `max`.
fn not_below_zero(x: f64) -> f64 {
    if x < 0.0 { 0.0 } else { x }
}

/// Logarithm of the sum of the scores' exponentials.
fn log_sum(scores: &[f32]) -> f64 {
    let most = scores.iter().fold(f32::NEG_INFINITY, |most, &x| most.max(x));
    let most = f64::from(most);
    most + scores.iter().map(|&x| (f64::from(x) - most).exp()).sum::<f64>().ln()
}

/// Place of the largest score; of several the first.
fn best(scores: &[f32]) -> usize {
    (0..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best })
}

/// What all tokens of a text say of two models.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    tokens: Vec<TokenFigures>,
    /// Tokens of each window.
    windows: Vec<usize>,
}

impl Comparison {
    /// Adds a window's rows of scores, of `vocabulary` each; targets below zero do not count.
    pub fn add(&mut self, first: &[f32], second: &[f32], targets: &[i32], vocabulary: usize) {
        let rows = first.par_chunks(vocabulary).zip(second.par_chunks(vocabulary)).zip(targets);
        let figures: Vec<Option<TokenFigures>> = rows
            .map(|((a, b), &came)| usize::try_from(came).ok().map(|came| TokenFigures::of(a, b, came)))
            .collect();
        let before = self.tokens.len();
        self.tokens.extend(figures.into_iter().flatten());
        self.windows.push(self.tokens.len() - before);
    }

    /// The figures of everything that was added; none of no token.
    pub fn summary(&self) -> Option<Summary> {
        let mut divergences: Vec<f64> = self.tokens.iter().map(|token| token.divergence).collect();
        divergences.sort_by(f64::total_cmp);
        let quantile = |share| Quantile::of(&divergences, share);
        let loss = |which: usize| self.mean(|token| token.losses[which]);
        let shift = |token: &TokenFigures| (-token.losses[1]).exp() - (-token.losses[0]).exp();
        Some(Summary {
            tokens: self.tokens.len(),
            windows: self.windows.iter().filter(|&&count| count > 0).count(),
            losses: [loss(0), loss(1)],
            loss_difference: self.mean(|token| token.losses[1] - token.losses[0]),
            divergence: self.mean(|token| token.divergence),
            median: quantile(0.5)?,
            percent_99: quantile(0.99)?,
            percent_99_9: quantile(0.999)?,
            most: *divergences.last()?,
            agreement: self.mean(|token| if token.agrees { 1.0 } else { 0.0 }),
            probability_shift: self.mean(|token| shift(token).powi(2)).value.sqrt(),
        })
    }

    fn mean(&self, of: impl Fn(&TokenFigures) -> f64) -> Mean {
        let mut rest = &self.tokens[..];
        let windows = self.windows.iter().map(|&count| {
            let (now, later) = rest.split_at(count);
            rest = later;
            (now.iter().map(&of).sum(), count)
        });
        Mean::of(&windows.collect::<Vec<(f64, usize)>>())
    }
}

/// Two models over a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Tokens that counted.
    pub tokens: usize,
    /// Windows they stood in.
    pub windows: usize,
    /// Mean negative log-likelihood by each model, in nats.
    pub losses: [Mean; 2],
    /// Mean of what the second loses more than the first, token by token.
    pub loss_difference: Mean,
    /// Mean divergence of the second's distribution from the first's, in nats.
    pub divergence: Mean,
    /// Half of the tokens diverge by less.
    pub median: Quantile,
    /// 99 of a hundred diverge by less.
    pub percent_99: Quantile,
    /// 999 of a thousand diverge by less.
    pub percent_99_9: Quantile,
    /// Largest divergence of a token.
    pub most: f64,
    /// Share of tokens for which both find the same one likeliest.
    pub agreement: Mean,
    /// Root of the mean square of what the probability of the token that came changed by.
    pub probability_shift: f64,
}

impl Summary {
    /// Perplexity of either model.
    pub fn perplexity(&self, which: usize) -> Mean {
        self.losses[which].exp()
    }

    /// Perplexity of the second over that of the first: closer than either, since both met the same tokens.
    pub fn ratio(&self) -> Mean {
        self.loss_difference.exp()
    }
}

/// Power of values and of what others are off by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Noise {
    signal: f64,
    noise: f64,
}

impl Noise {
    /// Adds values and others that stand for them.
    pub fn add(&mut self, values: &[f32], others: &[f32]) {
        let both = values.par_iter().zip(others).map(|(&a, &b)| {
            let (a, b) = (f64::from(a), f64::from(b));
            [a * a, (a - b) * (a - b)]
        });
        let [signal, noise] = both.reduce(|| [0.0; 2], |a, b| [a[0] + b[0], a[1] + b[1]]);
        self.signal += signal;
        self.noise += noise;
    }

    /// Signal to noise in dB; none where both are the same.
    pub fn decibels(&self) -> Option<f64> {
        (self.noise != 0.0).then(|| 10.0 * (self.signal / self.noise).log10())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_distributions_diverge_by_nothing_and_known_ones_by_what_is_known() {
        let same = TokenFigures::of(&[0.3, -2.0, 1.5], &[10.3, 8.0, 11.5], 2);
        assert!(same.divergence < 1e-6 && same.agrees, "{same:?}: adding a number changes nothing");
        // p = (1/2, 1/2), q = (1/4, 3/4): ln 2 - (ln 1 + ln 3) / 2 + ln 4 / 2 ... = ln(4 / (2 sqrt 3)).
        let got = TokenFigures::of(&[0.0, 0.0], &[0.0, 3.0f32.ln()], 1);
        let expected = (4.0 / (2.0 * 3.0f64.sqrt())).ln();
        assert!((got.divergence - expected).abs() < 1e-7, "{got:?}");
        assert!((got.losses[0] - 2.0f64.ln()).abs() < 1e-12);
        assert!((got.losses[1] - (4.0f64 / 3.0).ln()).abs() < 1e-7);
        assert!(!got.agrees, "of two that are equal the first is taken");
    }

    #[test]
    fn scores_that_are_no_numbers_do_not_pass_for_agreement() {
        let got = TokenFigures::of(&[0.0, 1.0], &[f32::NAN, 0.0], 0);
        assert!(got.divergence.is_nan() && got.losses[1].is_nan(), "{got:?}");
        let ruled_out = TokenFigures::of(&[f32::NEG_INFINITY, 0.0], &[0.0, 0.0], 1);
        assert!((ruled_out.divergence - 2.0f64.ln()).abs() < 1e-12, "{ruled_out:?}");
    }

    #[test]
    fn the_error_of_a_mean_comes_from_windows() {
        let mean = Mean::of(&[(2.0, 2), (6.0, 2), (0.0, 0)]);
        // Window means 1 and 3: sd sqrt 2, over the root of two.
        assert_eq!((mean.value, mean.error), (2.0, Some(1.0)));
        assert_eq!(mean.interval(), Some([2.0 - 1.96, 2.0 + 1.96]));
        assert_eq!(Mean::of(&[(5.0, 4)]), Mean { value: 1.25, error: None });
        let exp = mean.exp();
        assert!((exp.value - 2.0f64.exp()).abs() < 1e-12 && exp.error == Some(exp.value));
    }

    #[test]
    fn a_quantile_lies_between_values_that_were_measured() {
        let sorted: Vec<f64> = (0..=1000).map(f64::from).collect();
        let middle = Quantile::of(&sorted, 0.5).unwrap();
        assert_eq!(middle.value, 500.0);
        // 1.96 sqrt(1001 / 4) = 31.0 ranks to either side.
        assert!(
            (469.0..=470.0).contains(&middle.low) && (531.0..=532.0).contains(&middle.high),
            "{middle:?}"
        );
        let few = Quantile::of(&[1.0, 2.0, 3.0], 0.999).unwrap();
        assert_eq!((few.low, few.high), (3.0, 3.0));
        assert_eq!(Quantile::of(&[], 0.5), None);
    }

    #[test]
    fn windows_are_summed_up_and_padding_is_left_out() {
        let mut all = Comparison::default();
        assert!(all.summary().is_none());
        let even = [0.0f32; 4];
        let odd = [0.0, 0.0, 0.0, 3.0f32.ln()];
        all.add(&even, &even, &[0, 1], 2);
        all.add(&even, &odd, &[-1, 1], 2);
        let summary = all.summary().unwrap();
        let off = (4.0 / (2.0 * 3.0f64.sqrt())).ln();
        assert_eq!((summary.tokens, summary.windows), (3, 2));
        assert!((summary.divergence.value - off / 3.0).abs() < 1e-7);
        assert!((summary.most - off).abs() < 1e-7 && summary.median.value == 0.0);
        assert!((summary.agreement.value - 2.0 / 3.0).abs() < 1e-12);
        assert!((summary.perplexity(0).value - 2.0).abs() < 1e-12);
        // One of three is likelier by a half: 2/3 of the loss is ln 2, a third ln 4/3.
        let ratio = ((4.0f64 / 3.0).ln() / 3.0 - 2.0f64.ln() / 3.0).exp();
        assert!((summary.ratio().value - ratio).abs() < 1e-7);
        assert!((summary.probability_shift - 0.25 / 3.0f64.sqrt()).abs() < 1e-7);
    }

    #[test]
    fn noise_is_told_in_decibels_and_equals_have_none() {
        let mut noise = Noise::default();
        noise.add(&[3.0, 4.0], &[3.0, 4.0]);
        assert_eq!(noise.decibels(), None);
        noise.add(&[0.0, 0.0], &[0.3, 0.4]);
        assert!((noise.decibels().unwrap() - 20.0).abs() < 1e-5);
    }
}
