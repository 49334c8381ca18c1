//! Where accuracy leaves chance, and whether likelihood leaps there as well.
//!
//! A rung is above chance if so many right answers come of guessing less often than in one of twenty studies: the exact tail of a
//! sum of questions with a chance each, corrected over rungs as Holm (1979) does. Several seeds of a rung must all be. The mark is
//! the least compute from which on every rung is. Schaeffer et al. (2023) showed that leaps of accuracy may be made by the metric alone, so
//! the probability of the right answers, which has no threshold, stands beside it.

use super::{Error, Result};
use crate::exchange::open_to_run;
use crate::metrics::bootstrap::Draws;
use crate::tasks::{Chances, Task};
use crate::train::Target;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Chance may explain a mark in this share of studies.
pub const LEVEL: f64 = 0.05;

/// Texts in one batch.
const BATCH: usize = 16;

/// A leap makes at least this share of a whole rise in one step.
const LEAP: f64 = 0.5;

/// What a rung made of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Checksum of the task's file and data: others are asked anew.
    pub checksum: u32,
    /// Questions.
    pub questions: usize,
    /// Right answers.
    pub right: usize,
    /// Right answers where likelihoods are by their characters.
    pub right_by_length: usize,
    /// Accuracy: the value and the bounds of its 95 % interval over questions.
    pub accuracy: [f64; 3],
    /// Mean logarithm of the right answers' probabilities, in nats, and bounds.
    pub likelihood: [f64; 3],
    /// The same for each character.
    pub likelihood_per_character: f64,
    /// Mean share of the right answer in the probabilities of all choices, and bounds.
    pub share: [f64; 3],
    /// How often guessing is as good.
    pub p_value: f64,
}

/// A task, opened, with its chances.
pub struct Examination {
    /// The file as it was given.
    pub name: String,
    /// The task.
    pub task: Task,
    /// What guessing gives.
    pub chances: Chances,
    /// Checksum of file and data.
    pub checksum: u32,
}

impl Examination {
    /// Reads a task; one without choices is refused.
    pub fn open(path: &Path) -> Result<Examination> {
        let task = Task::open(path, None)?;
        let chances = task.chances().ok_or_else(|| Error::NoChoices { path: path.into() })?;
        let mut hash = crc32fast::Hasher::new();
        let files = [Some(path), Some(&task.file.data), task.file.examples.as_deref()];
        for file in files.into_iter().flatten() {
            hash.update(&std::fs::read(file).map_err(|source| Error::File { path: file.into(), source })?);
        }
        Ok(Examination { name: path.display().to_string(), task, chances, checksum: hash.finalize() })
    }

    /// Puts it to the model in a folder.
    pub fn put_to(&self, model: &Path, target: Target) -> Result<Score> {
        let answers = self.task.answers(open_to_run(model, &[])?, model, target, BATCH)?;
        let count =
            |is_right: fn(&crate::tasks::Answer) -> bool| answers.iter().filter(|a| is_right(a)).count();
        let (right, right_by_length) = (count(|a| a.is_right), count(|a| a.is_right_by_length));
        let draws = Draws::new(answers.len(), self.task.file.resamples, self.task.file.seed);
        let mean = |of: &dyn Fn(&crate::tasks::Answer) -> f64| {
            let segments: Vec<Vec<f64>> = answers.iter().map(|answer| vec![of(answer), 1.0]).collect();
            let interval = draws.interval(&segments, &|sums| sums[0] / sums[1]);
            [interval.value, interval.low, interval.high].map(|x| if x.is_nan() { interval.value } else { x })
        };
        Ok(Score {
            checksum: self.checksum,
            questions: answers.len(),
            right,
            right_by_length,
            accuracy: mean(&|a| f64::from(u8::from(a.is_right))),
            likelihood: mean(&|a| a.likelihood),
            likelihood_per_character: mean(&|a| a.likelihood / a.characters as f64)[0],
            share: mean(&|a| a.share),
            p_value: tail(&self.chances.by_row, right),
        })
    }
}

/// How often at least so many of independent guesses are right, each with its chance.
pub fn tail(chances: &[f64], right: usize) -> f64 {
    // ways[k]: the probability of k right ones so far.
    let mut ways = vec![0.0; chances.len() + 1];
    ways[0] = 1.0;
    for (asked, chance) in chances.iter().enumerate() {
        for count in (0..=asked + 1).rev() {
            let one_less = if count > 0 { ways[count - 1] } else { 0.0 };
            ways[count] = ways[count] * (1.0 - chance) + one_less * chance;
        }
    }
    ways[right.min(ways.len())..].iter().sum::<f64>().min(1.0)
}

