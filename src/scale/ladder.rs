//! `[ladder]`: which sizes are trained, on how many tokens, and at what rate.

use super::sizes::{MOST, Range, Size};
use super::{Error, Result};
use crate::train::recipe::RawRecipe;
use crate::train::schedule::{Curve, Schedule};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// Tokens for each parameter, as Hoffmann et al. (2022) found best.
pub const CHINCHILLA: f64 = 20.0;

/// A number, or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, or a list of numbers")]
pub enum Numbers {
    /// One.
    One(f64),
    /// Each in turn.
    Several(Vec<f64>),
}

impl Numbers {
    fn all(&self) -> &[f64] {
        match self {
            Numbers::One(number) => std::slice::from_ref(number),
            Numbers::Several(numbers) => numbers,
        }
    }
}

/// Which parameters are N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counted {
    /// All of them, as Hoffmann et al. count.
    #[default]
    All,
    /// All but tables of tokens and positions and a head of its own, as Kaplan et al. count.
    WithoutEmbeddings,
}

/// How the learning rate depends on the width.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RateRule {
    /// `rate * sqrt(reference / width)`.
    #[default]
    InverseSqrtWidth,
    /// `rate * reference / width`, as the maximal update parametrisation has it for hidden matrices.
    InverseWidth,
    /// The recipe's for all.
    Constant,
}

impl RateRule {
    /// What the recipe's rate, which is that of the reference, is multiplied by.
    pub fn factor(self, width: usize, reference: usize) -> f64 {
        let ratio = reference as f64 / width as f64;
        match self {
            RateRule::InverseSqrtWidth => ratio.sqrt(),
            RateRule::InverseWidth => ratio,
            RateRule::Constant => 1.0,
        }
    }
}

/// What becomes of a rung that is to read more tokens than there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MoreThanData {
    /// It reads the text again.
    #[default]
    Repeat,
    /// The study is refused.
    Refuse,
}

/// What becomes of the others when a rung fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// They go on.
    #[default]
    GoOn,
    /// The study stops.
    Stop,
}

/// The table `[ladder]`, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ladder {
    /// The recipe of all rungs, from the file's folder, where the file has no sections of one.
    pub recipe: Option<PathBuf>,
    /// Shapes.
    pub sizes: Vec<Size>,
    /// Or their ends.
    pub range: Option<Range>,
    /// Tokens each rung reads for each of its parameters. Absent: 20, unless `tokens` is there.
    pub tokens_per_parameter: Option<Numbers>,
    /// Tokens each rung reads, whatever its size.
    pub tokens: Option<Numbers>,
    /// Seeds with which each is trained. Empty: the recipe's.
    pub seeds: Vec<u64>,
    /// Which parameters are N.
    pub parameters: Counted,
    /// How the learning rate depends on the width.
    pub learning_rate: RateRule,
    /// The width whose rate is the recipe's. Absent: the recipe's own width.
    pub reference_width: Option<usize>,
    /// What becomes of a rung that is to read more tokens than there are.
    pub more_than_data: MoreThanData,
    /// What becomes of the others when a rung fails.
    pub failure: OnFailure,
    /// Tasks that are put to each rung, from the file's folder.
    pub tasks: Vec<PathBuf>,
}

/// How many tokens a rung reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// So many for each parameter.
    PerParameter(f64),
    /// So many.
    Tokens(f64),
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::PerParameter(ratio) => write!(f, "r{ratio}"),
            Budget::Tokens(tokens) => write!(f, "t{tokens}"),
        }
    }
}

/// A study's file: a recipe, and a ladder in it or beside it.
pub struct StudyFile {
    /// Where it was read.
    pub path: PathBuf,
    /// The recipe of all rungs, without a size.
    pub raw: RawRecipe,
    /// The ladder.
    pub ladder: Ladder,
}

#[derive(Deserialize)]
struct OnlyLadder {
    ladder: Option<Ladder>,
}

