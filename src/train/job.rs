//! What a recipe names, made: text, tokenizer, tokens, model, first weights.

use super::chats::{Chats, Script};
use super::distill::cache::Cache;
use super::lesson::{self, Lesson};
use super::recipe::{self, Recipe};
use super::second::{self, Second};
use super::sequel::{self, Sequel};
use super::several;
pub use super::step::{Step, language_loss};
use super::streaming::Streams;
use super::texts::Texts;
use super::trainer::{Program, Trainer};
use super::{Beside, Error, Result, Target, micro};
use crate::adapt::is_adapter;
use crate::data::masking::{Hider, mask_of};
use crate::data::prefetch::Batches;
use crate::data::replay::Replay;
use crate::data::store::{Part, Store, split};
use crate::data::tokenizer::{self, Tokenizer};
use crate::data::windows::{self, Batch, IGNORED, Sampler};
use crate::data::{corpus, replay};
use crate::graph::Feeds;
use crate::model::{self, Activation, Design, Extent, Family, Task, Weights};
use crate::tensor::Tensor;
use std::path::Path;

/// Key by which tokens are hidden in evaluation: the same in every run, whatever its seed.
const EVALUATION_KEY: u32 = 0x6576_616C;

/// Tokens of a window, where neither recipe nor a model at hand says.
const USUAL_CONTEXT: usize = 1024;

/// Characters of the built-in corpus.
pub const CORPUS_CHARACTERS: usize = 1 << 20;

/// A recipe with its data and model at hand.
pub struct Job {
    /// The recipe.
    pub recipe: Recipe,
    /// Text to tokens and back; none where rows of numbers are learnt from.
    pub tokenizer: Option<Tokenizer>,
    /// Both parts of the text as tokens.
    pub store: Store,
    /// The architecture.
    pub family: Box<dyn Family>,
    /// Explicit windows, if the recipe names them.
    pub replay: Option<Replay>,
    /// What stands beside the model in its step.
    pub beside: Beside,
    /// What hides tokens from a model that guesses them.
    pub hider: Option<Hider>,
    /// What makes sources and targets for an encoder-decoder.
    pub second: Option<Second>,
    /// Examples with labels, where those are learned from.
    pub lesson: Option<Lesson>,
    /// Pairs of stretches, where it is learnt whether one follows the other.
    pub sequel: Option<Sequel>,
    /// Conversations, where these are learnt from.
    pub chats: Option<Chats>,
    /// What a teacher has said that ran ahead.
    pub(super) ahead: Option<Cache>,
    /// Text that is streamed rather than held.
    streams: Option<Streams>,
    /// What a person should know of the text.
    pub told: Vec<String>,
    /// For the built-in corpus: the floor of its validation part in nats per token.
    pub floor: Option<f64>,
}

