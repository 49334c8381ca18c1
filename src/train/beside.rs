//! What stands beside a model in its training step: a teacher, adapters, the heads of other tasks.

use super::adapters::Adapters;
use super::distill::Teacher;
use super::recipe::Recipe;
use super::several::Several;
use super::{Frozen, Result};
use crate::data::tokenizer::Tokenizer;
use crate::model::Family;

/// What stands beside a model in its training step.
#[derive(Debug, Default)]
pub struct Beside {
    /// A teacher, if the recipe names one.
    pub teacher: Option<Teacher>,
    /// Adapters, if they are trained in the model's place.
    pub adapters: Option<Adapters>,
    /// The tasks whose heads are trained on the model's trunk, where there are several.
    pub several: Option<Several>,
}

impl Beside {
    /// Opens what the recipe names, for a model.
    pub fn open(recipe: &Recipe, family: &dyn Family, tokenizer: Option<&Tokenizer>) -> Result<Beside> {
        let teacher = recipe.distill.as_ref().map(|distill| Teacher::open(distill, family, tokenizer));
        Ok(Beside { teacher: teacher.transpose()?, adapters: Adapters::open(recipe, family)?, several: None })
    }

    /// The same for a step that is planned and not run: numbers of a new model do not matter.
    pub fn to_plan(recipe: &Recipe, family: &dyn Family) -> Result<Beside> {
        let adapters = Adapters::to_plan(recipe, family)?;
        let recipe = Recipe { adapters: vec![], ..recipe.clone() };
        Ok(Beside { adapters, ..Beside::open(&recipe, family, None)? })
    }

    /// All weights of the step that are not trained.
    pub(super) fn frozen(&self) -> Frozen {
        let mut frozen = self.teacher.as_ref().map_or_else(Frozen::default, |teacher| teacher.frozen.clone());
        if let Some(adapters) = &self.adapters {
            frozen.join(adapters.frozen.clone());
        }
        frozen
    }
}
