//! Documents of one file, one at a time, however large the file is.
//!
//! Each comes with a [`Mark`]: opened there, the file gives that document first. A row that cannot be read is an error with
//! its line, or, where asked for, counted and passed over. Rows without text are passed over in any case.

use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::table::Table;
use super::{File, Format, SampleBy, Source, USUAL_FIELD};
use crate::data::text::{Document, not_opened};
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

/// Opens a file for reading from a byte of it on.
pub(super) fn open_at(file: &File, at: u64) -> Result<Box<dyn BufRead + Send>> {
    let mut opened = fs::File::open(&file.path).map_err(|source| not_opened(&file.path, source))?;
    let sought = opened.seek(SeekFrom::Start(at));
    sought.map_err(|source| Error::Unreadable { path: file.path.clone(), source })?;
    Ok(Box::new(BufReader::with_capacity(BUFFER_BYTES, opened)))
}

/// Lines with their bytes and marks.
struct Lines {
    path: PathBuf,
    input: Box<dyn BufRead + Send>,
    next: Mark,
    line: Vec<u8>,
}

impl Lines {
    fn open(file: &File, mark: Mark) -> Result<Lines> {
        let input = open_at(file, mark.at)?;
        Ok(Lines { path: file.path.clone(), input, next: mark, line: vec![] })
    }

