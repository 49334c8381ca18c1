//! Spans of tags by the strict rule of IOB2, and how many of them were found.
//!
//! A span begins with `B-X` and goes on over each `I-X` behind it; any other tag ends it. An `I-` without a beginning of its kind counts
//! for nothing. This is seqeval's mode `strict` with its scheme `IOB2`.

use std::collections::BTreeSet;

/// A stretch of words of one kind: the kind, the first word, and the one behind the last.
pub type Span<'a> = (&'a str, usize, usize);

/// The spans of a sentence by its tags.
pub fn spans<'a>(tags: &[&'a str]) -> Vec<Span<'a>> {
    let mut found = vec![];
    let mut at = 0;
    while at < tags.len() {
        let Some(kind) = tags[at].strip_prefix("B-") else {
            at += 1;
            continue;
        };
        let inside = |tag: &&&str| tag.strip_prefix("I-") == Some(kind);
        let end = at + 1 + tags[at + 1..].iter().take_while(inside).count();
        found.push((kind, at, end));
        at = end;
    }
    found
}

/// How many spans are right, guessed, and both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanCount {
    hits: usize,
    right: usize,
    guessed: usize,
}

impl SpanCount {
    /// Adds a sentence.
    pub fn add(&mut self, right: &[&str], guessed: &[&str]) {
        let (right, guessed) = (spans(right), spans(guessed));
        let known: BTreeSet<_> = right.iter().collect();
        self.hits += guessed.iter().filter(|span| known.contains(span)).count();
        self.right += right.len();
        self.guessed += guessed.len();
    }

    /// Precision, recall and F1 over all spans; zero where there is nothing to divide by.
    pub fn figures(&self) -> [(&'static str, f64); 3] {
        let share = |part: usize, all: usize| if all == 0 { 0.0 } else { part as f64 / all as f64 };
        [
            ("precision", share(self.hits, self.guessed)),
            ("recall", share(self.hits, self.right)),
            ("f1", share(2 * self.hits, self.right + self.guessed)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_follow_the_strict_rule() {
        assert_eq!(spans(&["B-P", "I-P", "O", "B-L"]), [("P", 0, 2), ("L", 3, 4)]);
        assert_eq!(spans(&["B-P", "B-P", "I-P"]), [("P", 0, 1), ("P", 1, 3)]);
        assert_eq!(spans(&["I-P", "I-P", "O"]), [], "nothing begins");
        assert_eq!(
            spans(&["B-P", "I-L", "B-L"]),
            [("P", 0, 1), ("L", 2, 3)],
            "another kind ends a span and begins none"
        );
        assert_eq!(spans(&[]), []);
    }

    #[test]
    fn a_span_is_found_only_as_a_whole() {
        let mut count = SpanCount::default();
        count.add(&["B-P", "I-P", "O", "B-L"], &["B-P", "O", "O", "B-L"]);
        count.add(&["O", "B-P"], &["B-P", "B-P"]);
        assert_eq!(count, SpanCount { hits: 2, right: 3, guessed: 4 });
        let [precision, recall, f1] = count.figures().map(|(_, figure)| figure);
        assert!((precision - 0.5).abs() + (recall - 2.0 / 3.0).abs() + (f1 - 4.0 / 7.0).abs() < 1e-12);
        assert_eq!(SpanCount::default().figures().map(|(_, figure)| figure), [0.0; 3]);
    }
}
