//! `kiln compress`: a model through the passes of a recipe.

use super::folder::resolve;
use super::quantize::{CalibrationText, Format, Output, print_outcomes};
use crate::compress::{Error, Recipe};
use crate::exchange::{self, Opened};
use crate::train::Target;
use anyhow::Context;
use clap::Args;
use std::path::PathBuf;

/// Compress a model by a recipe: passes over its weights, in the order written.
///
/// Kinds of passes: smoothquant, awq (both only move scales, and prove that the model stays what it was), quantize, assign_bits.
#[derive(Args)]
#[command(
    after_help = "A recipe:\n  [calibration]\n  text = [\"stories.txt\"]\n  [[pass]]\n  kind = \"smoothquant\"\n  [[pass]]\n  kind = \"quantize\"\n  scheme = \"W8A8\"\n\nExamples:\n  kiln compress runs/stories -r recipe.toml -o stories-w8a8\n  kiln compress llama -r recipe.toml -o llama.gguf"
)]
pub struct Compress {
    /// A run folder, a checkpoint, a Hugging Face folder, or a GGUF file.
    model: PathBuf,
    /// The recipe.
    #[arg(short, long, value_name = "FILE")]
    recipe: PathBuf,
    /// The folder to write, or the file where the name ends in .gguf.
    #[arg(short, long, value_name = "FOLDER|FILE.gguf")]
    output: PathBuf,
    /// How the folder is written.
    #[arg(long, value_enum, default_value_t = Format::Kiln)]
    format: Format,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Print what became of each layer as JSON.
    #[arg(long)]
    json: bool,
}

impl Compress {
    /// Applies the passes, writes the model and prints its layers.
    pub fn run(self) -> anyhow::Result<()> {
        let place = self.recipe.display().to_string();
        let text = std::fs::read_to_string(&self.recipe).with_context(|| place.clone())?;
        let recipe = Recipe::parse(&place, &text)?;
        let output = Output { path: &self.output, format: self.format, from: &self.model };
        output.expect_free()?;
        let folder = resolve(&self.model, false)?;
        let Opened { family, weights, tokenizer } = exchange::open(&folder)?;
        if recipe.calibrates() && recipe.calibration.text.is_empty() {
            return Err(Error::NoCalibration { method: "this recipe" }.into());
        }
        let calibration = CalibrationText {
            calibrate: recipe.calibration.text.clone(),
            tokenizer: recipe.calibration.tokenizer.as_ref().map(|spec| spec.parse()).transpose()?,
            samples: recipe.calibration.windows,
            context: recipe.calibration.context,
        };
        let batches = calibration.windows(&folder, family.as_ref(), tokenizer.as_ref())?;
        let target = match batches.is_empty() {
            true => Target::Host,
            false => Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?,
        };
        let count = recipe.passes.len();
        let mut see = |number: usize, stage: &crate::compress::Stage| {
            eprintln!("pass {} of {count}  {}", number + 1, stage.name());
        };
        let (compressed, outcomes) = recipe.apply(family.as_ref(), &weights, &target, &batches, &mut see)?;
        output.write(&folder, family.as_ref(), &compressed, tokenizer.as_ref())?;
        print_outcomes(&outcomes, &weights, &output, self.json)
    }
}
