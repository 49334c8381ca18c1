//! `kiln bench train`: whole training steps of named models, with random weights over random tokens.

use super::bed::Roofs;
use super::report::{Report, device_json, load};
use super::spread::{Spread, seconds, short, size};
use crate::cli::{Usage, costs};
use crate::data::groups::sorted_positions;
use crate::graph::Feeds;
use crate::model::{self, Extent, Family};
use crate::plan::Plan;
use crate::tensor::Tensor;
use crate::tensor::random::Stream;
use crate::train::job::{Step, family_of};
use crate::train::program::Program;
use crate::train::recipe::{RawRecipe, Recipe};
use crate::train::trainer::Trainer;
use crate::train::{Beside, Target};
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A model to be trained for a few steps.
struct Named {
    name: &'static str,
    preset: &'static str,
    vocabulary: usize,
    batch: usize,
    context: usize,
}

/// The models there are, the smallest first.
const MODELS: [Named; 4] = [
    Named { name: "nano-small", preset: "gpt-nano", vocabulary: 65, batch: 12, context: 64 },
    Named { name: "nano-large", preset: "gpt-mini", vocabulary: 65, batch: 4, context: 256 },
    Named { name: "smollm2-135m", preset: "smollm2-135m", vocabulary: 49_152, batch: 1, context: 128 },
    Named { name: "gpt2-124m", preset: "gpt2", vocabulary: 50_257, batch: 1, context: 1024 },
];

/// Steps before the first that counts.
const WARM_UP: usize = 2;
/// Steps that count at least, where their number is not given.
const LEAST: usize = 3;
/// Steps that count at most, where their number is not given.
const MOST: usize = 100;
/// Batches drawn beforehand, so that drawing takes no time of a step.
const BATCHES: usize = 4;
/// Small enough that random tokens do no harm.
const RATE: f64 = 1e-4;
/// A build that takes so long has spent its time for measuring kernel variants, and may have left some.
const MEASURING: Duration = Duration::from_millis(1400);

/// Time whole training steps: forward, backward, clipping and AdamW, batch after batch without waiting.
///
/// Models: nano-small (GPT-2, 4 layers, 128 wide, 12 x 64 tokens), nano-large (6 layers, 384 wide, 4 x 256), smollm2-135m
/// (Llama, 128 tokens), gpt2-124m (1024 tokens); all of them if none is named, less those that would take too long here.
/// Weights and tokens are random. Kernel variants are measured first, for as long as --seconds at most; what was left is told.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln bench train\n  kiln bench train nano-small nano-large\n  kiln bench train smollm2-135m --device cpu --steps 5\n  kiln bench train nano-small --precision f16 --json -o half.json"
)]
pub struct Train {
    /// The models; all if none is named.
    #[arg(value_name = "MODEL")]
    models: Vec<String>,
    /// Steps to time; absent: as many as --seconds allows, 3 to 100.
    #[arg(long, value_name = "N", value_parser = crate::cli::count)]
    steps: Option<usize>,
    /// About how long a model's steps may take.
    #[arg(long, value_name = "N", default_value = "20", value_parser = super::positive)]
    seconds: f64,
    /// Storage of activations: f32 or f16; bf16 of matmul operands.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = ["f32", "f16", "bf16"])]
    precision: String,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Write the report, in JSON, to this file as well.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A model's figures.
struct Figure {
    describe: String,
    weights: usize,
    /// One step, from one to the next.
    ms: Spread,
    /// Forward and backward alone, with waiting for the loss.
    gradient_ms: Spread,
    flops: f64,
    held_bytes: u64,
    /// Share of the time that the host was busy submitting; absent where it computes, as a driver on the processor does within
    /// the submission.
    host_share: Option<f64>,
    loss: f64,
    /// Dispatches of each kernel variant in a step and its update.
    variants: BTreeMap<String, usize>,
    /// What choosing them had to tell.
    kernels: Option<String>,
}

impl Train {
    /// Times, prints and writes the report.
    pub fn run(self) -> anyhow::Result<()> {
        let models = self.chosen()?;
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        let load = load();
        let mut roofs = Roofs::of(&target)?;
        let (mut rows, mut rate) = (vec![], None);
        for model in models {
            eprintln!("{}: building", model.name);
            let outcome = self.time(&target, model, rate);
            if let Ok(figure) = &outcome {
                rate = Some(1e3 * figure.flops / figure.ms.median);
            }
            rows.push((model, outcome.map_err(|error| crate::cli::message(&error))));
        }
        let note = roofs.again(&target)?;
        let measured = rows.iter().filter(|(_, outcome)| outcome.is_ok()).count();
        let json_rows: Vec<Value> =
            rows.iter().map(|(m, outcome)| self.json_of(m, outcome, &roofs)).collect();
        let report = Report {
            load,
            kind: "train",
            body: json!({ "device": device_json(&target), "roofs": roofs.json(), "notes": note.as_slice(), "rows": json_rows }),
            text: self.text(&target, &roofs, note.as_deref(), &rows),
        };
        report.give(self.json, self.out.as_deref())?;
        match measured {
            0 => anyhow::bail!("nothing was measured: the report says why"),
            _ => Ok(()),
        }
    }

