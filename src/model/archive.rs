//! Safetensors files: read through a memory map, one tensor at a time; written in one stream.
//!
//! A folder may hold `model.safetensors`, or several shards with `model.safetensors.index.json` telling which tensor is
//! where. The header is checked against the file's length when it is opened, so a truncated file is found at once.

use super::{Error, Result};
use crate::tensor::{Data, Shape, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Name of the file with all weights.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the list of shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Bytes of the length before the header.
const LENGTH_BYTES: usize = 8;

struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Shape,
    bytes: Range<usize>,
}

/// Tensors of one file or of all shards of a folder, not read until asked for.
pub struct Archive {
    path: PathBuf,
    shards: Vec<Mmap>,
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// Opens a safetensors file, or the weights of a Hugging Face folder.
    pub fn open(path: &Path) -> Result<Self> {
        let mut archive = Archive { path: path.to_path_buf(), shards: vec![], entries: BTreeMap::new() };
        if !path.is_dir() {
            archive.add_shard(path)?;
            return Ok(archive);
        }
        let (single, index) = (path.join(WEIGHTS_FILE), path.join(INDEX_FILE));
        if !single.exists() && index.exists() {
            archive.add_shards_of(&index)?;
        } else {
            archive.add_shard(&single)?;
        }
        Ok(archive)
    }

    /// Writes tensors as a safetensors file in the given order, each in the type it is held in.
    ///
    /// The file appears whole or not at all: it is written under a temporary name, synced and renamed.
    pub fn write(path: &Path, tensors: &[(&str, &Tensor)]) -> Result<()> {
        write_whole(path, |out| write_tensors(out, tensors))
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&Shape> {
        self.entries.get(name).map(|entry| &entry.shape)
    }

    /// A tensor of floats as f32.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let entry = self.entries.get(name).ok_or_else(|| Error::NoWeight { name: name.to_string() })?;
        let bytes = &self.shards[entry.shard][entry.bytes.clone()];
        let elements = widen(entry.dtype, bytes)
            .ok_or_else(|| Error::Element { name: name.to_string(), got: entry.dtype.to_string() })?;
        Ok(Tensor::f32(entry.shape.clone(), elements))
    }

    fn add_shards_of(&mut self, index: &Path) -> Result<()> {
        let damaged = |reason: String| Error::Damaged { path: index.to_path_buf(), reason };
        let text = std::fs::read(index).map_err(|source| file_error(index, source))?;
        let json: serde_json::Value = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        let map = json["weight_map"].as_object().ok_or_else(|| damaged("it has no `weight_map`".into()))?;
        let mut files = BTreeMap::new();
        for (name, file) in map {
            // A shard lies beside its index; anything else would let a download name files elsewhere.
            let file = file.as_str().filter(|f| Path::new(f).file_name().is_some_and(|only| only == *f));
            let file = file.ok_or_else(|| damaged(format!("`{name}` is in no file beside it")))?;
            files.entry(file.to_string()).or_insert_with(Vec::new).push(name);
        }
        for (file, names) in files {
            let shard = self.shards.len();
            self.add_shard(&index.with_file_name(&file))?;
            let there = |name: &&String| self.entries.get(*name).is_some_and(|entry| entry.shard == shard);
            if let Some(name) = names.into_iter().find(|name| !there(name)) {
                return Err(damaged(format!("it says that `{name}` is in {file}, but it is not")));
            }
        }
        Ok(())
    }

    fn add_shard(&mut self, path: &Path) -> Result<()> {
        let damaged = |reason: String| Error::Damaged { path: path.to_path_buf(), reason };
        let file = File::open(path).map_err(|source| file_error(path, source))?;
        if file.metadata().map_err(|source| file_error(path, source))?.len() == 0 {
            return Err(damaged("it is empty".into()));
        }
        // SAFETY: the map is private and read-only. A file that another process cuts while we read ends this process
        // with a bus error; we accept that for not copying gigabytes, as other loaders do.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| file_error(path, source))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| damaged(e.to_string()))?;
        let start = LENGTH_BYTES + header;
        for (name, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            let entry = Entry {
                shard: self.shards.len(),
                dtype: info.dtype,
                shape: info.shape.as_slice().into(),
                bytes: start + from..start + to,
            };
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(damaged(format!("`{name}` is in an earlier shard too")));
            }
        }
        self.shards.push(map);
        Ok(())
    }
}

fn file_error(path: &Path, source: std::io::Error) -> Error {
    let path = path.to_path_buf();
    if source.kind() == ErrorKind::NotFound {
        let hint = "a model folder holds config.json and model.safetensors (or its shards with their index); \
                    older formats such as pytorch_model.bin must be converted first";
        return Error::Absent { path, hint };
    }
    Error::File { path, source }
}

