//! Reading a grammar from text.
//!
//! ```text
//! # a comment
//! table child (name, he)      a table: its name and the names of its forms
//! 3 Tom | he                  a row: an optional weight, then one cell for each form
//! Mia | she
//!
//! rule story                  the rule where every text begins
//!   <hero=child>{hero} ran.   draws a row of child for the rest of this body; writes its first form
//!   {Hero.he} [fell|2: sat].  another form, with a capital; a choice, with weights
//!   $end                      the body of another rule, with this rule's variables
//! ```
//! `<x=table but y>` draws another row than `y`; `<x=table where form = y.form>` only rows whose forms agree.
//! A variable lives to the end of the body (between brackets, or of the rule and its callers) that draws it.
//! White space of any length is one space; at the edges of a body or an alternative, after a draw and around `\n`
//! (a line end) it is nothing.

use std::collections::HashMap;

use super::measure::measure;
use super::sections::{Sections, sections};
use super::{Bind, Grammar, Item, MOST_VARIABLES, Variable, mistake};
use crate::data::Result;

impl Grammar {
    /// Reads and measures a grammar. Errors name the line: unknown names, rules that call themselves, unbalanced
    /// brackets, and draws that can be left without a row.
    pub fn read(source: &str) -> Result<Grammar> {
        let sections = sections(source)?;
        let mut reader = Reader { sections: &sections, variables: Vec::new(), calls: Vec::new() };
        let root = reader.rule("story", 1, &mut HashMap::new())?;
        let variables = reader.variables;
        let mut grammar = Grammar { tables: sections.tables, variables, root, measure: Default::default() };
        grammar.measure = measure(&grammar).map_err(|no_row| {
            let name = &grammar.variables[no_row.variable].name;
            mistake(no_row.line, format!("`{name}` can be left without a row to draw"))
        })?;
        Ok(grammar)
    }
}

/// Variables that can be used at a place, by name.
type Scope = HashMap<String, usize>;

struct Reader<'a> {
    sections: &'a Sections,
    variables: Vec<Variable>,
    /// Rules being read, outermost first.
    calls: Vec<String>,
}

/// Where reading stands in the body of a rule.
struct Place<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Place<'a> {
    /// Splits off everything up to `end`, which must be there and is passed.
    fn until(&mut self, end: char, what: &str) -> Result<&'a str> {
        let split = self.rest.split_once(end);
        let (inside, rest) = split.ok_or_else(|| mistake(self.line, format!("{what} without `{end}`")))?;
        self.line += inside.matches('\n').count();
        self.rest = rest;
        Ok(inside)
    }

    fn pass(&mut self, bytes: usize) -> &'a str {
        let (passed, rest) = self.rest.split_at(bytes);
        self.line += passed.matches('\n').count();
        self.rest = rest;
        passed
    }

    fn pass_space(&mut self) {
        self.pass(self.rest.len() - self.rest.trim_start().len());
    }
}

