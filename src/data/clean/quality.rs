//! Rules on what a text looks like, as large corpora were filtered by them.
//!
//! Gopher: Rae et al. 2021, table A1. C4: Raffel et al. 2020, section 2.2. FineWeb: Penedo et al. 2024.

use std::collections::{HashMap, HashSet};

use super::words::{Ready, chain, hash};

/// One rule: a figure of a text, and on which side of its limit the text goes.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Its name, which is its flag on the command line.
    pub name: &'static str,
    /// The limit of the paper.
    pub usual: f64,
    /// Which paper.
    pub source: &'static str,
    /// What it is about, in a line.
    pub about: &'static str,
    /// The figure.
    figure: fn(&Looks) -> f64,
}

impl Rule {
    /// Texts below the limit go, rather than those above.
    fn is_least(&self) -> bool {
        self.name.starts_with("least")
    }
}

const fn rule(
    name: &'static str,
    usual: f64,
    source: &'static str,
    about: &'static str,
    figure: fn(&Looks) -> f64,
) -> Rule {
    Rule { name, usual, source, about, figure }
}

/// All rules, in the order in which they are tried.
pub const RULES: &[Rule] = &[
    rule("least-words", 50.0, "gopher", "Words", |l| l.words.len() as f64),
    rule("most-words", 100_000.0, "gopher", "Words", |l| l.words.len() as f64),
    rule("least-mean-word", 3.0, "gopher", "Mean length of words, in characters", |l| l.mean_word()),
    rule("most-mean-word", 10.0, "gopher", "Mean length of words, in characters", |l| l.mean_word()),
    rule("most-symbols", 0.1, "gopher", "Hash signs and ellipses for each word", |l| l.symbols()),
    rule("most-bullets", 0.9, "gopher", "Share of lines that begin with a bullet", |l| {
        l.lines_that(is_bullet)
    }),
    rule("most-ellipses", 0.3, "gopher", "Share of lines that end in an ellipsis", |l| {
        l.lines_that(|line| line.ends_with('…') || line.ends_with("..."))
    }),
    rule("least-alphabetic", 0.8, "gopher", "Share of words with a letter in them", |l| l.alphabetic()),
    rule(
        "least-stop-words",
        2.0,
        "gopher",
        "How many of the, be, to, of, and, that, have, with occur",
        |l| l.stop_words(),
    ),
    rule("most-repeated-lines", 0.3, "gopher", "Share of lines that stood there before", |l| {
        l.repeated(&l.lines, false)
    }),
    rule("most-repeated-line-characters", 0.2, "gopher", "Share of characters in such lines", |l| {
        l.repeated(&l.lines, true)
    }),
    rule("most-repeated-paragraphs", 0.3, "gopher", "Share of paragraphs that stood there before", |l| {
        l.repeated(&l.paragraphs, false)
    }),
    rule(
        "most-repeated-paragraph-characters",
        0.2,
        "gopher",
        "Share of characters in such paragraphs",
        |l| l.repeated(&l.paragraphs, true),
    ),
    rule(
        "most-in-top-2-gram",
        0.2,
        "gopher",
        "Share of characters in the most frequent run of 2 words",
        |l| l.top(2),
    ),
    rule(
        "most-in-top-3-gram",
        0.18,
        "gopher",
        "Share of characters in the most frequent run of 3 words",
        |l| l.top(3),
    ),
    rule(
        "most-in-top-4-gram",
        0.16,
        "gopher",
        "Share of characters in the most frequent run of 4 words",
        |l| l.top(4),
    ),
    rule(
        "most-in-repeated-5-grams",
        0.15,
        "gopher",
        "Share of characters in runs of 5 words seen before",
        |l| l.runs(5),
    ),
    rule("most-in-repeated-6-grams", 0.14, "gopher", "The same of 6 words", |l| l.runs(6)),
    rule("most-in-repeated-7-grams", 0.13, "gopher", "The same of 7 words", |l| l.runs(7)),
    rule("most-in-repeated-8-grams", 0.12, "gopher", "The same of 8 words", |l| l.runs(8)),
    rule("most-in-repeated-9-grams", 0.11, "gopher", "The same of 9 words", |l| l.runs(9)),
    rule("most-in-repeated-10-grams", 0.1, "gopher", "The same of 10 words", |l| l.runs(10)),
    rule("least-sentences", 3.0, "c4", "Sentences, by the marks that end them", |l| l.sentences()),
    rule("most-braces", 0.0, "c4", "Curly brackets", |l| l.text.matches('{').count() as f64),
    rule("most-lorem-ipsum", 0.0, "c4", "Times that \"lorem ipsum\" occurs", |l| {
        l.text.to_lowercase().matches("lorem ipsum").count() as f64
    }),
    rule(
        "least-ended-lines",
        0.12,
        "fineweb",
        "Share of lines that end in a mark such as a full stop",
        |l| l.lines_that(|line| line.trim_end_matches(['"', '\'', '”', '’', ')']).ends_with(ENDS)),
    ),
    rule("most-short-lines", 0.67, "fineweb", "Share of lines with fewer than 30 characters", |l| {
        l.lines_that(|line| line.chars().count() < 30)
    }),
];