    /// Reads the next line into `line`, its end included, and gives its mark.
    fn read(&mut self) -> Result<Option<Mark>> {
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
mod tests {
    use super::super::{Column, find};
    use super::*;

    pub(crate) fn rows_of(
        name: &str,
        bytes: &[u8],
        source: Source,
        manner: Manner,
    ) -> Result<(Vec<Row>, Bad)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let source = Source { path, ..source };
        let mut all = vec![];
        let mut bad = Bad::default();
        for file in find(&source)? {
            let mut rows = Rows::open(&file, &source, manner, Mark::default())?;
            while let Some(row) = rows.next_row()? {
                all.push(row);
            }
            bad.add(&rows.bad);
            // From every mark on the same rows come again.
            for (number, row) in all.iter().enumerate() {
                let mut again = Rows::open(&file, &source, manner, row.mark)?;
                assert_eq!(again.next_row()?.as_ref(), Some(row));
                assert_eq!(again.next_row()?.as_ref(), all.get(number + 1));
            }
        }
        Ok((all, bad))
    }

    fn texts(name: &str, bytes: &[u8], source: Source) -> Vec<String> {
        let (rows, _) = rows_of(name, bytes, source, Manner::default()).unwrap();
        rows.into_iter().map(|row| row.text).collect()
    }

    fn named(column: &str) -> Source {
        Source { column: Some(Column::Name(column.into())), ..Source::default() }
    }

    #[test]
    fn objects_give_their_field_whatever_stands_around_it() {
        let lines = "\u{feff}{\"text\": \"one\\nline\", \"id\": 1}\r\n\n{\"meta\": {\"text\": \"no\"}, \"text\": \"\u{e9}\"}\n{\"text\": \"\"}\n{\"text\":\"last\"}";
        assert_eq!(texts("a.jsonl", lines.as_bytes(), Source::default()), ["one\nline", "\u{e9}", "last"]);
        let inner = Source { field: Some("meta.body".into()), ..Source::default() };
        assert_eq!(
            texts("a.jsonl", b"{\"meta\": {\"body\": \"x\"}}\n{\"meta.body\": \"y\"}", inner),
            ["x", "y"]
        );
    }

    #[test]
    fn a_line_without_text_is_an_error_with_its_number_or_counted() {
        for (line, part) in [
            ("{\"text\": \"a\"", "JSON object"),
            ("[1]", "object in braces"),
            ("{\"text\": \"a\"} x", "trailing"),
            ("{\"text\": 7}", "expected text for `text`, got 7"),
            ("{\"body\": \"a\", \"id\": 1}", "no `text`, only body, id"),
            ("{}", "the object is empty"),
        ] {
            let lines = format!("{{\"text\": \"first\"}}\n\n{line}\n{{\"text\": \"last\"}}\n");
            let error =
                rows_of("a.jsonl", lines.as_bytes(), Source::default(), Manner::default()).unwrap_err();
            let Error::Row { line: 3, reason, .. } = &error else { panic!("{error}") };
            assert!(reason.contains(part), "{error}");
            let skips = Manner { skip_bad: true, ..Manner::default() };
            let (rows, bad) = rows_of("a.jsonl", lines.as_bytes(), Source::default(), skips).unwrap();
            assert_eq!((rows.len(), bad.count), (2, 1));
            assert!(bad.told().unwrap().contains("line 3"), "{bad:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_placed_in_the_file() {
        let bytes = b"\xef\xbb\xbf{\"text\": \"a\"}\n{\"text\": \"\xe9\"}\n";
        let error = rows_of("a.jsonl", bytes, Source::default(), Manner::default()).unwrap_err();
        assert!(matches!(error, Error::NotUtf8 { offset_bytes: 27, byte: 0xe9, .. }), "{error:?}");
        let lines = Source { sample_by: Some(SampleBy::Line), ..Source::default() };
        let error = rows_of("a.txt", b"one\ntw\0o\n", lines, Manner::default()).unwrap_err();
        assert!(matches!(error, Error::Binary { offset_bytes: 6, .. }), "{error:?}");
    }

    #[test]
    fn tables_give_a_column_by_name_or_number_with_quotes_and_line_ends_in_it() {
        let table = b"\xef\xbb\xbfid,text,more\r\n1,\"a, \"\"b\"\"\nc\",x\r\n2,plain,y\r\n3,,z\r\n";
        assert_eq!(texts("a.csv", table, Source::default()), ["a, \"b\"\nc", "plain"]);
        assert_eq!(texts("a.csv", table, named("more")), ["x", "y", "z"]);
        let second = Source { column: Some(Column::Number(2)), ..Source::default() };
        assert_eq!(texts("a.tsv", b"1\ta b\n2\tc\n", second.clone()), ["a b", "c"]);
        let headed = Source { header: Some(true), ..second };
        assert_eq!(texts("a.tsv", b"1\ta b\n2\tc\n", headed), ["c"]);
    }

    #[test]
    fn a_table_without_the_column_and_a_row_of_another_width_are_refused() {
        let error = rows_of("a.csv", b"id,txt\n1,a\n", Source::default(), Manner::default()).unwrap_err();
        let Error::NoColumn { column, hint, .. } = &error else { panic!("{error}") };
        assert!(column.contains("text") && hint.contains("did you mean `txt`"), "{error}");
        let far = Source { column: Some(Column::Number(3)), ..Source::default() };
        let error = rows_of("a.csv", b"1,a\n", far, Manner::default()).unwrap_err();
        assert!(matches!(&error, Error::NoColumn { .. }), "{error}");
        let ragged = b"id,text\n1,a\n2\n3,c\n4,\xff\n5,e\n6,\"open\n";
        let error = rows_of("a.csv", ragged, Source::default(), Manner::default()).unwrap_err();
        assert!(matches!(&error, Error::Row { line: 3, .. }), "{error}");
        let skips = Manner { skip_bad: true, ..Manner::default() };
        let (rows, bad) = rows_of("a.csv", ragged, Source::default(), skips).unwrap();
        assert_eq!((rows.len(), bad.count), (3, 3));
    }

    #[test]
    fn a_text_is_one_document_or_its_lines_or_its_paragraphs() {
        let text = b"one\r\ntwo\n\n \nthree\n";
        assert_eq!(texts("a.txt", text, Source::default()), ["one\r\ntwo\n\n \nthree\n"]);
        let by = |sample_by| Source { sample_by: Some(sample_by), ..Source::default() };
        assert_eq!(texts("a.txt", text, by(SampleBy::Line)), ["one", "two", "three"]);
        assert_eq!(texts("a.txt", text, by(SampleBy::Paragraph)), ["one\ntwo", "three"]);
    }

    #[test]
    fn pieces_of_a_text_join_to_it_and_end_with_lines_and_whole_characters() {
        let line = "many words and \u{65e5}\n".repeat(9000);
        for text in [format!("\u{feff}{line}end"), "\u{65e5}".repeat(100_000), "x".to_string()] {
            let manner = Manner { in_pieces: true, ..Manner::default() };
            let (rows, _) = rows_of("a.txt", text.as_bytes(), Source::default(), manner).unwrap();
            let joined: String = rows.iter().map(|row| row.text.as_str()).collect();
            assert_eq!(joined, text.trim_start_matches('\u{feff}'));
            assert!(rows.iter().rev().skip(1).all(|row| !row.ends && row.text.len() >= PIECE_BYTES - 3));
            assert!(rows.last().unwrap().ends);
        }
    }
}