    fn chosen(&self) -> anyhow::Result<Vec<&'static Named>> {
        const ALL: &[Named] = &MODELS;
        if self.models.is_empty() {
            return Ok(ALL.iter().collect());
        }
        let find = |name: &String| {
            ALL.iter().find(|model| model.name == name.as_str()).ok_or_else(|| unknown(name).into())
        };
        self.models.iter().map(find).collect()
    }

    fn time(&self, target: &Target, model: &Named, rate: Option<f64>) -> anyhow::Result<Figure> {
        let recipe = self.recipe(model)?;
        let family = family_of(&recipe, 1)?;
        let beside = Beside::default();
        let Step { weights, settings, extent } = Step::new(&recipe, family.as_ref(), &beside)?;
        let build = Step::loss(&recipe, family.as_ref(), &beside, extent);
        let start = Instant::now();
        let (program, flops) = loop {
            let began = Instant::now();
            let program = Program::new(target, &weights, &build, &settings)?;
            let flops = program.plans().take(2).map(|(_, plan)| flops_of(plan)).sum();
            self.refuse_slow(flops, rate)?;
            let settled = target.is_host() || began.elapsed() < MEASURING;
            if settled || start.elapsed().as_secs_f64() > self.seconds {
                break (program, flops);
            }
        };
        let kernels = target.told().pop();
        kernels.iter().for_each(|told| eprintln!("{}: {told}", model.name));
        let mut trainer = Trainer::of(target, program, settings)?;
        let first = model::initial(&family.parameters(), recipe.train.seed);
        trainer.set_weights(|name, _| Ok(first.get(name)?.clone()))?;
        drop(first);
        let batches: Vec<Feeds> =
            (0..BATCHES).map(|n| batch(n as u32, extent, family.vocabulary())).collect();
        eprintln!("{}: running", model.name);
        Ok(Figure { kernels, ..self.steps(&mut trainer, &batches, family.as_ref(), flops, target)? })
    }

