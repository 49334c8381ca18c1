//! The coarse form of a grammar's source: tables, read here, and rules, whose bodies are left as text.

use std::collections::HashMap;

use super::{Row, Table, mistake};
use crate::data::Result;

/// The tables of a grammar, and its rules as they are written.
#[derive(Default)]
pub(super) struct Sections {
    pub tables: Vec<Table>,
    /// Body and first line of each rule.
    pub rules: HashMap<String, (String, usize)>,
}

enum Section {
    None,
    Table,
    Rule(String),
}

/// Cuts a source at its headers and reads the tables.
pub(super) fn sections(source: &str) -> Result<Sections> {
    let mut sections = Sections::default();
    let mut section = Section::None;
    for (number, line) in (1..).zip(source.lines()) {
        if line.starts_with('#') {
            // Keeps the line numbers of the body right.
            if let Section::Rule(name) = &section {
                sections.rules.get_mut(name).expect("begun").0.push('\n');
            }
        } else if let Some(header) = line.strip_prefix("table ") {
            sections.tables.push(table(header, number)?);
            section = Section::Table;
        } else if let Some(name) = line.strip_prefix("rule ") {
            let name = name.trim().to_owned();
            if sections.rules.insert(name.clone(), (String::new(), number + 1)).is_some() {
                return Err(mistake(number, format!("rule `{name}` is there twice")));
            }
            section = Section::Rule(name);
        } else {
            match &section {
                Section::None if line.trim().is_empty() => {}
                Section::None => {
                    return Err(mistake(number, "text before the first table or rule"));
                }
                Section::Table if line.trim().is_empty() => {}
                Section::Table => {
                    let table = sections.tables.last_mut().expect("begun");
                    table.rows.push(row(line, table.forms.len(), number)?);
                }
                Section::Rule(name) => {
                    let body = &mut sections.rules.get_mut(name).expect("begun").0;
                    body.push_str(line);
                    body.push('\n');
                }
            }
        }
    }
    Ok(sections)
}

fn table(header: &str, line: usize) -> Result<Table> {
    let parts = header.trim().strip_suffix(')').and_then(|header| header.split_once('('));
    let (name, forms) = parts.ok_or_else(|| mistake(line, "expected: table name (form, form)"))?;
    let forms = forms.split(',').map(|form| form.trim().to_owned()).collect();
    Ok(Table { name: name.trim().to_owned(), forms, rows: Vec::new() })
}

fn row(line: &str, forms: usize, number: usize) -> Result<Row> {
    let (weight, cells) = weighted(line.trim(), ' ');
    let cells: Vec<String> = cells.split('|').map(|cell| cell.trim().to_owned()).collect();
    if cells.len() != forms {
        return Err(mistake(number, format!("a row of {} cells in a table of {forms} forms", cells.len())));
    }
    if weight == 0 || cells.iter().any(String::is_empty) {
        return Err(mistake(number, "a weight of zero or an empty cell"));
    }
    Ok(Row { weight, cells })
}

/// Splits a leading weight and its mark off; without one the weight is one.
fn weighted(text: &str, mark: char) -> (u64, &str) {
    let parts =
        text.split_once(mark).and_then(|(number, rest)| Some((number.parse().ok()?, rest.trim_start())));
    parts.unwrap_or((1, text))
}
