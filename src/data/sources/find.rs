//! Which files a source stands for, and in what form each is.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::pattern::{Pattern, is_pattern};
use crate::data::sources::Source;
use crate::data::text::{ending, files_of, is_packed, not_opened};
use crate::data::{Error, Result};

/// One file of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Where it lies.
    pub path: PathBuf,
    /// How it is written.
    pub format: Format,
    /// It came with others of a folder or pattern: nobody asked for this one, and it may be empty.
    pub among_others: bool,
}

/// How documents stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text.
    Text,
    /// A JSON object on each line.
    JsonLines,
    /// Columns with this byte between them.
    Table(u8),
    /// Columns of Apache Parquet.
    Parquet,
}

/// What is not read here, and what to do about it.
const UNREAD: [(&str, &str); 4] = [
    ("zst", "unpack it: zstd -d file.zst"),
    ("bz2", "unpack it: bunzip2 -k file.bz2"),
    ("xz", "unpack it: unxz -k file.xz"),
    ("zip", "unpack it: unzip file.zip"),
];

/// The files of a source, in reading order: a folder's and a pattern's in the byte order of their paths.
pub fn find(source: &Source) -> Result<Vec<File>> {
    let path = &source.path;
    let found = match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => in_folder(path, source)?,
        Ok(_) => vec![of(path, false)?],
        // A file may be called `a[1].txt`; what is no file may be a pattern.
        Err(error) => match path.to_str().is_some_and(is_pattern) {
            true => matches(path)?,
            false => return Err(not_opened(path, error)),
        },
    };
    check(source, &found)?;
    Ok(found)
}

fn matches(path: &Path) -> Result<Vec<File>> {
    let none = |reason: String| Error::Pattern { pattern: path.into(), reason };
    let is_plain = |part: &Component| !is_pattern(&part.as_os_str().to_string_lossy());
    let base: PathBuf = path.components().take_while(is_plain).collect();
    let wanted = Pattern::read(path.components().skip_while(is_plain)).map_err(none)?;
    let fits = |path: &Path| wanted.fits(path.strip_prefix(&base).expect("it was found below"));
    let mut found = Vec::new();
    walk(&base, wanted.depth(), &fits, &mut found)?;
    found.sort_unstable();
    if found.is_empty() {
        return Err(none("no file fits it".into()));
    }
    found.iter().map(|path| of(path, true)).collect()
}

