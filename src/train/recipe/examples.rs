//! Labelled examples in the place of text: `data.labelled` and its like, and `model.head`.

use std::path::PathBuf;

use serde::Serialize;

use super::error::Error;
use super::read::Section;
use crate::data::labelled::Columns;
use crate::model::Labels;

/// Keys of `[data]` that name examples, of which one may be there.
const KINDS: [(&str, Kind); 3] =
    [("labelled", Kind::Labelled), ("tagged", Kind::Tagged), ("similar", Kind::Similar)];

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

impl Examples {
    /// What they are.
    pub fn kind(&self) -> Kind {
        match (self.tagged.is_empty(), self.similar.is_empty()) {
            (true, true) => Kind::Labelled,
            (false, _) => Kind::Tagged,
            _ => Kind::Similar,
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
}

fn problem<S: serde::Serializer>(labels: &Option<Labels>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(crate::model::problem_type(labels.expect("it is left out where it is absent")))
}

/// Reads the keys of `[data]`; absent where there is no example.
pub(super) fn examples(section: &Section) -> Result<Option<Examples>, Error> {
    let hint = "name a .tsv, .csv or .jsonl file";
    let named = |names: &Vec<String>| !names.is_empty() && names.iter().all(|name| !name.is_empty());
    let files = |key: &str| -> Result<Vec<PathBuf>, Error> {
        let names = section.texts(key)?.must(named, "at least one path", hint)?;
        Ok(names.or(Vec::new()).into_iter().map(PathBuf::from).collect())
    };
    let given: Vec<&str> = KINDS.iter().map(|(key, _)| *key).filter(|key| section.has(key)).collect();
    let Some(first) = given.first() else {
        for key in ["held_out", "columns", "similarity"] {
            if section.has(key) {
                return Err(section.refuse(
                    key,
                    "absent without `labelled`, `tagged` or `similar`",
                    "it is for examples",
                ));
            }
        }
        return Ok(None);
    };
    let of_text = OF_TEXT.iter().find(|key| section.has(key));
    if let Some(key) = given.get(1).or(of_text) {
        let hint = "a run learns from text, or from examples of one kind";
        return Err(section.refuse(key, &format!("absent beside `{first}`"), hint));
    }
    if section.has("held_out") && section.has("validation") {
        let hint = "files for validation take the place of a share";
        return Err(section.refuse("validation", "absent beside `held_out`", hint));
    }
    let columns = match section.has("columns") {
        true => {
            let table = section.inner("columns", &["text", "second", "label"])?;
            let name = |key| Ok::<_, Error>(table.text(key)?.take());
            Some(Columns { text: name("text")?, second: name("second")?, label: name("label")? })
        }
        false => None,
    };
    Ok(Some(Examples {
        labelled: files("labelled")?,
        tagged: files("tagged")?,
        similar: files("similar")?,
        similarity: similarity(section)?,
        held_out: files("held_out")?,
        columns,
    }))
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
    let kinds = [("sequence", HeadKind::Sequence), ("token", HeadKind::Token)];
    let Some(kind) = section.word("head", &kinds)?.take() else {
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
