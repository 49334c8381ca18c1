//! A pass that takes what is left of a pruned model back to earlier weights: the lottery ticket.
//!
//! Frankle and Carbin 2019 go back to the first weights, Frankle et al. 2020 to those of an early step k, which larger models need.
//! So a recipe trains, prunes, rewinds and trains again; zeros stay zero all the while.

use super::super::prune::{lay_masks, masks_of_zeros};
use super::super::stage::{Needs, Order, Promise, Report, Setting, Stage, Subject};
use super::super::{Error, Result, Selection};
use super::train::ORIGINAL;
use crate::exchange::{self, Opened};
use crate::model::Family;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Gives every weight its value of before, but for those that are removed: they stay zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rewind {
    /// Whose weights.
    pub to: Before,
}

/// An earlier state of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Before {
    /// As it was behind a pass of this recipe, by the pass's number, counted from one: train first for k steps, then on.
    Pass(usize),
    /// As it came into the recipe, `original`; or the folder of a model, such as the checkpoint of step k.
    Folder(PathBuf),
}

impl Before {
    /// The number of the pass behind which the model is meant; zero stands for the model as it came in.
    fn pass(&self) -> Option<usize> {
        match self {
            Before::Pass(number) => Some(*number),
            Before::Folder(folder) if folder.as_os_str() == ORIGINAL => Some(0),
            Before::Folder(_) => None,
        }
    }
}

impl Stage for Rewind {
    fn kind(&self) -> &'static str {
        "rewind"
    }

    fn check(&self) -> Result<()> {
        match &self.to {
            Before::Folder(folder) if folder.as_os_str().is_empty() => {
                let expected = "`original`, the number of a pass, or a folder".to_string();
                Err(Error::Setting { setting: "to", expected, got: "nothing".into() })
            }
            _ => Ok(()),
        }
    }

    fn order(&self) -> Order {
        Order::Weights
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn needs(&self) -> Needs {
        Needs { earlier: self.to.pass(), ..Needs::default() }
    }

    fn apply(&self, subject: &mut Subject, setting: &Setting) -> Result<Report> {
        if let Some((name, _)) = subject.weights.stored().next() {
            return Err(Error::AlreadyQuantised { name: name.to_string() });
        }
        let folder = match (&self.to, self.to.pass()) {
            (_, Some(number)) => setting.earlier.get(number).ok_or_else(|| Error::Rewind {
                folder: format!("pass {number}"),
                reason: "it has not run".to_string(),
            })?,
            (Before::Folder(folder), _) => folder,
            (Before::Pass(_), None) => unreachable!("a pass has its number"),
        };
        let wrong =
            |reason: &str| Error::Rewind { folder: folder.display().to_string(), reason: reason.to_string() };
        let masks = match subject.masks.is_empty() {
            true => masks_of_zeros(subject.family.as_ref(), &subject.weights, &Selection::all())?,
            false => subject.masks.clone(),
        };
        if masks.is_empty() {
            return Err(wrong(
                "no weight of the model is zero, so that nothing but its training would be undone",
            ));
        }
        let Opened { family, weights, .. } = exchange::open(folder)?;
        let shapes = |family: &dyn Family| -> Vec<_> {
            family.parameters().into_iter().map(|spec| (spec.name, spec.shape)).collect()
        };
        if shapes(family.as_ref()) != shapes(subject.family.as_ref()) {
            return Err(wrong("it has other weights than the model, or of other shapes"));
        }
        if weights.stored().next().is_some() {
            return Err(wrong("its weights are codes"));
        }
        subject.weights = lay_masks(subject.family.as_ref(), weights, &masks)?;
        let (removed, all) = masks.values().fold((0, 0), |(removed, all), mask| {
            (removed + mask.count_removed(), all + mask.rows() * mask.cols())
        });
        let share = removed as f64 / all as f64;
        let summary = format!(
            "weights as in {}, {:.2} % of {} layers still removed",
            folder.display(),
            100.0 * share,
            masks.len()
        );
        Ok(Report::new(summary).number("sparsity", share))
    }
}
