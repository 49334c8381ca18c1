//! Weights in safetensors files, with this floor's errors.

use super::{Error, Result};
use crate::formats;
use std::io::Write;
use std::path::Path;

pub use crate::formats::{Archive, INDEX_FILE, WEIGHTS_FILE};

/// Writes a file that appears whole or not at all.
pub(super) fn write_whole(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    formats::write_whole(path, fill).map_err(|source| Error::File { path: path.to_path_buf(), source })
}

impl From<formats::Error> for Error {
    fn from(error: formats::Error) -> Error {
        match error {
            formats::Error::Absent { path } => {
                let hint = "a model folder holds config.json and model.safetensors (or its shards with their index); \
                            older formats such as pytorch_model.bin must be converted first";
                Error::Absent { path, hint }
            }
            formats::Error::File { path, source } => Error::File { path, source },
            formats::Error::Damaged { path, reason } => Error::Damaged { path, reason },
            formats::Error::Element { name, got, .. } => Error::Element { name, got },
            formats::Error::NoTensor { name, .. } => Error::NoWeight { name },
            other => Error::Format(other),
        }
    }
}
