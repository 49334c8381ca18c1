//! chrF and chrF++ (Popovic 2015, 2017): an F score of runs of characters, and of words.

use super::words::{runs, shared, words};
use super::{SACREBLEU, TextMetric, count_of};

/// An F score in which recall counts `beta` times as much; by default sacrebleu's chrF2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chrf {
    /// Runs of up to so many characters.
    pub characters: usize,
    /// Runs of up to so many words: 2 for chrF++.
    pub words: usize,
    /// Weight of recall.
    pub beta: f64,
    /// All letters are small.
    pub lowercase: bool,
    /// White space counts among the characters.
    pub whitespace: bool,
}

impl Default for Chrf {
    fn default() -> Chrf {
        Chrf { characters: 6, words: 0, beta: 2.0, lowercase: false, whitespace: false }
    }
}

/// A text cut for counting.
struct Cut {
    characters: Vec<char>,
    words: Vec<String>,
}

impl Chrf {
    /// With runs of one and two words besides.
    pub fn plus_plus() -> Chrf {
        Chrf { words: 2, ..Chrf::default() }
    }

    fn cut(&self, text: &str) -> Cut {
        let text = if self.lowercase { text.to_lowercase() } else { text.to_string() };
        let characters = match self.whitespace {
            true => text.chars().collect(),
            false => words(&text).iter().flat_map(|word| word.chars()).collect(),
        };
        let words = if self.words > 0 { apart(&text) } else { vec![] };
        Cut { characters, words }
    }

    /// For each length: runs written, runs wanted, runs of both.
    fn compare(&self, written: &Cut, wanted: &Cut) -> Vec<f64> {
        let mut counts = vec![];
        for n in 1..=self.characters {
            push(&mut counts, &written.characters, &wanted.characters, n);
        }
        for n in 1..=self.words {
            push(&mut counts, &written.words, &wanted.words, n);
        }
        counts
    }
}

fn push<T: Eq + std::hash::Hash>(counts: &mut Vec<f64>, written: &[T], wanted: &[T], n: usize) {
    let (written, wanted) = (runs(written, n), runs(wanted, n));
    let all = |runs: &std::collections::HashMap<&[T], usize>| runs.values().sum::<usize>() as f64;
    // A length that the reference has no run of does not count.
    let written_count = if wanted.is_empty() { 0.0 } else { all(&written) };
    counts.extend([written_count, all(&wanted), shared(&written, &wanted) as f64]);
}

/// Words with a mark of ASCII at the end, or else at the beginning, as a word of its own.
fn apart(text: &str) -> Vec<String> {
    let mut found = vec![];
    for word in words(text) {
        let mut characters = word.chars();
        let (first, last) = (characters.next(), characters.next_back());
        match (first, last) {
            (Some(_), Some(last)) if last.is_ascii_punctuation() => {
                found.extend([word[..word.len() - 1].to_string(), last.to_string()]);
            }
            (Some(first), Some(_)) if first.is_ascii_punctuation() => {
                found.extend([first.to_string(), word[1..].to_string()]);
            }
            _ => found.push(word.to_string()),
        }
    }
    found
}

impl TextMetric for Chrf {
    fn name(&self) -> String {
        if self.words > 0 { "chrf++".into() } else { "chrf".into() }
    }

    /// Of the reference that fits best.
    fn statistics(&self, hypothesis: &str, references: &[&str]) -> Vec<f64> {
        let written = self.cut(hypothesis);
        let mut best: Option<(f64, Vec<f64>)> = None;
        for reference in references {
            let counts = self.compare(&written, &self.cut(reference));
            let score = self.score(&counts);
            if best.as_ref().is_none_or(|(best, _)| score > *best) {
                best = Some((score, counts));
            }
        }
        best.map_or(vec![0.0; 3 * (self.characters + self.words)], |(_, counts)| counts)
    }

    fn score(&self, sums: &[f64]) -> f64 {
        let (mut precision, mut recall, mut lengths) = (0.0, 0.0, 0.0);
        for counts in sums.chunks_exact(3) {
            if counts[0] > 0.0 && counts[1] > 0.0 {
                precision += counts[2] / counts[0];
                recall += counts[2] / counts[1];
                lengths += 1.0;
            }
        }
        if precision + recall == 0.0 {
            return 0.0;
        }
        let (precision, recall, weight) = (precision / lengths, recall / lengths, self.beta * self.beta);
        100.0 * (1.0 + weight) * precision * recall / (weight * precision + recall)
    }

    fn signature(&self, references: Option<usize>) -> String {
        let yes = |is: bool| if is { "yes" } else { "no" };
        format!(
            "nrefs:{}|case:{}|eff:yes|nc:{}|nw:{}|space:{}|version:{SACREBLEU}",
            count_of(references),
            if self.lowercase { "lc" } else { "mixed" },
            self.characters,
            self.words,
            yes(self.whitespace),
        )
    }
}
