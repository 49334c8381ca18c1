//! Contrastive search (Su et al. 2022): of the likeliest tokens the one that is likely, and unlike everything before it.
//!
//! `(1 - alpha) * p(token) - alpha * max over the text of cos(h(token), h(before))`, of the `top_k` likeliest tokens, where h is a token's
//! hidden state behind the last norm. So each candidate is read before one is chosen: a row for each holds the text, and all of a token's
//! candidates are read in one pass. The cosines are found on the host, with every token of the text once.

use super::beams::{Hypothesis, Sought};
use super::processors::{self, log_probabilities, probabilities};
use super::rows::{Rows, State, Text};
use super::settings::Settings;
use super::stops::Stops;
use super::{Error, Result};
use crate::data::sampling::Unfit;
use crate::data::tokenizer::Tokenizer;

/// How much unlikeness counts, and among how many tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contrastive {
    /// What the likeness to the text before costs, against the probability; 0 to 1.
    pub penalty_alpha: f64,
    /// Candidates.
    pub top_k: usize,
}

impl Contrastive {
    /// Refuses what is out of range.
    pub fn check(&self) -> Result<()> {
        let unfit = |setting, expected, got| Err(Error::Setting(Unfit { setting, expected, got }));
        if !(0.0..=1.0).contains(&self.penalty_alpha) {
            return unfit("penalty_alpha", "0 to 1", self.penalty_alpha.to_string());
        }
        match self.top_k {
            0 => unfit("top_k", "at least 1 candidate", "0".into()),
            _ => Ok(()),
        }
    }
}

/// A text on its way, in as many rows as there are candidates.
struct Path {
    ids: Vec<u32>,
    prompt: usize,
    row: usize,
    /// Scores of the next token.
    scores: Vec<f32>,
    sum: f32,
    most: usize,
    done: bool,
}

/// Writes texts by contrastive search, all at once: each needs `top_k` rows from `row` on, of rows that show states. Gives each with its
/// mean log-probability by the model. The tokenizer is for stop texts.
pub fn contrast(
    rows: &mut dyn Rows,
    sought: &[Sought],
    settings: &Settings,
    how: &Contrastive,
    tokenizer: Option<&Tokenizer>,
) -> Result<Vec<Hypothesis>> {
    settings.check()?;
    how.check()?;
    let stops = Stops::of(tokenizer, &settings.stop)?;
    let count = how.top_k.min(rows.vocabulary());
    for text in sought {
        let last = text.row + count;
        if last > rows.count() {
            return Err(Error::Row { row: last - 1, rows: rows.count() });
        }
    }
    if rows.states(0).is_none() {
        return Err(Error::NoStates);
    }
    let texts: Vec<Text> = sought.iter().map(|text| (text.row, text.prompt)).collect();
    let scores = rows.scores(&texts)?;
    let mut from: Vec<usize> = (0..rows.count()).collect();
    sought.iter().for_each(|text| from[text.row..][..count].fill(text.row));
    rows.order(&from)?;
    let capacity = rows.capacity();
    let path = |(text, scores): (&Sought, Vec<f32>)| {
        let most = settings.max_new_tokens.min(capacity.saturating_sub(text.prompt.len()));
        let (ids, prompt) = (text.prompt.to_vec(), text.prompt.len());
        Path { ids, prompt, row: text.row, scores, sum: 0.0, most, done: most == 0 }
    };
    let mut paths: Vec<Path> = sought.iter().zip(scores).map(path).collect();
    while paths.iter().any(|path| !path.done) {
        step(rows, &mut paths, settings, how, stops)?;
    }
    let of = |path: Path| {
        let written = (path.ids.len() - path.prompt).max(1);
        Hypothesis { score: path.sum / written as f32, ids: path.ids }
    };
    Ok(paths.into_iter().map(of).collect())
}

