//! Who made the first number that is none.

use super::{Flight, Trainer};
use crate::graph::trace;
use crate::ops::optimizer::norm::CONTROL;
use crate::passes::scales_name;
use crate::tensor::{DType, Tensor, Type};
use crate::train::Result;
use crate::train::program::{Kept, STEP};
use crate::train::update::Role;

impl Trainer {
    /// Replays a step on the host, node by node, and names the first operator whose output is not finite.
    pub(super) fn culprit(&mut self, flight: &Flight) -> Result<String> {
        let mut weights = self.tensors_of(Role::Parameters)?;
        for Kept { name, span, kind } in &self.frozen {
            weights.push((name.clone(), self.engine.read(*span, kind)?));
        }
        for placed in &self.layout.tensors {
            let Some((place, kind)) = self.arenas.weight_scales(placed) else { continue };
            let (span, codes) = self.arenas.parameter(placed);
            weights.retain(|(name, _)| *name != placed.name);
            weights.push((placed.name.clone(), self.engine.read(span, &codes)?));
            weights.push((scales_name(&placed.name), self.engine.read(place, &kind)?));
        }
        let graph = self.plans[STEP].graph.clone();
        let control = self.engine.read(self.arenas.control(), &Type::f32([CONTROL]))?;
        for feeds in &flight.feeds {
            let mut feeds = feeds.clone();
            feeds.set("arena.control", control.clone());
            weights.iter().for_each(|(name, tensor)| feeds.set(name.clone(), tensor.clone()));
            if let Some((name, _)) = weights.iter().find(|(_, t)| !all_finite(t)) {
                return Ok(format!("weight `{name}`"));
            }
            let mut found = None;
            trace(&graph, &feeds, DType::F32, &mut |number, outputs| {
                if found.is_none() && outputs.iter().any(|t| !all_finite(t)) {
                    let node = &graph.nodes()[number];
                    found = Some(format!("{} at `{}`", node.op.name(), node.scope));
                }
            })?;
            if let Some(found) = found {
                return Ok(found);
            }
        }
        Ok("none on the host: the device alone gives this result (`kiln doctor` checks its kernels)".into())
    }
}

fn all_finite(tensor: &Tensor) -> bool {
    matches!(tensor.data.dtype(), DType::U32 | DType::I8) || tensor.to_f64().iter().all(|x| x.is_finite())
}
