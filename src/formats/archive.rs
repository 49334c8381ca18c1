//! Safetensors files: read through a memory map, one tensor at a time; written in one stream.
//!
//! A folder may hold `model.safetensors`, or several shards with `model.safetensors.index.json` telling which tensor is
//! where. The header is checked against the file's length when it is opened, so a truncated file is found at once.

use super::{Element, Error, Raw, Result, write_whole};
use crate::tensor::{Shape, Tensor};
use memmap2::Mmap;
use safetensors::SafeTensors;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Name of the file with all weights.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the list of shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Bytes of the length before the header.
const LENGTH_BYTES: usize = 8;
/// Key of the header under which a file has its own notes.
const NOTES: &str = "__metadata__";

struct Entry {
    shard: usize,
    element: Element,
    shape: Shape,
    bytes: Range<usize>,
}

/// Tensors of one file or of all shards of a folder, not read until asked for.
pub struct Archive {
    path: PathBuf,
    shards: Vec<Mmap>,
    entries: BTreeMap<String, Entry>,
    notes: BTreeMap<String, String>,
}

impl Archive {
    /// Opens a safetensors file, or the weights of a Hugging Face folder.
    pub fn open(path: &Path) -> Result<Self> {
        let mut archive = Archive {
            path: path.to_path_buf(),
            shards: vec![],
            entries: BTreeMap::new(),
            notes: BTreeMap::new(),
        };
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

    /// Writes tensors as a safetensors file, each in the type it is held in. The file appears whole or not at all.
    pub fn write(path: &Path, tensors: &[(&str, &Tensor)]) -> Result<()> {
        let raws: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, Raw::of(tensor))).collect();
        Archive::write_raw(path, &raws, &BTreeMap::new())
    }

    /// Writes tensors as they are to be stored, with notes of the file's own. The file appears whole or not at all.
    pub fn write_raw(path: &Path, raws: &[(&str, Raw)], notes: &BTreeMap<String, String>) -> Result<()> {
        let refuse = |reason: String| Error::Draft { path: path.to_path_buf(), reason };
        if let Some((name, _)) = raws.iter().find(|(_, raw)| !raw.fits()) {
            return Err(refuse(format!("the bytes of `{name}` are not those of its shape")));
        }
        // Readers that map the file need each tensor at a multiple of its element's size: the wide ones come first.
        let mut order: Vec<&(&str, Raw)> = raws.iter().collect();
        order.sort_by_key(|(_, raw)| std::cmp::Reverse(raw.element.bitsize()));
        let mut names: Vec<&str> = raws.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(refuse(format!("`{}` is given twice", pair[0])));
        }
        write_whole(path, |out| write_tensors(out, &order, notes))
            .map_err(|source| Error::of_file(path, source))
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

    /// Type of a tensor's elements.
    pub fn element(&self, name: &str) -> Option<Element> {
        self.entries.get(name).map(|entry| entry.element)
    }

    /// Notes of the files' own, such as the format they follow.
    pub fn notes(&self) -> &BTreeMap<String, String> {
        &self.notes
    }

    /// A tensor as it is stored.
    pub fn raw(&self, name: &str) -> Result<Raw<'_>> {
        let absent = || Error::NoTensor { path: self.path.clone(), name: name.to_string() };
        let entry = self.entries.get(name).ok_or_else(absent)?;
        let bytes = Cow::Borrowed(&self.shards[entry.shard][entry.bytes.clone()]);
        Ok(Raw { element: entry.element, shape: entry.shape.clone(), bytes })
    }

    /// A tensor of floats as f32.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let raw = self.raw(name)?;
        let floats =
            raw.floats().ok_or_else(|| Error::of_element(name, "F32, F16, BF16 or F64", raw.element))?;
        Ok(Tensor::f32(raw.shape, floats))
    }

    /// A tensor of whole numbers.
    pub fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let raw = self.raw(name)?;
        raw.integers().ok_or_else(|| Error::of_element(name, "whole numbers", raw.element))
    }

    fn add_shards_of(&mut self, index: &Path) -> Result<()> {
        let damaged = |reason: String| Error::Damaged { path: index.to_path_buf(), reason };
        let text = std::fs::read(index).map_err(|source| Error::of_file(index, source))?;
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
        let file = File::open(path).map_err(|source| Error::of_file(path, source))?;
        if file.metadata().map_err(|source| Error::of_file(path, source))?.len() == 0 {
            return Err(damaged("it is empty".into()));
        }
        // SAFETY: the map is private and read-only. A file that another process cuts while we read ends this process
        // with a bus error; we accept that for not copying gigabytes, as other loaders do.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::of_file(path, source))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| damaged(e.to_string()))?;
        let start = LENGTH_BYTES + header;
        for (name, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            let entry = Entry {
                shard: self.shards.len(),
                element: info.dtype,
                shape: info.shape.as_slice().into(),
                bytes: start + from..start + to,
            };
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(damaged(format!("`{name}` is in an earlier shard too")));
            }
        }
        let notes = metadata.metadata().iter().flatten();
        self.notes.extend(notes.map(|(key, note)| (key.clone(), note.clone())));
        self.shards.push(map);
        Ok(())
    }
}

