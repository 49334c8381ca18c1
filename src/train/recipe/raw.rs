//! The recipe as written: a TOML table that remembers where each value came from.

use std::fs;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::error::{Error, Origin, Origins};

/// A recipe before defaults and checks.
#[derive(Clone, Debug, Default)]
pub struct RawRecipe {
    pub(super) table: Table,
    pub(super) origins: Origins,
}

impl RawRecipe {
    /// Reads TOML text; `file` is the name used in messages.
    pub fn parse(text: &str, file: &str) -> Result<RawRecipe, Error> {
        let syntax = |error: toml::de::Error| Error::Syntax {
            origin: at(file, text, error.span().map_or(0, |span| span.start)),
            message: error.message().to_string(),
        };
        let spanned = DeTable::parse(text).map_err(syntax)?;
        let mut raw = RawRecipe { table: text.parse().map_err(syntax)?, ..RawRecipe::default() };
        raw.remember(spanned.get_ref(), "", &|offset| at(file, text, offset));
        Ok(raw)
    }

    /// Reads a recipe file.
    pub fn load(path: &Path) -> Result<RawRecipe, Error> {
        let text =
            fs::read_to_string(path).map_err(|source| Error::File { path: path.to_path_buf(), source })?;
        RawRecipe::parse(&text, &path.display().to_string())
    }

    /// Applies one `section.key=value`, as in `--set train.steps=50`.
    pub fn set(&mut self, text: &str) -> Result<(), Error> {
        let path = apply_set(&mut self.table, text)?;
        self.origins.insert(&path, Origin::Set(text.to_string()));
        Ok(())
    }

    /// Puts a value at a dotted path, as a command-line option such as `--data` does.
    pub fn insert(&mut self, path: &str, value: Value) -> Result<(), Error> {
        let path = place(&mut self.table, path, value)
            .map_err(|reason| Error::Override { text: path.to_string(), reason })?;
        self.origins.insert(&path, Origin::Program);
        Ok(())
    }

    /// Takes a section out, which somebody else reads.
    pub fn remove(&mut self, section: &str) {
        self.table.remove(section);
    }

    /// Whether something is written at a dotted path.
    pub fn has(&self, path: &str) -> bool {
        let mut value = Some(&self.table);
        let (parents, key) = path.rsplit_once('.').unwrap_or(("", path));
        for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
            value = value.and_then(|table| table.get(parent)).and_then(Value::as_table);
        }
        value.is_some_and(|table| table.contains_key(key))
    }

    /// Names of the sections that are written.
    pub fn sections(&self) -> impl Iterator<Item = &str> {
        self.table.keys().map(String::as_str)
    }

    fn remember(&mut self, table: &DeTable<'_>, parent: &str, at: &dyn Fn(usize) -> Origin) {
        for (key, value) in table {
            let path = join(parent, key.get_ref());
            self.origins.insert(&path, at(key.span().start));
            self.remember_value(value, &path, at);
        }
    }

    fn remember_value(&mut self, value: &Spanned<DeValue<'_>>, path: &str, at: &dyn Fn(usize) -> Origin) {
        match value.get_ref() {
            DeValue::Table(inner) => self.remember(inner, path, at),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let path = format!("{path}.{index}");
                    self.origins.insert(&path, at(item.span().start));
                    self.remember_value(item, &path, at);
                }
            }
            _ => {}
        }
    }
}

/// Applies `a.b=value` to a table and gives back the path `a.b`.
///
/// The value is TOML where it reads as TOML (`50`, `1e-3`, `[0.9, 0.99]`, `{ norm = 1.0 }`), and otherwise plain text, so
/// that `run.device=cpu` needs no quotes. Tables on the way are made where they are missing.
pub fn apply_set(table: &mut Table, text: &str) -> Result<String, Error> {
    let fail = |reason: String| Error::Override { text: text.to_string(), reason };
    let (path, value) = text.split_once('=').ok_or_else(|| fail("there is no `=`".to_string()))?;
    let path = path.trim();
    if path.split('.').any(|key| key.trim() != key || key.is_empty()) {
        return Err(fail(format!("`{path}` is not a dotted key")));
    }
    place(table, path, read_value(value.trim()).map_err(fail)?).map_err(fail)
}

fn read_value(text: &str) -> Result<Value, String> {
    if let Ok(value) = text.parse::<Value>() {
        return Ok(value);
    }
    // A broken list would be a strange device name: better an error than a quiet string.
    if text.starts_with(['[', '{', '"', '\'']) {
        return Err(format!("`{text}` begins like a TOML value and is not one"));
    }
    Ok(Value::String(text.to_string()))
}

