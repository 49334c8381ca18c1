//! What a training step is before there is any memory: plans, layout, arenas, and the bytes they will take.

use super::layout::{Class, Layout, Placed};
use super::pieces::Cut;
use super::prune::Pruned;
use super::reduced::Survey;
use super::trainer::{BuildLoss, Settings, Weight, loss_graph, step_graph};
use super::update::{self, Role};
use super::{Result, Target, frozen};
use crate::graph::{Graph, Node, Source, ValueInfo};
use crate::model::Mode;
use crate::ops::Value;
use crate::ops::launch::Variant;
use crate::passes::{self, Epilogue, Fuse, Learned, Pass, Recompute, Report, Residual, Tidy, scales_name};
use crate::plan::{Arena, Plan, Residents, Span, first_variant, plan};
use crate::tensor::{Tensor, Type};

/// Bytes of device memory by use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Weights.
    pub parameters: u64,
    /// Weights that are not trained.
    pub frozen: u64,
    /// Gradients, with the sum over micro-batches where there is one.
    pub gradients: u64,
    /// Optimiser state.
    pub moments: u64,
    /// Masks of weights that are removed, and what those that change are chosen by.
    pub masks: u64,
    /// Slots, inputs and constants of the plans.
    pub run: u64,
    /// What lies between host and device: feeds and results on their way, parameters of the dispatches.
    pub transfer: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        let kept = self.parameters + self.frozen + self.gradients + self.moments + self.masks;
        kept + self.run + self.transfer
    }
}

/// What is known of a program from its plans.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Foreseen {
    /// Bytes it takes at most.
    pub memory: Memory,
    /// Floating-point operations of a step with its update, a multiply-add counted as two.
    pub flops: f64,
}

/// Floating-point operations of a plan, by its operators' own account.
pub fn flops_of(plan: &Plan) -> f64 {
    let kinds = |values: &[Value]| values.iter().map(|&v| plan.graph.kind(v).clone()).collect::<Vec<_>>();
    // The dispatches of a node are neighbours.
    let nodes = plan.dispatches.chunk_by(|a, b| a.node == b.node).map(|all| &plan.graph.nodes()[all[0].node]);
    nodes.map(|node| node.op.cost(&kinds(&node.inputs), &kinds(&node.outputs)).flops).sum()
}

/// A weight that is not trained, in its place.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub name: String,
    pub span: Span,
    pub kind: Type,
}

/// Numbers of the plans in the engine.
pub(super) const STEP: usize = 0;
pub(super) const UPDATE: usize = 1;
pub(super) const EVALUATE: usize = 2;
pub(super) const GATHER: usize = 3;

/// Name of the plan that lays masks over weights; its number depends on what else there is.
pub(super) const MASKS: &str = "masks";

/// A step as plans over arenas.
pub struct Program {
    pub(super) plans: Vec<Plan>,
    /// What they do.
    names: Vec<&'static str>,
    pub(super) layout: Layout,
    pub(super) learned: Vec<Learned>,
    pub(super) pruned: Vec<Pruned>,
    pub(super) arenas: update::Arenas,
    pub(super) frozen: Vec<Kept>,
    /// All memory that outlasts a step.
    pub(super) lasting: Vec<Arena>,
    pub(super) memory: Memory,
    /// About what `run` would be if nothing were computed again; none if nothing is.
    pub(super) held_run: Option<u64>,
    passes: Vec<(&'static str, Vec<Report>)>,
}

impl Program {
    /// Builds the plans for a device; nothing is allocated on it.
    pub fn new(
        target: &Target,
        weights: &[Weight],
        build: &BuildLoss,
        settings: &Settings,
    ) -> Result<Program> {
        refuse_hopeless(target, weights, settings)?;
        let cut = Cut::new(target, weights, build, settings)?;
        let (weights, build) = (&cut.weights, &|graph: &mut Graph, mode| cut.write(build, graph, mode));
        let parts = Parts::new(target, &cut, build, settings)?;
        let plans = target.plans(&parts.graphs(), &parts.residents, settings.choices.as_deref())?;
        let held_run = match settings.recompute {
            Recompute::None => None,
            _ => {
                let settings = Settings { recompute: Recompute::None, ..settings.clone() };
                let (plain, _) = step_graph(weights, build, &settings, &target.caps())?;
                let plain = plan(&plain, &parts.residents, &target.caps(), &mut first_variant)?;
                Some(run_bytes([&plain].into_iter().chain(&plans[1..])))
            }
        };
        let memory = parts.memory(target, &plans);
        let names = parts.named().into_iter().map(|(name, _)| name).collect();
        let Parts { layout, learned, pruned, arenas, frozen, residents, passes, .. } = parts;
        let lasting = residents.arenas;
        Ok(Program {
            plans,
            names,
            layout,
            learned,
            pruned,
            arenas,
            frozen,
            lasting,
            memory,
            held_run,
            passes,
        })
    }

