//! Reading typed values out of a raw recipe, each with its path and origin for the message if it is wrong.

use std::fmt::Display;

use toml::{Table, Value};

use super::error::{Error, Origin};
use super::raw::RawRecipe;

/// The keys of each section of a recipe. A key outside is an error, so each name stands here once.
pub(super) const SECTIONS: &[(&str, &[&str])] = &[
    ("model", MODEL),
    ("data", DATA),
    ("train", TRAIN),
    ("precision", &["storage", "loss_scale", "weights", "states", "int8", "int8_ignore"]),
    ("quantize", &["scheme", "learned_step", "targets", "ignore"]),
    ("distill", super::distill::KEYS),
    ("dpo", super::dpo::KEYS),
    ("adapter", super::adapter::KEYS),
    ("prune", super::prune::KEYS),
    ("task", super::task::KEYS),
    ("memory", &["recompute", "budget"]),
    ("run", &["device", "folder", "profile", "recover", "save", "log"]),
];

const DATA: &[&str] = &[
    "text",
    "separator",
    "skip_bad",
    "cache",
    "streaming",
    "pairs",
    "labelled",
    "tagged",
    "similar",
    "similarity",
    "rows",
    "standardize",
    "held_out",
    "columns",
    "objective",
    "tokenizer",
    "validation",
    "windows",
    "masking",
    "chats",
    "preferences",
    "learn",
    "template",
    "too_long",
    "packing",
    "date",
];

const MODEL: &[&str] = &[
    "preset",
    "load",
    "head",
    "labels",
    "problem_type",
    "keep_layers",
    "family",
    "layers",
    "heads",
    "kv_heads",
    "head_size",
    "width",
    "hidden",
    "context",
    "vocabulary",
    "activation",
    "norm_epsilon",
    "rope_theta",
    "window",
    "dropout",
    "bias",
    "tie",
];

const TRAIN: &[&str] = &[
    "steps",
    "batch",
    "micro_batch",
    "context",
    "target",
    "accumulate",
    "optimizer",
    "learning_rate",
    "clip",
    "evaluate",
    "label_smoothing",
    "seed",
];

/// A table of the recipe, perhaps absent, whose keys are all known.
#[derive(Clone)]
pub(super) struct Section<'a> {
    raw: &'a RawRecipe,
    path: String,
    table: Option<&'a Table>,
}

/// One entry of a list of texts and tables.
pub(super) enum Entry<'a> {
    Text(String),
    Table(Section<'a>),
}

/// One value of the recipe, perhaps absent.
pub(super) struct Given<T> {
    pub path: String,
    pub origin: Origin,
    value: Option<T>,
}

