//! Which of some answers a model takes: the likeliest continuation, or the class it gives.

use super::examples::Asked;
use super::subject::{Continuation, Subject};
use super::{Error, Measured, Outcome, Result, Task};
use crate::evaluate::{Classifier, probabilities};
use crate::exchange::Opened;
use crate::metrics::calibration::{brier, reliability};
use crate::metrics::classes::{macro_f1, matthews};
use crate::model::Labels;
use crate::train::Target;
use crate::train::lesson::Classes;
use std::path::Path;

/// Bins of confidence.
const BINS: usize = 10;

/// Log-likelihoods of the choices of each row.
fn likelihoods(task: &Task, subject: &mut Subject) -> Result<Vec<Vec<f64>>> {
    let (mut all, mut rows) = (vec![], vec![]);
    for (number, row) in task.examples.rows.iter().enumerate() {
        for choice in &row.choices {
            let follows = format!("{}{choice}", task.file.delimiter);
            let continuation: Continuation = subject.continuation(&row.prompt, &follows)?;
            all.push(continuation);
            rows.push(number);
        }
    }
    let place = |at: usize| task.examples.rows[rows[at]].place(&task.file);
    let flat = subject.likelihoods(&all, &place)?;
    let mut found = vec![vec![]; task.examples.rows.len()];
    rows.iter().zip(flat).for_each(|(&row, likelihood)| found[row].push(likelihood));
    Ok(found)
}

/// The first of the largest.
fn largest(numbers: &[f64]) -> usize {
    let better = |best: usize, at: usize| if numbers[at] > numbers[best] { at } else { best };
    (0..numbers.len()).fold(0, better)
}

/// Whether the likeliest choice is right: as it is, `acc`, and by its characters, `acc_norm`.
pub(super) fn right_choices(likelihoods: &[f64], choices: &[String], right: usize) -> [bool; 2] {
    // A choice without a character is as long as one with one.
    let length = |choice: &String| choice.chars().count().max(1) as f64;
    let by_length: Vec<f64> =
        likelihoods.iter().zip(choices).map(|(sum, choice)| sum / length(choice)).collect();
    [largest(likelihoods) == right, largest(&by_length) == right]
}

/// What a model made of one question with choices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// Whether the likeliest choice is right.
    pub is_right: bool,
    /// The same, with likelihoods by their choices' characters.
    pub is_right_by_length: bool,
    /// Logarithm of the right choice's probability, in nats.
    pub likelihood: f64,
    /// Characters of the right choice, at least one.
    pub characters: usize,
    /// Share of the right choice in the probabilities of all choices.
    pub share: f64,
}

/// Puts the questions to a model that predicts text.
pub(super) fn answers(task: &Task, subject: &mut Subject) -> Result<Vec<Answer>> {
    let found = likelihoods(task, subject)?;
    let of = |(row, logs): (&Asked, &Vec<f64>)| {
        let [is_right, is_right_by_length] = right_choices(logs, &row.choices, row.right);
        let (likelihood, share) = (logs[row.right], shares_of(logs)[row.right]);
        let characters = row.choices[row.right].chars().count().max(1);
        Answer { is_right, is_right_by_length, likelihood, characters, share }
    };
    Ok(task.examples.rows.iter().zip(&found).map(of).collect())
}

/// multiple-choice: `acc` and `acc_norm`, as lm-evaluation-harness counts them.
pub fn measure(task: &Task, subject: &mut Subject) -> Result<Outcome> {
    let answers = answers(task, subject)?;
    let share = |name: &str, is_right: fn(&Answer) -> bool| {
        Measured::mean(name, answers.iter().map(|answer| f64::from(u8::from(is_right(answer)))))
    };
    let measured = vec![share("acc", |a| a.is_right), share("acc_norm", |a| a.is_right_by_length)];
    Ok(Outcome { measured, segments: "questions".into(), told: None })
}

/// classification: by the classes of a model that has some, or by the likeliest of the labels.
pub fn classify(task: &Task, opened: Opened, path: &Path, target: Target, batch: usize) -> Result<Outcome> {
    let classes = Classes::of(opened.family.as_ref());
    let (shares, right, count) = match (&task.file.labels, classes) {
        (Some(_), None) => return by_labels(task, &mut Subject::new(opened, path, target, batch)?),
        (_, Some(classes)) => by_classes(task, &classes, opened, path, target, batch)?,
        (None, None) => {
            let reason =
                "`labels` is missing, which a model that predicts text needs: what it may say for each class";
            return Err(Error::Task { path: task.file.path.clone(), reason: reason.into() });
        }
    };
    Ok(Outcome { measured: figures(&shares, &right, count), segments: "texts".into(), told: None })
}

/// classification by the likeliest of the labels, which the task's file has.
pub fn by_labels(task: &Task, subject: &mut Subject) -> Result<Outcome> {
    let found = likelihoods(task, subject)?;
    let right: Vec<usize> = task.examples.rows.iter().map(|row| row.right).collect();
    let shares: Vec<Vec<f64>> = found.iter().map(|logs| shares_of(logs)).collect();
    let count = task.file.labels.as_ref().map_or(0, Vec::len);
    Ok(Outcome { measured: figures(&shares, &right, count), segments: "texts".into(), told: None })
}

