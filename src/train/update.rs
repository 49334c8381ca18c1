//! The second half of a step as a graph over whole arenas: gradient norm, clipping, optimiser.

use super::layout::Layout;
use super::program::arena_name;
use super::recipe::{Clip, Rule};
use super::trainer::Settings;
use super::{Error, Result};
use crate::graph::Graph;
use crate::ops::optimizer::accumulate::AccumulateEmit;
use crate::ops::optimizer::norm::{CONTROL, GradientNormEmit, START};
use crate::ops::optimizer::{Kind, Optimizer, OptimizerEmit, SCALARS, Steering};
use crate::plan::{Arena, Residents, Span};
use crate::tensor::{Tensor, Type};

/// Number of the arena of weights.
pub const PARAMETERS: usize = 0;
/// Number of the arena of gradients.
pub const GRADIENTS: usize = 1;

/// All memory that outlasts a step.
pub struct Arenas {
    /// The arenas in order.
    pub list: Vec<Arena>,
    moments: usize,
}

impl Arenas {
    /// Parameters, gradients, what steers the update, then as many moments as the rule keeps, then the sum over micro-batches.
    pub fn new(layout: &Layout, settings: &Settings) -> Self {
        let arena = |name: &str, kind: Type| Arena { name: name.into(), kind };
        let mut list = vec![
            arena("parameters", layout.kind()),
            arena("gradients", layout.kind()),
            arena("segments", layout.segments().host_type()),
            arena("decay", Type::f32([layout.tensors.len()])),
            arena("control", Type::f32([CONTROL])),
        ];
        let moments = kind_of(settings).map_or(0, |kind| kind.moments());
        list.extend((1..=moments).map(|n| arena(&format!("moment{n}"), layout.kind())));
        if gathers(settings) {
            list.push(arena("totals", layout.kind()));
        }
        Arenas { list, moments }
    }

    /// Numbers and names of the moments.
    pub fn moments(&self) -> Vec<(usize, String)> {
        (1..=self.moments).map(|n| (self.number(&format!("moment{n}")), format!("moment{n}"))).collect()
    }

    /// What is written once, before the first step.
    pub fn fixed(&self, layout: &Layout, settings: &Settings) -> Vec<(Span, Tensor)> {
        let at = |name: &str| Span { arena: self.number(name), offset_bytes: 0 };
        vec![
            (at("segments"), layout.segments()),
            (at("decay"), layout.decay(settings.optimizer.decay.weight_decay)),
            (at("control"), Tensor::f32([CONTROL], START.to_vec())),
        ]
    }

    /// Lets the results of in-place operators stay where they are.
    pub fn keep_results(&self, residents: &mut Residents) {
        for (number, arena) in self.list.iter().enumerate() {
            residents.results.insert(updated(arena), Span { arena: number, offset_bytes: 0 });
        }
    }

    fn number(&self, name: &str) -> usize {
        self.list.iter().position(|a| a.name == name).expect("arenas are named when made")
    }

    fn arena(&self, name: &str) -> &Arena {
        &self.list[self.number(name)]
    }
}

/// Arenas of state that the optimiser keeps beside the weights.
pub fn moment_count(settings: &Settings) -> Result<usize> {
    Ok(kind_of(settings)?.moments())
}

/// True if gradients are summed or rescaled before the update.
pub fn gathers(settings: &Settings) -> bool {
    settings.accumulate > 1 || settings.loss_scale != 1.0
}

/// Factors of one gathering: what stays of the sum so far, and the share of the new gradients.
pub fn gather_scalars(settings: &Settings, number: usize) -> Tensor {
    let keep = if number == 0 { 0.0 } else { 1.0 };
    Tensor::f32([2], vec![keep, 1.0 / (settings.accumulate as f32 * settings.loss_scale)])
}

/// The scalars of an update at step `step`, counted from zero.
pub fn scalars(settings: &Settings, rate: f64, step: u64) -> Result<Tensor> {
    Ok(Tensor::f32([SCALARS], operator(settings)?.scalars(rate, step + 1).to_vec()))
}

/// The gradient norm that a control word tells.
pub fn norm_of(control: &Tensor) -> f64 {
    let words = control.to_f64();
    if words[2] == 0.0 { f64::NAN } else { words[1] }
}

/// Norm, clip and update over the arenas. The control word is read back.
pub fn graph(arenas: &Arenas, settings: &Settings) -> Result<Graph> {
    let mut graph = Graph::new();
    let state = |graph: &mut Graph, name: &str| {
        let arena = arenas.arena(name);
        graph.state(arena_name(arena), arena.kind.clone())
    };
    let parameters = state(&mut graph, "parameters");
    let gradients = state(&mut graph, if gathers(settings) { "totals" } else { "gradients" });
    let (segments, decay) = (state(&mut graph, "segments"), state(&mut graph, "decay"));
    let before = state(&mut graph, "control");
    let moments: Vec<_> = arenas.moments().iter().map(|(_, name)| state(&mut graph, name)).collect();
    let scalars = graph.input("scalars", Type::f32([SCALARS]));
    let max_norm = match settings.clip {
        Clip::Norm(limit) => Some(limit as f32),
        Clip::None | Clip::Value(_) => None,
    };
    let control = graph.gradient_norm(gradients, before, max_norm)?;
    let steering = Steering { segments, decay, scalars, control };
    let results = graph.optimize(&operator(settings)?, parameters, gradients, &moments, steering)?;
    graph.output(updated(arenas.arena("parameters")), results[0]);
    graph.output("control", control);
    Ok(graph)
}

/// Adds the gradients of a micro-batch to the sum.
pub fn gather_graph(arenas: &Arenas) -> Result<Graph> {
    let mut graph = Graph::new();
    let (totals, gradients) = (arenas.arena("totals"), arenas.arena("gradients"));
    let total = graph.state(arena_name(totals), totals.kind.clone());
    let new = graph.state(arena_name(gradients), gradients.kind.clone());
    let scalars = graph.input("scalars", Type::f32([2]));
    let sum = graph.accumulate(total, new, scalars)?;
    graph.output(updated(totals), sum);
    Ok(graph)
}

fn updated(arena: &Arena) -> String {
    format!("updated.{}", arena.name)
}

fn operator(settings: &Settings) -> Result<Optimizer> {
    let clip_value = match settings.clip {
        Clip::Value(limit) => Some(limit as f32),
        Clip::None | Clip::Norm(_) => None,
    };
    Ok(Optimizer { kind: kind_of(settings)?, clip_value })
}

fn kind_of(settings: &Settings) -> Result<Kind> {
    let decoupled = settings.optimizer.decay.decoupled && settings.optimizer.decay.weight_decay != 0.0;
    Ok(match settings.optimizer.rule {
        Rule::Adam { betas, eps } | Rule::Adamw { betas, eps } if settings.optimizer.decay.decoupled => {
            Kind::AdamW { betas, epsilon: eps }
        }
        Rule::Adam { betas, eps } | Rule::Adamw { betas, eps } => Kind::Adam { betas, epsilon: eps },
        Rule::Lamb { betas, eps } => Kind::Lamb { betas, epsilon: eps },
        Rule::GradientDescent if !decoupled => Kind::GradientDescent,
        Rule::Sgd { momentum, dampening, nesterov } if !decoupled => {
            Kind::Sgd { momentum, dampening, nesterov }
        }
        Rule::GradientDescent | Rule::Sgd { .. } => {
            let problem = "decoupled weight decay goes with adam, adamw and lamb only".to_string();
            return Err(Error::Mismatch { folder: "recipe".into(), problem });
        }
    })
}
