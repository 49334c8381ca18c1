//! From files to examples, and from a recipe to the model with its head.

use super::classes::{Classes, Target};
use super::{Example, Lesson, mismatch};
use crate::data::labelled::{self, Labelled};
use crate::data::random::{Permutation, Random};
use crate::data::store::{Part, Store};
use crate::data::tokenizer::{Encoded, Tokenizer};
use crate::graph::Graph;
use crate::model::{self, Config, Extent, Family, Labels, Mode, Task};
use crate::train::job::{self, Job};
use crate::train::recipe::{self, Examples, Head, HeadKind, Kind, Recipe};
use crate::train::{Beside, Result};

/// By which examples are dealt to training and validation: the same in every run, whatever its seed.
const DEAL: u64 = 0x6465_616C;

/// Lengths are rounded up to a multiple of this where the recipe does not say.
const STEP: usize = 8;

/// A recipe over examples with data and model at hand. Names of classes that it leaves open are filled in.
pub(in crate::train) fn prepare(mut recipe: Recipe, tokenizer: Option<Tokenizer>) -> Result<Job> {
    let given = recipe.data.examples.clone().expect("it is asked for where there are examples");
    if recipe.distill.is_some() {
        return Err(mismatch(format!("[distill] learns from text, and data.{} is none", given.key())));
    }
    let mut material = Material::read(&given, recipe.data.validation)?;
    let tokenizer = match tokenizer {
        Some(tokenizer) => tokenizer,
        None => job::tokenizer_of(&recipe, &material.text())?,
    };
    let plain = job::plain_family(&recipe, tokenizer.vocabulary_size())?;
    let classes = material.classes(recipe.model.head(), plain.as_ref(), &given)?;
    let anew = fill_in(&mut recipe, plain.as_ref(), &classes)?;
    let mut family = headed(&recipe, plain)?;
    if let recipe::Model::Load { dropout: Some(share), .. } = recipe.model {
        family.set_dropout(share as f32);
    }
    if tokenizer.vocabulary_size() > family.vocabulary() {
        let (known, knows) = (tokenizer.vocabulary_size(), family.vocabulary());
        return Err(mismatch(format!("the tokenizer has {known} tokens, the model knows {knows}")));
    }
    if recipe.train.label_smoothing > 0.0 && classes.labels != Labels::One {
        return Err(mismatch("train.label_smoothing is for labels of which one is right"));
    }
    let mut told: Vec<String> = anew.into_iter().collect();
    let examples = material.examples(&classes, &tokenizer, family.as_ref(), &mut recipe, &mut told)?;
    let training = material.training;
    let store = store_of(training, examples.len());
    let beside = Beside::open(&recipe, family.as_ref(), Some(&tokenizer))?;
    let mut quiet = model::from_config(&Config::new("the model", family.config()))?;
    quiet.set_dropout(0.0);
    let mut graph = Graph::new();
    let context = recipe.train.context.expect("it was just settled");
    super::loss(quiet.as_ref(), &mut graph, Extent { batch: 1, context }, Mode::Train, 0.0)?;
    let lesson = Lesson { examples, training, family: quiet, graph, context, classes, told };
    Ok(Job::of_lesson(recipe, tokenizer, store, family, beside, lesson))
}

/// A family with the head that the recipe puts on it.
pub(in crate::train) fn headed(recipe: &Recipe, family: Box<dyn Family>) -> Result<Box<dyn Family>> {
    let Some(head) = recipe.model.head() else { return Ok(family) };
    if head.labels.is_empty() {
        return Err(mismatch(
            "model.labels is not there, and no examples show what classes there are\n  hint: labels = [\"bad\", \"good\"], or data.labelled",
        ));
    }
    let names = head.labels.clone();
    let labels = head.problem_type.unwrap_or(Labels::One);
    Ok(model::with_head(
        family.as_ref(),
        &match head.kind {
            HeadKind::Sequence => model::Head::Sequence { labels, names },
            HeadKind::Token => model::Head::Tokens { names },
        },
    )?)
}

/// Writes the classes into the recipe, so that a run that goes on has the same ones. Says what becomes of the head.
fn fill_in(recipe: &mut Recipe, plain: &dyn Family, classes: &Classes) -> Result<Option<String>> {
    if let Some(head) = recipe.model.head_mut() {
        head.labels = classes.names.clone();
        if head.kind == HeadKind::Sequence {
            head.problem_type = Some(classes.labels);
        }
    } else {
        return Ok(None);
    }
    let recipe::Model::Load { folder, .. } = &recipe.model else { return Ok(None) };
    if !recipe.adapters.is_empty() && Classes::of(plain).as_ref() != Some(classes) {
        return Err(mismatch(
            "beside [adapter] the head must be one that the loaded folder has, with these classes\n  hint: train the head first, without [adapter], and load that run",
        ));
    }
    let family = headed(recipe, model::from_config(&Config::new("the model", plain.config()))?)?;
    let renewed = model::renewed(folder, family.as_ref(), job::begins_anew(recipe, plain))?;
    Ok(renewed.describe().map(|said| format!("head     {said}")))
}

