//! Deciding whether a reader can always tell which alternative was taken.
//!
//! Two ways on from a choice *collide* if some text of the one begins some text of the other. If no two ever do,
//! the texts of the grammar are a prefix code with one derivation each.

use super::walk::{Stop, Walk};
use super::{Bind, Grammar, Item, MOST_VARIABLES, State};

/// A choice at which two alternatives can go on with the same text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ambiguity {
    /// Line of the choice in the grammar's source.
    pub line: usize,
    /// A text after the choice that both alternatives share, up to the end of one of them.
    pub shared: String,
}

impl Grammar {
    /// Searches every choice in every state that can reach it; `None` proves that each text has one derivation and
    /// that no text begins another.
    pub fn ambiguity(&self) -> Option<Ambiguity> {
        visit(self, &self.root, &[], &mut [None; MOST_VARIABLES])
    }
}

/// The draws that the variables alive at a place come from.
type Draws<'a> = [Option<&'a Bind>; MOST_VARIABLES];

/// Searches every choice of `body`, after which the text goes on with `rest` (innermost last).
fn visit<'a>(
    grammar: &'a Grammar,
    body: &'a [Item],
    rest: &[&'a [Item]],
    draws: &mut Draws<'a>,
) -> Option<Ambiguity> {
    let mut draws = *draws;
    for (at, item) in body.iter().enumerate() {
        let (Item::Choice { line, .. } | Item::Bind(Bind { line, .. })) = item else {
            continue;
        };
        let from_here = [rest, &[&body[at..]]].concat();
        if let Some(shared) = collision(grammar, &from_here, &draws, [0; MOST_VARIABLES], 0) {
            return Some(Ambiguity { line: *line, shared });
        }
        match item {
            Item::Choice { alternatives, .. } => {
                let after = [rest, &[&body[at + 1..]]].concat();
                let mut bodies = alternatives.iter();
                let inside = bodies.find_map(|(_, body)| visit(grammar, body, &after, &mut draws));
                if inside.is_some() {
                    return inside;
                }
            }
            Item::Bind(bind) => draws[bind.variable] = Some(bind),
            Item::Text(_) | Item::Slot { .. } => {}
        }
    }
    None
}

/// Whether two ways on from the random item that `rest` begins with collide in a state that agrees with the `known`
/// rows of `state`. Only where the texts depend on a variable are its rows gone through.
fn collision<'a>(
    grammar: &'a Grammar,
    rest: &[&'a [Item]],
    draws: &Draws<'a>,
    state: State,
    known: u64,
) -> Option<String> {
    let needed = match collision_of_known(grammar, Walk::from(rest.to_vec(), state, known)) {
        Ok(found) => return found,
        Err(needed) => needed,
    };
    // A row can be drawn only once those it depends on are known.
    let mut bind = draws[needed].expect("a variable is read only where it is alive");
    while let Some(first) = bind.reads().find(|other| known & (1 << other) == 0) {
        bind = draws[first].expect("a draw outlives no variable that it depends on");
    }
    grammar.shares(bind, &state).into_iter().find_map(|(row, _)| {
        let mut state = state;
        state[bind.variable] = row;
        collision(grammar, rest, draws, state, known | 1 << bind.variable)
    })
}

/// A text shared by two ways on, if there is one; `Err` names a variable whose row must be known to tell.
fn collision_of_known<'a>(grammar: &'a Grammar, mut here: Walk<'a>) -> Result<Option<String>, usize> {
    let stop = here.advance(grammar, &mut |_| ());
    if let Stop::Unknown(variable) = stop {
        return Err(variable);
    }
    let ways = here.ways(grammar, &stop).into_iter();
    let heads: Vec<Head> = ways.map(|(_, way)| Head::new(grammar, way)).collect();
    for second in 1..heads.len() {
        for first in 0..second {
            let shared = collide(grammar, &heads[first], &heads[second], 0)?;
            if shared.is_some() {
                return Ok(shared);
            }
        }
    }
    Ok(None)
}

/// The text that a walk surely goes on with, and what comes after it.
struct Head<'a> {
    text: String,
    stop: Stop<'a>,
    walk: Walk<'a>,
}

impl<'a> Head<'a> {
    fn new(grammar: &Grammar, mut walk: Walk<'a>) -> Head<'a> {
        let mut text = String::new();
        let stop = walk.advance(grammar, &mut |piece| text.push_str(piece));
        Head { text, stop, walk }
    }

    /// The ways on from here, each with `text` before it.
    fn ways(&self, grammar: &'a Grammar) -> impl Iterator<Item = Head<'a>> {
        self.walk.ways(grammar, &self.stop).into_iter().map(|(_, way)| {
            let head = Head::new(grammar, way);
            Head { text: format!("{}{}", self.text, head.text), ..head }
        })
    }
}

/// A text of the one that begins a text of the other, if there is one. Both are known to share `same_bytes`.
fn collide<'a>(
    grammar: &'a Grammar,
    a: &Head<'a>,
    b: &Head<'a>,
    same_bytes: usize,
) -> Result<Option<String>, usize> {
    let (short, long) = if a.text.len() <= b.text.len() { (a, b) } else { (b, a) };
    let length = short.text.len();
    if short.text.as_bytes()[same_bytes..] != long.text.as_bytes()[same_bytes..length] {
        return Ok(None);
    }
    match short.stop {
        Stop::End => return Ok(Some(short.text.clone())),
        Stop::Unknown(variable) => return Err(variable),
        Stop::Choice(..) | Stop::Bind(_) => {}
    }
    let mut ways = short.ways(grammar);
    ways.find_map(|way| collide(grammar, &way, long, length).transpose()).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ambiguity(story: &str) -> Option<Ambiguity> {
        let tables = "table name (name)\nAnn\nAnna\nBen\n\ntable two (one, other)\nx | y\nx | z\n\n";
        Grammar::read(&format!("{tables}rule story\n{story}\n")).unwrap().ambiguity()
    }

    #[test]
    fn choices_that_a_reader_can_tell_apart_are_accepted() {
        assert_eq!(ambiguity("[a|b|ca|cb] end"), None);
        assert_eq!(
            ambiguity("<n=name>{n} came. [She|{n}] sat."),
            None,
            "Anna differs from Ann by what follows"
        );
        assert_eq!(ambiguity("[a [x|y]|a [z|w]] end"), None, "told apart behind a nested choice");
        assert_eq!(ambiguity("[|b] end"), None);
    }

    #[test]
    fn choices_that_can_go_on_alike_are_found_with_the_shared_text() {
        let shared = |story| ambiguity(story).unwrap().shared;
        assert_eq!(shared("[a|a] end"), "a end");
        assert_eq!(shared("[a|a b|c]"), "a", "one text begins the other");
        assert_eq!(shared("[a|ab][b|] x"), "ab x", "found behind a later choice");
        assert_eq!(shared("<n=name>{n}"), "Ann");
        assert_eq!(shared("<t=two>{t}."), "x.", "the form that differs is never shown");
        assert_eq!(shared("<n=name>{n}[|a]x"), "Annax");
    }

    #[test]
    fn an_ambiguity_in_one_state_alone_is_found() {
        // Only after Ben do the alternatives read the same.
        assert_eq!(ambiguity("<n=name>{n} and [{n}|Ben] sat.").unwrap().shared, "Ben sat.");
    }
}
