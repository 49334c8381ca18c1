//! A run from its recipe to its last step: started, interrupted or resumed without a trace, and gone on with after the
//! device was lost.

use super::checkpoint::{Loaded, Store as Checkpoints};
use super::job::{Job, tokenizer_in};
use super::lane::{Begin, Lane};
use super::metrics::Recovery;
use super::recipe::{FILE_NAME, Recipe};
use super::recover::Patience;
use super::{Error, Result, Target};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

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

/// Follows a run from outside.
pub struct Watch<'a> {
    /// Looked at after every step: when it turns true the run saves and returns.
    pub stop: &'a AtomicBool,
    /// Gets what a person should read before the first step, and after the device was lost.
    pub say: &'a mut dyn FnMut(&str),
    /// Told after each step that was submitted: how many there are now, and on what device they run.
    pub stepped: &'a mut dyn FnMut(u64, &Target),
}

/// Trains as the recipe says, from the start or from the newest checkpoint of its folder.
///
/// `stop` and `say` are those of [`Watch`].
pub fn run(recipe: Recipe, resume: bool, stop: &AtomicBool, say: &mut dyn FnMut(&str)) -> Result<Summary> {
    run_watched(recipe, resume, &mut Watch { stop, say, stepped: &mut |_, _| {} })
}

/// Trains as [`run`] does, watched step by step.
///
/// With `run.recover` a run whose device is lost opens it anew and goes on from its newest checkpoint, or from the start
/// where there is none yet: the very steps that were lost are made again.
pub fn run_watched(mut recipe: Recipe, resume: bool, watch: &mut Watch) -> Result<Summary> {
    recipe.find_places()?.iter().for_each(|told| (watch.say)(told));
    let mut target = Target::open_or_host(&recipe.run.device, watch.say)?;
    let folder = recipe.run.folder.clone();
    let (is_new, keep) = (!folder.exists(), recipe.run.save.keep);
    let loaded = match resume {
        true => Checkpoints::open(&folder, keep)?.load_latest()?,
        false => refuse_used(&folder)?,
    };
    let tokenizer = if resume { tokenizer_in(&folder)? } else { None };
    let mut job = Job::prepare(recipe, tokenizer)?;
    job.check_data()?;
    if let Some(told) = job.settle(&target)? {
        (watch.say)(&told);
    }
    job.run_ahead(&target, watch)?;
    // Nothing is made for a run before its data is known to do.
    let checkpoints = Checkpoints::open(&folder, keep)?;
    let mut begin = Begin { loaded, recovery: None };
    let mut patience = Patience::default();
    loop {
        let error = match attempt(&job, &target, &checkpoints, begin, watch) {
            Err(error @ Error::Lost { .. }) if job.recipe.run.recover => error,
            Err(error @ Error::Data(_)) if is_new && checkpoints.steps()?.is_empty() => {
                // What was read later on did not do: there is no step to go on from, and nothing to look at.
                let _ = std::fs::remove_dir_all(&folder);
                return Err(error);
            }
            other => return other,
        };
        let loaded = checkpoints.load_latest()?;
        let step = loaded.as_ref().map_or(0, |loaded| loaded.step);
        let lost = error.to_string().lines().next().unwrap_or_default().to_string();
        (watch.say)(&format!("warning: {lost}"));
        target = patience.open_again(&target, step, watch).ok_or(error)?;
        (watch.say)(&format!("recovered: {} is open again, going on after step {step}", target.describe()));
        begin = Begin { loaded, recovery: Some(Recovery { step, lost }) };
    }
}

/// Trains until the end, or until something goes wrong; the loss of the device is told with the way back.
fn attempt(
    job: &Job,
    target: &Target,
    checkpoints: &Checkpoints,
    begin: Begin,
    watch: &mut Watch,
) -> Result<Summary> {
    let folder = &job.recipe.run.folder;
    let (step, saved) = begin.loaded.as_ref().map_or((0, None), |l| (l.step, Some(l.folder.clone())));
    let mut lane = Lane::start(job, target, checkpoints, begin, watch)
        .map_err(|error| error.with_way_back(step, saved.as_deref(), folder))?;
    let outcome = lane.go(watch);
    outcome.map_err(|error| error.with_way_back(lane.reached(), lane.saved(), folder))
}

/// A run folder that already holds a run is not written over.
fn refuse_used(folder: &Path) -> Result<Option<Loaded>> {
    if !folder.join("checkpoints").is_dir() || Checkpoints::look(folder).steps()?.is_empty() {
        return Ok(None);
    }
    Err(Error::Folder {
        path: folder.display().to_string(),
        problem: "holds the checkpoints of an earlier run".into(),
        hint: "continue it with --resume, choose another run.folder, or remove the folder",
    })
}

/// The recipe a run folder was started with.
pub fn recipe_in(folder: &Path) -> Result<super::recipe::RawRecipe> {
    Ok(super::recipe::RawRecipe::load(&folder.join(FILE_NAME))?)
}