impl<'a> Section<'a> {
    /// One of the top sections; checks its keys, and that every section of the recipe is known.
    pub(super) fn open(raw: &'a RawRecipe, name: &str) -> Result<Section<'a>, Error> {
        let names: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
        let root = Section { raw, path: String::new(), table: Some(&raw.table) };
        root.refuse_unknown(&names)?;
        let (_, keys) = SECTIONS.iter().find(|(known, _)| *known == name).expect("a known section");
        root.inner(name, keys)
    }

    /// A top section that may be there several times: `[name]`, or `[[name]]` for each.
    pub(super) fn open_all(raw: &'a RawRecipe, name: &str) -> Result<Vec<Section<'a>>, Error> {
        let Some(Value::Array(items)) = raw.table.get(name) else {
            let section = Section::open(raw, name)?;
            return Ok(if section.table.is_some() { vec![section] } else { vec![] });
        };
        let (_, keys) = SECTIONS.iter().find(|(known, _)| *known == name).expect("a known section");
        let root = Section { raw, path: String::new(), table: Some(&raw.table) };
        let of = |(at, item): (usize, &'a Value)| {
            let table =
                item.as_table().ok_or_else(|| root.wrong_type(name, "a table, or a list of tables"))?;
            let section = Section { raw, path: format!("{name}.{at}"), table: Some(table) };
            section.refuse_unknown(keys)?;
            Ok(section)
        };
        items.iter().enumerate().map(of).collect()
    }

    /// A table inside this one, holding only the given keys.
    pub(super) fn inner(&self, key: &str, keys: &[&str]) -> Result<Section<'a>, Error> {
        let table = self.convert(key, "a table", Value::as_table)?.value;
        let inner = Section { raw: self.raw, path: self.path_of(key), table };
        inner.refuse_unknown(keys)?;
        Ok(inner)
    }

    /// The entries of a list, each a text or a table holding only the given keys; one alone counts as a list of one.
    pub(super) fn entries(&self, key: &str, expected: &str, keys: &[&str]) -> Result<Vec<Entry<'a>>, Error> {
        let one = |path: String, value: &'a Value| match value {
            Value::String(text) => Ok(Entry::Text(text.clone())),
            Value::Table(table) => {
                let section = Section { raw: self.raw, path, table: Some(table) };
                section.refuse_unknown(keys).map(|()| Entry::Table(section))
            }
            other => {
                let (origin, got) = (self.raw.origins.of(&path), describe(other));
                Err(Error::WrongType { origin, path, expected: "a text or a table".into(), got })
            }
        };
        let path = self.path_of(key);
        match self.value(key) {
            None => Ok(vec![]),
            Some(Value::Array(items)) => {
                items.iter().enumerate().map(|(at, item)| one(format!("{path}.{at}"), item)).collect()
            }
            Some(value @ (Value::String(_) | Value::Table(_))) => Ok(vec![one(path, value)?]),
            Some(_) => Err(self.wrong_type(key, expected)),
        }
    }

    /// A table with nothing in it, at the place of a value that is not a table.
    pub(super) fn without(&self, key: &str) -> Section<'a> {
        Section { raw: self.raw, path: self.path_of(key), table: None }
    }

    /// Refuses every key but these.
    pub(super) fn only(&self, keys: &[&str], why: &str) -> Result<(), Error> {
        let mut written = self.table.into_iter().flat_map(Table::keys);
        match written.find(|key| !keys.contains(&key.as_str())) {
            Some(key) => Err(self.refuse(key, &format!("absent beside `{}`", keys[0]), why)),
            None => Ok(()),
        }
    }

    /// Refuses every key but these, expecting that there is none other.
    pub(super) fn only_these(&self, keys: &[&str], expected: &str, hint: &str) -> Result<(), Error> {
        let mut written = self.table.into_iter().flat_map(Table::keys);
        match written.find(|key| !keys.contains(&key.as_str())) {
            Some(key) => Err(self.refuse(key, expected, hint)),
            None => Ok(()),
        }
    }

    /// The first key that is written, if there is one.
    pub(super) fn first_key(&self) -> Option<&'a str> {
        self.table?.keys().next().map(String::as_str)
    }

    /// The error for a value that must be there.
    pub(super) fn missing(&self, key: &str, hint: &str) -> Error {
        let path = self.path_of(key);
        Error::Missing { origin: self.raw.origins.of(&path), path, hint: hint.to_string() }
    }

    /// The error for a value that may not be there.
    pub(super) fn refuse(&self, key: &str, expected: &str, hint: &str) -> Error {
        let path = self.path_of(key);
        let got = self.value(key).map_or("nothing".to_string(), describe);
        impossible(&path, self.raw.origins.of(&path), got, expected, hint)
    }

    /// The value as written, whatever its type.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.table.and_then(|table| table.get(key))
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    pub(super) fn count(&self, key: &str) -> Result<Given<u64>, Error> {
        let whole = self.convert(key, "a whole number", Value::as_integer)?;
        let whole = whole.must(|&n| n >= 0, "a whole number, zero or more", "counts are never negative")?;
        Ok(whole.map(|n| n as u64))
    }

    /// A size that fits this machine's memory.
    pub(super) fn size(&self, key: &str) -> Result<Given<usize>, Error> {
        let limit = u32::MAX as u64;
        let count = self.count(key)?;
        let count = count.must(|&n| n <= limit, "at most 4294967295", "no adapter holds more")?;
        Ok(count.map(|n| n as usize))
    }

    pub(super) fn number(&self, key: &str) -> Result<Given<f64>, Error> {
        let number = self.convert(key, "a number", as_number)?;
        number.must(|n| n.is_finite(), "a finite number", "write it out, such as 1e-3")
    }

    pub(super) fn flag(&self, key: &str) -> Result<Given<bool>, Error> {
        self.convert(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Given<String>, Error> {
        let text = self.convert(key, "text in quotes", Value::as_str)?;
        let text = text.must(|text| !text.is_empty(), "text that is not empty", "leave the key out")?;
        Ok(text.map(str::to_string))
    }

    /// A list of texts; a single text counts as a list of one.
    pub(super) fn texts(&self, key: &str) -> Result<Given<Vec<String>>, Error> {
        self.convert(key, "a list of texts", |value| match value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(items) => items.iter().map(|v| v.as_str().map(str::to_string)).collect(),
            _ => None,
        })
    }

    pub(super) fn counts(&self, key: &str) -> Result<Given<Vec<u64>>, Error> {
        self.convert(key, "a list of whole numbers, zero or more", |value| {
            value.as_array()?.iter().map(|v| u64::try_from(v.as_integer()?).ok()).collect()
        })
    }

    pub(super) fn pair(&self, key: &str) -> Result<Given<[f64; 2]>, Error> {
        self.convert(key, "a list of two numbers", |value| match value.as_array()?.as_slice() {
            [a, b] => Some([as_number(a)?, as_number(b)?]),
            _ => None,
        })
    }

    /// One of a few words, as the thing that the word stands for.
    pub(super) fn word<T: Clone>(&self, key: &str, words: &[(&str, T)]) -> Result<Given<T>, Error> {
        let text = self.text(key)?;
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        if let Some(got) = text.get().filter(|got| !names.contains(&got.as_str())) {
            let hint = match nearest(got, &names) {
                Some(name) => format!("did you mean \"{name}\"?"),
                None => format!("the first of them is \"{}\"", names[0]),
            };
            return Err(text.impossible(format!("one of {}", names.join(", ")), hint));
        }
        Ok(text.map(|got| words.iter().find(|(name, _)| *name == got).expect("checked above").1.clone()))
    }

    /// The error for a value of the wrong type.
    pub(super) fn wrong_type(&self, key: &str, expected: &str) -> Error {
        let path = self.path_of(key);
        let got = self.value(key).map_or("nothing".to_string(), describe);
        let expected = expected.to_string();
        Error::WrongType { origin: self.raw.origins.of(&path), path, expected, got }
    }

    fn convert<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Given<T>, Error> {
        let path = self.path_of(key);
        let origin = self.raw.origins.of(&path);
        let value = match self.value(key) {
            None => None,
            Some(value) => Some(read(value).ok_or_else(|| self.wrong_type(key, expected))?),
        };
        Ok(Given { path, origin, value })
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }

    fn refuse_unknown(&self, keys: &[&str]) -> Result<(), Error> {
        let written = self.table.into_iter().flat_map(Table::keys);
        for key in written {
            if !keys.contains(&key.as_str()) {
                let path = self.path_of(key);
                let hint = self.hint_for(key, keys);
                return Err(Error::UnknownKey { origin: self.raw.origins.of(&path), path, hint });
            }
        }
        Ok(())
    }

    fn hint_for(&self, key: &str, keys: &[&str]) -> String {
        // A slip of the finger is nearer than the same word in another section.
        let slip = |name: &&&str| strsim::damerau_levenshtein(key, name) == 1;
        if let Some(name) = keys.iter().find(slip) {
            return format!("did you mean `{}`?", self.path_of(name));
        }
        if let Some((section, _)) = SECTIONS.iter().find(|(_, keys)| keys.contains(&key)) {
            return format!("did you mean `{section}.{key}`?");
        }
        match nearest(key, keys) {
            Some(name) => format!("did you mean `{}`?", self.path_of(name)),
            None => format!("known here: {}", keys.join(", ")),
        }
    }
}

