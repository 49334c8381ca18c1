//! A run under way: batches in, steps submitted, numbers collected, evaluated, saved.

use super::chats::Chats;
use super::checkpoint::{Loaded, Snapshot, Store as Checkpoints, Stored};
use super::job::Job;
use super::lesson::Scores;
use super::metrics::{Evaluation, Metrics, Recovery, Resume, Step};
use super::profile;
use super::progress::{Progress, Status};
use super::run::{Summary, Watch};
use super::schedule::PlateauState;
use super::several::{Measured, Several};
use super::trainer::{Outcome, Trainer};
use super::{Error, Result, Target};
use crate::data::mixture::shares;
use crate::data::prefetch::Prefetch;
use crate::data::tokenizer::Tokenizer;
use crate::data::windows::{Batch, Cursor};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Batches prepared ahead.
const AHEAD: usize = 4;

/// What a checkpoint remembers beside weights and moments.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    cursor: Cursor,
    /// Of several tasks where the data of all but the first stood.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    others: Vec<Cursor>,
    plateau: PlateauState,
    best_loss: Option<f64>,
}

impl State {
    fn cursors(&self) -> Vec<Cursor> {
        [std::slice::from_ref(&self.cursor), &self.others].concat()
    }

    fn set_cursors(&mut self, cursors: Vec<Cursor>) {
        let mut all = cursors.into_iter();
        self.cursor = all.next().expect("there is data of one task at least");
        self.others = all.collect();
    }
}

/// From where a run starts.
pub(super) struct Begin {
    /// The checkpoint, if there is one.
    pub(super) loaded: Option<Loaded>,
    /// What happened, where it starts again after the device was lost.
    pub(super) recovery: Option<Recovery>,
}

/// Everything that moves while a run goes on.
pub(super) struct Lane<'a> {
    job: &'a Job,
    target: &'a Target,
    trainer: Trainer,
    checkpoints: &'a Checkpoints,
    metrics: Metrics,
    progress: Progress,
    /// Of each task, where there are several; else one.
    batches: Vec<Prefetch>,
    /// Batches of the training and the validation part.
    evaluation: [Vec<Batch>; 2],
    /// The same of several tasks.
    of_tasks: Measured,
    state: State,
    /// Where the data stood after each step under way.
    cursors: VecDeque<(Vec<Cursor>, f64)>,
    last: Option<Outcome>,
    validation_loss: Option<f64>,
    saved: Option<PathBuf>,
    times_ms: Vec<f64>,
}

