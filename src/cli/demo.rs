//! `kiln demo`: the whole house in a few minutes.

use super::plot::curve;
use super::train::stop_on_interrupt;
use crate::generate::{Sampling, Writer};
use crate::train::Target;
use crate::train::metrics::{self, Line};
use crate::train::recipe::RawRecipe;
use crate::train::run::run;
use clap::Args;
use std::path::PathBuf;
use std::time::Instant;

/// Train a small GPT on the built-in stories in a few minutes, show its curve, and let it write.
#[derive(Args)]
#[command(
    after_help = "The built-in stories come from a grammar whose entropy is known, so the curve has a floor: the dashed line.\n\nExamples:\n  kiln demo\n  kiln demo --device cpu\n  kiln demo --steps 200"
)]
pub struct Demo {
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Steps to train.
    #[arg(long, default_value_t = 1500)]
    steps: u64,
    /// Put the run here instead of into a folder that is removed in the end.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// The demo's recipe: small enough for two processor cores behind a Vulkan driver.
const RECIPE: &str = include_str!("../../assets/recipes/demo.toml");

impl Demo {
    /// Trains, draws, writes.
    pub fn run(self) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut raw = RawRecipe::parse(RECIPE, "assets/recipes/demo.toml")?;
        let folder = self
            .out
            .clone()
            .unwrap_or_else(|| std::env::temp_dir().join(format!("kiln-demo-{}", std::process::id())));
        raw.insert("run.device", toml::Value::String(self.device.clone()))?;
        raw.insert("run.folder", toml::Value::String(folder.display().to_string()))?;
        raw.set(&format!("train.steps={}", self.steps))?;
        let stop = stop_on_interrupt()?;
        let summary = run(raw.resolve()?, false, &stop, &mut |line| eprintln!("{line}"))?;

        println!("\nvalidation loss in nats per character; the dashed line is the entropy of the grammar\n");
        let lines = metrics::read(&folder)?;
        let points: Vec<(f64, f64)> = lines
            .iter()
            .filter_map(|line| match line {
                Line::Step(step) => Some((step.step as f64, step.loss)),
                _ => None,
            })
            .collect();
        println!("{}", curve(&points, summary.floor, 70, 16));

        let checkpoint =
            summary.checkpoint.clone().ok_or_else(|| anyhow::anyhow!("the run left no checkpoint"))?;
        let target = Target::open_or_host(&self.device, &mut |_| {})?;
        let mut writer = Writer::open(&checkpoint, &target, usize::MAX)?;
        let sampling = Sampling { temperature: 0.8, seed: 1, ..Sampling::default() };
        let text = writer.write("\n\n", 400, &sampling)?;
        println!("the model writes:\n");
        text.trim().lines().for_each(|line| println!("  {line}"));
        println!();
        println!("device           {}", writer.describe());
        if let Some(validation) = summary.validation_loss {
            println!("validation loss  {validation:.4} nats per character");
        }
        if let (Some(validation), Some(floor)) = (summary.validation_loss, summary.floor) {
            println!("grammar entropy  {floor:.4} nats per character: {:.4} to go", validation - floor);
        }
        println!(
            "step             {:.1} ms median, {:.0} tokens/s",
            summary.step_ms, summary.tokens_per_second
        );
        println!("memory           {:.1} MiB", summary.memory_bytes as f64 / (1 << 20) as f64);
        println!("time             {:.0} s", started.elapsed().as_secs_f64());
        match &self.out {
            Some(folder) => println!("run folder       {}", folder.display()),
            None => std::fs::remove_dir_all(&folder)?,
        }
        Ok(())
    }
}
