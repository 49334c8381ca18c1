//! A pass that trains the model: the tables of a training recipe, with the model and the text filled in.

use super::super::stage::{Needs, Order, Promise, Report, Setting, Stage, Subject};
use super::super::{Error, Result};
use crate::data::tokenizer;
use crate::model::{self, Weights};
use crate::train::checkpoint::Store;
use crate::train::recipe::Recipe;
use crate::train::run;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

/// Stands for the model as it came into the recipe, where a folder of a teacher is asked for.
pub const ORIGINAL: &str = "original";

/// Trains the model for some steps. Each table has the keys it has in a training recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
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
    /// Pruning by and by: as `[prune]`.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub prune: Table,
    /// Low-rank adapters beside frozen weights: as `[adapter]`.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    pub adapter: Table,
}

impl Train {
    /// The training recipe, for a model in `start` and a run in `folder`.
    fn recipe(&self, setting: &Setting) -> Result<Recipe> {
        let path = |path: std::path::PathBuf| Value::String(path.display().to_string());
        let mut all = Table::new();
        let start = setting.folder.join("start");
        all.insert(
            "model".into(),
            Value::Table(Table::from_iter([("load".to_string(), path(start.clone()))])),
        );
        let mut data = setting.data.clone();
        data.extend(self.data.clone());
        if !data.contains_key("tokenizer") && start.join(tokenizer::FILE_NAME).exists() {
            data.insert("tokenizer".into(), Value::String("model".into()));
        }
        all.insert("data".into(), Value::Table(data));
        let mut train = self.train.clone();
        train.entry("seed").or_insert(Value::Integer(setting.seed as i64));
        all.insert("train".into(), Value::Table(train));
        let mut distill = self.distill.clone();
        if distill.get("teacher").and_then(Value::as_str) == Some(ORIGINAL) {
            distill.insert("teacher".into(), path(setting.original.to_path_buf()));
        }
        let tables = [
            ("precision", &self.precision),
            ("memory", &self.memory),
            ("quantize", &self.quantize),
            ("distill", &distill),
            ("prune", &self.prune),
            ("adapter", &self.adapter),
        ];
        for (name, table) in tables.into_iter().filter(|(_, table)| !table.is_empty()) {
            all.insert(name.into(), Value::Table(table.clone()));
        }
        let of_run = [
            ("folder".to_string(), path(setting.folder.join("run"))),
            ("device".to_string(), Value::String(setting.device.to_string())),
        ];
        all.insert("run".into(), Value::Table(Table::from_iter(of_run)));
        let text = toml::to_string(&all).expect("tables of text and numbers are TOML");
        Ok(Recipe::from_text(&text, "the tables of the pass `train`", &[])
            .map_err(crate::train::Error::from)?)
    }
}

impl Stage for Train {
    fn kind(&self) -> &'static str {
        "train"
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn order(&self) -> Order {
        Order::Weights
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn needs(&self) -> Needs {
        Needs { training: true, ..Needs::default() }
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
        let recipe = self.recipe(setting)?;
        let folder = recipe.run.folder.clone();
        let begun = Store::look(&folder).steps().is_ok_and(|steps| !steps.is_empty());
        let mut say = |line: &str| (setting.say)(line);
        let summary = run::run(recipe, begun, setting.stop, &mut say)?;
        if summary.interrupted {
            return Err(Error::Interrupted { step: summary.steps });
        }
        let checkpoint = summary.checkpoint.as_ref().expect("a run that ended has written one");
        subject.family = model::open(checkpoint)?;
        subject.weights = Weights::read(checkpoint, subject.family.as_ref())?;
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
