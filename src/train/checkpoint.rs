//! Checkpoints: a run that stops anywhere goes on from the last complete one.
//!
//! ```text
//! run/checkpoints/best.json                    names the folder with the lowest validation loss
//! run/checkpoints/step-000250/model.safetensors
//!                             optimizer.safetensors
//!                             manifest.json    step, state of the run, size and checksum of every file
//!                             ..               files given by the caller, such as config.json and tokenizer.json
//! ```
//!
//! A checkpoint is written under a temporary name, each file and then the folder synced, and renamed last: a folder named
//! `step-..` is complete. What goes wrong on the way leaves the older ones untouched. On reading, sizes and checksums are
//! compared, and a damaged checkpoint is passed over for the one before it, with the reason.

mod durable;
mod manifest;
mod store;
mod tensors;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

pub use store::Store;
pub use tensors::Stored;

/// Writes tensors as a safetensors file that is there whole or not at all.
pub(super) fn write_tensors(path: &Path, list: &[(String, Stored)]) -> io::Result<()> {
    write_bytes(path, &tensor_bytes(list)?)
}

/// Tensors as the bytes of a safetensors file.
pub(super) fn tensor_bytes(list: &[(String, Stored)]) -> io::Result<Vec<u8>> {
    let mut bytes = vec![];
    tensors::write(&mut bytes, list)?;
    Ok(bytes)
}

/// The tensors of a safetensors file.
pub(super) fn read_tensors(path: &Path) -> Result<Vec<(String, Stored<'static>)>, String> {
    tensors::read(&std::fs::read(path).map_err(|error| error.to_string())?)
}

/// Writes a file that is there whole or not at all.
pub(super) fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    durable::replace_file(&durable::real_disk(), path, bytes)
}

/// Everything a checkpoint holds, as the caller gives it.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    /// Steps taken so far.
    pub step: u64,
    /// The weights by name; none where they lie in further files.
    pub model: &'a [(String, Stored<'a>)],
    /// The optimiser's moments by name.
    pub optimizer: &'a [(String, Stored<'a>)],
    /// Further files by name, such as `config.json` and `tokenizer.json`, or in a folder within: `style/adapter_config.json`.
    pub extra: &'a [(String, Vec<u8>)],
    /// Where the run stands: cursor, schedule, seed. Comes back as it was given.
    pub state: &'a Value,
    /// The validation loss of these weights, where it was measured; the lowest makes the best checkpoint.
    pub validation_loss: Option<f64>,
}

/// What a save did.
#[derive(Debug)]
pub struct Saved {
    /// The new checkpoint.
    pub folder: PathBuf,
    /// This one has the lowest validation loss so far.
    pub is_best: bool,
    /// What did not matter to the new checkpoint and yet went wrong, such as an old one that could not be removed.
    pub warnings: Vec<String>,
}

/// A checkpoint read back.
#[derive(Debug)]
pub struct Loaded {
    /// Where it lies, for the files that came as extras.
    pub folder: PathBuf,
    /// Steps taken when it was written.
    pub step: u64,
    /// The weights by name; none where they lie in further files.
    pub model: Vec<(String, Stored<'static>)>,
    /// The optimiser's moments by name.
    pub optimizer: Vec<(String, Stored<'static>)>,
    /// The state the caller gave.
    pub state: Value,
    /// The validation loss the caller gave.
    pub validation_loss: Option<f64>,
    /// Newer checkpoints that were damaged and passed over: the user should be told.
    pub rejected: Vec<Rejected>,
}

/// A checkpoint that cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The damaged checkpoint.
    pub folder: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.folder.display(), self.reason)
    }
}

/// Why a checkpoint was not written or read.
#[allow(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, Error)]
pub enum Error {
    /// Writing failed; nothing that was there before is lost.
    #[error(
        "checkpoint: cannot write {}: {source}\n  hint: earlier checkpoints are untouched; free some space or choose another run.folder",
        path.display()
    )]
    Write { path: PathBuf, source: std::io::Error },
    /// The folder of checkpoints cannot be listed or tidied.
    #[error("checkpoint: {}: {source}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    /// There are checkpoints, and every one of them is damaged.
    #[error(
        "checkpoint: none of {} can be used:\n  {}\n  hint: copy the folder again from where it came, or train again",
        rejected.len(),
        lines(rejected)
    )]
    NoneUsable { rejected: Vec<Rejected> },
    /// The checkpoint asked for is damaged.
    #[error(
        "checkpoint: {0}\n  hint: copy it again from where it came; of a run folder the last good checkpoint is taken"
    )]
    Damaged(Rejected),
}

fn lines(rejected: &[Rejected]) -> String {
    let lines: Vec<String> = rejected.iter().map(Rejected::to_string).collect();
    lines.join("\n  ")
}
