//! The losses of several tasks in one graph, over one trunk.

use super::{Part, Several};
use crate::graph::{Graph, Source};
use crate::model::Mode;
use crate::ops::Value;
use crate::ops::pointwise::PointwiseEmit;
use crate::train::Result;
use crate::train::lesson;
use crate::train::step::Step;
use crate::train::trainer::PART;

/// Name of the loss in the graph of one task.
const LOSS: &str = "loss";

impl Several {
    /// The sum of all tasks' losses, each times its weight. In training each is a result beside it.
    pub(in crate::train) fn loss(&self, graph: &mut Graph, mode: Mode) -> Result<Value> {
        let mut sum = None;
        for part in &self.parts {
            let own = part.graph(mode)?;
            let loss = own.result(LOSS).expect("it was just written");
            let loss = part.bring(graph, &own, &part.prefix())?[loss.index()];
            if mode == Mode::Train {
                graph.output(format!("{PART}{}", part.name), loss);
            }
            let weighed = graph.scale(loss, part.weight as f32)?;
            sum = Some(match sum {
                None => weighed,
                Some(sum) => graph.add(sum, weighed)?,
            });
        }
        Ok(sum.expect("a recipe of tasks has one"))
    }

    /// The graphs by which a run measures itself, one for each task: scores of examples, or the loss of a text.
    pub(in crate::train) fn writers(&self) -> Result<Vec<Graph>> {
        self.parts.iter().map(Part::writer).collect()
    }
}

impl Part {
    /// The task's own loss, as it would be alone.
    pub(in crate::train) fn graph(&self, mode: Mode) -> Result<Graph> {
        let (job, mut graph) = (&self.job, Graph::new());
        let loss = Step::loss(&job.recipe, job.family.as_ref(), &job.beside, job.extent())(&mut graph, mode)?;
        graph.output(LOSS, loss);
        Ok(graph)
    }

    fn writer(&self) -> Result<Graph> {
        let job = &self.job;
        let mut of_examples = lesson::writers(&job.recipe, job.family.as_ref(), job.extent())?;
        let own = match of_examples.pop() {
            Some(graph) => graph,
            None => self.graph(Mode::Evaluate)?,
        };
        let mut graph = Graph::new();
        let map = self.bring(&mut graph, &own, "")?;
        own.outputs().iter().for_each(|(name, value)| graph.output(name.clone(), map[value.index()]));
        Ok(graph)
    }

    /// Writes a graph over the task's model into one over all heads, with its inputs behind a prefix.
    fn bring(&self, graph: &mut Graph, own: &Graph, prefix: &str) -> Result<Vec<Value>> {
        Ok(graph.bring_named(own, prefix, |info, name| match info.source {
            Source::Parameter => self.name_of(name),
            _ => format!("{prefix}{name}"),
        })?)
    }
}
