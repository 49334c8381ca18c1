//! Tables with a text in one of their columns: `.csv` and `.tsv`, with the quotes of RFC 4180.

use std::path::PathBuf;

use super::rows::{Inner, Lines, Mark, Row};
use super::{Column, File, Source, USUAL_FIELD};
use crate::data::cells::{Cells, OPEN};
use crate::data::{Error, Result};

/// The rows of a table, from a mark on.
pub(super) struct Table {
    path: PathBuf,
    lines: Lines,
    cells: Cells,
    column: usize,
    /// Fields of every row.
    width: usize,
}

impl Table {
    pub(super) fn open(file: &File, source: &Source, delimiter: u8, mark: Mark) -> Result<Table> {
        let path = file.path.clone();
        let cells = Cells::new(delimiter, true);
        let mut table =
            Table { path, lines: Lines::open(file, Mark::default())?, cells, column: 0, width: 0 };
        if table.read()?.is_none() {
            return Err(Error::Empty { path: table.path });
        }
        let name = |number| String::from_utf8_lossy(table.cells.field(number)).into_owned();
        let names: Vec<String> = (0..table.cells.width()).map(name).collect();
        table.width = names.len();
        table.column = column_of(source, &names, file)?;
        let is_number = matches!(source.column, Some(Column::Number(_)));
        let headed = !is_number || source.header.unwrap_or(false);
        // Rows begin behind the names of the columns.
        if mark.at > 0 || !headed {
            table.lines = Lines::open(file, mark)?;
            table.cells = Cells::new(delimiter, true);
        }
        Ok(table)
    }

    /// Reads the next record and gives its mark.
    fn read(&mut self) -> Result<Option<Mark>> {
        let mut begun = None;
        while let Some(mark) = self.lines.read()? {
            let is_whole = self.cells.take(self.lines.line());
            if is_whole || self.cells.is_open() {
                begun.get_or_insert(mark);
            }
            if is_whole {
                break;
            }
        }
        Ok(begun)
    }

    fn row(&self, mark: Mark) -> Result<Row> {
        let wrong = |reason| Error::Row { path: self.path.clone(), line: mark.line + 1, reason };
        if self.cells.is_open() {
            return Err(wrong(OPEN.into()));
        }
        if self.cells.width() != self.width {
            return Err(wrong(format!("expected {} columns, got {}", self.width, self.cells.width())));
        }
        let field = self.cells.field(self.column);
        match std::str::from_utf8(field) {
            Ok(text) => {
                let next = self.lines.next();
                Ok(Row { text: text.into(), mark, next, whole: None, ends: true })
            }
            Err(error) => {
                let byte = field[error.valid_up_to()];
                Err(wrong(format!("column {} is not UTF-8: invalid byte 0x{byte:02x}", self.column + 1)))
            }
        }
    }
}

impl Inner for Table {
    fn next(&mut self) -> Option<Result<Row>> {
        match self.read() {
            Ok(mark) => mark.map(|mark| self.row(mark)),
            Err(error) => Some(Err(error)),
        }
    }
}

/// Which of the columns with these names has the text.
pub(super) fn column_of(source: &Source, names: &[String], file: &File) -> Result<usize> {
    let missing = |column: String, hint: String| Error::NoColumn { path: file.path.clone(), column, hint };
    let wanted = match &source.column {
        Some(Column::Number(number)) => {
            let at = number.checked_sub(1).filter(|at| *at < names.len());
            let hint = || format!("it has {} columns, counted from 1", names.len());
            return at.ok_or_else(|| missing(number.to_string(), hint()));
        }
        Some(Column::Name(name)) => name.as_str(),
        None => USUAL_FIELD,
    };
    let at = names.iter().position(|name| name == wanted);
    at.ok_or_else(|| missing(format!("`{wanted}`"), near(wanted, names)))
}

/// The name that was most likely meant, or all there are.
fn near(wanted: &str, names: &[String]) -> String {
    let nearest = names
        .iter()
        .map(|name| (strsim::jaro_winkler(&wanted.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, name)) => format!("did you mean `{name}`? as in {{ path = \"..\", column = \"{name}\" }}"),
        None => format!("name one of {}, or give its number: column = 2", names.join(", ")),
    }
}