impl<'a> Lane<'a> {
    /// Builds the step on a device and puts everything where it stood.
    pub(super) fn start(
        job: &'a Job,
        target: &'a Target,
        checkpoints: &'a Checkpoints,
        begin: Begin,
        watch: &mut Watch,
    ) -> Result<Lane<'a>> {
        let Begin { loaded, recovery } = begin;
        let folder = &job.recipe.run.folder;
        let mut trainer = job.trainer(target)?;
        if recovery.is_none() {
            describe(job, &trainer, target, watch.say);
        }
        let evaluation = job.evaluation()?;
        job.ask_reference(&mut trainer, &evaluation)?;
        let mut state = State::default();
        if let Some(loaded) = &loaded {
            for rejected in &loaded.rejected {
                (watch.say)(&format!("warning: damaged checkpoint passed over: {rejected}"));
            }
            state = restore(&mut trainer, loaded, job)?;
            (watch.say)(&format!("resuming after step {} from {}", loaded.step, loaded.folder.display()));
        }
        job.recipe.save(folder)?;
        if let Some(tokenizer) = &job.tokenizer {
            tokenizer.save(folder)?;
        }
        if let Some(adapters) = &job.beside.adapters {
            adapters.keep_base(job, loaded.is_some())?;
        }
        let metrics = metrics_from(folder, loaded.as_ref(), recovery.as_ref())?;
        let batches = match &job.beside.several {
            Some(several) => several.prefetch(&state.cursors(), AHEAD)?,
            None => {
                let mut sampler = job.batches()?;
                sampler.seek(&state.cursor)?;
                vec![Prefetch::start_split(sampler, job.numbers(), AHEAD, job.extent().batch)]
            }
        };
        let steps = job.recipe.train.steps;
        let progress = Progress::new(trainer.steps_done(), steps, job.recipe.run.log.every.max(steps / 50));
        Ok(Lane {
            checkpoints,
            metrics,
            progress,
            batches,
            evaluation,
            of_tasks: job.beside.several.as_ref().map_or(Ok(vec![]), Several::evaluation)?,
            state,
            cursors: VecDeque::new(),
            trainer,
            last: None,
            validation_loss: None,
            saved: loaded.map(|l| l.folder),
            times_ms: vec![],
            job,
            target,
        })
    }

    /// The newest checkpoint.
    pub(super) fn saved(&self) -> Option<&Path> {
        self.saved.as_deref()
    }

    /// Steps whose numbers have come back.
    pub(super) fn reached(&self) -> u64 {
        let submitted = self.trainer.steps_done() - self.cursors.len() as u64;
        self.last.as_ref().map_or(submitted, |outcome| outcome.step + 1)
    }

    /// Trains to the last step, or until told to stop.
    pub(super) fn go(&mut self, watch: &mut Watch) -> Result<Summary> {
        let train = self.job.recipe.train.clone();
        let save_every = self.job.recipe.run.save.every;
        if self.trainer.steps_done() == 0 {
            self.evaluate()?;
        }
        let mut interrupted = false;
        while self.trainer.steps_done() < train.steps {
            interrupted = watch.stop.load(Ordering::Relaxed);
            if interrupted {
                break;
            }
            self.submit()?;
            (watch.stepped)(self.trainer.steps_done(), self.target);
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
        if let Some(told) = self.job.passed_over() {
            self.progress.println(&format!("warning: {told}"));
        }
        self.progress.finish();
        Ok(self.summary(interrupted))
    }

    /// Times one more step, which no checkpoint sees, and leaves table and trace in the run folder.
    fn profile(&mut self) -> Result<()> {
        let batches = &mut self.batches;
        let mut next = |task: usize| Ok(batches[task].next_batch()?);
        let batches = match &self.job.beside.several {
            Some(_) => self.job.step_feeds(&mut self.trainer, &mut next)?,
            None => (0..self.job.recipe.train.passes())
                .map(|pass| self.job.training_feeds(next(0)?, self.trainer.steps_done(), pass))
                .collect::<Result<Vec<_>>>()?,
        };
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
        let mut cursors = vec![Cursor::default(); self.batches.len()];
        let batches = &mut self.batches;
        let feeds = self.job.step_feeds(&mut self.trainer, &mut |task| {
            let prepared = batches[task].next_batch()?;
            cursors[task] = prepared.cursor.clone();
            Ok(prepared)
        })?;
        let rate = self.job.recipe.train.learning_rate.rate(self.trainer.steps_done(), &self.state.plateau);
        self.trainer.submit(feeds, rate)?;
        self.cursors.push_back((cursors, rate));
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
        let (cursors, rate) = self.cursors.pop_front().expect("one for each step under way");
        self.state.set_cursors(cursors);
        let tokens_per_second = self.job.tokens_in_step() / (outcome.elapsed_ms / 1e3);
        self.times_ms.push(outcome.elapsed_ms);
        if outcome.step.is_multiple_of(self.job.recipe.run.log.every.max(1)) {
            self.metrics.step(&Step {
                step: outcome.step,
                loss: outcome.loss,
                grad_norm: outcome.gradient_norm,
                lr: rate,
                tokens_per_s: tokens_per_second,
                ms: outcome.elapsed_ms,
                device_ms: outcome.device_ms,
                loss_scale: outcome.loss_scale,
                skipped: outcome.skipped,
                task_loss: outcome.parts.iter().map(|(name, loss)| (name.clone(), finite(*loss))).collect(),
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
        if let Some(several) = &self.job.beside.several {
            return self.evaluate_tasks(several);
        }
        if self.evaluation.iter().any(Vec::is_empty) {
            return Ok(());
        }
        let job = self.job;
        let mut mean = |batches: &[Batch]| match (&job.lesson, &job.sequel) {
            (Some(lesson), _) => lesson.measure(&mut self.trainer, 0, batches, job.extent().batch),
            (None, Some(sequel)) => sequel.measure(&mut self.trainer, batches, job.extent().batch),
            (None, None) => {
                let feeds = batches.iter().enumerate().map(|(n, batch)| job.evaluation_feeds(n, batch));
                let loss = self.trainer.evaluate(feeds)?;
                let figures = match &job.chats {
                    Some(chats) => chats.rewards(&mut self.trainer, batches, job.extent().batch)?,
                    None => vec![],
                };
                Ok(Scores { loss, figures, ..Scores::default() })
            }
        };
        let (of_training, of_validation) = (mean(&self.evaluation[0])?, mean(&self.evaluation[1])?);
        let (train_loss, val_loss) = (of_training.loss, of_validation.loss);
        let step = self.trainer.steps_done();
        let scores = of_validation.figures.iter().map(|(name, figure)| (name.to_string(), finite(*figure)));
        let scores = scores.collect();
        self.metrics.evaluation(&Evaluation { step, train_loss, val_loss, scores })?;
        let distance = self
            .job
            .floor
            .map_or(String::new(), |floor| format!(", {:+.4} over the floor", val_loss - floor));
        let figures = of_validation.describe();
        let removed =
            self.trainer.removed().map_or(String::new(), |share| format!(", {:.1} % removed", 100.0 * share));
        self.progress.println(&format!(
            "step {step}: train loss {train_loss:.4}, validation loss {val_loss:.4}{figures}{distance}{removed}"
        ));
        self.take_loss(val_loss);
        Ok(())
    }

    /// Measures each task by itself; the loss of all is the sum of theirs, each times its weight.
    fn evaluate_tasks(&mut self, several: &Several) -> Result<()> {
        let measured = several.measure(&mut self.trainer, &self.of_tasks)?;
        if measured.is_empty() {
            return Ok(());
        }
        let step = self.trainer.steps_done();
        let sum = |at: usize| measured.iter().map(|(part, both)| part.weight * both[at].loss).sum::<f64>();
        let (train_loss, val_loss) = (sum(0), sum(1));
        let scores = measured.iter().flat_map(|(part, both)| part.figures(both));
        let scores = scores.map(|(name, figure)| (name, finite(figure))).collect();
        self.metrics.evaluation(&Evaluation { step, train_loss, val_loss, scores })?;
        self.progress
            .println(&format!("step {step}: train loss {train_loss:.4}, validation loss {val_loss:.4}"));
        for (part, [training, validation]) in &measured {
            self.progress.println(&format!(
                "  {}: train loss {:.4}, validation loss {:.4}{}",
                part.name,
                training.loss,
                validation.loss,
                validation.describe()
            ));
        }
        self.take_loss(val_loss);
        Ok(())
    }

    /// Tells the schedule a validation loss.
    fn take_loss(&mut self, val_loss: f64) {
        let step = self.trainer.steps_done();
        self.validation_loss = Some(val_loss);
        if let Some(rate) = self.job.recipe.train.learning_rate.observe(&mut self.state.plateau, val_loss) {
            self.progress.println(&format!("step {step}: no improvement, learning rate cut to {rate:.3e}"));
        }
    }

    /// Writes a checkpoint of what all submitted steps made.
    fn save(&mut self, evaluated: bool) -> Result<()> {
        self.report(true)?;
        let started = Instant::now();
        let (weights, moments) = (self.trainer.weights()?, self.trainer.moments()?);
        let family = self.job.family.as_ref();
        let mut extra = vec![];
        if let Some(tokenizer) = &self.job.tokenizer {
            extra.push(("tokenizer.json".to_string(), tokenizer.to_json()?.into_bytes()));
        }
        extra.extend(self.job.chats.iter().flat_map(|chats| chats.files().to_vec()));
        let model = match (&self.job.beside.adapters, &self.job.beside.several) {
            (Some(adapters), _) => {
                extra.extend(adapters.files(&self.job.recipe.run.folder, family, &weights)?);
                vec![]
            }
            (None, Some(several)) => {
                extra.extend(several.files());
                stored(&weights)
            }
            (None, None) => {
                let config = serde_json::to_vec_pretty(&family.config()).expect("a JSON object is printable");
                extra.push(("config.json".to_string(), config));
                stored(&weights)
            }
        };
        extra.extend(self.job.lesson.iter().flat_map(|lesson| lesson.files()));
        let optimizer = stored(&moments);
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
        Summary {
            steps: self.trainer.steps_done(),
            loss: self.last.as_ref().map_or(f64::NAN, |o| o.loss),
            validation_loss: self.validation_loss,
            interrupted,
            floor: self.job.floor,
            step_ms,
            tokens_per_second: self.job.tokens_in_step() / (step_ms / 1e3),
            checkpoint: self.saved.clone(),
            memory_bytes: self.trainer.held_bytes(),
        }
    }
}

fn finite(figure: f64) -> Option<f64> {
    Some(figure).filter(|figure| figure.is_finite())
}

fn stored(tensors: &[(String, Tensor)]) -> Vec<(String, Stored<'_>)> {
    tensors.iter().map(|(name, tensor)| (name.clone(), Stored::of(tensor))).collect()
}

/// The file of metrics, without what this run will write again.
fn metrics_from(folder: &Path, loaded: Option<&Loaded>, recovery: Option<&Recovery>) -> Result<Metrics> {
    let mut metrics = match (loaded, recovery) {
        (Some(at), _) => Metrics::resume(folder, Resume { step: at.step, evaluation: at.step + 1 })?,
        (None, Some(_)) => Metrics::resume(folder, Resume { step: 0, evaluation: 0 })?,
        (None, None) => Metrics::create(folder)?,
    };
    if let Some(recovery) = recovery {
        metrics.recovery(recovery)?;
    }
    Ok(metrics)
}

fn describe(job: &Job, trainer: &Trainer, target: &Target, say: &mut dyn FnMut(&str)) {
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    say(&format!("device   {}", target.describe()));
    say(&format!("model    {}", job.family.describe()));
    let data = match (&job.lesson, &job.sequel, &job.chats, &job.beside.several) {
        (Some(lesson), ..) => lesson.describe(),
        (None, Some(sequel), ..) => sequel.describe(),
        (None, None, Some(chats), _) => chats.describe(),
        (None, None, None, Some(several)) => format!("{} tasks", several.parts.len()),
        (None, None, None, None) => format!(
            "{} training and {} validation tokens",
            job.store.training.tokens.len(),
            job.store.validation.tokens.len()
        ),
    };
    let tokens = |tokenizer: &Tokenizer| {
        format!(", {} tokenizer with {} tokens", tokenizer.kind(), tokenizer.vocabulary_size())
    };
    say(&format!("data     {data}{}", job.tokenizer.as_ref().map_or(String::new(), tokens)));
    job.lesson.iter().flat_map(|lesson| &lesson.told).for_each(|line| say(line));
    job.sequel.iter().flat_map(|sequel| &sequel.told).for_each(|line| say(line));
    job.beside.several.iter().flat_map(Several::describe).for_each(|line| say(&line));
    job.chats.iter().filter_map(Chats::bad).for_each(|bad| say(&format!("warning: {bad}")));
    let stretches = &job.store.stretches;
    for (stretch, share) in stretches.iter().zip(shares(stretches)).filter(|_| stretches.len() > 1) {
        say(&format!(
            "source   {}: {} documents, {} training tokens, {:.1} % of the windows",
            stretch.name,
            stretch.documents,
            stretch.tokens.len(),
            100.0 * share
        ));
    }
    for told in &job.told {
        say(told);
    }
    if let Some(teacher) = &job.beside.teacher {
        say(&format!("teacher  {}", teacher.describe()));
    }
    if let Some(adapters) = &job.beside.adapters {
        say(&format!("base     {}", adapters.describe_base()));
        adapters.list.iter().for_each(|adapter| say(&format!("adapter  {}", adapter.describe())));
    }
    if let Some(prune) = &job.recipe.prune {
        say(&format!("prune    {prune}"));
    }
    let (m, held) = (trainer.memory(), trainer.held_bytes());
    let fits = target.memory_bytes().map_or(String::new(), |have| format!(" of {:.0}", mib(have)));
    let frozen = match m.frozen {
        0 => String::new(),
        bytes => format!(" and frozen ones {:.1}", mib(bytes)),
    };
    let masks = match m.masks {
        0 => String::new(),
        bytes => format!(", masks {:.1}", mib(bytes)),
    };
    say(&format!(
        "memory   {:.1}{fits} MiB: weights {:.1}{frozen}, gradients {:.1}, optimiser {:.1}{masks}, activations and inputs {:.1}, transfer {:.1}",
        mib(held),
        mib(m.parameters),
        mib(m.gradients),
        mib(m.moments),
        mib(m.run),
        mib(held.saturating_sub(m.total() - m.transfer))
    ));
    if let Some(held) = trainer.held_run() {
        let how = job.recipe.memory.recompute;
        say(&format!(
            "recompute {how}: activations and inputs {:.1} MiB instead of about {:.1}",
            mib(m.run),
            mib(held)
        ));
    }
    for report in target.told() {
        say(&format!("kernels  {report}"));
    }
    if let Some(floor) = job.floor {
        say(&format!(
            "floor    {floor:.4} nats per token: the entropy of the built-in grammar on the validation part"
        ));
    }
}

fn restore(trainer: &mut Trainer, loaded: &Loaded, job: &Job) -> Result<State> {
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
    let moments = tensors(&loaded.optimizer)?;
    let weights = match &job.beside.adapters {
        Some(adapters) => adapters.read(&loaded.folder, job.family.as_ref())?,
        None => tensors(&loaded.model)?,
    };
    trainer.set_weights(|name, _: &Shape| {
        weights.get(name).cloned().ok_or_else(|| wrong(format!("`{name}` is missing")))
    })?;
    trainer.restore(loaded.step, &moments)?;
    serde_json::from_value(loaded.state.clone()).map_err(|e| wrong(format!("state is unreadable: {e}")))
}