    /// Runs the steps: on a GPU those under way overlap with what the host does, as in a run.
    fn steps(
        &self,
        trainer: &mut Trainer,
        batches: &[Feeds],
        family: &dyn Family,
        flops: f64,
        target: &Target,
    ) -> anyhow::Result<Figure> {
        let next = |trainer: &mut Trainer| {
            let number = trainer.steps_done() as usize % batches.len();
            trainer.submit(vec![batches[number].clone()], RATE)
        };
        // A processor does nothing beside: there every step is waited for, and its time is its own.
        let wait = target.is_host() || target.caps().is_cpu;
        for _ in 0..WARM_UP {
            next(trainer)?;
            while trainer.collect(wait)?.is_some() {}
        }
        let (busy, start) = (trainer.host_seconds(), Instant::now());
        let (mut measured, mut loss) = (vec![], f64::NAN);
        while self.goes_on(&measured, start.elapsed().as_secs_f64()) {
            next(trainer)?;
            while let Some(outcome) = trainer.collect(wait)? {
                if outcome.step >= WARM_UP as u64 {
                    measured.push(outcome.elapsed_ms);
                    loss = outcome.loss;
                }
            }
        }
        let wall = start.elapsed().as_secs_f64();
        let busy_until = trainer.host_seconds().filter(|_| !target.caps().is_cpu);
        let host_share = busy.zip(busy_until).map(|(before, after)| (after - before) / wall);
        // Those still under way have no successor to keep the device from idling: they do not count.
        while trainer.collect(true)?.is_some() {}
        let mut gradients = vec![];
        for number in 0..measured.len().clamp(1, 10) {
            let feeds = batches[number % batches.len()].clone();
            let start = Instant::now();
            trainer.differentiate(feeds)?;
            gradients.push(1e3 * start.elapsed().as_secs_f64());
        }
        Ok(Figure {
            describe: family.describe(),
            weights: trainer.weight_count(),
            ms: Spread::of(measured).expect("one step at least"),
            gradient_ms: Spread::of(gradients).expect("one at least"),
            flops,
            held_bytes: trainer.held_bytes(),
            host_share,
            loss,
            // The host takes no notice of the variants in its plans.
            variants: if target.is_host() { BTreeMap::new() } else { variants_of(&trainer.plans()[..2]) },
            kernels: None,
        })
    }

    /// Whether another step is to be timed.
    fn goes_on(&self, measured: &[f64], spent: f64) -> bool {
        let count = measured.len();
        match (self.steps, measured.last()) {
            (Some(steps), _) => count < steps,
            (None, Some(ms)) => count < LEAST || count < MOST && spent + ms / 1e3 < self.seconds,
            (None, None) => true,
        }
    }

    /// Of models that nobody named, those are left out that would take long.
    fn refuse_slow(&self, flops: f64, rate: Option<f64>) -> anyhow::Result<()> {
        let Some(rate) = rate.filter(|_| self.models.is_empty()) else { return Ok(()) };
        let expected = flops / rate;
        if (WARM_UP + LEAST) as f64 * expected > 2.0 * self.seconds {
            let step = seconds(expected);
            anyhow::bail!("left out: a step would take about {step} at the rate before; it runs when named")
        }
        Ok(())
    }

    fn recipe(&self, model: &Named) -> anyhow::Result<Recipe> {
        let Named { preset, vocabulary, batch, context, .. } = model;
        let text = format!(
            "[model]\npreset = \"{preset}\"\nvocabulary = {vocabulary}\n[train]\nbatch = {batch}\ncontext = {context}\n\
             clip = 1.0\noptimizer = {{ kind = \"adamw\", betas = [0.9, 0.99], eps = 1e-8, weight_decay = 0.1 }}\n\
             [precision]\nstorage = \"{}\"\n",
            self.precision
        );
        Ok(RawRecipe::parse(&text, "the recipe of the bench")?.resolve()?)
    }

    fn json_of(&self, model: &Named, outcome: &Result<Figure, String>, roofs: &Roofs) -> Value {
        let mut row = json!({
            "model": model.name, "precision": self.precision, "batch": model.batch, "context": model.context,
            "problem": outcome.as_ref().err(),
        });
        if let Ok(figure) = outcome {
            let rate = 1e3 * figure.flops / figure.ms.median;
            row["describe"] = json!(figure.describe);
            row["weights"] = json!(figure.weights);
            row["ms"] = figure.ms.json();
            row["gradient_ms"] = figure.gradient_ms.json();
            row["tokens_per_second"] = json!(model.tokens() * 1e3 / figure.ms.median);
            row["flops"] = json!(figure.flops);
            row["gflops"] = json!(rate / 1e9);
            row["mfu"] = json!(rate / roofs.multiply);
            row["held_bytes"] = json!(figure.held_bytes);
            row["host_share"] = json!(figure.host_share);
            row["loss"] = json!(figure.loss);
            row["variants"] = json!(figure.variants);
            row["kernels"] = json!(figure.kernels);
        }
        row
    }