/// Reads the candidates of all texts that go on, and takes one of each.
fn step(
    rows: &mut dyn Rows,
    paths: &mut [Path],
    settings: &Settings,
    how: &Contrastive,
    stops: Option<Stops>,
) -> Result<()> {
    let mut read: Vec<(usize, Vec<u32>)> = vec![];
    let mut chances: Vec<Vec<f64>> = vec![];
    for path in paths.iter_mut().filter(|path| !path.done) {
        let likely = path.candidates(settings, how.top_k);
        for (place, (token, _)) in likely.iter().enumerate() {
            read.push((path.row + place, [&path.ids[..], &[*token]].concat()));
        }
        chances.push(likely.into_iter().map(|(_, chance)| chance).collect());
    }
    let texts: Vec<Text> = read.iter().map(|(row, text)| (*row, &text[..])).collect();
    let mut scores = rows.scores(&texts)?.into_iter();
    let mut from: Vec<usize> = (0..rows.count()).collect();
    for (path, chances) in paths.iter_mut().filter(|path| !path.done).zip(chances) {
        let mut scores: Vec<Vec<f32>> = scores.by_ref().take(chances.len()).collect();
        let mut merits = vec![];
        for (place, chance) in chances.iter().enumerate() {
            let states = rows.states(path.row + place).ok_or(Error::NoStates)?;
            let (own, before) = states.split_last().ok_or(Error::NoStates)?;
            merits.push((1.0 - how.penalty_alpha) * chance - how.penalty_alpha * likeness(own, before));
        }
        let best = (0..merits.len()).reduce(|best, at| if merits[at] > merits[best] { at } else { best });
        let best = best.expect("there is a candidate");
        let token = rows.held(path.row + best)[path.ids.len()];
        from[path.row..][..how.top_k.min(rows.vocabulary())].fill(path.row + best);
        path.take(token, scores.swap_remove(best), settings, stops)?;
    }
    rows.order(&from)
}

impl Path {
    /// The likeliest tokens with their probabilities, of equals the first; fewer where others are banned.
    fn candidates(&self, settings: &Settings, count: usize) -> Vec<(u32, f64)> {
        let mut scores = self.scores.clone();
        processors::by_history(&mut scores, &self.ids, self.prompt, settings);
        let chances = probabilities(&scores);
        let mut order: Vec<u32> = (0..scores.len() as u32).collect();
        let of = |token: u32| scores[token as usize];
        order.sort_by(|&a, &b| of(b).total_cmp(&of(a)).then(a.cmp(&b)));
        let open = order.iter().take(count).take_while(|token| of(**token) > f32::NEG_INFINITY);
        let likely: Vec<(u32, f64)> = open.map(|&token| (token, chances[token as usize])).collect();
        if likely.is_empty() { vec![(processors::greatest(&self.scores), 0.0)] } else { likely }
    }

    fn take(
        &mut self,
        token: u32,
        scores: Vec<f32>,
        settings: &Settings,
        stops: Option<Stops>,
    ) -> Result<()> {
        self.sum += log_probabilities(&self.scores)[token as usize];
        self.ids.push(token);
        self.scores = scores;
        let written = &self.ids[self.prompt..];
        let closed = settings.grammar.as_ref().is_some_and(|of| !of.is_open(written, &settings.ends));
        let stopped = stops.map_or(Ok(false), |stops| stops.end(&self.ids, self.prompt))?;
        self.done = written.len() >= self.most || settings.ends.contains(&token) || closed || stopped;
        Ok(())
    }
}