impl<T> Given<T> {
    /// Refuses a value that is there and does not hold.
    pub(super) fn must(
        self,
        holds: impl FnOnce(&T) -> bool,
        expected: impl Into<String>,
        hint: impl Into<String>,
    ) -> Result<Given<T>, Error>
    where
        T: std::fmt::Debug,
    {
        match &self.value {
            Some(value) if !holds(value) => Err(self.impossible(expected.into(), hint.into())),
            _ => Ok(self),
        }
    }

    pub(super) fn impossible(&self, expected: String, hint: String) -> Error
    where
        T: std::fmt::Debug,
    {
        let got = self.value.as_ref().map_or("nothing".to_string(), |value| format!("{value:?}"));
        impossible(&self.path, self.origin.clone(), got, expected, hint)
    }

    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Given<U> {
        Given { path: self.path, origin: self.origin, value: self.value.map(change) }
    }

    pub(super) fn get(&self) -> Option<&T> {
        self.value.as_ref()
    }

    pub(super) fn take(self) -> Option<T> {
        self.value
    }

    pub(super) fn or(self, default: T) -> T {
        self.value.unwrap_or(default)
    }

    /// The value, or else the usual one where there is one.
    pub(super) fn or_need(self, usual: Option<T>, hint: &str) -> Result<T, Error> {
        match usual {
            Some(usual) => Ok(self.or(usual)),
            None => self.need(hint),
        }
    }

    pub(super) fn need(self, hint: &str) -> Result<T, Error> {
        let Given { path, origin, value } = self;
        value.ok_or_else(|| Error::Missing { origin, path, hint: hint.to_string() })
    }
}

pub(super) fn impossible(
    path: &str,
    origin: Origin,
    got: impl Display,
    expected: impl Into<Box<str>>,
    hint: impl Into<Box<str>>,
) -> Error {
    let (path, got) = (path.to_string(), got.to_string().into());
    Error::Impossible { origin, path, expected: expected.into(), got, hint: hint.into() }
}

/// The known name a mistyped one most likely stands for.
pub(super) fn nearest<'n>(got: &str, names: &[&'n str]) -> Option<&'n str> {
    let likeness = |name: &&str| strsim::normalized_damerau_levenshtein(got, name);
    let best = names.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) >= 0.5).then_some(*best)
}

/// A value in words: `the number 3`, `the text "many"`.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the text {text:?}"),
        Value::Integer(number) => format!("the number {number}"),
        Value::Float(number) => format!("the number {number}"),
        Value::Boolean(flag) => format!("{flag}"),
        Value::Datetime(date) => format!("the date {date}"),
        Value::Array(_) => format!("the list {value}"),
        Value::Table(_) => "a table".to_string(),
    }
}

fn as_number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64))
}
