//! `kiln sweep`: a recipe many times over, each result measured.

use super::compare::Reports;
use super::compare::speed::{self, Course};
use super::compress::Source;
use super::diff::apart_json;
use super::folder::{copy_companions, resolve, write_folder};
use super::passage::{Cut, Passage};
use super::report::write_report;
use super::train::stop_on_interrupt;
use super::{Usage, count};
use crate::compare::{Model, Reference, Scored};
use crate::compress::{Axis, Done, Point, Subject, grid, plain};
use crate::deploy::Deployment;
use crate::exchange::{self, Opened};
use crate::formats::write_whole;
use crate::train::Target;
use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The file in a run's folder that tells what came of it.
pub const RESULT_FILE: &str = "result.json";

/// Compress a model by every combination of some of a recipe's values, and measure each result over a text.
///
/// A key is `pass.2.sparsity`, or `sparsity` where one pass alone has it. Results that are there already, made by the same
/// recipe of the same model, are not made again: an interrupted sweep goes on where it stopped.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln sweep runs/stories -r recipe.toml --grid scheme=int8,nf4 --data unseen.txt -o sweeps/schemes\n  kiln sweep llama -r r.toml --grid sparsity=0.3,0.5 --grid pass.2.scheme=int8,nf4 --data a.txt -o both\n  kiln report sweeps/both"
)]
pub struct Sweep {
    /// A run folder, a checkpoint, a Hugging Face folder, or a GGUF file.
    model: PathBuf,
    /// The recipe.
    #[arg(short, long, value_name = "FILE")]
    recipe: PathBuf,
    /// A key of the recipe and its values. May be given again: every combination is made.
    #[arg(long, value_name = "KEY=A,B,..", required = true)]
    grid: Vec<String>,
    #[command(flatten)]
    passage: Passage,
    /// The folder of the sweep.
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
    /// Take speeds as well, beside those of the model that came in, in so many rounds.
    #[arg(long, value_name = "ROUNDS", value_parser = count)]
    speeds: Option<usize>,
    /// Remove each model once it is measured.
    #[arg(long)]
    figures_only: bool,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
}

impl Sweep {
    /// Makes and measures what is missing, then prints the report.
    pub fn run(self) -> anyhow::Result<()> {
        self.passage.check()?;
        let place = self.recipe.display().to_string();
        let text = std::fs::read_to_string(&self.recipe).with_context(|| place.clone())?;
        let axes = self.grid.iter().map(|text| Axis::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let points = grid(&place, &text, &axes)?;
        let folder = resolve(&self.model, false)?;
        let opened = exchange::open(&folder)?;
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        let cut = self.passage.cut(&folder, &opened, &target)?;
        std::fs::create_dir_all(&self.output).with_context(|| self.output.display().to_string())?;
        let mut bench = Bench::new(&opened, &target, &cut, self.speeds)?;
        let stop = stop_on_interrupt()?;
        for (number, point) in points.iter().enumerate() {
            let name = point.name();
            eprintln!("run      {} of {}: {name}", number + 1, points.len());
            let done = self.one(point, &self.output.join(&name), &mut bench, &stop);
            if stop.load(Ordering::Relaxed) {
                let text = "stopped\n  hint: the same command goes on from here";
                return Err(Usage(text.into()).into());
            }
            done.with_context(|| format!("run {name}"))?;
        }
        write_report(&self.output, false)
    }

    /// Makes and measures one point, unless that is done already.
    fn one(&self, point: &Point, folder: &Path, bench: &mut Bench, stop: &AtomicBool) -> anyhow::Result<()> {
        let source = Source::open(&self.model, &point.recipe, &self.device)?;
        let passes = folder.join("passes");
        let pipeline = source.pipeline(&point.recipe, &self.device, &passes, stop);
        let (key, asked) = (pipeline.key(&source.model)?, bench.asked());
        if let Ok(text) = std::fs::read_to_string(folder.join(RESULT_FILE)) {
            let kept: Value = serde_json::from_str(&text).unwrap_or_default();
            if kept["key"] == key.as_str() && kept["measured"] == asked {
                eprintln!("         is there already");
                return Ok(());
            }
        }
        let (made, record) = pipeline.run(source.model.copy()?)?;
        if !self.figures_only {
            let model = folder.join("model");
            if model.exists() {
                std::fs::remove_dir_all(&model)?;
            }
            write_folder(&model, |new| {
                made.weights.save(new, made.family.as_ref())?;
                if let Some(tokenizer) = &made.tokenizer {
                    tokenizer.save(new)?;
                }
                record.write(new)?;
                copy_companions(&source.folder, new)
            })?;
        }
        let mut result = bench.measure(&made)?;
        result["key"] = key.into();
        result["measured"] = asked;
        let set = |(key, value): &(String, toml::Value)| (key.clone(), Value::from(plain(value)));
        result["grid"] = point.set.iter().map(set).collect::<serde_json::Map<_, _>>().into();
        result["recipe"] = point.recipe.to_toml().into();
        let done = |done: &Done| json!({ "pass": done.pass, "summary": done.report.summary });
        result["passes"] = record.passes.iter().map(done).collect();
        write_whole(&folder.join(RESULT_FILE), |out| {
            serde_json::to_writer_pretty(&mut *out, &result)?;
            out.write_all(b"\n")
        })?;
        std::fs::remove_dir_all(&passes)?;
        Ok(())
    }
}

/// What results are measured with: the model that came in, a device, a text.
struct Bench<'a> {
    opened: &'a Opened,
    target: &'a Target,
    cut: &'a Cut,
    reference: Reference<'a>,
    rounds: Option<usize>,
}