impl Reader<'_> {
    fn rule(&mut self, name: &str, line: usize, scope: &mut Scope) -> Result<Vec<Item>> {
        let sections = self.sections;
        let Some((body, first_line)) = sections.rules.get(name) else {
            return Err(mistake(line, format!("no rule `{name}`")));
        };
        if self.calls.iter().any(|call| call == name) {
            return Err(mistake(line, format!("rule `{name}` calls itself")));
        }
        self.calls.push(name.to_owned());
        let mut place = Place { rest: body, line: *first_line };
        let items = self.body(&mut place, scope)?;
        if !place.rest.is_empty() {
            return Err(mistake(place.line, format!("`{}` outside of a choice", &place.rest[..1])));
        }
        self.calls.pop();
        Ok(items)
    }

    /// Reads up to the end, or to a `|` or `]` that belongs to the choice around.
    fn body(&mut self, place: &mut Place, scope: &mut Scope) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        // White space is written only once something follows it, which is how it vanishes at edges.
        let mut space = false;
        place.pass_space();
        while let Some(next) = place.rest.chars().next() {
            if next.is_whitespace() {
                place.pass_space();
                space = true;
                continue;
            }
            if matches!(next, '|' | ']') {
                break;
            }
            let line_end = place.rest.starts_with("\\n");
            if std::mem::take(&mut space) && !line_end && !ends_a_line(&items) {
                push_text(&mut items, " ");
            }
            if line_end {
                place.pass(2);
                place.pass_space();
                push_text(&mut items, "\n");
                continue;
            }
            self.item(next, place, scope, &mut items)?;
        }
        Ok(items)
    }

    fn item(
        &mut self,
        next: char,
        place: &mut Place,
        scope: &mut Scope,
        items: &mut Vec<Item>,
    ) -> Result<()> {
        let line = place.line;
        match next {
            '[' => {
                place.pass(1);
                items.push(self.choice(place, scope)?);
            }
            '<' => {
                place.pass(1);
                let draw = place.until('>', "`<`")?;
                items.push(Item::Bind(self.bind(draw, line, scope)?));
                place.pass_space();
            }
            '{' => {
                place.pass(1);
                let slot = place.until('}', "`{`")?;
                items.push(self.slot(slot, line, scope)?);
            }
            '$' => {
                place.pass(1);
                let name = place.pass(name_length(place.rest));
                items.append(&mut self.rule(name, line, scope)?);
            }
            '>' | '}' | '\\' => return Err(mistake(line, format!("`{next}` has no meaning here"))),
            _ => {
                let special = |character: char| character.is_whitespace() || "[]<>{}|$\\".contains(character);
                let end = place.rest.find(special).unwrap_or(place.rest.len());
                push_text(items, place.pass(end));
            }
        }
        Ok(())
    }

    fn choice(&mut self, place: &mut Place, scope: &Scope) -> Result<Item> {
        let line = place.line;
        let mut alternatives = Vec::new();
        loop {
            place.pass_space();
            let digits = place.rest.len() - place.rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let mut weight = 1;
            if digits > 0 && place.rest[digits..].starts_with(':') {
                weight = place.pass(digits).parse().map_err(|_| mistake(line, "a weight too large"))?;
                place.pass(1);
            }
            if weight == 0 {
                return Err(mistake(line, "an alternative of weight zero"));
            }
            alternatives.push((weight, self.body(place, &mut scope.clone())?));
            match place.rest.chars().next() {
                None => return Err(mistake(line, "`[` without `]`")),
                Some('|') => place.pass(1),
                // A body ends at these two marks only.
                Some(_) => {
                    place.pass(1);
                    break;
                }
            };
        }
        let total = alternatives.iter().map(|(weight, _)| weight).sum();
        Ok(Item::Choice { line, total, alternatives })
    }

    /// `name=table`, then perhaps `but other`, then perhaps `where form = other.form`.
    fn bind(&mut self, draw: &str, line: usize, scope: &mut Scope) -> Result<Bind> {
        let draw = draw.replace('=', " = ");
        let words: Vec<&str> = draw.split_whitespace().collect();
        let [name, "=", table_name, conditions @ ..] = words.as_slice() else {
            return Err(mistake(line, "expected <name=table>"));
        };
        let tables = &self.sections.tables;
        let table = tables.iter().position(|table| table.name == *table_name);
        let table = table.ok_or_else(|| mistake(line, format!("no table `{table_name}`")))?;
        let (except, conditions) = match conditions {
            ["but", other, rest @ ..] => (Some(self.known(other, line, scope)?), rest),
            conditions => (None, conditions),
        };
        if except.is_some_and(|other| self.variables[other].table != table) {
            return Err(mistake(line, format!("`but` compares rows of table `{table_name}` only")));
        }
        let equal = match conditions {
            [] => None,
            ["where", form, "=", other] => {
                Some((self.form(table, form, line)?, self.variable_and_form(other, line, scope)?))
            }
            _ => {
                return Err(mistake(line, "expected `but name` or `where form = name.form`"));
            }
        };
        if scope.contains_key(*name) {
            return Err(mistake(line, format!("`{name}` is drawn already")));
        }
        let variable = self.declare(name, table, line)?;
        scope.insert((*name).to_owned(), variable);
        Ok(Bind { line, variable, equal, except })
    }

    /// `name`, `name.form`, or either with a capital.
    fn slot(&mut self, slot: &str, line: usize, scope: &Scope) -> Result<Item> {
        let capital = slot.starts_with(char::is_uppercase);
        let mut name = slot.to_owned();
        if capital {
            name[..1].make_ascii_lowercase();
        }
        let (variable, form) = self.variable_and_form(&name, line, scope)?;
        Ok(Item::Slot { variable, form, capital })
    }

    fn variable_and_form(&self, dotted: &str, line: usize, scope: &Scope) -> Result<(usize, usize)> {
        let (name, form) = dotted.split_once('.').map_or((dotted, None), |(name, form)| (name, Some(form)));
        let variable = self.known(name, line, scope)?;
        let form = form.map_or(Ok(0), |form| self.form(self.variables[variable].table, form, line))?;
        Ok((variable, form))
    }

    fn known(&self, name: &str, line: usize, scope: &Scope) -> Result<usize> {
        scope.get(name).copied().ok_or_else(|| mistake(line, format!("`{name}` has not been drawn here")))
    }

    fn form(&self, table: usize, form: &str, line: usize) -> Result<usize> {
        let table = &self.sections.tables[table];
        let found = table.forms.iter().position(|known| known == form);
        found.ok_or_else(|| mistake(line, format!("table `{}` has no form `{form}`", table.name)))
    }

    fn declare(&mut self, name: &str, table: usize, line: usize) -> Result<usize> {
        let known = self.variables.iter().position(|known| known.name == name && known.table == table);
        if let Some(known) = known {
            return Ok(known);
        }
        if self.variables.len() == MOST_VARIABLES {
            return Err(mistake(line, format!("more than {MOST_VARIABLES} variables")));
        }
        self.variables.push(Variable { name: name.to_owned(), table });
        Ok(self.variables.len() - 1)
    }
}

