//! Texts with labels, for models that classify: one text or two, and a word, a number, or several of either.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value as Json;

use crate::data::Result;
use crate::data::records::{self, Record};

/// What columns are called where a recipe does not say.
const TEXT: &[&str] = &["text", "sentence", "sentence1", "premise"];
const SECOND: &[&str] = &["second", "text2", "sentence2", "hypothesis"];
const LABEL: &[&str] = &["label", "labels"];

/// Between labels of one text in a column.
const BETWEEN: char = '|';

/// Names of the columns that are read; absent ones go by their usual names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Columns {
    /// The text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// A second text beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second: Option<String>,
    /// The label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The numbers of a row.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
}

/// A text, or two, and its label.
#[derive(Clone, Debug, PartialEq)]
pub struct Labelled {
    /// The text.
    pub text: String,
    /// The second one, where texts come in pairs.
    pub second: Option<String>,
    /// The label as it is written; none where it is not asked for and not there.
    pub label: Option<Label>,
    record: Record,
}

/// A label as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Label {
    /// A word or a number, as text.
    One(String),
    /// A list of them.
    Several(Vec<String>),
}

impl Label {
    /// All words of it: those of a list, or between bars.
    pub fn words(&self) -> Vec<&str> {
        match self {
            Label::One(text) if text.trim().is_empty() => vec![],
            Label::One(text) => text.split(BETWEEN).map(str::trim).collect(),
            Label::Several(list) => list.iter().map(String::as_str).collect(),
        }
    }
}

/// What may have a label.
pub trait WithLabel {
    /// The label as it is written.
    fn label(&self) -> Option<&Label>;

    /// What is wrong with it, with its place.
    fn refuse(&self, reason: String) -> crate::data::Error;
}

impl WithLabel for Labelled {
    fn label(&self) -> Option<&Label> {
        self.label.as_ref()
    }

    fn refuse(&self, reason: String) -> crate::data::Error {
        self.record.refuse(reason)
    }
}

/// Reads files, one after the other. Without `labels` rows may lack theirs.
pub fn read(paths: &[PathBuf], columns: &Columns, labels: bool) -> Result<Vec<Labelled>> {
    let mut all = vec![];
    for path in paths {
        for record in records::read(path)? {
            all.push(of(record, columns, labels)?);
        }
    }
    Ok(all)
}

fn of(record: Record, columns: &Columns, labels: bool) -> Result<Labelled> {
    let text = record.text(&names(&columns.text, TEXT))?;
    if text.trim().is_empty() {
        return Err(record.refuse("the text is empty".into()));
    }
    let second = match (&columns.second, record.find(&names(&columns.second, SECOND))) {
        (None, None) => None,
        _ => Some(record.text(&names(&columns.second, SECOND))?),
    };
    let label = label_in(&record, columns, labels)?;
    Ok(Labelled { text, second, label, record })
}

/// Names that the column of the label may have.
pub(super) fn label_names(columns: &Columns) -> Vec<&str> {
    names(&columns.label, LABEL)
}

/// The label of a row; without `labels` there may be none.
pub(super) fn label_in(record: &Record, columns: &Columns, labels: bool) -> Result<Option<Label>> {
    let label_names = label_names(columns);
    let label = match (labels, record.find(&label_names)) {
        (false, None) => None,
        _ => {
            let (name, value) = record.need(&label_names)?;
            let label = label_of(value);
            Some(label.ok_or_else(|| {
                record
                    .refuse(format!("expected a word, a number or a list of them for `{name}`, got {value}"))
            })?)
        }
    };
    if labels && matches!(&label, Some(Label::One(word)) if word.trim().is_empty()) {
        return Err(record.refuse("the label is empty".into()));
    }
    Ok(label)
}

/// The one name that is given, or the usual ones.
fn names<'a>(given: &'a Option<String>, usual: &[&'static str]) -> Vec<&'a str> {
    given.as_ref().map_or_else(|| usual.to_vec(), |name| vec![name.as_str()])
}

fn label_of(value: &Json) -> Option<Label> {
    let word = |value: &Json| match value {
        Json::String(word) => Some(word.trim().to_string()),
        Json::Number(number) => Some(number.to_string()),
        Json::Bool(flag) => Some(flag.to_string()),
        _ => None,
    };
    match value {
        Json::Array(list) => list.iter().map(word).collect::<Option<_>>().map(Label::Several),
        other => word(other).map(Label::One),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(name: &str, text: &str, columns: &Columns, labels: bool) -> Result<Vec<Labelled>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&[path], columns, labels)
    }

    #[test]
    fn labels_are_words_numbers_or_lists() {
        let text = "{\"text\": \"a\", \"label\": \"good\"}\n{\"text\": \"b\", \"label\": 3}\n\
                    {\"sentence1\": \"c\", \"sentence2\": \"d\", \"labels\": [\"x\", 1]}\n";
        let rows = read_text("a.jsonl", text, &Columns::default(), true).unwrap();
        let labels: Vec<_> = rows.iter().map(|row| row.label.clone().unwrap()).collect();
        let several = Label::Several(vec!["x".into(), "1".into()]);
        assert_eq!(labels, [Label::One("good".into()), Label::One("3".into()), several]);
        assert_eq!((rows[2].text.as_str(), rows[2].second.as_deref()), ("c", Some("d")));
        assert_eq!(Label::One("a| b".into()).words(), ["a", "b"]);
    }

    #[test]
    fn columns_go_by_other_names_where_the_recipe_says_so() {
        let columns =
            Columns { text: Some("review".into()), label: Some("stars".into()), ..Columns::default() };
        let rows = read_text("a.csv", "stars,review\n5,\"fine, really\"\n", &columns, true).unwrap();
        assert_eq!(rows[0].text, "fine, really");
        assert_eq!(rows[0].label, Some(Label::One("5".into())));
        let error = read_text("a.csv", "label,text\n5,a\n", &columns, true).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("no `review`"), "{error}");
    }

    #[test]
    fn a_row_without_a_label_is_read_only_where_none_is_needed() {
        let table = "text\none\n";
        assert_eq!(read_text("a.tsv", table, &Columns::default(), false).unwrap()[0].label, None);
        let error = read_text("a.tsv", table, &Columns::default(), true).unwrap_err().to_string();
        assert!(error.contains("line 2: there is no `label` or `labels`"), "{error}");
        let error =
            read_text("a.tsv", "text\tlabel\n \tb\n", &Columns::default(), true).unwrap_err().to_string();
        assert!(error.contains("line 2: the text is empty"), "{error}");
    }
}
