//! A pass that trains the model: the tables of a training recipe, with the model and the text filled in.

use super::super::stage::{Needs, Order, Promise, Report, Setting, Stage, Subject};
use super::super::{Error, Result};
use crate::exchange::{self, Opened};
use crate::train::checkpoint::Store;
use crate::train::job::family_of;
use crate::train::program::Memory;
use crate::train::recipe::Recipe;
use crate::train::{self, Beside, Target, micro};
use serde::{Deserialize, Serialize};
use std::path::Path;
use toml::{Table, Value};

/// Stands for the model as it came into the recipe, where a folder of a teacher is asked for.
pub const ORIGINAL: &str = "original";

/// Trains the model for some steps. Each table has the keys it has in a training recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Layers that are kept, dropout: as `[model]` beside `load`, which is the model so far.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub model: Table,
    /// Steps, batch, rates: as `[train]`.
    #[serde(default)]
    pub train: Table,
    /// Text instead of the recipe's own: as `[data]`.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub data: Table,
    /// As `[precision]`.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub precision: Table,
    /// As `[memory]`.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub memory: Table,
    /// For a model in codes: as `[quantize]`.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub quantize: Table,
    /// From a teacher, which may be `original`: as `[distill]`.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub distill: Table,
    /// Pruning by and by: as `[prune]`. Of a model that was pruned before, zeros stay zero.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub prune: Table,
    /// Low-rank adapters beside frozen weights, merged into them in the end: as `[adapter]`, or a list of such tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Value>,
}

impl Train {
    /// A recipe of passes gives one model: what an adapter has learnt is in its weights for the passes behind it.
    fn refuse_unmerged(&self) -> Result<()> {
        let tables: &[Value] = match &self.adapter {
            Some(Value::Array(list)) => list,
            Some(one) => std::slice::from_ref(one),
            None => &[],
        };
        match tables.iter().find_map(|table| table.get("merge")) {
            None => Ok(()),
            Some(got) => Err(Error::Setting {
                setting: "adapter.merge",
                expected: "absent: a recipe of passes gives one model, so what is learnt is merged into it\n  hint: an adapter that stays one is trained by `kiln train` with [adapter], on the model that the recipe gives"
                    .to_string(),
                got: got.to_string(),
            }),
        }
    }

    fn drops_layers(&self) -> bool {
        self.model.contains_key("keep_layers")
    }

    /// The most that it takes on a device, for the model in a folder, which is taken for its teacher too where that is the original.
    pub fn memory(&self, folder: &Path, data: &Table, target: &Target) -> Result<Memory> {
        let mut text = data.clone();
        text.extend(self.data.clone());
        let mut recipe = self.recipe(text, 0, folder, folder, Table::new())?;
        recipe.find_places()?;
        let family = family_of(&recipe, 1)?;
        let beside = Beside::open(&recipe, family.as_ref(), None)?;
        micro::settle(&mut recipe, family.as_ref(), &beside, target)?;
        Ok(micro::need(&recipe, family.as_ref(), &beside, target)?)
    }

    /// The training recipe: of a model in `start`, on a text as `[data]` has it, in a run folder, on a device.
    fn recipe(&self, data: Table, seed: u64, start: &Path, teacher: &Path, run: Table) -> Result<Recipe> {
        let path = |path: &Path| Value::String(path.display().to_string());
        let mut train = self.train.clone();
        train.entry("seed").or_insert(Value::Integer(seed as i64));
        let mut distill = self.distill.clone();
        if distill.get("teacher").and_then(Value::as_str) == Some(ORIGINAL) {
            distill.insert("teacher".into(), path(teacher));
        }
        let mut model = self.model.clone();
        if model.insert("load".into(), path(start)).is_some() {
            let expected = "absent: the model is the recipe's".to_string();
            return Err(Error::Setting { setting: "model.load", expected, got: "written".into() });
        }
        let tables = [
            ("model", model),
            ("data", data),
            ("train", train),
            ("precision", self.precision.clone()),
            ("memory", self.memory.clone()),
            ("quantize", self.quantize.clone()),
            ("distill", distill),
            ("prune", self.prune.clone()),
            ("run", run),
        ];
        let tables = tables.into_iter().filter(|(_, table)| !table.is_empty());
        let mut all: Table = tables.map(|(name, table)| (name.to_string(), Value::Table(table))).collect();
        all.extend(self.adapter.clone().map(|adapter| ("adapter".to_string(), adapter)));
        let text = toml::to_string(&all).expect("tables of text and numbers are TOML");
        let place = "the tables of the pass `train`";
        Ok(Recipe::from_text(&text, place, &[]).map_err(train::Error::from)?)
    }
}

