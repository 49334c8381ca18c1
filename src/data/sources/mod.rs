//! Sources of text: files, folders, patterns and tables, one document after the other.
//!
//! ```text
//! corpus/**/*.txt   news.jsonl   pages.csv
//!        |              |           |
//!      find: which files, in which order
//!        |              |           |
//!      rows: one document at a time, each with the mark that finds it again
//!        +--------------+-----------+---> gather: all of them in memory, cut into training and validation
//! ```
//!
//! Plain text files alone are read as one text, as they always were. Where any source has rows, every row and
//! every file is a document, and a separator stands behind each.

mod find;
mod gather;
#[cfg(feature = "parquet")]
mod parquet;
mod pattern;
mod rows;
mod table;

use std::path::PathBuf;

use serde::{Serialize, Serializer};

pub use find::{File, Format, find};
pub(in crate::data) use gather::{Behind, behind};
pub use gather::{Gathered, Separator, Settings, end_of_text, gather};
pub use rows::{Bad, Manner, Mark, Row, Rows};

/// Key of a JSON object, or name of a column, that holds the text unless another is named.
pub const USUAL_FIELD: &str = "text";

/// One entry of `data.text`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    /// A file, a folder, or a pattern such as `corpus/**/*.txt`.
    pub path: PathBuf,
    /// The key with the text in each object of a `.jsonl` file; keys of inner objects are joined by dots.
    pub field: Option<String>,
    /// The column with the text in a `.csv`, `.tsv` or `.parquet` file.
    pub column: Option<Column>,
    /// Whether a table begins with the names of its columns. Absent: unless the column is a number.
    pub header: Option<bool>,
    /// How a text file falls into documents. Absent: not at all.
    pub sample_by: Option<SampleBy>,
    /// How often windows of this source are drawn, beside those of the others. Absent: by its size.
    pub weight: Option<f64>,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Column {
    /// By its name in the first row.
    Name(String),
    /// By its number, from one.
    Number(usize),
}

/// Documents of a text file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SampleBy {
    /// The whole file is one.
    Document,
    /// Blank lines stand between them.
    Paragraph,
    /// Each line is one.
    Line,
}

impl Source {
    /// A path and nothing else.
    pub fn of(path: impl Into<PathBuf>) -> Source {
        Source { path: path.into(), ..Source::default() }
    }

    /// Whether it is no more than a path.
    fn is_path(&self) -> bool {
        *self == Source::of(self.path.clone())
    }

    /// Whether text files of it are taken whole.
    fn is_whole(&self) -> bool {
        matches!(self.sample_by, None | Some(SampleBy::Document))
    }
}

impl<P: Into<PathBuf>> From<P> for Source {
    fn from(path: P) -> Source {
        Source::of(path)
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Table<'a> {
            path: &'a PathBuf,
            #[serde(skip_serializing_if = "Option::is_none")]
            field: &'a Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            column: &'a Option<Column>,
            #[serde(skip_serializing_if = "Option::is_none")]
            header: Option<bool>,
            #[serde(skip_serializing_if = "Option::is_none")]
            sample_by: Option<SampleBy>,
            #[serde(skip_serializing_if = "Option::is_none")]
            weight: Option<f64>,
        }
        if self.is_path() {
            return self.path.serialize(serializer);
        }
        let Source { path, field, column, header, sample_by, weight } = self;
        let (header, sample_by, weight) = (*header, *sample_by, *weight);
        Table { path, field, column, header, sample_by, weight }.serialize(serializer)
    }
}
