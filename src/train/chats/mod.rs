//! What a model that continues texts learns of conversations: answers, with what stands before them as their context.
//!
//! Batches come as for any model, as windows of the text. Here the "text" is the list of the windows' numbers, and a window of it one
//! number: each epoch takes every window once, in another order, and a run that goes on reads what it would have read.

pub mod preferences;
mod script;

pub use script::Script;

use super::recipe::{Dpo, Recipe};
use super::{Error, Result};
use crate::data::chats::{Example, Laid, first_fit};
use crate::data::groups::sorted_positions;
use crate::data::store::{Part, Store};
use crate::data::tokenizer::Tokenizer;
use crate::data::windows::{Batch, IGNORED};
use crate::graph::{Feeds, Graph};
use crate::model::{self, Extent, Family, Mode, Reading};
use crate::ops::Value;
use crate::ops::pointwise::PointwiseEmit;
use crate::tensor::{Tensor, Type};
use std::ops::Range;
use std::sync::OnceLock;

/// Input F32 []: what the loss of a pass counts in that of its step, as it has more or fewer answers than others.
const WEIGHT: &str = "weight";

/// Conversations as windows.
#[derive(Clone, Debug)]
pub struct Chats {
    examples: Vec<Example>,
    /// Examples of each window.
    windows: Vec<Vec<usize>>,
    /// Places in a window.
    context: usize,
    vocabulary: usize,
    /// Positions that the model knows, where examples share windows.
    positions: Option<usize>,
    /// Examples of which windows were made, for training and for validation.
    counts: [usize; 2],
    /// Windows that are for training; the others are for validation.
    training: usize,
    /// What became of the others.
    told: String,
    /// Lines that were passed over.
    bad: Option<String>,
    files: Vec<(String, Vec<u8>)>,
    /// How preferences are learnt, where windows are pairs of answers.
    dpo: Option<Dpo>,
    /// By how much the reference prefers the better answer of each pair.
    reference: OnceLock<Vec<f32>>,
}

/// What a pass over conversations reads. Examples that have windows of their own stand at the beginning, so that nothing needs to be
/// hidden from those who look back alone.
pub fn reading_of(recipe: &Recipe, family: &dyn Family, extent: Extent, mode: Mode) -> Reading {
    let rows = if recipe.dpo.is_some() { 2 * extent.batch } else { extent.batch };
    let extent = Extent { batch: rows, ..extent };
    Reading { packed: packs(recipe, family), ..Reading::new(extent, mode) }
}

/// Whether several examples share a window.
fn packs(recipe: &Recipe, family: &dyn Family) -> bool {
    let wanted = recipe.data.chats.as_ref().and_then(|chats| chats.packing);
    recipe.dpo.is_none() && wanted.unwrap_or(family.interface().packs)
}

/// What is learnt by: the preferences of a recipe, or the mean cross-entropy of answers, in nats, with `targets: I32 [B T]`. In training times the pass's weight, so that
/// tokens of all passes of a step count alike.
pub fn loss(
    family: &dyn Family,
    graph: &mut Graph,
    reading: &Reading,
    smoothing: f32,
    dpo: Option<&Dpo>,
) -> Result<Value> {
    if let Some(dpo) = dpo {
        return preferences::loss(family, graph, reading, dpo);
    }
    let forward = family.read(graph, reading)?;
    if reading.mode != Mode::Train {
        return Ok(model::loss(graph, forward.logits, 0.0)?);
    }
    let mean = model::loss(graph, forward.logits, smoothing)?;
    let weight = graph.input(WEIGHT, Type::f32([]));
    Ok(graph.within("loss", |graph| graph.mul(mean, weight))?)
}

/// Inputs of the loss for windows, over so many rows; `positions` are those that a model knows which reads texts side by side.
pub fn feeds_of(laid: &Laid, rows: usize, vocabulary: usize, positions: Option<usize>) -> Feeds {
    let count = rows * laid.context;
    let shape = [rows, laid.context];
    let filled = |numbers: &[u32]| {
        let mut numbers = numbers.to_vec();
        numbers.resize(count, 0);
        numbers
    };
    let mut feeds = Feeds::new();
    let mut sorted = |name: &str, prefix: &str, numbers: Vec<u32>, rows: usize| {
        let groups = sorted_positions(&numbers, rows);
        feeds.set(format!("{prefix}order"), Tensor::u32([count], groups.order));
        feeds.set(format!("{prefix}starts"), Tensor::u32([rows + 1], groups.starts));
        feeds.set(name, Tensor::u32(shape, numbers));
    };
    sorted("tokens", "", filled(&laid.tokens), vocabulary);
    if let Some(positions) = positions {
        sorted("places", "places.", filled(&laid.places), positions);
        feeds.set("segments", Tensor::u32(shape, filled(&laid.segments)));
    }
    let mut targets = laid.targets.clone();
    targets.resize(count, IGNORED);
    feeds.with("targets", Tensor::i32([count], targets)).with(WEIGHT, Tensor::scalar(1.0))
}

/// Graphs that tell how likely answers are, where a recipe learns preferences.
pub fn writers(recipe: &Recipe, family: &dyn Family, extent: Extent) -> Result<Vec<Graph>> {
    recipe.dpo.as_ref().map_or(Ok(vec![]), |_| Ok(vec![preferences::teller(family, extent)?]))
}

