//! Pairs of stretches of a text, for models that learn whether the second follows the first.
//!
//! Documents are cut into sentences and these gathered into chunks that fill a pair. Of a chunk the first sentences are the first part.
//! As BERT learns (Devlin et al. 2018), the second part is the rest of the chunk or, half of the time, a stretch of another document; as
//! ALBERT learns (Lan et al. 2019), both parts are of the chunk and half of the time they are swapped. Which sentences are where follows
//! from a key alone.

use crate::data::random::Random;
use serde::Serialize;
use std::ops::Range;

/// What a pair's label tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Following {
    /// Zero where the second part follows, one where it is of another document.
    NextSentence,
    /// Zero where the parts stand in their order, one where they are swapped.
    SentenceOrder,
}

/// A document as the tokens of its sentences.
pub type Sentences = Vec<Vec<u32>>;

/// Sentences of a document that make a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Number of the document.
    pub document: usize,
    /// Its sentences.
    pub sentences: Range<usize>,
}

/// Two parts, and what is right about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Tokens of the first part.
    pub first: Vec<u32>,
    /// Tokens of the second part.
    pub second: Vec<u32>,
    /// Zero or one, as [`Following`] says.
    pub label: u32,
}

/// Sentences of a text, one after the other: they end with a line, or behind a mark such as a full stop before a space.
pub fn sentences(text: &str) -> Vec<&str> {
    text.lines().flat_map(of_line).collect()
}

fn of_line(line: &str) -> Vec<&str> {
    let (mut all, mut from, mut ended) = (vec![], 0, false);
    for (at, character) in line.char_indices() {
        match character {
            '.' | '!' | '?' | '…' => ended = true,
            '。' | '！' | '？' => {
                all.push(&line[from..at + character.len_utf8()]);
                (from, ended) = (at + character.len_utf8(), false);
            }
            '"' | '\'' | ')' | ']' | '”' | '’' | '»' if ended => {}
            _ if character.is_whitespace() && ended => {
                all.push(&line[from..at]);
                (from, ended) = (at, false);
            }
            _ => ended = false,
        }
    }
    all.push(&line[from..]);
    all.into_iter().map(str::trim).filter(|sentence| !sentence.is_empty()).collect()
}

/// Stretches between empty lines of a plain text.
pub fn paragraphs(text: &str) -> Vec<&str> {
    let (mut all, mut from, mut at) = (vec![], None, 0);
    for line in text.split_inclusive('\n') {
        match (line.trim().is_empty(), from) {
            (true, Some(start)) => {
                all.push(&text[start..at]);
                from = None;
            }
            (false, None) => from = Some(at),
            _ => {}
        }
        at += line.len();
    }
    all.extend(from.map(|start| &text[start..]));
    all
}

/// Cuts a document into chunks of at least `most` tokens, as far as its sentences go; a share `short` of them aims at fewer.
pub fn chunks(
    number: usize,
    document: &Sentences,
    [least, most]: [usize; 2],
    short: f64,
    random: &mut Random,
) -> Vec<Chunk> {
    let target = |random: &mut Random| match random.share() < short {
        true => 2 + random.below(most.saturating_sub(1).max(1) as u64) as usize,
        false => most,
    };
    let (mut all, mut from, mut length, mut wanted) = (vec![], 0, 0, target(random));
    for (at, sentence) in document.iter().enumerate() {
        length += sentence.len();
        if length < wanted && at + 1 < document.len() {
            continue;
        }
        let sentences = from..at + 1;
        if sentences.len() >= least {
            all.push(Chunk { document: number, sentences });
        }
        (from, length, wanted) = (at + 1, 0, target(random));
    }
    all
}

impl Chunk {
    /// The pair of it, of at most so many tokens in both parts. `others` are the documents that a strange part may be of.
    pub fn parts(
        &self,
        documents: &[Sentences],
        others: Range<usize>,
        following: Following,
        most: usize,
        random: &mut Random,
    ) -> Parts {
        let document = &documents[self.document];
        let count = self.sentences.len();
        let cut = match count {
            1 => 1,
            _ => 1 + random.below(count as u64 - 1) as usize,
        };
        let joined = |range: Range<usize>| document[range].concat();
        let middle = self.sentences.start + cut;
        let mut first = joined(self.sentences.start..middle);
        let lot = random.share() < 0.5;
        let (mut second, label) = match following {
            Following::NextSentence if count == 1 || lot => {
                let wanted = most.saturating_sub(first.len()).max(1);
                (strange(documents, others, self.document, wanted, random), 1)
            }
            _ => {
                (joined(middle..self.sentences.end), u32::from(lot && following == Following::SentenceOrder))
            }
        };
        if label == 1 && following == Following::SentenceOrder {
            std::mem::swap(&mut first, &mut second);
        }
        truncate(&mut first, &mut second, most, random);
        Parts { first, second, label }
    }
}

/// Sentences of another document from somewhere in it on, until there are enough tokens.
fn strange(
    documents: &[Sentences],
    others: Range<usize>,
    own: usize,
    wanted: usize,
    random: &mut Random,
) -> Vec<u32> {
    let among = others.len() - usize::from(others.contains(&own));
    let mut number = others.start + random.below(among as u64) as usize;
    if others.contains(&own) && number >= own {
        number += 1;
    }
    let document = &documents[number];
    let mut tokens = vec![];
    for sentence in &document[random.below(document.len() as u64) as usize..] {
        tokens.extend(sentence);
        if tokens.len() >= wanted {
            break;
        }
    }
    tokens
}

