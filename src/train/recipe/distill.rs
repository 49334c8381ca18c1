//! `[distill]`: learning from a teacher.

use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};
use toml::Value;

use super::error::Error;
use super::read::Section;
use super::writing::{self, Writing};
use crate::adapt::Hold;

/// All keys of the section.
pub(super) const KEYS: &[&str] = &[
    "teacher",
    "teacher_precision",
    "cache",
    "top_k",
    "temperature",
    "beta",
    "layers",
    "relation_heads",
    "ce",
    "kl",
    "reverse_kl",
    "jsd",
    "hidden",
    "cosine",
    "attention",
    "values",
    writing::KEYS[0],
    writing::KEYS[1],
    writing::KEYS[2],
    writing::KEYS[3],
];

/// Tokens kept of each position, unless the recipe says otherwise.
const USUAL_TOP: usize = 32;

/// A teacher, and what of it is learnt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distill {
    /// Its folder, with `config.json` and `model.safetensors`.
    pub teacher: PathBuf,
    /// How its weights are held.
    pub teacher_precision: Hold,
    /// A folder for what the teacher says when it runs ahead, once for any number of runs. Absent: it is part of each step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Beside `cache`: of how many tokens of each position it is kept how likely they are, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Both sides' logits are divided by it before they are compared; above one it shows what the teacher deems possible.
    pub temperature: f64,
    /// For `jsd`: share of the teacher in the mixture.
    pub beta: f64,
    /// Pairs of layers, of the student and of the teacher, counted from zero, of which hidden states and relations are compared. Absent: hidden states of every block with those as deep in the teacher, relations of the last ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<[usize; 2]>>,
    /// Heads into which queries, keys and values are cut for relations. Absent: as many as both have, or else what divides both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relation_heads: Option<usize>,
    /// Weight of the cross-entropy of the text, as without a teacher.
    pub ce: Knob,
    /// Weight of KL(teacher || student).
    pub kl: Knob,
    /// Weight of KL(student || teacher).
    pub reverse_kl: Knob,
    /// Weight of the generalised Jensen-Shannon divergence.
    pub jsd: Knob,
    /// Weight of the mean squared error of hidden states, through a learned projection where widths differ.
    pub hidden: Knob,
    /// Weight of one minus the cosine of hidden states.
    pub cosine: Knob,
    /// Weight of the divergence of what positions attend to.
    pub attention: Knob,
    /// Weight of the divergence of how values are related to each other.
    pub values: Knob,
    /// Windows that one of the two writes. Absent: all are read in the text.
    #[serde(flatten)]
    pub writing: Option<Writing>,
}

/// A number that may change over the steps of a run: from one to another in a straight line, and then no more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knob {
    /// At step zero.
    pub from: f64,
    /// From step `until` on.
    pub to: f64,
    /// The step from which on nothing changes.
    pub until: u64,
}

impl Knob {
    /// One number throughout.
    pub const fn fixed(number: f64) -> Knob {
        Knob { from: number, to: number, until: 0 }
    }

    /// The number at a step.
    pub fn at(&self, step: u64) -> f64 {
        if step >= self.until {
            return self.to;
        }
        self.from + (self.to - self.from) * step as f64 / self.until as f64
    }

    /// True if it is zero throughout.
    pub fn is_zero(&self) -> bool {
        self.to == 0.0 && (self.until == 0 || self.from == 0.0)
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Knob { to, until: 0, .. } => write!(f, "{to}"),
            Knob { from, to, until } => write!(f, "{from} to {to} by step {until}"),
        }
    }
}

impl Serialize for Knob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        if self.until == 0 {
            return serializer.serialize_f64(self.to);
        }
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("from", &self.from)?;
        map.serialize_entry("to", &self.to)?;
        map.serialize_entry("until", &self.until)?;
        map.end()
    }
}

