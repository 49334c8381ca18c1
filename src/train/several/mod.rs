//! Several tasks on one trunk: each has data, a batch and a head of its own, and all train the same weights beneath.
//!
//! ```text
//! loss = sum over tasks of weight * loss of the task on its own batch
//! ```
//! Why one graph with all heads and not one graph for each task, drawn by chance step by step: the step stays a single static program,
//! every weight has a gradient in every step, so that the optimiser means what it means elsewhere (a head that is not drawn would go on
//! moving by its moments, or need a count of steps of its own), and nothing but the cursors of the data has to be kept to go on exactly.
//! What it costs is that a task cannot be visited more rarely than once a step; a small batch is how little of it there is.
//!
//! Each task is prepared as a run of its own would be, from [`Recipe::alone`]; here these are put together.

mod graph;
mod measure;
#[cfg(test)]
mod tests;

pub(super) use measure::Measured;

use super::job::{self, Job, base_of, begins_anew, tokenizer_of};
use super::recipe::{Goal, Model, Recipe, Task};
use super::texts::Texts;
use super::{Beside, Error, Result, lesson};
use crate::data::prefetch::{Prefetch, Prepared};
use crate::data::random::mix;
use crate::data::store::Store;
use crate::data::tokenizer::Tokenizer;
use crate::data::windows::Cursor;
use crate::graph::Feeds;
use crate::model::{
    self, CONFIG_FILE, Config, ParameterSpec, TASKS_FILE, TASKS_FOLDER, Weights, shared_name,
};
use crate::tensor::Tensor;
use crate::tensor::random::key_of;
use std::fmt;

/// The tasks of a run.
pub struct Several {
    /// In the order of the recipe.
    pub parts: Vec<Part>,
}

/// One task.
pub struct Part {
    /// Its name.
    pub name: String,
    /// What its loss is multiplied by.
    pub weight: f64,
    /// What it would be alone.
    pub job: Job,
}

impl fmt::Debug for Several {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.parts.iter().map(|part| (&part.name, part.weight));
        f.debug_map().entries(names).finish()
    }
}

/// A recipe of several tasks with their data and models at hand. What it leaves open of them is filled in.
pub(super) fn prepare(mut recipe: Recipe, tokenizer: Option<Tokenizer>) -> Result<Job> {
    let tokenizer = match tokenizer {
        Some(tokenizer) => tokenizer,
        None => tokenizer_for(&recipe)?,
    };
    if let Some(vocabulary) = vocabulary_for(&recipe, &tokenizer)? {
        recipe.model.set_vocabulary(vocabulary);
    }
    let mut parts = vec![];
    for at in 0..recipe.tasks.len() {
        let alone = recipe.alone(&recipe.tasks[at]);
        let task = &mut recipe.tasks[at];
        let mut job = Job::prepare(alone, Some(tokenizer.clone())).map_err(|error| of_task(task, error))?;
        expect_goal(task, &job).map_err(|error| of_task(task, error))?;
        fill_in(task, &job.recipe);
        if let (Model::Load { folder, .. }, None) = (&job.recipe.model, &job.recipe.data.examples) {
            let renewed = model::renewed(folder, job.family.as_ref(), false)?;
            job.told.extend(renewed.describe().map(|said| format!("head     {said}")));
        }
        parts.push(Part { name: task.name.clone(), weight: task.weight, job });
    }
    let several = Several { parts };
    several.check()?;
    let first = several.parts[0].job.family.as_ref();
    let family = model::from_config(&Config::new("the trunk", first.config()))?;
    let beside = Beside { several: Some(several), ..Beside::default() };
    Ok(Job::of_several(recipe, tokenizer, Store::empty(), family, beside))
}

/// The tokenizer that all tasks share: made of all their texts, where it is made.
fn tokenizer_for(recipe: &Recipe) -> Result<Tokenizer> {
    let mut all = String::new();
    if recipe.data.tokenizer.is_made() {
        for task in &recipe.tasks {
            let alone = recipe.alone(task);
            let text = match task.examples {
                Some(_) => lesson::text_of(&alone),
                None => Texts::read(&alone).map(|texts| texts.alphabet().into_owned()),
            };
            all += &text.map_err(|error| of_task(task, error))?;
        }
    }
    tokenizer_of(recipe, &mut Texts::of(all))
}

