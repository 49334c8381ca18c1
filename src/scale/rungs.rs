//! The rungs of a ladder: what each trains, on how much, and what that takes.

use super::ladder::{Budget, Counted, MoreThanData, StudyFile, stretched};
use super::sizes::{MOST, Size};
use super::{Error, Result};
use crate::model::{Family, count_elements};
use crate::train::job::{Job, family_of};
use crate::train::program::Foreseen;
use crate::train::recipe::{Model, RawRecipe, Recipe};
use crate::train::{Beside, Target, micro};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What is known of a rung before it is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Its name, and that of its folder.
    pub name: String,
    /// Its shape.
    pub size: Size,
    /// All parameters.
    pub parameters: usize,
    /// Those that are no table of tokens or positions.
    pub parameters_without_embeddings: usize,
    /// Those of both that the ladder counts: N.
    pub counted: usize,
    /// Tokens it reads, D: whole steps.
    pub tokens: u64,
    /// Times it reads the text, where its length is known.
    pub epochs: Option<f64>,
    /// Steps.
    pub steps: u64,
    /// Seed.
    pub seed: u64,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Floating-point operations of all steps by the plan's own count, C.
    pub flops: f64,
    /// The same by 6 N D.
    pub flops_6nd: f64,
    /// Bytes of memory at most.
    pub memory_bytes: u64,
}

/// A rung.
#[derive(Clone, Debug)]
pub struct Rung {
    /// What is known of it.
    pub facts: Facts,
    /// The run.
    pub recipe: Recipe,
}

/// The text that all rungs read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Text {
    /// Tokens to train on; unknown where the text is streamed.
    pub training_tokens: Option<u64>,
    /// Tokens of the validation part.
    pub validation_tokens: u64,
    /// Tokens there are.
    pub vocabulary: usize,
    /// Checksum of the tokens that are held.
    pub checksum: u32,
}

/// All rungs of a study, those that take least compute first.
#[derive(Clone, Debug)]
pub struct Rungs {
    /// What they read.
    pub text: Text,
    /// The width whose learning rate is the recipe's.
    pub reference_width: usize,
    /// The rungs.
    pub rungs: Vec<Rung>,
}

impl Rungs {
    /// Plans all rungs on a device; their runs lie in folders of `folder`.
    pub fn plan(file: &StudyFile, folder: &Path, target: &Target) -> Result<Rungs> {
        let ladder = &file.ladder;
        let job = Job::prepare(first(file)?, None)?;
        let text = text_of(&job)?;
        let mut count = |size| Ok(count_elements(&shape_of(&file.raw, size, &text)?.1.parameters()));
        let sizes = match &ladder.range {
            Some(range) => {
                range.fill(&mut count)?.map_err(|reason| Error::Ladder { path: file.path.clone(), reason })?
            }
            None => ladder.sizes.clone(),
        };
        // The recipe's own width, where it has one.
        let own = match file.raw.resolve() {
            Ok(Recipe { model: Model::Build(shape), .. }) => Some(shape.width),
            _ => None,
        };
        let smallest = sizes.iter().map(|size| size.width).min();
        let reference_width = ladder.reference_width.or(own).or(smallest).expect("there is a size");
        let mut rungs = vec![];
        for size in sizes {
            let planned = Planned::new(file, size, &text, target)?;
            for budget in ladder.budgets() {
                let seeds = match ladder.seeds.is_empty() {
                    true => vec![planned.recipe.train.seed],
                    false => ladder.seeds.clone(),
                };
                for seed in seeds {
                    rungs.push(planned.rung(file, budget, seed, reference_width, &text, folder)?);
                }
            }
        }
        rungs.sort_by(|a, b| a.facts.flops.total_cmp(&b.facts.flops));
        Ok(Rungs { text, reference_width, rungs })
    }
}

/// A size, built.
struct Planned {
    size: Size,
    recipe: Recipe,
    all: usize,
    without: usize,
    foreseen: Foreseen,
}

impl Planned {
    fn new(file: &StudyFile, size: Size, text: &Text, target: &Target) -> Result<Planned> {
        let (recipe, family) = shape_of(&file.raw, size, text)?;
        let mut settled = recipe.clone();
        let beside = Beside::to_plan(&settled, family.as_ref())?;
        micro::settle(&mut settled, family.as_ref(), &beside, target)?;
        let foreseen = micro::foresee(&settled, family.as_ref(), &beside, target)
            .map_err(|source| Error::Size { size: size.to_string(), source: source.into() })?;
        let parameters = family.parameters();
        let without = parameters.iter().filter(|spec| !is_embedding(&spec.name));
        let without = without.map(|spec| spec.shape.count()).sum();
        Ok(Planned { size, recipe, all: count_elements(&parameters), without, foreseen })
    }

