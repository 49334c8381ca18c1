//! `kiln inspect`: what a recipe would run, without training.

mod passes;

use super::Usage;
use super::bench::Roofs;
use super::costs::{self, Clock, Row};
use super::folder::resolve;
use crate::adapt::is_adapter;
use crate::model::Family;
use crate::plan::Plan;
use crate::train::job::{self, Job, Step};
use crate::train::program::{Memory, Program};
use crate::train::recipe::{self, FILE_NAME, RawRecipe, Recipe};
use crate::train::run::recipe_in;
use crate::train::{Beside, Target, micro};
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Look at what a recipe would run: the graph, the plan, the memory, the cost of each operator. Nothing is trained.
///
/// There are three plans: the step (loss and gradient), the update, and the evaluation; a fourth gathers gradients where
/// batches are accumulated.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln inspect\n  kiln inspect recipe.toml --memory --set train.batch=64\n  kiln inspect --model runs/stories --plan --device cpu\n  kiln inspect recipe.toml --costs --json\n  kiln inspect recipe.toml --passes\n  kiln inspect --model runs/stories --passes --compress assets/recipes/sparse-and-quantised.toml"
)]
pub struct Inspect {
    /// The recipe, in TOML.
    recipe: Option<PathBuf>,
    /// Inspect the training of the model in this folder instead: a run, a checkpoint, or a Hugging Face folder.
    #[arg(long, value_name = "FOLDER", conflicts_with = "recipe")]
    model: Option<PathBuf>,
    /// Set one value of the recipe, such as train.batch=4. May be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    #[command(flatten)]
    view: View,
    /// With --model and --passes: a recipe of compression, applied to the model in memory; nothing is written, and nothing is trained.
    #[arg(long, value_name = "FILE", requires = "passes")]
    compress: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is shown; a summary if nothing is chosen.
#[derive(Args)]
#[group(multiple = false)]
struct View {
    /// The operators of each graph, one a line.
    #[arg(long)]
    graph: bool,
    /// Memory and dispatches of each plan, one a line.
    #[arg(long)]
    plan: bool,
    /// Bytes by use, known before the run.
    #[arg(long)]
    memory: bool,
    /// FLOPs, bytes and measured time of each operator.
    #[arg(long)]
    costs: bool,
    /// The graph before and after each pass: how many nodes, and of which operators more or fewer.
    #[arg(long)]
    passes: bool,
}

/// Everything that is known before a run.
struct Known {
    target: Target,
    family: Box<dyn Family>,
    step: Step,
    program: Program,
    /// What training the whole model would take, where adapters are trained instead.
    whole: Option<Memory>,
}

impl Inspect {
    /// Builds the plans and prints what was asked for.
    pub fn run(self) -> anyhow::Result<()> {
        if let Some(recipe) = &self.compress {
            let needed = "--compress needs the model that the recipe is for\n  hint: --model FOLDER";
            let model = self.model.as_ref().ok_or_else(|| Usage(needed.into()))?;
            let device = self.device.as_deref().unwrap_or("gpu");
            let text = passes::of_recipe(model, recipe, device, self.json)?;
            return Ok(writeln!(std::io::stdout().lock(), "{}", text.trim_end())?);
        }
        let known = self.prepare()?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.view.costs {
            let mut rows: Vec<Vec<Row>> = known.program.plans().map(|(_, plan)| costs::rows(plan)).collect();
            let clocks = known.measure(&mut rows)?;
            let roofs = Roofs::of(&known.target)?;
            rows.iter_mut().for_each(|rows| costs::set_floors(rows, &roofs));
            match self.json {
                true => writeln!(out, "{}", known.costs_json(&rows, &clocks, &roofs))?,
                false => write!(out, "floors by   {}\n\n{}", roofs.text(), known.costs_text(&rows, &clocks))?,
            }
            return Ok(out.flush()?);
        }
        let text = match (&self.view, self.json) {
            (View { graph: true, .. }, true) => known.per_plan(|plan| json!(plan.graph.to_string())),
            (View { graph: true, .. }, false) => known.sections(|plan| plan.graph.to_string()),
            (View { plan: true, .. }, true) => known.per_plan(plan_json),
            (View { plan: true, .. }, false) => known.sections(Plan::to_string),
            (View { passes: true, .. }, true) => passes::json_of(&known.program).to_string(),
            (View { passes: true, .. }, false) => passes::text_of(&known.program),
            (View { memory: true, .. }, true) => known.memory_json().to_string(),
            (View { memory: true, .. }, false) => known.memory_text(),
            (_, true) => known.summary_json().to_string(),
            (_, false) => known.summary_text(),
        };
        writeln!(out, "{}", text.trim_end())?;
        Ok(out.flush()?)
    }

