//! A study in its folder: runs that are finished, begun or to come.
//!
//! ```text
//! FOLDER/study.toml            the text all rungs read
//! FOLDER/64x4x2-r20-s1337/     a run as `kiln train` leaves it, and
//!   rung.toml                  the recipe it was begun with
//!   result.json                what came of it: there once it is finished
//! ```

use super::emergence::Score;
use super::rungs::{Facts, Rung, Rungs, Text};
use super::{Error, Result};
use crate::formats::write_whole;
use crate::train::metrics::{self, Line};
use crate::train::run::run;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use toml::{Table, Value};

/// The file in a rung's folder that tells what came of it.
pub const RESULT_FILE: &str = "result.json";

/// The recipe that a rung was begun with.
const RUNG_FILE: &str = "rung.toml";

/// What all rungs have in common.
const STUDY_FILE: &str = "study.toml";

/// Differences that an error names.
const NAMED: usize = 6;

/// What came of a rung.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// What was known before.
    pub facts: Facts,
    /// Loss of the validation text after the last step, in nats a token.
    pub loss: f64,
    /// Loss of the training text then.
    pub training_loss: f64,
    /// Median time of a step.
    pub step_ms: f64,
    /// Scores of tasks by their file.
    #[serde(default)]
    pub tasks: BTreeMap<String, Score>,
}

/// How a rung ended.
pub enum End {
    /// It is finished.
    Finished(Finished),
    /// It was told to stop.
    Stopped,
}

/// Refuses a folder whose runs were begun with other recipes, or on another text; gives the names of runs that are not of this ladder.
pub fn check(folder: &Path, rungs: &Rungs) -> Result<Vec<String>> {
    let mut differs = vec![];
    let file = folder.join(STUDY_FILE);
    if let Some(kept) = table_of(&file)? {
        let now = Table::try_from(&rungs.text).expect("numbers are TOML");
        differs.extend(differences(&kept, &now).into_iter().map(|line| format!("the text's {line}")));
    }
    for rung in &rungs.rungs {
        let file = rung.recipe.run.folder.join(RUNG_FILE);
        let Some(kept) = table_of(&file)? else { continue };
        let of_rung = differences(&kept, &asked(rung));
        differs.extend(of_rung.into_iter().map(|line| format!("{}: {line}", rung.facts.name)));
    }
    if !differs.is_empty() {
        let more = differs.len().saturating_sub(NAMED);
        differs.truncate(NAMED);
        if more > 0 {
            differs.push(format!("and {more} more"));
        }
        return Err(Error::Changed { path: folder.into(), differs: differs.join("\n  ") });
    }
    let known = |name: &str| rungs.rungs.iter().any(|rung| rung.facts.name == name);
    let mut others = vec![];
    if let Ok(entries) = fs::read_dir(folder) {
        let runs = entries.flatten().filter(|entry| entry.path().join(RUNG_FILE).is_file());
        others.extend(runs.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    }
    others.retain(|name| !known(name));
    others.sort();
    Ok(others)
}

/// Begins the study in its folder.
pub fn begin(folder: &Path, text: &Text) -> Result<()> {
    let made = fs::create_dir_all(folder);
    made.map_err(|source| Error::File { path: folder.into(), source })?;
    let text = toml::to_string(text).expect("numbers are TOML");
    write(&folder.join(STUDY_FILE), &text)
}

/// What came of a rung, if it is finished.
pub fn finished(rung: &Rung) -> Result<Option<Finished>> {
    let path = rung.recipe.run.folder.join(RESULT_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| Error::Damaged { path, reason: format!("is no result of a rung: {error}") }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path, source }),
    }
}

/// Trains a rung, from its newest checkpoint where it has one.
pub fn train(rung: &Rung, stop: &AtomicBool, say: &mut dyn FnMut(&str)) -> Result<End> {
    let folder = &rung.recipe.run.folder;
    fs::create_dir_all(folder).map_err(|source| Error::File { path: folder.clone(), source })?;
    write(&folder.join(RUNG_FILE), &toml::to_string(&asked(rung)).expect("it was read from TOML"))?;
    let summary = run(rung.recipe.clone(), true, stop, say)?;
    if summary.interrupted {
        return Ok(End::Stopped);
    }
    let (mut last, mut times) = (None, vec![]);
    for line in metrics::read(folder).map_err(crate::train::Error::from)? {
        match line {
            Line::Evaluation(evaluation) if evaluation.step == rung.facts.steps => last = Some(evaluation),
            Line::Step(step) => times.push(step.ms),
            _ => {}
        }
    }
    times.sort_by(f64::total_cmp);
    let step_ms = times.get(times.len() / 2).copied().unwrap_or(summary.step_ms);
    let (loss, training_loss) = last.map_or((f64::NAN, f64::NAN), |e| (e.val_loss, e.train_loss));
    let finished =
        Finished { facts: rung.facts.clone(), loss, training_loss, step_ms, tasks: BTreeMap::new() };
    if loss.is_finite() {
        keep(rung, &finished)?;
    }
    Ok(End::Finished(finished))
}

/// Writes down what came of a rung.
pub fn keep(rung: &Rung, finished: &Finished) -> Result<()> {
    let text = serde_json::to_string_pretty(finished).expect("plain numbers are printable") + "\n";
    write(&rung.recipe.run.folder.join(RESULT_FILE), &text)
}

fn write(path: &Path, text: &str) -> Result<()> {
    let written = write_whole(path, |out| out.write_all(text.as_bytes()));
    written.map_err(|source| Error::File { path: path.into(), source })
}

/// The recipe of a rung without what may change from start to start: the device, and where it lies.
fn asked(rung: &Rung) -> Table {
    let mut table: Table = rung.recipe.to_toml().parse().expect("a recipe is TOML");
    table.remove("run");
    table
}

fn table_of(path: &Path) -> Result<Option<Table>> {
    match fs::read_to_string(path) {
        Ok(text) => match text.parse() {
            Ok(table) => Ok(Some(table)),
            Err(error) => Err(Error::Damaged { path: path.into(), reason: error.to_string() }),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { path: PathBuf::from(path), source }),
    }
}

/// Keys whose values differ, each with both.
fn differences(kept: &Table, now: &Table) -> Vec<String> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    flatten(kept, "", &mut before);
    flatten(now, "", &mut after);
    let shown = |value: Option<&String>| value.cloned().unwrap_or("nothing".into());
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differing = keys.into_iter().filter(|key| before.get(*key) != after.get(*key));
    differing
        .map(|key| format!("{key} was {}, is {}", shown(before.get(key)), shown(after.get(key))))
        .collect()
}

fn flatten(table: &Table, parent: &str, into: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let path = if parent.is_empty() { key.clone() } else { format!("{parent}.{key}") };
        match value {
            Value::Table(inner) => flatten(inner, &path, into),
            other => {
                into.insert(path, other.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named_with_both_values() {
        let [kept, now]: [Table; 2] = [
            "[train]\nbatch = 4\nsteps = 3\n[model]\nwidth = 8".parse().unwrap(),
            "[train]\nbatch = 8\nsteps = 3\n[model]\nwidth = 8\nbias = true".parse().unwrap(),
        ];
        assert_eq!(differences(&kept, &now), ["model.bias was nothing, is true", "train.batch was 4, is 8"]);
        assert!(differences(&kept, &kept).is_empty());
    }
}
