//! `kiln evaluate --task`: a task put to one model or to several.

use super::scored;
use crate::exchange::open_to_run;
use crate::tasks::{Outcome, Task, compare};
use crate::train::Target;
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
    let task = Task::open(asked.task, asked.limit)?;
    let mut outcomes: Vec<(String, Outcome)> = vec![];
    for (given, folder, adapters) in &asked.models {
        let opened = open_to_run(folder, adapters)?;
        let target = Target::open_or_host(asked.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        outcomes.push((given.display().to_string(), task.put_to(opened, folder, target, asked.batch)?));
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
