//! The user's files as texts with the numbers of their lines.
//!
//! Of a folder all files are read whose bytes are text in UTF-8, whatever their names, with those of its folders, in the byte order of
//! their paths; names that begin with a dot and linked folders are passed over. What holds a zero byte or is no UTF-8 is binary, and
//! counted. Of `.jsonl` files each row is a text: its top-level fields that are texts, in their order.

use super::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Larger files are no notes: they are passed over and counted.
pub const MOST_BYTES: u64 = 64 << 20;

/// A file as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Seen {
    /// From the folder, with `/` between names.
    pub path: String,
    /// Its bytes.
    pub size_bytes: u64,
    /// When it was last changed, in nanoseconds of Unix time; 0 where the system does not say.
    pub changed_ns: u128,
}

/// A stretch of a file that is cut by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its first line, counted from one.
    pub line: usize,
    /// Its text.
    pub text: String,
    /// All of it stands on that line: a row of a `.jsonl` file.
    pub is_row: bool,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Text, and the hash of its bytes.
    Text(Vec<Section>, String),
    /// Not text.
    Binary,
    /// No byte that is not white space.
    Empty,
    /// It cannot be opened.
    Closed,
    /// More than [`MOST_BYTES`].
    Large,
}

/// Files that are not read, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Skipped {
    /// Not UTF-8, or with zero bytes.
    pub binary: usize,
    /// Without text.
    pub empty: usize,
    /// That may not be read.
    pub closed: usize,
    /// Larger than [`MOST_BYTES`].
    pub large: usize,
}

impl Skipped {
    /// Counts a file, if it is skipped.
    pub fn add(&mut self, content: &Content) {
        match content {
            Content::Text(..) => {}
            Content::Binary => self.binary += 1,
            Content::Empty => self.empty += 1,
            Content::Closed => self.closed += 1,
            Content::Large => self.large += 1,
        }
    }

    /// In words; empty where there are none.
    pub fn told(&self) -> String {
        let parts = [
            (self.binary, "binary"),
            (self.empty, "empty"),
            (self.closed, "not readable"),
            (self.large, "larger than 64 MiB"),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        parts.join(", ")
    }
}

/// The files of a folder, in the byte order of their paths; of a file, itself.
pub fn list(root: &Path) -> Result<Vec<(PathBuf, Seen)>> {
    let metadata = fs::metadata(root).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Missing { path: root.into() },
        _ => Error::Unreadable { path: root.into(), source },
    })?;
    let mut found = vec![];
    if metadata.is_dir() {
        collect(root, "", &mut found)?;
    } else {
        let name = root.file_name().unwrap_or_default().to_string_lossy().to_string();
        found.push((root.into(), seen(name, &metadata)));
    }
    found.sort_by(|a, b| a.1.path.cmp(&b.1.path));
    Ok(found)
}

fn collect(folder: &Path, before: &str, found: &mut Vec<(PathBuf, Seen)>) -> Result<()> {
    let unreadable = |source| Error::Unreadable { path: folder.into(), source };
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().to_string();
        if name.starts_with('.') {
            continue;
        }
        let (path, inside) = (entry.path(), format!("{before}{name}"));
        // A linked folder may lead back up; a linked file is a file.
        if entry.file_type().map_err(unreadable)?.is_dir() {
            collect(&path, &format!("{inside}/"), found)?;
        } else if let Ok(metadata) = fs::metadata(&path)
            && metadata.is_file()
        {
            found.push((path, seen(inside, &metadata)));
        }
    }
    Ok(())
}

fn seen(path: String, metadata: &fs::Metadata) -> Seen {
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Seen { path, size_bytes: metadata.len(), changed_ns: changed.map_or(0, |time| time.as_nanos()) }
}

/// Reads a file.
pub fn read(path: &Path) -> Content {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > MOST_BYTES) {
        return Content::Large;
    }
    let Ok(bytes) = fs::read(path) else { return Content::Closed };
    let hash = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let text = match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => text,
        _ => return Content::Binary,
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    if text.trim().is_empty() {
        return Content::Empty;
    }
    let is_rows = path
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("jsonl") || ending.eq_ignore_ascii_case("ndjson"));
    let sections = match is_rows {
        true => text.lines().enumerate().filter_map(|(at, line)| row(at + 1, line)).collect(),
        false => vec![Section { line: 1, text: text.into(), is_row: false }],
    };
    if sections.is_empty() { Content::Empty } else { Content::Text(sections, hash) }
}

/// The texts of a row; a line that is no object of JSON is a text as it is.
fn row(line: usize, text: &str) -> Option<Section> {
    let text = match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text) {
        Ok(fields) => {
            let texts: Vec<&str> = fields.values().filter_map(serde_json::Value::as_str).collect();
            texts.join("\n")
        }
        Err(_) => text.to_string(),
    };
    (!text.trim().is_empty()).then_some(Section { line, text, is_row: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_folder_come_in_the_order_of_their_paths_and_hidden_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/.git")).unwrap();
        for name in ["b.txt", "a/z.md", "a/.git/config", ".hidden", "a/c.rs"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        let names: Vec<String> =
            list(folder.path()).unwrap().into_iter().map(|(_, seen)| seen.path).collect();
        assert_eq!(names, ["a/c.rs", "a/z.md", "b.txt"]);
        let one = list(&folder.path().join("b.txt")).unwrap();
        assert_eq!((one.len(), one[0].1.path.as_str(), one[0].1.size_bytes), (1, "b.txt", 1));
        assert!(matches!(list(&folder.path().join("none")), Err(Error::Missing { .. })));
    }

    #[test]
    fn bytes_that_are_no_text_are_told_apart_and_rows_give_their_texts() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str, bytes: &[u8]| {
            std::fs::write(folder.path().join(name), bytes).unwrap();
            read(&folder.path().join(name))
        };
        assert_eq!(of("a", b"\x89PNG\0"), Content::Binary);
        assert_eq!(of("b", b"caf\xe9"), Content::Binary);
        assert_eq!(of("c", b" \n"), Content::Empty);
        assert_eq!(of("c.jsonl", b"{\"n\": 1}\n"), Content::Empty);
        assert_eq!(read(&folder.path().join("none")), Content::Closed);
        let Content::Text(rows, _) =
            of("d.jsonl", b"{\"title\": \"Sea\", \"n\": 1, \"text\": \"Salt.\"}\n\nplain\n")
        else {
            panic!("it is text");
        };
        let row = |line, text: &str| Section { line, text: text.into(), is_row: true };
        assert_eq!(rows, [row(1, "Sea\nSalt."), row(3, "plain")]);
    }
}
