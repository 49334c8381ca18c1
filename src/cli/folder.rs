//! The folder that `--model` names: a run, one of its checkpoints, or a Hugging Face model.

use crate::train::checkpoint::Store;
use crate::train::recipe::FILE_NAME;
use anyhow::{Context, bail};
use clap::Args;
use std::path::{Path, PathBuf};

/// Which model a command works on.
#[derive(Args)]
pub struct ModelFolder {
    /// A run folder, a checkpoint, or a Hugging Face folder.
    #[arg(long, value_name = "FOLDER")]
    model: PathBuf,
    /// Of a run folder: the checkpoint with the lowest validation loss instead of the newest.
    #[arg(long)]
    best: bool,
}

impl ModelFolder {
    /// The folder that holds config and weights, with its checksums compared where it has any.
    ///
    /// Says on stderr which checkpoint of a run is taken, and which were damaged.
    pub fn resolve(&self) -> anyhow::Result<PathBuf> {
        resolve(&self.model, self.best)
    }
}

/// The folder with config and weights that a path stands for.
pub fn resolve(given: &Path, best: bool) -> anyhow::Result<PathBuf> {
    if !given.is_dir() {
        bail!(
            "no such model folder: {}\n  hint: name a run folder such as runs/shakespeare, a checkpoint in it, or a Hugging Face folder",
            given.display()
        );
    }
    if !is_run(given) {
        if given.join("manifest.json").is_file() {
            Store::load_folder(given)?;
        }
        return Ok(given.to_path_buf());
    }
    let store = Store::look(given);
    let which = if best { "best" } else { "newest" };
    let loaded = match best {
        _ if !given.join("checkpoints").is_dir() => None,
        true => store.load_best()?,
        false => store.load_latest()?,
    };
    let missing = "hint: train on: a checkpoint is written each run.save.every steps and at the end; the best one needs an evaluation";
    let loaded = loaded
        .with_context(|| format!("{} holds no {which} checkpoint yet\n  {missing}", given.display()))?;
    for rejected in &loaded.rejected {
        eprintln!("warning: damaged checkpoint passed over: {rejected}");
    }
    eprintln!("model    {} ({which} of the run)", loaded.folder.display());
    Ok(loaded.folder)
}

/// True for what `kiln train` leaves behind.
fn is_run(folder: &Path) -> bool {
    folder.join("checkpoints").is_dir() || folder.join(FILE_NAME).is_file()
}
