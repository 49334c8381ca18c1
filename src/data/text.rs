//! Text files and folders, memory-mapped and checked to be UTF-8. What ends in `.gz` is unpacked.
//!
//! A file named by the user is taken whatever its ending. A folder gives its `.txt`, `.text` and `.md` files, packed or not, with
//! those of its folders, in the byte order of their paths; hidden entries and linked folders are passed over.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use memmap2::Mmap;

use crate::data::{Error, Result};

const ENDINGS: [&str; 3] = ["txt", "text", "md"];
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// The user's text: one or more files.
#[derive(Debug)]
pub struct Text {
    documents: Vec<Document>,
}

/// One file, known to be UTF-8: mapped, or unpacked where its name ends in `.gz`.
#[derive(Debug)]
pub struct Document {
    path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Unpacked(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Unpacked(bytes) => bytes,
        }
    }
}

impl Text {
    /// Maps and checks all `paths`, files and folders, in the order given.
    ///
    /// Errors name the file: missing, unreadable, empty, binary, or not UTF-8 (with the offset of the byte). An
    /// empty file inside a folder is passed over as long as another one holds text.
    pub fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Text> {
        if paths.is_empty() {
            return Err(Error::NoText);
        }
        let mut documents = Vec::new();
        for path in paths {
            let path = path.as_ref();
            let metadata = fs::metadata(path).map_err(|source| not_opened(path, source))?;
            if metadata.is_dir() {
                documents.append(&mut open_folder(path)?);
            } else {
                documents.push(Document::open(path)?);
            }
        }
        Ok(Text { documents })
    }

    /// From files that are open already.
    pub(super) fn of(documents: Vec<Document>) -> Text {
        Text { documents }
    }

    /// The files, in reading order.
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// The whole text. One file is lent as it is mapped; several are copied one after the other, with a line end
    /// after each that lacks one.
    pub fn contents(&self) -> Cow<'_, str> {
        if let [document] = self.documents.as_slice() {
            return Cow::Borrowed(document.contents());
        }
        let mut whole =
            String::with_capacity(self.documents.iter().map(|document| document.bytes.len() + 1).sum());
        for document in &self.documents {
            whole.push_str(document.contents());
            if !whole.ends_with('\n') {
                whole.push('\n');
            }
        }
        Cow::Owned(whole)
    }
}

impl Document {
    /// Maps or unpacks one file and checks it.
    pub fn open(path: &Path) -> Result<Document> {
        if is_packed(path) {
            let mut bytes = vec![];
            let unreadable = |source| Error::Unreadable { path: path.into(), source };
            unpacked(path)?.read_to_end(&mut bytes).map_err(unreadable)?;
            check(path, &bytes)?;
            return Ok(Document { path: path.into(), bytes: Bytes::Unpacked(bytes) });
        }
        let file = File::open(path).map_err(|source| not_opened(path, source))?;
        // SAFETY: the map is private to this process and read-only. As with every mapped file, another program that
        // truncates it while we run ends us; we check the bytes once and read them soon after.
        let map =
            unsafe { Mmap::map(&file) }.map_err(|source| Error::Unreadable { path: path.into(), source })?;
        check(path, &map)?;
        Ok(Document { path: path.into(), bytes: Bytes::Mapped(map) })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its text, less a byte-order mark.
    pub fn contents(&self) -> &str {
        let text = std::str::from_utf8(&self.bytes).expect("checked when it was opened");
        text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
    }
}

/// The text files of a folder, in the byte order of their paths.
pub(super) fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    collect(folder, &mut paths)?;
    if paths.is_empty() {
        return Err(Error::NoTextInFolder { path: folder.into() });
    }
    paths.sort_unstable();
    Ok(paths)
}

fn open_folder(folder: &Path) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    let mut first_empty = None;
    for path in files_of(folder)? {
        match Document::open(&path) {
            Ok(document) => documents.push(document),
            Err(Error::Empty { path }) => first_empty = first_empty.or(Some(path)),
            Err(error) => return Err(error),
        }
    }
    match first_empty {
        Some(path) if documents.is_empty() => Err(Error::Empty { path }),
        _ => Ok(documents),
    }
}

/// Adds the text files below `folder` to `paths`, in no order.
fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    let unreadable = |source| Error::Unreadable { path: folder.into(), source };
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        // A linked folder may lead back up; a linked file is a file.
        if entry.file_type().map_err(unreadable)?.is_dir() {
            collect(&path, paths)?;
        } else if has_text_ending(&path) && path.is_file() {
            paths.push(path);
        }
    }
    Ok(())
}

fn has_text_ending(path: &Path) -> bool {
    ENDINGS.contains(&ending(path).as_str())
}

