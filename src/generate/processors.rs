//! What changes scores before a token is chosen, as plain functions over the scores of one text.
//!
//! Names and order are those of transformers: first what concerns tokens by their history (penalties, bans), then what shapes the
//! distribution (temperature, then filters). A token that must not be chosen has the score minus infinity.

use super::settings::Settings;
use std::collections::{BTreeMap, BTreeSet};

/// The score of what must not be chosen.
const NEVER: f32 = f32::NEG_INFINITY;

/// All of it, in its order. `text` is the whole text, of which the first `prompt` tokens were given.
pub fn process(scores: &mut [f32], text: &[u32], prompt: usize, settings: &Settings) {
    by_history(scores, text, prompt, settings);
    if settings.do_sample {
        shape(scores, settings);
    }
}

/// Penalties and bans, which hold however a token is chosen.
pub fn by_history(scores: &mut [f32], text: &[u32], prompt: usize, settings: &Settings) {
    let written = &text[prompt.min(text.len())..];
    if settings.repetition_penalty != 1.0 {
        repetition_penalty(scores, text, settings.repetition_penalty);
    }
    if settings.presence_penalty != 0.0 || settings.frequency_penalty != 0.0 {
        count_penalties(scores, written, settings.presence_penalty, settings.frequency_penalty);
    }
    if settings.no_repeat_ngram_size > 0 {
        no_repeat_ngram(scores, text, settings.no_repeat_ngram_size);
    }
    bad_words(scores, text, &settings.bad_words);
    if written.len() < settings.min_new_tokens {
        settings.ends.iter().for_each(|&end| ban(scores, end));
    }
    if let Some(grammar) = &settings.grammar {
        grammar.restrict(scores, written, &settings.ends);
    }
}

/// Temperature and filters, which make the distribution that is drawn from.
pub fn shape(scores: &mut [f32], settings: &Settings) {
    if settings.temperature != 1.0 && settings.temperature != 0.0 {
        temperature(scores, settings.temperature);
    }
    if settings.top_k > 0 {
        top_k(scores, settings.top_k);
    }
    if settings.top_p < 1.0 {
        top_p(scores, settings.top_p);
    }
    if settings.min_p > 0.0 {
        min_p(scores, settings.min_p);
    }
    if settings.typical_p < 1.0 {
        typical(scores, settings.typical_p);
    }
    if settings.epsilon_cutoff > 0.0 {
        epsilon(scores, settings.epsilon_cutoff);
    }
    if settings.eta_cutoff > 0.0 {
        eta(scores, settings.eta_cutoff);
    }
}

fn ban(scores: &mut [f32], token: u32) {
    if let Some(score) = scores.get_mut(token as usize) {
        *score = NEVER;
    }
}

/// Scores over a temperature.
pub fn temperature(scores: &mut [f32], temperature: f64) {
    scores.iter_mut().for_each(|score| *score = (f64::from(*score) / temperature) as f32);
}

/// Only the best `k` stay, with whatever has the score of the last of them.
pub fn top_k(scores: &mut [f32], k: usize) {
    let k = k.clamp(1, scores.len());
    let mut sorted = scores.to_vec();
    let (_, last, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    let last = *last;
    keep(scores, |_, score| score >= last);
}

/// Only the best stay, as many as together have the probability `p`.
pub fn top_p(scores: &mut [f32], p: f64) {
    let probabilities = probabilities(scores);
    let order = descending(scores);
    let (mut before, mut kept) = (0.0, BTreeSet::new());
    for &token in &order {
        if before >= p && !kept.is_empty() {
            break;
        }
        kept.insert(token);
        before += probabilities[token];
    }
    keep(scores, |token, _| kept.contains(&token));
}

/// Only what has at least the share `p` of the likeliest token's probability.
pub fn min_p(scores: &mut [f32], p: f64) {
    let probabilities = probabilities(scores);
    let least = p * probabilities.iter().copied().fold(0.0, f64::max);
    keep(scores, |token, _| probabilities[token] >= least);
}

/// Locally typical tokens (Meister et al. 2022): those whose surprise is nearest to the expected one, as many as together have the
/// probability `mass`.
pub fn typical(scores: &mut [f32], mass: f64) {
    let probabilities = probabilities(scores);
    let surprise: Vec<f64> = probabilities.iter().map(|p| -p.ln()).collect();
    let expected = entropy(&probabilities);
    let far: Vec<f64> = surprise.iter().map(|s| (s - expected).abs()).collect();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| far[a].total_cmp(&far[b]).then(a.cmp(&b)));
    let mut sum = 0.0;
    let mut last = 0;
    for (place, &token) in order.iter().enumerate() {
        last = place;
        sum += probabilities[token];
        if sum >= mass {
            break;
        }
    }
    let limit = order.get(last).map_or(0.0, |&token| far[token]);
    keep(scores, |token, _| far[token] <= limit);
}

/// Only what has at least the probability `least`; the likeliest stays in any case.
pub fn epsilon(scores: &mut [f32], least: f64) {
    let probabilities = probabilities(scores);
    let best = best(scores);
    keep(scores, |token, score| probabilities[token] >= least || score >= best);
}

/// The same with a limit that falls where the model is unsure (Hewitt et al. 2022): the lesser of `cutoff` and its root times
/// exp(-entropy).
pub fn eta(scores: &mut [f32], cutoff: f64) {
    let probabilities = probabilities(scores);
    let least = cutoff.min(cutoff.sqrt() * (-entropy(&probabilities)).exp());
    let best = best(scores);
    keep(scores, |token, score| probabilities[token] >= least || score >= best);
}

