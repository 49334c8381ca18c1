//! Sentences with a tag for each word.
//!
//! A file has a word on each line, its tag in the last of some columns, and an empty line between sentences, as in the shared tasks of
//! CoNLL; lines with `-DOCSTART-` are passed over. Where its name ends in `.jsonl` an object on each line has lists of words and tags.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::data::records;
use crate::data::text::{Document, ending};
use crate::data::{Error, Result};

const WORDS: &[&str] = &["words", "tokens"];
const TAGS: &[&str] = &["tags", "ner_tags", "labels"];

/// Where CoNLL's files begin a new text.
const NEW_TEXT: &str = "-DOCSTART-";

/// A sentence, and the tags of its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// Its words.
    pub words: Vec<String>,
    /// The tag of each; none where they are not asked for and not there.
    pub tags: Option<Vec<String>>,
    path: PathBuf,
    /// Line of each word, counted from one.
    lines: Vec<usize>,
}

impl Tagged {
    /// What is wrong with a word, with its place.
    pub fn refuse(&self, word: usize, reason: String) -> Error {
        Error::Tagged { path: self.path.clone(), line: self.lines[word], reason }
    }
}

/// Reads files, one after the other. Without `tags` sentences may lack theirs.
pub fn read(paths: &[PathBuf], tags: bool) -> Result<Vec<Tagged>> {
    let mut all = vec![];
    for path in paths {
        let is_json = matches!(ending(path).as_str(), "jsonl" | "ndjson");
        let found = if is_json { objects(path, tags)? } else { columns(path, tags)? };
        if found.is_empty() {
            return Err(Error::Empty { path: path.clone() });
        }
        all.extend(found);
    }
    Ok(all)
}

fn columns(path: &Path, tags: bool) -> Result<Vec<Tagged>> {
    let document = Document::open(path)?;
    let refuse = |line, reason| Error::Tagged { path: path.into(), line, reason };
    let new = || Tagged { words: vec![], tags: Some(vec![]), path: path.into(), lines: vec![] };
    let (mut all, mut sentence, mut expected) = (vec![], new(), None);
    for (number, line) in document.contents().lines().enumerate() {
        let cells: Vec<&str> = line.split_whitespace().collect();
        if cells.first().is_none_or(|first| *first == NEW_TEXT) {
            if !sentence.words.is_empty() {
                all.push(std::mem::replace(&mut sentence, new()));
            }
            continue;
        }
        let (first, count) = *expected.get_or_insert((number + 1, cells.len()));
        if cells.len() != count {
            let reason = format!("expected {count} columns as in line {first}, got {}", cells.len());
            return Err(refuse(number + 1, reason));
        }
        match count {
            1 if tags => return Err(refuse(number + 1, format!("the word `{}` has no tag", cells[0]))),
            1 => sentence.tags = None,
            _ => sentence.tags.get_or_insert_default().push(cells[count - 1].to_string()),
        }
        sentence.words.push(cells[0].to_string());
        sentence.lines.push(number + 1);
    }
    if !sentence.words.is_empty() {
        all.push(sentence);
    }
    Ok(all)
}

fn objects(path: &Path, needed: bool) -> Result<Vec<Tagged>> {
    let list = |value: &Json| -> Option<Vec<String>> {
        let word = |value: &Json| match value {
            Json::String(word) => Some(word.clone()),
            Json::Number(number) => Some(number.to_string()),
            _ => None,
        };
        value.as_array()?.iter().map(word).collect()
    };
    let sentence = |record: records::Record| {
        let line = record.place().1;
        let refuse = |reason| Error::Tagged { path: path.into(), line, reason };
        let of = |(name, value): (&str, &Json)| {
            list(value).ok_or_else(|| refuse(format!("expected a list of words for `{name}`, got {value}")))
        };
        let words = of(record.need(WORDS)?)?;
        let tags = match (needed, record.find(TAGS)) {
            (false, None) => None,
            _ => Some(of(record.need(TAGS)?)?),
        };
        if words.is_empty() {
            return Err(refuse("the sentence has no word".into()));
        }
        if let Some(tags) = tags.as_ref().filter(|tags| tags.len() != words.len()) {
            return Err(refuse(format!("{} words have {} tags", words.len(), tags.len())));
        }
        Ok(Tagged { lines: vec![line; words.len()], words, tags, path: path.into() })
    };
    records::read(path)?.into_iter().map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(name: &str, text: &str, tags: bool) -> Result<Vec<Tagged>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&[path], tags)
    }

    #[test]
    fn columns_and_objects_give_the_same_sentences() {
        let text = "-DOCSTART- -X- O\n\nRome NNP B-L\nfell VBD O\n\n\nA DT O\n";
        let columns = read_text("a.conll", text, true).unwrap();
        let objects = "{\"tokens\": [\"Rome\", \"fell\"], \"ner_tags\": [\"B-L\", \"O\"]}\n\
                       {\"words\": [\"A\"], \"tags\": [\"O\"]}\n";
        let objects = read_text("a.jsonl", objects, true).unwrap();
        let plain =
            |all: &[Tagged]| all.iter().map(|s| (s.words.clone(), s.tags.clone())).collect::<Vec<_>>();
        assert_eq!(plain(&columns), plain(&objects));
        assert_eq!(columns[1].lines, [7]);
        assert_eq!(read_text("a.txt", "A\nB\n", false).unwrap()[0].tags, None);
    }

    #[test]
    fn what_lacks_a_tag_is_refused_by_its_line() {
        for (name, text, at, part) in [
            ("a.txt", "A O\n\nB\n", 3, "expected 2 columns as in line 1, got 1"),
            ("a.txt", "\nB\n", 2, "`B` has no tag"),
            ("a.jsonl", "{\"words\": [\"a\"], \"tags\": []}\n", 1, "1 words have 0 tags"),
            ("a.jsonl", "{\"words\": \"a\", \"tags\": []}\n", 1, "a list of words"),
            ("a.jsonl", "{\"words\": [], \"tags\": []}\n", 1, "no word"),
        ] {
            let error = read_text(name, text, true).unwrap_err();
            let Error::Tagged { line, reason, .. } = &error else { panic!("{error}") };
            assert!(*line == at && reason.contains(part), "{error}");
        }
        assert!(matches!(read_text("a.txt", "\n\n", true), Err(Error::Empty { .. })));
        let error = read_text("a.jsonl", "{\"words\": [\"a\"]}\n", true).unwrap_err().to_string();
        assert!(error.contains("no `tags` or `ner_tags` or `labels`"), "{error}");
    }
}
