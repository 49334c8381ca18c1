//! `kiln train`: a recipe in, a run folder out.

use crate::train::recipe::RawRecipe;
use crate::train::run::{Summary, recipe_in, run};
use clap::Args;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Train a model as a recipe says. Without a recipe: a small GPT on the built-in stories.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln train\n  kiln train recipe.toml\n  kiln train --data input.txt --set train.steps=500 --set model.preset=gpt-micro\n  kiln train --data 'corpus/**/*.txt' --data news.jsonl --skip-bad\n  kiln train --resume runs/shakespeare --set train.steps=4000\n  kiln train recipe.toml --device cpu\n  kiln train recipe.toml --set train.steps=20 --profile\n  kiln train recipe.toml --recover\n  kiln train assets/recipes/sft.toml --set model.load=smollm2 --skip-bad"
)]
pub struct Train {
    /// The recipe, in TOML.
    recipe: Option<PathBuf>,
    /// Set one value of the recipe, such as train.steps=50. May be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Train on this file, folder or pattern instead of what the recipe names. May be given again.
    #[arg(long, value_name = "PATH")]
    data: Vec<PathBuf>,
    /// Count and pass over rows and lines of data that cannot be read (data.skip_bad = true).
    #[arg(long)]
    skip_bad: bool,
    /// Continue the run in this folder from its newest checkpoint.
    #[arg(long, value_name = "FOLDER", conflicts_with = "recipe")]
    resume: Option<PathBuf>,
    /// gpu, cpu, an adapter's number, or part of its name (see `kiln devices`).
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Put the run here.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Time one more step operator by operator in the end: profile.txt and, for Perfetto, profile.json in the run folder.
    #[arg(long)]
    profile: bool,
    /// If the device is lost, open it anew and go on from the newest checkpoint.
    #[arg(long)]
    recover: bool,
    /// Print the summary as JSON on stdout.
    #[arg(long)]
    json: bool,
}

impl Train {
    /// Trains, and prints where the result is.
    pub fn run(self) -> anyhow::Result<()> {
        let mut raw = match (&self.recipe, &self.resume) {
            (_, Some(folder)) => recipe_in(folder)?,
            (Some(path), None) => RawRecipe::load(path)?,
            (None, None) => RawRecipe::parse("", "the default recipe")?,
        };
        for set in &self.set {
            raw.set(set)?;
        }
        if !self.data.is_empty() {
            let paths = self.data.iter().map(|p| toml::Value::String(p.display().to_string())).collect();
            raw.insert("data.text", toml::Value::Array(paths))?;
        }
        if let Some(device) = self.device {
            raw.insert("run.device", toml::Value::String(device))?;
        }
        if let Some(folder) = self.resume.as_ref().or(self.out.as_ref()) {
            raw.insert("run.folder", toml::Value::String(folder.display().to_string()))?;
        }
        if self.profile {
            raw.insert("run.profile", toml::Value::Boolean(true))?;
        }
        if self.skip_bad {
            raw.insert("data.skip_bad", toml::Value::Boolean(true))?;
        }
        if self.recover {
            raw.insert("run.recover", toml::Value::Boolean(true))?;
        }
        let recipe = raw.resolve()?;
        let stop = stop_on_interrupt()?;
        let summary = run(recipe, self.resume.is_some(), &stop, &mut |line| eprintln!("{line}"))?;
        if self.json {
            println!("{}", json_of(&summary));
        } else {
            print(&summary);
        }
        Ok(())
    }
}

/// True from the first Ctrl-C on; a second one ends the process.
pub fn stop_on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("stopping after this step; press Ctrl-C again to stop at once");
    })?;
    Ok(stop)
}

fn print(summary: &Summary) {
    let end = if summary.interrupted { "stopped" } else { "done" };
    let validation = summary.validation_loss.map_or(String::new(), |v| format!(", validation loss {v:.4}"));
    println!("{end} after step {}: loss {:.4}{validation}", summary.steps, summary.loss);
    println!("median step {:.1} ms, {:.0} tokens/s", summary.step_ms, summary.tokens_per_second);
    if let Some(folder) = &summary.checkpoint {
        println!("checkpoint {}", folder.display());
    }
}

fn json_of(summary: &Summary) -> serde_json::Value {
    serde_json::json!({
        "steps": summary.steps,
        "loss": summary.loss,
        "val_loss": summary.validation_loss,
        "interrupted": summary.interrupted,
        "floor": summary.floor,
        "step_ms": summary.step_ms,
        "tokens_per_s": summary.tokens_per_second,
        "checkpoint": summary.checkpoint,
        "memory_bytes": summary.memory_bytes,
    })
}