/// Holm's correction: none of the p-values below a level is chance, at that level for all of them together.
pub fn corrected(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let (mut all, mut most) = (vec![1.0; p_values.len()], 0.0f64);
    for (place, &at) in order.iter().enumerate() {
        most = most.max((p_values.len() - place) as f64 * p_values[at]).min(1.0);
        all[at] = most;
    }
    all
}

/// A rung's score, for a curve.
#[derive(Clone, Debug)]
pub struct Scored<'a> {
    /// Its name.
    pub name: &'a str,
    /// Rungs with the same text here are seeds of one.
    pub group: String,
    /// Operations it took.
    pub flops: f64,
    /// What it made of the task.
    pub score: &'a Score,
}

/// Seeds of one rung together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stage {
    /// Name of the first of them.
    pub name: String,
    /// Operations.
    pub flops: f64,
    /// Mean accuracy.
    pub accuracy: f64,
    /// Mean logarithm of the right answers' probabilities.
    pub likelihood: f64,
    /// Mean share of the right answers.
    pub share: f64,
    /// The largest corrected p-value of its seeds.
    pub p_value: f64,
}

/// How a task's accuracy rises with compute.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rise {
    /// Rungs by compute.
    pub stages: Vec<Stage>,
    /// The first stage from which on all are above chance.
    pub mark: Option<usize>,
    /// Whether the metric makes the leap.
    pub verdict: String,
}

/// Puts scores in order of compute and looks for the place where they leave chance.
pub fn rise(scored: &[Scored]) -> Rise {
    let p_values: Vec<f64> = scored.iter().map(|s| s.score.p_value).collect();
    let p_values = corrected(&p_values);
    let mut groups: Vec<(&Scored, Vec<usize>)> = vec![];
    for (at, one) in scored.iter().enumerate() {
        match groups.iter_mut().find(|(first, _)| first.group == one.group) {
            Some((_, members)) => members.push(at),
            None => groups.push((one, vec![at])),
        }
    }
    groups.sort_by(|a, b| a.0.flops.total_cmp(&b.0.flops));
    let stage = |(first, members): &(&Scored, Vec<usize>)| {
        let mean = |of: fn(&Score) -> f64| {
            members.iter().map(|&at| of(scored[at].score)).sum::<f64>() / members.len() as f64
        };
        Stage {
            name: first.name.to_string(),
            flops: first.flops,
            accuracy: mean(|s| s.accuracy[0]),
            likelihood: mean(|s| s.likelihood[0]),
            share: mean(|s| s.share[0]),
            p_value: members.iter().map(|&at| p_values[at]).fold(0.0, f64::max),
        }
    };
    let stages: Vec<Stage> = groups.iter().map(stage).collect();
    let above = stages.iter().rev().take_while(|stage| stage.p_value < LEVEL).count();
    let mark = (above > 0).then(|| stages.len() - above);
    let verdict = verdict(&stages, mark);
    Rise { stages, mark, verdict }
}

