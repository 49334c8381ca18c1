//! Documents of one file, one at a time, however large the file is.
//!
//! Each comes with a [`Mark`]: opened there, the file gives that document first. A row that cannot be read is an error with
//! its line, or, where asked for, counted and passed over. Rows without text are passed over in any case.

use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::table::Table;
use super::{File, Format, SampleBy, Source, USUAL_FIELD};
use crate::data::text::{Document, is_packed, not_opened, unpacked};
use crate::data::{Error, Result};

const BUFFER_BYTES: usize = 1 << 18;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A plain text that is read in pieces has at least so many bytes in each, up to the end of a line.
const PIECE_BYTES: usize = 1 << 16;

/// Where a document begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Byte of the file.
    pub at: u64,
    /// Lines before it, so that messages count on.
    pub line: u64,
}

/// A document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Its text.
    pub text: String,
    /// What opens the file here.
    pub mark: Mark,
    /// What opens the file behind it.
    pub next: Mark,
    /// The whole line of a `.jsonl` file, where it was asked for.
    pub whole: Option<String>,
    /// False for a piece of a text that goes on in the next one.
    pub ends: bool,
}

/// Rows that could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bad {
    /// Whether they are passed over.
    pub skip: bool,
    /// How many were.
    pub count: u64,
    /// What was wrong with the first, in a line.
    pub first: Option<String>,
}

impl Bad {
    /// None yet.
    pub fn new(skip: bool) -> Bad {
        Bad { skip, ..Bad::default() }
    }

    /// Counts those of another file.
    pub fn add(&mut self, other: &Bad) {
        self.count += other.count;
        if self.first.is_none() {
            self.first.clone_from(&other.first);
        }
    }

    /// What a person should know of them, if there were any.
    pub fn told(&self) -> Option<String> {
        let first = self.first.as_deref()?;
        let rows = if self.count == 1 { "row" } else { "rows" };
        Some(format!("{} bad {rows} passed over; the first: {first}", self.count))
    }

    fn take(&mut self, error: Error) -> Result<()> {
        let of_row = matches!(error, Error::Row { .. } | Error::NotUtf8 { .. } | Error::Binary { .. });
        if !(self.skip && of_row) {
            return Err(error);
        }
        self.count += 1;
        if self.first.is_none() {
            self.first = error.to_string().lines().next().map(str::to_string);
        }
        Ok(())
    }
}

/// The documents of one file.
pub struct Rows {
    inner: Box<dyn Inner>,
    /// Those that could not be read.
    pub bad: Bad,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("bad", &self.bad).finish_non_exhaustive()
    }
}

/// One way to read a file. A row that cannot be read does not keep the next one from being read.
pub(super) trait Inner: Send {
    fn next(&mut self) -> Option<Result<Row>>;
}

/// How files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// Bad rows are passed over.
    pub skip_bad: bool,
    /// The whole line comes with each document of a `.jsonl` file.
    pub keep_lines: bool,
    /// Plain texts come in pieces rather than whole.
    pub in_pieces: bool,
}

impl Rows {
    /// Opens a file of a source at a mark of it.
    pub fn open(file: &File, source: &Source, manner: Manner, mark: Mark) -> Result<Rows> {
        let skip = manner.skip_bad;
        let inner: Box<dyn Inner> = match (file.format, source.sample_by) {
            (Format::JsonLines, _) => {
                let field = source.field.clone().unwrap_or(USUAL_FIELD.into());
                Box::new(Objects { lines: Lines::open(file, mark)?, field, keep_lines: manner.keep_lines })
            }
            (Format::Table(delimiter), _) => Box::new(Table::open(file, source, delimiter, mark)?),
            #[cfg(feature = "parquet")]
            (Format::Parquet, _) => Box::new(super::parquet::Parquet::open(file, source, mark)?),
            #[cfg(not(feature = "parquet"))]
            (Format::Parquet, _) => {
                return Err(Error::NotBuilt { path: file.path.clone(), feature: "parquet" });
            }
            (Format::Text, Some(SampleBy::Line)) => Box::new(Paragraphs::open(file, mark, false)?),
            (Format::Text, Some(SampleBy::Paragraph)) => Box::new(Paragraphs::open(file, mark, true)?),
            (Format::Text, None | Some(SampleBy::Document)) if manner.in_pieces => {
                Box::new(Pieces { lines: Lines::open(file, mark)? })
            }
            (Format::Text, None | Some(SampleBy::Document)) => {
                Box::new(Whole { file: Some(file.clone()).filter(|_| mark.at == 0) })
            }
        };
        Ok(Rows { inner, bad: Bad::new(skip) })
    }

