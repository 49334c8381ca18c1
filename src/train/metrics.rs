//! `metrics.jsonl`: one JSON object a line, written as the run goes.
//!
//! ```text
//! {"step":249,"loss":2.41,"grad_norm":0.83,"lr":0.00098,"tokens_per_s":1920.0,"ms":400.0}
//! {"step":250,"train_loss":2.40,"val_loss":2.43}
//! {"step":250,"lost":"NVIDIA L4: the device was lost after step 257: .."}
//! ```
//! A number that is not finite is written as `null`, which JSON can say and every reader understands. Each line is handed
//! to the system whole, so that a killed run tears at most its last line.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use thiserror::Error;

/// Its name in a run folder.
pub const FILE_NAME: &str = "metrics.jsonl";

/// One training step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The step, counted from zero.
    pub step: u64,
    /// Mean loss of the step's tokens.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Global norm of the gradients before clipping.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// The learning rate in force.
    #[serde(deserialize_with = "number_or_null")]
    pub lr: f64,
    /// Tokens trained on per second.
    #[serde(deserialize_with = "number_or_null")]
    pub tokens_per_s: f64,
    /// Time since the step before was seen to end. Several steps may be seen at once: each then has its share.
    #[serde(deserialize_with = "number_or_null")]
    pub ms: f64,
    /// Time the device spent on this step by its own clock, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_ms: Option<f64>,
    /// Scale of the next step's loss, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// The weights stayed as they were, since the gradients overflowed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Of several tasks the loss of each, before its weight.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub task_loss: BTreeMap<String, Option<f64>>,
}

/// One evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps taken before it.
    pub step: u64,
    /// Mean loss over batches of the training text.
    #[serde(deserialize_with = "number_or_null")]
    pub train_loss: f64,
    /// Mean loss over batches of the validation text; not a number where there is none.
    #[serde(deserialize_with = "number_or_null")]
    pub val_loss: f64,
    /// Other figures of the validation part, such as accuracy.
    #[serde(flatten)]
    pub scores: BTreeMap<String, Option<f64>>,
}

/// The device was lost, and the run went on from a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// Steps taken when that checkpoint was written; zero where there was none.
    pub step: u64,
    /// What happened.
    pub lost: String,
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// A training step.
    Step(Step),
    /// An evaluation.
    Evaluation(Evaluation),
    /// A recovery.
    Recovery(Recovery),
}

/// From where a resumed run will write again. Everything from there on is dropped from the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The first training step that will be logged again.
    pub step: u64,
    /// The first evaluation that will be made again. One made just before the checkpoint was written is not, though it
    /// has the number of the step that follows.
    pub evaluation: u64,
}

/// The file cannot be written or read.
#[derive(Debug, Error)]
#[error("metrics: {}: {source}", path.display())]
pub struct Error {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Writes the file.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// Starts the file of a new run; one that is there is emptied.
    pub fn create(run_folder: &Path) -> Result<Metrics, Error> {
        let path = run_folder.join(FILE_NAME);
        match File::create(&path) {
            Ok(file) => Ok(Metrics { path, file }),
            Err(source) => Err(Error { path, source }),
        }
    }

    /// Goes on with the file of a run, after dropping what the resumed run will write again and any torn line.
    pub fn resume(run_folder: &Path, from: Resume) -> Result<Metrics, Error> {
        let path = run_folder.join(FILE_NAME);
        let opened = drop_lines(&path, from).and_then(|()| append(&path));
        match opened {
            Ok(file) => Ok(Metrics { path, file }),
            Err(source) => Err(Error { path, source }),
        }
    }

    /// Adds a training step.
    pub fn step(&mut self, step: &Step) -> Result<(), Error> {
        self.write(step)
    }

    /// Adds an evaluation.
    pub fn evaluation(&mut self, evaluation: &Evaluation) -> Result<(), Error> {
        self.write(evaluation)
    }

    /// Adds a recovery.
    pub fn recovery(&mut self, recovery: &Recovery) -> Result<(), Error> {
        self.write(recovery)
    }

    fn write(&mut self, line: &impl Serialize) -> Result<(), Error> {
        let written = serde_json::to_vec(line).map_err(io::Error::from).and_then(|mut bytes| {
            bytes.push(b'\n');
            self.file.write_all(&bytes)
        });
        written.map_err(|source| Error { path: self.path.clone(), source })
    }
}

