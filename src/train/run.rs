//! The loop: batches in, steps submitted, numbers collected, evaluated, saved; interrupted or resumed without a trace.

use super::checkpoint::{Loaded, Snapshot, Store as Checkpoints, Stored};
use super::job::{Job, feeds_of, tokenizer_in};
use super::metrics::{Evaluation, Metrics, Resume, Step};
use super::profile;
use super::progress::{Progress, Status};
use super::recipe::{FILE_NAME, Recipe};
use super::schedule::PlateauState;
use super::trainer::{Outcome, Trainer};
use super::{Error, Result, Target};
use crate::data::prefetch::{Prefetch, Prepared};
use crate::data::windows::{Batch, Cursor};
use crate::graph::Feeds;
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Batches prepared ahead.
const AHEAD: usize = 4;

/// What a checkpoint remembers beside weights and moments.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    cursor: Cursor,
    plateau: PlateauState,
    best_loss: Option<f64>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Steps done in all.
    pub steps: u64,
    /// Loss of the last step.
    pub loss: f64,
    /// Last validation loss.
    pub validation_loss: Option<f64>,
    /// True if it was stopped before its last step.
    pub interrupted: bool,
    /// The floor of the built-in corpus, in nats per token.
    pub floor: Option<f64>,
    /// Median ms of a step.
    pub step_ms: f64,
    /// Tokens trained on per second of stepping.
    pub tokens_per_second: f64,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// Bytes of device memory.
    pub memory_bytes: u64,
}

/// Trains as the recipe says, from the start or from the newest checkpoint of its folder.
///
/// `stop` is looked at after every step: when it turns true the run saves and returns. `say` gets what a person should
/// read before the first step.
pub fn run(recipe: Recipe, resume: bool, stop: &AtomicBool, say: &mut dyn FnMut(&str)) -> Result<Summary> {
    let target = Target::open_or_host(&recipe.run.device, say)?;
    let folder = recipe.run.folder.clone();
    let checkpoints = Checkpoints::open(&folder, recipe.run.save.keep)?;
    let loaded = if resume { checkpoints.load_latest()? } else { refuse_used(&checkpoints, &folder)? };
    let tokenizer = if resume { tokenizer_in(&folder)? } else { None };
    let job = Job::prepare(recipe, tokenizer)?;
    let mut trainer = job.trainer(&target)?;
    describe(&job, &trainer, &target, say);
    let mut state = State::default();
    if let Some(loaded) = &loaded {
        for rejected in &loaded.rejected {
            say(&format!("warning: damaged checkpoint passed over: {rejected}"));
        }
        state = restore(&mut trainer, loaded)?;
        say(&format!("resuming after step {} from {}", loaded.step, loaded.folder.display()));
    }
    job.recipe.save(&folder)?;
    job.tokenizer.save(&folder)?;
    let metrics = match &loaded {
        Some(loaded) => Metrics::resume(&folder, Resume { step: loaded.step, evaluation: loaded.step + 1 })?,
        None => Metrics::create(&folder)?,
    };
    let mut sampler = job.sampler()?;
    sampler.seek(state.cursor)?;
    let steps = job.recipe.train.steps;
    let progress = Progress::new(trainer.steps_done(), steps, job.recipe.run.log.every.max(steps / 50));
    let batches = Prefetch::start(sampler, job.family.vocabulary(), AHEAD);
    let evaluation = job.evaluation()?;
    let mut lane = Lane {
        checkpoints,
        metrics,
        progress,
        batches,
        evaluation,
        state,
        cursors: VecDeque::new(),
        trainer,
        last: None,
        validation_loss: None,
        saved: loaded.map(|l| l.folder),
        times_ms: vec![],
        job,
    };
    lane.go(stop)
}

/// A run folder that already holds a run is not written over.
fn refuse_used(checkpoints: &Checkpoints, folder: &Path) -> Result<Option<Loaded>> {
    if checkpoints.steps()?.is_empty() {
        return Ok(None);
    }
    Err(Error::Folder {
        path: folder.display().to_string(),
        problem: "holds the checkpoints of an earlier run".into(),
        hint: "continue it with --resume, choose another run.folder, or remove the folder",
    })
}

