//! The training step as a fixed program: forward, loss, gradient; then norm, clip, update. Built once, replayed.
//!
//! The trainer knows no text and no files. It takes parameters and a function that writes the loss, builds the plans, and
//! from then on only feeds batches and collects numbers.

mod culprit;
mod pruning;
mod state;

use super::layout::Layout;
use super::profile;
use super::program::{EVALUATE, GATHER, Kept, MASKS, STEP, UPDATE, gradient_name};
pub use super::program::{Memory, Program};
use super::prune::Pruned;
use super::recipe::{Clip, LossScale, Optimizer, Prune};
use super::update::{self, Role, Told};
use super::{Error, Frozen, Reduced, Result, Target};
use crate::graph::{Feeds, Graph, gradient_from};
use crate::model::{self, Mode, ParameterSpec};
use crate::ops::cast::CastEmit;
use crate::ops::launch::Caps;
use crate::ops::reshape::ReshapeEmit;
use crate::ops::{Emit, Value};
use crate::passes::{
    self, Fuse, Learned, Overwrite, Pass, Precision, Recompute, Report, Residual, Tidy, Unheld,
};
use crate::plan::{Engine, Plan, Read, Ticket};
use crate::tensor::random::key_of;
use crate::tensor::{DType, Shape, Tensor};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

/// Name of the control value in a checkpoint, where the loss scale moves.
const LOSS_SCALE: &str = "loss_scale.control";

/// Name of the loss among the results.
const LOSS: &str = "loss";

/// What stands before the name of a part of the loss that is a result beside it.
pub(super) const PART: &str = "loss.";

/// Runs under way at once: enough that the device never waits for the host.
const MOST_IN_FLIGHT: usize = 3;

/// A weight to be trained.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Its name; the loss finds it by `graph.named`.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// True if weight decay applies.
    pub decays: bool,
}

/// Writes the loss, one f32, into an empty graph, in which it declares the parameters as well.
pub type BuildLoss<'a> = dyn Fn(&mut Graph, Mode) -> Result<Value> + 'a;

/// How the step is built.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The optimiser.
    pub optimizer: Optimizer,
    /// Clipping.
    pub clip: Clip,
    /// Batches per update.
    pub accumulate: usize,
    /// Storage of activations, f32 or f16, or of matmul operands alone: bf16, and f16 where its arithmetic is missing.
    pub precision: DType,
    /// Factor on the loss before the gradient, taken off again before the update.
    pub loss_scale: LossScale,
    /// Seed of dropout.
    pub seed: u64,
    /// File of the kernel variants this run was started with, if it is to repeat bit for bit.
    pub choices: Option<PathBuf>,
    /// Most bytes of weights in one arena, and of one table or of scores that a loss reads; absent: as much as a kernel of the device
    /// may bind.
    pub page_bytes: Option<u64>,
    /// What the backward part computes again instead of holding it.
    pub recompute: Recompute,
    /// What is held or computed in codes.
    pub reduced: Reduced,
    /// Parameters of the loss that are not trained; the trainer keeps no copy on the host.
    pub frozen: Frozen,
    /// Parameters that are trained beside the weights and are none of them: checkpoints keep them with the optimiser's state.
    pub aside: Vec<ParameterSpec>,
    /// Graphs over the same weights, for [`Trainer::consult`].
    pub beside: Vec<Graph>,
    /// Weights that are removed, and those that stay so.
    pub prune: Option<Prune>,
}

impl Settings {
    /// One batch a step in f32; nothing is clipped, computed again, held in codes, frozen or removed.
    pub fn new(optimizer: Optimizer) -> Settings {
        Settings {
            optimizer,
            clip: Clip::None,
            accumulate: 1,
            precision: DType::F32,
            loss_scale: LossScale::NONE,
            seed: 0,
            choices: None,
            page_bytes: None,
            recompute: Recompute::None,
            reduced: Reduced::default(),
            frozen: Frozen::default(),
            aside: vec![],
            beside: vec![],
            prune: None,
        }
    }
}

