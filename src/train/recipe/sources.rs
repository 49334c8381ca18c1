//! Keys of `[data]` on where text comes from.

use std::path::PathBuf;

use serde::{Serialize, Serializer};
use toml::Value;

use super::error::Error;
use super::read::{Entry, Section, describe};
use crate::data::sources::{Column, SampleBy, Separator, Source};

/// The keys of an entry of `data.text` that is a table.
const KEYS: [&str; 6] = ["path", "field", "column", "header", "sample_by", "weight"];

const USUAL_SHARE: f64 = 0.1;

/// What the model is measured on.
#[derive(Clone, Debug, PartialEq)]
pub enum Validation {
    /// The last share of the text, in `0.0..1.0`.
    Share(f64),
    /// A text of its own.
    Text(Vec<Source>),
}

impl Validation {
    /// The share of the training text that is held back.
    pub fn share(&self) -> f64 {
        match self {
            Validation::Share(share) => *share,
            Validation::Text(_) => 0.0,
        }
    }
}

impl Serialize for Validation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Table<'a> {
            text: &'a [Source],
        }
        match self {
            Validation::Share(share) => share.serialize(serializer),
            Validation::Text(text) => Table { text }.serialize(serializer),
        }
    }
}

/// Where the tokens of a text are kept between runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// In the user's folder for caches, where the text is large enough for it to matter.
    #[default]
    Usual,
    /// Nowhere.
    Off,
    /// Here.
    Folder(PathBuf),
}

impl Cache {
    pub(super) fn is_usual(&self) -> bool {
        *self == Cache::Usual
    }
}

impl Serialize for Cache {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Cache::Folder(folder) => folder.serialize(serializer),
            Cache::Usual | Cache::Off => serializer.serialize_bool(*self == Cache::Usual),
        }
    }
}

/// Text that is read as it is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Streaming {
    /// Documents that wait to be drawn from.
    pub buffer: usize,
}

/// Reads `streaming`: a table, or true or false.
pub(super) fn streaming(section: &Section) -> Result<Option<Streaming>, Error> {
    let usual = Streaming { buffer: 10_000 };
    let found = match section.value("streaming") {
        None | Some(Value::Boolean(false)) => return Ok(None),
        Some(Value::Boolean(true)) => usual,
        _ => {
            let table = section.inner("streaming", &["buffer"])?;
            let buffer =
                table.size("buffer")?.must(|&n| n > 0, "at least 1", "1 keeps the order of the files")?;
            Streaming { buffer: buffer.or(usual.buffer) }
        }
    };
    if !section.has("text") {
        let hint = "data.text names what is streamed; the built-in corpus is small";
        return Err(section.refuse("streaming", "absent without `text`", hint));
    }
    if section.has("windows") {
        let hint = "windows are places in a text that is read whole";
        return Err(section.refuse("windows", "absent beside `streaming`", hint));
    }
    Ok(Some(found))
}

/// Reads `cache`: a folder, or true or false.
pub(super) fn cache(section: &Section) -> Result<Cache, Error> {
    match section.value("cache") {
        None | Some(Value::Boolean(true)) => Ok(Cache::Usual),
        Some(Value::Boolean(false)) => Ok(Cache::Off),
        _ => Ok(section.text("cache")?.take().map_or(Cache::Usual, |folder| Cache::Folder(folder.into()))),
    }
}

/// Reads `text`; none if it is absent.
pub(super) fn sources(section: &Section) -> Result<Vec<Source>, Error> {
    let hint = "name a file, a folder, or { path = \"news.jsonl\", field = \"text\" }";
    let entries = section.entries("text", "a list of paths, and of tables with a path", &KEYS)?;
    if section.has("text") && entries.is_empty() {
        return Err(section.refuse("text", "at least one path", hint));
    }
    let source = |entry: &Entry| match entry {
        Entry::Text(path) if path.is_empty() => Err(section.refuse("text", "paths that are not empty", hint)),
        Entry::Text(path) => Ok(Source::of(path)),
        Entry::Table(table) => source(table),
    };
    entries.iter().map(source).collect()
}

fn source(table: &Section) -> Result<Source, Error> {
    let path =
        PathBuf::from(table.text("path")?.need("path = \"news.jsonl\" names a file, folder or pattern")?);
    let column = match table.value("column") {
        Some(Value::Integer(_)) => {
            let number = table.size("column")?.must(|&n| n > 0, "at least 1", "columns count from 1")?;
            number.take().map(Column::Number)
        }
        _ => table.text("column")?.take().map(Column::Name),
    };
    let header = table.flag("header")?.take();
    if let (Some(Column::Name(_)) | None, Some(false)) = (&column, header) {
        let hint = "without names of columns, give the number of one: column = 2";
        return Err(table.refuse("header", "true beside a column that has a name", hint));
    }
    let words =
        [("document", SampleBy::Document), ("paragraph", SampleBy::Paragraph), ("line", SampleBy::Line)];
    let hint = "windows are drawn in proportion to the weights";
    Ok(Source {
        path,
        field: table.text("field")?.take(),
        column,
        header,
        sample_by: table.word("sample_by", &words)?.take(),
        weight: table.number("weight")?.must(|&weight| weight > 0.0, "above zero", hint)?.take(),
    })
}

