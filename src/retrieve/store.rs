//! An index on disk, so that files are read and cut again only when they change.
//!
//! ```text
//! CACHE/retrieve/<key>/passages.json        hash of the rest | files as they were seen, passages, hashes of the other files
//!                      words/ or vectors.safetensors
//! ```
//!
//! The key is a hash of the folder, the lengths and the way of seeking. An index is made under another name and renamed; what does not
//! agree with its hashes is made anew.

use super::Passage;
use super::cut::Lengths;
use super::gather::{Seen, Skipped};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Changes when what is kept does.
const VERSION: u32 = 1;

const PASSAGES: &str = "passages.json";

/// Indexes beyond so many go, those unused for longest first.
const MOST_INDEXES: usize = 16;

/// A file as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Path, size and time.
    pub seen: Seen,
    /// Hash of its bytes; none where it is no text.
    pub hash: Option<String>,
    /// Its passages follow those of the files before it.
    pub passages: usize,
}

/// What was made of a folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    version: u32,
    /// Files, in order.
    pub files: Vec<Known>,
    /// Of these, those without text.
    pub skipped: Skipped,
    /// Passages, in the order of the files.
    pub passages: Vec<Passage>,
    /// Hashes of what lies beside, by path.
    beside: BTreeMap<String, String>,
}

impl Stored {
    /// Nothing lies beside yet.
    pub fn new(files: Vec<Known>, skipped: Skipped, passages: Vec<Passage>) -> Stored {
        Stored { version: VERSION, files, skipped, passages, beside: BTreeMap::new() }
    }

    /// The same passages, of files as they were seen now.
    pub fn seen_again(self, now: Stored) -> Stored {
        Stored { files: now.files, skipped: now.skipped, ..self }
    }
}

/// The folder of an index below that of all caches.
pub fn place(cache: &Path, root: &Path, lengths: Lengths, way: &str) -> PathBuf {
    let root = root.canonicalize().unwrap_or_else(|_| root.to_path_buf());
    let parts = format!("{VERSION}\n{}\n{}\n{}\n{way}", root.display(), lengths.size, lengths.overlap);
    cache.join("retrieve").join(hash(parts.as_bytes()))
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What lies in a folder: nothing, or an index whose every byte is as it was written; else what is wrong with it.
pub fn load(folder: &Path) -> Result<Option<Stored>, String> {
    let path = folder.join(PASSAGES);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(_) if !folder.exists() => return Ok(None),
        Err(error) => return Err(format!("{PASSAGES}: {error}")),
    };
    let (sum, rest) = text.split_once('\n').unwrap_or_default();
    if hash(rest.as_bytes()) != sum {
        return Err(format!("{PASSAGES} is not as it was written"));
    }
    let stored: Stored = serde_json::from_str(rest).map_err(|error| format!("{PASSAGES}: {error}"))?;
    if stored.version != VERSION {
        return Err(format!("it is of version {}, expected {VERSION}", stored.version));
    }
    for (name, sum) in &stored.beside {
        let bytes = fs::read(folder.join(name)).map_err(|error| format!("{name}: {error}"))?;
        if hash(&bytes) != *sum {
            return Err(format!("{name} is not as it was written"));
        }
    }
    // Says that it was used; a file system that does not keep that keeps the index all the same.
    let _ =
        fs::File::options().append(true).open(&path).and_then(|file| file.set_modified(SystemTime::now()));
    Ok(Some(stored))
}

/// Writes the passages over those that lie in a folder; what lies beside stays.
pub fn rewrite(folder: &Path, stored: &Stored) -> io::Result<()> {
    let rest = serde_json::to_string(stored).map_err(io::Error::other)?;
    let partial = folder.join(format!("{PASSAGES}.{}", std::process::id()));
    fs::write(&partial, format!("{}\n{rest}", hash(rest.as_bytes())))?;
    fs::rename(partial, folder.join(PASSAGES))
}

/// Makes an index: `fill` writes what lies beside the passages into a folder of another name, which then takes the place of what was there.
pub fn save<E: From<io::Error>>(
    folder: &Path,
    stored: &mut Stored,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    // Of this process alone: another one may be making the same index.
    let partial = folder.with_extension(format!("{}.partial", std::process::id()));
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    let made = fill(&partial).and_then(|()| {
        stored.beside.clear();
        beside(&partial, "", &mut stored.beside)?;
        rewrite(&partial, stored)?;
        let _ = fs::remove_dir_all(folder);
        Ok(fs::rename(&partial, folder)?)
    });
    if made.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    if let Some(all) = folder.parent() {
        let _ = tidy(all);
    }
    made
}

fn beside(folder: &Path, before: &str, found: &mut BTreeMap<String, String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_string();
        match path.is_dir() {
            true => beside(&path, &format!("{before}{name}/"), found)?,
            // Locks come and go.
            false if name.ends_with(".lock") => {}
            false => drop(found.insert(format!("{before}{name}"), hash(&fs::read(&path)?))),
        }
    }
    Ok(())
}

fn tidy(all: &Path) -> io::Result<()> {
    let mut indexes = vec![];
    for entry in fs::read_dir(all)? {
        let path = entry?.path();
        if let Ok(used) = fs::metadata(path.join(PASSAGES)).and_then(|metadata| metadata.modified()) {
            indexes.push((used, path));
        }
    }
    indexes.sort_unstable();
    let surplus = indexes.len().saturating_sub(MOST_INDEXES);
    indexes.iter().take(surplus).try_for_each(|(_, path)| fs::remove_dir_all(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Stored {
        let passage = Passage { path: "a.md".into(), first_line: 1, last_line: 2, text: "Salt.".into() };
        let seen = Seen { path: "a.md".into(), size_bytes: 5, changed_ns: u128::from(u64::MAX) + 1 };
        let known = Known { seen, hash: Some("00".into()), passages: 1 };
        Stored::new(vec![known], Skipped { binary: 2, ..Skipped::default() }, vec![passage])
    }

    fn put(folder: &Path) -> Stored {
        let mut one = stored();
        save(folder, &mut one, |partial| {
            fs::create_dir(partial.join("words"))?;
            fs::write(partial.join("words/a"), b"123")
        })
        .unwrap();
        one
    }

    #[test]
    fn what_is_kept_comes_back_and_a_changed_byte_anywhere_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("retrieve/key");
        assert_eq!(load(&place), Ok(None));
        let one = put(&place);
        assert_eq!(load(&place), Ok(Some(one.clone())));
        for name in ["words/a", PASSAGES] {
            let whole = fs::read(place.join(name)).unwrap();
            let mut broken = whole.clone();
            *broken.last_mut().unwrap() ^= 1;
            for bytes in [&broken[..], &whole[..whole.len() - 1], b""] {
                fs::write(place.join(name), bytes).unwrap();
                assert!(load(&place).is_err(), "{name}");
            }
            fs::write(place.join(name), whole).unwrap();
        }
        assert_eq!(load(&place), Ok(Some(one)));
        fs::remove_file(place.join(PASSAGES)).unwrap();
        assert!(load(&place).is_err());
        put(&place);
        assert!(load(&place).is_ok());
    }

    #[test]
    fn what_was_unused_for_longest_goes() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..MOST_INDEXES + 3 {
            put(&folder.path().join(format!("{number}")));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), MOST_INDEXES);
        assert!(load(&folder.path().join(format!("{}", MOST_INDEXES + 2))).unwrap().is_some());
    }
}