    /// The most a program would take whatever kernels are chosen, from plans alone: nothing is measured or allocated.
    pub fn estimate(
        target: &Target,
        weights: &[Weight],
        build: &BuildLoss,
        settings: &Settings,
    ) -> Result<Memory> {
        Ok(Program::foresee(target, weights, build, settings)?.memory)
    }

    /// The same, with what a step computes.
    pub fn foresee(
        target: &Target,
        weights: &[Weight],
        build: &BuildLoss,
        settings: &Settings,
    ) -> Result<Foreseen> {
        refuse_hopeless(target, weights, settings)?;
        let cut = Cut::new(target, weights, build, settings)?;
        let parts = Parts::new(target, &cut, &|graph, mode| cut.write(build, graph, mode), settings)?;
        let caps = target.caps();
        let planned = |graph: &&Graph| plan(graph, &parts.residents, &caps, &mut hungriest_variant);
        let plans = parts.graphs().iter().map(planned).collect::<Result<Vec<_>, _>>()?;
        let passes = settings.accumulate as f64;
        let flops = passes * flops_of(&plans[STEP]) + flops_of(&plans[UPDATE]);
        Ok(Foreseen { memory: parts.memory(target, &plans), flops })
    }

    /// The plans by what they do, in the order of an engine that runs them.
    pub fn plans(&self) -> impl Iterator<Item = (&'static str, &Plan)> {
        self.names.iter().copied().zip(&self.plans)
    }

    /// What each pass did to the graphs of a step and of an evaluation, in the order in which they ran.
    pub fn passes(&self) -> impl Iterator<Item = (&'static str, &[Report])> {
        self.passes.iter().map(|(name, reports)| (*name, &reports[..]))
    }

    /// All memory that outlasts a step.
    pub fn arenas(&self) -> &[Arena] {
        &self.lasting
    }

    /// Bytes by use.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Bytes that [`Memory::run`] would be about if nothing were computed again; none if nothing is.
    pub fn held_run(&self) -> Option<u64> {
        self.held_run
    }

    /// Number of weights.
    pub fn weight_count(&self) -> usize {
        self.layout.count()
    }

    /// The weights and where they are kept.
    pub fn weights(&self) -> impl Iterator<Item = (&Placed, Span)> {
        self.layout.tensors.iter().map(|placed| (placed, self.arenas.span(Role::Parameters, placed)))
    }

    /// The scalars of the first update at a learning rate.
    pub fn update_scalars(&self, settings: &Settings, rate: f64) -> Tensor {
        update::scalars(settings, rate, 0)
    }

    /// What is written into the arenas once, before the first step.
    pub fn fixed(&self, settings: &Settings) -> Vec<(Span, Tensor)> {
        let mut fixed = self.arenas.fixed(&self.layout, settings);
        let held = |kept: &Kept| Some((kept.span, settings.frozen.tensor(&kept.name)?.into_owned()));
        fixed.extend(self.frozen.iter().filter_map(held));
        fixed
    }
}

/// Refuses a model whose weights, gradients and moments alone are too large, before anything is made for it.
fn refuse_hopeless(target: &Target, weights: &[Weight], settings: &Settings) -> Result<()> {
    let count = |w: &Weight| w.shape.iter().map(|&size| size as f64).product::<f64>();
    // Moments and weights in bytes take a quarter, weights in bf16 half; which are held so is known later.
    let class = settings.reduced.class;
    let share = if class.byte_moments { 0.25 } else { 1.0 };
    let weights_and_gradients = match class {
        Class { byte_weights: true, .. } => 1.25,
        Class { half_weights: true, .. } => 1.5,
        _ => 2.0,
    };
    let copies = weights_and_gradients + share * update::moment_count(settings) as f64;
    let trained = 4.0 * copies * weights.iter().map(count).sum::<f64>();
    let need = trained + settings.frozen.size_bytes() as f64;
    match target.memory_bytes() {
        Some(have_bytes) if need > have_bytes as f64 => {
            Err(crate::plan::Error::DoesNotFit { need_bytes: need as u64, have_bytes }.into())
        }
        _ => Ok(()),
    }
}

/// Slots are shared by the plans, since only one runs at a time; inputs and constants are not.
fn run_bytes<'a>(plans: impl Iterator<Item = &'a Plan> + Clone) -> u64 {
    let own: u64 = plans.clone().map(|p| p.feed_bytes + p.known_bytes).sum();
    own + shared_slot_bytes(plans)
}