    /// The next document that has text.
    pub fn next_row(&mut self) -> Result<Option<Row>> {
        loop {
            match self.inner.next() {
                None => return Ok(None),
                Some(Ok(row)) if row.text.is_empty() => {}
                Some(Ok(row)) => return Ok(Some(row)),
                Some(Err(error)) => self.bad.take(error)?,
            }
        }
    }
}

/// Opens a file for reading from a byte on: of what was packed, by unpacking all that stands before.
fn open_at(file: &File, at: u64) -> Result<Box<dyn BufRead + Send>> {
    let unreadable = |source| Error::Unreadable { path: file.path.clone(), source };
    if is_packed(&file.path) {
        let mut opened = BufReader::with_capacity(BUFFER_BYTES, unpacked(&file.path)?);
        io::copy(&mut opened.by_ref().take(at), &mut io::sink()).map_err(unreadable)?;
        return Ok(Box::new(opened));
    }
    let mut opened = fs::File::open(&file.path).map_err(|source| not_opened(&file.path, source))?;
    opened.seek(SeekFrom::Start(at)).map_err(unreadable)?;
    Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, opened)))
}

/// Lines with their bytes and marks.
pub(super) struct Lines {
    path: PathBuf,
    input: Box<dyn BufRead + Send>,
    next: Mark,
    line: Vec<u8>,
}

impl Lines {
    pub(super) fn open(file: &File, mark: Mark) -> Result<Lines> {
        let input = open_at(file, mark.at)?;
        Ok(Lines { path: file.path.clone(), input, next: mark, line: vec![] })
    }

    /// Reads the next line into `line`, its end included, and gives its mark.
    pub(super) fn read(&mut self) -> Result<Option<Mark>> {
        self.line.clear();
        let read = self.input.read_until(b'\n', &mut self.line);
        let bytes = read.map_err(|source| Error::Unreadable { path: self.path.clone(), source })? as u64;
        if bytes == 0 {
            return Ok(None);
        }
        let mark = self.next;
        self.next = Mark { at: mark.at + bytes, line: mark.line + 1 };
        if mark.at == 0 && self.line.starts_with(BYTE_ORDER_MARK) {
            self.line.drain(..BYTE_ORDER_MARK.len());
        }
        Ok(Some(mark))
    }

    /// The line that was read, with its end.
    pub(super) fn line(&self) -> &[u8] {
        &self.line
    }

    /// The mark of the line behind it.
    pub(super) fn next(&self) -> Mark {
        self.next
    }

    /// The line as text.
    fn text(&self, mark: Mark) -> Result<&str> {
        let offset = |within: usize| {
            let dropped = self.next.at - mark.at - self.line.len() as u64;
            (mark.at + dropped) as usize + within
        };
        utf8(&self.path, &self.line, offset)
    }
}

fn utf8<'a>(path: &Path, bytes: &'a [u8], offset: impl Fn(usize) -> usize) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Error::NotUtf8 { path: path.into(), offset_bytes: offset(at), byte: bytes[at] }
    })
}

fn no_zero(path: &Path, text: &str, from: usize) -> Result<()> {
    match text.bytes().position(|byte| byte == 0) {
        None => Ok(()),
        Some(at) => {
            let hint = "give a plain text file";
            Err(Error::Binary { path: path.into(), offset_bytes: from + at, hint })
        }
    }
}

/// A line without its end, be it `\n` or `\r\n`.
fn without_end(line: &str) -> &str {
    let line = line.strip_suffix('\n').unwrap_or(line);
    line.strip_suffix('\r').unwrap_or(line)
}

/// A JSON object on each line.
struct Objects {
    lines: Lines,
    field: String,
    keep_lines: bool,
}

impl Inner for Objects {
    fn next(&mut self) -> Option<Result<Row>> {
        loop {
            let mark = match self.lines.read() {
                Ok(mark) => mark?,
                Err(error) => return Some(Err(error)),
            };
            let line = match self.lines.text(mark) {
                Ok(line) => without_end(line),
                Err(error) => return Some(Err(error)),
            };
            if line.trim().is_empty() {
                continue;
            }
            let whole = self.keep_lines.then(|| line.to_string());
            let next = self.lines.next;
            let row = text_of(line, &self.field).map(|text| Row { text, mark, next, whole, ends: true });
            let (path, line) = (self.lines.path.clone(), mark.line + 1);
            return Some(row.map_err(|reason| Error::Row { path, line, reason }));
        }
    }
}

