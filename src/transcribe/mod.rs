//! What was said in a sound, written down: what models do that hear.
//!
//! Two plans share the weights. One hears the sound, once, and leaves the keys and values that the decoder attends to; the other
//! reads one written token at a time and keeps its own keys and values in caches. What is written first, such as the language, and
//! what never is, stands in the model's `generation_config.json`.

mod rules;

pub use rules::{Rules, Task};

use crate::data::tokenizer::Tokenizer;
use crate::deploy::{self, Cache, Deployment};
use crate::exchange::{self, Opened};
use crate::model::{self, Extent, Family, Mode, Reading, Sound};
use crate::plan::{Engine, Plan};
use crate::tensor::Tensor;
use crate::train::{self, Target};
use std::path::Path;

/// What can go wrong while a sound is written down.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device or the run.
    #[error(transparent)]
    Run(#[from] train::Error),
    /// The model.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The model on its device.
    #[error(transparent)]
    Deploy(#[from] deploy::Error),
    /// The model's file.
    #[error(transparent)]
    Exchange(#[from] exchange::Error),
    /// Something that the model's rules have no place for.
    #[error("{place}: {what} is {got}, expected {expected}")]
    Rule {
        /// Where the rules stand.
        place: String,
        /// What was asked for.
        what: &'static str,
        /// What there is.
        expected: String,
        /// What it is.
        got: String,
    },
}

/// Result of writing down.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Plans in the order in which the engine numbers them.
const HEAR: usize = 0;
const WRITE: usize = 1;

/// What was written of a sound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// What stands before the first word: the start, and where the model knows several the language and what is done.
    pub opening: Vec<u32>,
    /// The tokens of what was said, without the end.
    pub ids: Vec<u32>,
}

/// A model that hears, on a device.
pub struct Transcriber {
    engine: Box<dyn Engine>,
    /// Names of the feeds of each plan.
    feeds: Vec<Vec<String>>,
    sound: Sound,
    rules: Rules,
    /// Most tokens, the opening among them.
    most: usize,
    tokenizer: Option<Tokenizer>,
    device: String,
}

impl Transcriber {
    /// Opens a Hugging Face folder, with its tokenizer if it has one; keys and values are kept as `cache` says.
    pub fn open(folder: &Path, target: &Target, cache: Cache) -> Result<Transcriber> {
        let opened = exchange::open(folder)?;
        let rules = Rules::beside(folder, opened.family.as_ref())?;
        Transcriber::with(opened, rules, target, cache)
    }

    /// One for a model that is open.
    pub fn with(opened: Opened, rules: Rules, target: &Target, cache: Cache) -> Result<Transcriber> {
        let Opened { family, weights, tokenizer } = opened;
        let family = family.as_ref();
        let sound = sound_of(family)?;
        let deployment = Deployment::new(&weights).within(target).with_cache(cache);
        let graphs = graphs(family, &deployment, sound)?;
        let (engine, plans) = deployment.engine(target, &graphs)?;
        let names = |plan: &Plan| plan.feeds.iter().map(|feed| feed.name.clone()).collect();
        let feeds = plans.iter().map(names).collect();
        let (most, device) = (family.context(), target.describe());
        Ok(Transcriber { engine, feeds, sound, rules, most, tokenizer, device })
    }

    /// Device and driver in words.
    pub fn describe(&self) -> &str {
        &self.device
    }

    /// The tokenizer, if the folder had one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// What it hears at once.
    pub fn sound(&self) -> Sound {
        self.sound
    }

    /// Refuses a language or a task that the model has no token for.
    pub fn check(&self, language: Option<&str>, task: Task) -> Result<()> {
        self.rules.check(language, task)
    }

    /// The likeliest words, one after the other, of features `[bands, frames]`. Without a language that is found which the model thinks
    /// likeliest. At most so many tokens are written.
    pub fn write(
        &mut self,
        features: Vec<f32>,
        language: Option<&str>,
        task: Task,
        most: Option<usize>,
    ) -> Result<Written> {
        self.check(language, task)?;
        let Sound { bands, frames, .. } = self.sound;
        if features.len() != bands * frames {
            let (expected, got) = (format!("{bands} bands of {frames} frames"), features.len().to_string());
            return Err(model::Error::Input { name: "features".into(), expected, got }.into());
        }
        let features = Tensor::f32([1, bands, frames], features);
        self.run(HEAR, &[("features", &features), ("seat", &Tensor::u32([1, 2], vec![0, 0]))])?;
        let mut opening = vec![self.sound.start[0]];
        let mut scores = self.scores(opening[0], 0)?;
        for token in self.rules.opening(language, task, &scores) {
            // A place that is left open is the model's own choice.
            opening.push(token.unwrap_or_else(|| self.rules.choose(&scores, false)));
            scores = self.scores(opening[opening.len() - 1], opening.len() - 1)?;
        }
        let room = self.most.saturating_sub(opening.len()).min(most.unwrap_or(usize::MAX));
        let mut ids = vec![];
        while ids.len() < room {
            let next = self.rules.choose(&scores, ids.is_empty());
            if self.rules.is_end(next) {
                break;
            }
            ids.push(next);
            if ids.len() < room {
                scores = self.scores(next, opening.len() + ids.len() - 1)?;
            }
        }
        Ok(Written { opening, ids })
    }

    /// Scores of the token behind one that stands at a position.
    fn scores(&mut self, token: u32, position: usize) -> Result<Vec<f32>> {
        if position >= self.most {
            return Err(model::Error::Context { limit: self.most, got: position + 1 }.into());
        }
        let at = position as u32;
        let given = [
            ("target_tokens", &Tensor::u32([1, 1], vec![token])),
            ("positions", &Tensor::u32([1, 1], vec![at])),
            ("position", &Tensor::u32([1], vec![at])),
        ];
        Ok(self.run(WRITE, &given)?[0].to_f64().iter().map(|&x| x as f32).collect())
    }

    fn run(&mut self, plan: usize, given: &[(&str, &Tensor)]) -> Result<Vec<Tensor>> {
        let feed = |name: &String| {
            let found = given.iter().find(|(own, _)| own == name);
            found.expect("the graphs declare these inputs alone").1
        };
        let feeds: Vec<&Tensor> = self.feeds[plan].iter().map(feed).collect();
        Ok(self.engine.run(plan, &feeds).map_err(train::Error::from)?)
    }
}

/// What a model hears; others are refused.
fn sound_of(family: &dyn Family) -> Result<Sound> {
    let interface = family.interface();
    interface.sound.ok_or_else(|| {
        let expected = model::Task::Transcript.describe().into();
        model::Error::Task { expected, got: interface.task.describe() }.into()
    })
}

fn graphs(
    family: &dyn Family,
    deployment: &Deployment,
    sound: Sound,
) -> deploy::Result<[crate::graph::Graph; 2]> {
    let extent = Extent { batch: 1, context: sound.positions() };
    let whole = Reading { heard: true, target: 1, ..Reading::new(extent, Mode::Evaluate) };
    let hear = deployment.remembering(family, &whole, 1)?;
    let mode = Mode::Continue { capacity: family.context() };
    let write = deployment.graph_of(family, &Reading { mode, ..whole }, |graph, forward| {
        graph.output("logits", forward.logits);
        Ok(())
    })?;
    Ok([hear, write])
}
