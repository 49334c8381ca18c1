//! From files to examples, and from a recipe to the model with its head.

use super::classes::Classes;
use super::row::Row;
use super::{Example, Lesson, mismatch, reading_of, similarity_of, table};
use crate::data::random::{Permutation, Random};
use crate::data::store::{Part, Store};
use crate::data::tokenizer::Tokenizer;
use crate::data::{labelled, similar, tagged};
use crate::graph::Graph;
use crate::model::{self, Config, Extent, Family, Labels, Mode, Task};
use crate::train::job::{self, Job};
use crate::train::recipe::{self, Examples, Head, HeadKind, Kind, MicroBatch, Recipe, Storage};
use crate::train::texts::Texts;
use crate::train::{Beside, Result};
use std::path::PathBuf;

/// By which examples are dealt to training and validation: the same in every run, whatever its seed.
const DEAL: u64 = 0x6465_616C;

/// Lengths are rounded up to a multiple of this where the recipe does not say.
const STEP: usize = 8;

/// A recipe over examples with data and model at hand. Names of classes that it leaves open are filled in.
pub(in crate::train) fn prepare(mut recipe: Recipe, tokenizer: Option<Tokenizer>) -> Result<Job> {
    let given = recipe.data.examples.clone().expect("it is asked for where there are examples");
    if given.kind() == Kind::Rows {
        return table::prepare(recipe, &given);
    }
    if recipe.distill.is_some() {
        return Err(mismatch(format!("[distill] learns from text, and data.{} is none", given.key())));
    }
    let material = Material::read(&given, recipe.data.validation.share())?;
    let mut told = vec![];
    if let Row::Similar(first) = &material.rows[0] {
        settle_similarity(&mut recipe, first.texts.len(), &mut told)?;
    }
    let tokenizer = match tokenizer {
        Some(tokenizer) => tokenizer,
        None => {
            let text = material.rows.iter().map(Row::text).collect();
            job::tokenizer_of(&recipe, &mut Texts::of(text))?
        }
    };
    let plain = job::plain_family(&recipe, tokenizer.vocabulary_size())?;
    job::expect_texts(plain.as_ref())?;
    let classes = material.classes(recipe.model.head(), plain.as_ref(), &given)?;
    fill_in(&mut recipe, &classes);
    told.extend(becomes_of_head(&recipe, plain.as_ref(), &classes)?);
    let mut family = headed(&recipe, plain)?;
    if let recipe::Model::Load { dropout: Some(share), .. } = recipe.model {
        family.set_dropout(share as f32);
    }
    if tokenizer.vocabulary_size() > family.vocabulary() {
        let (known, knows) = (tokenizer.vocabulary_size(), family.vocabulary());
        return Err(mismatch(format!("the tokenizer has {known} tokens, the model knows {knows}")));
    }
    if recipe.train.label_smoothing > 0.0 && (classes.labels != Labels::One || given.kind() == Kind::Similar)
    {
        return Err(mismatch("train.label_smoothing is for labels of which one is right"));
    }
    let examples = material.examples(&classes, &tokenizer, family.as_ref(), &mut recipe, &mut told)?;
    let training = material.training;
    let store = store_of(training, examples.len());
    let beside = Beside::open(&recipe, family.as_ref(), Some(&tokenizer))?;
    let mut quiet = model::from_config(&Config::new("the model", family.config()))?;
    quiet.set_dropout(0.0);
    let context = recipe.train.context.expect("it was just settled");
    let mut graph = Graph::new();
    quiet.read(&mut graph, &reading_of(quiet.as_ref(), Extent { batch: 1, context }, Mode::Train))?;
    let (kind, similarity) = (given.kind(), similarity_of(&recipe).unwrap_or_default());
    let lesson =
        Lesson { kind, similarity, examples, training, family: quiet, graph, context, classes, told };
    Ok(Job::of_lesson(recipe, Some(tokenizer), store, family, beside, lesson))
}

/// All texts of a recipe's examples, for tokenizers that are made of them.
pub(in crate::train) fn text_of(recipe: &Recipe) -> Result<String> {
    let given = recipe.data.examples.as_ref().expect("it is asked for where there are examples");
    let material = Material::read(given, recipe.data.validation.share())?;
    Ok(material.rows.iter().map(Row::text).collect())
}

/// True where the recipe says what stands on the encoder, whatever stood there.
pub(in crate::train) fn is_headed(recipe: &Recipe) -> bool {
    recipe.model.head().is_some() || similarity_of(recipe).is_some()
}

