//! A column of text in Apache Parquet files, one group of rows after the other.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::schema::types::{SchemaDescriptor, Type};

use super::rows::{Inner, Mark, Row};
use super::table::column_of;
use super::{File, Source};
use crate::data::text::not_opened;
use crate::data::{Error, Result};

/// The rows of a file, from one of them on. Marks count rows.
pub(super) struct Parquet {
    path: PathBuf,
    reader: SerializedFileReader<fs::File>,
    /// The schema with the one column.
    chosen: Arc<SchemaDescriptor>,
    group: usize,
    rows: Option<ReaderIter>,
    next: u64,
}

impl Parquet {
    pub(super) fn open(file: &File, source: &Source, mark: Mark) -> Result<Parquet> {
        let path = file.path.clone();
        let opened = fs::File::open(&path).map_err(|error| not_opened(&path, error))?;
        let broken = |error: ParquetError| unreadable(&path, &error);
        let reader = sound(|| SerializedFileReader::new(opened)).map_err(broken)?;
        let schema = reader.metadata().file_metadata().schema();
        let names: Vec<String> = schema.get_fields().iter().map(|field| field.name().to_string()).collect();
        let column = schema.get_fields()[column_of(source, &names, file)?].clone();
        let one = Type::group_type_builder(schema.name()).with_fields(vec![column]).build();
        let chosen = Arc::new(SchemaDescriptor::new(Arc::new(one.map_err(broken)?)));
        let mut parquet = Parquet { path: path.clone(), reader, chosen, group: 0, rows: None, next: 0 };
        sound(|| parquet.go_to(mark.at)).map_err(broken)?;
        Ok(parquet)
    }

    /// Passes over whole groups of rows, then over rows.
    fn go_to(&mut self, row: u64) -> Result<(), ParquetError> {
        while let Some(group) = self.reader.metadata().row_groups().get(self.group) {
            let after = self.next + u64::try_from(group.num_rows()).unwrap_or(0);
            if after > row {
                break;
            }
            (self.group, self.next) = (self.group + 1, after);
        }
        while self.next < row && self.read()?.is_some() {}
        Ok(())
    }

    fn read(&mut self) -> Result<Option<parquet::record::Row>, ParquetError> {
        loop {
            if let Some(row) = self.rows.as_mut().and_then(Iterator::next) {
                self.next += 1;
                return row.map(Some);
            }
            if self.group >= self.reader.num_row_groups() {
                return Ok(None);
            }
            let group = self.reader.get_row_group(self.group)?;
            self.group += 1;
            self.rows = Some(TreeBuilder::new().as_iter(self.chosen.clone(), &*group)?);
        }
    }
}

impl Inner for Parquet {
    fn next(&mut self) -> Option<Result<Row>> {
        let here = |row| Mark { at: row, line: row };
        let mark = here(self.next);
        let row = match sound(|| self.read()) {
            Ok(row) => row?,
            Err(error) => {
                // What is behind it cannot be found again.
                (self.rows, self.group) = (None, usize::MAX);
                return Some(Err(unreadable(&self.path, &error)));
            }
        };
        let (name, field) = row.into_columns().pop()?;
        let next = here(self.next);
        let text = text_of(field).map_err(|got| Error::Row {
            path: self.path.clone(),
            line: mark.line + 1,
            reason: format!("expected text or a list of texts in column `{name}`, got {got}"),
        });
        Some(text.map(|text| Row { text, mark, next, whole: None, ends: true }))
    }
}

/// A text, or the texts of a list as lines; what is missing is empty.
fn text_of(field: Field) -> Result<String, String> {
    match field {
        Field::Str(text) => Ok(text),
        Field::Bytes(bytes) => {
            String::from_utf8(bytes.data().to_vec()).map_err(|_| "bytes that are not UTF-8".into())
        }
        Field::Null => Ok(String::new()),
        Field::ListInternal(list) => {
            let texts = list.elements().iter().cloned().map(text_of).collect::<Result<Vec<_>, _>>()?;
            Ok(texts.join("\n"))
        }
        other => Err(other.to_string().chars().take(80).collect()),
    }
}

