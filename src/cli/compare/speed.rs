//! How fast models read and continue texts, measured in turn so that what else the machine does meets them all alike.

use super::Reports;
use crate::cli::bench::Roofs;
use crate::generate::{self, Work, Writer};
use crate::model::{Family, Weights};
use crate::train::Target;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Tokens that are read at most: the prompt.
const MOST_READ: usize = 256;
/// Tokens that are read one by one, each behind the one before.
const STEPS: usize = 16;
/// Share of the device's memory that models may hold at once; beyond it each is brought there anew in every round.
const MOST_HELD: f64 = 0.6;
/// How long choosing kernels may take for one model.
const CHOOSING: Duration = Duration::from_secs(30);

/// Repeated measurements: the middle one, and the interval that holds the middle of all possible ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The median.
    pub median: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Measurements.
    pub count: usize,
}

impl Sample {
    /// Of measurements in any order, of which there is one at least.
    ///
    /// The ends are measured values whose ranks hold the true median in 95 of 100 cases; of fewer than six measurements the least
    /// and the largest, which then hold it less often.
    pub fn of(mut measured: Vec<f64>) -> Sample {
        measured.sort_by(f64::total_cmp);
        let count = measured.len();
        let middle = (measured[(count - 1) / 2] + measured[count / 2]) / 2.0;
        let outer = outer_ranks(count);
        Sample { median: middle, low: measured[outer], high: measured[count - 1 - outer], count }
    }

    /// Each end and the middle by a falling function, such as a rate by a time.
    pub fn falling(&self, of: impl Fn(f64) -> f64) -> Sample {
        Sample { median: of(self.median), low: of(self.high), high: of(self.low), count: self.count }
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({ "median": self.median, "interval": [self.low, self.high], "rounds": self.count })
    }
}

/// Measurements to leave out at either end: as many as still leave the median inside 95 times in a hundred.
fn outer_ranks(count: usize) -> usize {
    let (mut share, mut sum, mut rank) = (0.5f64.powi(count as i32), 0.0, 0);
    while rank < count / 2 {
        sum += share;
        if sum > 0.025 {
            break;
        }
        share *= (count - rank) as f64 / (rank + 1) as f64;
        rank += 1;
    }
    rank.saturating_sub(1)
}

/// What one kind of pass took.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Seconds for a token.
    pub seconds: Sample,
    /// How many times as fast as the reference, round by round; none for the reference.
    pub gain: Option<Sample>,
    /// Share of the multiply roof.
    pub of_multiply: f64,
    /// Share of the copy roof.
    pub of_copy: f64,
}

impl Pace {
    /// Tokens in a second.
    pub fn rate(&self) -> Sample {
        self.seconds.falling(|seconds| 1.0 / seconds)
    }

    /// Faster than the reference, beyond what chance explains.
    pub fn wins(&self) -> bool {
        self.gain.as_ref().is_some_and(|gain| gain.low > 1.0)
    }

    /// Slower than the reference, beyond what chance explains.
    pub fn loses(&self) -> bool {
        self.gain.as_ref().is_some_and(|gain| gain.high < 1.0)
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "ms_per_token": { "median": 1e3 * self.seconds.median, "interval": [1e3 * self.seconds.low, 1e3 * self.seconds.high] },
            "tokens_per_second": self.rate().json(), "gain": self.gain.as_ref().map(Sample::json),
            "of_multiply": self.of_multiply, "of_copy": self.of_copy,
        })
    }
}

/// A model's speed and memory.
#[derive(Clone, Debug)]
pub struct Speed {
    /// Reading a prompt.
    pub prefill: Pace,
    /// Continuing it token by token.
    pub decode: Pace,
    /// Bytes of device memory held meanwhile.
    pub memory_bytes: u64,
}

/// What is timed.
#[derive(Clone, Debug)]
pub struct Course {
    /// The prompt.
    tokens: Vec<u32>,
    /// Tokens continued one by one.
    steps: usize,
    rounds: usize,
}

impl Course {
    /// Over the beginning of a text, which fills a window.
    pub fn new(text: &[u32], context: usize, rounds: usize) -> Course {
        let tokens: Vec<u32> = text[..context.min(MOST_READ).min(text.len())].to_vec();
        let steps = STEPS.min(tokens.len() / 2).max(1);
        Course { tokens, steps, rounds }
    }

    /// In words.
    pub fn describe(&self) -> String {
        format!(
            "one sequence; prefill: {} tokens; decode: {} tokens one by one behind {}, scores brought back each time; {} rounds in \
             turn after one to warm up",
            self.tokens.len(),
            self.steps,
            self.tokens.len() - self.steps,
            self.rounds
        )
    }
}

/// One model in the course of the measurement.
struct Runner<'a> {
    family: &'a dyn Family,
    weights: &'a Weights,
    kept: Option<Writer>,
    memory_bytes: u64,
    works: [Work; 2],
    prefill: Vec<f64>,
    decode: Vec<f64>,
}