/// What came of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The step, from zero.
    pub step: u64,
    /// Mean loss of the step's batches.
    pub loss: f64,
    /// Parts of it that the loss tells beside itself, such as those of several tasks, by their names.
    pub parts: Vec<(String, f64)>,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// The update was left out, since the gradients overflowed at this loss scale.
    pub skipped: bool,
    /// Scale of the next step's loss, where there is one.
    pub loss_scale: Option<f64>,
    /// Time since the step before was collected, in ms.
    pub elapsed_ms: f64,
    /// Time the device spent on the step by its own clock, in ms, where it has one.
    pub device_ms: Option<f64>,
}

/// Trains a set of weights.
pub struct Trainer {
    engine: Box<dyn Engine>,
    settings: Settings,
    layout: Layout,
    /// Parameters in the layout that are no weights of the model.
    learned: Vec<Learned>,
    /// Weights with masks.
    pruned: Vec<Pruned>,
    /// Number of the plan that lays masks over them, where masks are chosen.
    masks: Option<usize>,
    /// Share of them that the last choice removed.
    removed: Option<f64>,
    arenas: update::Arenas,
    frozen: Vec<Kept>,
    plans: Vec<Plan>,
    /// Steps submitted so far.
    step: u64,
    in_flight: VecDeque<Flight>,
    last_collected: Instant,
    memory: Memory,
    held_run: Option<u64>,
    on_host: bool,
}

struct Flight {
    step: u64,
    losses: Vec<Ticket>,
    gathers: Vec<Ticket>,
    update: Ticket,
    /// The step's batches, kept so that a bad one can be replayed.
    feeds: Vec<Feeds>,
}

impl Trainer {
    /// Builds the plans and the memory; weights are zero until they are set.
    pub fn new(
        target: &Target,
        weights: &[Weight],
        build: &BuildLoss,
        settings: Settings,
    ) -> Result<Trainer> {
        let program = Program::new(target, weights, build, &settings)?;
        Trainer::of(target, program, settings)
    }

    /// The memory of a program that was built with these settings; weights are zero until they are set.
    pub fn of(target: &Target, program: Program, settings: Settings) -> Result<Trainer> {
        let fixed = program.fixed(&settings);
        let settings = Settings { frozen: Frozen::default(), ..settings };
        let masks = program.plans().position(|(name, _)| name == MASKS);
        let Program { plans, layout, learned, pruned, arenas, frozen, lasting, memory, held_run, .. } =
            program;
        if let Some(have_bytes) = target.memory_bytes().filter(|&have| have < memory.total()) {
            return Err(crate::plan::Error::DoesNotFit { need_bytes: memory.total(), have_bytes }.into());
        }
        let engine = target.engine(&lasting, plans.clone())?;
        let mut trainer = Trainer {
            engine,
            settings,
            layout,
            learned,
            pruned,
            masks,
            removed: None,
            arenas,
            frozen,
            plans,
            step: 0,
            in_flight: VecDeque::new(),
            last_collected: Instant::now(),
            memory,
            held_run,
            on_host: target.is_host(),
        };
        for (span, tensor) in fixed {
            trainer.engine.write(span, &tensor)?;
        }
        let first = model::initial(&trainer.settings.aside, trainer.settings.seed);
        for (name, tensor) in first.iter() {
            let placed = trainer.layout.find(name).expect("what is learned aside is laid out");
            trainer.engine.write(trainer.arenas.span(Role::Parameters, placed), tensor)?;
        }
        Ok(trainer)
    }

    /// The memory the plans need, known before the first step.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Bytes that [`Memory::run`] would be about if nothing were computed again; none if nothing is.
    pub fn held_run(&self) -> Option<u64> {
        self.held_run
    }

    /// Bytes the engine holds.
    pub fn held_bytes(&self) -> u64 {
        self.engine.memory_bytes()
    }

    /// Seconds the host has spent on submitting so far, waiting left out; `None` where the host computes itself.
    pub fn host_seconds(&self) -> Option<f64> {
        self.engine.host_seconds()
    }

    /// The plans, for inspection: step, update, evaluation, and gathering if batches are accumulated.
    pub fn plans(&self) -> &[Plan] {
        &self.plans
    }

