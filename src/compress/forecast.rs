//! What a recipe will take, told beforehand from shapes and plans: nothing is measured, trained or allocated.

use super::calibrate::{gram_bytes, layers_of, portions};
use super::method::extent_of;
use super::stage::{Stage, Statistic, Subject};
use super::{Linear, Result};
use crate::data::windows::Batch;
use crate::deploy::{Deployment, place};
use crate::model::Mode;
use crate::train::Target;

/// Memory beside the model in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Layers whose inputs are measured.
    pub layers: usize,
    /// Sweeps over the text for that.
    pub sweeps: usize,
    /// Most bytes that what is measured takes at once.
    pub bytes: u64,
}

/// What a pass will measure of a model as it is now, within a budget; none where it needs no inner products.
pub fn forecast(
    stage: &dyn Stage,
    subject: &Subject,
    batches: &[Batch],
    memory_bytes: u64,
) -> Result<Option<Forecast>> {
    let (_, all) = layers_of(subject.family.as_ref(), extent_of(subject.family.as_ref(), batches))?;
    let mut chosen: Vec<&Linear> = vec![];
    for (what, selection) in stage.needs().statistics {
        if what == Statistic::Gram {
            chosen.extend(selection.of(&all)?);
        }
    }
    if chosen.is_empty() || batches.is_empty() {
        return Ok(None);
    }
    let portions = portions(&chosen, memory_bytes)?;
    let bytes = portions.iter().map(|portion| gram_bytes(portion)).max().unwrap_or(0);
    Ok(Some(Forecast { layers: chosen.len(), sweeps: portions.len(), bytes }))
}

/// Bytes of weights and activations while a window of the text goes through a model.
pub fn forward_bytes(subject: &Subject, batches: &[Batch], target: &Target) -> Result<u64> {
    let extent = extent_of(subject.family.as_ref(), batches);
    let deployment = Deployment::new(&subject.weights).within(target);
    let graph = deployment.graph(subject.family.as_ref(), extent, Mode::Evaluate, |graph, forward| {
        graph.output("logits", forward.logits);
        Ok(())
    })?;
    let graphs = [graph];
    let residents = place(&graphs, target.caps().max_binding_bytes);
    let plans = target.plans(&graphs.iter().collect::<Vec<_>>(), &residents, None)?;
    let run = plans.iter().map(|plan| plan.slot_bytes() + plan.feed_bytes + plan.known_bytes).sum::<u64>();
    Ok(deployment.weight_bytes() + run)
}