impl StudyFile {
    /// Reads the file, and the recipe that it names.
    pub fn read(path: &Path) -> Result<StudyFile> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::File { path: path.into(), source })?;
        let refuse = |reason: String| Error::Ladder { path: path.into(), reason };
        let mut raw = RawRecipe::parse(&text, &path.display().to_string())?;
        let mut ladder = toml::from_str::<OnlyLadder>(&text)
            .map_err(|error| refuse(error.to_string().trim_end().to_string()))?
            .ladder
            .unwrap_or_default();
        raw.remove("ladder");
        let folder = path.parent().unwrap_or(Path::new(""));
        if let Some(recipe) = &ladder.recipe {
            if let Some(section) = raw.sections().next() {
                return Err(refuse(format!(
                    "[{section}] is beside ladder.recipe\n  hint: a study has its recipe in this file or in another one, not in both"
                )));
            }
            raw = RawRecipe::load(&folder.join(recipe))?;
        }
        ladder.tasks = ladder.tasks.iter().map(|task| folder.join(task)).collect();
        Ok(StudyFile { path: path.into(), raw, ladder })
    }

    /// Refuses a ladder that says nothing, or two things.
    pub fn check(&self) -> Result<()> {
        self.ladder.check().map_err(|reason| Error::Ladder { path: self.path.clone(), reason })
    }
}

impl Ladder {
    fn check(&self) -> Result<(), String> {
        match (self.sizes.is_empty(), &self.range) {
            (true, None) => {
                return Err("the ladder has no rungs\n  hint: [ladder] sizes = [\"16x1x1\", \"32x2x2\", ..] or range = { from = 5e3, to = 5e5, rungs = 6 }; or --sizes, --range".into());
            }
            (false, Some(_)) => {
                return Err("`sizes` and `range` are both there\n  hint: write one of them".into());
            }
            _ => {}
        }
        for (at, size) in self.sizes.iter().enumerate() {
            if self.sizes[..at].contains(size) {
                return Err(format!(
                    "size {size} is there twice\n  hint: several seeds train one size again"
                ));
            }
        }
        if let Some(range) = &self.range {
            range.check()?;
        }
        if self.tokens.is_some() && self.tokens_per_parameter.is_some() {
            return Err(
                "`tokens` and `tokens_per_parameter` are both there\n  hint: write one of them".into()
            );
        }
        for (key, numbers) in [("tokens", &self.tokens), ("tokens_per_parameter", &self.tokens_per_parameter)]
        {
            let Some(numbers) = numbers else { continue };
            each_once(key, numbers.all())?;
            if let Some(wrong) = numbers.all().iter().find(|number| !(**number > 0.0 && **number <= MOST)) {
                return Err(format!("{key} is {wrong}, expected a number above zero, at most {MOST:e}"));
            }
        }
        if self.reference_width == Some(0) {
            return Err("reference_width is 0, expected 1 or more".into());
        }
        let seeds: Vec<f64> = self.seeds.iter().map(|&seed| seed as f64).collect();
        if seeds.is_empty() { Ok(()) } else { each_once("seeds", &seeds) }
    }

    /// How many tokens rungs read.
    pub fn budgets(&self) -> Vec<Budget> {
        match (&self.tokens, &self.tokens_per_parameter) {
            (Some(tokens), _) => tokens.all().iter().map(|&tokens| Budget::Tokens(tokens)).collect(),
            (None, Some(ratios)) => ratios.all().iter().map(|&ratio| Budget::PerParameter(ratio)).collect(),
            (None, None) => vec![Budget::PerParameter(CHINCHILLA)],
        }
    }
}

fn each_once(key: &str, numbers: &[f64]) -> Result<(), String> {
    if numbers.is_empty() {
        return Err(format!("{key} is an empty list, expected one number or more"));
    }
    match numbers.iter().enumerate().find(|(at, number)| numbers[..*at].contains(number)) {
        Some((_, number)) => Err(format!("{key} has {number} twice, expected each once")),
        None => Ok(()),
    }
}

