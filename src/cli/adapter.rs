//! `kiln adapter`: adapters into a model's weights, and out of them again.

use super::Usage;
use super::folder::{Beside, ModelFolder};
use super::quantize::{Format, Output};
use crate::exchange::{self, Opened, Parts};
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

/// Merge low-rank adapters into a model's weights, or take them out again.
#[derive(Args)]
pub struct AdapterCommand {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Write a model with adapters merged into its weights.
    ///
    /// MODEL is the base, and each --adapter a folder as PEFT writes it or a run; or MODEL is such a run itself, of which the base is
    /// held as it was in training. Weights that adapters change are f32 afterwards, also where they were codes.
    #[command(
        after_help = "Examples:\n  kiln adapter merge smollm --adapter runs/tuned -o tuned\n  kiln adapter merge runs/tuned -o tuned.gguf\n  kiln adapter merge smollm --adapter style --adapter facts -o both"
    )]
    Merge(Merge),
    /// Write the model that another was before adapters were merged into it, up to rounding.
    ///
    /// Of LoRA only: with magnitudes (DoRA), and where modules were trained whole, what was there before is lost.
    #[command(after_help = "Examples:\n  kiln adapter unmerge tuned --adapter runs/tuned -o smollm-again")]
    Unmerge(Unmerge),
}

#[derive(Args)]
struct Merge {
    #[command(flatten)]
    folder: ModelFolder,
    #[command(flatten)]
    beside: Beside,
    /// The new folder, or a file whose name ends in .gguf.
    #[arg(short, long, value_name = "OUTPUT")]
    output: PathBuf,
}

#[derive(Args)]
struct Unmerge {
    #[command(flatten)]
    folder: ModelFolder,
    #[command(flatten)]
    beside: Beside,
    /// The new folder, or a file whose name ends in .gguf.
    #[arg(short, long, value_name = "OUTPUT")]
    output: PathBuf,
}

impl AdapterCommand {
    /// Writes the new model, and says what it is.
    pub fn run(self) -> anyhow::Result<()> {
        match self.task {
            Task::Merge(Merge { folder, beside, output }) => {
                let (place, parts) = open(&folder, &beside, &output)?;
                let adapters = said_of(&parts);
                let (model, widened) = parts.merged()?;
                write(&place, &output, &model)?;
                println!("merged   {adapters}");
                if !widened.is_empty() {
                    println!("widened  {} weights that were codes or in 16 bits are f32 now", widened.len());
                }
                println!("{}", output.display());
            }
            Task::Unmerge(Unmerge { folder, beside, output }) => {
                let (place, parts) = open(&folder, &beside, &output)?;
                let adapters = said_of(&parts);
                write(&place, &output, &parts.unmerged()?)?;
                println!("taken out  {adapters}");
                println!("{}", output.display());
            }
        }
        Ok(())
    }
}

fn open(folder: &ModelFolder, beside: &Beside, output: &Path) -> anyhow::Result<(PathBuf, Parts)> {
    let free = Output { path: output, format: Format::Kiln, from: output };
    free.expect_free()?;
    let place = folder.resolve()?;
    let adapters = beside.resolve()?;
    match exchange::parts(&place, &adapters)? {
        Some(parts) => Ok((place, parts)),
        None => {
            let text = format!(
                "{} is a model without adapters\n  hint: name one: --adapter FOLDER",
                place.display()
            );
            Err(Usage(text).into())
        }
    }
}

fn said_of(parts: &Parts) -> String {
    let all: Vec<String> = parts.loaded.adapters.iter().map(|adapter| adapter.describe()).collect();
    all.join("; ")
}

fn write(place: &Path, path: &Path, model: &Opened) -> anyhow::Result<()> {
    let Opened { family, weights, tokenizer } = model;
    let output = Output { path, format: Format::Kiln, from: place };
    output.write(place, family.as_ref(), weights, tokenizer.as_ref(), None)
}