const ENDS: [char; 6] = ['.', '!', '?', '。', '！', '？'];
const STOP_WORDS: [&str; 8] = ["the", "be", "to", "of", "and", "that", "have", "with"];

/// The rules that a text must pass, each with its limit.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    chosen: Vec<(&'static Rule, f64)>,
}

impl Limits {
    /// The rules of some papers, and those with limits of their own, in the order of [`RULES`].
    pub fn new(sources: &[String], own: &[(&'static str, f64)]) -> Limits {
        let limit = |rule: &'static Rule| {
            let given = own.iter().find(|(name, _)| *name == rule.name).map(|(_, limit)| *limit);
            let usual = || sources.iter().any(|source| source == rule.source).then_some(rule.usual);
            given.or_else(usual).map(|limit| (rule, limit))
        };
        Limits { chosen: RULES.iter().filter_map(limit).collect() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.chosen.len()
    }

    /// Whether every text passes.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// The first rule that a text breaks, with its figure.
    pub fn broken(&self, text: &str) -> Option<(&'static str, f64)> {
        if self.is_empty() {
            return None;
        }
        let looks = Looks::of(text);
        self.chosen.iter().find_map(|(rule, limit)| {
            let figure = (rule.figure)(&looks);
            let breaks = if rule.is_least() { figure < *limit } else { figure > *limit };
            breaks.then_some((rule.name, figure))
        })
    }
}

/// A text in its parts.
struct Looks<'a> {
    text: &'a str,
    lines: Vec<&'a str>,
    paragraphs: Vec<&'a str>,
    words: Vec<&'a str>,
    /// Of each word its hash and its characters.
    hashes: Vec<(u64, u32)>,
    /// Of all words together, never zero.
    characters: f64,
}

impl<'a> Looks<'a> {
    fn of(text: &'a str) -> Looks<'a> {
        let some = |part: &&str| !part.is_empty();
        let words: Vec<&str> = text.split_whitespace().collect();
        let count = |word: &&str| (hash(word.as_bytes()), word.chars().count() as u32);
        let hashes: Vec<(u64, u32)> = words.iter().map(count).collect();
        let characters = hashes.iter().map(|(_, length)| f64::from(*length)).sum::<f64>().max(1.0);
        Looks {
            text,
            lines: text.lines().map(str::trim).filter(some).collect(),
            paragraphs: text.split("\n\n").map(str::trim).filter(some).collect(),
            words,
            hashes,
            characters,
        }
    }

    fn for_each_word(&self, count: usize) -> f64 {
        count as f64 / self.words.len().max(1) as f64
    }

    fn mean_word(&self) -> f64 {
        if self.words.is_empty() { 0.0 } else { self.characters / self.words.len() as f64 }
    }

    fn symbols(&self) -> f64 {
        let count = |mark: &str| self.text.matches(mark).count();
        self.for_each_word(count("#").max(count("...") + count("…")))
    }

    fn lines_that(&self, fits: impl Fn(&str) -> bool) -> f64 {
        self.lines.iter().filter(|line| fits(line)).count() as f64 / self.lines.len().max(1) as f64
    }

    fn alphabetic(&self) -> f64 {
        self.for_each_word(self.words.iter().filter(|word| word.chars().any(char::is_alphabetic)).count())
    }

    fn stop_words(&self) -> f64 {
        let is = |stop: &&str| {
            let word =
                |word: &&str| word.trim_matches(|c: char| !c.is_alphanumeric()).eq_ignore_ascii_case(stop);
            self.words.iter().any(word)
        };
        STOP_WORDS.iter().filter(|stop| is(stop)).count() as f64
    }

    fn sentences(&self) -> f64 {
        let mut count = 0;
        let mut ended = true;
        for character in self.text.chars() {
            match (ENDS.contains(&character), ended) {
                (true, false) => (count, ended) = (count + 1, true),
                (false, _) if character.is_alphanumeric() => ended = false,
                _ => {}
            }
        }
        f64::from(count)
    }

    /// The share of parts that stood there before: of their number, or of their characters.
    fn repeated(&self, parts: &[&str], by_characters: bool) -> f64 {
        let mut seen = HashSet::with_hasher(Ready::default());
        let (mut again, mut all) = (0, 0);
        for part in parts {
            let weight = if by_characters { part.len() } else { 1 };
            all += weight;
            if !seen.insert(hash(part.as_bytes())) {
                again += weight;
            }
        }
        f64::from(again as u32) / f64::from(all.max(1) as u32)
    }

    /// Hash and characters of each run of `length` words.
    fn grams(&self, length: usize) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.hashes.windows(length).map(|run| {
            let key = run.iter().fold(0, |sum, (hash, _)| chain(&[sum, *hash]));
            (key, run.iter().map(|(_, characters)| characters).sum())
        })
    }

