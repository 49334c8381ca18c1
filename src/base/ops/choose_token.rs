//! A token chosen from scores where they are: only its number leaves the device.
//!
//! Of each row: scores over a temperature; the `top_k` best stay, of these the best that together have the probability `top_p`, of these
//! what has at least the share `min_p` of the likeliest one's probability. The greatest of what stays is chosen, after noise of
//! Gumbel's distribution where it is drawn: that is a draw by probability. The noise of a token is a function of key, place and token,
//! so that a text does not depend on its row. Equals of a limit stay; of equals that are best the first is chosen; what is no number
//! is never chosen.

use super::launch::{Bind, Caps, Kernel, Launch, Variant};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_inputs,
    expect_shape, rows,
};
use crate::tensor::random::philox;
use crate::tensor::{DType, Data, Tensor, Type, View, ViewMut};
use std::sync::Arc;

/// scores [R, V], numbers F32 [R, 4] and words U32 [R, 4], as [`Choice`] makes them -> tokens U32 `[R]`, and their log-probabilities by
/// the scores as they came, F32 `[R]`, zero where they are not asked for.
#[derive(Clone, Debug)]
pub struct ChooseToken;

/// How one token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Scores are divided by it; of no concern where the best is taken.
    pub temperature: f32,
    /// Tokens that stay; zero means all.
    pub top_k: u32,
    /// Probability of those that stay.
    pub top_p: f32,
    /// Share of the likeliest one's probability that a token needs to stay.
    pub min_p: f32,
    /// Key and place of the noise; none where the best is taken.
    pub noise: Option<[u32; 2]>,
    /// Its log-probability is asked for.
    pub told: bool,
}

impl Choice {
    /// The best token.
    pub const BEST: Choice =
        Choice { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, noise: None, told: false };

    /// Its row of `numbers`.
    pub fn numbers(&self) -> [f32; 4] {
        let factor = if self.noise.is_some() { 1.0 / self.temperature } else { 1.0 };
        [factor, self.top_p, self.min_p, 0.0]
    }

    /// Its row of `words`.
    pub fn words(&self) -> [u32; 4] {
        let [key, place] = self.noise.unwrap_or([0, 0]);
        [self.top_k, key, place, u32::from(self.noise.is_some()) + 2 * u32::from(self.told)]
    }
}

/// Noise of Gumbel's distribution for a token at a place.
pub fn noise(key: u32, place: u32, token: u32) -> f32 {
    let v = ((philox(key, [token, place])[0] >> 8) as f32 + 0.5) / 16_777_216.0;
    // -ln(1 - v): near one the logarithm itself would keep few digits, and there lie the winners.
    let small = v * (1.0 + v * (0.5 + v * (1.0 / 3.0 + v * 0.25)));
    let wait = if v < 0.03125 { small } else { -(1.0 - v).ln() };
    -wait.ln()
}

/// The token chosen from scores on the host, and its log-probability where it is asked for.
pub fn choose_of(scores: &[f32], how: &Choice) -> (u32, f32) {
    choose(|c| scores[c], scores.len(), &how.numbers(), &how.words())
}

/// The token of one row, and its log-probability.
fn choose(scores: impl Fn(usize) -> f32, count: usize, numbers: &[f32], words: &[u32]) -> (u32, f32) {
    let score = |c: usize, factor: f32| {
        let value = scores(c) * factor;
        if value.is_nan() { f32::MIN } else { value.max(f32::MIN) }
    };
    let [factor, top_p, min_p] = [numbers[0], numbers[1], numbers[2]];
    let (top_k, [key, place, how]) = (words[0] as usize, [words[1], words[2], words[3]]);
    let of: Vec<f32> = (0..count).map(|c| score(c, factor)).collect();
    let largest = of.iter().copied().fold(f32::MIN, f32::max);
    let mut limit = f32::NEG_INFINITY;
    if (1..count).contains(&top_k) || top_p < 1.0 {
        let mut sorted = of.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        if (1..count).contains(&top_k) {
            limit = sorted[top_k - 1];
        }
        if top_p < 1.0 {
            let weights: Vec<f64> = sorted
                .iter()
                .take_while(|s| **s >= limit)
                .map(|s| (f64::from(*s) - f64::from(largest)).exp())
                .collect();
            let enough = weights.iter().sum::<f64>() * f64::from(top_p);
            let mut mass = 0.0;
            let last = weights.iter().position(|weight| {
                mass += weight;
                mass >= enough
            });
            limit = limit.max(sorted[last.unwrap_or(0)]);
        }
    }
    let least = if min_p > 0.0 { largest + min_p.ln() } else { f32::MIN };
    let mut best: Option<(f32, usize)> = None;
    for (c, &s) in of.iter().enumerate() {
        if s < limit || (s < least && s < largest) || s == f32::MIN {
            continue;
        }
        let noisy = if how & 1 == 1 { s + noise(key, place, c as u32) } else { s };
        if best.is_none_or(|(value, _)| noisy > value) {
            best = Some((noisy, c));
        }
    }
    let token = best.map_or(0, |(_, c)| c);
    if how & 2 == 0 {
        return (token as u32, 0.0);
    }
    let peak = (0..count).map(|c| score(c, 1.0)).fold(f32::MIN, f32::max);
    let total: f64 = (0..count).map(|c| f64::from(score(c, 1.0) - peak).exp()).sum();
    (token as u32, (f64::from(score(token, 1.0) - peak) - total.ln()) as f32)
}

