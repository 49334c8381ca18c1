//! How fast a model trains in f32, with 16-bit storage and with products of int8 codes, step by step in turn.

use super::Reports;
use super::speed::Sample;
use crate::cli::bench::{short, size};
use crate::data::groups::sorted_positions;
use crate::data::windows::{Batch, evaluation};
use crate::exchange::Opened;
use crate::model::Extent;
use crate::tensor::Tensor;
use crate::train::job::{Step, feeds_of};
use crate::train::program::Program;
use crate::train::recipe::RawRecipe;
use crate::train::trainer::Trainer;
use crate::train::{Beside, Target};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Precisions by name, as recipes write them; the first is the reference.
const WAYS: [(&str, &str); 4] = [
    ("f32", "storage = \"f32\""),
    ("f16", "storage = \"f16\""),
    ("bf16", "storage = \"bf16\""),
    ("int8", "int8 = [\"forward\", \"input_gradient\", \"weight_gradient\"]"),
];
/// Steps of a round.
const STEPS: usize = 2;
/// Small enough that a trained model stays one.
const RATE: f64 = 1e-4;
/// How long choosing kernels may take for one way.
const CHOOSING: Duration = Duration::from_secs(30);

/// What one way of training came to.
pub struct Figure {
    /// Its name.
    pub name: &'static str,
    /// Seconds a step, and how many times as fast as f32; or why it was not measured.
    pub outcome: Result<Measured, String>,
}

/// A way that was measured.
pub struct Measured {
    /// Seconds of a step.
    pub seconds: Sample,
    /// How many times as fast as the reference, round by round.
    pub gain: Option<Sample>,
    /// Loss of the first step and of the last.
    pub losses: [f64; 2],
    /// Steps left out because gradients ran over.
    pub skipped: usize,
    /// Bytes of device memory.
    pub memory_bytes: u64,
}

/// All ways.
pub struct Training {
    /// The ways, the reference first.
    pub figures: Vec<Figure>,
    /// Tokens of a step.
    pub tokens: usize,
    /// How it was measured.
    pub describe: String,
}

struct Runner {
    trainer: Trainer,
    seconds: Vec<f64>,
    losses: Vec<f64>,
    skipped: usize,
}

impl Runner {
    fn new(
        way: &str,
        folder: &Path,
        model: &Opened,
        extent: Extent,
        target: &Target,
        told: &mut Reports,
    ) -> anyhow::Result<Runner> {
        let folder = toml::Value::String(folder.display().to_string());
        let Extent { batch, context } = extent;
        let text = format!(
            "[model]\nload = {folder}\ndropout = 0.0\n[train]\nbatch = {batch}\ncontext = {context}\nclip = 1.0\n\
             optimizer = {{ kind = \"adamw\", weight_decay = 0.1 }}\n[precision]\n{way}\n"
        );
        let recipe = RawRecipe::parse(&text, "the recipe of the comparison")?.resolve()?;
        let mut family = crate::train::job::family_of(&recipe, 1)?;
        family.set_dropout(0.0);
        let beside = Beside::default();
        let Step { weights, settings, extent } = Step::new(&recipe, family.as_ref(), &beside)?;
        let build = Step::loss(&recipe, family.as_ref(), &beside, extent);
        let start = Instant::now();
        let program = loop {
            let program = Program::new(target, &weights, &build, &settings)?;
            let reports = target.told();
            let measured = reports.iter().any(|report| report.contains("measured the kernels"));
            if !measured || start.elapsed() > CHOOSING {
                told.extend(reports);
                break program;
            }
        };
        let mut trainer = Trainer::of(target, program, settings)?;
        trainer.set_weights(|name, _| Ok(model.weights.get(name)?.clone()))?;
        Ok(Runner { trainer, seconds: vec![], losses: vec![], skipped: 0 })
    }

    /// Steps over batches, those under way overlapping as in a run.
    fn round(&mut self, batches: &[Batch], extent: Extent, vocabulary: usize) -> anyhow::Result<f64> {
        let feeds: Vec<_> = batches
            .iter()
            .map(|batch| {
                let groups = sorted_positions(&batch.tokens, vocabulary);
                feeds_of(batch, extent)
                    .with("order", Tensor::u32([groups.order.len()], groups.order))
                    .with("starts", Tensor::u32([groups.starts.len()], groups.starts))
            })
            .collect();
        let count = feeds.len() as f64;
        let start = Instant::now();
        for feeds in feeds {
            self.trainer.submit(vec![feeds], RATE)?;
        }
        while let Some(outcome) = self.trainer.collect(true)? {
            self.losses.push(outcome.loss);
            self.skipped += usize::from(outcome.skipped);
        }
        Ok(start.elapsed().as_secs_f64() / count)
    }
}

