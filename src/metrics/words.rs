//! Words and runs of them.

use std::collections::HashMap;
use std::hash::Hash;

/// Words with nothing but white space between them, as Python splits: four control characters divide as well.
pub fn words(text: &str) -> Vec<&str> {
    let divides = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    text.split(divides).filter(|word| !word.is_empty()).collect()
}

/// How often each run of `length` occurs.
pub fn runs<T: Eq + Hash>(items: &[T], length: usize) -> HashMap<&[T], usize> {
    let mut counts = HashMap::new();
    for run in items.windows(length) {
        *counts.entry(run).or_insert(0) += 1;
    }
    counts
}

/// Runs that both have, each as often as in the one that has it less often.
pub fn shared<T: Eq + Hash>(a: &HashMap<&[T], usize>, b: &HashMap<&[T], usize>) -> usize {
    a.iter().map(|(run, count)| b.get(run).map_or(0, |other| *count.min(other))).sum()
}
