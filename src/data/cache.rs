//! Tokens on disk, so that a text is tokenised once and not at every start.
//!
//! ```text
//! tokens-<key>.bin    magic | ids of 16 or 32 bits: training, then validation | footer: JSON | its length | magic
//! ```
//!
//! The key is a hash of the text, the tokenizer and the settings. A file is written under another name, synced and renamed; when it is
//! read, its length, its checksum and its key are compared, and one that does not hold is made anew.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::data::store::{Part, Store, Stretch};
use crate::data::tokens::{Tokens, Width};

const MAGIC: &[u8; 8] = b"kilntok1";

/// Files beyond so many go, those unused for longest first.
const MOST_FILES: usize = 16;

/// A folder of tokenised texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    folder: PathBuf,
}

/// Names a text in the tokens of a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// A hash of all parts; none can be mistaken for the end of another.
    pub fn of(parts: &[&[u8]]) -> Key {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Key(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// What was found under a key.
#[derive(Debug)]
pub enum Found {
    /// The tokens.
    Whole(Store),
    /// Nothing.
    Nothing,
    /// A file that cannot be used, and why.
    Damaged(String),
}

#[derive(Serialize, Deserialize)]
struct Footer {
    key: String,
    bits: u32,
    checksum: u32,
    training: Counts,
    validation: Counts,
    stretches: Vec<Stretch>,
}

#[derive(Serialize, Deserialize)]
struct Counts {
    tokens: usize,
    characters: usize,
    bytes: usize,
}

impl Cache {
    /// That in a folder, which is made when it is first needed.
    pub fn at(folder: impl Into<PathBuf>) -> Cache {
        Cache { folder: folder.into() }
    }

    /// The file of a key.
    pub fn file(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("tokens-{}.bin", &key.0[..32]))
    }

    /// Looks for a tokenised text.
    pub fn load(&self, key: &Key) -> Found {
        let path = self.file(key);
        let file = match File::options().read(true).append(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
            Err(error) => return Found::Damaged(format!("{}: {error}", path.display())),
        };
        match read(&file, key) {
            Ok(store) => {
                // Says that it was used; a file system that does not keep that keeps the tokens all the same.
                let _ = file.set_modified(SystemTime::now());
                Found::Whole(store)
            }
            Err(reason) => Found::Damaged(format!("{}: {reason}", path.display())),
        }
    }

    /// Keeps a tokenised text, and gives it back as it lies in the file.
    pub fn save(&self, key: &Key, store: &Store, vocabulary: usize) -> io::Result<Store> {
        fs::create_dir_all(&self.folder)?;
        let path = self.file(key);
        self.put(&path, |out| write(out, key, store, Width::of(vocabulary)))?;
        self.tidy("tokens-")?;
        read(&File::open(&path)?, key).map_err(io::Error::other)
    }

    /// A tokenizer that was trained on a text: the text of its `tokenizer.json`.
    pub fn tokenizer(&self, key: &Key) -> Option<String> {
        fs::read_to_string(self.tokenizer_file(key)).ok()
    }

    /// Keeps a trained tokenizer.
    pub fn keep_tokenizer(&self, key: &Key, json: &str) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        self.put(&self.tokenizer_file(key), |out| out.write_all(json.as_bytes()))?;
        self.tidy("tokenizer-")
    }

    fn tokenizer_file(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("tokenizer-{}.json", &key.0[..32]))
    }

    /// A file that is there whole or not at all.
    fn put(&self, path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let partial = path.with_extension(format!("{}.partial", std::process::id()));
        let written = File::create(&partial).and_then(|file| {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            fill(&mut out)?;
            out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
        });
        let done = written.and_then(|()| fs::rename(&partial, path));
        if done.is_err() {
            // It may never have been made; the error that matters is the first one.
            let _ = fs::remove_file(&partial);
        }
        done
    }

    fn tidy(&self, prefix: &str) -> io::Result<()> {
        let mut files = vec![];
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                files.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        files.sort_unstable();
        let surplus = files.len().saturating_sub(MOST_FILES);
        files.iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

fn write(out: &mut dyn Write, key: &Key, store: &Store, width: Width) -> io::Result<()> {
    let mut checksum = crc32fast::Hasher::new();
    out.write_all(MAGIC)?;
    let mut bytes = Vec::with_capacity(1 << 18);
    for part in [&store.training, &store.validation] {
        for piece in part.tokens.all().chunks(1 << 16) {
            bytes.clear();
            match width {
                Width::Half => piece.iter().for_each(|&id| bytes.extend((id as u16).to_le_bytes())),
                Width::Whole => piece.iter().for_each(|&id| bytes.extend(id.to_le_bytes())),
            }
            checksum.update(&bytes);
            out.write_all(&bytes)?;
        }
    }
    let counts =
        |part: &Part| Counts { tokens: part.tokens.len(), characters: part.characters, bytes: part.bytes };
    let footer = Footer {
        key: key.0.clone(),
        bits: 8 * width.bytes() as u32,
        checksum: checksum.finalize(),
        training: counts(&store.training),
        validation: counts(&store.validation),
        stretches: store.stretches.clone(),
    };
    let footer = serde_json::to_vec(&footer)?;
    out.write_all(&footer)?;
    out.write_all(&(footer.len() as u64).to_le_bytes())?;
    out.write_all(MAGIC)
}

fn read(file: &File, key: &Key) -> Result<Store, String> {
    // SAFETY: the map is read-only. The file is only ever replaced as a whole, which leaves a mapped one as it is.
    let map = unsafe { Mmap::map(file) }.map_err(|error| error.to_string())?;
    let cut_short = || "it is cut short, or no such file".to_string();
    let inner = map.strip_prefix(MAGIC).and_then(|rest| rest.strip_suffix(MAGIC)).ok_or_else(cut_short)?;
    let (rest, length) = inner.split_last_chunk::<8>().ok_or_else(cut_short)?;
    let length = u64::from_le_bytes(*length);
    let footer_at = (rest.len() as u64).checked_sub(length).ok_or_else(cut_short)? as usize;
    let (payload, footer) = rest.split_at(footer_at);
    let footer: Footer = serde_json::from_slice(footer).map_err(|error| error.to_string())?;
    let width = match footer.bits {
        16 => Width::Half,
        32 => Width::Whole,
        other => return Err(format!("ids of {other} bits")),
    };
    if footer.key != key.0 {
        return Err("it is of another text or tokenizer".into());
    }
    let all = footer.training.tokens + footer.validation.tokens;
    if payload.len() != all * width.bytes() {
        return Err(format!("expected {all} tokens, got {} bytes", payload.len()));
    }
    if crc32fast::hash(payload) != footer.checksum {
        return Err("the checksum does not fit".into());
    }
    let map = Arc::new(map);
    let part = |counts: &Counts, first: usize| Part {
        tokens: Tokens::mapped(map.clone(), MAGIC.len() + first * width.bytes(), counts.tokens, width),
        characters: counts.characters,
        bytes: counts.bytes,
    };
    let (training, validation) =
        (part(&footer.training, 0), part(&footer.validation, footer.training.tokens));
    Ok(Store { training, validation, stretches: footer.stretches })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(ids: std::ops::Range<u32>) -> Store {
        let ids: Vec<u32> = ids.collect();
        let (training, validation) = ids.split_at(ids.len() * 9 / 10);
        let part = |ids: &[u32]| Part { tokens: ids.to_vec().into(), characters: 3, bytes: 4 };
        let tokens = 0..training.len();
        let stretch = Stretch { name: "a".into(), weight: Some(2.0), documents: 7, tokens };
        Store { training: part(training), validation: part(validation), stretches: vec![stretch] }
    }

    fn same(a: &Store, b: &Store) -> bool {
        a.training.tokens.all() == b.training.tokens.all()
            && a.validation.tokens.all() == b.validation.tokens.all()
            && (a.training.characters, a.training.bytes) == (b.training.characters, b.training.bytes)
            && a.stretches == b.stretches
    }

    #[test]
    fn tokens_come_back_in_16_and_in_32_bits() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("deep/er"));
        for (store, vocabulary, bytes) in [(store(0..1000), 65_536, 2), (store(69_000..70_001), 70_001, 4)] {
            let key = Key::of(&[&[bytes]]);
            assert!(matches!(cache.load(&key), Found::Nothing));
            assert!(same(&cache.save(&key, &store, vocabulary).unwrap(), &store));
            let Found::Whole(loaded) = cache.load(&key) else { panic!("it was just saved") };
            assert!(same(&loaded, &store));
            let size = fs::metadata(cache.file(&key)).unwrap().len();
            let tokens = store.training.tokens.len() + store.validation.tokens.len();
            assert!((size - tokens as u64 * u64::from(bytes)) < 400, "{size}");
            assert_eq!(loaded.training.tokens.range(3..5), store.training.tokens.range(3..5));
        }
    }

    #[test]
    fn a_file_that_was_cut_changed_or_taken_for_another_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let (key, other) = (Key::of(&[b"a", b"b"]), Key::of(&[b"ab"]));
        assert_ne!(key, other);
        cache.save(&key, &store(0..500), 500).unwrap();
        let path = cache.file(&key);
        let whole = fs::read(&path).unwrap();
        fs::copy(&path, cache.file(&other)).unwrap();
        assert!(matches!(cache.load(&other), Found::Damaged(reason) if reason.contains("another text")));
        for length in [0, 7, 9, 20, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(cache.load(&key), Found::Damaged(_)), "{length}");
        }
        for place in [0, 8, 500, whole.len() - 200, whole.len() - 12, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[place] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert!(matches!(cache.load(&key), Found::Damaged(_)), "{place}");
        }
        cache.save(&key, &store(0..500), 500).unwrap();
        assert!(matches!(cache.load(&key), Found::Whole(_)));
    }

    #[test]
    fn no_more_than_some_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let key = |number: u8| Key::of(&[&[number]]);
        for number in 0..MOST_FILES as u8 + 3 {
            cache.save(&key(number), &store(0..20), 20).unwrap();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), MOST_FILES);
        assert!(matches!(cache.load(&key(MOST_FILES as u8 + 2)), Found::Whole(_)));
        cache.keep_tokenizer(&key(0), "{}").unwrap();
        assert_eq!((cache.tokenizer(&key(0)).as_deref(), cache.tokenizer(&key(1))), (Some("{}"), None));
    }
}
