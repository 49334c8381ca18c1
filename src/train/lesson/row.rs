//! Rows of files as they are learned from: what they say, as tokens, and what is right.

use super::classes::{Classes, Target};
use crate::data::labelled::{Labelled, WithLabel};
use crate::data::similar::Similar;
use crate::data::tagged::Tagged;
use crate::data::tokenizer::{Encoded, Tokenizer};
use crate::train::Result;

/// A row of a file.
#[derive(Clone, Debug)]
pub(super) enum Row {
    /// A text or two with a label.
    Labelled(Labelled),
    /// A sentence with a tag for each word.
    Tagged(Tagged),
    /// Texts of which the first two are alike.
    Similar(Similar),
}

impl Row {
    /// All of its text, for tokenizers that are made of it.
    pub fn text(&self) -> String {
        match self {
            Row::Labelled(row) => format!("{}\n{}\n", row.text, row.second.as_deref().unwrap_or_default()),
            Row::Tagged(row) => row.words.join(" ") + "\n",
            Row::Similar(row) => row.texts.join("\n") + "\n",
        }
    }

    /// Its texts as tokens, at most so many of each.
    pub fn encode(&self, tokenizer: &Tokenizer, most: usize) -> Result<Vec<Encoded>> {
        let inputs = match self {
            Row::Labelled(row) => vec![tokenizer.encode_input(&row.text, row.second.as_deref(), most)?],
            Row::Tagged(row) => vec![tokenizer.encode_words(&row.words, most)?.0],
            Row::Similar(row) => row
                .texts
                .iter()
                .map(|text| tokenizer.encode_input(text, None, most))
                .collect::<Result<_, _>>()?,
        };
        match inputs.iter().any(|input| input.ids.is_empty()) {
            true => Err(self.refuse("the text has no token".into()).into()),
            false => Ok(inputs),
        }
    }

    /// What is right, where at most so many tokens are read.
    pub fn target(&self, classes: &Classes, tokenizer: &Tokenizer, most: usize) -> Result<Target> {
        match self {
            Row::Labelled(row) => Ok(classes.target(row)?),
            Row::Tagged(row) => {
                let tags = classes.tags(row)?;
                let (_, words) = tokenizer.encode_words(&row.words, most)?;
                Ok(Target::Tags(firsts(&words).into_iter().map(|word| word.map(|word| tags[word])).collect()))
            }
            Row::Similar(_) => Ok(Target::Alike),
        }
    }

    fn refuse(&self, reason: String) -> crate::data::Error {
        match self {
            Row::Labelled(row) => row.refuse(reason),
            Row::Tagged(row) => row.refuse(0, reason),
            Row::Similar(row) => row.refuse(reason),
        }
    }
}

/// For each token the word of which it is the first.
pub fn firsts(words: &[Option<usize>]) -> Vec<Option<usize>> {
    let mut last = None;
    let first = |&word: &Option<usize>| {
        let is_first = word.is_some() && word != last;
        last = word.or(last);
        word.filter(|_| is_first)
    };
    words.iter().map(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_token_of_a_word_stands_for_it() {
        let words = [None, Some(0), Some(0), Some(1), Some(2), Some(2), None];
        assert_eq!(firsts(&words), [None, Some(0), None, Some(1), Some(2), None, None]);
    }
}