/// Takes tokens off the longer part, at its front or at its end, until both have at most so many.
fn truncate(first: &mut Vec<u32>, second: &mut Vec<u32>, most: usize, random: &mut Random) {
    let mut ends = [[0, first.len()], [0, second.len()]];
    let length = |[from, to]: [usize; 2]| to - from;
    while length(ends[0]) + length(ends[1]) > most {
        let longer = &mut ends[usize::from(length(ends[0]) <= length(ends[1]))];
        match random.share() < 0.5 {
            true => longer[0] += 1,
            false => longer[1] -= 1,
        }
    }
    for (part, [from, to]) in [first, second].into_iter().zip(ends) {
        part.truncate(to);
        part.drain(..from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_with_marks_before_a_space_and_with_lines() {
        let text = "He paid 3.50 for it. \"Why?\" she said.  No!\nA line\n\nIt is so (or not.) Yes";
        let expected =
            ["He paid 3.50 for it.", "\"Why?\"", "she said.", "No!", "A line", "It is so (or not.)", "Yes"];
        assert_eq!(sentences(text), expected);
        assert_eq!(sentences("雨。雪！"), ["雨。", "雪！"]);
        assert!(sentences(" \n\n").is_empty());
    }

    #[test]
    fn documents_of_a_plain_text_are_parted_by_empty_lines() {
        assert_eq!(paragraphs("\n a\nb\n \n\nc\n"), [" a\nb\n", "c\n"]);
        assert_eq!(paragraphs("a"), ["a"]);
        assert!(paragraphs("\n \n").is_empty());
    }

    /// Documents whose tokens tell where they stand: the hundreds the document, the tens the sentence.
    fn documents() -> Vec<Sentences> {
        let sentence =
            |document: u32, number: u32| (0..3).map(|at| 100 * document + 10 * number + at).collect();
        (0..4).map(|document| (0..5).map(|number| sentence(document, number)).collect()).collect()
    }

    #[test]
    fn chunks_fill_up_to_the_length_and_take_every_sentence_once() {
        let documents = documents();
        let found = chunks(1, &documents[1], [1, 7], 0.0, &mut Random::new(3, 0));
        let ranges: Vec<_> = found.iter().map(|chunk| chunk.sentences.clone()).collect();
        assert_eq!(ranges, [0..3, 3..5]);
        let short = chunks(1, &documents[1], [1, 7], 1.0, &mut Random::new(3, 0));
        assert!(short.len() >= found.len());
        assert_eq!(short.iter().map(|chunk| chunk.sentences.len()).sum::<usize>(), 5);
        assert!(
            chunks(1, &documents[1], [2, 3], 0.0, &mut Random::new(3, 0)).is_empty(),
            "one sentence has no order"
        );
    }

    #[test]
    fn half_of_the_pairs_go_on_and_the_others_are_of_another_document() {
        let documents = documents();
        let chunk = Chunk { document: 2, sentences: 1..4 };
        let mut strange = 0;
        for lot in 0..200 {
            let random = &mut Random::new(9, lot);
            let parts = chunk.parts(&documents, 0..4, Following::NextSentence, 9, random);
            assert_eq!(parts.first[0] / 100, 2);
            let other = parts.second[0] / 100 != 2;
            assert_eq!(parts.label, u32::from(other), "{parts:?}");
            if !other {
                assert_eq!(parts.second[0], parts.first.last().unwrap() + 8, "the next sentence");
            }
            assert!(parts.first.len() + parts.second.len() <= 9 && !parts.second.is_empty());
            strange += parts.label;
            assert_eq!(
                parts,
                chunk.parts(&documents, 0..4, Following::NextSentence, 9, &mut Random::new(9, lot))
            );
        }
        assert!((80..120).contains(&strange), "{strange} of 200");
        // Documents that are held back are strange to themselves alone.
        let held = Chunk { document: 3, sentences: 0..1 };
        let parts = held.parts(&documents, 2..4, Following::NextSentence, 9, &mut Random::new(1, 1));
        assert_eq!((parts.label, parts.second[0] / 100), (1, 2));
    }

    #[test]
    fn swapped_parts_are_of_the_same_chunk() {
        let documents = documents();
        let chunk = Chunk { document: 2, sentences: 1..4 };
        let mut swapped = 0;
        for lot in 0..200 {
            let parts = chunk.parts(&documents, 0..4, Following::SentenceOrder, 9, &mut Random::new(9, lot));
            assert_eq!(u32::from(parts.first[0] > parts.second[0]), parts.label, "{parts:?}");
            assert_eq!(parts.first.len() + parts.second.len(), 9);
            swapped += parts.label;
        }
        assert!((80..120).contains(&swapped), "{swapped} of 200");
    }

    #[test]
    fn what_is_too_long_loses_tokens_of_its_longer_part() {
        let (mut first, mut second) = ((0..10).collect(), vec![1, 2]);
        truncate(&mut first, &mut second, 6, &mut Random::new(1, 2));
        assert_eq!((first.len(), second), (4, vec![1, 2]));
        assert!(first.windows(2).all(|pair| pair[1] == pair[0] + 1), "{first:?}");
    }
}