impl Job {
    /// Reads text, makes or loads the tokenizer, encodes, and builds the architecture.
    ///
    /// `tokenizer` is that of a run which is resumed; else the recipe says which.
    pub fn prepare(recipe: Recipe, tokenizer: Option<Tokenizer>) -> Result<Job> {
        if !recipe.tasks.is_empty() {
            return several::prepare(recipe, tokenizer);
        }
        if recipe.data.examples.is_some() {
            return lesson::prepare(recipe, tokenizer);
        }
        if sequel::following_of(&recipe).is_some() {
            return sequel::prepare(recipe, tokenizer);
        }
        let pairs = second::read_pairs(&recipe.data.pairs)?;
        let script = Script::read(&recipe)?;
        let streams = Streams::open(&recipe)?;
        let mut text = match (&script, &streams, pairs.is_empty()) {
            (Some(script), ..) => Texts::of(script.text()?),
            (None, Some(streams), _) if tokenizer.is_none() => Texts::of(streams.sample(&recipe)?),
            (None, Some(_), _) => Texts::of(String::new()),
            (None, None, true) => Texts::read(&recipe)?,
            (None, None, false) => {
                Texts::of(pairs.iter().map(|p| format!("{}\n{}\n", p.source, p.target)).collect())
            }
        };
        let tokenizer = match tokenizer {
            Some(tokenizer) => tokenizer,
            None => tokenizer_of(&recipe, &mut text)?,
        };
        let (mut store, examples) = match (&script, &streams, pairs.is_empty()) {
            // Conversations are cut into tokens once the model is known.
            (Some(_), ..) => (Store::empty(), vec![]),
            (None, Some(streams), _) => {
                let context = recipe.train.context.unwrap_or(USUAL_CONTEXT);
                (streams.store(&recipe, &tokenizer, context)?, vec![])
            }
            (None, None, true) => (text.store(&tokenizer)?, vec![]),
            (None, None, false) => second::store_of(&pairs, &tokenizer, recipe.data.validation.share())?,
        };
        let mut family = family_for(&recipe, &tokenizer)?;
        expect_texts(family.as_ref())?;
        if let recipe::Model::Load { dropout: Some(share), .. } = recipe.model {
            family.set_dropout(share as f32);
        }
        if tokenizer.vocabulary_size() > family.vocabulary() {
            let problem = format!(
                "the tokenizer has {} tokens, the model knows {}",
                tokenizer.vocabulary_size(),
                family.vocabulary()
            );
            return Err(Error::Mismatch { folder: "model".into(), problem });
        }
        let hider = hider_of(&recipe, &tokenizer, family.as_ref())?;
        let second = second::second_of(&recipe, &tokenizer, family.as_ref(), examples)?;
        let mut chats = None;
        if let Some(script) = &script {
            (store, chats) =
                Chats::new(script, &recipe, &tokenizer, family.as_ref()).map(|(s, c)| (s, Some(c)))?;
        }
        let replay = recipe.data.windows.as_deref().map(Replay::load).transpose()?;
        // The floor is that of a text read in order.
        let is_read = second.is_none() && chats.is_none();
        let floor = if is_read { floor_of(&recipe, text.text(), &tokenizer)? } else { None };
        let mut told = text.told;
        told.extend(streams.as_ref().map(Streams::describe));
        let beside = Beside::open(&recipe, family.as_ref(), Some(&tokenizer))?;
        let plain = Job::plain(recipe, Some(tokenizer), store, family, beside);
        Ok(Job { replay, hider, second, chats, streams, told, floor, ..plain })
    }

    /// A job that learns from examples.
    pub(super) fn of_lesson(
        recipe: Recipe,
        tokenizer: Option<Tokenizer>,
        store: Store,
        family: Box<dyn Family>,
        beside: Beside,
        lesson: Lesson,
    ) -> Job {
        let plain = Job::plain(recipe, tokenizer, store, family, beside);
        Job { lesson: Some(lesson), ..plain }
    }

    /// A job that learns what follows what.
    pub(super) fn of_sequel(
        recipe: Recipe,
        tokenizer: Tokenizer,
        store: Store,
        family: Box<dyn Family>,
        beside: Beside,
        sequel: Sequel,
    ) -> Job {
        let plain = Job::plain(recipe, Some(tokenizer), store, family, beside);
        Job { sequel: Some(sequel), ..plain }
    }

    /// A job of several tasks, which stand beside its model.
    pub(super) fn of_several(
        recipe: Recipe,
        tokenizer: Tokenizer,
        store: Store,
        family: Box<dyn Family>,
        beside: Beside,
    ) -> Job {
        Job::plain(recipe, Some(tokenizer), store, family, beside)
    }

    /// A job with nothing but what each has.
    fn plain(
        recipe: Recipe,
        tokenizer: Option<Tokenizer>,
        store: Store,
        family: Box<dyn Family>,
        beside: Beside,
    ) -> Job {
        Job {
            recipe,
            tokenizer,
            store,
            family,
            beside,
            replay: None,
            hider: None,
            second: None,
            lesson: None,
            sequel: None,
            chats: None,
            ahead: None,
            streams: None,
            told: vec![],
            floor: None,
        }
    }