/// Whether accuracy rises in one step while likelihood rises in many.
fn verdict(stages: &[Stage], mark: Option<usize>) -> String {
    let Some(mark) = mark else {
        return "accuracy does not leave chance, so there is no leap to explain".into();
    };
    if stages.len() < 3 {
        return "fewer than three rungs: nothing can be said of leaps".into();
    }
    let of = |value: fn(&Stage) -> f64, at: usize| value(&stages[at]) - value(&stages[at - 1]);
    let whole = |value: fn(&Stage) -> f64| value(&stages[stages.len() - 1]) - value(&stages[0]);
    let accuracy = |stage: &Stage| stage.accuracy;
    let likelihood = |stage: &Stage| stage.likelihood;
    let largest = |value: fn(&Stage) -> f64| {
        (1..stages.len()).max_by(|&a, &b| of(value, a).total_cmp(&of(value, b))).expect("three stages")
    };
    if whole(accuracy) <= 0.0 || mark == 0 {
        return "accuracy is above chance from the smallest rung on: smaller rungs would show where it leaves it".into();
    }
    let step = largest(accuracy);
    let share = |value: fn(&Stage) -> f64| (of(value, step) / whole(value)).clamp(-9.99, 9.99);
    let (of_accuracy, of_likelihood) = (share(accuracy), share(likelihood));
    let shares = format!(
        "accuracy makes {:.0} % of its rise in the step to {}, the likelihood of right answers {:.0} %",
        100.0 * of_accuracy,
        stages[step].name,
        100.0 * of_likelihood
    );
    let ending = match (of_accuracy >= LEAP, of_likelihood >= LEAP, whole(likelihood) > 0.0) {
        (_, _, false) => {
            "likelihood does not rise from the first to the last rung, so accuracy comes of how choices are compared"
        }
        (true, true, _) => "both leap, so the leap is not the metric's alone",
        (true, false, _) => "likelihood rises without such a leap, so the leap is the metric's",
        (false, ..) => "accuracy makes less than half of its rise at once: there is no leap",
    };
    format!("{shares}: {ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(p_value: f64, accuracy: f64, likelihood: f64) -> Score {
        Score {
            checksum: 0,
            questions: 10,
            right: (10.0 * accuracy) as usize,
            right_by_length: 0,
            accuracy: [accuracy; 3],
            likelihood: [likelihood; 3],
            likelihood_per_character: likelihood,
            share: [accuracy; 3],
            p_value,
        }
    }

    fn curve(scores: &[Score]) -> Rise {
        let of = |(at, score): (usize, &'_ Score)| (at.to_string(), 10f64.powi(at as i32), score.clone());
        let all: Vec<(String, f64, Score)> = scores.iter().enumerate().map(of).collect();
        let scored = all.iter().map(|(group, flops, score)| Scored {
            name: "rung",
            group: group.clone(),
            flops: *flops,
            score,
        });
        rise(&scored.collect::<Vec<_>>())
    }

    #[test]
    fn the_tail_of_guesses_is_binomial_and_sums_over_unlike_chances() {
        assert!((tail(&[0.5; 10], 8) - 56.0 / 1024.0).abs() < 1e-12);
        assert_eq!((tail(&[0.25; 4], 0), tail(&[0.25; 4], 4)), (1.0, 0.25f64.powi(4)));
        assert!((tail(&[0.5, 0.25], 1) - (1.0 - 0.5 * 0.75)).abs() < 1e-12);
        assert_eq!(tail(&[0.5], 2), 0.0);
    }

    #[test]
    fn corrected_values_are_holms() {
        let corrected = corrected(&[0.01, 0.04, 0.03, 0.005]);
        for (got, expected) in corrected.iter().zip([0.03, 0.06, 0.06, 0.02]) {
            assert!((got - expected).abs() < 1e-12, "{corrected:?}");
        }
    }

    #[test]
    fn the_mark_is_where_accuracy_leaves_chance_for_good() {
        let of = |p: &[f64]| curve(&p.iter().map(|&p| score(p, 0.5, -1.0)).collect::<Vec<_>>()).mark;
        assert_eq!(of(&[0.5, 1e-5, 0.4, 1e-4, 1e-6]), Some(3), "the second fell back");
        assert_eq!(of(&[0.5, 0.3, 0.02]), None, "one of three at 0.02 is 0.06 once corrected");
        assert_eq!(of(&[1e-9, 1e-9]), Some(0));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn a_rung_is_above_chance_only_with_all_of_its_seeds() {
        let [good, bad] = [score(1e-9, 0.9, -1.0), score(0.6, 0.5, -1.0)];
        let of = |second| {
            let one = |score| Scored { name: "a", group: "a".into(), flops: 1.0, score };
            rise(&[one(&good), one(second)]).mark
        };
        assert_eq!((of(&good), of(&bad)), (Some(0), None));
    }

    #[test]
    fn a_leap_of_accuracy_alone_is_the_metrics() {
        let accuracy = [0.25, 0.25, 0.26, 0.9];
        let of = |likelihood: [f64; 4]| {
            let scores: Vec<Score> = accuracy
                .iter()
                .zip(likelihood)
                .map(|(&accuracy, likelihood)| {
                    score(if accuracy > 0.5 { 1e-9 } else { 0.5 }, accuracy, likelihood)
                })
                .collect();
            curve(&scores).verdict
        };
        assert!(of([-4.0, -3.0, -2.0, -1.0]).contains("the leap is the metric's"));
        assert!(of([-4.0, -3.9, -3.8, -1.0]).contains("both leap"));
        assert!(of([-4.0, -3.9, -3.8, -4.1]).contains("likelihood does not rise"));
    }
}