/// The text under a key of a JSON object, or under `outer.inner`.
fn text_of(line: &str, field: &str) -> Result<String, String> {
    let mut json = serde_json::Deserializer::from_str(line);
    let found = Pick(field).deserialize(&mut json).and_then(|found| json.end().map(|()| found));
    match found.map_err(|error| format!("expected a JSON object: {error}"))? {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("expected text for `{field}`, got {}", short(&other.to_string()))),
        None => below(line, field),
    }
}

/// What is not there by its whole name may be a key of an object within.
fn below(line: &str, field: &str) -> Result<String, String> {
    let object: serde_json::Map<String, Value> =
        serde_json::from_str(line).map_err(|error| format!("expected a JSON object: {error}"))?;
    if let Some((outer, inner)) = field.split_once('.')
        && let Some(Value::Object(within)) = object.get(outer)
    {
        return text_of(&Value::Object(within.clone()).to_string(), inner);
    }
    let keys: Vec<&str> = object.keys().map(String::as_str).collect();
    Err(match keys.is_empty() {
        true => format!("there is no `{field}`, the object is empty"),
        false => format!("there is no `{field}`, only {}", short(&keys.join(", "))),
    })
}

fn short(text: &str) -> String {
    if text.chars().count() <= 80 {
        text.into()
    } else {
        text.chars().take(77).chain("...".chars()).collect()
    }
}

/// Reads one key of an object and passes over the others, checking all.
struct Pick<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Pick<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Pick<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object in braces")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Option<Value>, M::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<std::borrow::Cow<str>>()? {
            if key == self.0 {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Lines of a text, or what stands between blank ones.
struct Paragraphs {
    lines: Lines,
    joins: bool,
}

impl Paragraphs {
    fn open(file: &File, mark: Mark, joins: bool) -> Result<Paragraphs> {
        Ok(Paragraphs { lines: Lines::open(file, mark)?, joins })
    }

    fn read(&mut self) -> Result<Option<Row>> {
        let mut row: Option<Row> = None;
        while let Some(mark) = self.lines.read()? {
            let line = without_end(self.lines.text(mark)?);
            no_zero(&self.lines.path, line, mark.at as usize)?;
            match (&mut row, line.trim().is_empty()) {
                (None, true) => {}
                (None, false) => row = Some(Row { text: line.into(), mark, ends: true, ..Row::default() }),
                (Some(_), true) => break,
                (Some(row), false) => {
                    row.text.push('\n');
                    row.text.push_str(line);
                }
            }
            if !self.joins && row.is_some() {
                break;
            }
        }
        let next = self.lines.next;
        Ok(row.map(|row| Row { next, ..row }))
    }
}

impl Inner for Paragraphs {
    fn next(&mut self) -> Option<Result<Row>> {
        self.read().transpose()
    }
}

/// A text file as one document.
struct Whole {
    file: Option<File>,
}

impl Inner for Whole {
    fn next(&mut self) -> Option<Result<Row>> {
        let file = self.file.take()?;
        let next = Mark { at: u64::MAX, line: 0 };
        let row = |text: String| Row { text, next, ends: true, ..Row::default() };
        match Document::open(&file.path).map(|document| document.contents().to_string()) {
            Err(Error::Empty { .. }) if file.among_others => None,
            text => Some(text.map(row)),
        }
    }
}

/// A text file in pieces that end with lines, or, where a line is longer than a piece, within it.
struct Pieces {
    lines: Lines,
}

impl Pieces {
    fn read(&mut self) -> Result<Option<Row>> {
        let mark = self.lines.next;
        let mut bytes = vec![];
        let unreadable = |source| Error::Unreadable { path: self.lines.path.clone(), source };
        let input = &mut self.lines.input;
        input.take(PIECE_BYTES as u64).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        input.take(PIECE_BYTES as u64).read_until(b'\n', &mut bytes).map_err(unreadable)?;
        // A character is never cut: its further bytes begin with 10.
        while let Some(&byte) = input.fill_buf().map_err(unreadable)?.first()
            && byte & 0xc0 == 0x80
            && bytes.len() < 2 * PIECE_BYTES + 4
        {
            bytes.push(byte);
            input.consume(1);
        }
        let ends = input.fill_buf().map_err(unreadable)?.is_empty();
        let lines = bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
        self.lines.next = Mark { at: mark.at + bytes.len() as u64, line: mark.line + lines };
        let skipped =
            if mark.at == 0 && bytes.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        let from = mark.at as usize + skipped;
        let text = utf8(&self.lines.path, &bytes[skipped..], |at| from + at)?;
        no_zero(&self.lines.path, text, from)?;
        Ok(Some(Row { text: text.into(), mark, next: self.lines.next, whole: None, ends }))
    }
}

impl Inner for Pieces {
    fn next(&mut self) -> Option<Result<Row>> {
        self.read().transpose()
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