/// Stored floats as f32; `None` for types that are no plain floats.
fn widen(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    // The bytes of a file lie at any address, so they are taken one element at a time.
    Some(match dtype {
        Dtype::F32 => elements(bytes, f32::from_le_bytes),
        Dtype::F16 => elements(bytes, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => elements(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F64 => elements(bytes, |b| f64::from_le_bytes(b) as f32),
        _ => return None,
    })
}

fn elements<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.chunks_exact(N).map(|b| read(b.try_into().expect("chunks have the length asked for"))).collect()
}

/// Writes a file that appears whole or not at all: under a temporary name, synced, then renamed.
pub(super) fn write_whole(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let partial = path.with_extension("partial");
    let synced = || {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&partial)?);
        fill(&mut out)?;
        out.into_inner()?.sync_all()?;
        std::fs::rename(&partial, path)
    };
    synced().map_err(|source| {
        // Nothing can be done if even this fails; the first error is the one to tell.
        let _ = std::fs::remove_file(&partial);
        Error::File { path: path.to_path_buf(), source }
    })
}

fn write_tensors(out: &mut dyn Write, tensors: &[(&str, &Tensor)]) -> std::io::Result<()> {
    let mut header = serde_json::Map::new();
    // Readers of Hugging Face refuse a file that does not say which framework's layout it has.
    header.insert("__metadata__".into(), serde_json::json!({ "format": "pt" }));
    let mut at = 0;
    for (name, tensor) in tensors {
        let (dtype, bytes) = stored(&tensor.data);
        let offsets = [at, at + bytes.len()];
        let shape = tensor.shape.to_vec();
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        header.insert(name.to_string(), entry);
        at += bytes.len();
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    tensors.iter().try_for_each(|(_, tensor)| out.write_all(stored(&tensor.data).1))
}

fn stored(data: &Data) -> (&'static str, &[u8]) {
    match data {
        Data::F64(elements) => ("F64", bytemuck::cast_slice(elements)),
        Data::F32(elements) => ("F32", bytemuck::cast_slice(elements)),
        Data::I32(elements) => ("I32", bytemuck::cast_slice(elements)),
        Data::U32(elements) => ("U32", bytemuck::cast_slice(elements)),
        Data::I8(elements) => ("I8", bytemuck::cast_slice(elements)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> [(&'static str, Tensor); 2] {
        let weight = Tensor::f32([2, 3], vec![0.5, -1.0, 2.0, 3.0, 1e-30, 4.0]);
        [("b.weight", weight), ("a", Tensor::f32([1], vec![7.0]))]
    }

    fn write_sample(path: &Path) {
        Archive::write(path, &sample().each_ref().map(|(name, tensor)| (*name, tensor))).unwrap();
    }

    #[test]
    fn what_is_written_is_read_back_and_leaves_no_partial_file() {
        let folder = tempfile::tempdir().unwrap();
        write_sample(&folder.path().join(WEIGHTS_FILE));
        let archive = Archive::open(folder.path()).unwrap();
        assert_eq!(archive.names().collect::<Vec<_>>(), ["a", "b.weight"]);
        for (name, tensor) in sample() {
            assert_eq!(archive.tensor(name).unwrap(), tensor);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn sixteen_bit_floats_are_widened() {
        assert_eq!(widen(Dtype::F16, &[0x00, 0x3c, 0x00, 0xc0]).unwrap(), [1.0, -2.0]);
        assert_eq!(widen(Dtype::BF16, &[0x80, 0x3f, 0x00, 0xc0]).unwrap(), [1.0, -2.0]);
        assert_eq!(widen(Dtype::I64, &[0; 8]), None);
    }

    #[test]
    fn a_file_cut_anywhere_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(WEIGHTS_FILE);
        write_sample(&path);
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 1, 8, 40, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(Archive::open(&path), Err(Error::Damaged { .. })), "cut to {length}");
        }
        std::fs::write(&path, b"not a safetensors file at all").unwrap();
        assert!(matches!(Archive::open(&path), Err(Error::Damaged { .. })));
    }

    #[test]
    fn an_absent_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Archive::open(folder.path()).err().unwrap();
        assert!(matches!(&error, Error::Absent { path, .. } if path.ends_with(WEIGHTS_FILE)), "{error}");
    }

    #[test]
    fn shards_are_read_as_one_and_must_hold_what_the_index_says() {
        let folder = tempfile::tempdir().unwrap();
        let [(first, one), (second, two)] = sample();
        Archive::write(&folder.path().join("s1.safetensors"), &[(first, &one)]).unwrap();
        Archive::write(&folder.path().join("s2.safetensors"), &[(second, &two)]).unwrap();
        let index = |a: &str, b: &str| {
            let json = serde_json::json!({ "weight_map": { first: a, second: b } });
            std::fs::write(folder.path().join(INDEX_FILE), json.to_string()).unwrap();
            Archive::open(folder.path())
        };
        let archive = index("s1.safetensors", "s2.safetensors").unwrap();
        assert_eq!((archive.tensor(first).unwrap(), archive.tensor(second).unwrap()), (one, two));
        for (a, b) in [("s1.safetensors", "s1.safetensors"), ("s1.safetensors", "../s2.safetensors")] {
            assert!(matches!(index(a, b), Err(Error::Damaged { .. })), "{a} {b}");
        }
        assert!(matches!(index("s1.safetensors", "s3.safetensors"), Err(Error::Absent { .. })));
    }
}