/// Reads `separator`.
pub(super) fn separator(section: &Section) -> Result<Option<Separator>, Error> {
    let words = [("token", Separator::Token), ("newline", Separator::Newline), ("none", Separator::None)];
    Ok(section.word("separator", &words)?.take())
}

/// Reads `validation`: a share, or a table with a text.
pub(super) fn validation(section: &Section) -> Result<Validation, Error> {
    match section.value("validation") {
        Some(Value::Table(_)) => {
            let table = section.inner("validation", &["text"])?;
            let text = sources(&table)?;
            if text.is_empty() {
                let hint =
                    "validation = 0.1 holds back a tenth, { text = [\"other.txt\"] } names another text";
                return Err(section.refuse("validation", "a share or a table with `text`", hint));
            }
            Ok(Validation::Text(text))
        }
        Some(Value::Integer(_) | Value::Float(_)) | None => {
            let hint = "0.1 keeps the last tenth of the text";
            let fits = |share: &f64| (0.0..1.0).contains(share);
            let share = section.number("validation")?.must(fits, "from 0 to below 1", hint)?;
            Ok(Validation::Share(share.or(USUAL_SHARE)))
        }
        Some(other) => {
            let hint = format!("it is {}", describe(other));
            Err(section.refuse("validation", "a share, or a table with `text`", &hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Recipe;
    use super::*;

    fn read(data: &str) -> Result<Recipe, Error> {
        Recipe::from_text(&format!("[data]\n{data}"), "r.toml", &[])
    }

    #[test]
    fn sources_are_paths_and_tables_and_come_back_as_they_were_written() {
        let text = "text = [\"a.txt\", { path = \"b.jsonl\", field = \"body\", weight = 2 },\n\
                    { path = \"c.csv\", column = 3, header = true }, { path = \"d.txt\", sample_by = \"line\" }]\n\
                    separator = \"newline\"\nskip_bad = true\ncache = false\nvalidation = { text = [\"e.jsonl\"] }";
        let recipe = read(text).unwrap();
        let [plain, objects, table, lines] = &recipe.data.text[..] else { panic!("four sources") };
        assert_eq!(*plain, Source::of("a.txt"));
        assert_eq!((objects.field.as_deref(), objects.weight), (Some("body"), Some(2.0)));
        assert_eq!((table.column.clone(), table.header), (Some(Column::Number(3)), Some(true)));
        assert_eq!(lines.sample_by, Some(SampleBy::Line));
        assert_eq!((recipe.data.separator, recipe.data.skip_bad), (Some(Separator::Newline), true));
        assert_eq!(recipe.data.validation, Validation::Text(vec![Source::of("e.jsonl")]));
        assert_eq!(recipe.data.cache, Cache::Off);
        let again = Recipe::from_text(&recipe.to_toml(), "again", &[]).unwrap();
        assert_eq!(again, recipe);
        let folder = read("text = \"a.txt\"\ncache = \"kept\"").unwrap();
        let streamed = read("text = \"a.txt\"\nstreaming = { buffer = 7 }").unwrap();
        assert_eq!(streamed.data.streaming, Some(Streaming { buffer: 7 }));
        assert_eq!(Recipe::from_text(&streamed.to_toml(), "again", &[]).unwrap(), streamed);
        assert_eq!(folder.data.text, [Source::of("a.txt")]);
        assert_eq!(folder.data.cache, Cache::Folder("kept".into()));
        assert_eq!(Recipe::from_text(&folder.to_toml(), "again", &[]).unwrap(), folder);
    }

    #[test]
    fn sources_that_cannot_be_are_refused_by_their_place() {
        for (text, part) in [
            ("text = []", "`data.text` cannot be"),
            ("text = [\"\"]", "not empty"),
            ("text = [7]", "`data.text.0` has the wrong type"),
            ("text = [\"a\", { field = \"b\" }]", "`data.text.1.path` is missing"),
            ("text = [{ path = \"a\", colum = 1 }]", "did you mean `data.text.0.column`"),
            ("text = [{ path = \"a\", weight = 0 }]", "above zero"),
            ("text = [{ path = \"a\", column = 0 }]", "at least 1"),
            ("text = [{ path = \"a\", header = false }]", "give the number"),
            ("text = [{ path = \"a\", sample_by = \"lines\" }]", "did you mean \"line\""),
            ("separator = \"tokens\"", "did you mean \"token\""),
            ("streaming = true", "data.text names"),
            ("text = \"a\"\nstreaming = { buffer = 0 }", "at least 1"),
            ("text = \"a\"\nstreaming = true\nwindows = \"w\"", "read whole"),
            ("validation = {}", "a share or a table"),
            ("validation = \"a.txt\"", "a share, or a table"),
            ("validation = 1.0", "from 0 to below 1"),
        ] {
            let message = read(text).expect_err(text).to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
