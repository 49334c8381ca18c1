//! What a pass of a recipe is to the pipeline that runs it.

use super::prune::masks_of_zeros;
use super::{MEMORY_BYTES, Result, Selection, Statistics};
use crate::data::tokenizer::Tokenizer;
use crate::data::windows::Batch;
use crate::model::{self, Family, Weights};
use crate::tensor::mask::Mask;
use crate::train::Target;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Where in a recipe a pass may stand: each kind only before or beside those that come after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Changes shapes: masks and codes of before would no longer fit.
    Shape,
    /// Changes plain weights, by calculation or by training, and keeps masks.
    Weights,
    /// Makes codes of weights: no pass changes them any more.
    Codes,
}

impl Order {
    /// What such a pass does, in words.
    pub fn words(self) -> &'static str {
        match self {
            Order::Shape => "changes the model's shape",
            Order::Weights => "changes weights",
            Order::Codes => "makes codes of weights",
        }
    }
}

/// What a pass promises of the model it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// The same results but for rounding: proved on a probe batch.
    Exact,
    /// Other results; the report says how far off.
    Lossy,
    /// Another shape, and other results.
    Shape,
}

/// Something measured of the inputs of layers on the calibration text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// Inner products of inputs with each other.
    Gram,
    /// Range and mean of each input.
    Channels,
}

/// What a pass must be given.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// A text to calibrate with.
    pub calibration: bool,
    /// What will be measured with it that passes may share, and of which layers.
    pub statistics: Vec<(Statistic, Selection)>,
    /// A text to train on.
    pub training: bool,
    /// The model behind the pass of that number, counted from one; zero stands for the model as it came in.
    pub earlier: Option<usize>,
}

impl Needs {
    /// A calibration text, for these statistics of some layers.
    pub fn of(statistics: &[Statistic], selection: &Selection) -> Needs {
        let statistics = statistics.iter().map(|&what| (what, selection.clone())).collect();
        Needs { calibration: true, statistics, ..Needs::default() }
    }

    /// In words, for a plan.
    pub fn words(&self) -> String {
        let mut words: Vec<String> = vec![];
        if self.calibration {
            let mut kinds: Vec<&str> = self.statistics.iter().map(|(what, _)| what.words()).collect();
            kinds.dedup();
            let of = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
            words.push(format!("calibration text{of}"));
        }
        if self.training {
            words.push("training text".into());
        }
        if let Some(number) = self.earlier {
            let behind = format!("the model behind pass {number}");
            words.push(if number == 0 { "the model as it came in".into() } else { behind });
        }
        if words.is_empty() { "nothing".into() } else { words.join(", ") }
    }
}

impl Statistic {
    fn words(self) -> &'static str {
        match self {
            Statistic::Gram => "inner products of inputs",
            Statistic::Channels => "ranges of inputs",
        }
    }
}

/// The model on its way through the passes.
#[derive(Debug)]
pub struct Subject {
    /// The family, configured.
    pub family: Box<dyn Family>,
    /// Its weights.
    pub weights: Weights,
    /// Its tokenizer, if there is one.
    pub tokenizer: Option<Tokenizer>,
    /// What was removed of its weights and must stay so.
    pub masks: BTreeMap<String, Mask>,
}

impl Subject {
    /// A model no pass has touched.
    pub fn new(family: Box<dyn Family>, weights: Weights, tokenizer: Option<Tokenizer>) -> Subject {
        Subject { family, weights, tokenizer, masks: BTreeMap::new() }
    }

    /// Takes every exact zero in a linear layer for one that must stay.
    pub fn hold_zeros(&mut self) -> Result<()> {
        self.masks = masks_of_zeros(self.family.as_ref(), &self.weights, &Selection::all())?;
        Ok(())
    }

    /// The same model once more.
    pub fn copy(&self) -> Result<Subject> {
        Ok(Subject {
            family: copy_of(self.family.as_ref())?,
            weights: self.weights.clone(),
            tokenizer: self.tokenizer.clone(),
            masks: self.masks.clone(),
        })
    }
}