fn write_tensors(
    out: &mut dyn Write,
    raws: &[&(&str, Raw)],
    notes: &BTreeMap<String, String>,
) -> std::io::Result<()> {
    let mut header = serde_json::Map::new();
    // Readers of Hugging Face refuse a file that does not say which framework's layout it has.
    let mut all = serde_json::json!({ "format": "pt" });
    notes.iter().for_each(|(key, note)| all[key] = note.as_str().into());
    header.insert(NOTES.into(), all);
    let mut at = 0;
    for (name, Raw { element, shape, bytes }) in raws {
        let offsets = [at, at + bytes.len()];
        let shape = shape.to_vec();
        let entry =
            serde_json::json!({ "dtype": element.to_string(), "shape": shape, "data_offsets": offsets });
        header.insert(name.to_string(), entry);
        at += bytes.len();
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    raws.iter().try_for_each(|(_, raw)| out.write_all(&raw.bytes))
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
    fn tensors_of_any_type_come_back_with_their_notes_and_the_wide_ones_lie_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(WEIGHTS_FILE);
        let raws = [
            ("codes", Raw::i8([3], &[-128, 0, 127])),
            ("half", Raw::f16([2], &[0.5, 2.0])),
            ("brain", Raw::bf16([1], &[-3.0])),
            ("shape", Raw::i64([2], &[3, 1 << 40])),
            ("words", Raw::owned(Element::I32, [1], vec![1, 2, 3, 4])),
        ];
        let notes = BTreeMap::from([("key".to_string(), "a \"note\"".to_string())]);
        Archive::write_raw(&path, &raws, &notes).unwrap();
        let archive = Archive::open(&path).unwrap();
        for (name, raw) in &raws {
            assert_eq!(&archive.raw(name).unwrap(), raw);
        }
        assert_eq!(
            (archive.notes()["key"].as_str(), archive.notes()["format"].as_str()),
            ("a \"note\"", "pt")
        );
        assert_eq!(archive.integers("shape").unwrap(), [3, 1 << 40]);
        assert!(matches!(archive.tensor("codes"), Err(Error::Element { .. })));
        assert!(matches!(archive.raw("none"), Err(Error::NoTensor { .. })));
        let start = |name: &str| archive.entries[name].bytes.start;
        assert!(start("shape") < start("words") && start("words") < start("half"));
        assert!(start("brain") < start("codes"));
    }

    #[test]
    fn tensors_that_contradict_themselves_are_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(WEIGHTS_FILE);
        let write = |raws: &[(&str, Raw)]| Archive::write_raw(&path, raws, &BTreeMap::new());
        let short = [("a", Raw::i64([3], &[1, 2]))];
        let twice = [("a", Raw::i8([1], &[1])), ("a", Raw::i64([1], &[2]))];
        assert!(matches!(write(&short), Err(Error::Draft { .. })));
        assert!(matches!(write(&twice), Err(Error::Draft { .. })));
        assert!(!path.exists());
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
