//! What of a step is held or computed in codes.

use super::Result;
use super::layout::Kept;
use super::trainer::BuildLoss;
use crate::graph::Graph;
use crate::model::Mode;
use crate::passes::{self, CodedProducts, Learned, Pass, QuantizationAware, Tidy};
use std::collections::HashSet;

/// What of a step is held or computed in codes; by default nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reduced {
    /// The loss is that of the quantised model.
    pub aware: Option<QuantizationAware>,
    /// Products of linear layers are made of int8 codes.
    pub products: Option<CodedProducts>,
    /// Moments of the weights of linear layers are kept in 8 bits, but for those of fewer than [`FEWEST`] elements.
    pub byte_moments: bool,
}

/// Elements of a tensor from which keeping its moments in 8 bits is worth it.
pub const FEWEST: usize = 4096;

/// What a loss tells of the parameters before any pass has touched it.
pub(super) struct Survey {
    /// Steps of weights that are parameters beside those of the model.
    pub learned: Vec<Learned>,
    /// Weights whose moments are kept in 8 bits.
    bytes: HashSet<String>,
}

impl Survey {
    /// How the optimiser keeps its moments of a parameter.
    pub fn kept(&self, name: &str) -> Kept {
        if self.bytes.contains(name) { Kept::Bytes } else { Kept::Singles }
    }
}

impl Reduced {
    /// The passes over a loss, in order.
    pub(super) fn passes(&self, mode: Mode) -> Vec<Box<dyn Pass>> {
        let trains = mode == Mode::Train;
        let aware =
            self.aware.clone().map(|pass| Box::new(QuantizationAware { trains, ..pass }) as Box<dyn Pass>);
        let products =
            self.products.clone().map(|pass| Box::new(CodedProducts { trains, ..pass }) as Box<dyn Pass>);
        aware.into_iter().chain(products).collect()
    }

    /// Looks at the loss as it is written.
    pub(super) fn survey(&self, build: &BuildLoss) -> Result<Survey> {
        let aware = self.aware.as_ref().filter(|aware| aware.learned_step);
        let mut survey = Survey { learned: vec![], bytes: HashSet::new() };
        if aware.is_none() && !self.byte_moments {
            return Ok(survey);
        }
        let mut graph = Graph::new();
        let loss = build(&mut graph, Mode::Evaluate)?;
        graph.output("loss", loss);
        let (graph, _) = passes::run(&[&Tidy], graph)?;
        if let Some(aware) = aware {
            survey.learned = aware.learned(&graph)?;
        }
        if self.byte_moments {
            let large = |name: &String| {
                graph.named(name).is_some_and(|weight| graph.kind(weight).shape.count() >= FEWEST)
            };
            survey.bytes = passes::linear_weights(&graph).into_iter().filter(large).collect();
        }
        Ok(survey)
    }
}
