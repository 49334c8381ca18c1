//! Rows of numbers with labels, for models that read columns of a table.

use std::path::PathBuf;

use serde_json::Value as Json;

use crate::data::labelled::{self, Columns, Label, WithLabel};
use crate::data::records::{self, Record};
use crate::data::{Error, Result};

/// A row of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Its numbers, in the order of the columns.
    pub numbers: Vec<f64>,
    /// The label as it is written; none where it is not asked for and not there.
    pub label: Option<Label>,
    record: Record,
}

/// Rows of files with the same columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Names of the columns that are read.
    pub names: Vec<String>,
    /// The rows of all files.
    pub rows: Vec<Features>,
}

impl WithLabel for Features {
    fn label(&self) -> Option<&Label> {
        self.label.as_ref()
    }

    fn refuse(&self, reason: String) -> Error {
        self.record.refuse(reason)
    }
}

/// Reads files, one after the other: the columns that `columns.features` names, or all of the first row but the label.
/// Without `labels` rows may lack theirs.
pub fn read(paths: &[PathBuf], columns: &Columns, labels: bool) -> Result<Table> {
    let mut table = Table { names: columns.features.clone(), rows: vec![] };
    for path in paths {
        for record in records::read(path)? {
            let label = labelled::label_in(&record, columns, labels)?;
            if table.names.is_empty() {
                table.names = names_of(&record, columns)?;
            }
            let numbers = table.names.iter().map(|name| number(&record, name)).collect::<Result<_>>()?;
            table.rows.push(Features { numbers, label, record });
        }
    }
    Ok(table)
}

/// All columns but that of the label.
fn names_of(record: &Record, columns: &Columns) -> Result<Vec<String>> {
    let label = labelled::label_names(columns);
    let names: Vec<String> = record.names().filter(|name| !label.contains(name)).map(String::from).collect();
    match names.is_empty() {
        true => Err(record.refuse("there is no column beside the label".into())),
        false => Ok(names),
    }
}

fn number(record: &Record, name: &str) -> Result<f64> {
    let (_, value) = record.need(&[name])?;
    let number = match value {
        Json::Number(number) => number.as_f64(),
        Json::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Json::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number| number.is_finite()).ok_or_else(|| {
        let hint = "columns = { features = [..] } leaves out columns that are no numbers";
        record.refuse(format!("expected a number for `{name}`, got {value}; {hint}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(name: &str, text: &str, columns: &Columns, labels: bool) -> Result<Table> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&[path], columns, labels)
    }

    #[test]
    fn all_columns_but_the_label_are_read_or_those_that_are_named() {
        let text = "length,label,width\n1.5,a,2\n-3e2,b, 4 \n";
        let table = read_text("a.csv", text, &Columns::default(), true).unwrap();
        assert_eq!(table.names, ["length", "width"]);
        assert_eq!(table.rows[1].numbers, [-300.0, 4.0]);
        assert_eq!(table.rows[0].label, Some(Label::One("a".into())));
        let columns =
            Columns { features: vec!["w".into()], label: Some("kind".into()), ..Columns::default() };
        let text = "{\"kind\": 1, \"w\": 0.25, \"name\": \"x\"}\n{\"w\": true}\n";
        let table = read_text("a.jsonl", text, &columns, false).unwrap();
        assert_eq!((table.rows[0].numbers[0], table.rows[1].numbers[0]), (0.25, 1.0));
        assert_eq!(table.rows[1].label, None);
    }

    #[test]
    fn what_is_no_number_is_refused_with_its_line_and_column() {
        for (text, part) in [
            ("x\tlabel\n1\ta\ntwo\tb\n", "line 3: expected a number for `x`, got \"two\""),
            ("x\tlabel\n\ta\n", "line 2: expected a number for `x`, got \"\""),
            ("x\tlabel\nnan\ta\n", "expected a number for `x`"),
            ("x\tkind\n1\ta\n", "no `label`"),
            ("label\na\n", "no column beside the label"),
        ] {
            let error = read_text("a.tsv", text, &Columns::default(), true).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let text = "{\"x\": 1, \"label\": \"a\"}\n{\"y\": 1, \"label\": \"a\"}\n";
        let error = read_text("a.jsonl", text, &Columns::default(), true).unwrap_err().to_string();
        assert!(error.contains("line 2: there is no `x`"), "{error}");
    }
}