/// Examples as they are written, in the order in which they are trained on and held out.
struct Material {
    rows: Vec<Labelled>,
    training: usize,
}

impl Material {
    fn read(given: &Examples, validation: f64) -> Result<Material> {
        let columns = given.columns.clone().unwrap_or_default();
        if given.kind() == Kind::Tagged {
            return Err(mismatch("data.tagged is not read yet"));
        }
        let mut rows = labelled::read(given.files(), &columns, true)?;
        if given.held_out.is_empty() {
            let count = rows.len();
            let training = ((count as f64 * (1.0 - validation)).round() as usize).clamp(1, count);
            let order = Permutation::new(count as u64, &mut Random::new(DEAL, count as u64));
            // Files are often sorted by their labels, so the last share would be of one class.
            let dealt = |at: usize| rows[order.at(at as u64) as usize].clone();
            let rows = (0..count).map(dealt).collect();
            return Ok(Material { rows, training });
        }
        let training = rows.len();
        rows.extend(labelled::read(&given.held_out, &columns, true)?);
        Ok(Material { rows, training })
    }

    /// All text, for tokenizers that are made of it.
    fn text(&self) -> String {
        let line = |row: &Labelled| format!("{}\n{}\n", row.text, row.second.as_deref().unwrap_or_default());
        self.rows.iter().map(line).collect()
    }

    fn classes(&self, head: Option<&Head>, plain: &dyn Family, given: &Examples) -> Result<Classes> {
        let own = Classes::of(plain);
        let wants = HeadKind::Sequence;
        let fits = match head {
            Some(head) => head.kind == wants,
            None => matches!(plain.interface().task, Task::SequenceClass { .. }),
        };
        if !fits {
            let expected =
                format!("a classifier of sequences for data.{} (model.head = \"sequence\")", given.key());
            return Err(model::Error::Task { expected, got: plain.interface().task.describe() }.into());
        }
        let own = own.filter(|_| matches!(plain.interface().task, Task::SequenceClass { .. }));
        // What is held out in a file of its own must not show anything.
        let shown = if given.held_out.is_empty() { self.rows.len() } else { self.training };
        Ok(Classes::find(head, own, &self.rows[..shown])?)
    }

    /// Tokens and targets. Settles the context where the recipe leaves it open, and says how many texts are cut.
    fn examples(
        &mut self,
        classes: &Classes,
        tokenizer: &Tokenizer,
        family: &dyn Family,
        recipe: &mut Recipe,
        told: &mut Vec<String>,
    ) -> Result<Vec<Example>> {
        let encode = |row: &Labelled, most: usize| -> Result<Encoded> {
            let input = tokenizer.encode_input(&row.text, row.second.as_deref(), most)?;
            match input.ids.is_empty() {
                true => Err(row.refuse("the text has no token".into()).into()),
                false => Ok(input),
            }
        };
        let whole: Vec<Encoded> =
            self.rows.iter().map(|row| encode(row, usize::MAX)).collect::<Result<_>>()?;
        let longest = whole.iter().map(|input| input.ids.len()).max().unwrap_or(1);
        let usual = longest.next_multiple_of(STEP).min(family.context());
        let context = *recipe.train.context.get_or_insert(usual);
        let cut = whole.iter().filter(|input| input.ids.len() > context).count();
        if cut > 0 {
            told.push(format!("cut      {cut} of {} examples have more than {context} tokens (the longest {longest}) and are cut at their end", whole.len()));
        }
        let example = |(row, input): (&Labelled, Encoded)| -> Result<Example> {
            let input = if input.ids.len() > context { encode(row, context)? } else { input };
            let target: Target = classes.target(row)?;
            Ok(Example { input, target })
        };
        self.rows.iter().zip(whole).map(example).collect()
    }
}

/// Numbers of examples as parts of a text. Windows end before the last number, as there must be a next one.
fn store_of(training: usize, all: usize) -> Store {
    let part = |range: std::ops::Range<usize>| {
        let count = range.len();
        let numbers = if count == 0 { range } else { range.start..range.end + 1 };
        Part { tokens: numbers.map(|number| number as u32).collect(), characters: count, bytes: count }
    };
    Store { training: part(0..training), validation: part(training..all) }
}