    fn rung(
        &self,
        file: &StudyFile,
        budget: Budget,
        seed: u64,
        reference_width: usize,
        text: &Text,
        folder: &Path,
    ) -> Result<Rung> {
        let (ladder, mut recipe) = (&file.ladder, self.recipe.clone());
        let counted = match ladder.parameters {
            Counted::All => self.all,
            Counted::WithoutEmbeddings => self.without,
        };
        let train = &mut recipe.train;
        let context = train.context.expect("a new model has one");
        let in_step = (train.batch * train.accumulate * context) as u64;
        let wanted = match budget {
            Budget::PerParameter(ratio) => ratio * counted as f64,
            Budget::Tokens(tokens) => tokens,
        };
        if wanted > MOST {
            let reason = format!(
                "size {} would read {wanted:e} tokens, expected at most {MOST:e}\n  hint: lower tokens_per_parameter",
                self.size
            );
            return Err(Error::Ladder { path: file.path.clone(), reason });
        }
        let steps = ((wanted / in_step as f64).ceil() as u64).max(1);
        let factor = ladder.learning_rate.factor(self.size.width, reference_width);
        train.learning_rate = stretched(&train.learning_rate, factor, train.steps, steps);
        (train.steps, train.seed) = (steps, seed);
        train.evaluate.every = train.evaluate.every.min(steps);
        let (name, tokens) = (format!("{}-{budget}-s{seed}", self.size), steps * in_step);
        let epochs = text.training_tokens.map(|has| tokens as f64 / has as f64);
        if let (MoreThanData::Refuse, Some(has)) = (ladder.more_than_data, text.training_tokens)
            && tokens > has
        {
            return Err(Error::TooFewTokens { rung: name, tokens, has });
        }
        let learning_rate = train.learning_rate.peak;
        recipe.run.folder = folder.join(&name);
        let facts = Facts {
            name,
            size: self.size,
            parameters: self.all,
            parameters_without_embeddings: self.without,
            counted,
            tokens,
            epochs,
            steps,
            seed,
            learning_rate,
            flops: self.foreseen.flops * steps as f64,
            flops_6nd: 6.0 * counted as f64 * tokens as f64,
            memory_bytes: self.foreseen.memory.total(),
        };
        Ok(Rung { facts, recipe })
    }
}

/// The device that the recipe names. Refuses a ladder or recipe of which nothing can come.
pub fn device(file: &StudyFile) -> Result<String> {
    Ok(first(file)?.run.device)
}

/// The recipe with some size.
fn first(file: &StudyFile) -> Result<Recipe> {
    file.check()?;
    refuse(&file.raw)?;
    let size = match (&file.ladder.range, file.ladder.sizes.first()) {
        (None, Some(&size)) => size,
        (Some(range), _) => Size { width: range.head_size, layers: 1, heads: 1 },
        (None, None) => unreachable!("the ladder was checked"),
    };
    shaped(&file.raw, size)
}

/// Whether a parameter is a table of tokens or positions, or a head that reads scores off the vocabulary.
pub fn is_embedding(name: &str) -> bool {
    ["wte", "wpe", "embed", "lm_head"].iter().any(|part| name.contains(part))
}

/// The recipe with a size.
fn shaped(raw: &RawRecipe, size: Size) -> Result<Recipe> {
    let mut raw = raw.clone();
    let numbers = [("model.width", size.width), ("model.layers", size.layers), ("model.heads", size.heads)];
    for (path, number) in numbers {
        raw.insert(path, toml::Value::Integer(number as i64))?;
    }
    Ok(raw.resolve()?)
}

fn shape_of(raw: &RawRecipe, size: Size, text: &Text) -> Result<(Recipe, Box<dyn Family>)> {
    let recipe = shaped(raw, size)?;
    let family = family_of(&recipe, text.vocabulary)?;
    Ok((recipe, family))
}

/// Refuses what cannot be had in other sizes, or on a part of the text.
fn refuse(raw: &RawRecipe) -> Result<()> {
    let new = "absent: a study trains new models of several sizes";
    let text = "absent: a study is of models that predict text";
    let cases = [
        ("model.load", new, "name a family or a preset instead"),
        (
            "model.hidden",
            "absent: it belongs to one width",
            "leave it out, and each width has its family's own",
        ),
        ("adapter", new, "leave the section out"),
        ("prune", "absent: its steps belong to one length of run", "leave the section out"),
        ("data.windows", "absent: windows belong to one length of run", "leave it out"),
        ("data.pairs", text, "name plain text in data.text"),
        ("data.chats", text, "name plain text in data.text"),
        ("data.preferences", text, "name plain text in data.text"),
        ("data.labelled", text, "name plain text in data.text"),
        ("data.tagged", text, "name plain text in data.text"),
        ("data.similar", text, "name plain text in data.text"),
        ("data.rows", text, "name plain text in data.text"),
    ];
    match cases.into_iter().find(|(key, ..)| raw.has(key)) {
        Some((key, expected, hint)) => Err(Error::Recipe { key, got: "set".into(), expected, hint }),
        None => Ok(()),
    }
}

fn text_of(job: &Job) -> Result<Text> {
    let (training, validation) = (&job.store.training.tokens, &job.store.validation.tokens);
    if validation.is_empty() {
        return Err(Error::Recipe {
            key: "data.validation",
            got: "nothing".into(),
            expected: "some text: laws are fitted to losses of text that was not learnt",
            hint: "validation = 0.1 holds back the last tenth",
        });
    }
    let mut hash = crc32fast::Hasher::new();
    [training, validation].iter().for_each(|tokens| hash.update(bytemuck::cast_slice(&tokens.all())));
    Ok(Text {
        training_tokens: (!job.is_streamed()).then_some(training.len() as u64),
        validation_tokens: validation.len() as u64,
        vocabulary: job.tokenizer.as_ref().map_or(job.family.vocabulary(), |t| t.vocabulary_size()),
        checksum: hash.finalize(),
    })
}
