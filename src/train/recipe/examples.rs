//! Labelled examples in the place of text: `data.labelled` and its like, and `model.head`.

use std::path::PathBuf;

use serde::Serialize;

use super::error::Error;
use super::read::Section;
use crate::data::labelled::Columns;
use crate::model::Labels;

/// Keys of `[data]` that name examples, of which one may be there.
const KINDS: [(&str, Kind); 4] = [
    ("labelled", Kind::Labelled),
    ("tagged", Kind::Tagged),
    ("similar", Kind::Similar),
    ("rows", Kind::Rows),
];

/// Keys of `[data]` that go with text alone.
const OF_TEXT: [&str; 9] =
    ["text", "separator", "skip_bad", "cache", "streaming", "pairs", "objective", "windows", "masking"];

/// What examples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Texts with a label each.
    Labelled,
    /// Sentences with a tag for each word.
    Tagged,
    /// Texts that are to have vectors near to one another.
    Similar,
    /// Rows of numbers with a label each.
    Rows,
}

/// What becomes of the vectors of a text's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the first token.
    First,
}

/// How likeness is learned.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Similarity {
    /// How a text's vector is made.
    pub pooling: Pooling,
    /// Factor on cosines before they compete.
    pub scale: f64,
    /// Texts in a row. Absent: as many as the files have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub texts: Option<usize>,
}

/// As in sentence-transformers.
impl Default for Similarity {
    fn default() -> Self {
        Similarity { pooling: Pooling::Mean, scale: 20.0, texts: None }
    }
}

/// Files of examples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Examples {
    /// Texts with labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labelled: Vec<PathBuf>,
    /// Sentences with tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tagged: Vec<PathBuf>,
    /// Texts that are alike.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub similar: Vec<PathBuf>,
    /// Rows of numbers with labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<PathBuf>,
    /// Whether each column of numbers is brought to a mean of zero and a deviation of one.
    #[serde(skip_serializing_if = "is_true")]
    pub standardize: bool,
    /// Files of the same kind for validation, in the place of a share.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held_out: Vec<PathBuf>,
    /// What their columns are called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub columns: Option<Columns>,
    /// How likeness is learned. Absent: as in sentence-transformers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub similarity: Option<Similarity>,
}

fn is_true(flag: &bool) -> bool {
    *flag
}

impl Examples {
    /// What they are.
    pub fn kind(&self) -> Kind {
        match () {
            _ if !self.tagged.is_empty() => Kind::Tagged,
            _ if !self.similar.is_empty() => Kind::Similar,
            _ if !self.rows.is_empty() => Kind::Rows,
            _ => Kind::Labelled,
        }
    }

    /// Texts in an example: those that are alike, else one.
    pub fn texts(&self) -> usize {
        match self.kind() {
            Kind::Similar => self.similarity.and_then(|similarity| similarity.texts).unwrap_or(2),
            _ => 1,
        }
    }

    /// Files that are trained on.
    pub fn files(&self) -> &[PathBuf] {
        match self.kind() {
            Kind::Labelled => &self.labelled,
            Kind::Tagged => &self.tagged,
            Kind::Similar => &self.similar,
            Kind::Rows => &self.rows,
        }
    }

    /// The key that names them.
    pub fn key(&self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self.kind()).expect("each kind has a key").0
    }
}

/// What stands on an encoder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Head {
    /// What it gives.
    #[serde(rename = "head")]
    pub kind: HeadKind,
    /// Names of the classes, in the order of their numbers. Empty: as the examples have them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// What labels mean. Absent: as the examples show.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "problem")]
    pub problem_type: Option<Labels>,
}

/// What a head gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadKind {
    /// Classes for each text.
    Sequence,
    /// Classes for each token.
    Token,
    /// Tokens, hidden or next; what a task of text has, and no word of `model.head`.
    Language,
}

pub(super) fn problem<S: serde::Serializer>(
    labels: &Option<Labels>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(crate::model::problem_type(labels.expect("it is left out where it is absent")))
}

/// Reads the keys of `[data]`; absent where there is no example.
pub(super) fn examples(section: &Section) -> Result<Option<Examples>, Error> {
    examples_without(section, &OF_TEXT)
}