/// A schedule for another number of steps and another peak: every rate is multiplied, every number of steps keeps its share of the run.
pub fn stretched(schedule: &Schedule, factor: f64, from: u64, to: u64) -> Schedule {
    let steps = |count: u64| (count as f64 * to as f64 / from as f64).round() as u64;
    let some = |count: u64| steps(count).max(1);
    let mut curve = schedule.curve.clone();
    match &mut curve {
        Curve::Constant | Curve::Milestones { .. } => {}
        Curve::Linear { floor, .. }
        | Curve::Cosine { floor, .. }
        | Curve::CosineRestarts { floor, .. }
        | Curve::Step { floor, .. }
        | Curve::Exponential { floor, .. }
        | Curve::InverseSqrt { floor, .. }
        | Curve::Plateau { floor, .. } => *floor *= factor,
        Curve::OneCycle { start, floor, .. } => {
            *start *= factor;
            *floor *= factor;
        }
    }
    match &mut curve {
        Curve::Linear { until, .. } | Curve::Cosine { until, .. } | Curve::OneCycle { until, .. } => {
            *until = some(*until)
        }
        Curve::CosineRestarts { every, .. } | Curve::Step { every, .. } => *every = some(*every),
        Curve::Milestones { at, .. } => at.iter_mut().for_each(|at| *at = steps(*at)),
        Curve::Exponential { factor, .. } => *factor = factor.powf(from as f64 / to as f64),
        Curve::InverseSqrt { timescale, .. } => *timescale = some(*timescale),
        Curve::Constant | Curve::Plateau { .. } => {}
    }
    Schedule {
        peak: schedule.peak * factor,
        warmup: steps(schedule.warmup).min(to - 1),
        curve,
        ..schedule.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ladder(text: &str) -> Result<Ladder, String> {
        let ladder: Ladder = toml::from_str(text).map_err(|error| error.to_string())?;
        ladder.check().map(|()| ladder)
    }

    #[test]
    fn ladders_that_say_nothing_or_two_things_are_refused() {
        for (text, part) in [
            ("", "no rungs"),
            ("sizes = []", "no rungs"),
            ("sizes = [\"16x1x1\"]\nrange = { from = 1e3, to = 1e4 }", "both there"),
            (
                "sizes = [\"16x1x3\"]",
                "3 heads do not divide the width of 16\n  hint: a width of 15 or 18 does",
            ),
            ("sizes = [\"16x1\"]", "WIDTHxLAYERSxHEADS"),
            ("sizes = [\"0x1x1\"]", "WIDTHxLAYERSxHEADS"),
            ("sizes = [\"16x1x1\", \"16x1x1\"]", "twice"),
            ("sizes = [\"16x1x1\"]\ntokens = []", "empty list"),
            ("sizes = [\"16x1x1\"]\ntokens = -3.0", "above zero"),
            ("sizes = [\"16x1x1\"]\ntokens = 1e5\ntokens_per_parameter = 3.0", "both there"),
            ("sizes = [\"16x1x1\"]\nseeds = [1, 1]", "twice"),
            ("size = [\"16x1x1\"]", "unknown field `size`"),
            ("range = { from = 1e5, to = 1e4 }", "the smaller first"),
            ("range = { from = 1e5, to = 1e40 }", "at most 1e15"),
            ("sizes = [\"16x1x1\"]\ntokens = 1e30", "at most 1e15"),
            ("sizes = [\"16x1x1\"]\ntokens = \"many\"", "a number, or a list of numbers"),
            ("range = { from = 1e3, to = 1e4, rungs = 1 }", "range.rungs is 1"),
        ] {
            let error = ladder(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_stretched_schedule_has_the_same_shape_over_another_number_of_steps() {
        let schedule = Schedule {
            warmup: 100,
            curve: Curve::Cosine { floor: 1e-4, until: 2000, cycles: 1 },
            ..Schedule::constant(1e-3)
        };
        let other = stretched(&schedule, 2.0, 2000, 200);
        assert_eq!((other.peak, other.warmup), (2e-3, 10));
        assert_eq!(other.curve, Curve::Cosine { floor: 2e-4, until: 200, cycles: 1 });
        let kept = Default::default();
        for share in [0.1, 0.5, 0.9] {
            let [long, short] = [(2000.0 * share) as u64, (200.0 * share) as u64];
            let ratio = other.rate(short, &kept) / schedule.rate(long, &kept);
            assert!((ratio - 2.0).abs() < 1e-6, "{ratio}");
        }
    }

    #[test]
    fn rules_of_rates_are_those_of_their_names() {
        assert_eq!(RateRule::InverseSqrtWidth.factor(16, 64), 2.0);
        assert_eq!(RateRule::InverseWidth.factor(16, 64), 4.0);
        assert_eq!(RateRule::Constant.factor(16, 64), 1.0);
    }
}