/// Tokens that a new trunk knows: as many as the task needs that needs most, such as one for what is hidden.
fn vocabulary_for(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Option<usize>> {
    let of_text = recipe.tasks.iter().filter(|task| task.examples.is_none());
    let need = |task: &Task| {
        let family = job::family_for(&recipe.alone(task), tokenizer);
        family.map(|family| family.vocabulary()).map_err(|error| of_task(task, error))
    };
    let all = of_text.map(need).collect::<Result<Vec<_>>>()?;
    Ok(all.into_iter().max())
}

/// Refuses a model that learns something else of such data than the task says.
fn expect_goal(task: &Task, job: &Job) -> Result<()> {
    let got = job.family.interface().task;
    let fits = match task.objective {
        Goal::MaskedLm => got == model::Task::HiddenToken,
        Goal::CausalLm => got == model::Task::NextToken,
        // What has examples was given its head by them.
        Goal::Sequence | Goal::Token | Goal::Similar => true,
    };
    if fits {
        return Ok(());
    }
    let wanted = match task.objective {
        Goal::MaskedLm => "a masked language model",
        _ => "a causal language model",
    };
    let expected = format!("{wanted}, which objective = \"{}\" takes", task.objective.word());
    Err(model::Error::Task { expected, got: got.describe() }.into())
}

/// What a task's data settled, so that a run that goes on has the same.
fn fill_in(task: &mut Task, settled: &Recipe) {
    if let (Some(head), Goal::Sequence | Goal::Token) = (settled.model.head(), task.objective) {
        task.labels = head.labels.clone();
        task.problem_type = head.problem_type.filter(|_| task.objective == Goal::Sequence);
    }
    task.context = settled.train.context.or(task.context);
    task.examples = settled.data.examples.clone();
}

fn of_task(task: &Task, error: Error) -> Error {
    Error::Task { name: task.name.clone(), source: Box::new(error) }
}

impl Several {
    /// Refuses tasks whose models do not have the same trunk.
    fn check(&self) -> Result<()> {
        let mut known: Vec<(ParameterSpec, &str)> = vec![];
        for part in &self.parts {
            let extent = part.job.extent();
            let most = part.job.family.context();
            if extent.context > most {
                let problem =
                    format!("its context is {}, the model sees at most {most} tokens", extent.context);
                return Err(part.wrong(problem));
            }
            for spec in part.parameters() {
                match known.iter().find(|(other, _)| other.name == spec.name) {
                    Some((other, whose)) if other.shape != spec.shape => {
                        let (name, got, expected) = (&spec.name, &spec.shape, &other.shape);
                        let problem =
                            format!("`{name}` of its trunk is {got}, that of task `{whose}` is {expected}");
                        return Err(part.wrong(problem));
                    }
                    Some(_) => {}
                    None => known.push((spec, &part.name)),
                }
            }
        }
        Ok(())
    }

    /// All that is trained: the trunk once, and each head.
    pub(super) fn parameters(&self) -> Vec<ParameterSpec> {
        let mut all: Vec<ParameterSpec> = vec![];
        for spec in self.parts.iter().flat_map(Part::parameters) {
            if all.iter().all(|known| known.name != spec.name) {
                all.push(spec);
            }
        }
        all
    }

    /// All that is trained, before step 0: loaded, or drawn from the seed. No two heads begin alike.
    pub(super) fn first_weights(&self, recipe: &Recipe) -> Result<Weights> {
        if let Model::Build(_) = &recipe.model {
            return Ok(model::initial(&self.parameters(), recipe.train.seed));
        }
        let mut all = Weights::default();
        for (number, part) in self.parts.iter().enumerate() {
            let mut alone = part.job.recipe.clone();
            alone.train.seed = mix(recipe.train.seed ^ number as u64);
            let family = part.job.family.as_ref();
            let own = match &alone.model {
                // The folder's head may be another task's.
                Model::Load { folder, keep_layers: None, .. } => {
                    let anew = begins_anew(&alone, model::open(folder)?.as_ref());
                    model::read_with_head(folder, family, alone.train.seed, anew)?
                }
                _ => base_of(&alone, family)?,
            };
            let name = |spec: ParameterSpec| Ok((part.name_of(&spec.name), own.get(&spec.name)?.clone()));
            all.extend(part.job.family.parameters().into_iter().map(name).collect::<Result<Weights>>()?);
        }
        Ok(all)
    }

    /// Batches of each task, prepared ahead from where its data stood.
    pub(super) fn prefetch(&self, cursors: &[Cursor], ahead: usize) -> Result<Vec<Prefetch>> {
        let of = |(number, part): (usize, &Part)| {
            let mut batches = part.job.batches()?;
            batches.seek(&cursors.get(number).cloned().unwrap_or_default())?;
            Ok(Prefetch::start_split(batches, part.job.numbers(), ahead, part.job.extent().batch))
        };
        self.parts.iter().enumerate().map(of).collect()
    }

    /// What one pass of a step reads: a batch of each task, under its name.
    pub(super) fn feeds(
        &self,
        recipe: &Recipe,
        step: u64,
        pass: usize,
        next: &mut dyn FnMut(usize) -> Result<Prepared>,
    ) -> Result<Feeds> {
        let (seed, passes) = (recipe.train.seed, recipe.train.passes() as u64);
        let mut all = Feeds::new();
        for (number, part) in self.parts.iter().enumerate() {
            let mut own = part.job.training_feeds(next(number)?, step, pass)?;
            // One key for all would drop the same elements in each.
            let key = key_of(&[seed as u32, (seed >> 32) as u32, number as u32]);
            own.set("rng", Tensor::u32([2], vec![key, (step * passes + pass as u64) as u32]));
            all.join(own.under(&part.prefix()));
        }
        Ok(all)
    }

    /// Tokens that a step learns from, on the mean.
    pub(super) fn tokens_in_step(&self) -> f64 {
        self.parts.iter().map(|part| part.job.tokens_in_step()).sum()
    }

    /// Files of a checkpoint beside its weights: which tasks there are, and the model of each.
    pub(super) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let json =
            |value: &serde_json::Value| serde_json::to_vec_pretty(value).expect("plain data is printable");
        let task = |part: &Part| serde_json::json!({ "name": part.name, "weight": part.weight });
        let tasks: Vec<_> = self.parts.iter().map(task).collect();
        let mut files = vec![(TASKS_FILE.to_string(), json(&serde_json::json!({ "tasks": tasks })))];
        for part in &self.parts {
            let within = |name: &str| format!("{TASKS_FOLDER}/{}/{name}", part.name);
            files.push((within(CONFIG_FILE), json(&part.job.family.config().into())));
            let more = part.job.lesson.iter().flat_map(|lesson| lesson.files());
            files.extend(more.map(|(name, bytes)| (within(&name), bytes)));
        }
        files
    }

    /// A line or more on each task, before the first step.
    pub(super) fn describe(&self) -> Vec<String> {
        let of = |part: &Part| {
            let (job, extent) = (&part.job, part.job.extent());
            let data = match &job.lesson {
                Some(lesson) => lesson.describe(),
                None => format!(
                    "{} training and {} validation tokens",
                    job.store.training.tokens.len(),
                    job.store.validation.tokens.len()
                ),
            };
            let (name, weight, rows) = (&part.name, part.weight, extent.batch);
            let first = format!(
                "task     {name}: weight {weight}, {rows} of {} tokens a step; {data}",
                extent.context
            );
            let more = job.lesson.iter().flat_map(|lesson| &lesson.told).chain(&job.told);
            let more = more.map(|line| format!("  {name}: {line}"));
            std::iter::once(first).chain(more).collect::<Vec<_>>()
        };
        self.parts.iter().flat_map(of).collect()
    }
}

impl Part {
    /// What stands before the names of its inputs.
    fn prefix(&self) -> String {
        format!("{}/", self.name)
    }

    /// What a parameter of its model is called beside the other tasks.
    pub fn name_of(&self, parameter: &str) -> String {
        shared_name(self.job.family.as_ref(), &self.name, parameter)
    }

    fn parameters(&self) -> impl Iterator<Item = ParameterSpec> {
        let all = self.job.family.parameters().into_iter();
        all.map(|spec| ParameterSpec { name: self.name_of(&spec.name), ..spec })
    }

    fn wrong(&self, problem: String) -> Error {
        let source = Error::Mismatch { folder: "recipe".into(), problem };
        Error::Task { name: self.name.clone(), source: Box::new(source) }
    }
}