/// The greatest cosine between a state and those before it.
fn likeness(own: &State, before: &[State]) -> f64 {
    let product =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let length = |state: &State| product(state, state).sqrt();
    let own_length = length(own);
    let cosine = |other: &State| product(own, other) / (own_length * length(other)).max(f64::MIN_POSITIVE);
    before.iter().map(cosine).fold(f64::NEG_INFINITY, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deploy::Deployment;
    use crate::generate::tests::{families, lively, text, whole};
    use crate::generate::{CausalRows, Room, Shown};
    use crate::train::Target;

    fn rows(number: usize, rows: usize, shown: Shown) -> CausalRows {
        let (_, family) = families(32).remove(number);
        let room = Room { rows, tokens: 32 };
        CausalRows::showing(&*family, &Deployment::new(&lively(&*family)), &Target::Host, room, shown)
            .unwrap()
    }

    fn sought(prompt: &[u32], row: usize) -> Sought<'_> {
        Sought { prompt, row, stream: 0 }
    }

    #[test]
    fn without_a_penalty_it_is_the_best_token_each_time_and_with_one_it_is_not() {
        for number in [0, 1, 5] {
            let (_, family) = families(32).remove(number);
            let weights = lively(&*family);
            let mut greedy = text(6);
            for _ in 0..8 {
                greedy.push(processors::greatest(whole(&*family, &weights, &greedy).last().unwrap()));
            }
            let mut rows = rows(number, 6, Shown::States);
            let prompts = [text(6), text(9)];
            let settings = Settings::greedy(8);
            let mut write = |penalty_alpha| {
                let sought = [sought(&prompts[0], 0), sought(&prompts[1], 3)];
                contrast(&mut rows, &sought, &settings, &Contrastive { penalty_alpha, top_k: 3 }, None)
                    .unwrap()
            };
            assert_eq!(write(0.0)[0].ids, greedy, "{number}");
            let apart = write(0.9);
            assert_ne!(apart[0].ids, greedy, "{number}");
            assert!(apart[0].score < 0.0 && apart[0].ids.len() == 14 && apart[1].ids.len() == 17);
            // The second text, alone in the rows that the first one had.
            let again = contrast(
                &mut rows,
                &[sought(&prompts[1], 0)],
                &settings,
                &Contrastive { penalty_alpha: 0.9, top_k: 3 },
                None,
            );
            assert_eq!(again.unwrap()[0].ids, apart[1].ids, "{number}");
        }
    }

    #[test]
    fn a_text_ends_at_its_end_or_a_full_context_and_rows_must_show_states() {
        let mut some = rows(1, 3, Shown::States);
        let prompt = text(6);
        let how = Contrastive { penalty_alpha: 0.6, top_k: 3 };
        let tokenizer = Tokenizer::characters("abcdefghijklmnopqrstuvw");
        let mut write = |settings: &Settings| {
            contrast(&mut some, &[sought(&prompt, 0)], settings, &how, Some(&tokenizer)).unwrap()
        };
        let all = write(&Settings::greedy(90)).remove(0).ids;
        assert_eq!(all.len(), 32);
        let end = all[9];
        let first = 6 + all[6..].iter().position(|token| *token == end).unwrap();
        let ended = write(&Settings { ends: vec![end], ..Settings::greedy(90) }).remove(0).ids;
        assert_eq!(ended, all[..=first]);
        let never = write(&Settings { bad_words: vec![vec![end]], ..Settings::greedy(90) }).remove(0).ids;
        assert!(!never[6..].contains(&end));
        let stop = vec![tokenizer.decode(&all[10..12]).unwrap()];
        let stopped = write(&Settings { stop, ..Settings::greedy(90) }).remove(0).ids;
        let pair = all[6..].windows(2).position(|pair| pair == &all[10..12]).unwrap();
        assert_eq!(stopped, all[..6 + pair + 2]);

        let refused = |rows: &mut CausalRows, how: &Contrastive| {
            contrast(rows, &[sought(&prompt, 0)], &Settings::greedy(3), how, None).unwrap_err()
        };
        assert!(matches!(refused(&mut rows(1, 3, Shown::Nothing), &how), Error::NoStates));
        assert!(matches!(refused(&mut rows(1, 2, Shown::States), &how), Error::Row { row: 2, rows: 2 }));
        let wrong = Contrastive { penalty_alpha: 1.5, ..how };
        assert!(refused(&mut rows(1, 3, Shown::States), &wrong).to_string().contains("penalty_alpha is 1.5"));
    }
}
