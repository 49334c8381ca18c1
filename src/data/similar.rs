//! Texts that are to have vectors near to one another: pairs, and perhaps a third that is not alike.

use std::path::PathBuf;

use serde_json::Value as Json;

use crate::data::Result;
use crate::data::labelled::Columns;
use crate::data::records::{self, Record};

const FIRST: &[&str] = &["anchor", "query", "text", "sentence", "sentence1", "premise"];
const SECOND: &[&str] = &["positive", "answer", "second", "text2", "sentence2", "hypothesis"];
const THIRD: &[&str] = &["negative", "hard_negative", "sentence3"];
const SCORE: &[&str] = &["score", "similarity_score"];

/// Texts of which the second is like the first, and the third, if there is one, is not.
#[derive(Clone, Debug, PartialEq)]
pub struct Similar {
    /// Two or three texts.
    pub texts: Vec<String>,
    /// How alike the first two are, where the row says so.
    pub score: Option<f64>,
    record: Record,
}

impl Similar {
    /// What is wrong with it, with its place.
    pub fn refuse(&self, reason: String) -> crate::data::Error {
        self.record.refuse(reason)
    }
}

/// Reads files, one after the other. All rows have as many texts.
pub fn read(paths: &[PathBuf], columns: &Columns) -> Result<Vec<Similar>> {
    let mut all: Vec<Similar> = vec![];
    for path in paths {
        for record in records::read(path)? {
            let mut texts = vec![
                record.text(&names(&columns.text, FIRST))?,
                record.text(&names(&columns.second, SECOND))?,
            ];
            if record.find(THIRD).is_some() {
                texts.push(record.text(THIRD)?);
            }
            if texts.iter().any(|text| text.trim().is_empty()) {
                return Err(record.refuse("a text is empty".into()));
            }
            if let Some(first) = all.first().filter(|first| first.texts.len() != texts.len()) {
                let (expected, got) = (first.texts.len(), texts.len());
                return Err(
                    record.refuse(format!("expected {expected} texts as in the first row, got {got}"))
                );
            }
            let score = score_of(&record)?;
            all.push(Similar { texts, score, record });
        }
    }
    Ok(all)
}

/// How alike the texts of a row are; an empty column says nothing.
fn score_of(record: &Record) -> Result<Option<f64>> {
    let number = match record.find(SCORE) {
        None => return Ok(None),
        Some((_, Json::String(text))) if text.trim().is_empty() => return Ok(None),
        Some((_, Json::String(text))) => text.trim().parse().ok(),
        Some((_, value)) => value.as_f64(),
    };
    let number = number.filter(|number: &f64| number.is_finite());
    number.map(Some).ok_or_else(|| record.refuse("expected a number for the score".into()))
}

fn names<'a>(given: &'a Option<String>, usual: &[&'static str]) -> Vec<&'a str> {
    given.as_ref().map_or_else(|| usual.to_vec(), |name| vec![name.as_str()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(name: &str, text: &str) -> Result<Vec<Similar>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&[path], &Columns::default())
    }

    #[test]
    fn a_third_text_is_there_in_all_rows_or_in_none() {
        let rows = read_text("a.tsv", "anchor\tpositive\tnegative\na\tb\tc\n").unwrap();
        assert_eq!(rows[0].texts, ["a", "b", "c"]);
        assert_eq!(read_text("a.csv", "sentence1,sentence2\na,b\n").unwrap()[0].texts, ["a", "b"]);
        let text = "{\"query\": \"a\", \"answer\": \"b\"}\n{\"query\": \"a\", \"answer\": \"b\", \"negative\": \"c\"}\n";
        let error = read_text("a.jsonl", text).unwrap_err().to_string();
        assert!(error.contains("line 2: expected 2 texts as in the first row, got 3"), "{error}");
        let error = read_text("a.tsv", "anchor\tpositive\na\t \n").unwrap_err().to_string();
        assert!(error.contains("line 2: a text is empty"), "{error}");
        let scored = read_text("a.tsv", "sentence1\tsentence2\tscore\na\tb\t3.5\nc\td\t\n").unwrap();
        assert_eq!((scored[0].score, scored[1].score), (Some(3.5), None));
        let error = read_text("a.tsv", "anchor\tpositive\tscore\na\tb\tmuch\n").unwrap_err().to_string();
        assert!(error.contains("line 2: expected a number for the score"), "{error}");
        let error = read_text("a.tsv", "anchor\tother\na\tb\n").unwrap_err().to_string();
        assert!(error.contains("no `positive` or"), "{error}");
    }
}