    /// Device and driver in words.
    pub fn describe(&self) -> String {
        self.engine.describe()
    }

    /// Number of weights.
    pub fn weight_count(&self) -> usize {
        self.layout.count()
    }

    /// Steps submitted.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// Submits one step: a batch for each accumulation, at learning rate `rate`. Waits only when too much is under way.
    ///
    /// `feeds` name the inputs of the loss; `rng` is added here.
    pub fn submit(&mut self, batches: Vec<Feeds>, rate: f64) -> Result<()> {
        assert_eq!(batches.len(), self.settings.accumulate, "one batch per accumulation");
        self.choose_masks()?;
        let mut feeds = batches;
        let (mut losses, mut gathers) = (vec![], vec![]);
        for (number, batch) in feeds.iter_mut().enumerate() {
            let counter = self.step * self.settings.accumulate as u64 + number as u64;
            batch.set("rng", self.rng(counter));
            losses.push(submit_named(self.engine.as_mut(), &self.plans, STEP, batch)?);
            if update::gathers(&self.settings) {
                let scalars = update::gather_scalars(&self.settings, number);
                let scalars = Feeds::new().with("scalars", scalars);
                gathers.push(submit_named(self.engine.as_mut(), &self.plans, GATHER, &scalars)?);
            }
        }
        let scalars = update::scalars(&self.settings, rate, self.step);
        let update =
            submit_named(self.engine.as_mut(), &self.plans, UPDATE, &Feeds::new().with("scalars", scalars))?;
        self.in_flight.push_back(Flight { step: self.step, losses, gathers, update, feeds });
        self.step += 1;
        Ok(())
    }

    /// The oldest step not yet reported. With `wait` false: only if it has finished or too many are under way.
    pub fn collect(&mut self, wait: bool) -> Result<Option<Outcome>> {
        let wait = wait || self.in_flight.len() > MOST_IN_FLIGHT;
        let Some(flight) = self.in_flight.front() else { return Ok(None) };
        let Some(control) = self.engine.collect(flight.update, wait)? else { return Ok(None) };
        let flight = self.in_flight.pop_front().expect("just looked at");
        let (mut loss, count) = (0.0, flight.losses.len() as f64);
        let reads = self.plans[STEP].reads.iter().enumerate();
        let of_part = |(at, read): (usize, &Read)| Some((at, read.name.strip_prefix(PART)?.to_string()));
        let named: Vec<(usize, String)> = reads.filter_map(of_part).collect();
        let mut parts: Vec<(String, f64)> = named.iter().map(|(_, name)| (name.clone(), 0.0)).collect();
        for &ticket in &flight.losses {
            let results = self.engine.collect(ticket, true)?.expect("waited for");
            loss += results[self.place_of_loss(STEP)].to_f64()[0] / count;
            for ((_, part), (at, _)) in parts.iter_mut().zip(&named) {
                *part += results[*at].to_f64()[0] / count;
            }
        }
        for &ticket in &flight.gathers {
            self.engine.collect(ticket, true)?;
        }
        let runs = flight.losses.iter().chain(&flight.gathers).chain([&flight.update]);
        let device_seconds: Option<f64> = runs.map(|&ticket| self.engine.device_seconds(ticket)).sum();
        let device_ms = device_seconds.map(|seconds| 1e3 * seconds);
        let elapsed_ms = self.last_collected.elapsed().as_secs_f64() * 1e3;
        self.last_collected = Instant::now();
        let told = Told::of(&control[0]);
        let scale = (self.settings.loss_scale != LossScale::NONE).then_some(told.scale);
        let (gradient_norm, skipped) = (told.norm, told.skipped);
        let outcome = Outcome {
            step: flight.step,
            loss,
            parts,
            gradient_norm,
            skipped,
            loss_scale: scale,
            elapsed_ms,
            device_ms,
        };
        if told.halted {
            let what = match scale {
                Some(_) if loss.is_finite() => "the gradient norm, whatever the loss scale,",
                _ if loss.is_finite() => "the gradient norm",
                _ => "the loss",
            };
            let culprit = self.culprit(&flight)?;
            let (step, checkpoint) = (flight.step, "unknown".into());
            return Err(Error::NotFinite { step, what, culprit, checkpoint });
        }
        Ok(Some(outcome))
    }