/// The lines of a run's metrics; a torn one, or one of a kind not known here, is passed over.
pub fn read(run_folder: &Path) -> Result<Vec<Line>, Error> {
    let path = run_folder.join(FILE_NAME);
    let bytes = fs::read(&path).map_err(|source| Error { path, source })?;
    Ok(bytes.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Rewrites the file under another name and renames it, so that a kill in between loses nothing.
fn drop_lines(path: &Path, from: Resume) -> io::Result<()> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read?,
    };
    let mut kept = Vec::with_capacity(bytes.len());
    for line in bytes.split(|&byte| byte == b'\n') {
        if stays(line, from) {
            kept.extend_from_slice(line);
            kept.push(b'\n');
        }
    }
    if kept == bytes {
        return Ok(());
    }
    let temporary = path.with_extension("jsonl.tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&kept)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn stays(line: &[u8], from: Resume) -> bool {
    let Ok(Value::Object(object)) = serde_json::from_slice(line) else {
        return false;
    };
    let limit = match () {
        () if object.contains_key("train_loss") => from.evaluation,
        // Nothing makes a recovery again; it belongs before the steps that follow it.
        () if object.contains_key("lost") => from.step + 1,
        () => from.step,
    };
    object.get("step").and_then(Value::as_u64).is_some_and(|step| step < limit)
}

fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn step(step: u64) -> Step {
        Step {
            step,
            loss: 1.0 / (step + 3) as f64,
            grad_norm: 0.5,
            lr: 1e-3,
            tokens_per_s: 1920.0,
            ms: 400.0,
            device_ms: None,
            loss_scale: None,
            skipped: false,
            task_loss: BTreeMap::new(),
        }
    }

    fn evaluation(step: u64) -> Evaluation {
        Evaluation { step, train_loss: 2.5, val_loss: 2.75, scores: BTreeMap::new() }
    }

    fn text(folder: &TempDir) -> String {
        fs::read_to_string(folder.path().join(FILE_NAME)).unwrap()
    }

    /// Steps 0..6 with an evaluation before steps 0, 2, 4 and after the last.
    fn written() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::create(folder.path()).unwrap();
        for number in 0..6 {
            if number % 2 == 0 {
                metrics.evaluation(&evaluation(number)).unwrap();
            }
            metrics.step(&step(number)).unwrap();
        }
        metrics.evaluation(&evaluation(6)).unwrap();
        folder
    }

    #[test]
    fn the_keys_are_the_ones_other_tools_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::create(folder.path()).unwrap();
        metrics.step(&Step { loss: 2.5, ..step(7) }).unwrap();
        metrics.evaluation(&evaluation(8)).unwrap();
        let expected = concat!(
            r#"{"step":7,"loss":2.5,"grad_norm":0.5,"lr":0.001,"tokens_per_s":1920.0,"ms":400.0}"#,
            "\n",
            r#"{"step":8,"train_loss":2.5,"val_loss":2.75}"#,
            "\n"
        );
        assert_eq!(text(&folder), expected);
    }

    #[test]
    fn what_is_not_finite_is_null_and_comes_back_as_not_a_number() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::create(folder.path()).unwrap();
        metrics.step(&Step { loss: f64::NAN, grad_norm: f64::INFINITY, ..step(1) }).unwrap();
        assert!(text(&folder).contains(r#""loss":null,"grad_norm":null,"lr":0.001"#));
        let lines = read(folder.path()).unwrap();
        assert!(matches!(lines[..], [Line::Step(Step { loss, lr: 1e-3, .. })] if loss.is_nan()));
    }

    #[test]
    fn a_resumed_run_writes_the_file_of_one_that_never_stopped() {
        let whole = text(&written());
        // Stopped anywhere in what came after the checkpoint of step 4, mid-line or not.
        let checkpoint = whole.find("{\"step\":4,\"loss\"").unwrap();
        for cut in checkpoint..=whole.len() {
            let folder = written();
            let path = folder.path().join(FILE_NAME);
            fs::write(&path, &whole[..cut]).unwrap();
            // The evaluation numbered 4 was made before the checkpoint.
            let mut metrics = Metrics::resume(folder.path(), Resume { step: 4, evaluation: 5 }).unwrap();
            metrics.step(&step(4)).unwrap();
            metrics.step(&step(5)).unwrap();
            metrics.evaluation(&evaluation(6)).unwrap();
            assert_eq!(text(&folder), whole, "cut at {cut}");
        }
    }

    #[test]
    fn an_evaluation_that_will_be_made_again_is_dropped() {
        let folder = written();
        Metrics::resume(folder.path(), Resume { step: 4, evaluation: 4 }).unwrap();
        let lines = read(folder.path()).unwrap();
        assert_eq!(lines.len(), 6);
        assert_eq!(lines[5], Line::Step(step(3)));
    }

    #[test]
    fn resuming_without_a_file_starts_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::resume(folder.path(), Resume { step: 4, evaluation: 4 }).unwrap();
        metrics.step(&step(4)).unwrap();
        assert_eq!(read(folder.path()).unwrap(), [Line::Step(step(4))]);
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_that_names_the_file() {
        let error = Metrics::create(Path::new("no/such/folder")).unwrap_err().to_string();
        assert!(error.contains(FILE_NAME), "{error}");
    }
}