/// Bytes of the slots when the n-th largest of each plan is one buffer.
fn shared_slot_bytes<'a>(plans: impl Iterator<Item = &'a Plan>) -> u64 {
    let mut widest: Vec<u64> = vec![];
    for plan in plans {
        let mut slots = plan.slots.clone();
        slots.sort_unstable_by_key(|&bytes| std::cmp::Reverse(bytes));
        for (i, bytes) in slots.into_iter().enumerate() {
            if i == widest.len() {
                widest.push(0);
            }
            widest[i] = widest[i].max(bytes);
        }
    }
    widest.iter().sum()
}

/// The variant with the most scratch.
fn hungriest_variant(_: &Node, _: &[Type], variants: &[Variant]) -> Option<usize> {
    let scratch = |variant: &Variant| variant.scratch.iter().sum::<u64>();
    (0..variants.len()).max_by_key(|&i| (scratch(&variants[i]), std::cmp::Reverse(i)))
}

/// What is planned, and over which arenas.
struct Parts {
    step: Graph,
    update: Graph,
    evaluation: Graph,
    gather: Option<Graph>,
    masks: Option<Graph>,
    beside: Vec<Graph>,
    residents: Residents,
    /// Of the caches of what is beside.
    state_bytes: u64,
    layout: Layout,
    learned: Vec<Learned>,
    pruned: Vec<Pruned>,
    arenas: update::Arenas,
    frozen: Vec<Kept>,
    passes: Vec<(&'static str, Vec<Report>)>,
}

impl Parts {
    fn new(target: &Target, cut: &Cut, build: &BuildLoss, settings: &Settings) -> Result<Parts> {
        let (caps, weights) = (target.caps(), &cut.weights);
        let page_bytes = settings.page_bytes.unwrap_or(caps.max_binding_bytes);
        let survey = settings.reduced.survey(build, &settings.frozen, settings.prune.as_ref())?;
        let beside = survey.learned.iter().map(|l| (l.name.clone(), l.kind().shape, false));
        let beside = beside.chain(settings.aside.iter().map(|s| (s.name.clone(), s.shape.clone(), s.decay)));
        let all = weights.iter().map(|w| (w.name.clone(), w.shape.clone(), w.decays)).chain(beside);
        let layout = Layout::keeping(all, page_bytes, |name| survey.class(name));
        cut.check(&layout)?;
        let arenas = update::Arenas::new(&layout, settings);
        let mut residents = Residents { arenas: arenas.list.clone(), ..Residents::default() };
        for placed in &layout.tensors {
            residents.places.insert(placed.name.clone(), arenas.span(Role::Parameters, placed));
            if let Some((span, _)) = arenas.weight_scales(placed) {
                residents.places.insert(scales_name(&placed.name), span);
            }
            residents.results.insert(gradient_name(&placed.name), arenas.span(Role::Gradients, placed));
        }
        for (number, arena) in arenas.list.iter().enumerate() {
            residents.places.insert(arena_name(arena), Span { arena: number, offset_bytes: 0 });
        }
        arenas.keep_results(&mut residents);
        let (step, of_step) = step_graph(weights, build, settings, &caps)?;
        let (evaluation, _, mut of_evaluation) = loss_graph(weights, build, settings, Mode::Evaluate, &caps)?;
        let (evaluation, more) = passes::run(&[&Residual, &Fuse, &Epilogue], evaluation)?;
        of_evaluation.extend(more);
        let update = update::graph(&arenas, settings)?;
        let gather = if update::gathers(settings) { Some(update::gather_graph(&arenas)?) } else { None };
        let chooses = survey.pruned.iter().any(|pruned| pruned.is_chosen);
        let masks = chooses.then(|| update::mask_graph(&arenas)).transpose()?;
        let beside =
            settings.beside.iter().map(|graph| beside_graph(&cut.of_graph(graph)?, settings, &survey));
        let beside = beside.collect::<Result<Vec<_>>>()?;
        let all: Vec<&Graph> = [&step, &evaluation].into_iter().chain(&beside).collect();
        let frozen = keep_frozen(&all, page_bytes, &mut residents);
        let before = residents.arenas.len();
        let states = beside.iter().flat_map(|graph| graph.values());
        let states = states.filter(|info| matches!(info.source, Source::State));
        frozen::place(states, page_bytes, &mut residents);
        let state_bytes = residents.arenas[before..].iter().map(|arena| arena.kind.size_bytes()).sum();
        let (learned, pruned) = (survey.learned, survey.pruned);
        Ok(Parts {
            step,
            update,
            evaluation,
            gather,
            masks,
            beside,
            residents,
            state_bytes,
            layout,
            learned,
            pruned,
            arenas,
            frozen,
            passes: vec![("step", of_step), ("evaluation", of_evaluation)],
        })
    }

