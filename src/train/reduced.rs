//! What of a step is held or computed in codes.

use super::distill::ASIDE;
use super::layout::Class;
use super::prune::{self, Pruned};
use super::recipe::Prune;
use super::trainer::BuildLoss;
use super::{Frozen, Result};
use crate::graph::Graph;
use crate::model::Mode;
use crate::passes::{self, ByteWeights, CodedProducts, HalfWeights, Learned, Pass, QuantizationAware, Tidy};
use std::collections::HashSet;

/// What of a step is held or computed in codes; by default nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reduced {
    /// The loss is that of the quantised model.
    pub aware: Option<QuantizationAware>,
    /// Products of linear layers are made of int8 codes.
    pub products: Option<CodedProducts>,
    /// How weights of linear layers are held, but for those of fewer than `FEWEST` elements.
    pub class: Class,
}

/// Elements of a tensor from which holding it or its moments in fewer bits is worth it.
pub const FEWEST: usize = 4096;

/// What a loss tells of the parameters before any pass has touched it.
pub(super) struct Survey {
    /// Steps of weights that are parameters beside those of the model.
    pub learned: Vec<Learned>,
    /// Weights that have masks.
    pub pruned: Vec<Pruned>,
    /// Weights that are held as `class` says.
    held: HashSet<String>,
    class: Class,
}

impl Survey {
    /// How a parameter is held.
    pub fn class(&self, name: &str) -> Class {
        let held = if self.held.contains(name) { self.class } else { Class::default() };
        let pruned = self.pruned.iter().find(|pruned| pruned.name == name);
        Class { masked: pruned.map(Pruned::class).unwrap_or_default(), ..held }
    }

    /// The pass that makes a loss read its weights as they are held.
    pub fn half_weights(&self) -> Option<HalfWeights> {
        let weights = if self.class.half_weights { self.held.clone() } else { HashSet::new() };
        (!weights.is_empty()).then_some(HalfWeights { weights })
    }

    /// The pass that makes a loss read its weights from codes.
    pub fn byte_weights(&self) -> Option<ByteWeights> {
        let weights = if self.class.byte_weights { self.held.clone() } else { HashSet::new() };
        (!weights.is_empty()).then_some(ByteWeights { weights })
    }
}

impl Reduced {
    /// The passes over a loss, in order.
    pub(super) fn passes(&self, mode: Mode, survey: &Survey) -> Vec<Box<dyn Pass>> {
        let trains = mode == Mode::Train;
        let halves = survey.half_weights().map(|pass| Box::new(pass) as Box<dyn Pass>);
        let aside = |mut ignore: Vec<String>| {
            ignore.push(format!("{ASIDE}*"));
            ignore
        };
        let aware = self.aware.clone().map(|pass| {
            Box::new(QuantizationAware { trains, ignore: aside(pass.ignore.clone()), ..pass })
                as Box<dyn Pass>
        });
        let products = self.products.clone().map(|pass| {
            Box::new(CodedProducts { trains, ignore: aside(pass.ignore.clone()), ..pass }) as Box<dyn Pass>
        });
        let bytes = survey.byte_weights().map(|pass| Box::new(pass) as Box<dyn Pass>);
        halves.into_iter().chain(bytes).chain(aware).chain(products).collect()
    }

    /// Looks at the loss as it is written.
    pub(super) fn survey(&self, build: &BuildLoss, frozen: &Frozen, prune: Option<&Prune>) -> Result<Survey> {
        let aware = self.aware.as_ref().filter(|aware| aware.learned_step);
        let mut survey = Survey { learned: vec![], pruned: vec![], held: HashSet::new(), class: self.class };
        if aware.is_none() && prune.is_none() && self.class == Class::default() {
            return Ok(survey);
        }
        let mut graph = Graph::new();
        let loss = build(&mut graph, Mode::Evaluate)?;
        graph.output("loss", loss);
        let (graph, _) = passes::run(&[&Tidy], graph)?;
        let passes = frozen.passes(&graph);
        let (graph, _) = passes::run(&passes.iter().map(Box::as_ref).collect::<Vec<_>>(), graph)?;
        if let Some(aware) = aware {
            survey.learned = aware.learned(&graph)?;
        }
        if let Some(prune) = prune {
            survey.pruned = prune::survey(prune, &graph)?;
        }
        if self.class != Class::default() {
            let large = |name: &String| {
                graph.named(name).is_some_and(|weight| graph.kind(weight).shape.count() >= FEWEST)
            };
            survey.held = passes::linear_weights(&graph).into_iter().filter(large).collect();
        }
        Ok(survey)
    }
}