    /// The share of characters in the most frequent run of `length` words that occurs more than once.
    fn top(&self, length: usize) -> f64 {
        let mut counts: HashMap<u64, (u32, u32), Ready> = HashMap::default();
        for (key, characters) in self.grams(length) {
            counts.entry(key).or_insert((0, characters)).0 += 1;
        }
        let most =
            counts.values().filter(|(count, _)| *count > 1).max_by_key(|(count, length)| (*count, *length));
        most.map_or(0.0, |(count, characters)| f64::from(count * characters) / self.characters)
    }

    /// The share of characters in runs of `length` words that were seen before, no word counted twice.
    fn runs(&self, length: usize) -> f64 {
        let mut seen = HashSet::with_hasher(Ready::default());
        let (mut again, mut free) = (0.0, 0);
        for (at, (key, characters)) in self.grams(length).enumerate() {
            if !seen.insert(key) && at >= free {
                again += f64::from(characters);
                free = at + length;
            }
        }
        again / self.characters
    }
}

fn is_bullet(line: &str) -> bool {
    line.starts_with(['•', '●', '○', '■', '▪', '‣', '*', '-', '–'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, text: &str) -> f64 {
        let rule = RULES.iter().find(|rule| rule.name == name).expect("a rule");
        (rule.figure)(&Looks::of(text))
    }

    #[test]
    fn figures_are_those_counted_by_hand() {
        for (name, text, expected) in [
            ("least-words", "one two\nthree", 3.0),
            ("most-mean-word", "ab abcd", 3.0),
            ("least-mean-word", "", 0.0),
            ("most-symbols", "a # b ## c d", 0.5),
            ("most-symbols", "a... b c… d", 0.5),
            ("most-bullets", "- a\n* b\nc\n\nd", 0.5),
            ("most-ellipses", "a...\nb\nc…\nd", 0.5),
            ("least-alphabetic", "a1 22 33 b", 0.5),
            ("least-stop-words", "The cat, and THE dog.", 2.0),
            ("most-repeated-lines", "a\nb\na\na", 0.5),
            ("most-repeated-line-characters", "aaaa\nbb\naaaa", 0.4),
            ("most-repeated-paragraphs", "a\n\nb\n\na\n\nc", 0.25),
            ("most-repeated-paragraph-characters", "aaa\n\nb\n\naaa\n\nc", 0.375),
            ("most-in-top-2-gram", "a b c a b d", 4.0 / 6.0),
            ("most-in-top-2-gram", "a b c d", 0.0),
            // The second "a b c d e" overlaps no other.
            ("most-in-repeated-5-grams", "a b c d e f a b c d e g", 5.0 / 12.0),
            ("least-sentences", "One. Two?! And 3... four", 3.0),
            ("most-braces", "{ a } {", 2.0),
            ("most-lorem-ipsum", "Lorem Ipsum", 1.0),
            ("least-ended-lines", "He said \"no.\"\nMenu\nYes!\nHome", 0.5),
            ("most-short-lines", "short\na line that is long enough to count as one", 0.5),
        ] {
            assert!(
                (figure(name, text) - expected).abs() < 1e-12,
                "{name} of {text:?}: {}",
                figure(name, text)
            );
        }
    }

    #[test]
    fn limits_come_from_papers_or_from_the_user_and_the_first_broken_rule_is_told() {
        let gopher = Limits::new(&["gopher".into()], &[]);
        assert_eq!(gopher.broken("too short").unwrap(), ("least-words", 2.0));
        let own = Limits::new(&[], &[("least-words", 2.0), ("most-braces", 0.0)]);
        assert_eq!((own.len(), own.broken("long enough")), (2, None));
        assert_eq!(own.broken("a { b").unwrap(), ("most-braces", 1.0));
        let good = "The people of the town have come to the river, and they sing with joy. ".repeat(2)
            + "Nobody knows that a storm will be here tomorrow, which is why all of them look so glad to us. \
               Old boats wait along both banks while children count birds above a mill; later, when lamps \
               burn, someone reads aloud from letters sent years ago by sailors far away.";
        assert_eq!(gopher.broken(&good).map(|(name, _)| name), Some("most-in-repeated-5-grams"));
        let once =
            good.replacen("The people of the town have come to the river, and they sing with joy. ", "", 1);
        assert_eq!(gopher.broken(&once), None);
        assert!(Limits::new(&[], &[]).broken("").is_none());
    }
}
