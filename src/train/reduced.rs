//! What of a step is held or computed in codes.

use super::Result;
use super::trainer::BuildLoss;
use crate::graph::Graph;
use crate::model::Mode;
use crate::passes::{self, CodedProducts, Learned, Pass, QuantizationAware, Tidy};

/// What of a step is held or computed in codes; by default nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reduced {
    /// The loss is that of the quantised model.
    pub aware: Option<QuantizationAware>,
    /// Products of linear layers are made of int8 codes.
    pub products: Option<CodedProducts>,
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

    /// Steps of weights that are parameters beside those of the model.
    pub(super) fn learned(&self, build: &BuildLoss) -> Result<Vec<Learned>> {
        let Some(aware) = self.aware.as_ref().filter(|aware| aware.learned_step) else { return Ok(vec![]) };
        let mut graph = Graph::new();
        let loss = build(&mut graph, Mode::Evaluate)?;
        graph.output("loss", loss);
        let (graph, _) = passes::run(&[&Tidy], graph)?;
        Ok(aware.learned(&graph)?)
    }
}