    /// Sequences that go through the model at once, and their context.
    pub fn extent(&self) -> Extent {
        extent_of(&self.recipe, self.family.as_ref())
    }

    /// Tokens in a window of the text, of which one sequence is made.
    fn window(&self) -> usize {
        if self.lesson.is_some() || self.chats.is_some() || self.sequel.is_some() {
            return 1;
        }
        self.second.as_ref().map_or(self.extent().context, Second::window)
    }

    /// Tokens that a step learns from, on the mean: what fills up windows is none.
    pub(super) fn tokens_in_step(&self) -> f64 {
        if let Some(several) = &self.beside.several {
            return several.tokens_in_step();
        }
        let places = (self.extent().positions() * self.recipe.train.passes()) as f64;
        places * self.chats.as_ref().map_or(1.0, |chats| chats.filled() * chats.rows_each() as f64)
    }

    /// Numbers that a window may hold.
    pub(super) fn numbers(&self) -> usize {
        if let Some(lesson) = &self.lesson {
            return lesson.numbers();
        }
        if let Some(sequel) = &self.sequel {
            return sequel.numbers();
        }
        if let Some(chats) = &self.chats {
            return chats.numbers();
        }
        self.second.as_ref().map_or(self.family.vocabulary(), Second::numbers)
    }

    /// Finds out how much of a batch goes through the model at once, where the recipe leaves it open, and says so.
    pub fn settle(&mut self, target: &Target) -> Result<Option<String>> {
        micro::settle(&mut self.recipe, self.family.as_ref(), &self.beside, target)
    }

    /// The trainer, with the first weights in place.
    pub fn trainer(&self, target: &Target) -> Result<Trainer> {
        let Step { weights, mut settings, extent } =
            Step::new(&self.recipe, self.family.as_ref(), &self.beside)?;
        settings.choices = Some(self.recipe.run.folder.join("variants.json"));
        let build = Step::loss(&self.recipe, self.family.as_ref(), &self.beside, extent);
        let program = Program::new(target, &weights, &build, &settings)?;
        micro::refuse_over_budget(&self.recipe, program.memory())?;
        let mut trainer = Trainer::of(target, program, settings)?;
        let first = self.first_weights()?;
        trainer.set_weights(|name, _| Ok(first.get(name)?.clone()))?;
        trainer.rehearse_masks()?;
        Ok(trainer)
    }

    /// All that is trained, before step 0: loaded, or drawn from the seed.
    pub fn first_weights(&self) -> Result<Weights> {
        match (&self.beside.adapters, &self.beside.several) {
            (Some(adapters), _) => Ok(adapters.first.clone()),
            (None, Some(several)) => several.first_weights(&self.recipe),
            (None, None) => base_of(&self.recipe, self.family.as_ref()),
        }
    }

    /// Training windows from the start, a whole batch at a time.
    pub fn sampler(&self) -> Result<Sampler> {
        let tokens = self.store.training.tokens.clone();
        let (batch, context) = (self.recipe.train.batch, self.window());
        Ok(match &self.replay {
            Some(replay) => {
                let offsets = replay.training()?;
                if offsets.rows() != batch {
                    let problem =
                        format!("the windows come in rows of {}, train.batch is {batch}", offsets.rows());
                    return Err(Error::Mismatch { folder: "data.windows".into(), problem });
                }
                Sampler::replayed(tokens, context, offsets)?
            }
            None => {
                let (stretches, seed) = (&self.store.stretches, self.recipe.train.seed);
                match stretches.iter().any(|stretch| stretch.weight.is_some()) {
                    true => Sampler::mixed(tokens, stretches, context, batch, seed)?,
                    false => Sampler::shuffled(tokens, context, batch, seed)?,
                }
            }
        })
    }

