//! Answers beside what they should be: whole, by their words, and whether what is cited stands where it is said to stand.

use super::words::words;
use super::{TextMetric, count_of};
use std::collections::HashMap;

/// An answer in the form in which answers are compared (Rajpurkar et al. 2016): small letters, no punctuation of ASCII, no articles,
/// one space between words.
pub fn normalized(answer: &str) -> String {
    let plain: String = answer.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let kept: Vec<&str> =
        words(&plain).into_iter().filter(|word| !["a", "an", "the"].contains(word)).collect();
    kept.join(" ")
}

/// Whether an answer is one of those wanted.
pub fn is_exact(answer: &str, wanted: &[&str]) -> bool {
    let answer = normalized(answer);
    wanted.iter().any(|wanted| normalized(wanted) == answer)
}

/// F of the words that answer and the best of those wanted share.
pub fn word_f1(answer: &str, wanted: &[&str]) -> f64 {
    wanted.iter().map(|wanted| pair_f1(&normalized(answer), &normalized(wanted))).fold(0.0, f64::max)
}

fn pair_f1(answer: &str, wanted: &str) -> f64 {
    let (answer, wanted) = (words(answer), words(wanted));
    if answer.is_empty() || wanted.is_empty() {
        return f64::from(u8::from(answer.is_empty() && wanted.is_empty()));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    wanted.iter().for_each(|word| *left.entry(word).or_insert(0) += 1);
    let mut common = 0.0;
    for word in &answer {
        if let Some(count @ 1..) = left.get_mut(word) {
            *count -= 1;
            common += 1.0;
        }
    }
    2.0 * common / (answer.len() + wanted.len()) as f64
}

/// Share of texts that are one of their references.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExactMatch;

impl TextMetric for ExactMatch {
    fn name(&self) -> String {
        "exact_match".into()
    }

    fn statistics(&self, hypothesis: &str, references: &[&str]) -> Vec<f64> {
        vec![f64::from(u8::from(is_exact(hypothesis, references))), 1.0]
    }

    fn score(&self, sums: &[f64]) -> f64 {
        sums[0] / sums[1]
    }

    fn signature(&self, references: Option<usize>) -> String {
        format!("nrefs:{}|case:lc|punct:no|articles:no", count_of(references))
    }
}

/// The mean of [`word_f1`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WordF1;

impl TextMetric for WordF1 {
    fn name(&self) -> String {
        "f1".into()
    }

    fn statistics(&self, hypothesis: &str, references: &[&str]) -> Vec<f64> {
        vec![word_f1(hypothesis, references), 1.0]
    }

    fn score(&self, sums: &[f64]) -> f64 {
        sums[0] / sums[1]
    }

    fn signature(&self, references: Option<usize>) -> String {
        format!("nrefs:{}|case:lc|punct:no|articles:no", count_of(references))
    }
}

/// What an answer cites.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Citations {
    /// Numbers in brackets, from one, as `[2]` or `[1, 3]`.
    pub cited: Vec<usize>,
    /// How many of these name a source that holds a wanted answer.
    pub supported: usize,
}

/// Whether a text holds one of the wanted answers as whole words, both in the form in which answers are compared.
pub fn holds(text: &str, wanted: &[&str]) -> bool {
    let text = format!(" {} ", normalized(text));
    let mut wanted = wanted.iter().map(|wanted| normalized(wanted));
    wanted.any(|wanted| !wanted.is_empty() && text.contains(&format!(" {wanted} ")))
}

/// Finds the numbers an answer cites, and how many of those sources hold one of the wanted answers.
pub fn citations(answer: &str, sources: &[&str], wanted: &[&str]) -> Citations {
    let mut cited = vec![];
    for part in answer.split('[').skip(1) {
        let Some((within, _)) = part.split_once(']') else { continue };
        let numbers: Option<Vec<usize>> =
            within.split(',').map(|number| number.trim().parse().ok()).collect();
        cited.extend(numbers.unwrap_or_default());
    }
    let of = |number: &&usize| {
        number.checked_sub(1).and_then(|at| sources.get(at)).is_some_and(|text| holds(text, wanted))
    };
    let supported = cited.iter().filter(of).count();
    Citations { cited, supported }
}

/// An answer without what it cites.
pub fn without_citations(answer: &str) -> String {
    let mut rest = answer;
    let mut plain = String::new();
    while let Some((before, behind)) = rest.split_once('[') {
        plain.push_str(before);
        match behind.split_once(']') {
            Some((within, after))
                if within.split(',').all(|number| number.trim().parse::<usize>().is_ok()) =>
            {
                rest = after;
            }
            _ => {
                plain.push('[');
                rest = behind;
            }
        }
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_without_case_punctuation_and_articles() {
        assert!(
            is_exact("The  Eiffel-Tower!", &["no", "eiffeltower"]) && !is_exact("Paris, France", &["Paris"])
        );
        assert_eq!(word_f1("in Paris, France", &["Paris"]), 0.5);
        assert_eq!(word_f1("the", &["a"]), 1.0);
        assert_eq!((word_f1("", &["Paris"]), word_f1("paris paris", &["paris"])), (0.0, 2.0 / 3.0));
    }

    #[test]
    fn what_is_cited_counts_where_the_source_has_the_answer() {
        let sources = ["Paris is the capital of France.", "Lyon is a town.", "Comparison."];
        let found = citations("It is Paris [1, 2][7] [sic] [3", &sources, &["Paris"]);
        assert_eq!(found, Citations { cited: vec![1, 2, 7], supported: 1 });
        assert_eq!(citations("Paris", &sources, &["paris"]), Citations::default());
        assert_eq!(without_citations("It is Paris [1, 2] [sic] [3"), "It is Paris  [sic] [3");
    }
}