/// A family configured as another is.
pub fn copy_of(family: &dyn Family) -> Result<Box<dyn Family>> {
    Ok(model::from_config(&model::Config::new("the model in memory", family.config()))?)
}

/// What a pass works with besides the model.
pub struct Setting<'a> {
    /// Where texts are run.
    pub target: &'a Target,
    /// How that device is named, for runs of training that open it for themselves.
    pub device: &'a str,
    /// Windows of the calibration text, each a batch; empty where there is none.
    pub batches: &'a [Batch],
    /// What has been measured of this very model already.
    pub known: &'a Statistics,
    /// Bytes that what is measured may take at once.
    pub memory_bytes: u64,
    /// Where all randomness of the recipe comes from.
    pub seed: u64,
    /// The recipe's `[data]`, for passes that train.
    pub data: &'a toml::Table,
    /// The model as it came in, for teachers; a folder.
    pub original: &'a Path,
    /// The folders of the model as it came in and as it was behind each pass so far.
    pub earlier: &'a [PathBuf],
    /// A folder of the pass's own, kept while it is interrupted.
    pub folder: &'a Path,
    /// When it turns true the pass stops.
    pub stop: &'a AtomicBool,
    /// Gets what a person should read.
    pub say: &'a dyn Fn(&str),
}

impl<'a> Setting<'a> {
    /// Without texts, earlier models or anyone to tell: for a pass that is applied by itself.
    pub fn new(
        target: &'a Target,
        device: &'a str,
        known: &'a Statistics,
        data: &'a toml::Table,
        stop: &'a AtomicBool,
    ) -> Setting<'a> {
        Setting {
            target,
            device,
            batches: &[],
            known,
            memory_bytes: MEMORY_BYTES,
            seed: 0,
            data,
            original: Path::new("original"),
            earlier: &[],
            folder: Path::new("work"),
            stop,
            say: &|_| {},
        }
    }
}

/// What a pass did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// One sentence on what became of the model.
    pub summary: String,
    /// More sentences: what a reader would get wrong otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Numbers of the whole model.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub numbers: serde_json::Map<String, Json>,
    /// What became of each layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Json>,
}

impl Report {
    /// A report of one sentence.
    pub fn new(summary: impl Into<String>) -> Report {
        let numbers = serde_json::Map::new();
        Report { summary: summary.into(), notes: vec![], numbers, layers: vec![] }
    }

    /// With a number of the whole model.
    pub fn number(mut self, name: &str, value: impl Into<Json>) -> Report {
        self.numbers.insert(name.to_string(), value.into());
        self
    }

    /// With a sentence more.
    pub fn note(mut self, note: impl Into<String>) -> Report {
        self.notes.push(note.into());
        self
    }

    /// With what became of each layer.
    pub fn of_layers(mut self, layers: impl IntoIterator<Item = impl Serialize>) -> Report {
        let json = |layer| serde_json::to_value(layer).expect("a layer's outcome is plain data");
        self.layers = layers.into_iter().map(json).collect();
        self
    }
}

/// A pass of a recipe.
pub trait Stage: Debug + Send + Sync {
    /// What it is called in a recipe.
    fn kind(&self) -> &'static str;

    /// Finds wrong names and numbers out of range before anything is read.
    fn check(&self) -> Result<()>;

    /// Where in a recipe it may stand.
    fn order(&self) -> Order;

    /// What it promises of the model it gives.
    fn promise(&self) -> Promise;

    /// What it must be given.
    fn needs(&self) -> Needs;

    /// Whether it removes weights that passes behind it must leave at zero.
    fn prunes(&self) -> bool {
        false
    }

    /// Whether it leaves at zero what passes before it have removed.
    fn keeps_zeros(&self) -> bool {
        true
    }

    /// Changes the model.
    fn apply(&self, subject: &mut Subject, setting: &Setting) -> Result<Report>;
}
