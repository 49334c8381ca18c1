//! GGUF, the container of ggml and llama.cpp: keys with values, then tensors in plain floats or in blocks.
//!
//! Versions 2 and 3 are read, through a memory map; version 3 is written.

mod kind;
mod parse;
#[cfg(test)]
mod tests;
mod value;
mod write;

pub use kind::{Kind, Other};
pub use parse::Stored;
pub use value::{Array, Metadata, Value};
pub use write::{Part, write};

use super::{Error, Result};
use crate::tensor::Tensor;
use crate::tensor::quant::blocks::Block;
use memmap2::Mmap;
use parse::{Fault, Head};
use std::fs::File;
use std::path::{Path, PathBuf};

/// A GGUF file, open for reading.
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    head: Head,
}

impl Gguf {
    /// Opens a file and checks its head against its length.
    pub fn open(path: &Path) -> Result<Gguf> {
        let file = File::open(path).map_err(|source| Error::of_file(path, source))?;
        let length = file.metadata().map_err(|source| Error::of_file(path, source))?.len();
        if length == 0 {
            return Err(Error::Damaged { path: path.to_path_buf(), reason: "it is empty".into() });
        }
        // SAFETY: the map is private and read-only. A file that another process cuts while we read ends this process
        // with a bus error; we accept that for not copying gigabytes, as other loaders do.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::of_file(path, source))?;
        let head = parse::parse(&map, &path.display().to_string()).map_err(|fault| {
            let path = path.to_path_buf();
            match fault {
                Fault::Damaged(reason) => Error::Damaged { path, reason },
                Fault::Unsupported { what, expected } => Error::Unsupported { path, what, expected },
            }
        })?;
        Ok(Gguf { path: path.to_path_buf(), map, head })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.head.version
    }

    /// Keys and values.
    pub fn metadata(&self) -> &Metadata {
        &self.head.metadata
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[Stored] {
        &self.head.tensors
    }

    /// A tensor by name.
    pub fn find(&self, name: &str) -> Option<&Stored> {
        self.head.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// The bytes of a tensor of this file.
    pub fn bytes(&self, tensor: &Stored) -> &[u8] {
        &self.map[tensor.bytes.clone()]
    }

    /// The block format of a tensor; an error where it is none that is decoded here.
    pub fn block(&self, tensor: &Stored) -> Result<Block> {
        match tensor.kind {
            Kind::Block(block) => Ok(block),
            Kind::Other(_) => {
                let names: Vec<_> = Block::ALL.iter().map(|block| block.name()).collect();
                Err(Error::Unsupported {
                    path: self.path.clone(),
                    what: format!("type {} of tensor `{}`", tensor.kind, tensor.name),
                    expected: names.join(", "),
                })
            }
        }
    }

    /// A tensor decoded to f32.
    pub fn tensor(&self, tensor: &Stored) -> Result<Tensor> {
        let decoded = self.block(tensor)?.decode(self.bytes(tensor), tensor.shape.last());
        let values = decoded.map_err(|source| Error::Blocks { name: tensor.name.clone(), source })?;
        Ok(Tensor::f32(tensor.shape.clone(), values))
    }
}
