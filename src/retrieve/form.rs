//! How passages stand in a prompt.
//!
//! Each passage has a number, its place and its text:
//!
//! ```text
//! [1] notes/sea.md:3-9
//! The sea is salt.
//!
//! [2] fish.txt:1
//! Fish swim.
//! ```
//!
//! They stand before the prompt, with an empty line between. What is said to an assistant has them before the question, as what the
//! user says: `Sources:`, the passages, [`ASKED`], the question, with an empty line between each and the next.

use super::{Error, Hit, Result};

/// What an assistant is asked to do with the passages.
pub const ASKED: &str = "Answer from these sources, and cite them by their numbers, such as [1].";

/// Passages with their numbers; empty where there are none.
pub fn listed(hits: &[Hit]) -> String {
    let one =
        |(at, hit): (usize, &Hit)| format!("[{}] {}\n{}", at + 1, hit.passage.place(), hit.passage.text);
    hits.iter().enumerate().map(one).collect::<Vec<_>>().join("\n\n")
}

/// Passages before a prompt that is continued.
pub fn plain(hits: &[Hit], prompt: &str) -> String {
    if hits.is_empty() { prompt.into() } else { format!("{}\n\n{prompt}", listed(hits)) }
}

/// Passages before a question that an assistant is to answer.
pub fn message(hits: &[Hit], question: &str) -> String {
    match hits.is_empty() {
        true => question.into(),
        false => format!("Sources:\n\n{}\n\n{ASKED}\n\n{question}", listed(hits)),
    }
}

/// Passages that have a place in a prompt, and how many have none.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// In the order of their scores.
    pub kept: Vec<Hit>,
    /// For which there is no room.
    pub too_long: usize,
    /// For whose characters the model has no tokens.
    pub unreadable: usize,
}

impl Fitted {
    /// What was dropped, in words.
    pub fn told(&self) -> Option<String> {
        let mut parts = vec![];
        if self.too_long > 0 {
            parts.push(format!("{} for want of room in the model's context", self.too_long));
        }
        if self.unreadable > 0 {
            parts.push(format!("{} because the model has no tokens for its characters", self.unreadable));
        }
        (!parts.is_empty()).then(|| format!("passages dropped: {}", parts.join(", ")))
    }
}

/// The best passages with which a prompt leaves room for an answer. `length` tells the tokens of the prompt with some passages; none where
/// the tokenizer cannot write them. A passage that does not fit is left out, and one of lower score may stand in its place.
pub fn fit(
    hits: Vec<Hit>,
    context: usize,
    answer: usize,
    length: &mut dyn FnMut(&[Hit]) -> Option<usize>,
) -> Result<Fitted> {
    let mut fitted = Fitted { kept: vec![], too_long: 0, unreadable: 0 };
    let mut shortest: Option<usize> = None;
    for hit in hits {
        fitted.kept.push(hit);
        let tokens = length(&fitted.kept);
        if tokens.is_some_and(|tokens| tokens.saturating_add(answer) <= context) {
            continue;
        }
        fitted.kept.pop();
        match tokens {
            Some(tokens) => {
                shortest = Some(shortest.map_or(tokens, |least| least.min(tokens)));
                fitted.too_long += 1;
            }
            None => fitted.unreadable += 1,
        }
    }
    match (fitted.kept.is_empty(), shortest) {
        (true, Some(with)) => {
            let prompt = length(&[]).unwrap_or(0);
            Err(Error::NoRoom { context, prompt, answer, with })
        }
        _ => Ok(fitted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retrieve::Passage;

    fn hit(text: &str) -> Hit {
        let passage = Passage { path: "a.md".into(), first_line: 1, last_line: 2, text: text.into() };
        Hit { passage, score: 1.0 }
    }

    #[test]
    fn passages_stand_before_the_prompt_with_number_and_place() {
        let hits = [hit("Salt."), hit("Fish.")];
        let listed = "[1] a.md:1-2\nSalt.\n\n[2] a.md:1-2\nFish.";
        assert_eq!(plain(&hits, "Why?"), format!("{listed}\n\nWhy?"));
        assert_eq!(message(&hits, "Why?"), format!("Sources:\n\n{listed}\n\n{ASKED}\n\nWhy?"));
        assert_eq!((plain(&[], "Why?"), message(&[], "Why?")), ("Why?".into(), "Why?".into()));
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_a_shorter_one_takes_its_place() {
        let hits = vec![hit("abcd"), hit("abcdefgh"), hit("ab"), hit("€")];
        let mut length = |hits: &[Hit]| {
            let sum: usize = hits.iter().map(|hit| hit.passage.text.len()).sum();
            hits.iter().all(|hit| hit.passage.text.is_ascii()).then_some(sum + 3)
        };
        let fitted = fit(hits.clone(), 20, 10, &mut length).unwrap();
        let kept: Vec<&str> = fitted.kept.iter().map(|hit| hit.passage.text.as_str()).collect();
        assert_eq!((kept, fitted.too_long, fitted.unreadable), (vec!["abcd", "ab"], 1, 1));
        assert!(fitted.told().unwrap().contains("1 for want of room"));
        let refused = fit(hits, 14, 10, &mut length).unwrap_err();
        assert!(
            matches!(refused, Error::NoRoom { context: 14, prompt: 3, answer: 10, with: 5 }),
            "{refused}"
        );
        assert_eq!(fit(vec![], 1, 10, &mut length).unwrap().told(), None);
        // Where nothing can be read there is nothing to make room for.
        assert_eq!(fit(vec![hit("€")], 14, 10, &mut length).unwrap().unreadable, 1);
    }
}
