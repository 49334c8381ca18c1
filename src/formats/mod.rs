//! Files that hold tensors, whatever model they belong to: GGUF and safetensors, plain and quantised.
//!
//! A file is untrusted: every count, size and offset is checked against its length before anything is allocated.

mod archive;
mod bits;
mod coded;
pub mod compressed_tensors;
pub mod gguf;
pub mod own;
mod raw;
mod shards;
pub mod sparse;
mod whole;

pub use archive::{Archive, INDEX_FILE, WEIGHTS_FILE};
pub use coded::{Found, Layer, QUANTIZATION_KEY, quantized_by, read_coded};
pub use raw::{Element, Raw};
pub use shards::write_shards;
pub use whole::{write_whole, write_whole_folder};

use crate::tensor::quant::blocks;
use std::path::{Path, PathBuf};

/// What can go wrong with a file of tensors.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is not there.
    #[error("{path:?} is not there")]
    Absent {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{path:?}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what its name says.
    #[error("{path:?} is damaged: {reason}\n  hint: fetch or copy the file again; its size may be short")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is whole, but of a kind that is not read here.
    #[error("{path:?}: {what} is not supported; expected {expected}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it has.
        what: String,
        /// What is read.
        expected: String,
    },
    /// A key is absent or has another type.
    #[error("{place}: `{key}` is {got}, expected {expected}")]
    Key {
        /// The file.
        place: String,
        /// The key.
        key: String,
        /// What it may be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A tensor is not there.
    #[error("{path:?} has no tensor `{name}`")]
    NoTensor {
        /// File or folder.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has elements of another type.
    #[error("tensor `{name}` is stored as {got}, expected {expected}")]
    Element {
        /// The tensor.
        name: String,
        /// Types that are read.
        expected: &'static str,
        /// Type in the file.
        got: String,
    },
    /// The codes of a weight are not sound, or cannot be written so.
    #[error("the codes of `{name}` are refused: {reason}")]
    Layer {
        /// The weight or its module.
        name: String,
        /// What stands against them.
        reason: String,
    },
    /// What is to be written contradicts itself or the format.
    #[error("{path:?} cannot be written: {reason}")]
    Draft {
        /// The file.
        path: PathBuf,
        /// What stands against it.
        reason: String,
    },
    /// A tensor's blocks were refused.
    #[error("tensor `{name}`: {source}")]
    Blocks {
        /// The tensor.
        name: String,
        /// Why.
        source: blocks::Error,
    },
}

impl Error {
    /// What the operating system says of a file.
    pub fn of_file(path: &Path, source: std::io::Error) -> Error {
        let path = path.to_path_buf();
        match source.kind() {
            std::io::ErrorKind::NotFound => Error::Absent { path },
            _ => Error::File { path, source },
        }
    }

    fn of_element(name: &str, expected: &'static str, got: Element) -> Error {
        Error::Element { name: name.to_string(), expected, got: got.to_string() }
    }
}

/// Result of work on files.
pub type Result<T, E = Error> = std::result::Result<T, E>;