    /// Loss of one batch, with its gradients left in their arena; nothing is learnt. Waits for the end.
    pub fn differentiate(&mut self, mut batch: Feeds) -> Result<f64> {
        batch.set("rng", self.rng(self.step * self.settings.accumulate as u64));
        let ticket = submit_named(self.engine.as_mut(), &self.plans, STEP, &batch)?;
        let loss = self.loss_of(ticket, STEP)?;
        self.last_collected = Instant::now();
        Ok(loss)
    }

    /// Mean loss over batches, each with its weight, without dropout and without learning. Steps under way finish first.
    pub fn evaluate(&mut self, batches: impl IntoIterator<Item = (Feeds, f64)>) -> Result<f64> {
        let (mut total, mut weights) = (0.0, 0.0);
        let mut waiting = VecDeque::new();
        for (batch, weight) in batches {
            let ticket = submit_named(self.engine.as_mut(), &self.plans, EVALUATE, &batch)?;
            waiting.push_back((ticket, weight));
            weights += weight;
            if waiting.len() > MOST_IN_FLIGHT {
                let (ticket, weight) = waiting.pop_front().expect("not empty");
                total += weight * self.loss_of(ticket, EVALUATE)?;
            }
        }
        for (ticket, weight) in waiting {
            total += weight * self.loss_of(ticket, EVALUATE)?;
        }
        self.last_collected = Instant::now();
        Ok(total / weights)
    }

    /// The first result of one of [`Settings::beside`], with the weights that all steps submitted so far have made.
    pub fn consult(&mut self, number: usize, feeds: &Feeds) -> Result<Tensor> {
        let number = self.plans.len() - self.settings.beside.len() + number;
        let ticket = submit_named(self.engine.as_mut(), &self.plans, number, feeds)?;
        Ok(self.engine.collect(ticket, true)?.expect("waited for").swap_remove(0))
    }

    /// Leaves `time` out of the next step's: it was spent on something else.
    pub fn skip_time(&mut self, time: std::time::Duration) {
        self.last_collected += time;
    }

    /// Where the time of one more step goes, batch by batch and node by node. The weights are of no use after it.
    pub fn profile(&mut self, batches: Vec<Feeds>, rate: f64) -> Result<Vec<profile::Row>> {
        let mut rows = vec![];
        for (number, mut batch) in batches.into_iter().enumerate() {
            batch.set("rng", self.rng(self.step * self.settings.accumulate as u64 + number as u64));
            rows.extend(self.profile_plan("step", STEP, &batch)?);
            if update::gathers(&self.settings) {
                let scalars = update::gather_scalars(&self.settings, number);
                rows.extend(self.profile_plan("gather", GATHER, &Feeds::new().with("scalars", scalars))?);
            }
        }
        let scalars = update::scalars(&self.settings, rate, self.step);
        rows.extend(self.profile_plan("update", UPDATE, &Feeds::new().with("scalars", scalars))?);
        Ok(rows)
    }

    fn profile_plan(
        &mut self,
        name: &'static str,
        number: usize,
        feeds: &Feeds,
    ) -> Result<Vec<profile::Row>> {
        let list = named(&self.plans[number], feeds)?;
        let times = self.engine.profile(number, &list)?;
        Ok(profile::rows(name, &self.plans[number], &times, self.on_host))
    }

    /// Which of a plan's results is the loss; parts of it may stand before it.
    fn place_of_loss(&self, plan: usize) -> usize {
        self.plans[plan].reads.iter().position(|read| read.name == LOSS).expect("a loss is read")
    }

    fn loss_of(&mut self, ticket: Ticket, plan: usize) -> Result<f64> {
        let results = self.engine.collect(ticket, true)?.expect("waited for");
        Ok(results[self.place_of_loss(plan)].to_f64()[0])
    }

    fn rng(&self, counter: u64) -> Tensor {
        let seed = self.settings.seed;
        Tensor::u32([2], vec![key_of(&[seed as u32, (seed >> 32) as u32]), counter as u32])
    }
}