    fn text(
        &self,
        target: &Target,
        roofs: &Roofs,
        note: Option<&str>,
        rows: &[(&Named, Result<Figure, String>)],
    ) -> String {
        let mut text = format!("device  {}\nroofs   {}\n", target.describe(), roofs.text());
        text += &note.map_or("\n".into(), |note| format!("note    {note}\n\n"));
        text += &format!(
            "{:<14} {:<4} {:>6} {:>9} {:>19} {:>9} {:>8} {:>8} {:>5} {:>11} {:>6} {:>10}\n",
            "model",
            "type",
            "steps",
            "ms",
            "quartiles",
            "tokens/s",
            "GFLOP",
            "GFLOP/s",
            "MFU",
            "memory",
            "host",
            "gradient"
        );
        for (model, outcome) in rows {
            let head = format!("{:<14} {:<4}", model.name, self.precision);
            text += &match outcome {
                Err(problem) => format!("{head} {problem}\n"),
                Ok(figure) => format!("{head} {}\n", figure.line(model, roofs)),
            };
        }
        text + "MFU: share of the multiply roof; gradient: forward and backward alone, ms; host: share of the time that the host \
                is busy submitting, where it does not compute as well\n"
    }
}

impl Named {
    /// Tokens of a step.
    fn tokens(&self) -> f64 {
        (self.batch * self.context) as f64
    }
}

impl Figure {
    fn line(&self, model: &Named, roofs: &Roofs) -> String {
        let rate = 1e3 * self.flops / self.ms.median;
        let host = self.host_share.map_or("-".into(), |share| format!("{:.1} %", 100.0 * share));
        format!(
            "{:>6} {:>9} {:>19} {:>9} {:>8} {:>8} {:>3.0} % {:>11} {host:>6} {:>10}",
            self.ms.samples,
            short(self.ms.median),
            format!("{}..{}", short(self.ms.low), short(self.ms.high)),
            short(model.tokens() * 1e3 / self.ms.median),
            short(self.flops / 1e9),
            short(rate / 1e9),
            100.0 * rate / roofs.multiply,
            size(self.held_bytes as u128),
            short(self.gradient_ms.median)
        )
    }
}

fn flops_of(plan: &Plan) -> f64 {
    costs::rows(plan).iter().map(|row| row.flops).sum()
}

fn variants_of(plans: &[Plan]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let dispatches = plans.iter().flat_map(|plan| &plan.dispatches);
    dispatches.for_each(|dispatch| *counts.entry(dispatch.variant.clone()).or_default() += 1);
    counts
}

/// Random tokens, each to be followed by another.
fn batch(number: u32, extent: Extent, vocabulary: usize) -> Feeds {
    let positions = extent.positions();
    let mut random = Stream::new(&[0x7374_6570, number]);
    let mut draw = || (0..positions).map(|_| random.below(vocabulary as u64) as u32).collect::<Vec<u32>>();
    let (tokens, targets) = (draw(), draw());
    let groups = sorted_positions(&tokens, vocabulary);
    Feeds::new()
        .with("tokens", Tensor::u32([extent.batch, extent.context], tokens))
        .with("targets", Tensor::i32([positions], targets.into_iter().map(|t| t as i32).collect()))
        .with("order", Tensor::u32([groups.order.len()], groups.order))
        .with("starts", Tensor::u32([groups.starts.len()], groups.starts))
}

fn unknown(name: &str) -> Usage {
    let likeness = |model: &&Named| strsim::normalized_damerau_levenshtein(name, model.name);
    let nearest = MODELS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).expect("there are models");
    let names: Vec<&str> = MODELS.iter().map(|model| model.name).collect();
    Usage(format!(
        "there is no model `{name}`; there are {}\n  hint: did you mean {}?",
        names.join(", "),
        nearest.name
    ))
}
