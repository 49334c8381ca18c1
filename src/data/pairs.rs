//! Texts with another that is to follow from each, such as translations and summaries; and pairs of tokens as batches.
//!
//! A file has a pair on each line: two columns with a tab between them, or, where its name ends in `.jsonl`, an object with the
//! strings `source` and `target`.

use std::path::Path;

use crate::data::text::{Document, ending};
use crate::data::windows::IGNORED;
use crate::data::{Error, Result};

/// A text, and what is to follow from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What is read.
    pub source: String,
    /// What is to be written.
    pub target: String,
}

/// Reads the pairs of a file; lines without anything are passed over.
pub fn read(path: &Path) -> Result<Vec<Pair>> {
    let document = Document::open(path)?;
    let is_json = matches!(ending(path).as_str(), "jsonl" | "ndjson");
    let lines = document.contents().lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let pair = |(number, line): (usize, &str)| {
        let pair = if is_json { of_object(line) } else { of_columns(line) };
        pair.map_err(|reason| Error::Pair { path: path.into(), line: number + 1, reason })
    };
    let pairs = lines.map(pair).collect::<Result<Vec<_>>>()?;
    if pairs.is_empty() { Err(Error::Empty { path: path.into() }) } else { Ok(pairs) }
}

fn of_columns(line: &str) -> Result<Pair, String> {
    let columns: Vec<&str> = line.split('\t').collect();
    match columns[..] {
        [source, target] => whole(source.into(), target.into()),
        _ => Err(format!("expected two columns with a tab between them, got {}", columns.len())),
    }
}

fn of_object(line: &str) -> Result<Pair, String> {
    let keys: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(line).map_err(|error| format!("expected a JSON object: {error}"))?;
    let text = |key: &str| match keys.get(key) {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("expected text for `{key}`, got {other}")),
        None => Err(format!("there is no `{key}`")),
    };
    whole(text("source")?, text("target")?)
}

fn whole(source: String, target: String) -> Result<Pair, String> {
    let empty = |text: &str| text.trim().is_empty();
    match [empty(&source), empty(&target)] {
        [false, false] => Ok(Pair { source, target }),
        [true, _] => Err("the source is empty".into()),
        [false, true] => Err("the target is empty".into()),
    }
}

/// A pair as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// What is read.
    pub source: Vec<u32>,
    /// What is to be written.
    pub target: Vec<u32>,
}

/// Tokens that an encoder-decoder needs beside those of its texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Before the first token that is written.
    pub start: u32,
    /// Behind the last one of either text.
    pub end: u32,
    /// Where a text is shorter than its row.
    pub padding: u32,
}

/// Some examples side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairBatch {
    /// Examples.
    pub rows: usize,
    /// Tokens in a row of the source, S, and of the target, T.
    pub lengths: [usize; 2],
    /// `[rows, S]`: what is read.
    pub tokens: Vec<u32>,
    /// `[rows, S]`: one where there is text, zero where there is none.
    pub mask: Vec<u32>,
    /// `[rows, T]`: what is to be written, one place later.
    pub target_tokens: Vec<u32>,
    /// `[rows, T]`: what is to be written, or [`IGNORED`].
    pub targets: Vec<i32>,
}

impl PairBatch {
    /// Lays examples out in rows of these lengths. Each text ends in its mark, whether it came with it or not; of a longer one the
    /// first tokens are kept.
    pub fn of(examples: &[Example], lengths: [usize; 2], marks: Marks) -> PairBatch {
        let mut batch = PairBatch {
            rows: examples.len(),
            lengths,
            tokens: vec![],
            mask: vec![],
            target_tokens: vec![],
            targets: vec![],
        };
        for example in examples {
            let source = ended(&example.source, lengths[0], marks.end);
            let target = ended(&example.target, lengths[1], marks.end);
            batch.mask.extend(filled(source.iter().map(|_| 1), 0, lengths[0]));
            batch.tokens.extend(filled(source.into_iter(), marks.padding, lengths[0]));
            let before = std::iter::once(marks.start).chain(target.iter().copied());
            batch.target_tokens.extend(filled(before.take(lengths[1]), marks.padding, lengths[1]));
            batch.targets.extend(filled(target.iter().map(|&token| token as i32), IGNORED, lengths[1]));
        }
        batch
    }

    /// How many targets count.
    pub fn counted(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORED).count()
    }
}

fn ended(tokens: &[u32], length: usize, end: u32) -> Vec<u32> {
    let tokens = tokens.strip_suffix(&[end]).unwrap_or(tokens);
    tokens.iter().copied().take(length.saturating_sub(1)).chain([end]).collect()
}

fn filled<T: Copy>(all: impl Iterator<Item = T>, with: T, length: usize) -> impl Iterator<Item = T> {
    all.chain(std::iter::repeat(with)).take(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(name: &str, text: &str) -> Result<Vec<Pair>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn columns_and_objects_give_the_same_pairs() {
        let expected = vec![
            Pair { source: "ein Haus".into(), target: "a house".into() },
            Pair { source: "x".into(), target: "y".into() },
        ];
        assert_eq!(read_text("a.tsv", "ein Haus\ta house\n\nx\ty").unwrap(), expected);
        let objects = "{\"source\": \"ein Haus\", \"target\": \"a house\", \"id\": 3}\n\
                       {\"target\": \"y\", \"source\": \"x\"}\n";
        assert_eq!(read_text("a.jsonl", objects).unwrap(), expected);
    }

    #[test]
    fn a_line_that_is_no_pair_is_refused_by_its_number() {
        for (name, text, at, part) in [
            ("a.tsv", "a\tb\nc", 2, "two columns"),
            ("a.tsv", "a\tb\tc", 1, "got 3"),
            ("a.tsv", "\n\ta", 2, "the source is empty"),
            ("a.jsonl", "{\"source\": \"a\", \"target\": \"b\"}\n\n{\"source\": \"a\"}", 3, "no `target`"),
            ("a.jsonl", "[1]", 1, "JSON object"),
            ("a.jsonl", "{\"source\": 1, \"target\": \"b\"}", 1, "expected text for `source`, got 1"),
        ] {
            let error = read_text(name, text).unwrap_err();
            let Error::Pair { line, reason, .. } = &error else { panic!("{error}") };
            assert!(*line == at && reason.contains(part), "{error}");
        }
        assert!(matches!(read_text("a.tsv", "\n \n"), Err(Error::Empty { .. })));
    }

    #[test]
    fn the_decoder_reads_what_it_is_to_write_one_place_later() {
        let examples = [
            Example { source: vec![5, 6, 7, 8], target: vec![9, 1] },
            Example { source: vec![5], target: vec![6, 7, 8, 9] },
        ];
        let marks = Marks { start: 2, end: 1, padding: 0 };
        let batch = PairBatch::of(&examples, [4, 3], marks);
        assert_eq!(batch.tokens, [5, 6, 7, 1, 5, 1, 0, 0]);
        assert_eq!(batch.mask, [1, 1, 1, 1, 1, 1, 0, 0]);
        assert_eq!(batch.targets, [9, 1, IGNORED, 6, 7, 1]);
        assert_eq!(batch.target_tokens, [2, 9, 1, 2, 6, 7]);
        assert_eq!(batch.counted(), 5);
    }
}
