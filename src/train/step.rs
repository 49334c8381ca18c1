//! A recipe's step: the weights, how they are trained, and the loss.

use super::adapters::weights_of;
use super::chats;
use super::job::extent_of;
use super::layout::Class;
use super::lesson;
use super::recipe::{self, Recipe};
use super::second;
use super::sequel;
use super::trainer::{Settings, Weight};
use super::{Beside, Error, Reduced, Result};
use crate::data::windows::IGNORED;
use crate::graph::Graph;
use crate::model::{Extent, Family, Mode, Reading, Task};
use crate::ops::Value;
use crate::ops::cross_entropy::{CrossEntropy, CrossEntropyEmit};
use crate::tensor::{DType, Type};

/// What a trainer needs to know of a model that a recipe trains.
pub struct Step {
    /// The weights, with those that decay marked.
    pub weights: Vec<Weight>,
    /// How the step is built; kernel variants are not kept in a file.
    pub settings: Settings,
    /// Batch and context.
    pub extent: Extent,
}

impl Step {
    /// Reads it from the recipe.
    pub fn new(recipe: &Recipe, family: &dyn Family, beside: &Beside) -> Result<Step> {
        let extent = extent_of(recipe, family);
        // Tasks have lengths of their own, which were checked with them.
        if extent.context > family.context() && beside.several.is_none() {
            let (expected, got) = (family.context(), extent.context);
            let problem = format!("train.context is {got}, the model sees at most {expected} tokens");
            return Err(Error::Mismatch { folder: "recipe".into(), problem });
        }
        if let Some(teacher) = &beside.teacher {
            teacher.check_context(extent.context)?;
        }
        let train = &recipe.train;
        let writers = |family: &dyn Family| -> Result<Vec<Graph>> {
            let of_pairs = sequel::writers(recipe, family, extent)?;
            let of_chats = chats::writers(recipe, family, extent)?;
            Ok([
                writers(family, beside, extent)?,
                lesson::writers(recipe, family, extent)?,
                of_pairs,
                of_chats,
            ]
            .concat())
        };
        let (parameters, writers) = match (&beside.adapters, &beside.several) {
            (Some(adapters), _) => (adapters.parameters(), writers(&adapters.adapted(family))?),
            (None, Some(several)) => (several.parameters(), several.writers()?),
            (None, None) => (family.parameters(), writers(family)?),
        };
        let settings = Settings {
            optimizer: train.optimizer.clone(),
            clip: train.clip,
            accumulate: train.passes(),
            precision: match recipe.precision.storage {
                recipe::Storage::F32 => DType::F32,
                recipe::Storage::F16 => DType::F16,
                recipe::Storage::Bf16 => DType::BF16,
            },
            loss_scale: recipe.precision.loss_scale,
            seed: train.seed,
            choices: None,
            page_bytes: None,
            recompute: recipe.memory.recompute,
            reduced: Reduced {
                aware: recipe.quantize.as_ref().map(recipe::Quantize::pass),
                products: recipe.precision.coded_products(),
                class: Class {
                    byte_moments: recipe.precision.states == recipe::States::Bytes,
                    half_weights: recipe.precision.weights == recipe::Held::Bf16,
                    byte_weights: recipe.precision.weights == recipe::Held::Int8,
                    ..Class::default()
                },
            },
            frozen: beside.frozen(),
            aside: beside.teacher.as_ref().map_or_else(Vec::new, |teacher| teacher.aside().to_vec()),
            beside: writers,
            prune: recipe.prune.clone(),
        };
        Ok(Step { weights: weights_of(parameters, &train.optimizer.decay), settings, extent })
    }

    /// What writes the recipe's loss of a model into a graph.
    pub fn loss<'a>(
        recipe: &'a Recipe,
        family: &'a dyn Family,
        beside: &'a Beside,
        extent: Extent,
    ) -> impl Fn(&mut Graph, Mode) -> Result<Value> + 'a {
        let smoothing = recipe.train.label_smoothing as f32;
        let reading = second::reading_of(recipe, family, extent, Mode::Train);
        let learns_chats = recipe.data.chats.is_some();
        let dpo = recipe.dpo.clone();
        let of_chats = chats::reading_of(recipe, family, extent, Mode::Train);
        let of = move |family: &dyn Family, graph: &mut Graph, mode| match &beside.teacher {
            _ if learns_chats => {
                chats::loss(family, graph, &Reading { mode, ..of_chats }, smoothing, dpo.as_ref())
            }
            // What is measured is how well the student reads the text, as without a teacher.
            Some(teacher) if mode == Mode::Train => teacher.loss(family, graph, extent, smoothing),
            _ if sequel::following_of(recipe).is_some() => {
                sequel::loss(family, graph, extent, mode, smoothing)
            }
            _ if recipe.data.examples.is_some() => lesson::loss(recipe, family, graph, extent, mode),
            _ if family.interface().task == Task::SecondText => {
                second::loss(family, graph, &Reading { mode, ..reading }, smoothing)
            }
            _ => language_loss(family, graph, extent, mode, smoothing),
        };
        move |graph, mode| match (&beside.adapters, &beside.several) {
            (Some(adapters), _) => of(&adapters.adapted(family), graph, mode),
            (None, Some(several)) => several.loss(graph, mode),
            (None, None) => of(family, graph, mode),
        }
    }
}

/// Graphs in which the student or the teacher writes.
fn writers(student: &dyn Family, beside: &Beside, extent: Extent) -> Result<Vec<Graph>> {
    beside.teacher.as_ref().map_or(Ok(vec![]), |teacher| teacher.writers(student, extent))
}

/// The mean cross-entropy of the next token, or of hidden ones, in nats.
pub fn language_loss(
    family: &dyn Family,
    graph: &mut Graph,
    extent: Extent,
    mode: Mode,
    smoothing: f32,
) -> Result<Value> {
    let forward = family.forward(graph, extent, mode)?;
    let targets = graph.input("targets", Type::new(DType::I32, [extent.positions()]));
    // Smoothing is a way to learn, not to measure.
    let smoothing = if mode == Mode::Train { smoothing } else { 0.0 };
    Ok(graph.within("loss", |graph| {
        let settings =
            CrossEntropy { ignore_index: IGNORED, label_smoothing: smoothing, ..CrossEntropy::default() };
        graph.cross_entropy(forward.logits, targets, settings)
    })?)
}