/// A family with the head that the recipe puts on it.
pub(in crate::train) fn headed(recipe: &Recipe, family: Box<dyn Family>) -> Result<Box<dyn Family>> {
    if similarity_of(recipe).is_some() {
        return match family.interface().task {
            Task::States => Ok(family),
            _ => Ok(model::with_head(family.as_ref(), &model::Head::None)?),
        };
    }
    let Some(head) = recipe.model.head().filter(|_| family.name() != "mlp") else { return Ok(family) };
    if head.kind == HeadKind::Language {
        return match family.interface().task {
            Task::NextToken | Task::HiddenToken => Ok(family),
            _ => Ok(model::with_head(family.as_ref(), &model::Head::Language)?),
        };
    }
    if head.labels.is_empty() {
        return Err(mismatch(
            "model.labels is not there, and no examples show what classes there are\n  hint: labels = [\"bad\", \"good\"], or data.labelled",
        ));
    }
    let names = head.labels.clone();
    let labels = head.problem_type.unwrap_or(Labels::One);
    let head = match head.kind {
        HeadKind::Sequence => model::Head::Sequence { labels, names },
        HeadKind::Token => model::Head::Tokens { names },
        HeadKind::Language => unreachable!("it has no classes, and was put on before"),
    };
    Ok(model::with_head(family.as_ref(), &head)?)
}

/// How many texts are in a row. A batch is measured against itself, so it cannot come in parts.
fn settle_similarity(recipe: &mut Recipe, texts: usize, told: &mut Vec<String>) -> Result<()> {
    let train = &recipe.train;
    if !matches!(train.micro_batch, MicroBatch::Whole) && train.micro_batch != MicroBatch::Rows(train.batch) {
        return Err(mismatch(
            "train.micro_batch would change what is learned of data.similar: every text is told from all others of its batch\n  hint: leave it out; a smaller train.batch, memory.recompute = \"layers\" or 16-bit storage need less memory",
        ));
    }
    if recipe.precision.storage == Storage::F16 {
        return Err(mismatch(
            "precision.storage = \"f16\" is not there for data.similar: take \"bf16\" or \"f32\"",
        ));
    }
    if train.accumulate > 1 {
        let (times, batch) = (train.accumulate, train.batch);
        told.push(format!(
            "batches  {times} of {batch} examples are accumulated; each text is told from those of its own {batch} alone"
        ));
    }
    let mut similarity = similarity_of(recipe).unwrap_or_default();
    similarity.texts = Some(texts);
    if let Some(examples) = &mut recipe.data.examples {
        examples.similarity = Some(similarity);
    }
    Ok(())
}

/// Writes the classes into the recipe, so that a run that goes on has the same ones.
pub(super) fn fill_in(recipe: &mut Recipe, classes: &Classes) {
    if let Some(head) = recipe.model.head_mut() {
        head.labels = classes.names.clone();
        if head.kind == HeadKind::Sequence {
            head.problem_type = Some(classes.labels);
        }
    }
}

