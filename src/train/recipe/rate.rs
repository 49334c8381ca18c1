//! The learning rate of a recipe: a number, or a table that names a curve.
//!
//! With a curve named, what is not written has its textbook value: no warm-up, floor zero. With none named, the whole
//! default stands, and the keys that are written change it.

use toml::Value;

use super::error::Error;
use super::read::{Given, Section};
use crate::train::schedule::{Curve, Schedule, WarmupRule};

/// The keys each curve knows besides `curve` and `peak`.
const CURVES: &[(&str, &[&str])] = &[
    ("constant", &["warmup", "warmup_rule"]),
    ("linear", &["warmup", "warmup_rule", "floor", "until", "power"]),
    ("cosine", &["warmup", "warmup_rule", "floor", "until", "cycles"]),
    ("cosine-restarts", &["warmup", "warmup_rule", "floor", "every", "growth"]),
    ("step", &["warmup", "warmup_rule", "floor", "factor", "every"]),
    ("milestones", &["warmup", "warmup_rule", "factor", "at"]),
    ("exponential", &["warmup", "warmup_rule", "floor", "factor"]),
    ("one-cycle", &["warmup", "warmup_rule", "start", "floor", "until", "rise"]),
    ("inverse-sqrt", &["warmup", "warmup_rule", "floor", "timescale"]),
    ("plateau", &["warmup", "warmup_rule", "floor", "factor", "patience", "threshold", "cooldown"]),
];

const PEAK: f64 = 1e-3;

/// Reads `train.learning_rate`.
pub(super) fn learning_rate(train: &Section, steps: u64) -> Result<Schedule, Error> {
    match train.value("learning_rate") {
        None | Some(Value::Table(_)) => {}
        Some(Value::Integer(_) | Value::Float(_)) => {
            return Ok(Schedule::constant(positive(train.number("learning_rate")?)?.or(PEAK)));
        }
        Some(_) => return Err(train.wrong_type("learning_rate", "a number or a table with a curve")),
    }
    let any: Vec<&str> = CURVES.iter().flat_map(|(_, keys)| keys.iter().copied()).collect();
    let section = train.inner("learning_rate", &[&["curve", "peak"], &any[..]].concat())?;
    let named = section.has("curve");
    let (curve, keys) =
        section.word("curve", &CURVES.iter().map(|c| (c.0, *c)).collect::<Vec<_>>())?.or(CURVES[2]);
    let section = train.inner("learning_rate", &[&["curve", "peak"], keys].concat())?;

    let peak = positive(section.number("peak")?)?.or(PEAK);
    let (warmup, floor) = if named { (0, 0.0) } else { ((steps / 20).min(100), peak / 10.0) };
    let rules = [("nanogpt", WarmupRule::Nanogpt), ("huggingface", WarmupRule::Huggingface)];
    let warmup = section.count("warmup")?.or(warmup);
    let reader = Reader { section: &section, peak, floor, steps, warmup };
    Ok(Schedule {
        peak,
        warmup,
        warmup_rule: section.word("warmup_rule", &rules)?.or(WarmupRule::Nanogpt),
        curve: reader.curve(curve)?,
    })
}

struct Reader<'s, 'r> {
    section: &'s Section<'r>,
    peak: f64,
    floor: f64,
    steps: u64,
    warmup: u64,
}

impl Reader<'_, '_> {
    fn curve(&self, name: &str) -> Result<Curve, Error> {
        let floor = self.floor(self.floor)?;
        Ok(match name {
            "constant" => Curve::Constant,
            "linear" => Curve::Linear { floor, until: self.until()?, power: self.power()? },
            "cosine" => Curve::Cosine { floor, until: self.until()?, cycles: self.one("cycles", Some(1))? },
            "cosine-restarts" => Curve::CosineRestarts {
                floor,
                every: self.one("every", None)?,
                growth: self.one("growth", Some(1))?,
            },
            "step" => Curve::Step { floor, factor: self.factor(None)?, every: self.one("every", None)? },
            "milestones" => Curve::Milestones {
                factor: self.factor(None)?,
                at: self.section.counts("at")?.need("the steps at which to cut: at = [1000, 1500]")?,
            },
            "exponential" => Curve::Exponential { floor, factor: self.factor(None)? },
            "one-cycle" => self.one_cycle()?,
            "inverse-sqrt" => {
                // Without a warm-up to take the scale from, ten thousand steps, as in transformers.
                let usual = if self.warmup > 0 { self.warmup } else { 10_000 };
                Curve::InverseSqrt { floor, timescale: self.one("timescale", Some(usual))? }
            }
            _ => self.plateau(floor)?,
        })
    }

    /// Defaults are PyTorch's: start at a 25th of the peak, end at a ten-thousandth of the start.
    fn one_cycle(&self) -> Result<Curve, Error> {
        let warmup = self.section.count("warmup")?;
        warmup.must(|&steps| steps == 0, "0", "one-cycle has a warm-up of its own: set `rise`")?;
        let start = self.section.number("start")?;
        let expected = format!("above zero and at most the peak, {}", self.peak);
        let fits = |&start: &f64| start > 0.0 && start <= self.peak;
        let start = start.must(fits, expected, "the usual value is a 25th of the peak")?.or(self.peak / 25.0);
        let rise = self.section.number("rise")?;
        let inside = |&rise: &f64| rise > 0.0 && rise < 1.0;
        let rise = rise.must(inside, "between 0 and 1", "the usual value is 0.3")?.or(0.3);
        Ok(Curve::OneCycle { start, floor: self.floor(start / 1e4)?, until: self.until()?, rise })
    }

    fn plateau(&self, floor: f64) -> Result<Curve, Error> {
        let threshold = self.section.number("threshold")?;
        let share = |value: &f64| (0.0..1.0).contains(value);
        Ok(Curve::Plateau {
            floor,
            factor: self.factor(Some(0.1))?,
            patience: self.section.count("patience")?.or(10),
            threshold: threshold.must(share, "from 0 to below 1", "the usual value is 1e-4")?.or(1e-4),
            cooldown: self.section.count("cooldown")?.or(0),
        })
    }

    fn floor(&self, usual: f64) -> Result<f64, Error> {
        let expected = format!("from 0 to the peak, {}", self.peak);
        let fits = |floor: &f64| (0.0..=self.peak).contains(floor);
        Ok(self.section.number("floor")?.must(fits, expected, "a tenth of the peak is common")?.or(usual))
    }

    fn until(&self) -> Result<u64, Error> {
        self.one("until", Some(self.steps))
    }

    fn power(&self) -> Result<f64, Error> {
        let power = self.section.number("power")?;
        Ok(power.must(|&power| power > 0.0, "above zero", "1 is a straight line")?.or(1.0))
    }

    fn factor(&self, usual: Option<f64>) -> Result<f64, Error> {
        let factor = self.section.number("factor")?;
        let fits = |&factor: &f64| factor > 0.0 && factor < 1.0;
        let factor = factor.must(fits, "between 0 and 1", "0.5 halves the rate")?;
        factor.or_need(usual, "what the rate is multiplied by: factor = 0.5")
    }

    fn one(&self, key: &str, usual: Option<u64>) -> Result<u64, Error> {
        super::resolve::at_least_one(self.section, key, "counted in steps")?
            .or_need(usual, "the number of steps between changes")
    }
}

fn positive(rate: Given<f64>) -> Result<Given<f64>, Error> {
    rate.must(|&rate| rate > 0.0, "above zero", "1e-3 suits a small model, 3e-4 a larger one")
}