/// Trains the model in all ways, from the same weights over the same batches.
pub fn measure(
    folder: &Path,
    model: &Opened,
    tokens: &[u32],
    extent: Extent,
    rounds: usize,
    target: &Target,
    told: &mut Reports,
) -> anyhow::Result<Training> {
    let batches =
        evaluation("training", &tokens.to_vec().into(), extent.context, extent.batch, (rounds + 1) * STEPS)?;
    let mut runners: Vec<(&'static str, Result<Runner, String>)> = vec![];
    for (name, way) in WAYS {
        let runner = Runner::new(way, folder, model, extent, target, told);
        runners.push((name, runner.map_err(|error| crate::cli::message(&error))));
    }
    for (round, batches) in batches.chunks(STEPS).enumerate() {
        for number in 0..WAYS.len() {
            let (_, slot) = &mut runners[(number + round) % WAYS.len()];
            let Ok(runner) = slot else { continue };
            match runner.round(batches, extent, model.family.vocabulary()) {
                // The first round compiles and warms up.
                Ok(seconds) if round > 0 => runner.seconds.push(seconds),
                Ok(_) => {}
                Err(error) => *slot = Err(crate::cli::message(&error)),
            }
        }
    }
    let first = runners[0].1.as_ref().map(|runner| runner.seconds.clone()).unwrap_or_default();
    let measured = |runner: Runner, is_first: bool| {
        let gains: Vec<f64> = first.iter().zip(&runner.seconds).map(|(a, b)| a / b).collect();
        Measured {
            gain: (!is_first && !gains.is_empty()).then(|| Sample::of(gains)),
            seconds: Sample::of(runner.seconds),
            losses: [runner.losses[0], runner.losses[runner.losses.len() - 1]],
            skipped: runner.skipped,
            memory_bytes: runner.trainer.held_bytes(),
        }
    };
    let figures = runners.into_iter().enumerate().map(|(number, (name, runner))| Figure {
        name,
        outcome: runner.map(|runner| measured(runner, number == 0)),
    });
    let Extent { batch, context } = extent;
    Ok(Training {
        figures: figures.collect(),
        tokens: extent.positions(),
        describe: format!(
            "forward, backward and AdamW from the model's own weights, {batch} x {context} tokens a step, the same batches for all; \
             {rounds} rounds of {STEPS} steps in turn after one to warm up"
        ),
    })
}

impl Training {
    /// As JSON.
    pub fn json(&self) -> Value {
        let row = |figure: &Figure| match &figure.outcome {
            Err(problem) => json!({ "precision": figure.name, "problem": problem }),
            Ok(m) => json!({
                "precision": figure.name, "problem": null,
                "tokens_per_second": m.seconds.falling(|s| self.tokens as f64 / s).json(),
                "ms": { "median": 1e3 * m.seconds.median, "interval": [1e3 * m.seconds.low, 1e3 * m.seconds.high] },
                "gain": m.gain.as_ref().map(Sample::json), "first_loss": m.losses[0], "last_loss": m.losses[1],
                "skipped_steps": m.skipped, "memory_bytes": m.memory_bytes,
            }),
        };
        json!({ "how": self.describe, "rows": self.figures.iter().map(row).collect::<Vec<_>>() })
    }

    /// Heads and cells of a table.
    pub fn cells(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let heads =
            vec!["training", "tokens/s", "95 %", "x f32", "95 %", "first loss", "last loss", "memory"];
        let row = |figure: &Figure| match &figure.outcome {
            Err(problem) => vec![figure.name.to_string(), problem.clone()],
            Ok(m) => {
                let rate = m.seconds.falling(|s| self.tokens as f64 / s);
                let range = |s: &Sample| format!("{}..{}", short(s.low), short(s.high));
                vec![
                    figure.name.to_string(),
                    short(rate.median),
                    range(&rate),
                    m.gain.as_ref().map_or("1".into(), |gain| short(gain.median)),
                    m.gain.as_ref().map_or(String::new(), range),
                    format!("{:.4}", m.losses[0]),
                    format!("{:.4}", m.losses[1]),
                    size(m.memory_bytes.into()),
                ]
            }
        };
        (heads, self.figures.iter().map(row).collect())
    }

    /// What wins, in a sentence.
    pub fn sentence(&self) -> String {
        let measured = |figure: &Figure| Some((figure.name, figure.outcome.as_ref().ok()?.gain.clone()?));
        let gains: Vec<(&str, Sample)> = self.figures.iter().filter_map(measured).collect();
        let words = |(name, gain): &(&str, Sample)| {
            let what = match () {
                _ if gain.low > 1.0 => "trains faster than f32",
                _ if gain.high < 1.0 => "trains slower than f32",
                _ => "trains as fast as f32 within what was measured",
            };
            format!("{name} {what}: {} x ({} to {})", short(gain.median), short(gain.low), short(gain.high))
        };
        gains.iter().map(words).collect::<Vec<_>>().join("; ")
    }
}