fn describe(job: &Job, trainer: &Trainer, target: &Target, say: &mut dyn FnMut(&str)) {
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    say(&format!("device   {}", target.describe()));
    say(&format!("model    {}", job.family.describe()));
    say(&format!(
        "data     {} training and {} validation tokens, {} tokenizer with {} tokens",
        job.store.training.tokens.len(),
        job.store.validation.tokens.len(),
        job.tokenizer.kind(),
        job.tokenizer.vocabulary_size()
    ));
    let (m, held) = (trainer.memory(), trainer.held_bytes());
    let fits = target.memory_bytes().map_or(String::new(), |have| format!(" of {:.0}", mib(have)));
    say(&format!(
        "memory   {:.1}{fits} MiB: weights {:.1}, gradients {:.1}, optimiser {:.1}, activations and inputs {:.1}, transfer {:.1}",
        mib(held),
        mib(m.parameters),
        mib(m.gradients),
        mib(m.moments),
        mib(m.run),
        mib(held.saturating_sub(m.total()))
    ));
    for report in target.told() {
        say(&format!("kernels  {report}"));
    }
    if let Some(floor) = job.floor {
        say(&format!(
            "floor    {floor:.4} nats per token: the entropy of the built-in grammar on the validation part"
        ));
    }
}

fn restore(trainer: &mut Trainer, loaded: &Loaded) -> Result<State> {
    let folder = loaded.folder.display().to_string();
    let wrong = |problem: String| Error::Mismatch { folder: folder.clone(), problem };
    let tensors = |list: &[(String, Stored<'static>)]| -> Result<HashMap<String, Tensor>> {
        let read = |(name, stored): &(String, Stored<'static>)| {
            let tensor =
                stored.to_tensor().ok_or_else(|| wrong(format!("`{name}` is neither f32 nor u32")))?;
            Ok((name.clone(), tensor))
        };
        list.iter().map(read).collect()
    };
    let (weights, moments) = (tensors(&loaded.model)?, tensors(&loaded.optimizer)?);
    trainer.set_weights(|name, _: &Shape| {
        weights.get(name).cloned().ok_or_else(|| wrong(format!("`{name}` is missing")))
    })?;
    trainer.restore(loaded.step, &moments)?;
    serde_json::from_value(loaded.state.clone()).map_err(|e| wrong(format!("state is unreadable: {e}")))
}

/// Everything that moves while a run goes on.
struct Lane {
    job: Job,
    trainer: Trainer,
    checkpoints: Checkpoints,
    metrics: Metrics,
    progress: Progress,
    batches: Prefetch,
    /// Batches of the training and the validation part.
    evaluation: [Vec<Batch>; 2],
    state: State,
    /// Where the data stood after each step under way.
    cursors: VecDeque<(Cursor, f64)>,
    last: Option<Outcome>,
    validation_loss: Option<f64>,
    saved: Option<PathBuf>,
    times_ms: Vec<f64>,
}

impl Lane {
    fn go(&mut self, stop: &AtomicBool) -> Result<Summary> {
        let train = self.job.recipe.train.clone();
        let save_every = self.job.recipe.run.save.every;
        if self.trainer.steps_done() == 0 {
            self.evaluate()?;
        }
        let mut interrupted = false;
        while self.trainer.steps_done() < train.steps {
            interrupted = stop.load(Ordering::Relaxed);
            if interrupted {
                break;
            }
            self.submit()?;
            self.report(false)?;
            let done = self.trainer.steps_done();
            let last = done == train.steps;
            let due = |every: u64| every > 0 && done.is_multiple_of(every);
            let evaluated = due(train.evaluate.every) || last;
            if evaluated {
                self.evaluate()?;
            }
            if due(save_every) || last {
                self.save(evaluated)?;
            }
        }
        self.report(true)?;
        if interrupted {
            self.save(false)?;
        }
        if self.job.recipe.run.profile && !interrupted {
            self.profile()?;
        }
        self.progress.finish();
        Ok(self.summary(interrupted))
    }

    /// Times one more step, which no checkpoint sees, and leaves table and trace in the run folder.
    fn profile(&mut self) -> Result<()> {
        let extent = self.job.extent();
        let batches = (0..self.job.recipe.train.accumulate)
            .map(|_| Ok(training_feeds(self.batches.next_batch()?, extent)))
            .collect::<Result<Vec<_>>>()?;
        let rows = self.trainer.profile(batches, 0.0)?;
        let (table, folder) = (profile::table(&rows), &self.job.recipe.run.folder);
        let trace = profile::trace(&rows, &self.trainer.describe()).to_string();
        for (name, text) in [(profile::TABLE_NAME, &table), (profile::TRACE_NAME, &trace)] {
            let path = folder.join(name);
            let failed = |source| super::recipe::Error::File { path: path.clone(), source };
            std::fs::write(&path, text).map_err(failed)?;
        }
        let most: Vec<&str> = table.lines().take(15).collect();
        self.progress.println(&most.join("\n"));
        self.progress.println(&format!("profile  {}", folder.join(profile::TRACE_NAME).display()));
        Ok(())
    }

    /// Draws the step's batches and submits it.
    fn submit(&mut self) -> Result<()> {
        let (accumulate, extent) = (self.job.recipe.train.accumulate, self.job.extent());
        let mut feeds = vec![];
        let mut cursor = self.state.cursor;
        for _ in 0..accumulate {
            let prepared = self.batches.next_batch()?;
            cursor = prepared.cursor;
            feeds.push(training_feeds(prepared, extent));
        }
        let rate = self.job.recipe.train.learning_rate.rate(self.trainer.steps_done(), &self.state.plateau);
        self.trainer.submit(feeds, rate)?;
        self.cursors.push_back((cursor, rate));
        Ok(())
    }

    /// Reports the steps that have finished; with `wait` all that are under way.
    ///
    /// Several may be seen to finish at once: each then took its share of the time since the one before.
    fn report(&mut self, wait: bool) -> Result<()> {
        let mut finished = vec![];
        let failure = loop {
            match self.trainer.collect(wait) {
                Ok(Some(outcome)) => finished.push(outcome),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        let share_ms = finished.iter().map(|o| o.elapsed_ms).sum::<f64>() / finished.len() as f64;
        for outcome in finished {
            self.report_one(Outcome { elapsed_ms: share_ms, ..outcome })?;
        }
        failure.map_or(Ok(()), |error| Err(self.with_checkpoint(error)))
    }

    fn report_one(&mut self, outcome: Outcome) -> Result<()> {
        let (cursor, rate) = self.cursors.pop_front().expect("one for each step under way");
        self.state.cursor = cursor;
        let tokens = self.job.extent().positions() * self.job.recipe.train.accumulate;
        let tokens_per_second = tokens as f64 / (outcome.elapsed_ms / 1e3);
        self.times_ms.push(outcome.elapsed_ms);
        if outcome.step.is_multiple_of(self.job.recipe.run.log.every.max(1)) {
            self.metrics.step(&Step {
                step: outcome.step,
                loss: outcome.loss,
                grad_norm: outcome.gradient_norm,
                lr: rate,
                tokens_per_s: tokens_per_second,
                ms: outcome.elapsed_ms,
                loss_scale: outcome.loss_scale,
                skipped: outcome.skipped,
            })?;
        }
        if let (true, Some(scale)) = (outcome.skipped, outcome.loss_scale) {
            let step = outcome.step;
            self.progress
                .println(&format!("step {step}: gradients overflowed, skipped; loss scale now {scale}"));
        }
        self.progress.update(&Status {
            step: outcome.step + 1,
            loss: outcome.loss,
            validation_loss: self.validation_loss,
            learning_rate: rate,
            tokens_per_second,
            step_ms: outcome.elapsed_ms,
            memory_bytes: Some(self.trainer.held_bytes()),
        });
        self.last = Some(outcome);
        Ok(())
    }

    fn with_checkpoint(&self, error: Error) -> Error {
        match error {
            Error::NotFinite { step, what, culprit, .. } => {
                let checkpoint = self.saved.as_ref().map_or("none yet".into(), |p| p.display().to_string());
                Error::NotFinite { step, what, culprit, checkpoint }
            }
            other => other,
        }
    }

    /// Measures both parts, tells metrics, progress and the schedule.
    fn evaluate(&mut self) -> Result<()> {
        self.report(true)?;
        if self.evaluation.iter().any(Vec::is_empty) {
            return Ok(());
        }
        let extent = self.job.extent();
        let mut mean = |batches: &[Batch]| {
            self.trainer.evaluate(batches.iter().map(|b| (feeds_of(b, extent), b.counted() as f64)))
        };
        let (train_loss, val_loss) = (mean(&self.evaluation[0])?, mean(&self.evaluation[1])?);
        let step = self.trainer.steps_done();
        self.metrics.evaluation(&Evaluation { step, train_loss, val_loss })?;
        let distance = self
            .job
            .floor
            .map_or(String::new(), |floor| format!(", {:+.4} over the floor", val_loss - floor));
        self.progress.println(&format!(
            "step {step}: train loss {train_loss:.4}, validation loss {val_loss:.4}{distance}"
        ));
        self.validation_loss = Some(val_loss);
        if let Some(rate) = self.job.recipe.train.learning_rate.observe(&mut self.state.plateau, val_loss) {
            self.progress.println(&format!("step {step}: no improvement, learning rate cut to {rate:.3e}"));
        }
        Ok(())
    }

    /// Writes a checkpoint of what all submitted steps made.
    fn save(&mut self, evaluated: bool) -> Result<()> {
        self.report(true)?;
        let started = Instant::now();
        let (weights, moments) = (self.trainer.weights()?, self.trainer.moments()?);
        let config =
            serde_json::to_vec_pretty(&self.job.family.config()).expect("a JSON object is printable");
        let extra = [
            ("config.json".to_string(), config),
            ("tokenizer.json".to_string(), self.job.tokenizer.to_json()?.into_bytes()),
        ];
        let (model, optimizer) = (stored(&weights), stored(&moments));
        let state = serde_json::to_value(&self.state).expect("plain numbers are printable");
        let saved = self.checkpoints.save(&Snapshot {
            step: self.trainer.steps_done(),
            model: &model,
            optimizer: &optimizer,
            extra: &extra,
            state: &state,
            validation_loss: self.validation_loss.filter(|_| evaluated),
        })?;
        for warning in saved.warnings {
            self.progress.println(&format!("warning: {warning}"));
        }
        self.saved = Some(saved.folder);
        self.trainer.skip_time(started.elapsed());
        Ok(())
    }

    fn summary(&self, interrupted: bool) -> Summary {
        let mut times = self.times_ms.clone();
        times.sort_by(f64::total_cmp);
        let step_ms = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
        let tokens = self.job.extent().positions() * self.job.recipe.train.accumulate;
        Summary {
            steps: self.trainer.steps_done(),
            loss: self.last.map_or(f64::NAN, |o| o.loss),
            validation_loss: self.validation_loss,
            interrupted,
            floor: self.job.floor,
            step_ms,
            tokens_per_second: tokens as f64 / (step_ms / 1e3),
            checkpoint: self.saved.clone(),
            memory_bytes: self.trainer.held_bytes(),
        }
    }
}

fn stored(tensors: &[(String, Tensor)]) -> Vec<(String, Stored<'_>)> {
    tensors.iter().map(|(name, tensor)| (name.clone(), Stored::of(tensor))).collect()
}

fn training_feeds(prepared: Prepared, extent: crate::model::Extent) -> Feeds {
    let mut feeds = feeds_of(&prepared.batch, extent);
    let (order, starts) = (prepared.groups.order, prepared.groups.starts);
    feeds.set("order", Tensor::u32([order.len()], order));
    feeds.set("starts", Tensor::u32([starts.len()], starts));
    feeds
}

/// The recipe a run folder was started with.
pub fn recipe_in(folder: &Path) -> Result<super::recipe::RawRecipe> {
    Ok(super::recipe::RawRecipe::load(&folder.join(FILE_NAME))?)
}
