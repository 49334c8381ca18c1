//! ROUGE (Lin 2004): what a text and its reference have in common, as runs of words or as the longest common subsequence.
//!
//! Figures are those of rouge-score: letters and digits of ASCII make words, each text has its own score, and of several references
//! the best counts.

use std::collections::HashMap;

use super::porter::stem;
use super::words::{runs, shared};
use super::{TextMetric, count_of};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RougeKind {
    /// Runs of so many words.
    Runs(usize),
    /// The longest common subsequence of the whole texts.
    Longest,
    /// Of each line of the reference, the union of its subsequences with all lines of the text.
    LongestOfLines,
}

/// A kind of ROUGE with its setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rouge {
    /// What is compared.
    pub kind: RougeKind,
    /// Words of more than three letters lose their endings.
    pub stemmed: bool,
}

fn words_of(text: &str, stemmed: bool) -> Vec<String> {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit()));
    let words = words.filter(|word| !word.is_empty());
    words.map(|word| if stemmed && word.len() > 3 { stem(word) } else { word.into() }).collect()
}

/// Precision, recall and their harmonic mean.
fn scores(common: usize, written: usize, wanted: usize) -> [f64; 3] {
    let share = |of: usize| common as f64 / of.max(1) as f64;
    let (precision, recall) = (share(written), share(wanted));
    let sum = precision + recall;
    [precision, recall, if sum > 0.0 { 2.0 * precision * recall / sum } else { 0.0 }]
}

/// Lengths of the longest common subsequences of beginnings, row by row.
fn longest(a: &[String], b: &[String]) -> Vec<usize> {
    let width = b.len() + 1;
    let mut lengths = vec![0; width * (a.len() + 1)];
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let at = i * width + j;
            lengths[at] = match a[i - 1] == b[j - 1] {
                true => lengths[at - width - 1] + 1,
                false => lengths[at - width].max(lengths[at - 1]),
            };
        }
    }
    lengths
}

/// Marks the places of `a` that belong to one longest common subsequence.
fn mark(a: &[String], b: &[String], marks: &mut [bool]) {
    let (lengths, width) = (longest(a, b), b.len() + 1);
    let (mut i, mut j) = (a.len(), b.len());
    while i > 0 && j > 0 {
        let at = i * width + j;
        if a[i - 1] == b[j - 1] {
            marks[i - 1] = true;
            (i, j) = (i - 1, j - 1);
        } else if lengths[at - 1] > lengths[at - width] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
}

fn of_lines(written: &[Vec<String>], wanted: &[Vec<String>]) -> [f64; 3] {
    fn counted(lines: &[Vec<String>]) -> HashMap<&str, usize> {
        let mut left = HashMap::new();
        lines.iter().flatten().for_each(|word| *left.entry(word.as_str()).or_insert(0) += 1);
        left
    }
    let (mut left, mut wanted_left) = (counted(written), counted(wanted));
    let mut common = 0;
    for line in wanted {
        let mut marks = vec![false; line.len()];
        written.iter().for_each(|other| mark(line, other, &mut marks));
        for word in line.iter().zip(&marks).filter(|(_, marked)| **marked).map(|(word, _)| word.as_str()) {
            // A word counts no more often than either side has it.
            if let (Some(a @ 1..), Some(b @ 1..)) = (left.get_mut(word), wanted_left.get_mut(word)) {
                (*a, *b) = (*a - 1, *b - 1);
                common += 1;
            }
        }
    }
    let count = |lines: &[Vec<String>]| lines.iter().map(Vec::len).sum();
    scores(common, count(written), count(wanted))
}

impl Rouge {
    /// By its name: `rouge1` to `rouge9`, `rougeL` or `rougeLsum`.
    pub fn named(name: &str, stemmed: bool) -> Option<Rouge> {
        let kind = match name.strip_prefix("rouge")? {
            "L" => RougeKind::Longest,
            "Lsum" => RougeKind::LongestOfLines,
            digit if digit.len() == 1 => RougeKind::Runs(digit.parse().ok().filter(|n| *n > 0)?),
            _ => return None,
        };
        Some(Rouge { kind, stemmed })
    }

    /// Precision, recall and F of one text.
    pub fn of(&self, written: &str, wanted: &str) -> [f64; 3] {
        let words = |text: &str| words_of(text, self.stemmed);
        match self.kind {
            RougeKind::Runs(length) => {
                let (written, wanted) = (words(written), words(wanted));
                let (written, wanted) = (runs(&written, length), runs(&wanted, length));
                scores(shared(&written, &wanted), written.values().sum(), wanted.values().sum())
            }
            RougeKind::Longest => {
                let (written, wanted) = (words(written), words(wanted));
                let common = longest(&wanted, &written).pop().unwrap_or(0);
                scores(common, written.len(), wanted.len())
            }
            RougeKind::LongestOfLines => {
                let lines = |text: &str| -> Vec<Vec<String>> {
                    text.split('\n').filter(|line| !line.is_empty()).map(words).collect()
                };
                of_lines(&lines(written), &lines(wanted))
            }
        }
    }
}

impl TextMetric for Rouge {
    fn name(&self) -> String {
        match self.kind {
            RougeKind::Runs(length) => format!("rouge{length}"),
            RougeKind::Longest => "rougeL".into(),
            RougeKind::LongestOfLines => "rougeLsum".into(),
        }
    }

    /// F of the best reference, and one.
    fn statistics(&self, hypothesis: &str, references: &[&str]) -> Vec<f64> {
        let f = references.iter().map(|reference| self.of(hypothesis, reference)[2]);
        vec![f.fold(0.0, f64::max), 1.0]
    }

    fn score(&self, sums: &[f64]) -> f64 {
        sums[0] / sums[1]
    }

    fn signature(&self, references: Option<usize>) -> String {
        let stemmed = if self.stemmed { "porter" } else { "no" };
        format!("nrefs:{}|stem:{stemmed}|f:1|mean:texts", count_of(references))
    }
}