    /// Training batches from the start, of text that is held or streamed.
    pub fn batches(&self) -> Result<Box<dyn Batches>> {
        Ok(match &self.streams {
            Some(streams) => {
                let tokenizer = self.tokenizer.as_ref().expect("streamed text has tokens");
                Box::new(streams.batches(&self.recipe, tokenizer, self.window())?)
            }
            None => Box::new(self.sampler()?),
        })
    }

    /// What a person should know in the end of rows that were passed over while text was streamed.
    pub(super) fn passed_over(&self) -> Option<String> {
        self.streams.as_ref()?.passed_over().told()
    }

    /// Whether the text is streamed: then what is held is only measured.
    pub fn is_streamed(&self) -> bool {
        self.streams.is_some()
    }

    /// Finds out whether there is enough to train on and to measure, before anything is made for it.
    pub fn check_data(&self) -> Result<()> {
        if let Some(several) = &self.beside.several {
            return several.check_data();
        }
        self.batches()?;
        self.evaluation().map(|_| ())
    }

    /// Evaluation batches of the training and the validation part, the same every time and however a batch is split.
    pub fn evaluation(&self) -> Result<[Vec<Batch>; 2]> {
        if self.beside.several.is_some() {
            return Ok([vec![], vec![]]);
        }
        if let Some(lesson) = &self.lesson {
            return Ok(lesson.evaluation(&self.recipe));
        }
        if let Some(sequel) = &self.sequel {
            return Ok(sequel.evaluation(&self.recipe));
        }
        let rows = self.extent().batch;
        let hide = |(number, batch): (usize, &Batch)| match &self.hider {
            Some(hider) => hider.hide(batch, &[EVALUATION_KEY, number as u32]),
            None => batch.clone(),
        };
        let split = |batches: Vec<Batch>| {
            batches
                .iter()
                .enumerate()
                .map(hide)
                .flat_map(|batch| batch.split(rows).collect::<Vec<_>>())
                .collect()
        };
        Ok(self.whole_evaluation()?.map(split))
    }

    fn whole_evaluation(&self) -> Result<[Vec<Batch>; 2]> {
        let (batch, context) = (self.recipe.train.batch, self.window());
        let count = self.recipe.train.evaluate.batches;
        let (training, validation) = (&self.store.training, &self.store.validation);
        if let Some(replay) = &self.replay {
            let part = |name, part, store: &Part, offsets| {
                windows::evaluation_replayed(name, part, &store.tokens, context, batch, offsets)
            };
            return Ok([
                part(replay::EVALUATION_TRAINING, "training", training, replay.evaluation_training()?)?,
                part(
                    replay::EVALUATION_VALIDATION,
                    "validation",
                    validation,
                    replay.evaluation_validation()?,
                )?,
            ]);
        }
        let of = |name, part: &Part| windows::evaluation(name, &part.tokens, context, batch, count);
        let validation = if validation.tokens.is_empty() { vec![] } else { of("validation", validation)? };
        Ok([of("training", training)?, validation])
    }
}

/// Weights of the model as the recipe has it before any step: loaded, or drawn from the seed.
pub(super) fn base_of(recipe: &Recipe, family: &dyn Family) -> Result<Weights> {
    let read = |folder: &Path, family: &dyn Family| match lesson::is_headed(recipe)
        || sequel::following_of(recipe).is_some()
    {
        true => {
            let anew = begins_anew(recipe, model::open(folder)?.as_ref());
            model::read_with_head(folder, family, recipe.train.seed, anew)
        }
        false => Weights::read(folder, family),
    };
    match &recipe.model {
        recipe::Model::Load { folder, keep_layers: Some(kept), .. } => {
            let whole = headed(recipe, model::open(folder)?)?;
            Ok(read(folder, whole.as_ref())?.keep_layers(kept))
        }
        recipe::Model::Load { folder, .. } => Ok(read(folder, family)?),
        recipe::Model::Build(_) => Ok(model::initial(&family.parameters(), recipe.train.seed)),
    }
}

