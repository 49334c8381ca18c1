//! A probabilistic grammar of finite texts whose entropy is known exactly.
//!
//! A grammar is text with choices. Some choices are *bound*: a row of a table is drawn once and its forms are
//! used again and again (a name, its pronouns), which is what gives the text agreement over long distances. There is
//! no recursion, so every text is finite and the entropy is a finite sum over the choices, by the chain rule:
//!
//! `H = sum over choices of E[-sum over alternatives of p log p]`, with `p` given what was bound before.
//!
//! This is the entropy of *derivations*. It is the entropy of *texts* when no text has two derivations, which
//! [`Grammar::ambiguity`] decides: it asks of every choice, in every state that can reach it, whether two
//! alternatives could go on with texts of which one begins the other. If none can, a reader going from left to
//! right always knows which alternative was taken, so derivation and text determine each other, and so does
//! a stream of texts one after the other.
//!
//! The notation is described in [`notation`].

mod ambiguity;
mod measure;
pub mod notation;
mod sections;
mod walk;

use crate::data::random::Random;
use crate::data::{Error, Result};

pub use ambiguity::Ambiguity;
pub use measure::Measure;
use walk::{Stop, Walk};

/// The most variables that a grammar may bind.
const MOST_VARIABLES: usize = 64;

/// A grammar, checked and measured.
#[derive(Clone, Debug)]
pub struct Grammar {
    tables: Vec<Table>,
    variables: Vec<Variable>,
    root: Vec<Item>,
    measure: Measure,
}

#[derive(Clone, Debug)]
struct Table {
    name: String,
    forms: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    weight: u64,
    cells: Vec<String>,
}

#[derive(Clone, Debug)]
struct Variable {
    name: String,
    table: usize,
}

/// One piece of a rule's body.
#[derive(Clone, Debug)]
enum Item {
    Text(String),
    /// A form of a bound variable.
    Slot {
        variable: usize,
        form: usize,
        capital: bool,
    },
    /// One of several bodies.
    Choice {
        line: usize,
        total: u64,
        alternatives: Vec<(u64, Vec<Item>)>,
    },
    /// Draws a row of the variable's table for the rest of the body.
    Bind(Bind),
}

#[derive(Clone, Debug)]
struct Bind {
    line: usize,
    variable: usize,
    /// Only rows whose form equals this form of that variable.
    equal: Option<(usize, (usize, usize))>,
    /// Not the row that this variable, of the same table, has.
    except: Option<usize>,
}

impl Bind {
    /// Variables whose rows decide which rows can be drawn.
    fn reads(&self) -> impl Iterator<Item = usize> + use<> {
        self.except.into_iter().chain(self.equal.map(|(_, (other, _))| other))
    }
}

impl Item {
    /// Variables whose rows decide what the item itself writes or draws.
    fn reads(&self) -> impl Iterator<Item = usize> + use<> {
        let (slot, bind) = match self {
            Item::Slot { variable, .. } => (Some(*variable), None),
            Item::Bind(bind) => (None, Some(bind.reads())),
            Item::Text(_) | Item::Choice { .. } => (None, None),
        };
        slot.into_iter().chain(bind.into_iter().flatten())
    }
}

/// Rows that the variables have; meaningful only for those bound by now.
type State = [u16; MOST_VARIABLES];

/// How a text can be derived.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Derivations {
    /// In how many ways. One, if the grammar is unambiguous and the text is of it.
    pub count: usize,
    /// Natural logarithm of the summed probabilities.
    pub log_probability: f64,
}

