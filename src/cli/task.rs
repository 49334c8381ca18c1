//! `kiln evaluate --task`: a task put to one model or to several.

use super::scored;
use crate::exchange::open_to_run;
use crate::ngram::{Model, is_ngram};
use crate::tasks::{Outcome, Task, compare};
use crate::train::Target;
use crate::train::caches::cache_folder;
use serde_json::json;
use std::path::{Path, PathBuf};

/// What is put to whom.
pub struct Asked<'a> {
    /// The task's file.
    pub task: &'a Path,
    /// Rows that are asked at most.
    pub limit: Option<usize>,
    /// Models as they were given, their folders, and adapters beside them.
    pub models: Vec<(PathBuf, PathBuf, Vec<PathBuf>)>,
    /// Texts in one batch.
    pub batch: usize,
    /// Where it runs.
    pub device: &'a str,
    /// Print an object.
    pub as_json: bool,
}

/// Prints the figures of all models, and how they differ from those of the first.
pub fn run(asked: &Asked) -> anyhow::Result<()> {
    let mut task = Task::open(asked.task, asked.limit)?;
    let mut target = || Ok(Target::open_or_host(asked.device, &mut |line| eprintln!("{line}"))?);
    task.look_up(cache_folder().as_deref(), &mut target)?.iter().for_each(|line| eprintln!("{line}"));
    let mut outcomes: Vec<(String, Outcome)> = vec![];
    for (given, folder, adapters) in &asked.models {
        if is_ngram(folder) && adapters.is_empty() {
            let (model, tokenizer) = Model::load(folder)?;
            if !model.smoothing().sums_to_one() {
                eprintln!("{} has scores that do not sum to one: they are no probabilities", given.display());
            }
            outcomes.push((given.display().to_string(), task.put_to_counted(model, tokenizer, folder)?));
            continue;
        }
        let opened = open_to_run(folder, adapters)?;
        let target = Target::open_or_host(asked.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        let outcome = task.put_to(opened, folder, target, asked.batch)?;
        outcome.told.iter().for_each(|line| eprintln!("{line}"));
        outcomes.push((given.display().to_string(), outcome));
    }
    let figures = compare(&task.file, &outcomes)?;
    let names: Vec<String> = outcomes.into_iter().map(|(name, _)| name).collect();
    let kind = serde_json::to_value(task.file.kind)?;
    scored::print(
        "model",
        &names,
        &figures,
        asked.as_json,
        [("task", kind), ("examples", json!(task.count()))],
    )
}