impl Operator for ChooseToken {
    fn name(&self) -> &'static str {
        "choose_token"
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let [scores, numbers, words] = expect_inputs(op, inputs)?;
        expect_float(op, "scores", scores)?;
        let &[count, vocabulary] = &scores.shape[..] else {
            let expected = "[rows, vocabulary]".to_string();
            return Err(Error::Shape { op, input: "scores", expected, got: scores.shape.clone() });
        };
        // Counts are added up as floats, which hold whole numbers up to this one.
        if vocabulary == 0 || vocabulary > 1 << 24 {
            let expected = "1 to 16777216 tokens".to_string();
            return Err(Error::Shape { op, input: "scores", expected, got: scores.shape.clone() });
        }
        expect_dtype(op, "numbers", numbers, DType::F32)?;
        expect_shape(op, "numbers", numbers, &[count, 4])?;
        expect_dtype(op, "words", words, DType::U32)?;
        expect_shape(op, "words", words, &[count, 4])?;
        Ok(vec![Type::new(DType::U32, [count]), Type::f32([count])])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let vocabulary = inputs[0].shape.last();
        let (numbers, words) = (inputs[1].to_f64(), inputs[2].as_u32());
        let at = |i: usize| match &inputs[0].data {
            Data::F64(x) => x[i] as f32,
            _ => inputs[0].real::<f32>()[i],
        };
        for row in 0..inputs[0].shape[0] {
            let numbers: Vec<f32> = numbers[4 * row..][..4].iter().map(|&x| x as f32).collect();
            let score = |c: usize| at(row * vocabulary + c);
            let (token, told) = choose(score, vocabulary, &numbers, &words[4 * row..][..4]);
            match &mut outputs[0].data {
                Data::U32(tokens) => tokens[row] = token,
                _ => unreachable!("tokens are U32"),
            }
            match &mut outputs[1].data {
                Data::F64(all) => all[row] = f64::from(told),
                _ => outputs[1].real_mut::<f32>()[row] = told,
            }
        }
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let vocabulary = inputs[0].shape.last();
        let (scores, numbers, words) = (inputs[0].floats(), inputs[1].floats(), inputs[2].as_u32());
        let [tokens, told] = outputs else { unreachable!("two outputs") };
        for row in 0..inputs[0].shape[0] {
            let own = &scores[row * vocabulary..][..vocabulary];
            let of = choose(|c| own[c], vocabulary, &numbers[4 * row..][..4], &words[4 * row..][..4]);
            tokens.bytes()[4 * row..][..4].copy_from_slice(&of.0.to_ne_bytes());
            told.floats()[row] = of.1;
        }
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "a token is chosen where texts are written, not in training";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let [count, vocabulary] = [inputs[0].shape[0], inputs[0].shape[1]];
        let kernel = rows::with_width(Kernel::new("choose_token"), 1).retype("Elem", inputs[0].dtype);
        let bindings = [Bind::Input(0), Bind::Input(1), Bind::Input(2), Bind::Output(0), Bind::Output(1)];
        let launch = Launch::new(kernel, bindings, count)
            .param("rows", count)
            .param("cols", vocabulary)
            .param("packs", vocabulary);
        vec![Variant::single(self.name(), launch)]
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 3.0 * inputs[0].shape.count() as f64, bytes }
    }
}

/// Builder of [`ChooseToken`].
pub trait ChooseTokenEmit {
    /// Tokens U32 `[R]` and their log-probabilities F32 `[R]` from scores [R, V].
    fn choose_token(&mut self, scores: Value, numbers: Value, words: Value) -> Result<[Value; 2]>;
}

