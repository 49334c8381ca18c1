//! Beam search: several texts are written at once, and the likeliest as wholes are kept.
//!
//! What stands here computes the choices alone, from scores; [`search`] lets a model give them. Sums, ends and limits are those of
//! transformers 5: a text that ends counts with its sum of log-probabilities over its length to the power of `length_penalty`, and
//! only if it ended among the best. Diverse beams (Vijayakumar et al. 2018) are groups that choose one after the other, each with a
//! penalty on what those before it have just chosen.

mod search;
#[cfg(test)]
mod tests;

pub use search::{Sought, search};

use super::processors::{self, log_probabilities};
use super::settings::Settings;
use super::stops::Stops;
use super::{Error, Result, draw};
use crate::data::sampling::Unfit;

/// Below any sum of log-probabilities, and finite.
const LEAST: f32 = -1e9;

/// When to stop once as many texts have ended as there are beams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// At once (`true`).
    Always,
    /// When the best that goes on could not, at its length now, displace the worst that ended (`false`).
    #[default]
    Likely,
    /// When it could not at any length ("never").
    Never,
}

/// How beams are led.
#[derive(Clone, Debug, PartialEq)]
pub struct Beams {
    /// Texts written at once.
    pub num_beams: usize,
    /// Of these, how many to give, the best first.
    pub num_return_sequences: usize,
    /// Power of the length by which sums are divided: above zero longer texts gain.
    pub length_penalty: f64,
    /// When to stop.
    pub early_stopping: EarlyStopping,
    /// Groups of as many beams each; one is plain beam search.
    pub num_beam_groups: usize,
    /// What a token's score loses for each beam of an earlier group that has just chosen it.
    pub diversity_penalty: f64,
}

impl Beams {
    /// Plain beam search.
    pub fn of(num_beams: usize) -> Beams {
        Beams {
            num_beams,
            num_return_sequences: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Likely,
            num_beam_groups: 1,
            diversity_penalty: 0.0,
        }
    }

    /// Refuses what does not fit together.
    pub fn check(&self) -> Result<()> {
        let groups = self.num_beam_groups;
        let even = groups > 0 && self.num_beams.is_multiple_of(groups);
        let returned = (1..=self.num_beams).contains(&self.num_return_sequences);
        let rules = [
            ("num_beams", "at least 1", self.num_beams >= 1, self.num_beams.to_string()),
            ("num_return_sequences", "1 to num_beams", returned, self.num_return_sequences.to_string()),
            ("length_penalty", "a number", self.length_penalty.is_finite(), self.length_penalty.to_string()),
            ("num_beam_groups", "a divisor of num_beams", even, groups.to_string()),
            (
                "diversity_penalty",
                "zero or more, and above zero only with groups",
                self.diversity_penalty >= 0.0 && (groups > 1 || self.diversity_penalty == 0.0),
                self.diversity_penalty.to_string(),
            ),
        ];
        match rules.into_iter().find(|(_, _, fits, _)| !fits) {
            Some((setting, expected, _, got)) => Err(Error::Setting(Unfit { setting, expected, got })),
            None => Ok(()),
        }
    }
}

/// A text that beam search has found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// The whole text with what was given, and the end if it came.
    pub ids: Vec<u32>,
    /// Its sum of log-probabilities over the power of its length.
    pub score: f32,
}

/// A text on its way.
#[derive(Clone, Debug)]
struct Beam {
    ids: Vec<u32>,
    /// Sum of log-probabilities; of one that has ended its score.
    sum: f32,
    ended: bool,
    /// The beam from which it goes on.
    from: usize,
}

/// Beams of one group.
#[derive(Clone, Debug)]
pub struct Group {
    beams: Beams,
    settings: Settings,
    prompt: usize,
    running: Vec<Beam>,
    ended: Vec<Beam>,
    improvable: bool,
    done: bool,
    key: u32,
}

impl Group {
    /// Beams that all begin with `prompt`; `beams` says how many there are in this group.
    pub fn new(prompt: &[u32], beams: &Beams, settings: &Settings, stream: u32) -> Group {
        let beam = |number: usize| Beam {
            ids: prompt.to_vec(),
            // All have the same text: only the first counts until they differ.
            sum: if number == 0 { 0.0 } else { LEAST },
            ended: false,
            from: number,
        };
        let none = Beam { ids: prompt.to_vec(), sum: LEAST, ended: false, from: 0 };
        Group {
            beams: beams.clone(),
            settings: settings.clone(),
            prompt: prompt.len(),
            running: (0..beams.num_beams).map(beam).collect(),
            ended: vec![none; beams.num_beams],
            improvable: true,
            done: settings.max_new_tokens == 0,
            key: draw::key(settings.seed, stream),
        }
    }

    /// True when nothing is to be written any more.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The texts that go on.
    pub fn texts(&self) -> impl Iterator<Item = &[u32]> {
        self.running.iter().map(|beam| &beam.ids[..])
    }