/// Scores of tokens that stand in the text are made worse by a factor (Keskar et al. 2019).
pub fn repetition_penalty(scores: &mut [f32], text: &[u32], penalty: f64) {
    for token in text.iter().collect::<BTreeSet<_>>() {
        if let Some(score) = scores.get_mut(*token as usize) {
            let wide = f64::from(*score);
            *score = (if wide < 0.0 { wide * penalty } else { wide / penalty }) as f32;
        }
    }
}

/// Scores of tokens that were written lose `presence` once, and `frequency` for each time.
pub fn count_penalties(scores: &mut [f32], written: &[u32], presence: f64, frequency: f64) {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    written.iter().for_each(|&token| *counts.entry(token).or_default() += 1);
    for (token, count) in counts {
        if let Some(score) = scores.get_mut(token as usize) {
            *score = (f64::from(*score) - presence - frequency * count as f64) as f32;
        }
    }
}

/// Nothing that would make a run of `size` tokens stand in the text a second time.
pub fn no_repeat_ngram(scores: &mut [f32], text: &[u32], size: usize) {
    if size == 0 || text.len() + 1 < size {
        return;
    }
    let begun = &text[text.len() + 1 - size..];
    for run in text.windows(size).filter(|run| run[..size - 1] == *begun) {
        ban(scores, run[size - 1]);
    }
}

/// Nothing that would end one of these runs of tokens.
pub fn bad_words(scores: &mut [f32], text: &[u32], words: &[Vec<u32>]) {
    for word in words {
        if let Some((&last, begun)) = word.split_last()
            && text.ends_with(begun)
        {
            ban(scores, last);
        }
    }
}

/// Natural logarithms of the probabilities.
pub fn log_probabilities(scores: &[f32]) -> Vec<f32> {
    let best = f64::from(best(scores));
    let total: f64 = scores.iter().map(|&score| (f64::from(score) - best).exp()).sum();
    let shift = best + total.ln();
    scores.iter().map(|&score| (f64::from(score) - shift) as f32).collect()
}

/// Probabilities.
pub fn probabilities(scores: &[f32]) -> Vec<f64> {
    let best = f64::from(best(scores));
    let weights: Vec<f64> = scores.iter().map(|&score| (f64::from(score) - best).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

/// The number of the best score, the first of several; what is no number is never the best.
pub fn greatest(scores: &[f32]) -> u32 {
    let better = |best: usize, at: usize| scores[at] > scores[best] || scores[best].is_nan();
    (0..scores.len()).reduce(|best, at| if better(best, at) { at } else { best }).unwrap_or(0) as u32
}

fn best(scores: &[f32]) -> f32 {
    scores.iter().copied().filter(|score| !score.is_nan()).fold(NEVER, f32::max)
}

fn entropy(probabilities: &[f64]) -> f64 {
    -probabilities.iter().filter(|p| **p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

/// Numbers of scores, the best first, of equals the last first: so they stay where the sum of the least is cut off.
fn descending(scores: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(b.cmp(&a)));
    order
}

fn keep(scores: &mut [f32], mut stays: impl FnMut(usize, f32) -> bool) {
    for (token, score) in scores.iter_mut().enumerate() {
        if !stays(token, *score) {
            *score = NEVER;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(scores: &[f32]) -> Vec<usize> {
        (0..scores.len()).filter(|&token| scores[token] > NEVER).collect()
    }

    #[test]
    fn penalties_count_what_was_written_and_what_stands_in_the_text() {
        let mut scores = [1.0, 1.0, -1.0, 1.0];
        repetition_penalty(&mut scores, &[1, 2, 1, 9], 2.0);
        assert_eq!(scores, [1.0, 0.5, -2.0, 1.0]);
        let mut scores = [1.0; 4];
        count_penalties(&mut scores, &[3, 3, 1], 0.5, 0.25);
        assert_eq!(scores, [1.0, 0.25, 1.0, 0.0]);
        let settings = Settings { presence_penalty: 1.0, ..Settings::greedy(5) };
        let mut scores = [0.0; 4];
        process(&mut scores, &[0, 0, 2], 2, &settings);
        assert_eq!(scores, [0.0, 0.0, -1.0, 0.0]);
    }

    #[test]
    fn runs_do_not_come_twice_and_bad_words_do_not_end() {
        let mut scores = [0.0; 6];
        no_repeat_ngram(&mut scores, &[1, 2, 3, 1, 2], 3);
        assert_eq!(kept(&scores), [0, 1, 2, 4, 5]);
        no_repeat_ngram(&mut scores, &[], 1);
        bad_words(&mut scores, &[4, 1], &[vec![0], vec![1, 5], vec![2, 4], vec![], vec![77]]);
        assert_eq!(kept(&scores), [1, 2, 4]);
    }

    #[test]
    fn one_token_stays_however_narrow_a_filter_is() {
        let narrow: [fn(&mut [f32]); 6] = [
            |s| top_k(s, 1),
            |s| top_p(s, 1e-9),
            |s| min_p(s, 1.0),
            |s| typical(s, 1e-9),
            |s| epsilon(s, 0.999),
            |s| eta(s, 0.999),
        ];
        for (number, filter) in narrow.iter().enumerate() {
            let mut scores = [0.1, 0.5, 0.3, f32::NEG_INFINITY];
            filter(&mut scores);
            let kept = kept(&scores);
            assert!(kept.len() == 1 && (number == 3 || kept == [1]), "{number}: {kept:?}");
        }
        assert_eq!(greatest(&[f32::NAN, 1.0, 2.0, 2.0]), 2);
    }
}