/// Feeds a plan by name.
fn submit_named(engine: &mut dyn Engine, plans: &[Plan], number: usize, feeds: &Feeds) -> Result<Ticket> {
    Ok(engine.submit(number, &named(&plans[number], feeds)?)?)
}

/// Values in the order in which a plan takes them.
fn named<'a>(plan: &Plan, feeds: &'a Feeds) -> Result<Vec<&'a Tensor>> {
    let missing = |name: &str| crate::graph::Error::Missing { name: name.to_string() };
    let get = |name: &str| feeds.get(name).ok_or_else(|| missing(name));
    Ok(plan.feeds.iter().map(|feed| get(&feed.name)).collect::<Result<_, _>>()?)
}

/// Parameters and loss, in the storage asked for.
pub(super) fn loss_graph(
    weights: &[Weight],
    build: &BuildLoss,
    settings: &Settings,
    mode: Mode,
    caps: &Caps,
) -> Result<(Graph, Value, Vec<Report>)> {
    let mut graph = Graph::new();
    let loss = build(&mut graph, mode)?;
    for weight in weights {
        let declared = graph.named(&weight.name).map(|v| graph.kind(v).shape.clone());
        if declared.as_ref() != Some(&weight.shape) {
            let got = declared.map_or("nothing".into(), |shape| shape.to_string());
            let problem = format!("the loss declares {got} for `{}`, expected {}", weight.name, weight.shape);
            return Err(Error::Mismatch { folder: "model".into(), problem });
        }
    }
    if let Some(weight) = weights.iter().find(|weight| settings.frozen.holds(&weight.name)) {
        let problem = format!("`{}` is to be trained and to stay as it is", weight.name);
        return Err(Error::Mismatch { folder: "model".into(), problem });
    }
    graph.output(LOSS, loss);
    let precision = Precision::on(settings.precision, caps);
    let frozen = settings.frozen.passes(&graph);
    let reduced = settings.reduced.passes(mode, &settings.reduced.survey(build, &settings.frozen, None)?);
    let mut pipeline: Vec<&dyn Pass> = vec![&Tidy];
    pipeline.extend(frozen.iter().map(Box::as_ref));
    pipeline.extend(reduced.iter().map(Box::as_ref));
    pipeline.push(&precision);
    let (mut graph, reports) = passes::run(&pipeline, graph)?;
    // A loss that ends in halves is summed in halves; from here on it is single, and so is what flows back into it.
    let loss = graph.cast(graph.result(LOSS).expect("the loss is a result"), DType::F32)?;
    graph.redirect_output(LOSS, loss);
    Ok((graph, loss, reports))
}

/// The loss with its gradient for every weight, fused.
pub(super) fn step_graph(
    weights: &[Weight],
    build: &BuildLoss,
    settings: &Settings,
    caps: &Caps,
) -> Result<(Graph, Vec<Report>)> {
    let (mut graph, loss, mut reports) = loss_graph(weights, build, settings, Mode::Train, caps)?;
    let forward = graph.clone();
    let kind = graph.kind(loss).clone();
    let seed = match update::loss_scale(&mut graph, settings)? {
        Some(scale) => graph.reshape(scale, kind.shape.clone())?,
        None => graph.constant(Tensor::f32(kind.shape.clone(), vec![1.0; kind.shape.count()])),
    };
    let parameters: Vec<(String, Value)> = graph.parameters().map(|(n, v)| (n.to_string(), v)).collect();
    let wrt: Vec<Value> = parameters.iter().map(|&(_, v)| v).collect();
    let gradients = gradient_from(&mut graph, loss, seed, &wrt)?;
    for ((name, _), gradient) in parameters.iter().zip(gradients) {
        if let Some(gradient) = gradient {
            graph.output(gradient_name(name), gradient);
        }
    }
    reports.push(Report::of("gradient", &forward, &graph));
    let (graph, more) =
        passes::run(&[&Tidy, &settings.recompute, &Unheld, &Residual, &Fuse, &Overwrite], graph)?;
    reports.extend(more);
    Ok((graph, reports))
}
