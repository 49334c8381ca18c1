//! `kiln tune`: measures the kernels of a recipe's step anew.

use super::Usage;
use crate::train::Target;
use crate::train::job::{Job, Step};
use crate::train::recipe::RawRecipe;
use crate::train::trainer::Program;
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Measure the kernels of a recipe's step on an adapter anew, and remember the fastest of each operator.
///
/// Every start measures a little by itself and remembers it; this does it all at once. The environment variable KILN_TUNE
/// says what other commands do: `use` (remember and measure, the default), `off` (each operator's own preference) or
/// `force` (forget and measure).
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln tune recipe.toml\n  kiln tune --set train.batch=32 --device 1\n  kiln tune recipe.toml --seconds 120 --json\n  KILN_TUNE=off kiln train recipe.toml"
)]
pub struct Tune {
    /// The recipe; without one, the default.
    recipe: Option<PathBuf>,
    /// Change one value of the recipe; may be given again and again.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// gpu, an adapter's number, or part of its name. Overrides run.device.
    #[arg(long)]
    device: Option<String>,
    /// Most seconds to spend.
    #[arg(long, default_value_t = 20.0, value_name = "N", allow_negative_numbers = true)]
    seconds: f64,
    /// Print the choices as JSON.
    #[arg(long)]
    json: bool,
}

impl Tune {
    /// Measures and prints.
    pub fn run(self) -> anyhow::Result<()> {
        let Ok(budget) = Duration::try_from_secs_f64(self.seconds) else {
            return Err(Usage(format!("--seconds is {}, expected zero or more", self.seconds)).into());
        };
        let mut raw = match &self.recipe {
            Some(path) => RawRecipe::load(path)?,
            None => RawRecipe::default(),
        };
        self.set.iter().try_for_each(|set| raw.set(set))?;
        if let Some(device) = &self.device {
            raw.insert("run.device", toml::Value::String(device.clone()))?;
        }
        let mut recipe = raw.resolve()?;
        recipe.find_places()?.iter().for_each(|told| eprintln!("{told}"));
        let mut target = Target::open(&recipe.run.device)?;
        if target.is_host() {
            let text = "the host has one way to compute each operator: there is nothing to choose\n  hint: `kiln devices` lists the adapters";
            return Err(Usage(text.into()).into());
        }
        target.measure_anew(budget);
        let mut job = Job::prepare(recipe, None)?;
        if let Some(told) = job.settle(&target)? {
            eprintln!("{told}");
        }
        let Step { weights, settings, extent } = Step::new(&job.recipe, job.family.as_ref(), &job.beside)?;
        let build = Step::loss(&job.recipe, job.family.as_ref(), &job.beside, extent);
        let program = Program::new(&target, &weights, &build, &settings)?;
        for report in target.told() {
            eprintln!("kernels  {report}");
        }
        let mut choices = std::collections::BTreeMap::<&str, usize>::new();
        for (_, plan) in program.plans() {
            plan.dispatches.iter().for_each(|d| *choices.entry(&d.variant).or_default() += 1);
        }
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{:#}", json!({ "device": target.describe(), "dispatches": choices }))?;
        } else {
            writeln!(out, "adapter  {}", target.describe())?;
            for (variant, count) in choices {
                writeln!(out, "{count:>5} dispatches of {variant}")?;
            }
        }
        Ok(())
    }
}
