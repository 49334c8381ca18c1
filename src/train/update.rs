//! The second half of a step as a graph over whole arenas: gradient norm, clipping, optimiser.

use super::Result;
use super::layout::{Class, GROUP, Layout, Masked, Placed};
use super::program::arena_name;
use super::recipe::{Clip, LossScale, Method, Removal, Rule};
use super::trainer::Settings;
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::block_codes::BlockCodesEmit;
use crate::ops::block_numbers::BlockNumbersEmit;
use crate::ops::optimizer::accumulate::AccumulateEmit;
use crate::ops::optimizer::bytes::{AdamBytesEmit, ByteMoments};
use crate::ops::optimizer::masked::{BITS, MaskedEmit};
use crate::ops::optimizer::movement::MovementEmit;
use crate::ops::optimizer::norm::{CONTROL, GradientNorm, GradientNormEmit, start};
use crate::ops::optimizer::shrink::ShrinkEmit;
use crate::ops::optimizer::{Kind, Optimizer, OptimizerEmit, SCALARS, Steering};
use crate::ops::reshape::ReshapeEmit;
use crate::ops::slice::SliceEmit;
use crate::plan::{Arena, Residents, Span};
use crate::tensor::random::key_of;
use crate::tensor::{DType, Tensor, Type};

/// Sets the randomness of rounding apart from that of dropout and of the first weights.
const ROUNDING: u32 = 0x0062_6631;

/// What an arena holds. All but the control word exist once for each page of the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Weights.
    Parameters,
    /// Scales of weights that are codes.
    WeightScales,
    /// Gradients of the last batch.
    Gradients,
    /// Sums of gradients over micro-batches.
    Totals,
    /// A moment of the optimiser, counted from one.
    Moment(usize),
    /// Moments in 8 bits.
    Codes,
    /// Scales of the moments in 8 bits.
    Scales,
    /// Tensor of each block.
    Segments,
    /// Weight decay of each tensor.
    Decay,
    /// One bit for each weight that is removed.
    Masks,
    /// Weights as they are behind a mask under which they may return.
    Dense,
    /// What such masks are chosen by.
    Scores,
    /// What the gradient norm tells the update.
    Control,
}

/// All memory that outlasts a step.
pub struct Arenas {
    /// The arenas in order.
    pub list: Vec<Arena>,
    /// What each is for, and the page it holds.
    roles: Vec<(Role, usize)>,
    moments: usize,
    pages: Vec<Class>,
    /// What masks are chosen by, where they are.
    method: Option<Method>,
}

impl Arenas {
    /// For each page: parameters, gradients, what steers the update, as many moments as the rule keeps, the sum over micro-batches.
    pub fn new(layout: &Layout, settings: &Settings) -> Self {
        let moments = kind_of(settings).moments();
        let pages = layout.pages.iter().map(|page| page.class).collect();
        let method = removal_of(settings).map(|removal| removal.method);
        let mut arenas = Arenas { list: vec![], roles: vec![], moments, pages, method };
        for (page, of_page) in layout.pages.iter().enumerate() {
            arenas.add(Role::Parameters, page, Type::new(of_page.class.stored(), [of_page.elements]));
            if of_page.class.byte_weights {
                arenas.add(Role::WeightScales, page, Type::f32([of_page.elements / GROUP]));
            }
            arenas.add(Role::Gradients, page, layout.kind(page));
            arenas.add(Role::Segments, page, layout.segments(page).host_type());
            arenas.add(Role::Decay, page, Type::f32([layout.of_page(page).len()]));
            match of_page.class.byte_moments {
                true => {
                    let elements = 2 * of_page.elements;
                    arenas.add(Role::Codes, page, Type::new(DType::I8, [elements]));
                    arenas.add(Role::Scales, page, Type::f32([elements / GROUP]));
                }
                false => {
                    for number in 1..=moments {
                        arenas.add(Role::Moment(number), page, layout.kind(page));
                    }
                }
            }
            if gathers(settings) {
                arenas.add(Role::Totals, page, layout.kind(page));
            }
            if of_page.class.masked != Masked::No {
                arenas.add(Role::Masks, page, Type::new(DType::U32, [of_page.elements / BITS]));
            }
            if arenas.is_scored(page) {
                arenas.add(Role::Dense, page, layout.kind(page));
                arenas.add(Role::Scores, page, layout.kind(page));
            }
        }
        arenas.add(Role::Control, 0, Type::f32([CONTROL]));
        arenas
    }

