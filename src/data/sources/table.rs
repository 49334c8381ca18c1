//! Tables with a text in one of their columns: `.csv` and `.tsv`, with the quotes of RFC 4180.

use std::io::{self, BufRead};
use std::path::PathBuf;

use super::rows::{Inner, Mark, Row, open_at};
use super::{Column, File, Source, USUAL_FIELD};
use crate::data::{Error, Result};

/// The rows of a table, from a mark on.
pub(super) struct Table {
    path: PathBuf,
    records: Records,
    column: usize,
    /// Fields of every row.
    width: usize,
}

impl Table {
    pub(super) fn open(file: &File, source: &Source, delimiter: u8, mark: Mark) -> Result<Table> {
        let unreadable = |source| Error::Unreadable { path: file.path.clone(), source };
        let mut records = Records::open(file, delimiter, Mark::default())?;
        if records.read().map_err(unreadable)?.is_none() {
            return Err(Error::Empty { path: file.path.clone() });
        }
        let (column, headed) = column_of(&records, source, file)?;
        let width = records.width();
        // Rows begin behind the names of the columns.
        if mark.at > 0 || !headed {
            records = Records::open(file, delimiter, mark)?;
        }
        Ok(Table { path: file.path.clone(), records, column, width })
    }

    fn row(&self, mark: Mark) -> Result<Row> {
        let wrong = |reason| Error::Row { path: self.path.clone(), line: mark.line + 1, reason };
        if self.records.is_open {
            return Err(wrong("a quote that opens a field is never closed".into()));
        }
        if self.records.width() != self.width {
            return Err(wrong(format!("expected {} columns, got {}", self.width, self.records.width())));
        }
        let field = self.records.field(self.column);
        match std::str::from_utf8(field) {
            Ok(text) => {
                let next = self.records.next;
                Ok(Row { text: text.into(), mark, next, whole: None, ends: true })
            }
            Err(error) => {
                let byte = field[error.valid_up_to()];
                Err(wrong(format!("column {} is not UTF-8: invalid byte 0x{byte:02x}", self.column + 1)))
            }
        }
    }
}

impl Inner for Table {
    fn next(&mut self) -> Option<Result<Row>> {
        match self.records.read() {
            Ok(mark) => mark.map(|mark| self.row(mark)),
            Err(source) => Some(Err(Error::Unreadable { path: self.path.clone(), source })),
        }
    }
}

/// Fields, one record after the other. A field that begins with a quote ends with one, two quotes within it are one, and delimiters
/// and line ends within it are its own. Records end with `\n` or `\r\n`; empty lines are none.
struct Records {
    input: Box<dyn BufRead + Send>,
    delimiter: u8,
    next: Mark,
    line: Vec<u8>,
    /// All fields of the record, and where each ends.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// The file ended within quotes.
    is_open: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the first byte of a field.
    Begin,
    /// Within a field without quotes, or behind those that closed.
    Plain,
    Quoted,
    /// Behind a quote that closes the field, or is the first of two.
    Quote,
}

impl Records {
    fn open(file: &File, delimiter: u8, mark: Mark) -> Result<Records> {
        let input = open_at(file, mark.at)?;
        let (line, bytes, ends) = (vec![], vec![], vec![]);
        Ok(Records { input, delimiter, next: mark, line, bytes, ends, is_open: false })
    }

    fn width(&self) -> usize {
        self.ends.len()
    }

    fn field(&self, number: usize) -> &[u8] {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[number]]
    }

    /// Reads the next record and gives its mark.
    fn read(&mut self) -> io::Result<Option<Mark>> {
        self.bytes.clear();
        self.ends.clear();
        let mut place = Place::Begin;
        let mut mark = self.next;
        loop {
            self.line.clear();
            let length = self.input.read_until(b'\n', &mut self.line)? as u64;
            if length == 0 {
                self.is_open = place == Place::Quoted;
                return Ok(Some(mark).filter(|_| self.is_open));
            }
            let is_first = self.next.at == 0;
            self.next = Mark { at: self.next.at + length, line: self.next.line + 1 };
            let line = std::mem::take(&mut self.line);
            let text = if is_first { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line) } else { &line };
            let is_empty = place == Place::Begin && text.iter().all(|byte| matches!(byte, b'\r' | b'\n'));
            if !is_empty {
                place = self.take(text, place);
            }
            self.line = line;
            if is_empty {
                mark = self.next;
            } else if place != Place::Quoted {
                self.ends.push(self.bytes.len());
                self.is_open = false;
                return Ok(Some(mark));
            }
        }
    }

    /// Adds a line to the record.
    fn take(&mut self, line: &[u8], mut place: Place) -> Place {
        let end = line.strip_suffix(b"\n").unwrap_or(line);
        let end = end.strip_suffix(b"\r").unwrap_or(end).len();
        for (at, &byte) in line.iter().enumerate() {
            place = match (place, byte) {
                // The end of the line belongs to a field that is still open.
                (Place::Quoted, b'"') => Place::Quote,
                (Place::Quoted, byte) => {
                    self.bytes.push(byte);
                    Place::Quoted
                }
                _ if at >= end => break,
                (Place::Begin, b'"') => Place::Quoted,
                (Place::Quote, b'"') => {
                    self.bytes.push(b'"');
                    Place::Quoted
                }
                (_, byte) if byte == self.delimiter => {
                    self.ends.push(self.bytes.len());
                    Place::Begin
                }
                (_, byte) => {
                    self.bytes.push(byte);
                    Place::Plain
                }
            };
        }
        place
    }
}

/// Which column, and whether the first row names it.
fn column_of(head: &Records, source: &Source, file: &File) -> Result<(usize, bool)> {
    let name = |number| String::from_utf8_lossy(head.field(number)).into_owned();
    let names: Vec<String> = (0..head.width()).map(name).collect();
    let missing = |column: String, hint: String| Error::NoColumn { path: file.path.clone(), column, hint };
    match &source.column {
        Some(Column::Number(number)) => match number.checked_sub(1).filter(|at| *at < names.len()) {
            Some(at) => Ok((at, source.header.unwrap_or(false))),
            None => {
                let hint = format!("its first row has {} columns, counted from 1", names.len());
                Err(missing(number.to_string(), hint))
            }
        },
        named => {
            let wanted = match named {
                Some(Column::Name(name)) => name.as_str(),
                _ => USUAL_FIELD,
            };
            let at = names.iter().position(|name| name == wanted);
            at.map(|at| (at, true)).ok_or_else(|| missing(format!("`{wanted}`"), near(wanted, &names)))
        }
    }
}

/// The name that was most likely meant, or all there are.
fn near(wanted: &str, names: &[String]) -> String {
    let nearest = names
        .iter()
        .map(|name| (strsim::jaro_winkler(&wanted.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, name)) => format!("did you mean `{name}`? as in {{ path = \"..\", column = \"{name}\" }}"),
        None => format!("name one of {}, or give its number: column = 2", names.join(", ")),
    }
}