impl<'a> Bench<'a> {
    fn new(
        opened: &'a Opened,
        target: &'a Target,
        cut: &'a Cut,
        rounds: Option<usize>,
    ) -> anyhow::Result<Self> {
        let model = Model { family: opened.family.as_ref(), weights: &opened.weights };
        let reference = Reference::new(Scored::new(model, target, cut.extent)?, &cut.batches);
        Ok(Bench { opened, target, cut, reference, rounds })
    }

    /// How results are measured; those that were measured otherwise are measured anew.
    fn asked(&self) -> Value {
        json!({ "text": self.cut.describe, "device": self.target.describe(), "rounds": self.rounds })
    }

    /// All figures of a model.
    fn measure(&mut self, made: &Subject) -> anyhow::Result<Value> {
        let family = made.family.as_ref();
        let mut scored = Scored::new(Model { family, weights: &made.weights }, self.target, self.cut.extent)?;
        let apart = self.reference.against(Some(&mut scored))?;
        let weight_bytes = Deployment::new(&made.weights).weight_bytes();
        let elements = made.weights.count_elements();
        let mut all = json!({
            "design": family.describe(), "parameters": elements, "zeros": share_of_zeros(made)?,
            "weight_bytes": weight_bytes, "bits_per_weight": 8.0 * weight_bytes as f64 / elements as f64,
        });
        all.as_object_mut().expect("an object").extend(apart_json(&apart));
        if let Some(rounds) = self.rounds {
            let course = Course::new(&self.cut.tokens, self.cut.extent.context, rounds);
            let models = [(self.opened.family.as_ref(), &self.opened.weights), (family, &made.weights)];
            let (speeds, _) = speed::measure(&models, self.target, &course, &mut Reports::new())?;
            let [_, of_made] = &speeds[..] else { unreachable!("two models were timed") };
            all["speed"] = json!({
                "prefill": of_made.prefill.json(), "decode": of_made.decode.json(),
                "memory_bytes": of_made.memory_bytes, "course": course.describe(),
            });
        }
        Ok(all)
    }
}

/// Share of the elements of all matrices that are exactly zero.
fn share_of_zeros(made: &Subject) -> anyhow::Result<f64> {
    let (mut zeros, mut all) = (0, 0);
    for spec in made.family.parameters().iter().filter(|spec| spec.shape.len() >= 2) {
        let tensor = made.weights.numbers(&spec.name)?;
        let values = tensor.real::<f32>();
        zeros += values.iter().filter(|&&x| x == 0.0).count();
        all += values.len();
    }
    Ok(zeros as f64 / all.max(1) as f64)
}