/// Puts a value at a dotted path, and gives the path with numbers for names: of a list of tables one is reached by its number, from zero, or by
/// its `name`.
fn place(table: &mut Table, path: &str, value: Value) -> Result<String, String> {
    let (parents, key) = path.rsplit_once('.').unwrap_or(("", path));
    let (mut table, mut whole) = (table, String::new());
    let mut parents = parents.split('.').filter(|parent| !parent.is_empty()).peekable();
    while let Some(parent) = parents.next() {
        let mut inner = table.entry(parent).or_insert_with(|| Value::Table(Table::new()));
        whole = join(&whole, parent);
        if let Value::Array(list) = inner {
            let next = parents.next();
            let wanted = next.unwrap_or(key);
            let at = one_of(list, wanted).ok_or_else(|| {
                format!("`{whole}` is a list of {}, and none is called `{wanted}`; they are called by number, from 0 on, or by name", list.len())
            })?;
            whole = join(&whole, &at.to_string());
            inner = &mut list[at];
            if next.is_none() {
                *inner = value;
                return Ok(whole);
            }
        }
        let kind = super::read::describe(inner);
        table = inner
            .as_table_mut()
            .ok_or_else(|| format!("`{parent}` is {kind}, so `{key}` cannot be set inside it"))?;
    }
    table.insert(key.to_string(), value);
    Ok(join(&whole, key))
}

/// The number of the table that is meant.
fn one_of(list: &[Value], wanted: &str) -> Option<usize> {
    let number = wanted.parse().ok().filter(|number| *number < list.len());
    number.or_else(|| list.iter().position(|one| one.get("name").and_then(Value::as_str) == Some(wanted)))
}

fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_string() } else { format!("{parent}.{key}") }
}

fn at(file: &str, text: &str, offset: usize) -> Origin {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
    Origin::Line { file: file.to_string(), line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_value_is_toml_where_it_reads_as_toml_and_text_otherwise() {
        let mut table = Table::new();
        for text in [
            "train.steps=50",
            "train.optimizer.betas = [0.8, 0.9]",
            "train.clip={ value = 0.5 }",
            "run.device=llvmpipe (LLVM 19)",
            "data.text=[\"a=b.txt\"]",
        ] {
            apply_set(&mut table, text).unwrap();
        }
        assert_eq!(table["train"]["steps"], Value::Integer(50));
        assert_eq!(table["train"]["optimizer"]["betas"][1], Value::Float(0.9));
        assert_eq!(table["train"]["clip"]["value"], Value::Float(0.5));
        assert_eq!(table["run"]["device"].as_str(), Some("llvmpipe (LLVM 19)"));
        assert_eq!(table["data"]["text"][0].as_str(), Some("a=b.txt"));
    }

    #[test]
    fn one_of_several_tables_is_set_by_its_number_or_its_name() {
        let mut table: Table =
            "[[task]]\nname = \"a\"\n[[task]]\nname = \"b\"\nweight = 2.0".parse().unwrap();
        assert_eq!(apply_set(&mut table, "task.0.weight=0.5").unwrap(), "task.0.weight");
        assert_eq!(apply_set(&mut table, "task.b.masking.share=0.2").unwrap(), "task.1.masking.share");
        assert_eq!(table["task"][0]["weight"], Value::Float(0.5));
        assert_eq!(table["task"][1]["masking"]["share"], Value::Float(0.2));
        assert_eq!(table["task"][1]["weight"], Value::Float(2.0));
        assert_eq!(apply_set(&mut table, "task.a={ name = \"c\" }").unwrap(), "task.0");
        assert_eq!(table["task"][0]["name"].as_str(), Some("c"));
        for (text, part) in [
            ("task.2.weight=1", "a list of 2"),
            ("task.a.weight=1", "called `a`"),
            ("task.weight=1", "called `weight`"),
        ] {
            let message = apply_set(&mut table, text).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_set_that_is_malformed_or_reaches_into_a_number_is_refused() {
        let mut table: Table = "[train]\nlearning_rate = 0.001".parse().unwrap();
        for (text, part) in [
            ("train.steps", "no `=`"),
            ("train..steps=3", "not a dotted key"),
            ("=3", "not a dotted key"),
            ("train.optimizer.betas=[0.9", "begins like a TOML value"),
            ("train.learning_rate.peak=1e-3", "`learning_rate` is the number 0.001"),
        ] {
            let message = apply_set(&mut table, text).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let message = RawRecipe::parse("[train]\nsteps = = 3\n", "r.toml").unwrap_err().to_string();
        assert!(message.starts_with("r.toml, line 2: not valid TOML"), "{message}");
    }

    #[test]
    fn a_set_replaces_the_origin_of_everything_below_it() {
        let text = "[train]\nclip = { norm = 1.0 }";
        let mut raw = RawRecipe::parse(text, "r.toml").unwrap();
        assert_eq!(raw.origins.of("train.clip.norm").to_string(), "r.toml, line 2");
        raw.set("train.clip={ value = 2.0 }").unwrap();
        assert_eq!(raw.origins.of("train.clip.value").to_string(), "--set train.clip={ value = 2.0 }");
    }
}