/// The same of a table in which these keys may not stand beside examples.
pub(super) fn examples_without(section: &Section, of_text: &[&str]) -> Result<Option<Examples>, Error> {
    let hint = "name a .tsv, .csv or .jsonl file";
    let named = |names: &Vec<String>| !names.is_empty() && names.iter().all(|name| !name.is_empty());
    let files = |key: &str| -> Result<Vec<PathBuf>, Error> {
        let names = section.texts(key)?.must(named, "at least one path", hint)?;
        Ok(names.or(Vec::new()).into_iter().map(PathBuf::from).collect())
    };
    let given: Vec<&str> = KINDS.iter().map(|(key, _)| *key).filter(|key| section.has(key)).collect();
    let Some(first) = given.first() else {
        for key in ["held_out", "columns", "similarity", "standardize"] {
            if section.has(key) {
                return Err(section.refuse(
                    key,
                    "absent without `labelled`, `tagged`, `similar` or `rows`",
                    "it is for examples",
                ));
            }
        }
        return Ok(None);
    };
    let of_text = of_text.iter().find(|key| section.has(key));
    if let Some(key) = given.get(1).or(of_text) {
        let hint = "a run learns from text, or from examples of one kind";
        return Err(section.refuse(key, &format!("absent beside `{first}`"), hint));
    }
    // A share of zero is what a resolved recipe says beside such files.
    let holds_back = section.value("validation").is_some_and(|share| share.as_float() != Some(0.0));
    if section.has("held_out") && holds_back {
        let hint = "files for validation take the place of a share";
        return Err(section.refuse("validation", "absent beside `held_out`", hint));
    }
    let of_rows = *first == "rows";
    if !of_rows && section.has("standardize") {
        return Err(section.refuse("standardize", "absent without `rows`", "it is for columns of numbers"));
    }
    // What is written of a tokenizer where there is none is what a resolved recipe says.
    let tokenizer = section.value("tokenizer").and_then(toml::Value::as_str);
    if of_rows && section.has("tokenizer") && !matches!(tokenizer, Some("char" | "model")) {
        return Err(section.refuse("tokenizer", "absent beside `rows`", "rows of numbers have no tokens"));
    }
    Ok(Some(Examples {
        labelled: files("labelled")?,
        tagged: files("tagged")?,
        similar: files("similar")?,
        rows: files("rows")?,
        standardize: section.flag("standardize")?.or(true),
        similarity: similarity(section)?,
        held_out: files("held_out")?,
        columns: columns(section, of_rows)?,
    }))
}

/// Reads `data.columns`.
fn columns(section: &Section, of_rows: bool) -> Result<Option<Columns>, Error> {
    if !section.has("columns") {
        return Ok(None);
    }
    let keys: &[&str] = if of_rows { &["features", "label"] } else { &["text", "second", "label"] };
    let table = section.inner("columns", keys)?;
    let name = |key| Ok::<_, Error>(table.text(key)?.take());
    let each_once = |names: &Vec<String>| {
        !names.is_empty() && names.iter().enumerate().all(|(at, name)| !names[..at].contains(name))
    };
    let features = table.texts("features")?;
    let features = features.must(each_once, "names of columns, each once", "leave it out to read all")?;
    let (text, second, label) = (name("text")?, name("second")?, name("label")?);
    Ok(Some(Columns { text, second, label, features: features.or(vec![]) }))
}

/// Reads `data.similarity`.
fn similarity(section: &Section) -> Result<Option<Similarity>, Error> {
    if !section.has("similarity") {
        return Ok(None);
    }
    if !section.has("similar") {
        return Err(section.refuse(
            "similarity",
            "absent without `similar`",
            "it is for texts that are alike",
        ));
    }
    let (table, usual) =
        (section.inner("similarity", &["pooling", "scale", "texts"])?, Similarity::default());
    let poolings = [("mean", Pooling::Mean), ("first", Pooling::First)];
    let few = |texts: &usize| (2..=3).contains(texts);
    let scale = table.number("scale")?;
    Ok(Some(Similarity {
        pooling: table.word("pooling", &poolings)?.or(usual.pooling),
        scale: scale.must(|&scale| scale > 0.0, "above zero", "20 is usual")?.or(usual.scale),
        texts: table.size("texts")?.must(few, "2 or 3", "leave it out: the files tell")?.take(),
    }))
}

/// Reads the keys of `[model]`; absent where the recipe says nothing of a head.
pub(super) fn head(section: &Section) -> Result<Option<Head>, Error> {
    head_or(section, None)
}

/// The same where a head stands there even if the recipe says nothing.
pub(super) fn head_or(section: &Section, usual: Option<HeadKind>) -> Result<Option<Head>, Error> {
    let kinds = [("sequence", HeadKind::Sequence), ("token", HeadKind::Token)];
    let Some(kind) = section.word("head", &kinds)?.take().or(usual) else {
        for key in ["labels", "problem_type"] {
            if section.has(key) {
                let hint = "names of classes belong to a head: head = \"sequence\"";
                return Err(section.refuse(key, "absent without `head`", hint));
            }
        }
        return Ok(None);
    };
    let each_once = |names: &Vec<String>| {
        names.len() > 1 && names.iter().enumerate().all(|(at, name)| !names[..at].contains(name))
    };
    let labels = section.texts("labels")?;
    let labels = labels.must(each_once, "two names or more, each once", "labels = [\"bad\", \"good\"]")?;
    let meanings = [Labels::One, Labels::Any, Labels::Numbers].map(|m| (crate::model::problem_type(m), m));
    let problem_type = section.word("problem_type", &meanings)?;
    if kind == HeadKind::Token && section.has("problem_type") {
        return Err(section.refuse(
            "problem_type",
            "absent beside head = \"token\"",
            "a tag is one of several",
        ));
    }
    if problem_type.get() == Some(&Labels::Numbers) && section.has("labels") {
        return Err(section.refuse("labels", "absent for a regression", "its label is a number"));
    }
    Ok(Some(Head { kind, labels: labels.or(vec![]), problem_type: problem_type.take() }))
}
