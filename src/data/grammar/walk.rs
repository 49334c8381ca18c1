//! Going through a grammar from left to right: fixed text is handed out, random items stop the walk.

use super::{Bind, Grammar, Item, MOST_VARIABLES, State};

/// A place in a grammar, with what is bound so far.
#[derive(Clone, Debug)]
pub(super) struct Walk<'a> {
    /// Bodies entered and not yet left, innermost last: what remains of each.
    rest: Vec<&'a [Item]>,
    state: State,
    /// Bit set of the variables whose row is known.
    known: u64,
}

/// Why a walk stopped.
#[derive(Clone, Debug)]
pub(super) enum Stop<'a> {
    End,
    Choice(u64, &'a [(u64, Vec<Item>)]),
    Bind(&'a Bind),
    /// The row of this variable decides how to go on, and it is not known. Never happens to a walk from the root.
    Unknown(usize),
}

impl<'a> Walk<'a> {
    pub fn new(root: &'a [Item]) -> Walk<'a> {
        Walk::from(vec![root], [0; MOST_VARIABLES], 0)
    }

    /// A walk through `rest`, innermost last, with the rows of `state` that are `known`.
    pub fn from(rest: Vec<&'a [Item]>, state: State, known: u64) -> Walk<'a> {
        Walk { rest, state, known }
    }

    /// Hands all fixed text up to the next random item to `write`, piece by piece, and passes that item.
    /// The caller then follows one of its ways.
    pub fn advance(&mut self, grammar: &Grammar, write: &mut dyn FnMut(&str)) -> Stop<'a> {
        while let Some(body) = self.rest.last_mut() {
            let Some((item, rest)) = body.split_first() else {
                self.rest.pop();
                continue;
            };
            if let Some(unknown) = item.reads().find(|variable| self.known & (1 << variable) == 0) {
                return Stop::Unknown(unknown);
            }
            *body = rest;
            match item {
                Item::Text(text) => write(text),
                Item::Slot { variable, form, capital } => {
                    write_cell(grammar.cell(*variable, *form, &self.state), *capital, write);
                }
                Item::Choice { total, alternatives, .. } => return Stop::Choice(*total, alternatives),
                Item::Bind(bind) => return Stop::Bind(bind),
            }
        }
        Stop::End
    }

    /// All ways on from `stop`, at which this walk stands, with the probability of each.
    pub fn ways(&self, grammar: &'a Grammar, stop: &Stop<'a>) -> Vec<(f64, Walk<'a>)> {
        match *stop {
            Stop::End | Stop::Unknown(_) => Vec::new(),
            Stop::Choice(total, alternatives) => {
                let way = |(weight, body): &'a (u64, Vec<Item>)| {
                    let mut way = self.clone();
                    way.enter(body);
                    (*weight as f64 / total as f64, way)
                };
                alternatives.iter().map(way).collect()
            }
            Stop::Bind(bind) => {
                let way = |(row, share): (u16, f64)| {
                    let mut way = self.clone();
                    way.bind(bind.variable, row);
                    (share, way)
                };
                grammar.shares(bind, &self.state).into_iter().map(way).collect()
            }
        }
    }

    pub fn enter(&mut self, body: &'a [Item]) {
        self.rest.push(body);
    }

    pub fn bind(&mut self, variable: usize, row: u16) {
        self.state[variable] = row;
        self.known |= 1 << variable;
    }

    pub fn state(&self) -> &State {
        &self.state
    }
}

fn write_cell(cell: &str, capital: bool, write: &mut dyn FnMut(&str)) {
    if !capital {
        return write(cell);
    }
    let mut characters = cell.chars();
    for first in characters.next().into_iter().flat_map(char::to_uppercase) {
        write(first.encode_utf8(&mut [0; 4]));
    }
    write(characters.as_str());
}
