//! How much each block changes the stream.

use super::super::calibrate::Calibration;
use super::super::{Error, Result};
use crate::deploy::Deployment;
use crate::graph::{Graph, Source};
use crate::model::Mode;
use crate::ops::Value;
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reduce::{Kind, ReduceEmit};
use crate::passes::{self, Fuse, Residual, Tidy};
use crate::tensor::Tensor;
use crate::train::{self, job};

/// For each block one minus the mean cosine between the stream before and behind it, over a text (ShortGPT's block influence).
pub fn block_influence(calibration: &Calibration) -> Result<Vec<f64>> {
    let extent = calibration.extent()?;
    let mut graph = Graph::new();
    let forward = calibration.family.forward(&mut graph, extent, Mode::Evaluate)?;
    let streams = streams(&graph, forward.hidden)?;
    for (number, pair) in streams.windows(2).enumerate() {
        let [a, b] = [pair[0], pair[1]];
        for (name, x, y) in [("dot", a, b), ("before", a, a), ("behind", b, b)] {
            let product = graph.mul(x, y).map_err(wrong)?;
            let sum = graph.reduce(Kind::Sum, product, 1).map_err(wrong)?;
            graph.output(format!("{number}.{name}"), sum);
        }
    }
    let (graph, _) = passes::run(&[&Tidy, &Residual, &Fuse], graph).map_err(train::Error::from)?;
    let (mut engine, plans) = Deployment::new(calibration.weights).engine(calibration.target, &[graph])?;
    let mut cosines = vec![0.0; streams.len() - 1];
    for batch in calibration.batches {
        let feeds = job::feeds_of(batch, extent);
        let list: Option<Vec<&Tensor>> = plans[0].feeds.iter().map(|feed| feeds.get(&feed.name)).collect();
        let list = list.expect("tokens are all that a forward pass takes");
        let results = engine.run(0, &list).map_err(train::Error::from)?;
        for (cosine, sums) in cosines.iter_mut().zip(results.chunks(3)) {
            let [dot, before, behind] = [0, 1, 2].map(|at: usize| sums[at].real::<f32>());
            for ((dot, before), behind) in dot.iter().zip(before).zip(behind) {
                // A row of zeros has no direction: it counts as unchanged only beside another such row.
                let length = (f64::from(*before) * f64::from(*behind)).sqrt();
                let alike = if before == behind { 1.0 } else { 0.0 };
                *cosine += if length > 0.0 { f64::from(*dot) / length } else { alike };
            }
        }
    }
    let positions = (calibration.batches.len() * extent.positions()) as f64;
    Ok(cosines.into_iter().map(|sum| 1.0 - sum / positions).collect())
}

/// The stream before the first block and behind each: a family tells it of the last one behind its norm, so what that norm reads.
fn streams(graph: &Graph, mut hidden: Vec<Value>) -> Result<Vec<Value>> {
    let last = hidden.pop().and_then(|last| match graph.info(last).source {
        Source::Node { node, .. } => graph.nodes()[node].inputs.first().copied(),
        _ => None,
    });
    hidden.extend(last);
    if hidden.len() < 2 {
        return Err(Error::NoUnits { part: "layers", reason: "its graph tells of no blocks".into() });
    }
    Ok(hidden)
}

fn wrong(source: crate::ops::Error) -> Error {
    Error::Graph(source.into())
}