impl<E: Emit + ?Sized> ChooseTokenEmit for E {
    fn choose_token(&mut self, scores: Value, numbers: Value, words: Value) -> Result<[Value; 2]> {
        let made = self.apply(Arc::new(ChooseToken), &[scores, numbers, words])?;
        Ok([made[0], made[1]])
    }
}

/// One token, the best, draws with every filter and all of them together, rows that differ, an odd vocabulary and a large one.
pub fn cases() -> Cases {
    let mut cases = Cases::new("choose_token");
    let best = Choice { told: true, ..Choice::BEST };
    let drawn = |place: u32| Choice { noise: Some([0x1234_5678, place]), ..best };
    let all = |place| Choice { temperature: 0.8, top_k: 20, top_p: 0.9, min_p: 0.05, ..drawn(place) };
    for (label, vocabulary, rows) in [
        ("one token", 1, vec![best, drawn(3)]),
        ("the best of each row", 67, vec![best; 3]),
        ("drawn of all", 131, (0..5).map(drawn).collect()),
        ("temperatures", 129, (0..4).map(|i| Choice { temperature: 0.3 + i as f32, ..drawn(i) }).collect()),
        ("top k", 257, (0..6).map(|i| Choice { top_k: 1 + 7 * i, ..drawn(i) }).collect()),
        ("top p", 300, (0..6).map(|i| Choice { top_p: 0.05 + 0.18 * i as f32, ..drawn(i) }).collect()),
        ("min p", 77, (0..4).map(|i| Choice { min_p: 0.02 + 0.3 * i as f32, ..drawn(i) }).collect()),
        ("all filters, a large vocabulary", 5003, (0..4).map(all).collect()),
        ("each row in its way", 512, vec![best, all(9), drawn(1), Choice { top_k: 1, ..drawn(2) }]),
    ] {
        let scores = cases.uniform([rows.len(), vocabulary], -6.0, 6.0);
        let numbers: Vec<f32> = rows.iter().flat_map(Choice::numbers).collect();
        let words: Vec<u32> = rows.iter().flat_map(Choice::words).collect();
        let numbers = Tensor::f32([rows.len(), 4], numbers);
        let words = Tensor::u32([rows.len(), 4], words);
        cases.add(label, ChooseToken, vec![scores, numbers, words]).no_gradient().sums(vocabulary);
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(scores: &[f32], how: Choice) -> (u32, f32) {
        choose_of(scores, &how)
    }

    #[test]
    fn the_first_of_the_best_is_taken_and_nothing_that_is_no_number() {
        let told = Choice { told: true, ..Choice::BEST };
        let (token, log) = chosen(&[0.0, f32::NAN, 2.0, 2.0, f32::NEG_INFINITY], told);
        assert_eq!(token, 2);
        assert!((log + (1.0f32 + 1.0 + (-2.0f32).exp()).ln()).abs() < 1e-6, "{log}");
        assert_eq!(chosen(&[f32::NAN, f32::NAN], Choice::BEST).0, 0);
    }

    #[test]
    fn draws_have_the_probabilities_of_what_filters_leave() {
        let scores = [1.0f32, 0.0, 2.0, 1.5, -1.0];
        let share = |how: Choice| {
            let mut counts = [0.0; 5];
            for place in 0..20_000 {
                let how = Choice { noise: Some([77, place]), ..how };
                counts[chosen(&scores, how).0 as usize] += 1.0 / 20_000.0;
            }
            counts
        };
        let expected = |kept: &[usize], temperature: f32| {
            let weight = |c: usize| f64::from(scores[c] / temperature).exp();
            let total: f64 = kept.iter().map(|&c| weight(c)).sum();
            std::array::from_fn::<f64, 5, _>(|c| if kept.contains(&c) { weight(c) / total } else { 0.0 })
        };
        for (how, kept, temperature) in [
            (Choice::BEST, &[0, 1, 2, 3, 4][..], 1.0),
            (Choice { temperature: 2.0, ..Choice::BEST }, &[0, 1, 2, 3, 4], 2.0),
            (Choice { top_k: 2, ..Choice::BEST }, &[2, 3], 1.0),
            (Choice { top_p: 0.8, ..Choice::BEST }, &[0, 2, 3], 1.0),
            (Choice { min_p: 0.5, ..Choice::BEST }, &[2, 3], 1.0),
            (Choice { top_k: 3, top_p: 0.3, ..Choice::BEST }, &[2], 1.0),
        ] {
            let (got, expected) = (share(how), expected(kept, temperature));
            for (got, expected) in got.iter().zip(expected) {
                assert!((got - expected).abs() < 0.012, "{how:?}: {got} {expected}");
            }
        }
    }
}