    fn add(&mut self, role: Role, page: usize, kind: Type) {
        let mut name = match role {
            Role::Moment(number) => format!("moment{number}"),
            _ => format!("{role:?}").to_lowercase(),
        };
        if self.pages.len() > 1 && role != Role::Control {
            name = format!("{name}.{page}");
        }
        self.list.push(Arena { name, kind });
        self.roles.push((role, page));
    }

    /// What the optimiser keeps of a weight: where, its name in checkpoints, and its type.
    pub fn moments(&self, placed: &Placed) -> Vec<(Span, String, Type)> {
        let mut kept = self.codes(placed);
        let entry =
            |role, what: String, kind| (self.span(role, placed), format!("{}.{what}", placed.name), kind);
        match self.pages[placed.page].byte_moments {
            false => {
                let kind = Type::f32(placed.shape.clone());
                let one = |n| entry(Role::Moment(n), format!("moment{n}"), kind.clone());
                kept.extend((1..=self.moments).map(one));
            }
            true => {
                let elements = 2 * placed.padded;
                kept.push(entry(Role::Codes, "moment_codes".into(), Type::new(DType::I8, [elements])));
                kept.push(entry(Role::Scales, "moment_scales".into(), Type::f32([elements / GROUP])));
            }
        }
        kept.extend(self.mask(placed).map(|(span, kind)| (span, format!("{}.mask", placed.name), kind)));
        if self.is_scored(placed.page) {
            let kind = Type::f32(placed.shape.clone());
            let one = |(role, what): (Role, &str)| entry(role, what.into(), kind.clone());
            kept.extend([(Role::Dense, "dense"), (Role::Scores, "scores")].map(one));
        }
        kept
    }

    /// The place of the mask of a weight that has one.
    pub fn mask(&self, placed: &Placed) -> Option<(Span, Type)> {
        let kind = Type::new(DType::U32, [placed.shape.count().div_ceil(BITS)]);
        let is_masked = self.pages[placed.page].masked != Masked::No;
        is_masked.then(|| (self.span(Role::Masks, placed), kind))
    }

    /// Whether weights of a page go on behind their masks, and are judged there.
    pub fn is_scored(&self, page: usize) -> bool {
        self.method == Some(Method::Movement) && self.pages[page].masked == Masked::Chosen
    }

    /// Codes and scales of a weight that is held so: in a checkpoint the model's own file has the numbers they stand for.
    fn codes(&self, placed: &Placed) -> Vec<(Span, String, Type)> {
        let Some((scales, kind)) = self.weight_scales(placed) else { return vec![] };
        let (span, codes) = self.parameter(placed);
        let name = |what| format!("{}.weight_{what}", placed.name);
        vec![(span, name("codes"), codes), (scales, name("scales"), kind)]
    }

    /// The place of the scales of a weight that is held as codes.
    pub fn weight_scales(&self, placed: &Placed) -> Option<(Span, Type)> {
        let count = placed.shape.count().div_ceil(GROUP);
        let is_codes = self.pages[placed.page].byte_weights;
        is_codes.then(|| (self.span(Role::WeightScales, placed), Type::f32([count])))
    }

    /// A weight as it is stored, with its place.
    pub fn parameter(&self, placed: &Placed) -> (Span, Type) {
        let stored = self.pages[placed.page].stored();
        (self.span(Role::Parameters, placed), Type::new(stored, placed.shape.clone()))
    }