    /// Takes a step with the scores `[V]` of the token after each text; `taken` counts for each token how many beams of earlier groups have
    /// just chosen it. Gives for each beam the one whose text it goes on with.
    pub(super) fn advance(
        &mut self,
        scores: &[Vec<f32>],
        taken: &[u32],
        texts: Option<Stops>,
    ) -> Result<Vec<usize>> {
        let candidates = self.candidates(scores, taken);
        let length = self.running[0].ids.len() + 1 - self.prompt;
        let full = length >= self.settings.max_new_tokens;
        let stops = candidates.iter().map(|beam| Ok(full || self.stops(beam, texts)?));
        let stops = stops.collect::<Result<Vec<bool>>>()?;
        self.end(&candidates, &stops, length);
        let size = self.beams.num_beams;
        let mut next: Vec<Beam> = candidates
            .into_iter()
            .zip(&stops)
            .map(|(beam, &stops)| Beam { sum: if stops { beam.sum + LEAST } else { beam.sum }, ..beam })
            .collect();
        next.sort_by(|a, b| b.sum.total_cmp(&a.sum));
        next.truncate(size);
        self.running = next;
        self.settle(length, stops.iter().all(|stops| *stops));
        Ok(self.running.iter().map(|beam| beam.from).collect())
    }

    /// Whether a text ends with its last token.
    fn stops(&self, beam: &Beam, texts: Option<Stops>) -> Result<bool> {
        let ends = &self.settings.ends;
        let grammar = self.settings.grammar.as_ref().filter(|_| beam.sum > LEAST);
        let closed = grammar.is_some_and(|grammar| !grammar.is_open(&beam.ids[self.prompt..], ends));
        if closed || ends.contains(beam.ids.last().expect("a token was added")) {
            return Ok(true);
        }
        texts.map_or(Ok(false), |texts| texts.end(&beam.ids, self.prompt))
    }

    /// The best continuations of all beams together: enough that some go on whatever ends.
    fn candidates(&self, scores: &[Vec<f32>], taken: &[u32]) -> Vec<Beam> {
        let keep = (1 + self.settings.ends.len()).max(2) * self.beams.num_beams;
        let vocabulary = scores.first().map_or(1, Vec::len).max(1);
        let mut sums = Vec::with_capacity(scores.len() * vocabulary);
        for (beam, scores) in self.running.iter().zip(scores) {
            let mut scores = log_probabilities(scores);
            processors::process(&mut scores, &beam.ids, self.prompt, &self.settings);
            for (score, &count) in scores.iter_mut().zip(taken) {
                *score -= (self.beams.diversity_penalty * f64::from(count)) as f32;
            }
            sums.extend(scores.iter().map(|score| score + beam.sum));
        }
        let order = match self.settings.draws() {
            true => draw::draw_several(&sums, keep, self.key, self.running[0].ids.len() as u32),
            false => best(&sums, keep),
        };
        let beam = |at: usize| {
            let from = at / vocabulary;
            let ids = [&self.running[from].ids[..], &[(at % vocabulary) as u32]].concat();
            Beam { ids, sum: sums[at], ended: false, from }
        };
        order.into_iter().map(beam).collect()
    }

    /// Keeps what has just ended among the best, as far as it is better than what ended before.
    fn end(&mut self, candidates: &[Beam], stops: &[bool], length: usize) {
        let power = (length as f64).powf(self.beams.length_penalty) as f32;
        let full = self.beams.early_stopping == EarlyStopping::Always && self.ended.iter().all(|b| b.ended);
        let closed = if full || !self.improvable { LEAST } else { 0.0 };
        let new = candidates.iter().zip(stops).take(self.beams.num_beams).filter(|(_, stops)| **stops);
        let new = new.map(|(beam, _)| Beam { sum: beam.sum / power + closed, ended: true, ..beam.clone() });
        self.ended.extend(new);
        self.ended.sort_by(|a, b| b.sum.total_cmp(&a.sum));
        self.ended.truncate(self.beams.num_beams);
    }

    /// Whether there is anything left to find.
    fn settle(&mut self, length: usize, all_stop: bool) {
        let never = self.beams.early_stopping == EarlyStopping::Never && self.beams.length_penalty > 0.0;
        let reach = if never { self.settings.max_new_tokens } else { length };
        let best = self.running[0].sum / (reach as f64).powf(self.beams.length_penalty) as f32;
        let worst = self.ended.iter().map(|beam| beam.sum).fold(f32::INFINITY, f32::min);
        let improves = |beam: &Beam| best > if beam.ended { worst } else { LEAST };
        self.improvable &= self.ended.iter().any(improves);
        let open = self.beams.early_stopping != EarlyStopping::Always || self.ended.iter().any(|b| !b.ended);
        self.done = !(self.improvable && open && !all_stop);
    }

    /// What was found, the best first; what has not ended is no part of it unless nothing has.
    pub fn found(&self) -> Vec<Hypothesis> {
        let of = |beam: &Beam| Hypothesis { ids: beam.ids.clone(), score: beam.sum };
        let ended: Vec<Hypothesis> = self.ended.iter().filter(|beam| beam.ended).map(of).collect();
        if ended.is_empty() { self.running.iter().take(1).map(of).collect() } else { ended }
    }
}

/// Numbers of the greatest, in their order; of equals the first.
fn best(sums: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sums.len()).collect();
    let count = count.min(order.len());
    let before = |a: &usize, b: &usize| sums[*b].total_cmp(&sums[*a]).then(a.cmp(b));
    if count < order.len() && count > 0 {
        order.select_nth_unstable_by(count - 1, before);
        order.truncate(count);
    }
    order.sort_by(before);
    order
}