impl Runner<'_> {
    /// A writer whose kernels are those that are fastest here.
    fn writer(&self, target: &Target, course: &Course, told: &mut Reports) -> generate::Result<Writer> {
        let start = Instant::now();
        loop {
            let writer = Writer::new(self.family, self.weights, None, target, course.tokens.len())?;
            let reports = target.told();
            let measured = reports.iter().any(|report| report.contains("measured the kernels"));
            if !measured || start.elapsed() > CHOOSING {
                told.extend(reports);
                return Ok(writer);
            }
        }
    }

    /// Reads the prompt, then its end once more token by token; gives seconds for a token of both.
    fn once(writer: &mut Writer, course: &Course, round: usize) -> generate::Result<[f64; 2]> {
        let mut tokens = course.tokens.clone();
        // What a text shares with the one before is not read again: another first token makes it another text.
        if round % 2 == 1 {
            tokens[0] = u32::from(tokens[0] == 0);
        }
        let start = Instant::now();
        writer.logits(&tokens)?;
        let prefill = start.elapsed().as_secs_f64() / tokens.len() as f64;
        let start = Instant::now();
        for count in tokens.len() - course.steps + 1..=tokens.len() {
            writer.logits(&tokens[..count])?;
        }
        Ok([prefill, start.elapsed().as_secs_f64() / course.steps as f64])
    }

    fn run(
        &mut self,
        target: &Target,
        course: &Course,
        round: Option<usize>,
        told: &mut Reports,
    ) -> generate::Result<()> {
        let (was_kept, number) = (self.kept.is_some(), round.map_or(0, |round| round + 1));
        let mut writer = match self.kept.take() {
            Some(writer) => writer,
            None => {
                let mut writer = self.writer(target, course, told)?;
                Self::once(&mut writer, course, number + 1)?;
                writer
            }
        };
        let [prefill, decode] = Self::once(&mut writer, course, number)?;
        if round.is_some() {
            self.prefill.push(prefill);
            self.decode.push(decode);
        }
        self.kept = was_kept.then_some(writer);
        Ok(())
    }
}

/// Times models in turn; the first is the reference. Roofs may be set later, see [`set_roofs`].
pub fn measure(
    models: &[(&dyn Family, &Weights)],
    target: &Target,
    course: &Course,
    told: &mut Reports,
) -> generate::Result<(Vec<Speed>, Vec<[Work; 2]>)> {
    let most = target.memory_bytes().map_or(f64::INFINITY, |bytes| MOST_HELD * bytes as f64);
    let (mut runners, mut held) = (vec![], 0.0);
    for &(family, weights) in models {
        let mut runner = Runner {
            family,
            weights,
            kept: None,
            memory_bytes: 0,
            works: [Work::default(); 2],
            prefill: vec![],
            decode: vec![],
        };
        let writer = runner.writer(target, course, told)?;
        (runner.memory_bytes, runner.works) = (writer.memory_bytes(), writer.passes());
        held += runner.memory_bytes as f64;
        runner.kept = (held <= most).then_some(writer);
        runners.push(runner);
    }
    for round in std::iter::once(None).chain((0..course.rounds).map(Some)) {
        // Another begins each time: nobody always comes behind the same neighbour.
        let (count, first) = (runners.len(), round.unwrap_or(0));
        for number in 0..count {
            runners[(number + first) % count].run(target, course, round, told)?;
        }
    }
    let gains = |own: &[f64], first: &[f64]| Sample::of(first.iter().zip(own).map(|(a, b)| a / b).collect());
    let speed = |(number, runner): (usize, &Runner)| {
        let pace = |own: &[f64], first: &[f64]| Pace {
            seconds: Sample::of(own.to_vec()),
            gain: (number > 0).then(|| gains(own, first)),
            of_multiply: 0.0,
            of_copy: 0.0,
        };
        Speed {
            prefill: pace(&runner.prefill, &runners[0].prefill),
            decode: pace(&runner.decode, &runners[0].decode),
            memory_bytes: runner.memory_bytes,
        }
    };
    let speeds = runners.iter().enumerate().map(speed).collect();
    Ok((speeds, runners.iter().map(|runner| runner.works).collect()))
}

/// Sets what share of the device's best rates each pass reached.
pub fn set_roofs(speeds: &mut [Speed], works: &[[Work; 2]], roofs: &Roofs) {
    for (speed, works) in speeds.iter_mut().zip(works) {
        for (pace, work) in [&mut speed.prefill, &mut speed.decode].into_iter().zip(works) {
            let per_second = 1.0 / (pace.seconds.median * work.tokens as f64);
            pace.of_multiply = work.flops * per_second / roofs.multiply;
            pace.of_copy = work.bytes * per_second / roofs.copy;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_a_median_leaves_out_as_many_as_the_binomial_distribution_allows() {
        // From tables of the sign test: 6 to 8 measurements leave none out, 9 to 11 one, 12 to 14 two, 20 five, 25 seven.
        for (count, expected) in [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (11, 1), (12, 2), (20, 5), (25, 7)]
        {
            assert_eq!(outer_ranks(count), expected, "{count}");
        }
        let sample = Sample::of((0..9).rev().map(f64::from).collect());
        assert_eq!((sample.median, sample.low, sample.high, sample.count), (4.0, 1.0, 7.0, 9));
        let even = Sample::of(vec![1.0, 2.0, 4.0, 8.0]);
        assert_eq!((even.median, even.low, even.high), (3.0, 1.0, 8.0));
        let rate = even.falling(|x| 1.0 / x);
        assert_eq!((rate.low, rate.high), (0.125, 1.0));
    }

    #[test]
    fn a_course_fits_a_short_text_and_a_small_context() {
        let text: Vec<u32> = (0..1000).collect();
        let course = Course::new(&text, 16, 3);
        assert_eq!((course.tokens.len(), course.steps), (16, 8));
        let course = Course::new(&text, 4096, 3);
        assert_eq!((course.tokens.len(), course.steps), (256, 16));
        let course = Course::new(&text[..2], 16, 3);
        assert_eq!((course.tokens.len(), course.steps), (2, 1));
    }
}