    fn prepare(&self) -> anyhow::Result<Known> {
        let mut raw = match (&self.model, &self.recipe) {
            (Some(folder), _) => recipe_for(folder)?,
            (None, Some(path)) => RawRecipe::load(path)?,
            (None, None) => RawRecipe::parse("", "the default recipe")?,
        };
        self.set.iter().try_for_each(|set| raw.set(set))?;
        if let Some(device) = &self.device {
            raw.insert("run.device", toml::Value::String(device.clone()))?;
        }
        let mut recipe = raw.resolve()?;
        recipe.find_places()?.iter().for_each(|told| eprintln!("{told}"));
        let target = Target::open_or_host(&recipe.run.device, &mut |line| eprintln!("{line}"))?;
        let (mut recipe, family, beside) = planned(recipe)?;
        if self.view.costs && beside.several.is_some() {
            let text = "--costs is not there for recipes with [[task]]\n  hint: --plan and --memory are; `kiln train --profile` times a step";
            return Err(Usage(text.into()).into());
        }
        if let Some(told) = micro::settle(&mut recipe, family.as_ref(), &beside, &target)? {
            eprintln!("{told}");
        }
        let step = Step::new(&recipe, family.as_ref(), &beside)?;
        let build = Step::loss(&recipe, family.as_ref(), &beside, step.extent);
        let program = Program::new(&target, &step.weights, &build, &step.settings)?;
        drop(build);
        let asked = self.view.memory && beside.adapters.is_some();
        let whole = if asked { Some(memory_of_whole(&recipe, family.as_ref(), &target)?) } else { None };
        Ok(Known { target, family, step, program, whole })
    }
}

/// What the same training would take without adapters, in f32.
fn memory_of_whole(recipe: &Recipe, family: &dyn Family, target: &Target) -> anyhow::Result<Memory> {
    let recipe = Recipe { adapters: vec![], ..recipe.clone() };
    let beside = Beside::open(&recipe, family, None)?;
    Ok(micro::need(&recipe, family, &beside, target)?)
}

/// The recipe of a run, or the default one, with the model of a folder.
fn recipe_for(folder: &Path) -> anyhow::Result<RawRecipe> {
    let mut raw = match folder.join(FILE_NAME).is_file() {
        true => recipe_in(folder)?,
        false => RawRecipe::parse("", "the default recipe")?,
    };
    let place = resolve(folder, false)?;
    // A run of adapters has its model elsewhere, as its recipe says.
    if is_adapter(&place) && folder.join(FILE_NAME).is_file() {
        return Ok(raw);
    }
    let model = place.display().to_string();
    let table = [("load".to_string(), toml::Value::String(model))].into_iter().collect();
    raw.insert("model", toml::Value::Table(table))?;
    Ok(raw)
}

/// The architecture, and what stands beside it. A loaded one needs no data; the vocabulary of a new one comes from the text.
fn planned(recipe: Recipe) -> anyhow::Result<(Recipe, Box<dyn Family>, Beside)> {
    if !recipe.tasks.is_empty() {
        let job = Job::prepare(recipe, None)?;
        return Ok((job.recipe, job.family, job.beside));
    }
    let (recipe, family) = family_of(recipe)?;
    let beside = Beside::to_plan(&recipe, family.as_ref())?;
    Ok((recipe, family, beside))
}

fn family_of(recipe: Recipe) -> anyhow::Result<(Recipe, Box<dyn Family>)> {
    if let (recipe::Model::Load { dropout, .. }, None) = (&recipe.model, &recipe.data.examples) {
        let mut family = job::family_of(&recipe, 1)?;
        if let Some(share) = dropout {
            family.set_dropout(*share as f32);
        }
        return Ok((recipe, family));
    }
    let job = Job::prepare(recipe, None)?;
    Ok((job.recipe, job.family))
}

fn plan_json(plan: &Plan) -> Value {
    let dispatch = |d: &crate::plan::Dispatch| {
        let places: Vec<String> = d.bindings.iter().map(|b| b.place.to_string()).collect();
        json!({
            "node": d.node, "op": plan.graph.nodes()[d.node].op.name(), "variant": d.variant,
            "kernel": d.kernel.shader, "bindings": places, "groups": d.groups,
        })
    };
    json!({
        "slots": plan.slots, "slot_bytes": plan.slot_bytes(),
        "input_bytes": plan.feed_bytes, "constant_bytes": plan.known_bytes,
        "dispatches": plan.dispatches.iter().map(dispatch).collect::<Vec<_>>(),
    })
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

impl Known {
    fn sections(&self, of: impl Fn(&Plan) -> String) -> String {
        self.program.plans().map(|(name, plan)| format!("# {name}\n{}\n", of(plan))).collect()
    }

    fn per_plan(&self, of: impl Fn(&Plan) -> Value) -> String {
        let all: Map<String, Value> =
            self.program.plans().map(|(name, plan)| (name.to_string(), of(plan))).collect();
        Value::Object(all).to_string()
    }

    fn memory_json(&self) -> Value {
        let memory = self.program.memory();
        json!({
            "device": self.target.describe(),
            "total_bytes": memory.total(), "available_bytes": self.target.memory_bytes(),
            "weight_bytes": memory.parameters, "frozen_bytes": memory.frozen, "gradient_bytes": memory.gradients,
            "optimizer_bytes": memory.moments, "mask_bytes": memory.masks, "run_bytes": memory.run,
            "transfer_bytes": memory.transfer,
            "run_bytes_without_recompute": self.program.held_run(),
            "total_bytes_without_adapters": self.whole.map(|whole| whole.total()),
            "arenas": self.program.arenas().iter().map(|a| json!({ "name": a.name, "bytes": a.kind.size_bytes() })).collect::<Vec<_>>(),
        })
    }

    fn memory_text(&self) -> String {
        let m = self.program.memory();
        let mut text = format!("{:<28}{:>10.2} MiB\n", "total at peak", mib(m.total()));
        if let Some(bytes) = self.target.memory_bytes() {
            let verdict = if bytes < m.total() { "does not fit" } else { "fits" };
            text += &format!("{:<28}{:>10.2} MiB: it {verdict}\n", "available", mib(bytes));
        }
        let uses = [
            ("weights", m.parameters),
            ("frozen weights", m.frozen),
            ("gradients", m.gradients),
            ("optimiser", m.moments),
            ("masks", m.masks),
            ("activations and inputs", m.run),
            ("transfer", m.transfer),
        ];
        uses.iter().for_each(|(name, bytes)| text += &format!("  {name:<26}{:>10.2} MiB\n", mib(*bytes)));
        if let Some(held) = self.program.held_run() {
            text += &format!("  {:<26}{:>10.2} MiB\n", "without recompute, about", mib(held));
        }
        if let Some(whole) = self.whole {
            let share = 100.0 * m.total() as f64 / whole.total() as f64;
            text += &format!(
                "{:<28}{:>10.2} MiB: with adapters {share:.0} % of it\n",
                "the whole model trained",
                mib(whole.total())
            );
        }
        for (name, plan) in self.program.plans() {
            text += &format!(
                "{:<28}{:>10.2} MiB in {} slots for {} dispatches, inputs {:.2}, constants {:.2}\n",
                format!("plan of the {name}"),
                mib(plan.slot_bytes()),
                plan.slots.len(),
                plan.dispatches.len(),
                mib(plan.feed_bytes),
                mib(plan.known_bytes)
            );
        }
        text + "the plans share their slots: only one runs at a time\n"
    }

    fn work(&self) -> Vec<(&'static str, &Plan, f64, f64)> {
        let sum = |plan: &Plan| {
            let rows = costs::rows(plan);
            (rows.iter().map(|r| r.flops).sum::<f64>(), rows.iter().map(|r| r.bytes).sum::<f64>())
        };
        let of = |(name, plan)| {
            let (flops, bytes) = sum(plan);
            (name, plan, flops, bytes)
        };
        self.program.plans().map(of).collect()
    }

    fn summary_json(&self) -> Value {
        let plans: Map<String, Value> = self
            .work()
            .into_iter()
            .map(|(name, plan, flops, bytes)| {
                let all = json!({ "nodes": plan.graph.nodes().len(), "dispatches": plan.dispatches.len(), "flops": flops, "bytes": bytes });
                (name.to_string(), all)
            })
            .collect();
        json!({
            "model": self.family.describe(), "weights": self.program.weight_count(),
            "batch": self.step.extent.batch, "context": self.step.extent.context,
            "memory": self.memory_json(), "plans": plans,
        })
    }

    fn summary_text(&self) -> String {
        let extent = self.step.extent;
        let mut text = format!("device      {}\n", self.target.describe());
        text += &format!("model       {}\n", self.family.describe());
        text += &format!("weights     {}\n", self.program.weight_count());
        text += &format!("batch       {} sequences of {} tokens\n", extent.batch, extent.context);
        text += &format!("memory      {:.2} MiB at peak\n", mib(self.program.memory().total()));
        for (name, plan, flops, bytes) in self.work() {
            let (nodes, dispatches) = (plan.graph.nodes().len(), plan.dispatches.len());
            text += &format!(
                "{name:<11} {nodes} operators in {dispatches} dispatches, {:.3} GFLOP, {:.2} MiB moved\n",
                flops / 1e9,
                bytes / (1 << 20) as f64
            );
        }
        text + "see also    --graph, --plan, --memory, --costs, --passes\n"
    }

    fn measure(&self, rows: &mut [Vec<Row>]) -> anyhow::Result<Vec<Clock>> {
        match &self.target {
            #[cfg(feature = "gpu")]
            Target::Gpu { gpu, pipelines, .. } => {
                costs::measure(gpu, pipelines, &self.program, &self.step, self.family.as_ref(), rows)
            }
            Target::Host => costs::measure_host(&self.program, &self.step, self.family.as_ref(), rows),
        }
    }

    fn costs_json(&self, rows: &[Vec<Row>], clocks: &[Clock], roofs: &Roofs) -> Value {
        let mut all = Map::new();
        for (((name, _), rows), clock) in self.program.plans().zip(rows).zip(clocks) {
            let sum_ms = clock.whole_ms.map(|_| rows.iter().filter_map(|r| r.ms).sum::<f64>());
            let plan = json!({
                "nodes": rows.iter().map(costs::json_of).collect::<Vec<_>>(),
                "flops": rows.iter().map(|r| r.flops).sum::<f64>(),
                "bytes": rows.iter().map(|r| r.bytes).sum::<f64>(),
                "sum_ms": sum_ms, "whole_ms": clock.whole_ms,
            });
            all.insert(name.to_string(), plan);
        }
        json!({ "device": self.target.describe(), "roofs": roofs.json(), "plans": all })
    }

    fn costs_text(&self, rows: &[Vec<Row>], clocks: &[Clock]) -> String {
        let mut text = String::new();
        for (((name, plan), rows), clock) in self.program.plans().zip(rows).zip(clocks) {
            text += &format!("# {name}\n{}", costs::table(rows));
            let total = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>();
            text += &format!(
                "{} dispatches, {:.3} GFLOP, {:.2} MiB moved\n",
                plan.dispatches.len(),
                total(|r| r.flops) / 1e9,
                total(|r| r.bytes) / (1 << 20) as f64
            );
            if let Some(whole) = clock.whole_ms {
                let sum: f64 = rows.iter().filter_map(|r| r.ms).sum();
                let floor: f64 = rows.iter().filter_map(|r| r.floor_ms).sum();
                text += &format!(
                    "sum {sum:.3} ms ({}), of the floors {floor:.3} ms; whole run {whole:.3} ms, median of 5\n",
                    clock.how
                );
            }
            text += "\n";
        }
        text
    }
}
