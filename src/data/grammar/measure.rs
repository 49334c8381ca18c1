//! Exact entropy and expected length, by the chain rule over choices.
//!
//! Choices that bind nothing add up. A row that is bound matters to what follows in two ways. It decides which rows
//! later draws have: then the rest of the body is measured once for each row. And its forms are written: that is
//! linear, so the rest is measured once, with the expected number of times that each form is written.

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
    let Expected { nats, characters, .. } = body(grammar, &grammar.root, &[0; MOST_VARIABLES])?;
    Ok(Measure { nats, characters })
}

/// Expectations over a body, in which the variables of bodies around it are still open.
#[derive(Default)]
struct Expected {
    nats: f64,
    /// Characters of fixed text and of the variables bound inside.
    characters: f64,
    /// How often each form of a variable bound outside is written: (variable, form, expected count).
    slots: Vec<(usize, usize, f64)>,
}

impl Expected {
    /// Adds an alternative taken with probability `share`: its own surprise, and what it holds.
    fn add_alternative(&mut self, share: f64, inside: Expected) {
        self.nats += share * (inside.nats - share.ln());
        self.characters += share * inside.characters;
        inside
            .slots
            .into_iter()
            .for_each(|(variable, form, count)| self.write(variable, form, share * count));
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

/// Expectations over `items`, given the rows of `state` that later draws depend on.
fn body(grammar: &Grammar, items: &[Item], state: &State) -> Result<Expected, NoRow> {
    let mut sum = Expected::default();
    for (at, item) in items.iter().enumerate() {
        match item {
            Item::Text(text) => sum.characters += text.chars().count() as f64,
            Item::Slot { variable, form, .. } => sum.write(*variable, *form, 1.0),
            Item::Choice { total, alternatives, .. } => {
                for (weight, alternative) in alternatives {
                    let inside = body(grammar, alternative, state)?;
                    sum.add_alternative(*weight as f64 / *total as f64, inside);
                }
            }
            Item::Bind(bind) => {
                sum.add_alternative(1.0, bound(grammar, bind, &items[at + 1..], state)?);
                break;
            }
        }
    }
    Ok(sum)
}

/// Expectations over a draw and the items after it.
fn bound(grammar: &Grammar, bind: &Bind, after: &[Item], state: &State) -> Result<Expected, NoRow> {
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
    if decides_a_draw(after, bind.variable) {
        for (row, share) in rows {
            let mut inside = body(grammar, after, &with(row))?;
            inside.close(bind.variable, |form| length(row, form));
            sum.add_alternative(share, inside);
        }
        return Ok(sum);
    }
    let mut inside = body(grammar, after, state)?;
    inside.close(bind.variable, |form| rows.iter().map(|&(row, share)| share * length(row, form)).sum());
    sum.add_alternative(1.0, inside);
    sum.nats -= rows.iter().map(|(_, share)| share * share.ln()).sum::<f64>();
    Ok(sum)
}

fn decides_a_draw(items: &[Item], variable: usize) -> bool {
    items.iter().any(|item| match item {
        Item::Text(_) | Item::Slot { .. } => false,
        Item::Choice { alternatives, .. } => {
            alternatives.iter().any(|(_, body)| decides_a_draw(body, variable))
        }
        Item::Bind(_) => item.reads().any(|other| other == variable),
    })
}
