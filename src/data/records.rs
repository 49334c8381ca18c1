//! Rows of named fields: tables whose first line names their columns (`.tsv`, `.csv`), or an object on each line (`.jsonl`).
//!
//! In a `.csv` file fields may stand in quotes, with doubled quotes, commas and line ends inside; in a `.tsv` file every tab separates.
//! Each may be packed by gzip, `.csv.gz`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use crate::data::cells::{Cells, OPEN};
use crate::data::text::{Document, ending};
use crate::data::{Error, Result};

/// A row with the place it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    path: Arc<PathBuf>,
    line: usize,
    fields: Map<String, Json>,
}

/// Reads all rows of a file; lines without anything are passed over.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let document = Document::open(path)?;
    let (shared, text) = (Arc::new(path.to_path_buf()), document.contents());
    let refuse = |line, reason| Error::Record { path: path.into(), line, reason };
    let cells = match ending(path).as_str() {
        "jsonl" | "ndjson" => return objects(text, &shared),
        "csv" => Cells::new(b',', true),
        "tsv" => Cells::new(b'\t', false),
        other => {
            let reason = format!(
                "expected a name that ends in .tsv, .csv or .jsonl, perhaps with .gz, got `.{other}`"
            );
            return Err(refuse(1, reason));
        }
    };
    let mut rows = table(text, cells).map_err(|(line, reason)| refuse(line, reason))?.into_iter();
    let Some((first, columns)) = rows.next() else { return Err(Error::Empty { path: path.into() }) };
    if let Some(twice) = columns.iter().enumerate().find(|(at, name)| columns[..*at].contains(name)) {
        return Err(refuse(first, format!("the column `{}` is named twice", twice.1)));
    }
    let record = |(line, cells): Row| {
        if cells.len() != columns.len() {
            let named = columns.join(", ");
            let reason = format!("expected {} columns ({named}), got {}", columns.len(), cells.len());
            return Err(refuse(line, reason));
        }
        let fields = columns.iter().cloned().zip(cells.into_iter().map(Json::String)).collect();
        Ok(Record { path: shared.clone(), line, fields })
    };
    filled(path, rows.map(record).collect::<Result<Vec<_>>>()?)
}

fn filled(path: &Path, records: Vec<Record>) -> Result<Vec<Record>> {
    if records.is_empty() { Err(Error::Empty { path: path.into() }) } else { Ok(records) }
}

fn objects(text: &str, path: &Arc<PathBuf>) -> Result<Vec<Record>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let record = |(number, line): (usize, &str)| match serde_json::from_str(line) {
        Ok(fields) => Ok(Record { path: path.clone(), line: number + 1, fields }),
        Err(error) => {
            let reason = format!("expected a JSON object: {error}");
            Err(Error::Record { path: path.to_path_buf(), line: number + 1, reason })
        }
    };
    filled(path, lines.map(record).collect::<Result<Vec<_>>>()?)
}

/// The line on which a row begins, and its cells.
type Row = (usize, Vec<String>);

fn table(text: &str, mut cells: Cells) -> Result<Vec<Row>, (usize, String)> {
    let (mut rows, mut begun) = (vec![], 1);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if !cells.is_open() {
            begun = number + 1;
        }
        if cells.take(line.as_bytes()) {
            let field = |at| String::from_utf8_lossy(cells.field(at)).into_owned();
            rows.push((begun, (0..cells.width()).map(field).collect()));
        }
    }
    if cells.is_open() { Err((begun, OPEN.into())) } else { Ok(rows) }
}

impl Record {
    /// The first of some fields that is there and not null, with its name.
    pub fn find<'a>(&'a self, names: &[&'a str]) -> Option<(&'a str, &'a Json)> {
        let given = |name: &&'a str| Some((*name, self.fields.get(*name).filter(|value| !value.is_null())?));
        names.iter().find_map(given)
    }

    /// The same where it must be there.
    pub fn need<'a>(&'a self, names: &[&'a str]) -> Result<(&'a str, &'a Json)> {
        self.find(names).ok_or_else(|| {
            let known = self.fields.keys().cloned().collect::<Vec<_>>().join(", ");
            self.refuse(format!("there is no {}, only {known}", listed(names)))
        })
    }

    /// A field that must be there and hold text.
    pub fn text(&self, names: &[&str]) -> Result<String> {
        match self.need(names)? {
            (_, Json::String(text)) => Ok(text.clone()),
            (name, other) => Err(self.refuse(format!("expected text for `{name}`, got {other}"))),
        }
    }

    /// All fields, in their order.
    pub fn fields(&self) -> &Map<String, Json> {
        &self.fields
    }

    /// Names of all fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// Where it came from: the file, and the line counted from one.
    pub fn place(&self) -> (&Path, usize) {
        (&self.path, self.line)
    }

    /// What is wrong with it, with its place.
    pub fn refuse(&self, reason: String) -> Error {
        Error::Record { path: self.path.to_path_buf(), line: self.line, reason }
    }
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(name: &str, text: &str) -> Result<Vec<Record>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn a_quoted_field_holds_commas_quotes_and_line_ends_and_the_line_is_where_the_row_begins() {
        let text = "text,label\r\n\"a, \"\"b\"\"\nc\",1\n\nplain,\"\"\n\"x\"y,2";
        let rows = read_text("a.csv", text).unwrap();
        let texts: Vec<_> = rows.iter().map(|row| row.text(&["text"]).unwrap()).collect();
        assert_eq!(texts, ["a, \"b\"\nc", "plain", "xy"]);
        assert_eq!(rows.iter().map(|row| row.place().1).collect::<Vec<_>>(), [2, 5, 6]);
        assert_eq!(rows[1].text(&["label"]).unwrap(), "");
    }

    #[test]
    fn tables_and_objects_give_the_same_fields() {
        let table = read_text("a.tsv", "label\ttext\nyes\tone \"two\n").unwrap();
        let objects = read_text("a.jsonl", "{\"text\": \"one \\\"two\", \"label\": \"yes\"}\n").unwrap();
        for field in ["text", "label"] {
            assert_eq!(table[0].text(&[field]).unwrap(), objects[0].text(&[field]).unwrap());
        }
    }

    #[test]
    fn what_is_no_row_is_refused_by_its_line() {
        for (name, text, at, part) in [
            ("a.tsv", "text\tlabel\na\tb\nc\n", 3, "expected 2 columns (text, label), got 1"),
            ("a.csv", "text,label\n\n\"a,b\n", 3, "never closed"),
            ("a.csv", "text,text\n", 1, "twice"),
            ("a.jsonl", "{\"text\": 1}\n[2]\n", 2, "JSON object"),
            ("a.txt", "text\n", 1, "ends in .tsv"),
        ] {
            let error = read_text(name, text).unwrap_err();
            let Error::Record { line, reason, .. } = &error else { panic!("{error}") };
            assert!(*line == at && reason.contains(part), "{error}");
        }
        assert!(matches!(read_text("a.csv", "text,label\n"), Err(Error::Empty { .. })));
        assert!(matches!(read_text("a.jsonl", "\n"), Err(Error::Empty { .. })));
        let rows = read_text("a.tsv", "words\tlabel\na\tb\n").unwrap();
        let error = rows[0].text(&["text", "sentence"]).unwrap_err().to_string();
        assert!(
            error.contains("line 2") && error.contains("no `text` or `sentence`, only words, label"),
            "{error}"
        );
    }
}