/// Adds the files that are wanted in `folder` and, for a depth above one, in its folders. A linked folder may lead back up: it is
/// passed over, and so are hidden entries.
fn walk(folder: &Path, depth: usize, wanted: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) -> Result<()> {
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let unreadable = |source| Error::Unreadable { path: here.into(), source };
    for entry in fs::read_dir(here).map_err(|error| not_opened(here, error))? {
        let entry = entry.map_err(unreadable)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = folder.join(entry.file_name());
        if entry.file_type().map_err(unreadable)?.is_dir() {
            if depth > 1 {
                walk(&path, depth - 1, wanted, found)?;
            }
        } else if wanted(&path) && path.is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// A folder gives its text files; with `field` its `.jsonl` files, with `column` its tables.
fn in_folder(folder: &Path, source: &Source) -> Result<Vec<File>> {
    let endings: &[&str] = match (&source.field, &source.column) {
        (Some(_), _) => &["jsonl", "ndjson"],
        (None, Some(_)) => &["csv", "tsv", "parquet"],
        (None, None) => return files_of(folder)?.iter().map(|path| Ok(plain(path))).collect(),
    };
    let of_ending = |path: &Path| endings.contains(&ending(path).as_str());
    let mut paths = Vec::new();
    walk(folder, usize::MAX, &of_ending, &mut paths)?;
    if paths.is_empty() {
        let reason = format!("the folder holds no file ending in {}", endings.join(", "));
        return Err(Error::Pattern { pattern: folder.into(), reason });
    }
    paths.sort_unstable();
    paths.iter().map(|path| of(path, true)).collect()
}

fn plain(path: &Path) -> File {
    File { path: path.into(), format: Format::Text, among_others: true }
}

fn of(path: &Path, among_others: bool) -> Result<File> {
    let ending = ending(path);
    if let Some((_, hint)) = UNREAD.iter().find(|(unread, _)| ending == *unread) {
        return Err(Error::Packed { path: path.into(), hint });
    }
    let format = match ending.as_str() {
        "jsonl" | "ndjson" => Format::JsonLines,
        "csv" => Format::Table(b','),
        "tsv" => Format::Table(b'\t'),
        "parquet" if is_packed(path) => {
            return Err(Error::Packed { path: path.into(), hint: "unpack it: gunzip -k file.gz" });
        }
        "parquet" if cfg!(not(feature = "parquet")) => {
            return Err(Error::NotBuilt { path: path.into(), feature: "parquet" });
        }
        "parquet" => Format::Parquet,
        _ => Format::Text,
    };
    Ok(File { path: path.into(), format, among_others })
}

/// A key that none of the files of a source reads was written in vain.
fn check(source: &Source, files: &[File]) -> Result<()> {
    let any = |fits: fn(Format) -> bool| files.iter().any(|file| fits(file.format));
    let tables = any(|format| matches!(format, Format::Table(_)));
    let columns = tables || any(|format| format == Format::Parquet);
    let unread = [
        ("field", source.field.is_some(), any(|format| format == Format::JsonLines), ".jsonl"),
        ("column", source.column.is_some(), columns, ".csv, .tsv or .parquet"),
        ("header", source.header.is_some(), tables, ".csv or .tsv"),
        ("sample_by", source.sample_by.is_some(), any(|format| format == Format::Text), "plain text"),
    ];
    for (key, given, read, of) in unread {
        if given && !read {
            return Err(Error::UnreadKey { path: source.path.clone(), key, of });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.txt", "a/c.txt", "a/.hidden.txt", "a/d.jsonl", "a/e/f.txt", "a[1].txt", "g.csv"] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        folder
    }

    fn names(folder: &Path, source: &Source) -> Vec<String> {
        let name = |file: File| file.path.strip_prefix(folder).unwrap().display().to_string();
        find(source).unwrap().into_iter().map(name).collect()
    }

    #[test]
    fn a_pattern_gives_its_files_in_path_order_without_hidden_ones() {
        let folder = folder();
        let of = |pattern: &str| names(folder.path(), &Source::of(folder.path().join(pattern)));
        assert_eq!(of("**/*.txt"), ["a/c.txt", "a/e/f.txt", "a[1].txt", "b.txt"]);
        assert_eq!(of("a/*"), ["a/c.txt", "a/d.jsonl"]);
        // A file of that very name is the file.
        assert_eq!(of("a[1].txt"), ["a[1].txt"]);
    }

    #[test]
    fn a_folder_gives_what_the_keys_ask_for() {
        let folder = folder();
        let path = folder.path().to_path_buf();
        assert_eq!(names(&path, &Source::of(&path)), ["a/c.txt", "a/e/f.txt", "a[1].txt", "b.txt"]);
        let objects = Source { field: Some("text".into()), ..Source::of(&path) };
        assert_eq!(names(&path, &objects), ["a/d.jsonl"]);
        let table = Source { column: Some(crate::data::sources::Column::Number(1)), ..Source::of(&path) };
        assert_eq!(names(&path, &table), ["g.csv"]);
    }

    #[test]
    fn a_pattern_without_a_file_a_packed_file_and_a_key_in_vain_are_refused() {
        let folder = folder();
        let none = find(&Source::of(folder.path().join("*.md"))).unwrap_err();
        assert!(matches!(none, Error::Pattern { .. }), "{none}");
        for name in ["a.jsonl.zst", "b.txt.xz", "b.parquet.gz"] {
            let packed = folder.path().join(name);
            fs::write(&packed, "x").unwrap();
            assert!(matches!(find(&Source::of(packed)), Err(Error::Packed { .. })));
        }
        let columns = folder.path().join("b.parquet");
        fs::write(&columns, "x").unwrap();
        match find(&Source::of(columns)) {
            Ok(found) => assert!(cfg!(feature = "parquet") && found[0].format == Format::Parquet),
            Err(error) => {
                assert!(cfg!(not(feature = "parquet")) && matches!(error, Error::NotBuilt { .. }), "{error}");
                assert!(error.to_string().contains("--features parquet"), "{error}");
            }
        }
        let vain = Source { field: Some("text".into()), ..Source::of(folder.path().join("b.txt")) };
        assert!(matches!(find(&vain), Err(Error::UnreadKey { key: "field", .. })));
        let missing = find(&Source::of(folder.path().join("c.txt"))).unwrap_err();
        assert!(matches!(missing, Error::Missing { .. }), "{missing}");
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_in_circles_end() {
        let folder = folder();
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/back")).unwrap();
        std::os::unix::fs::symlink("loop.txt", folder.path().join("loop.txt")).unwrap();
        let all = ["a/c.txt", "a/e/f.txt", "a[1].txt", "b.txt"];
        assert_eq!(names(folder.path(), &Source::of(folder.path())), all);
        assert_eq!(names(folder.path(), &Source::of(folder.path().join("**/*.txt"))), all);
        let circle = find(&Source::of(folder.path().join("loop.txt"))).unwrap_err();
        assert!(matches!(circle, Error::Unreadable { .. }), "{circle}");
    }
}