impl Chats {
    /// Lays the examples of a script out in windows; the last `validation` share of them apart. The parts of the store hold numbers of
    /// windows in the place of tokens.
    pub(super) fn new(
        script: &Script,
        recipe: &Recipe,
        tokenizer: &Tokenizer,
        family: &dyn Family,
    ) -> Result<(Store, Chats)> {
        family.interface().expect_causal()?;
        let context = recipe.train.context.unwrap_or(family.context());
        let found = script.examples(tokenizer, family, context)?;
        // Of preferences a window has two examples, each in a row of its own.
        let each = if recipe.dpo.is_some() { 2 } else { 1 };
        let count = found.examples.len() / each;
        let first =
            ((count as f64 * (1.0 - recipe.data.validation.share())).round() as usize).clamp(1, count);
        let packed = packs(recipe, family);
        if packed && !family.interface().packs {
            let problem =
                format!("{} cannot keep texts apart in one window: data.packing = false", family.name());
            return Err(Error::Mismatch { folder: "recipe".into(), problem });
        }
        let pack = |range: Range<usize>| -> Vec<Vec<usize>> {
            if !packed {
                return range.map(|at| (at * each..(at + 1) * each).collect()).collect();
            }
            let lengths: Vec<usize> = found.examples[range.clone()].iter().map(Example::places).collect();
            let packed = first_fit(&lengths, context, recipe.train.seed);
            packed.into_iter().map(|window| window.into_iter().map(|at| at + range.start).collect()).collect()
        };
        let mut windows = pack(0..first);
        let training = windows.len();
        windows.extend(pack(first..count));
        let part = |range: Range<usize>| {
            // Windows of the sampler end before the last number, as there must be a next one.
            let numbers = if range.is_empty() { range } else { range.start..range.end + 1 };
            Part {
                tokens: numbers.map(|number| number as u32).collect::<Vec<u32>>().into(),
                characters: 0,
                bytes: 0,
            }
        };
        let validation = part(training..windows.len());
        let store = Store { training: part(0..training), validation, stretches: vec![] };
        let chats = Chats {
            examples: found.examples,
            windows,
            context,
            vocabulary: family.vocabulary(),
            positions: packed.then(|| family.context()),
            counts: [first, count - first],
            training,
            told: found.told,
            bad: script.bad().map(str::to_string),
            files: script.files()?,
            dpo: recipe.dpo.clone(),
            reference: OnceLock::new(),
        };
        Ok((store, chats))
    }

    /// Numbers that a window of the sampler may hold.
    pub fn numbers(&self) -> usize {
        self.windows.len() + 1
    }

    /// Share of the places of training windows that are filled.
    pub fn filled(&self) -> f64 {
        let windows = &self.windows[..self.training];
        let places: usize = windows.iter().flatten().map(|&example| self.examples[example].places()).sum();
        places as f64 / (windows.len() * self.rows_each() * self.context) as f64
    }

    /// One line on what there is.
    pub fn describe(&self) -> String {
        let [training, validation] = self.counts;
        let what = if self.dpo.is_some() { "pairs of answers" } else { "examples" };
        let filled = 100.0 * self.filled();
        let windows = format!("{} windows of {}, {filled:.0} % filled", self.training, self.context);
        format!("{training} training and {validation} validation {what}{}, in {windows}", self.told)
    }

    /// Lines that were passed over, in words.
    pub fn bad(&self) -> Option<&str> {
        self.bad.as_deref()
    }

    /// What the tokenizer's folder holds beside `tokenizer.json`.
    pub fn files(&self) -> &[(String, Vec<u8>)] {
        &self.files
    }

    /// Rows for each number.
    pub fn rows_each(&self) -> usize {
        if self.dpo.is_some() { 2 } else { 1 }
    }

    /// The windows of a batch of numbers.
    fn laid(&self, numbers: &Batch) -> Laid {
        let examples = |&number: &u32| self.windows[number as usize].iter().map(|&at| &self.examples[at]);
        match self.dpo {
            Some(_) => {
                let rows = numbers.tokens.iter().flat_map(examples);
                Laid::of(rows.map(|example| vec![example]), self.context)
            }
            None => Laid::of(numbers.tokens.iter().map(|number| examples(number).collect()), self.context),
        }
    }

    /// What a pass reads of a batch of numbers, over so many; those that are missing are empty, and do not count.
    pub fn feeds(&self, numbers: &Batch, count: usize) -> Feeds {
        let (laid, rows) = (self.laid(numbers), count * self.rows_each());
        let mut feeds = feeds_of(&laid, rows, self.vocabulary, self.positions);
        if let Some(dpo) = &self.dpo {
            preferences::feed(&mut feeds, &laid, rows, dpo);
            if let Some(reference) = self.reference_of(&numbers.tokens, count) {
                feeds.set(preferences::REFERENCE, reference);
            }
        }
        feeds
    }

    /// How much counts in a batch of numbers: pairs, or tokens that are learnt.
    pub fn counted(&self, numbers: &Batch) -> usize {
        if self.dpo.is_some() { numbers.tokens.len() } else { self.laid(numbers).counted() }
    }

    /// Gives each pass of a step the weight that its answers have among all of them.
    pub fn weigh(&self, passes: &mut [Feeds]) {
        if self.dpo.is_some() {
            return;
        }
        let counted = |feeds: &Feeds| {
            let targets = feeds.get("targets").map_or(&[][..], Tensor::as_i32);
            targets.iter().filter(|&&target| target != IGNORED).count()
        };
        let counts: Vec<usize> = passes.iter().map(counted).collect();
        let mean = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
        for (feeds, count) in passes.iter_mut().zip(counts) {
            feeds.set(WEIGHT, Tensor::scalar((count as f64 / mean) as f32));
        }
    }
}