/// Reads the section; absent without a teacher.
pub(super) fn distill(section: &Section) -> Result<Option<Distill>, Error> {
    let Some(teacher) = section.text("teacher")?.take() else {
        section.only(&["teacher"], "a teacher is what the other keys are about: teacher = \"runs/large\"")?;
        return Ok(None);
    };
    let precision = section.word("teacher_precision", &Hold::WORDS)?.or(Hold::F32);
    let hint = "2 is common; 1 leaves the logits as they are";
    let temperature = section.number("temperature")?.must(|&t| t > 0.0, "above zero", hint)?;
    let hint = "0.5 is common; for the ends write kl or reverse_kl instead of jsd";
    let beta = section.number("beta")?.must(|&b| b > 0.0 && b < 1.0, "above 0 and below 1", hint)?;
    let compares = ["kl", "reverse_kl", "jsd", "hidden", "cosine", "attention", "values"];
    let usual = if compares.iter().any(|key| section.has(key)) { 0.0 } else { 0.5 };
    let heads =
        section.size("relation_heads")?.must(|&heads| heads > 0, "at least 1", "1 relates whole rows")?;
    let cache = section.text("cache")?.take().map(PathBuf::from);
    let top_k = section.size("top_k")?.must(|&count| count > 0, "at least 1", "32 is common")?.take();
    if cache.is_none() && top_k.is_some() {
        let hint =
            "a teacher that is part of the step says all it knows; cache = \"FOLDER\" lets it run ahead";
        return Err(section.refuse("top_k", "absent without `cache`", hint));
    }
    let distill = Distill {
        teacher: PathBuf::from(teacher),
        teacher_precision: precision,
        top_k: cache.as_ref().map(|_| top_k.unwrap_or(USUAL_TOP)),
        cache,
        temperature: temperature.or(2.0),
        beta: beta.or(0.5),
        layers: layers(section)?,
        relation_heads: heads.take(),
        ce: knob(section, "ce", 0.5)?,
        kl: knob(section, "kl", usual)?,
        reverse_kl: knob(section, "reverse_kl", 0.0)?,
        jsd: knob(section, "jsd", 0.0)?,
        hidden: knob(section, "hidden", 0.0)?,
        cosine: knob(section, "cosine", 0.0)?,
        attention: knob(section, "attention", 0.0)?,
        values: knob(section, "values", 0.0)?,
        writing: writing::writing(section)?,
    };
    if distill.cache.is_some() {
        refuse_beside_cache(section, &distill)?;
    }
    let learns = [distill.kl, distill.reverse_kl, distill.jsd, distill.hidden];
    let relates = [distill.cosine, distill.attention, distill.values];
    if learns.iter().chain(&relates).all(Knob::is_zero) {
        if let Some(writing) = &distill.writing {
            return match writing.on_policy.is_zero() && !distill.ce.is_zero() {
                true => Ok(Some(distill)),
                false => {
                    let hint = "of what the student writes it learns by kl, reverse_kl or jsd; of what the teacher writes by ce as well";
                    Err(section.refuse(
                        "kl",
                        "a weight above zero for a term that can be learnt from what is written",
                        hint,
                    ))
                }
            };
        }
        let hint = "kl = 0.5 is common; without a teacher leave [distill] out";
        return Err(section.refuse(
            "kl",
            "a weight above zero for one of the terms that the teacher is in",
            hint,
        ));
    }
    Ok(Some(distill))
}

/// What is kept of a teacher are its likeliest tokens: that is enough for one of the divergences alone.
fn refuse_beside_cache(section: &Section, distill: &Distill) -> Result<(), Error> {
    let Distill { reverse_kl, jsd, hidden, cosine, attention, values, .. } = distill;
    let others = [
        ("reverse_kl", reverse_kl),
        ("jsd", jsd),
        ("hidden", hidden),
        ("cosine", cosine),
        ("attention", attention),
        ("values", values),
    ];
    if distill.writing.is_some() {
        let key = writing::KEYS.into_iter().find(|key| section.has(key)).expect("something is written");
        let hint = "a teacher that runs ahead knows the windows of the text alone: leave cache out";
        return Err(section.refuse(key, "absent beside `cache`", hint));
    }
    match others.into_iter().find(|(_, knob)| !knob.is_zero()) {
        None => Ok(()),
        Some((key, _)) => {
            let hint = "of a teacher that runs ahead its likeliest tokens are kept: kl can be had of them, for all else leave cache out";
            Err(section.refuse(key, "absent beside `cache`", hint))
        }
    }
}

pub(super) fn knob(section: &Section, key: &str, usual: f64) -> Result<Knob, Error> {
    debug_assert!(KEYS.contains(&key));
    let hint = "0 leaves the term out";
    let fits = |weight: &f64| *weight >= 0.0;
    match section.value(key) {
        Some(Value::Table(_)) => {
            let inner = section.inner(key, &["from", "to", "until"])?;
            let end =
                |key| inner.number(key)?.must(fits, "zero or more", hint)?.need("give from, to and until");
            let (from, to) = (end("from")?, end("to")?);
            let until = inner.count("until")?.must(|&n| n > 0, "at least 1", "it is a step")?;
            Ok(Knob { from, to, until: until.need("the step at which `to` is reached")? })
        }
        _ => Ok(Knob::fixed(section.number(key)?.must(fits, "zero or more", hint)?.or(usual))),
    }
}

fn layers(section: &Section) -> Result<Option<Vec<[usize; 2]>>, Error> {
    let Some(value) = section.value("layers") else { return Ok(None) };
    let number = |value: &Value| usize::try_from(value.as_integer()?).ok();
    let pair = |value: &Value| match value.as_array()?.as_slice() {
        [student, teacher] => Some([number(student)?, number(teacher)?]),
        _ => None,
    };
    let pairs: Option<Vec<_>> = value.as_array().and_then(|list| list.iter().map(pair).collect());
    match pairs {
        Some(pairs) if !pairs.is_empty() => Ok(Some(pairs)),
        _ => {
            let hint = "[[0, 1], [1, 3]] compares the student's first layer with the teacher's second";
            Err(section.refuse("layers", "a list of pairs of layers, counted from zero", hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_knob_turns_in_a_straight_line_and_then_stays() {
        let knob = Knob { from: 1.0, to: 0.0, until: 4 };
        assert_eq!([0, 1, 2, 4, 9].map(|step| knob.at(step)), [1.0, 0.75, 0.5, 0.0, 0.0]);
        assert_eq!(Knob::fixed(0.3).at(7), 0.3);
        assert!(
            Knob::fixed(0.0).is_zero() && !knob.is_zero() && !Knob { from: 0.0, to: 1.0, until: 4 }.is_zero()
        );
    }
}
