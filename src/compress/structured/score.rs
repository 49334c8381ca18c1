//! How much each unit matters.

use super::super::calibrate::Calibration;
use super::super::linear::linears;
use super::super::{Error, Result};
use super::{Group, Units};
use crate::deploy::Deployment;
use crate::graph::{Graph, Member, Source, gradient};
use crate::model::Mode;
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reduce::{Kind, ReduceEmit};
use crate::passes::{self, Fuse, Tidy};
use crate::tensor::Tensor;
use crate::train::{self, job};
use std::collections::BTreeMap;

/// A way to score units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Root of the sum of squares of all weights that belong to a unit.
    Magnitude,
    /// Mean magnitude of what a unit gives to the layers that read it, over the calibration text (Minitron).
    Activation,
    /// First-order estimate of what the loss on the calibration text would change: the sum of `|w dL/dw|` over all weights
    /// that belong to a unit, batch by batch. Tables that are looked up do not count.
    Taylor,
}

impl Score {
    /// All of them.
    pub const ALL: [Score; 3] = [Score::Magnitude, Score::Activation, Score::Taylor];

    /// Name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Score::Magnitude => "magnitude",
            Score::Activation => "activation",
            Score::Taylor => "taylor",
        }
    }

    /// Whether it is measured on a text.
    pub fn calibrates(self) -> bool {
        self != Score::Magnitude
    }

    /// For each group the scores of its units.
    pub(super) fn of(self, calibration: &Calibration, units: &Units) -> Result<Vec<Vec<f64>>> {
        match self {
            Score::Magnitude => magnitude(calibration, &units.groups),
            Score::Activation => activation(calibration, units),
            Score::Taylor => taylor(calibration, units),
        }
    }
}

/// Adds numbers, one for each position of a member's axis, to the scores of the units there.
fn add(scores: &mut [f64], member: &Member, numbers: impl IntoIterator<Item = f64>) {
    for (unit, number) in member.units.iter().zip(numbers) {
        if let Some(unit) = unit {
            scores[*unit as usize] += number;
        }
    }
}

fn magnitude(calibration: &Calibration, groups: &[Group]) -> Result<Vec<Vec<f64>>> {
    let mut all = vec![];
    for group in groups {
        let mut scores = vec![0.0; group.count];
        for member in &group.coupling.members {
            let tensor = calibration.weights.get(&member.name)?;
            let inner: usize = tensor.shape[member.axis + 1..].iter().product();
            let mut squares = vec![0.0; member.units.len()];
            for (number, run) in tensor.real::<f32>().chunks(inner).enumerate() {
                squares[number % member.units.len()] +=
                    run.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
            }
            add(&mut scores, member, squares);
        }
        scores.iter_mut().for_each(|score| *score = score.sqrt());
        all.push(scores);
    }
    Ok(all)
}

fn activation(calibration: &Calibration, units: &Units) -> Result<Vec<Vec<f64>>> {
    let all = linears(&units.graph);
    let reads = |group: &Group| {
        let reads = all.iter().filter(|linear| group.coupling.values.contains(&linear.input));
        reads.filter(|linear| !linear.is_head).collect::<Vec<_>>()
    };
    let readers: Vec<Vec<_>> = units.groups.iter().map(reads).collect();
    let channels = calibration.channels(&readers.concat())?;
    let mut found = vec![];
    for (group, readers) in units.groups.iter().zip(readers) {
        let mut scores = vec![0.0; group.count];
        for linear in readers {
            let axis = usize::from(!linear.turned);
            let members = &group.coupling.members;
            if let Some(member) = members.iter().find(|m| m.name == linear.weight && m.axis == axis) {
                add(&mut scores, member, channels[&linear.weight].magnitude.iter().copied());
            }
        }
        found.push(scores);
    }
    Ok(found)
}

fn taylor(calibration: &Calibration, units: &Units) -> Result<Vec<Vec<f64>>> {
    let extent = calibration.extent()?;
    let (mut graph, names) = slopes(calibration, units)?;
    (graph, _) = passes::run(&[&Tidy, &Fuse], graph).map_err(train::Error::from)?;
    let (mut engine, plans) = Deployment::new(calibration.weights).engine(calibration.target, &[graph])?;
    let mut sums: Vec<Vec<f64>> = vec![vec![]; names.len()];
    for batch in calibration.batches {
        let feeds = job::feeds_of(batch, extent);
        let list: Option<Vec<&Tensor>> = plans[0].feeds.iter().map(|feed| feeds.get(&feed.name)).collect();
        let list = list.expect("tokens and targets are all that the loss takes");
        for (sum, result) in sums.iter_mut().zip(engine.run(0, &list).map_err(train::Error::from)?) {
            sum.resize(result.data.len(), 0.0);
            sum.iter_mut().zip(result.real::<f32>()).for_each(|(sum, &x)| *sum += f64::from(x));
        }
    }
    let place: BTreeMap<_, _> = names.iter().enumerate().map(|(at, name)| (name.clone(), at)).collect();
    let scores = |group: &Group| {
        let mut scores = vec![0.0; group.count];
        for member in &group.coupling.members {
            if let Some(&at) = place.get(&(member.name.clone(), member.axis)) {
                add(&mut scores, member, sums[at].iter().copied());
            }
        }
        scores
    };
    Ok(units.groups.iter().map(scores).collect())
}

/// A graph of `|w dL/dw|` summed along all axes but one, with the weight and axis of each result.
fn slopes(calibration: &Calibration, units: &Units) -> Result<(Graph, Vec<(String, usize)>)> {
    let mut graph = Graph::new();
    let (family, extent) = (calibration.family, calibration.extent()?);
    let loss = job::language_loss(family, &mut graph, extent, Mode::Evaluate, 0.0)?;
    // The gradient of a table takes its positions sorted, which only training has.
    let looked_up = |name: &str| {
        let mut lookups = graph.nodes().iter().filter(|node| node.op.name() == "embedding");
        lookups.any(|node| graph.info(node.inputs[0]).name.as_deref() == Some(name))
    };
    let members = units.groups.iter().flat_map(|group| &group.coupling.members);
    let mut names: Vec<(String, usize)> =
        members.filter(|m| !looked_up(&m.name)).map(|m| (m.name.clone(), m.axis)).collect();
    names.sort();
    names.dedup();
    let weights: Vec<_> =
        names.iter().map(|(name, _)| graph.named(name).expect("members are parameters")).collect();
    debug_assert!(weights.iter().all(|&w| matches!(graph.info(w).source, Source::Parameter)));
    let gradients = gradient(&mut graph, loss, &weights)?;
    let mut found = vec![];
    for (((name, axis), weight), gradient) in names.into_iter().zip(weights).zip(gradients) {
        let Some(gradient) = gradient else { continue };
        let mut slope = located(graph.mul(weight, gradient))?;
        slope = located(graph.pointwise("abs", &[slope], 0.0))?;
        for other in (0..graph.kind(weight).shape.len()).filter(|&other| other != axis) {
            slope = located(graph.reduce(Kind::Sum, slope, other))?;
        }
        graph.output(format!("{name}.{axis}"), slope);
        found.push((name, axis));
    }
    Ok((graph, found))
}

fn located<T>(result: crate::ops::Result<T>) -> Result<T> {
    result.map_err(|source| Error::Graph(source.into()))
}
