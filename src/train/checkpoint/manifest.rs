//! The manifest: what a complete checkpoint consists of.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Its name in the folder.
pub(super) const FILE_NAME: &str = "manifest.json";

/// Raised when an older kiln could misread what a newer one wrote.
const FORMAT: u32 = 1;

/// Size and checksum of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRecord {
    size_bytes: u64,
    /// Eight hexadecimal digits; the common CRC-32, as in zip files.
    crc32: String,
}

/// The manifest as written, its own checksum last.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    #[serde(flatten)]
    pub body: Body,
    /// CRC-32 of the body as compact JSON.
    seal: String,
}

/// The manifest without its checksum.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Body {
    format: u32,
    pub step: u64,
    pub validation_loss: Option<f64>,
    pub files: BTreeMap<String, FileRecord>,
    pub state: Value,
}

impl FileRecord {
    pub(super) fn new(size_bytes: u64, crc32: u32) -> FileRecord {
        FileRecord { size_bytes, crc32: format!("{crc32:08x}") }
    }

    /// Reads the file of this record, if it still is that file.
    pub(super) fn read(&self, path: &Path) -> Result<Vec<u8>, String> {
        let name = path.file_name().unwrap_or_default().display();
        let size = fs::metadata(path).map_err(|error| format!("{name}: {error}"))?.len();
        if size != self.size_bytes {
            return Err(format!("{name} has {size} bytes, and was written with {}", self.size_bytes));
        }
        let bytes = fs::read(path).map_err(|error| format!("{name}: {error}"))?;
        let got = FileRecord::new(bytes.len() as u64, crc32fast::hash(&bytes));
        if got != *self {
            return Err(format!("{name} has changed: its checksum is {}, not {}", got.crc32, self.crc32));
        }
        Ok(bytes)
    }
}

impl Manifest {
    pub(super) fn new(
        step: u64,
        validation_loss: Option<f64>,
        files: BTreeMap<String, FileRecord>,
        state: Value,
    ) -> Manifest {
        let body = Body { format: FORMAT, step, validation_loss, files, state };
        let seal = body.seal();
        Manifest { body, seal }
    }

    pub(super) fn to_json(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(self)?)
    }

    /// Reads and checks the manifest of a checkpoint; the other files are not looked at.
    pub(super) fn read(folder: &Path) -> Result<Body, String> {
        let named = |reason: String| format!("{FILE_NAME}: {reason}");
        let text = fs::read(folder.join(FILE_NAME)).map_err(|error| named(error.to_string()))?;
        let value: Value = serde_json::from_slice(&text).map_err(|error| named(error.to_string()))?;
        // Asked before all else: another format may have other fields.
        if value["format"] != FORMAT {
            return Err(named(format!("format {} is not the {FORMAT} this version reads", value["format"])));
        }
        let Manifest { body, seal } =
            serde_json::from_value(value).map_err(|error| named(error.to_string()))?;
        if body.seal() != seal {
            return Err(named("it has changed since it was written".to_string()));
        }
        Ok(body)
    }
}

impl Body {
    fn seal(&self) -> String {
        let text = serde_json::to_vec(self).expect("a body is plain data with text keys");
        format!("{:08x}", crc32fast::hash(&text))
    }
}
