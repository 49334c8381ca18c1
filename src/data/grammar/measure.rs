//! Exact entropy and expected length, by the chain rule over choices.
//!
//! Choices that bind nothing add up. A row that is bound matters to what follows in two ways. It decides which rows
//! later draws have: then the rest of the body is measured once for each row. And its forms are written: that is
//! linear, so the rest is measured once, with the expected number of times that each form is written. A choice is
//! measured once for each value of the variables that decide its draws.

use std::collections::HashMap;
use std::rc::Rc;

use super::{Bind, Grammar, Item, MOST_VARIABLES, State};

/// Expectations over all texts of a grammar.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measure {
    /// Entropy of one text, in nats: the mean of `-log p(text)`.
    pub nats: f64,
    /// Mean length of one text, in characters.
    pub characters: f64,
}

impl Measure {
    /// Entropy rate of an endless stream of texts. No model that predicts one character after the other has a
    /// lower expected loss; one that sees only a short context cannot quite reach it.
    pub fn nats_per_character(&self) -> f64 {
        self.nats / self.characters
    }
}

/// A bind that, in some state, has no row to draw.
pub(super) struct NoRow {
    pub line: usize,
    pub variable: usize,
}

/// Expectations over all texts of `grammar`.
pub(super) fn measure(grammar: &Grammar) -> Result<Measure, NoRow> {
    let mut measuring = Measuring { grammar, deciding: HashMap::new(), known: HashMap::new() };
    let Expected { nats, characters, .. } = measuring.body(&grammar.root, &[0; MOST_VARIABLES])?;
    Ok(Measure { nats, characters })
}

/// Expectations over a body, in which the variables of bodies around it are still open.
#[derive(Clone, Default)]
struct Expected {
    nats: f64,
    /// Characters of fixed text and of the variables bound inside.
    characters: f64,
    /// How often each form of a variable bound outside is written: (variable, form, expected count).
    slots: Vec<(usize, usize, f64)>,
}

impl Expected {
    /// Adds an alternative taken with probability `share`: its own surprise, and what it holds.
    fn add_alternative(&mut self, share: f64, inside: &Expected) {
        self.nats += share * (inside.nats - share.ln());
        self.characters += share * inside.characters;
        for &(variable, form, count) in &inside.slots {
            self.write(variable, form, share * count);
        }
    }

    fn write(&mut self, variable: usize, form: usize, count: f64) {
        match self.slots.iter_mut().find(|slot| (slot.0, slot.1) == (variable, form)) {
            Some(slot) => slot.2 += count,
            None => self.slots.push((variable, form, count)),
        }
    }

    /// Turns the forms of `variable` into characters, given the mean length of each form.
    fn close(&mut self, variable: usize, mean_characters: impl Fn(usize) -> f64) {
        self.slots.retain(|&(open, form, count)| {
            if open == variable {
                self.characters += count * mean_characters(form);
            }
            open != variable
        });
    }
}

struct Measuring<'a> {
    grammar: &'a Grammar,
    /// By the address of a choice: the variables bound outside of it that decide draws inside.
    deciding: HashMap<*const Item, u64>,
    /// Choices measured, with the rows of those variables (other rows are zero).
    known: HashMap<(*const Item, State), Rc<Expected>>,
}

impl Measuring<'_> {
    /// Expectations over `items`, given the rows of `state` that later draws depend on.
    fn body(&mut self, items: &[Item], state: &State) -> Result<Expected, NoRow> {
        let mut sum = Expected::default();
        for (at, item) in items.iter().enumerate() {
            match item {
                Item::Text(text) => sum.characters += text.chars().count() as f64,
                Item::Slot { variable, form, .. } => sum.write(*variable, *form, 1.0),
                Item::Choice { .. } => sum.add_alternative(1.0, &*self.choice(item, state)?),
                Item::Bind(bind) => {
                    sum.add_alternative(1.0, &self.bound(bind, &items[at + 1..], state)?);
                    break;
                }
            }
        }
        Ok(sum)
    }

    fn choice(&mut self, item: &Item, state: &State) -> Result<Rc<Expected>, NoRow> {
        let Item::Choice { total, alternatives, .. } = item else {
            unreachable!("called for choices only");
        };
        let set = *self.deciding.entry(item).or_insert_with(|| deciding(std::slice::from_ref(item)));
        let masked = std::array::from_fn(|at| if set & (1 << at) != 0 { state[at] } else { 0 });
        let key = (std::ptr::from_ref(item), masked);
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let mut sum = Expected::default();
        for (weight, alternative) in alternatives {
            let inside = self.body(alternative, state)?;
            sum.add_alternative(*weight as f64 / *total as f64, &inside);
        }
        let sum = Rc::new(sum);
        self.known.insert(key, sum.clone());
        Ok(sum)
    }

    /// Expectations over a draw and the items after it.
    fn bound(&mut self, bind: &Bind, after: &[Item], state: &State) -> Result<Expected, NoRow> {
        let grammar = self.grammar;
        let rows = grammar.shares(bind, state);
        if rows.is_empty() {
            return Err(NoRow { line: bind.line, variable: bind.variable });
        }
        let with = |row| {
            let mut state = *state;
            state[bind.variable] = row;
            state
        };
        let length = |row, form| grammar.cell(bind.variable, form, &with(row)).chars().count() as f64;
        let mut sum = Expected::default();
        if deciding(after) & (1 << bind.variable) != 0 {
            for (row, share) in rows {
                let mut inside = self.body(after, &with(row))?;
                inside.close(bind.variable, |form| length(row, form));
                sum.add_alternative(share, &inside);
            }
            return Ok(sum);
        }
        sum = self.body(after, state)?;
        sum.close(bind.variable, |form| rows.iter().map(|&(row, share)| share * length(row, form)).sum());
        sum.nats -= rows.iter().map(|(_, share)| share * share.ln()).sum::<f64>();
        Ok(sum)
    }
}

/// Bit set of the variables bound outside of `items` that decide which rows are drawn inside.
fn deciding(items: &[Item]) -> u64 {
    items.iter().rev().fold(0, |later, item| match item {
        Item::Text(_) | Item::Slot { .. } => later,
        Item::Choice { alternatives, .. } => {
            alternatives.iter().fold(later, |set, (_, body)| set | deciding(body))
        }
        Item::Bind(bind) => bind.reads().fold(later & !(1 << bind.variable), |set, other| set | 1 << other),
    })
}