type Answered = (Vec<Vec<f64>>, Vec<usize>, usize);

fn by_classes(
    task: &Task,
    classes: &Classes,
    opened: Opened,
    path: &Path,
    target: Target,
    batch: usize,
) -> Result<Answered> {
    if classes.labels != Labels::One {
        let reason = "a model of which one class is right is needed, this one gives several or numbers";
        return Err(Error::Task { path: task.file.path.clone(), reason: reason.into() });
    }
    let mut right = vec![];
    for row in &task.examples.rows {
        let got = match &task.file.labels {
            Some(labels) => &labels[row.right],
            None => &row.answers[0],
        };
        let named = classes.names.iter().position(|name| name == got);
        let at = named.or(got.parse().ok().filter(|at| *at < classes.names.len()));
        let (path, line) = row.place(&task.file);
        let none = || Error::Answer { path, line, got: got.clone(), choices: classes.names.len() };
        right.push(at.ok_or_else(none)?);
    }
    let mut classifier = Classifier::new(opened, path, target, batch, None)?;
    let texts: Vec<_> = task.examples.rows.iter().map(|row| (row.prompt.as_str(), None)).collect();
    let scores = classifier.classify(&texts)?;
    let shares = scores.iter().map(|scores| probabilities(Labels::One, scores)).collect();
    Ok((shares, right, classes.names.len()))
}

/// Shares of one that logarithms stand for.
fn shares_of(logs: &[f64]) -> Vec<f64> {
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let all: Vec<f64> = logs.iter().map(|log| (log - most).exp()).collect();
    let sum: f64 = all.iter().sum();
    all.iter().map(|share| share / sum).collect()
}

/// Accuracy, F1, Matthews' coefficient, and how honest confidences are.
fn figures(shares: &[Vec<f64>], right: &[usize], classes: usize) -> Vec<Measured> {
    let guesses: Vec<usize> = shares.iter().map(|shares| largest(shares)).collect();
    let pairs: Vec<[usize; 2]> = right.iter().zip(&guesses).map(|(&right, &guess)| [right, guess]).collect();
    let of_pair = |&[right, guess]: &[usize; 2]| {
        let mut cells = vec![0.0; classes * classes];
        cells[right * classes + guess] = 1.0;
        cells
    };
    let cells: Vec<Vec<f64>> = pairs.iter().map(of_pair).collect();
    let unfolded = move |sums: &[f64]| -> Vec<[usize; 2]> {
        let pair =
            |(at, count): (usize, &f64)| std::iter::repeat_n([at / classes, at % classes], *count as usize);
        sums.iter().enumerate().flat_map(pair).collect()
    };
    let confidence = |at: usize| (shares[at][guesses[at]], guesses[at] == right[at]);
    let binned = |at: usize| {
        let bins = reliability(&[confidence(at)], BINS);
        bins.iter().flat_map(|bin| [bin.count as f64, bin.confidence, bin.accuracy]).collect()
    };
    let error = |sums: &[f64]| {
        let all: f64 = sums.chunks(3).map(|bin| bin[0]).sum();
        sums.chunks(3).map(|bin| (bin[2] - bin[1]).abs()).sum::<f64>() / all
    };
    let brier = (0..right.len()).map(|at| brier(&[(shares[at].clone(), right[at])]));
    vec![
        Measured::mean("accuracy", pairs.iter().map(|[right, guess]| f64::from(u8::from(right == guess)))),
        Measured::new("macro_f1", cells.clone(), move |sums| macro_f1(&unfolded(sums), classes)),
        Measured::new("matthews", cells, move |sums| matthews(&unfolded(sums), classes)),
        Measured::new("calibration_error", (0..right.len()).map(binned).collect(), error).error(),
        Measured::mean("brier", brier).error(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::calibration::expected_error;

    #[test]
    fn a_long_choice_is_likelier_by_its_characters_alone() {
        let choices = ["no".to_string(), "certainly".to_string()];
        assert_eq!(right_choices(&[-2.0, -4.5], &choices, 1), [false, true]);
        assert_eq!(right_choices(&[-2.0, -2.0], &choices, 0), [true, false]);
    }

    #[test]
    fn figures_of_guesses_are_those_of_the_plain_functions() {
        let shares = [vec![0.9, 0.1], vec![0.4, 0.6], vec![0.7, 0.3]];
        let right = [0, 1, 1];
        let pairs = [[0, 0], [1, 1], [1, 0]];
        let bins = reliability(&[(0.9, true), (0.6, true), (0.7, false)], BINS);
        let expected = [
            2.0 / 3.0,
            macro_f1(&pairs, 2),
            matthews(&pairs, 2),
            expected_error(&bins),
            (0.02 + 0.32 + 0.98) / 3.0,
        ];
        for (measured, expected) in figures(&shares, &right, 2).iter().zip(expected) {
            let got = (measured.score)(&crate::metrics::sums(&measured.segments));
            assert!((got - expected).abs() < 1e-12, "{}: {got}, expected {expected}", measured.name);
        }
    }
}