    /// The place of a weight among arenas of one role.
    pub fn span(&self, role: Role, placed: &Placed) -> Span {
        let elements = placed.offset as u64;
        let offset_bytes = match role {
            Role::Parameters => self.pages[placed.page].stored().size_bytes() as u64 * elements,
            Role::Codes => 2 * elements,
            Role::Scales => 4 * 2 * elements / GROUP as u64,
            Role::WeightScales => 4 * elements / GROUP as u64,
            Role::Masks => 4 * elements / BITS as u64,
            _ => 4 * elements,
        };
        Span { arena: self.number(role, placed.page), offset_bytes }
    }

    /// The place of the control value.
    pub fn control(&self) -> Span {
        Span { arena: self.number(Role::Control, 0), offset_bytes: 0 }
    }

    /// Bytes of all arenas of some roles.
    pub fn bytes(&self, wanted: impl Fn(Role) -> bool) -> u64 {
        let both = self.list.iter().zip(&self.roles);
        both.filter(|(_, (role, _))| wanted(*role)).map(|(arena, _)| arena.kind.size_bytes()).sum()
    }

    /// What is written once, before the first step.
    pub fn fixed(&self, layout: &Layout, settings: &Settings) -> Vec<(Span, Tensor)> {
        let at = |role, page| Span { arena: self.number(role, page), offset_bytes: 0 };
        let mut all =
            vec![(self.control(), Tensor::f32([CONTROL], start(settings.loss_scale.first()).to_vec()))];
        for page in 0..self.pages.len() {
            all.push((at(Role::Segments, page), layout.segments(page)));
            let decay = layout.decay(page, settings.optimizer.decay.weight_decay);
            all.push((at(Role::Decay, page), decay));
        }
        all
    }

    /// Lets the results of in-place operators stay where they are.
    pub fn keep_results(&self, residents: &mut Residents) {
        for (number, arena) in self.list.iter().enumerate() {
            residents.results.insert(updated(arena), Span { arena: number, offset_bytes: 0 });
        }
    }

    fn number(&self, role: Role, page: usize) -> usize {
        self.roles.iter().position(|&r| r == (role, page)).expect("arenas are made for every page")
    }

    fn arena(&self, role: Role, page: usize) -> &Arena {
        &self.list[self.number(role, page)]
    }
}

/// Arenas of state that the optimiser keeps beside the weights.
pub fn moment_count(settings: &Settings) -> usize {
    kind_of(settings).moments()
}

/// True if gradients of several batches are summed before the update.
pub fn gathers(settings: &Settings) -> bool {
    settings.accumulate > 1
}

/// Factors of one gathering: what stays of the sum so far, and the share of the new gradients.
pub fn gather_scalars(settings: &Settings, number: usize) -> Tensor {
    let keep = if number == 0 { 0.0 } else { 1.0 };
    Tensor::f32([2], vec![keep, 1.0 / settings.accumulate as f32])
}

/// The scalars of an update at step `step`, counted from zero.
pub fn scalars(settings: &Settings, rate: f64, step: u64) -> Tensor {
    let mut scalars = operator(settings, None).scalars(rate, step + 1).to_vec();
    let pull = removal_of(settings).map_or(0.0, |removal| removal.pull(step));
    scalars[SCALARS - 1] = (rate * pull) as f32;
    Tensor::f32([SCALARS], scalars)
}

fn removal_of(settings: &Settings) -> Option<&Removal> {
    settings.prune.as_ref()?.removal.as_ref()
}

/// What a control value tells of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Told {
    /// Global norm of the gradients, not a number if they were not finite.
    pub norm: f64,
    /// The update was left out.
    pub skipped: bool,
    /// No step will be made any more.
    pub halted: bool,
    /// Scale of the next loss.
    pub scale: f64,
}

