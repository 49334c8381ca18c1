//! `kiln scale`: a ladder of sizes trained on one text, and the laws of their losses.

mod page;
mod table;

use super::report::write_file;
use super::train::stop_on_interrupt;
use super::{Usage, count};
use crate::scale::emergence::{Examination, Rise, Scored, rise};
use crate::scale::ladder::{OnFailure, StudyFile};
use crate::scale::laws::{self, Finding, Observed};
use crate::scale::rungs::{self, Rung, Rungs, Text};
use crate::scale::sizes::{Range, Size};
use crate::scale::study::{self, End, Finished};
use crate::scale::{Error, Result};
use crate::train::Target;
use crate::train::places::find;
use anyhow::Context;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// Train a ladder of sizes on one text, fit the laws of their losses, and see where tasks leave chance.
///
/// The file is a recipe with a table [ladder], or names one there. Each rung is a run of `kiln train` in a folder of its own: rungs
/// that are finished are not trained again, and one that was stopped goes on. In the end there are scale.csv, scale.json and
/// scale.html in the folder.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln scale recipe.toml --sizes 16x1x1,32x2x2,64x4x4 --plan\n  kiln scale recipe.toml --range 5e3..5e5 --rungs 6 -o studies/shakespeare\n  kiln scale study.toml -o studies/sums --task sums.toml --device cpu"
)]
pub struct Scale {
    /// A recipe, with [ladder] or beside --sizes or --range.
    recipe: PathBuf,
    /// The folder of the study.
    #[arg(short, long, value_name = "FOLDER", required_unless_present = "plan")]
    output: Option<PathBuf>,
    /// Shapes of the rungs, in the place of the file's: width x layers x heads.
    #[arg(long, value_name = "WxLxH,..", value_delimiter = ',', conflicts_with = "range")]
    sizes: Vec<Size>,
    /// Parameters of the smallest and of the largest rung; those between are chosen.
    #[arg(long, value_name = "FROM..TO", value_parser = ends)]
    range: Option<(f64, f64)>,
    /// With --range: how many rungs.
    #[arg(long, value_name = "COUNT", requires = "range", value_parser = count)]
    rungs: Option<usize>,
    /// Put the task of this TOML file to each rung as well: multiple-choice, or classification with labels. May be given again.
    #[arg(long, value_name = "FILE")]
    task: Vec<PathBuf>,
    /// Set one value of the recipe, such as train.batch=4. May be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Print the rungs and what they take, and train nothing.
    #[arg(long)]
    plan: bool,
    /// Print all results as JSON.
    #[arg(long)]
    json: bool,
}

/// `5e3..5e5`.
fn ends(text: &str) -> Result<(f64, f64), String> {
    let numbers = text.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    numbers.ok_or_else(|| "expected two numbers of parameters such as 5e3..5e5".into())
}

/// A task with what each finished rung made of it.
struct Examined {
    examination: Examination,
    rise: Rise,
}

/// All that came of a study.
struct Outcome {
    title: String,
    device: String,
    text: Text,
    finished: Vec<Finished>,
    /// Rungs that failed, and why.
    failures: Vec<(String, String)>,
    laws: Vec<Finding>,
    tasks: Vec<Examined>,
}

impl Scale {
    /// Plans, trains what is missing, and tells what came of it.
    pub fn run(self) -> anyhow::Result<()> {
        let mut file = StudyFile::read(&self.recipe)?;
        if !self.sizes.is_empty() {
            (file.ladder.sizes, file.ladder.range) = (self.sizes.clone(), None);
        }
        if let Some((from, to)) = self.range {
            let range = Range { from, to, ..Range::default() };
            let rungs = self.rungs.unwrap_or(range.rungs);
            (file.ladder.sizes, file.ladder.range) = (vec![], Some(Range { rungs, ..range }));
        }
        for set in &self.set {
            match set.split('=').next().map(str::trim) {
                Some(key) if key == "ladder" || key.starts_with("ladder.") => {
                    let text = format!(
                        "--set {set}: [ladder] is no part of the recipe\n  hint: change it in {}; --sizes, --range and --task stand for some of its keys",
                        self.recipe.display()
                    );
                    return Err(Usage(text).into());
                }
                Some("train.steps") => eprintln!(
                    "--set {set} says for how many steps the schedule is written; how many a rung has is a matter of ladder.tokens"
                ),
                _ => {}
            }
            file.raw.set(set)?;
        }
        if let Some(device) = &self.device {
            file.raw.insert("run.device", toml::Value::String(device.clone()))?;
        }
        let device = rungs::device(&file)?;
        let tasks = file.ladder.tasks.iter().chain(&self.task).map(|path| Examination::open(path));
        let tasks = tasks.collect::<Result<Vec<_>>>()?;
        let folder = self.output.clone().unwrap_or_else(|| PathBuf::from("scale"));
        // Each rung opens the device for itself.
        let (all, describe) = {
            let target = Target::open_or_host(&device, &mut |line| eprintln!("{line}"))?;
            eprintln!("device   {}", target.describe());
            (Rungs::plan(&file, &folder, &target)?, target.describe())
        };
        if self.plan {
            return Ok(write!(std::io::stdout().lock(), "{}", table::planned(&all))?);
        }
        let others = study::check(&folder, &all)?;
        if !others.is_empty() {
            eprintln!(
                "left out {} runs in the folder that are not of this ladder: {}",
                others.len(),
                others.join(", ")
            );
        }
        eprint!("{}", table::planned(&all));
        study::begin(&folder, &all.text)?;
        let stop = stop_on_interrupt()?;
        let (mut finished, failures) = train_all(&all, file.ladder.failure, &stop)?;
        for (rung, done) in &mut finished {
            if stop.load(Ordering::Relaxed) {
                return Err(stopped());
            }
            examine(rung, done, &tasks, &device).with_context(|| format!("rung {}", rung.facts.name))?;
        }
        let finished: Vec<Finished> = finished.into_iter().map(|(_, done)| done).collect();
        if finished.is_empty() {
            let told =
                failures.iter().map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>().join("; ");
            return Err(Error::NothingDone { failures: told }.into());
        }
        let outcome = Outcome {
            title: folder.display().to_string(),
            device: describe,
            text: all.text,
            laws: laws::find(&observed(&finished)),
            tasks: tasks.into_iter().map(|task| examined(task, &finished)).collect(),
            finished,
            failures,
        };
        write_file(&folder, "scale.csv", &table::csv(&outcome))?;
        let json = table::json(&outcome);
        write_file(&folder, "scale.json", &format!("{json:#}\n"))?;
        write_file(&folder, "scale.html", &page::html(&outcome))?;
        let mut out = std::io::stdout().lock();
        match self.json {
            true => writeln!(out, "{json:#}")?,
            false => write!(out, "{}", table::told(&outcome))?,
        }
        match outcome.failures.as_slice() {
            [] => Ok(()),
            failed => Err(anyhow::anyhow!(
                "{} of {} rungs failed: {}\n  hint: mend what is wrong and start again; what is finished stays",
                failed.len(),
                all.rungs.len(),
                failed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
            )),
        }
    }
}