impl Grammar {
    /// Writes one text, drawing every choice from `random`.
    pub fn write(&self, random: &mut Random) -> String {
        let mut text = String::new();
        let mut walk = Walk::new(&self.root);
        loop {
            match walk.advance(self, &mut |piece| text.push_str(piece)) {
                Stop::End => return text,
                Stop::Unknown(_) => unreachable!("a variable is read only where it is alive"),
                Stop::Choice(total, alternatives) => {
                    let weights = alternatives.iter().map(|alternative| alternative.0);
                    walk.enter(&alternatives[pick(random.below(total), weights)].1);
                }
                Stop::Bind(bind) => {
                    let rows: Vec<(u16, u64)> = self.candidates(bind, walk.state()).collect();
                    let weights = || rows.iter().map(|row| row.1);
                    let chosen = pick(random.below(weights().sum()), weights());
                    walk.bind(bind.variable, rows[chosen].0);
                }
            }
        }
    }

    /// Exact expectations over all texts: nats and characters of one text.
    pub fn measure(&self) -> Measure {
        self.measure
    }

    /// Natural logarithm of the probability of `text`, which must be one whole text of the grammar.
    pub fn log_probability(&self, text: &str) -> Result<f64> {
        Ok(self.derivations(text)?.log_probability)
    }

    /// Finds every derivation of `text`, by trying every alternative of every choice. An error if there is none.
    pub fn derivations(&self, text: &str) -> Result<Derivations> {
        let mut found = Vec::new();
        let mut furthest = 0;
        let mut open = vec![(Walk::new(&self.root), 0_usize, 0.0_f64)];
        while let Some((mut walk, mut at, log_probability)) = open.pop() {
            let mut fits = true;
            let stop = walk.advance(self, &mut |piece| {
                fits = fits && text.as_bytes()[at..].starts_with(piece.as_bytes());
                at += if fits { piece.len() } else { 0 };
            });
            furthest = furthest.max(at);
            if !fits {
                continue;
            }
            if matches!(stop, Stop::End) && at == text.len() {
                found.push(log_probability);
            }
            let ways = walk.ways(self, &stop).into_iter();
            open.extend(ways.map(|(share, way)| (way, at, log_probability + share.ln())));
        }
        match found.as_slice() {
            [] => {
                let boundary = |&at: &usize| text.is_char_boundary(at);
                let from = (0..=furthest).rev().find(boundary).expect("zero is one");
                Err(Error::NotInGrammar {
                    matched_bytes: from,
                    next: text[from..].chars().take(40).collect(),
                })
            }
            [only] => Ok(Derivations { count: 1, log_probability: *only }),
            several => {
                let sum: f64 = several.iter().map(|log| log.exp()).sum();
                Ok(Derivations { count: several.len(), log_probability: sum.ln() })
            }
        }
    }

    /// The rows that `bind` may draw in `state`, with their weights.
    fn candidates<'a>(&'a self, bind: &'a Bind, state: &State) -> impl Iterator<Item = (u16, u64)> + use<'a> {
        let required =
            bind.equal.map(|(form, (other, other_form))| (form, self.cell(other, other_form, state)));
        let excluded = bind.except.map(|other| state[other]);
        let rows = &self.tables[self.variables[bind.variable].table].rows;
        (0_u16..).zip(rows).filter_map(move |(number, row)| {
            let equal = required.is_none_or(|(form, cell)| row.cells[form] == cell);
            (equal && excluded != Some(number)).then_some((number, row.weight))
        })
    }

    /// The rows that `bind` may draw in `state`, with their probabilities.
    fn shares(&self, bind: &Bind, state: &State) -> Vec<(u16, f64)> {
        let total: u64 = self.candidates(bind, state).map(|(_, weight)| weight).sum();
        self.candidates(bind, state).map(|(row, weight)| (row, weight as f64 / total as f64)).collect()
    }

    /// What a slot writes in `state`, before any capital.
    fn cell(&self, variable: usize, form: usize, state: &State) -> &str {
        &self.tables[self.variables[variable].table].rows[usize::from(state[variable])].cells[form]
    }
}

fn mistake(line: usize, reason: impl Into<String>) -> Error {
    Error::Grammar { line, reason: reason.into() }
}