impl Told {
    /// Reads the words.
    pub fn of(control: &Tensor) -> Told {
        let words = control.to_f64();
        let skipped = words[2] == 0.0;
        let norm = if skipped { f64::NAN } else { words[1] };
        Told { norm, skipped, halted: words[6] != 0.0, scale: words[3] }
    }
}

/// The loss scale as a value of the step's graph, where it is not one throughout.
pub fn loss_scale(graph: &mut Graph, settings: &Settings) -> Result<Option<Value>> {
    if settings.loss_scale == LossScale::NONE {
        return Ok(None);
    }
    let control = graph.state("arena.control", Type::f32([CONTROL]));
    let word = graph.slice(control, 0, 3, 4)?;
    Ok(Some(graph.reshape(word, [].into())?))
}

/// Norm, clip and update over the arenas. The control word is read back.
pub fn graph(arenas: &Arenas, settings: &Settings) -> Result<Graph> {
    let mut graph = Graph::new();
    let state = |graph: &mut Graph, role: Role, page: usize| {
        let arena = arenas.arena(role, page);
        graph.state(arena_name(arena), arena.kind.clone())
    };
    let read = if gathers(settings) { Role::Totals } else { Role::Gradients };
    let mut gradients: Vec<_> = (0..arenas.pages.len()).map(|page| state(&mut graph, read, page)).collect();
    let mut masks = vec![None; gradients.len()];
    for (page, gradients) in gradients.iter_mut().enumerate() {
        if arenas.pages[page].masked == Masked::No {
            continue;
        }
        let mask = state(&mut graph, Role::Masks, page);
        masks[page] = Some(mask);
        // Scores are of all weights: there the norm counts those that are removed as well.
        if !arenas.is_scored(page) {
            *gradients = graph.masked_over(*gradients, mask)?;
        }
    }
    let before = state(&mut graph, Role::Control, 0);
    let scalars = graph.input("scalars", Type::f32([SCALARS]));
    let max_norm = match settings.clip {
        Clip::Norm(limit) => Some(limit as f32),
        Clip::None | Clip::Value(_) => None,
    };
    let control = graph.gradient_norm(
        GradientNorm { arenas: arenas.pages.len(), max_norm, scaling: settings.loss_scale.scaling() },
        &gradients,
        before,
    )?;
    for (page, mut gradients) in gradients.into_iter().enumerate() {
        let is_scored = arenas.is_scored(page);
        let weights = if is_scored { Role::Dense } else { Role::Parameters };
        let stored = state(&mut graph, weights, page);
        if let Some(mask) = masks[page].filter(|_| is_scored) {
            let scores = state(&mut graph, Role::Scores, page);
            let scores = graph.movement(scores, stored, gradients, control)?;
            graph.output(updated(arenas.arena(Role::Scores, page)), scores);
            gradients = graph.masked_over(gradients, mask)?;
        }
        let byte_scales =
            arenas.pages[page].byte_weights.then(|| state(&mut graph, Role::WeightScales, page));
        let parameters = match byte_scales {
            Some(scales) => graph.block_numbers(stored, scales)?,
            None => stored,
        };
        let segments = state(&mut graph, Role::Segments, page);
        let decay = state(&mut graph, Role::Decay, page);
        let steering = Steering { segments, decay, scalars, control };
        let seed = [settings.seed as u32, (settings.seed >> 32) as u32];
        let key = || key_of(&[seed[0], seed[1], page as u32, ROUNDING]);
        let rule = operator(settings, arenas.pages[page].half_weights.then(key));
        let result = match arenas.pages[page].byte_moments {
            true => {
                let [codes, scales] = [Role::Codes, Role::Scales].map(|role| state(&mut graph, role, page));
                let moments = ByteMoments { codes, scales };
                graph.optimize_bytes(&rule, parameters, gradients, moments, steering)?
            }
            false => {
                let moments: Vec<_> =
                    (1..=arenas.moments).map(|n| state(&mut graph, Role::Moment(n), page)).collect();
                graph.optimize(&rule, parameters, gradients, &moments, steering)?[0]
            }
        };
        let result = match byte_scales {
            Some(scales) => {
                let [codes, scales] = graph.block_codes(key(), result, [stored, scales], scalars, control)?;
                graph.output(updated(arenas.arena(Role::WeightScales, page)), scales);
                codes
            }
            None => result,
        };
        let result = match (arenas.method, arenas.pages[page].masked) {
            (Some(Method::L1), Masked::Chosen) => graph.shrink(result, scalars, control)?,
            _ => result,
        };
        graph.output(updated(arenas.arena(weights, page)), result);
        if let Some(mask) = masks[page].filter(|_| is_scored) {
            let result = graph.masked(result, mask)?;
            graph.output(updated(arenas.arena(Role::Parameters, page)), result);
        }
    }
    graph.output("control", control);
    Ok(graph)
}