impl Stage for Train {
    fn kind(&self) -> &'static str {
        "train"
    }

    fn check(&self) -> Result<()> {
        self.refuse_unmerged()?;
        // Keys and ranges are the training recipe's; which folders there will be does not matter to them.
        let start = Path::new("start");
        self.recipe(self.data.clone(), 0, start, start, Table::new()).map(drop)
    }

    fn order(&self) -> Order {
        if self.drops_layers() { Order::Shape } else { Order::Weights }
    }

    fn promise(&self) -> Promise {
        if self.drops_layers() { Promise::Shape } else { Promise::Lossy }
    }

    fn needs(&self) -> Needs {
        Needs { training: true, ..Needs::default() }
    }

    fn prunes(&self) -> bool {
        ["sparsity", "pattern", "method"].iter().any(|key| self.prune.contains_key(*key))
    }

    fn keeps_zeros(&self) -> bool {
        self.prune.get("keep_zeros").and_then(Value::as_bool) != Some(false)
    }

    fn apply(&self, subject: &mut Subject, setting: &Setting) -> Result<Report> {
        if let Some((name, _)) = subject.weights.stored().next() {
            return Err(Error::AlreadyQuantised { name: name.to_string() });
        }
        let start = setting.folder.join("start");
        subject.weights.save(&start, subject.family.as_ref())?;
        if let Some(tokenizer) = &subject.tokenizer {
            tokenizer.save(&start)?;
        }
        let mut data = setting.data.clone();
        data.extend(self.data.clone());
        if !data.contains_key("tokenizer") && subject.tokenizer.is_some() {
            data.insert("tokenizer".into(), Value::String("model".into()));
        }
        let folder = setting.folder.join("run");
        let run = [("folder", folder.display().to_string()), ("device", setting.device.to_string())];
        let run = run.map(|(key, value)| (key.to_string(), Value::String(value))).into_iter().collect();
        let mut tables = self.clone();
        if !subject.masks.is_empty() {
            tables.prune.entry("keep_zeros").or_insert(Value::Boolean(true));
        }
        let recipe = tables.recipe(data, setting.seed, &start, setting.original, run)?;
        let begun = Store::look(&folder).steps().is_ok_and(|steps| !steps.is_empty());
        let mut say = |line: &str| (setting.say)(line);
        let summary = train::run::run(recipe, begun, setting.stop, &mut say)?;
        if summary.interrupted {
            return Err(Error::Interrupted { step: summary.steps });
        }
        let checkpoint = summary.checkpoint.as_ref().expect("a run that ended has written one");
        let Opened { family, weights, .. } = exchange::open(checkpoint)?;
        (subject.family, subject.weights) = (family, weights);
        let validation = summary.validation_loss;
        let loss = validation.map_or(String::new(), |loss| format!(", validation loss {loss:.4}"));
        let summary_text = format!("trained {} steps: loss {:.4}{loss}", summary.steps, summary.loss);
        let report = Report::new(summary_text).number("steps", summary.steps).number("loss", summary.loss);
        Ok(match validation {
            Some(loss) => report.number("validation_loss", loss),
            None => report,
        })
    }
}