fn name_length(text: &str) -> usize {
    text.find(|character: char| !character.is_alphanumeric() && character != '_').unwrap_or(text.len())
}

/// White space after a line end is nothing, even where the line end came from another rule.
fn ends_a_line(items: &[Item]) -> bool {
    matches!(items.last(), Some(Item::Text(text)) if text.ends_with('\n'))
}

fn push_text(items: &mut Vec<Item>, text: &str) {
    match items.last_mut() {
        Some(Item::Text(last)) => last.push_str(text),
        _ => items.push(Item::Text(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Error;
    use crate::data::random::Random;

    fn only_text(story: &str) -> String {
        let tables = "table pair (one, two)\na b | ccc\n";
        let grammar =
            Grammar::read(&format!("{tables}rule story\n{story}\nrule more\nand {{p.two}}.\n")).unwrap();
        grammar.write(&mut Random::new(0, 0))
    }

    #[test]
    fn white_space_is_folded_and_vanishes_at_edges() {
        assert_eq!(only_text("  one\n   two [ three ]\n. \\n four  \n\n"), "one two three .\nfour");
        assert_eq!(only_text("x <p=pair> {P}\n# not me\n$more \\n\\n"), "x A b and ccc.\n\n");
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let cases = [
            ("rule story\n\n{x}", 3, "has not been drawn"),
            ("rule story\n[a|<x=t>b] {x}\ntable t (a)\nq\n", 2, "has not been drawn"),
            ("rule story\n\n<x=none>", 3, "no table"),
            ("rule story\n$other", 2, "no rule"),
            ("rule story\na $story", 2, "calls itself"),
            ("rule story\n\n[a|b", 3, "without `]`"),
            ("rule story\na ] b", 2, "outside of a choice"),
            ("rule story\n[0: a|b]", 2, "weight zero"),
            ("table t (a, b)\nq\n", 2, "1 cells in a table of 2"),
            ("table t (a)\nq\nrule story\n<x=t>{x}\n<y=t but x>{y}", 5, "without a row"),
            ("table t (a)\nq\nrule story\n<x=t>{x.b}", 4, "no form `b`"),
            ("table t (a)\nq\nrule story\n<x=t>{x}\n<x=t>{x}", 5, "drawn already"),
            ("hello", 1, "before the first"),
            ("table t (a)\nq\n", 1, "no rule `story`"),
        ];
        for (source, expected_line, part) in cases {
            match Grammar::read(source).unwrap_err() {
                Error::Grammar { line, reason } => {
                    assert_eq!(line, expected_line, "{source}: {reason}");
                    assert!(reason.contains(part), "{source}: {reason}");
                }
                other => panic!("{other}"),
            }
        }
    }
}
