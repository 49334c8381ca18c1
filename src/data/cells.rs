//! Rows of tables from their lines: `.csv` and `.tsv`.
//!
//! A field that begins with a quote ends with one, two quotes within it are one, and delimiters and line ends within it are its
//! own. Rows end with `\n` or `\r\n`; lines without anything between rows are none.

use csv_core::{ReadRecordResult, Reader, ReaderBuilder, Terminator};

/// Why a row that the file ends within is refused.
pub(super) const OPEN: &str = "a quote that opens a field is never closed";

/// The fields of one row after the other.
///
/// Why lines and not a reader of the whole file: whoever has the lines knows where each begins, also in a packed file, and a file
/// that ends within quotes is told from one that does not.
pub(super) struct Cells {
    reader: Reader,
    bytes: Vec<u8>,
    /// Bytes of the row.
    length: usize,
    ends: Vec<usize>,
    /// Fields of the row.
    width: usize,
    is_open: bool,
}

impl Cells {
    /// Of a table with this byte between fields; without `quotes` a quote is a character like any other.
    pub(super) fn new(delimiter: u8, quotes: bool) -> Cells {
        let mut builder = ReaderBuilder::new();
        builder.delimiter(delimiter).quoting(quotes).terminator(Terminator::Any(b'\n'));
        let mut reader = builder.build();
        // It would drop a byte-order mark from what it reads first, which need not be the beginning of the file.
        reader.read_record(b"\n", &mut [0; 8], &mut [0; 8]);
        Cells { reader, bytes: vec![0; 1024], length: 0, ends: vec![0; 32], width: 0, is_open: false }
    }

    /// Takes a line with its end; true where a row is whole.
    pub(super) fn take(&mut self, line: &[u8]) -> bool {
        if !self.is_open {
            (self.length, self.width) = (0, 0);
            if line.trim_ascii().is_empty() {
                return false;
            }
        }
        let end = if line.ends_with(b"\n") { &b""[..] } else { b"\n" };
        self.is_open = !(self.feed(line) || self.feed(end));
        let without_end = line.strip_suffix(b"\n").unwrap_or(line);
        if !self.is_open && without_end.ends_with(b"\r") && self.bytes[..self.length].ends_with(b"\r") {
            self.length -= 1;
            self.ends[self.width - 1] -= 1;
        }
        !self.is_open
    }

    fn feed(&mut self, mut input: &[u8]) -> bool {
        while !input.is_empty() {
            let (bytes, ends) = (&mut self.bytes[self.length..], &mut self.ends[self.width..]);
            let (result, read, written, ended) = self.reader.read_record(input, bytes, ends);
            input = &input[read..];
            self.length += written;
            self.width += ended;
            match result {
                ReadRecordResult::OutputFull => self.bytes.resize(2 * self.bytes.len(), 0),
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
                ReadRecordResult::Record => return true,
                ReadRecordResult::InputEmpty | ReadRecordResult::End => {}
            }
        }
        false
    }

    /// Whether the row goes on in the next line; at the end of a file, that it was never closed.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Fields of the row.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// One of them, from zero.
    pub(super) fn field(&self, number: usize) -> &[u8] {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[number]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str, quotes: bool) -> Vec<Vec<String>> {
        let mut cells = Cells::new(b',', quotes);
        let mut rows = vec![];
        for line in text.split_inclusive('\n') {
            if cells.take(line.as_bytes()) {
                let field = |at| String::from_utf8(cells.field(at).to_vec()).unwrap();
                rows.push((0..cells.width()).map(field).collect());
            }
        }
        rows
    }

    #[test]
    fn quotes_hold_delimiters_line_ends_and_quotes_and_carriage_returns_stay_where_they_are_text() {
        let text = "a,\"b\r\n,\"\"c\"\"\"\r\n\r\n \t\n\"\",d\r\n\"e\"f,g\"h\n\u{feff}i,\"j\r\"\n\u{feff}k,\"l\r\"\r\nm,\"";
        let expected: [[&str; 2]; 5] =
            [["a", "b\r\n,\"c\""], ["", "d"], ["ef", "g\"h"], ["\u{feff}i", "j\r"], ["\u{feff}k", "l\r"]];
        assert_eq!(rows(text, true), expected);
        assert_eq!(rows("\"a,b\r\n\"\"\n", false), [vec!["\"a", "b"], vec!["\"\""]]);
    }

    #[test]
    fn long_and_wide_rows_are_whole() {
        let field = "x\u{e9}\n".repeat(3000);
        let line = format!("\"{field}\"{}\r\n", ",y".repeat(500));
        let found = rows(&line, true);
        assert_eq!((found.len(), found[0].len(), &found[0][0], &*found[0][500]), (1, 501, &field, "y"));
    }

    #[test]
    fn a_file_that_ends_within_quotes_is_told_from_one_that_does_not() {
        for (text, is_open) in [("a,\"b\n", true), ("a,\"b", true), ("a,\"b\"", false), ("a,b", false)] {
            let mut cells = Cells::new(b',', true);
            assert_eq!(cells.take(text.as_bytes()), !is_open, "{text}");
            assert_eq!(cells.is_open(), is_open);
        }
    }
}
