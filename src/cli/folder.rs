//! The folder that a model's place names: a run, one of its checkpoints, or a Hugging Face model.

use super::Usage;
use crate::exchange::{Opened, is_gguf, open_of_task, open_to_run};
use crate::formats::write_whole_folder;
use crate::train::places::find;
use crate::train::recipe::FILE_NAME;
use anyhow::{Context, bail};
use clap::Args;
use std::path::{Path, PathBuf};

/// Which model a command works on.
#[derive(Args)]
pub struct ModelFolder {
    /// A run folder, a checkpoint, a Hugging Face folder, or a GGUF file.
    #[arg(value_name = "MODEL", required_unless_present = "named")]
    model: Option<PathBuf>,
    /// The same, by name.
    #[arg(long = "model", value_name = "MODEL", conflicts_with = "model")]
    named: Option<PathBuf>,
    /// Of a run folder: the checkpoint with the lowest validation loss instead of the newest.
    #[arg(long)]
    best: bool,
}

impl ModelFolder {
    /// The folder that holds config and weights, with its checksums compared where it has any.
    ///
    /// Says on stderr which checkpoint of a run is taken, and which were damaged.
    pub fn resolve(&self) -> anyhow::Result<PathBuf> {
        resolve(self.given(), self.best)
    }

    /// The path as it was given.
    pub fn given(&self) -> &Path {
        self.model.as_ref().or(self.named.as_ref()).expect("one of them is required")
    }
}

/// Which head of a run of several tasks a command works with.
#[derive(Args)]
pub struct Head {
    /// Of a run of several tasks: take the trunk with the head of this one.
    #[arg(long = "task", value_name = "NAME")]
    task: Option<String>,
}

impl Head {
    /// The task that was named.
    pub fn name(&self) -> Option<&str> {
        self.task.as_deref()
    }

    /// Opens a model to run it, with adapters if there are some.
    pub fn open(&self, place: &Path, adapters: &[PathBuf]) -> anyhow::Result<Opened> {
        open_head(place, self.name(), adapters)
    }
}

/// Opens a model to run it: the one of a task, where it is named.
pub fn open_head(place: &Path, task: Option<&str>, adapters: &[PathBuf]) -> anyhow::Result<Opened> {
    match task {
        Some(_) if !adapters.is_empty() => {
            let text = "--adapter does not go with --task\n  hint: kiln export --task makes a folder, beside which it may stand";
            Err(Usage(text.into()).into())
        }
        Some(task) => Ok(open_of_task(place, task)?),
        None => Ok(open_to_run(place, adapters)?),
    }
}

/// Adapters beside the model that a command works on.
#[derive(Args)]
pub struct Beside {
    /// Put the adapter in this folder beside the model: one of PEFT's, a run, or a checkpoint. May be given again.
    #[arg(long = "adapter", value_name = "FOLDER")]
    adapters: Vec<PathBuf>,
}

impl Beside {
    /// The folders that hold adapters, with their checksums compared where they have any.
    pub fn resolve(&self) -> anyhow::Result<Vec<PathBuf>> {
        self.adapters.iter().map(|given| resolve(given, false)).collect()
    }
}

/// The folder with config and weights that a path stands for.
pub fn resolve(given: &Path, best: bool) -> anyhow::Result<PathBuf> {
    if is_gguf(given) {
        return Ok(given.to_path_buf());
    }
    if !given.is_dir() {
        bail!(
            "no such model folder: {}\n  hint: name a run folder such as runs/shakespeare, a checkpoint in it, a Hugging Face folder, or a GGUF file",
            given.display()
        );
    }
    let place = find(given, best)?;
    for line in place.told("model") {
        eprintln!("{line}");
    }
    Ok(place.folder)
}

/// Bytes of the files that hold a model's weights: a GGUF file, or the shards in a folder; what a checkpoint has beside them does not count.
pub fn weight_bytes(place: &Path) -> anyhow::Result<u64> {
    if !place.is_dir() {
        return Ok(std::fs::metadata(place)?.len());
    }
    let mut sum = 0;
    for entry in std::fs::read_dir(place).with_context(|| place.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            sum += std::fs::metadata(path)?.len();
        }
    }
    Ok(sum)
}

/// Files of a model folder that go with the weights wherever they go.
const COMPANIONS: [&str; 18] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "spiece.model",
    "source.spm",
    "target.spm",
    "config_sentence_transformers.json",
];

/// The folders that a run or one of its checkpoints began with, as far as they are still there, the first one first.
pub fn origins_of_run(place: &Path) -> Vec<PathBuf> {
    const MOST: usize = 8;
    let origins = std::iter::successors(origin_of_run(place), |folder| origin_of_run(folder)).take(MOST);
    let mut origins: Vec<PathBuf> = origins.collect();
    origins.reverse();
    origins
}

fn origin_of_run(place: &Path) -> Option<PathBuf> {
    let recipe = [place.join(FILE_NAME), place.join("../..").join(FILE_NAME)];
    let text = recipe.iter().find_map(|path| std::fs::read_to_string(path).ok())?;
    let recipe: toml::Table = toml::from_str(&text).ok()?;
    let load = recipe.get("model")?.get("load")?.as_str()?;
    Some(PathBuf::from(load)).filter(|folder| folder.is_dir())
}

/// Copies what goes with the weights from one model folder to another.
pub fn copy_companions(from: &Path, to: &Path) -> anyhow::Result<()> {
    for name in COMPANIONS.into_iter().filter(|name| from.join(name).is_file()) {
        let path = to.join(name);
        let folder = path.parent().expect("it is inside a folder");
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::copy(from.join(name), &path))
            .with_context(|| format!("copying {name}"))?;
    }
    Ok(())
}

/// Writes a folder that appears whole or not at all: it is filled under another name and renamed.
pub fn write_folder(path: &Path, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    write_whole_folder(path, fill, anyhow::Error::from).with_context(|| format!("writing {}", path.display()))
}
