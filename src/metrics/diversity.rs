//! How much of what a model writes is new.

use super::words::{runs, words};
use std::collections::HashSet;

/// Different runs of `length` words among all of them, over all texts (Li et al. 2016); one where there is none.
pub fn distinct(texts: &[impl AsRef<str>], length: usize) -> f64 {
    let texts: Vec<Vec<&str>> = texts.iter().map(|text| words(text.as_ref())).collect();
    let all: usize = texts.iter().map(|words| words.windows(length).count()).sum();
    let different: HashSet<&[&str]> = texts.iter().flat_map(|words| words.windows(length)).collect();
    if all == 0 { 1.0 } else { different.len() as f64 / all as f64 }
}

/// Share of runs of `length` words that a text has had before, as a mean of texts (rep-n, Welleck et al. 2020); texts that are too
/// short for one do not count.
pub fn repetition(texts: &[impl AsRef<str>], length: usize) -> f64 {
    let of = |text: &dyn AsRef<str>| {
        let words = words(text.as_ref());
        let runs = runs(&words, length);
        let all: usize = runs.values().sum();
        (all > 0).then(|| 1.0 - runs.len() as f64 / all as f64)
    };
    let shares: Vec<f64> = texts.iter().filter_map(|text| of(text)).collect();
    if shares.is_empty() { 0.0 } else { shares.iter().sum::<f64>() / shares.len() as f64 }
}