/// True where the recipe puts a head on a model that has one of as many classes, but other ones.
pub(super) fn begins_anew(recipe: &Recipe, plain: &dyn Family) -> bool {
    let names = model::class_names(plain);
    let unnamed = names.iter().enumerate().all(|(id, name)| *name == format!("LABEL_{id}"));
    recipe.model.head().is_some_and(|head| !unnamed && head.labels != names)
}

pub(super) fn extent_of(recipe: &Recipe, family: &dyn Family) -> Extent {
    Extent { batch: recipe.train.rows(), context: recipe.train.context.unwrap_or(family.context()) }
}

/// Inputs of the loss for one batch; rows that are missing are filled with token 0 and targets that do not count.
pub fn feeds_of(batch: &Batch, extent: Extent) -> Feeds {
    let mut tokens = batch.tokens.clone();
    let mut targets = batch.targets.clone();
    tokens.resize(extent.positions(), 0);
    targets.resize(extent.positions(), IGNORED);
    Feeds::new()
        .with("tokens", Tensor::u32([extent.batch, extent.context], tokens))
        .with("targets", Tensor::i32([extent.positions()], targets))
}

/// The model of a recipe over a tokenizer. A new one that guesses hidden tokens knows one more, where the tokenizer has no mask, and a
/// RoBERTa one for padding; a new encoder-decoder as many more as it has tokens with a meaning of their own.
pub(super) fn family_for(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Box<dyn Family>> {
    let known = tokenizer.vocabulary_size();
    let family = family_of(recipe, known)?;
    let built = matches!(&recipe.model, recipe::Model::Build(_));
    let new = matches!(&recipe.model, recipe::Model::Build(shape) if shape.vocabulary.is_none());
    match family.interface().task {
        Task::NextSentence | Task::Pretraining if new => {
            family_of(recipe, known + sequel::tokens_beside(tokenizer))
        }
        Task::HiddenToken if new => {
            let padding = usize::from(family.interface().counted_from.is_some());
            family_of(recipe, known + usize::from(mask_of(tokenizer).is_none()) + padding)
        }
        Task::HiddenToken => match family.interface().counted_from.filter(|_| built) {
            // Positions would pass over that token wherever a text has it.
            Some(padding) if (padding as usize) < known => family_of(recipe, known + 1),
            _ => Ok(family),
        },
        Task::SecondText if new => {
            let objective = second::objective_of(recipe, family.as_ref());
            family_of(recipe, known + second::tokens_beside(objective.as_ref()))
        }
        _ => Ok(family),
    }
}

/// What hides tokens, where the model guesses them; refuses a model that is trained otherwise.
fn hider_of(recipe: &Recipe, tokenizer: &Tokenizer, family: &dyn Family) -> Result<Option<Hider>> {
    let masking = recipe.data.masking;
    match family.interface().task {
        Task::HiddenToken => {
            Ok(Some(Hider::new(masking.unwrap_or_default(), tokenizer, family.vocabulary())?))
        }
        Task::NextToken | Task::SecondText if masking.is_some() => {
            let problem = "data.masking is for models that guess hidden tokens".to_string();
            Err(Error::Mismatch { folder: "recipe".into(), problem })
        }
        Task::NextToken | Task::SecondText => Ok(None),
        other => {
            let expected = "one that predicts tokens of a text".to_string();
            Err(model::Error::Task { expected, got: other.describe() }.into())
        }
    }
}

pub(super) fn tokenizer_of(recipe: &Recipe, text: &mut Texts) -> Result<Tokenizer> {
    Ok(match (&recipe.data.tokenizer, &recipe.model) {
        (recipe::Tokenizer::Char, _) => Tokenizer::characters(&text.alphabet()),
        (recipe::Tokenizer::Bpe(vocabulary), _) => text.byte_pair(*vocabulary)?,
        (recipe::Tokenizer::File(path), _) => Tokenizer::load(path)?,
        (recipe::Tokenizer::Model, recipe::Model::Load { folder, .. }) => Tokenizer::load(folder)?,
        (recipe::Tokenizer::Model, recipe::Model::Build(_)) => {
            let problem = "data.tokenizer = \"model\" needs [model] load".to_string();
            return Err(Error::Mismatch { folder: "recipe".into(), problem });
        }
    })
}

/// A family with what the recipe puts on it.
fn headed(recipe: &Recipe, plain: Box<dyn Family>) -> Result<Box<dyn Family>> {
    match sequel::following_of(recipe) {
        Some(_) => sequel::headed(plain),
        None => lesson::headed(recipe, plain),
    }
}

/// The architecture of a recipe's model, over a tokenizer of so many tokens.
pub fn family_of(recipe: &Recipe, vocabulary: usize) -> Result<Box<dyn Family>> {
    headed(recipe, plain_family(recipe, vocabulary)?)
}

/// The same with the head that it has, or that a new one usually has.
pub(super) fn plain_family(recipe: &Recipe, vocabulary: usize) -> Result<Box<dyn Family>> {
    match &recipe.model {
        recipe::Model::Load { folder, .. } if is_adapter(folder) => Err(Error::Folder {
            path: folder.display().to_string(),
            problem: "holds adapters, and no whole model".into(),
            hint: "`kiln adapter merge` makes one of it; with adapter.load its adapter is trained on",
        }),
        recipe::Model::Load { folder, keep_layers: Some(kept), .. } => {
            Ok(model::keep_layers(model::open(folder)?.as_ref(), kept)?)
        }
        recipe::Model::Load { folder, .. } => Ok(model::open(folder)?),
        recipe::Model::Build(shape) => {
            if let Some(got) = shape.vocabulary.filter(|&given| given < vocabulary) {
                let expected = format!("at least {vocabulary}, the tokens of the tokenizer");
                let (place, key) = ("the recipe".into(), "vocabulary".into());
                return Err(model::Error::Setting { place, key, expected, got: got.to_string() }.into());
            }
            let design = Design {
                layers: shape.layers,
                heads: shape.heads,
                kv_heads: shape.kv_heads,
                head_size: shape.head_size,
                width: shape.width,
                hidden: Some(shape.hidden),
                context: shape.context,
                vocabulary: shape.vocabulary.unwrap_or(vocabulary),
                activation: activation_of(shape)?,
                norm_epsilon: shape.norm_epsilon as f32,
                dropout: shape.dropout as f32,
                bias: shape.bias,
                tie: shape.tie,
                rope_theta: shape.rope_theta,
                window: shape.window,
            };
            Ok(model::build(&shape.family, &design)?)
        }
    }
}

/// Refuses a model that reads rows of numbers.
pub(super) fn expect_texts(family: &dyn Family) -> Result<()> {
    match family.name() {
        "mlp" => {
            let problem =
                "family = \"mlp\" learns from rows of numbers\n  hint: [data] rows = [\"table.csv\"]";
            Err(Error::Mismatch { folder: "recipe".into(), problem: problem.into() })
        }
        _ => Ok(()),
    }
}

fn activation_of(shape: &recipe::Shape) -> Result<Activation> {
    Activation::named(&shape.activation).ok_or_else(|| {
        let problem =
            format!("model.activation is `{}`, expected one of {}", shape.activation, Activation::names());
        Error::Mismatch { folder: "recipe".into(), problem }
    })
}

/// What the grammar's own entropy costs on the validation part.
fn floor_of(recipe: &Recipe, text: &str, tokenizer: &Tokenizer) -> Result<Option<f64>> {
    if !recipe.data.text.is_empty() {
        return Ok(None);
    }
    let (_, validation) = split(text, recipe.data.validation.share())?;
    Ok(corpus::floor(validation, tokenizer)?.map(|floor| floor.nats_per_token()))
}

/// The tokenizer of a run or model folder, if it has one.
pub fn tokenizer_in(folder: &Path) -> Result<Option<Tokenizer>> {
    let path = folder.join(tokenizer::FILE_NAME);
    if path.exists() { Ok(Some(Tokenizer::load(&path)?)) } else { Ok(None) }
}