/// What a name ends in behind its last point, in small letters; of a packed file, before `.gz`.
pub fn ending(path: &Path) -> String {
    let unpacked = if is_packed(path) { path.with_extension("") } else { path.into() };
    unpacked.extension().map(|ending| ending.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// Whether a name says that gzip packed the file.
pub fn is_packed(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gz"))
}

/// The bytes that gzip packed, of all its members.
pub(super) fn unpacked(path: &Path) -> Result<impl Read + Send + use<>> {
    let file = File::open(path).map_err(|source| not_opened(path, source))?;
    Ok(Unpacked(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, file))))
}

/// Errors of gzip, told as such.
struct Unpacked(MultiGzDecoder<BufReader<File>>);

impl Read for Unpacked {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                io::Error::new(io::ErrorKind::InvalidData, format!("what gzip packed is damaged: {error}"))
            }
            _ => error,
        })
    }
}

fn check(path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() || bytes == BYTE_ORDER_MARK.as_bytes() {
        return Err(Error::Empty { path: path.into() });
    }
    if let Some(offset_bytes) = bytes.iter().position(|&byte| byte == 0) {
        let hint = match bytes {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
                "it is UTF-16: iconv -f utf-16 -t utf-8 < old.txt > new.txt"
            }
            _ => "give a plain text file",
        };
        return Err(Error::Binary { path: path.into(), offset_bytes, hint });
    }
    std::str::from_utf8(bytes).map(|_| ()).map_err(|error| {
        let offset_bytes = error.valid_up_to();
        Error::NotUtf8 { path: path.into(), offset_bytes, byte: bytes[offset_bytes] }
    })
}

pub(super) fn not_opened(path: &Path, source: std::io::Error) -> Error {
    if source.kind() != std::io::ErrorKind::NotFound {
        return Error::Unreadable { path: path.into(), source };
    }
    Error::Missing { path: path.into(), hint: near_name(path) }
}

/// "did you mean ..." from the names that do exist beside `path`, or the folder to look from.
fn near_name(path: &Path) -> String {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let wanted = path.file_name().unwrap_or_default().to_string_lossy();
    let names = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let nearest = names
        .map(|name| (strsim::jaro_winkler(&wanted, &name.to_string_lossy()), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(&a.1)));
    match nearest {
        Some((_, name)) => format!("did you mean {}?", path.with_file_name(name).display()),
        None if path.is_absolute() => "check the path".into(),
        None => match std::env::current_dir() {
            Ok(folder) => format!("relative paths start from {}", folder.display()),
            Err(_) => "check the path".into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        folder
    }

    fn refusal(name: &str, bytes: &[u8]) -> Error {
        let folder = folder_with(&[(name, bytes)]);
        Text::open(&[folder.path().join(name)]).unwrap_err()
    }

    #[test]
    fn a_folder_gives_its_text_files_in_path_order() {
        let folder = folder_with(&[
            ("b.txt", b"two\n"),
            ("a/z.md", "één".as_bytes()),
            ("c.MD", b"three"),
            ("image.png", b"\x89PNG\0"),
            (".hidden.txt", b"no"),
            ("d.txt", b""),
        ]);
        let text = Text::open(&[folder.path()]).unwrap();
        assert_eq!(text.contents(), "één\ntwo\nthree\n");
        assert_eq!(text.documents().len(), 3);
    }

    #[test]
    fn a_named_file_is_lent_as_it_is_whatever_its_ending() {
        let folder = folder_with(&[("notes.log", b"\xef\xbb\xbfline without end")]);
        let text = Text::open(&[folder.path().join("notes.log")]).unwrap();
        assert!(matches!(text.contents(), Cow::Borrowed("line without end")));
    }

    #[test]
    fn a_missing_file_hints_at_the_nearest_name() {
        let folder = folder_with(&[("shakespeare.txt", b"x"), ("other", b"x")]);
        let error = Text::open(&[folder.path().join("shakespare.txt")]).unwrap_err();
        assert!(matches!(&error, Error::Missing { hint, .. } if hint.contains("shakespeare.txt")), "{error}");
    }

    #[test]
    fn empty_binary_and_foreign_bytes_are_refused_each_by_its_name() {
        assert!(matches!(refusal("a.txt", b""), Error::Empty { .. }));
        assert!(matches!(refusal("a.txt", b"ab\0c"), Error::Binary { offset_bytes: 2, .. }));
        let utf16 = refusal("a.txt", b"\xff\xfea\0b\0");
        assert!(matches!(utf16, Error::Binary { hint, .. } if hint.contains("utf-16")));
        assert!(matches!(
            refusal("a.txt", b"caf\xe9 au"),
            Error::NotUtf8 { offset_bytes: 3, byte: 0xe9, .. }
        ));
    }

    #[test]
    fn a_folder_without_text_and_no_path_at_all_are_refused() {
        let folder = folder_with(&[("image.png", b"\0")]);
        assert!(matches!(Text::open(&[folder.path()]), Err(Error::NoTextInFolder { .. })));
        let folder = folder_with(&[("a.txt", b"")]);
        assert!(matches!(Text::open(&[folder.path()]), Err(Error::Empty { .. })));
        assert!(matches!(Text::open::<&Path>(&[]), Err(Error::NoText)));
    }
}