/// What becomes of the head of a folder, where the recipe says what stands on the encoder.
fn becomes_of_head(recipe: &Recipe, plain: &dyn Family, classes: &Classes) -> Result<Option<String>> {
    let recipe::Model::Load { folder, .. } = &recipe.model else { return Ok(None) };
    if !is_headed(recipe) {
        return Ok(None);
    }
    let same = match similarity_of(recipe) {
        Some(_) => plain.interface().task == Task::States,
        None => Classes::of(plain).as_ref() == Some(classes),
    };
    if !recipe.adapters.is_empty() && !same {
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
    rows: Vec<Row>,
    training: usize,
}

impl Material {
    fn read(given: &Examples, validation: f64) -> Result<Material> {
        let rows = rows_of(given, given.files())?;
        if given.held_out.is_empty() {
            let (rows, training) = dealt(rows, validation);
            return Ok(Material { rows, training });
        }
        let training = rows.len();
        let held = rows_of(given, &given.held_out)?;
        if let (Some(Row::Similar(first)), Some(Row::Similar(other))) = (rows.first(), held.first())
            && first.texts.len() != other.texts.len()
        {
            let (expected, got) = (first.texts.len(), other.texts.len());
            return Err(other.refuse(format!("expected {expected} texts as in training, got {got}")).into());
        }
        Ok(Material { rows: [rows, held].concat(), training })
    }

    fn classes(&self, head: Option<&Head>, plain: &dyn Family, given: &Examples) -> Result<Classes> {
        let task = plain.interface().task;
        let (wants, has, word) = match given.kind() {
            Kind::Similar if head.is_none() => return Ok(Classes::none()),
            Kind::Similar => {
                return Err(mismatch(
                    "model.head is for classes, and data.similar has none\n  hint: leave it out",
                ));
            }
            Kind::Labelled | Kind::Rows => {
                (HeadKind::Sequence, matches!(task, Task::SequenceClass { .. }), "sequence")
            }
            Kind::Tagged => (HeadKind::Token, matches!(task, Task::TokenClass { .. }), "token"),
        };
        if !head.map_or(has, |head| head.kind == wants) {
            let expected =
                format!("a classifier of {word}s for data.{} (model.head = \"{word}\")", given.key());
            return Err(model::Error::Task { expected, got: task.describe() }.into());
        }
        let own = Classes::of(plain).filter(|_| has);
        // What is held out in a file of its own must not show anything.
        let shown = if given.held_out.is_empty() { self.rows.len() } else { self.training };
        let rows = &self.rows[..shown];
        Ok(match given.kind() {
            Kind::Tagged => {
                let rows: Vec<_> = rows
                    .iter()
                    .filter_map(|row| if let Row::Tagged(row) = row { Some(row) } else { None })
                    .collect();
                Classes::of_tags(head, own, &rows)?
            }
            _ => {
                let rows: Vec<_> = rows
                    .iter()
                    .filter_map(|row| if let Row::Labelled(row) = row { Some(row.clone()) } else { None })
                    .collect();
                Classes::find(head, own, &rows)?
            }
        })
    }

    /// Tokens and targets. Settles the context where the recipe leaves it open, and says how many texts are cut.
    fn examples(
        &self,
        classes: &Classes,
        tokenizer: &Tokenizer,
        family: &dyn Family,
        recipe: &mut Recipe,
        told: &mut Vec<String>,
    ) -> Result<Vec<Example>> {
        let encode = |row: &Row, most: usize| row.encode(tokenizer, most);
        let whole = self.rows.iter().map(|row| encode(row, usize::MAX)).collect::<Result<Vec<_>>>()?;
        let longest = whole.iter().flatten().map(|input| input.ids.len()).max().unwrap_or(1);
        let usual = longest.next_multiple_of(STEP).min(family.context());
        let context = *recipe.train.context.get_or_insert(usual);
        let (all, cut) = whole
            .iter()
            .flatten()
            .fold((0, 0), |(all, cut), input| (all + 1, cut + usize::from(input.ids.len() > context)));
        if cut > 0 {
            told.push(format!(
                "cut      {cut} of {all} texts have more than {context} tokens (the longest {longest}) and are cut at their end"
            ));
        }
        let example = |(row, inputs): (&Row, Vec<_>)| -> Result<Example> {
            let inputs = if longest > context { encode(row, context)? } else { inputs };
            Ok(Example { inputs, numbers: vec![], target: row.target(classes, tokenizer, context)? })
        };
        self.rows.iter().zip(whole).map(example).collect()
    }
}

/// Rows in the order in which they are trained on and held out, and how many are trained on.
pub(super) fn dealt<R: Clone>(rows: Vec<R>, validation: f64) -> (Vec<R>, usize) {
    let count = rows.len();
    let training = ((count as f64 * (1.0 - validation)).round() as usize).clamp(1, count);
    let order = Permutation::new(count as u64, &mut Random::new(DEAL, count as u64));
    // Files are often sorted by their labels, so the last share would be of one class.
    let dealt = |at: usize| rows[order.at(at as u64) as usize].clone();
    ((0..count).map(dealt).collect(), training)
}

fn rows_of(given: &Examples, files: &[PathBuf]) -> Result<Vec<Row>> {
    let columns = given.columns.clone().unwrap_or_default();
    Ok(match given.kind() {
        Kind::Labelled => labelled::read(files, &columns, true)?.into_iter().map(Row::Labelled).collect(),
        Kind::Tagged => tagged::read(files, true)?.into_iter().map(Row::Tagged).collect(),
        Kind::Similar => similar::read(files, &columns)?.into_iter().map(Row::Similar).collect(),
        Kind::Rows => unreachable!("rows of numbers are prepared elsewhere"),
    })
}

/// Numbers of examples as parts of a text. Windows end before the last number, as there must be a next one.
pub(in crate::train) fn store_of(training: usize, all: usize) -> Store {
    let part = |range: std::ops::Range<usize>| {
        let count = range.len();
        let numbers = if count == 0 { range } else { range.start..range.end + 1 };
        let tokens: Vec<u32> = numbers.map(|number| number as u32).collect();
        Part { tokens: tokens.into(), characters: count, bytes: count }
    };
    Store { training: part(0..training), validation: part(training..all), stretches: vec![] }
}