    /// In the order in which an engine numbers their plans.
    fn graphs(&self) -> Vec<&Graph> {
        self.named().into_iter().map(|(_, graph)| graph).collect()
    }

    fn named(&self) -> Vec<(&'static str, &Graph)> {
        let step = [("step", &self.step), ("update", &self.update), ("evaluation", &self.evaluation)];
        let more = self.gather.iter().map(|graph| ("gather", graph));
        let more = more.chain(self.masks.iter().map(|graph| (MASKS, graph)));
        step.into_iter().chain(more).chain(self.beside.iter().map(|graph| ("writing", graph))).collect()
    }

    fn memory(&self, target: &Target, plans: &[Plan]) -> Memory {
        let of = |wanted: fn(Role) -> bool| self.arenas.bytes(wanted);
        let kept = self.residents.arenas[self.arenas.list.len()..].iter().map(|a| a.kind.size_bytes());
        Memory {
            parameters: of(|role| matches!(role, Role::Parameters | Role::WeightScales)),
            frozen: kept.sum::<u64>() - self.state_bytes,
            gradients: of(|role| matches!(role, Role::Gradients | Role::Totals)),
            moments: of(|role| {
                let weights = matches!(role, Role::Parameters | Role::WeightScales);
                let masks = matches!(role, Role::Masks | Role::Dense | Role::Scores);
                !weights && !masks && !matches!(role, Role::Gradients | Role::Totals)
            }),
            masks: of(|role| matches!(role, Role::Masks | Role::Dense | Role::Scores)),
            run: run_bytes(plans.iter()) + self.state_bytes,
            transfer: target.transfer_bytes(plans),
        }
    }
}

/// A graph beside the step, over weights as the step holds them.
fn beside_graph(graph: &Graph, settings: &Settings, survey: &Survey) -> Result<Graph> {
    let frozen = settings.frozen.passes(graph);
    // What reads frozen weights alone has nothing that is held or computed as the trained ones are.
    let trains = graph.parameters().any(|(name, _)| !settings.frozen.holds(name));
    let reduced = if trains { settings.reduced.passes(Mode::Evaluate, survey) } else { vec![] };
    let mut pipeline: Vec<&dyn Pass> = vec![&Tidy];
    pipeline.extend(frozen.iter().chain(&reduced).map(Box::as_ref));
    pipeline.extend([&Residual as &dyn Pass, &Fuse, &Epilogue]);
    Ok(passes::run(&pipeline, graph.clone())?.0)
}

/// Gives the frozen weights of some graphs arenas of their own.
fn keep_frozen(graphs: &[&Graph], page_bytes: u64, residents: &mut Residents) -> Vec<Kept> {
    let mut infos: Vec<&ValueInfo> = vec![];
    for info in graphs.iter().flat_map(|graph| graph.values()) {
        let is_new = |name: &Option<String>| infos.iter().all(|other| other.name != *name);
        if matches!(info.source, Source::Frozen) && is_new(&info.name) {
            infos.push(info);
        }
    }
    frozen::place(infos.iter().copied(), page_bytes, residents);
    let kept = |info: &ValueInfo| {
        let name = info.name.clone().expect("frozen weights are named when made");
        let span = *residents.places.get(&name).expect("just placed");
        Kept { name, span, kind: info.kind.clone() }
    };
    infos.into_iter().map(kept).collect()
}

/// Name under which an arena is a state of the update graph.
pub(super) fn arena_name(arena: &Arena) -> String {
    format!("arena.{}", arena.name)
}

/// Name under which a weight's gradient is a result of the step.
pub(super) fn gradient_name(parameter: &str) -> String {
    format!("gradient.{parameter}")
}
