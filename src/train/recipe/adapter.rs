//! `[adapter]`: low-rank adapters beside a base that stays as it is. `[[adapter]]` once for each where there are several.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::error::Error;
use super::quantize::heads;
use super::read::Section;
use crate::adapt::{DEFAULT_NAME, Hold, Kind};

/// All keys of a table.
pub(super) const KEYS: &[&str] = &[
    "name",
    "kind",
    "rank",
    "alpha",
    "rank_stabilized",
    "dropout",
    "targets",
    "ignore",
    "whole",
    "load",
    "base",
];

/// Keys that an adapter which is loaded has of its own.
const OWN: &[&str] = &["kind", "rank", "alpha", "rank_stabilized", "targets", "ignore", "whole"];

/// An adapter to be trained.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Adapter {
    /// Its name.
    pub name: String,
    /// How its layers change.
    #[serde(flatten)]
    pub design: Design,
    /// Share of its inputs that is zeroed in training.
    pub dropout: f64,
    /// How the base is held; one for all adapters.
    #[serde(serialize_with = "word_of_hold")]
    pub base: Hold,
}

/// Where an adapter comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Design {
    /// It begins anew.
    New(Shape),
    /// An earlier one is trained on: a folder as PEFT writes it, or one of a run.
    Load {
        /// The folder.
        load: PathBuf,
    },
}

/// What a new adapter is, and of which layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shape {
    /// `lora` or `dora`.
    #[serde(serialize_with = "word_of_kind")]
    pub kind: Kind,
    /// Numbers between the two factors.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// The scale is `alpha / sqrt(rank)` instead of `alpha / rank`.
    pub rank_stabilized: bool,
    /// Layers meant, as patterns of names of weights or ends of names of modules; each must fit one.
    pub targets: Vec<String>,
    /// Layers among them that get no adapter.
    pub ignore: Vec<String>,
    /// Modules that are trained whole, such as norms.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub whole: Vec<String>,
}

fn word_of_hold<S: Serializer>(hold: &Hold, serializer: S) -> Result<S::Ok, S::Error> {
    hold.serialize(serializer)
}

fn word_of_kind<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match kind {
        Kind::Lora => "lora",
        Kind::Dora => "dora",
    })
}

/// Reads the tables; none means that the model itself is trained.
pub(super) fn adapters(sections: &[Section]) -> Result<Vec<Adapter>, Error> {
    let mut found: Vec<Adapter> = vec![];
    for section in sections {
        let next = adapter(section)?;
        if found.iter().any(|other| other.name == next.name) {
            let hint = "each adapter has files of its own: name = \"style\"";
            return Err(section.refuse("name", "another name for each adapter", hint));
        }
        if found.first().is_some_and(|first| first.base != next.base) {
            let hint = "there is one base, held in one way: write the same in each table";
            return Err(section.refuse("base", "the same for all adapters", hint));
        }
        found.push(next);
    }
    Ok(found)
}

fn adapter(section: &Section) -> Result<Adapter, Error> {
    let plain = |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    let hint = "it is part of names of weights and of a folder";
    let name = section.text("name")?.must(plain, "letters, digits, - and _", hint)?;
    let hint = "0.05 is common; 0 drops nothing";
    let dropout = section.number("dropout")?.must(|p| (0.0..1.0).contains(p), "from 0 to below 1", hint)?;
    Ok(Adapter {
        name: name.or(DEFAULT_NAME.to_string()),
        design: design(section)?,
        dropout: dropout.or(0.0),
        base: section.word("base", &Hold::WORDS)?.or(Hold::F32),
    })
}

fn design(section: &Section) -> Result<Design, Error> {
    if let Some(load) = section.text("load")?.take() {
        if let Some(key) = OWN.iter().find(|key| section.has(key)) {
            let hint = "an adapter that is loaded has its own; leave this out, or begin anew without load";
            return Err(section.refuse(key, "absent beside `load`", hint));
        }
        return Ok(Design::Load { load: load.into() });
    }
    let rank = section.size("rank")?.must(|&rank| rank > 0, "at least 1", "8 and 16 are common")?.or(8);
    let some = |names: &Vec<String>| !names.is_empty();
    let targets = section.texts("targets")?.must(some, "at least one pattern", "\"*\" means every layer")?;
    Ok(Design::New(Shape {
        kind: section.word("kind", &[("lora", Kind::Lora), ("dora", Kind::Dora)])?.or(Kind::Lora),
        rank,
        alpha: section.number("alpha")?.or(2.0 * rank as f64),
        rank_stabilized: section.flag("rank_stabilized")?.or(false),
        targets: targets.or(vec!["*".to_string()]),
        ignore: section.texts("ignore")?.or(heads()),
        whole: section.texts("whole")?.or(vec![]),
    }))
}