/// The index of the weight that `drawn`, a number below their sum, falls into.
fn pick(mut drawn: u64, weights: impl Iterator<Item = u64>) -> usize {
    for (index, weight) in weights.enumerate() {
        if drawn < weight {
            return index;
        }
        drawn -= weight;
    }
    unreachable!("drawn below the sum of the weights")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const SMALL: &str = "
table child (name, he)
3 Tom | he
Mia | she

table toy (at, name)
2 home | ball
home | kite
park | bench

table place (name)
home
3 park

rule story
  <hero=child>{hero} was at <place=place>{place}.
  [2: {Hero.he} saw a <toy=toy where at = place>{toy.name}. | $friend ]

rule friend
  <friend=child but hero>{friend} came, and {friend.he} smiled.
";

    fn small() -> Grammar {
        Grammar::read(SMALL).unwrap()
    }

    /// All texts with their probabilities, by hand-written loops over the tables above.
    fn by_hand() -> BTreeMap<String, f64> {
        let mut texts = BTreeMap::new();
        for (hero, he, friend, friend_he, p_hero) in
            [("Tom", "He", "Mia", "she", 0.75), ("Mia", "She", "Tom", "he", 0.25)]
        {
            for (place, p_place) in [("home", 0.25), ("park", 0.75)] {
                let start = format!("{hero} was at {place}. ");
                let toys: &[(&str, f64)] = match place {
                    "home" => &[("ball", 2.0 / 3.0), ("kite", 1.0 / 3.0)],
                    _ => &[("bench", 1.0)],
                };
                for (toy, p_toy) in toys {
                    texts.insert(format!("{start}{he} saw a {toy}."), p_hero * p_place * p_toy * 2.0 / 3.0);
                }
                texts
                    .insert(format!("{start}{friend} came, and {friend_he} smiled."), p_hero * p_place / 3.0);
            }
        }
        texts
    }

    #[test]
    fn probabilities_entropy_and_length_equal_those_enumerated_by_hand() {
        let (grammar, texts) = (small(), by_hand());
        assert!((texts.values().sum::<f64>() - 1.0).abs() < 1e-12);
        for (text, probability) in &texts {
            let derivations = grammar.derivations(text).unwrap();
            assert_eq!(derivations.count, 1);
            assert!((derivations.log_probability - probability.ln()).abs() < 1e-12, "{text}");
        }
        let entropy: f64 = texts.values().map(|p| -p * p.ln()).sum();
        let length: f64 = texts.iter().map(|(text, p)| p * text.len() as f64).sum();
        assert!((grammar.measure().nats - entropy).abs() < 1e-12);
        assert!((grammar.measure().characters - length).abs() < 1e-9);
    }

    #[test]
    fn texts_are_drawn_as_often_as_their_probability_says() {
        let (grammar, texts) = (small(), by_hand());
        let draws = 20_000;
        let mut counts = BTreeMap::new();
        for story in 0..draws {
            *counts.entry(grammar.write(&mut Random::new(9, story))).or_insert(0) += 1;
        }
        for (text, probability) in &texts {
            let expected = probability * draws as f64;
            let got = f64::from(counts.remove(text).unwrap_or(0));
            assert!((got - expected).abs() < 5.0 * expected.sqrt(), "{text}: {got} for {expected}");
        }
        assert!(counts.is_empty(), "texts that the grammar does not have: {counts:?}");
    }

    #[test]
    fn a_text_of_another_grammar_is_refused_at_the_place_where_it_leaves() {
        let error = small().log_probability("Tom was at home. She saw a ball.").unwrap_err();
        assert!(matches!(&error, Error::NotInGrammar { next, .. } if next.starts_with("She")), "{error}");
        assert!(small().log_probability("Tom was at home.").is_err(), "only half a text");
        assert!(small().log_probability("Tom was at home. He saw a ball. More").is_err());
    }
}