/// Runs what reads a file. Why it may panic: the crate trusts what a file says of itself in some places.
fn sound<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(ParquetError::General("what it says of itself does not fit together".into())))
}

fn unreadable(path: &Path, error: &ParquetError) -> Error {
    let source = io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    Error::Unreadable { path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use super::super::{Column, Rows, find};
    use super::*;
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    /// Two groups of three rows; the second text of each is missing, and so is its list, the first list is empty.
    fn write(path: &Path, compression: Compression) {
        let schema = "message m { REQUIRED INT64 id; OPTIONAL BYTE_ARRAY text (UTF8);
            OPTIONAL group lines (LIST) { REPEATED group list { OPTIONAL BYTE_ARRAY element (UTF8); } } }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
        let file = fs::File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
        for group in 0..2 {
            let mut rows = writer.next_row_group().unwrap();
            let mut column = rows.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(&[1, 2, 3], None, None).unwrap();
            column.close().unwrap();
            let texts = |names: &[&str]| -> Vec<ByteArray> {
                names.iter().map(|text| ByteArray::from(format!("{text}{group}").as_str())).collect()
            };
            let mut column = rows.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&texts(&["a", "c"]), Some(&[1, 0, 1]), None).unwrap();
            column.close().unwrap();
            let mut column = rows.next_column().unwrap().unwrap();
            let (levels, again) = ([1, 0, 3, 3], [0, 0, 0, 1]);
            column
                .typed::<ByteArrayType>()
                .write_batch(&texts(&["x", "y"]), Some(&levels), Some(&again))
                .unwrap();
            column.close().unwrap();
            rows.close().unwrap();
        }
        writer.close().unwrap();
    }

    fn read(source: &Source, mark: Mark) -> Result<Vec<Row>> {
        let file = find(source)?.remove(0);
        let mut rows = Rows::open(&file, source, Default::default(), mark)?;
        std::iter::from_fn(move || rows.next_row().transpose()).collect()
    }

    #[test]
    fn a_column_of_texts_or_lists_is_read_over_groups_and_from_any_row_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let packings = [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(Default::default()),
            Compression::ZSTD(ZstdLevel::default()),
        ];
        for packing in packings {
            write(&path, packing);
            for (column, expected, marks) in [
                (None, &["a0", "c0", "a1", "c1"][..], &[0, 2, 3, 5][..]),
                (Some("lines"), &["x0\ny0", "x1\ny1"], &[2, 5]),
            ] {
                let column = column.map(|name: &str| Column::Name(name.into()));
                let source = Source { column, ..Source::of(&path) };
                let all = read(&source, Mark::default()).unwrap();
                assert_eq!(all.iter().map(|row| row.text.as_str()).collect::<Vec<_>>(), expected);
                assert_eq!(all.iter().map(|row| row.mark.at).collect::<Vec<_>>(), marks);
                for (number, row) in all.iter().enumerate() {
                    assert_eq!(read(&source, row.mark).unwrap(), all[number..]);
                    assert_eq!(read(&source, row.next).unwrap(), all[number + 1..]);
                }
            }
        }
        let column = |column| Source { column: Some(column), ..Source::of(&path) };
        let numbers = read(&column(Column::Number(1)), Mark::default());
        assert!(matches!(numbers, Err(Error::Row { line: 1, .. })), "{numbers:?}");
        let none = read(&column(Column::Name("txt".into())), Mark::default()).unwrap_err().to_string();
        assert!(none.contains("did you mean `text`"), "{none}");
    }

    #[test]
    fn a_damaged_file_is_refused_without_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        write(&path, Compression::SNAPPY);
        let whole = fs::read(&path).unwrap();
        let mut refused = 0;
        for at in 0..whole.len() {
            for damage in [0, 0xff] {
                let mut bytes = whole.clone();
                match at % 8 {
                    0 => bytes.truncate(at),
                    _ => bytes[at] ^= damage | 1 << (at % 8),
                }
                fs::write(&path, bytes).unwrap();
                refused += usize::from(read(&Source::of(&path), Mark::default()).is_err());
            }
        }
        assert!(refused > whole.len() / 2, "{refused} of {}", 2 * whole.len());
    }
}