/// Lays masks that have just been chosen over weights and moments.
///
/// Weights behind a mask keep their moments: there what is removed moves on by what momentum is left.
pub fn mask_graph(arenas: &Arenas) -> Result<Graph> {
    let mut graph = Graph::new();
    let state = |graph: &mut Graph, role: Role, page: usize| {
        let arena = arenas.arena(role, page);
        graph.state(arena_name(arena), arena.kind.clone())
    };
    for page in (0..arenas.pages.len()).filter(|&page| arenas.pages[page].masked == Masked::Chosen) {
        let mask = state(&mut graph, Role::Masks, page);
        if arenas.is_scored(page) {
            let dense = state(&mut graph, Role::Dense, page);
            let weights = graph.masked(dense, mask)?;
            graph.output(updated(arenas.arena(Role::Parameters, page)), weights);
            continue;
        }
        let moments = (1..=arenas.moments).map(Role::Moment);
        for role in moments.chain([Role::Parameters]) {
            let before = state(&mut graph, role, page);
            let after = graph.masked_over(before, mask)?;
            graph.output(updated(arenas.arena(role, page)), after);
        }
    }
    Ok(graph)
}

/// Adds the gradients of a micro-batch to the sum.
pub fn gather_graph(arenas: &Arenas) -> Result<Graph> {
    let mut graph = Graph::new();
    let scalars = graph.input("scalars", Type::f32([2]));
    for page in 0..arenas.pages.len() {
        let (totals, gradients) = (arenas.arena(Role::Totals, page), arenas.arena(Role::Gradients, page));
        let total = graph.state(arena_name(totals), totals.kind.clone());
        let new = graph.state(arena_name(gradients), gradients.kind.clone());
        let sum = graph.accumulate(total, new, scalars)?;
        graph.output(updated(totals), sum);
    }
    Ok(graph)
}

fn updated(arena: &Arena) -> String {
    format!("updated.{}", arena.name)
}

/// `rounding` for weights in bf16.
fn operator(settings: &Settings, rounding: Option<u32>) -> Optimizer {
    let clip_value = match settings.clip {
        Clip::Value(limit) => Some(limit as f32),
        Clip::None | Clip::Norm(_) => None,
    };
    Optimizer { kind: kind_of(settings), clip_value, rounding }
}

fn kind_of(settings: &Settings) -> Kind {
    let decoupled = settings.optimizer.decay.decoupled;
    match settings.optimizer.rule {
        Rule::Adam { betas, eps } | Rule::Adamw { betas, eps } if decoupled => {
            Kind::AdamW { betas, epsilon: eps }
        }
        Rule::Adam { betas, eps } | Rule::Adamw { betas, eps } => Kind::Adam { betas, epsilon: eps },
        Rule::Lamb { betas, eps } => Kind::Lamb { betas, epsilon: eps },
        // Without state there is nothing that the decay could be kept out of.
        Rule::GradientDescent => Kind::GradientDescent,
        Rule::Sgd { momentum, dampening, nesterov } => Kind::Sgd { momentum, dampening, nesterov, decoupled },
    }
}