type Trained<'a> = (Vec<(&'a Rung, Finished)>, Vec<(String, String)>);

fn stopped() -> anyhow::Error {
    Usage("stopped\n  hint: the same command goes on from here".into()).into()
}

/// Trains what is not finished, the smallest first.
fn train_all<'a>(all: &'a Rungs, failure: OnFailure, stop: &AtomicBool) -> anyhow::Result<Trained<'a>> {
    let (mut finished, mut failures) = (vec![], vec![]);
    let count = all.rungs.len();
    for (number, rung) in all.rungs.iter().enumerate() {
        let name = &rung.facts.name;
        if let Some(done) = study::finished(rung)? {
            eprintln!("rung     {} of {count}: {name} is there already, loss {:.4}", number + 1, done.loss);
            finished.push((rung, done));
            continue;
        }
        eprintln!("rung     {} of {count}: {name}", number + 1);
        // What each run says of itself is known from the table; warnings are not.
        let mut say = |line: &str| {
            if line.starts_with("warning") || line.starts_with("recovered") {
                eprintln!("{line}");
            }
        };
        let why = match study::train(rung, stop, &mut say) {
            Ok(End::Stopped) => {
                return Err(stopped());
            }
            Ok(End::Finished(done)) if done.loss.is_finite() => {
                eprintln!("         loss {:.4}, {}", done.loss, table::left(&done, &all.rungs[number + 1..]));
                finished.push((rung, done));
                continue;
            }
            Ok(End::Finished(done)) => format!("its validation loss is {}: it diverged", done.loss),
            Err(error) => error.to_string(),
        };
        eprintln!("failed   {name}: {why}");
        if failure == OnFailure::Stop {
            let text = format!("rung {name} failed, and failure = \"stop\": {why}");
            return Err(anyhow::anyhow!(text));
        }
        failures.push((name.clone(), why));
    }
    Ok((finished, failures))
}

/// Puts the tasks to a rung that it has not been asked yet.
fn examine(rung: &Rung, done: &mut Finished, tasks: &[Examination], device: &str) -> anyhow::Result<()> {
    for task in tasks {
        if done.tasks.get(&task.name).is_some_and(|score| score.checksum == task.checksum) {
            continue;
        }
        let place = find(&rung.recipe.run.folder, false)?;
        let target = Target::open_or_host(device, &mut |line| eprintln!("{line}"))?;
        let score = task.put_to(&place.folder, target)?;
        eprintln!(
            "task     {}: {} has {} of {} right",
            task.name, rung.facts.name, score.right, score.questions
        );
        done.tasks.insert(task.name.clone(), score);
        study::keep(rung, done)?;
    }
    Ok(())
}

fn observed(finished: &[Finished]) -> Vec<Observed> {
    let of = |done: &Finished| Observed {
        name: done.facts.name.clone(),
        parameters: done.facts.counted as f64,
        tokens: done.facts.tokens as f64,
        flops: done.facts.flops,
        loss: done.loss,
    };
    finished.iter().map(of).collect()
}

fn examined(examination: Examination, finished: &[Finished]) -> Examined {
    let scored = |done: &'_ Finished| -> Option<(String, f64, String, crate::scale::emergence::Score)> {
        let facts = &done.facts;
        let group = format!("{} {}", facts.size, facts.tokens);
        Some((facts.name.clone(), facts.flops, group, done.tasks.get(&examination.name)?.clone()))
    };
    let all: Vec<_> = finished.iter().filter_map(scored).collect();
    let scored: Vec<Scored> = all
        .iter()
        .map(|(name, flops, group, score)| Scored { name, group: group.clone(), flops: *flops, score })
        .collect();
    Examined { rise: rise(&scored), examination }
}
