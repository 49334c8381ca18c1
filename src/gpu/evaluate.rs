//! A graph computed once on a device: what `graph::evaluate` is on the host, for tests and probes.

use super::{Gpu, GpuEngine, Pipelines};
use crate::graph::{Feeds, Graph, Source};
use crate::plan::{ALIGNMENT, Arena, Engine, Residents, Result, Span, first_variant, padded_bytes, plan};
use crate::tensor::{DType, Tensor, Type};
use std::collections::HashMap;
use std::sync::Arc;

/// The graph's results by name. Inputs, parameters and states are fed by name; parameters must be f32, states f32 or u32.
pub fn evaluate(
    gpu: &Arc<Gpu>,
    pipelines: &Pipelines,
    graph: &Graph,
    feeds: &Feeds,
) -> Result<HashMap<String, Tensor>> {
    let fed = |name: &str| feeds.get(name).ok_or(crate::graph::Error::Missing { name: name.into() });
    let residents = residents(graph);
    let plan = plan(graph, &residents, gpu.caps(), &mut first_variant)?;
    let names: Vec<String> = plan.reads.iter().map(|read| read.name.clone()).collect();
    let inputs = plan.feeds.iter().map(|f| fed(&f.name)).collect::<Result<Vec<_>, _>>()?;
    let mut engine = GpuEngine::new(gpu.clone(), pipelines, &residents.arenas, vec![plan])?;
    for (name, span) in &residents.places {
        engine.write(*span, fed(name)?)?;
    }
    Ok(names.into_iter().zip(engine.run(0, &inputs)?).collect())
}

/// Everything kept between runs, one after the other in an arena per element type.
fn residents(graph: &Graph) -> Residents {
    let mut residents = Residents::default();
    let mut bytes: Vec<(DType, u64)> = vec![];
    for info in graph.values() {
        let (Source::Parameter | Source::Frozen | Source::State, Some(name)) = (&info.source, &info.name)
        else {
            continue;
        };
        let dtype = info.kind.dtype;
        let arena = bytes.iter().position(|(d, _)| *d == dtype).unwrap_or_else(|| {
            bytes.push((dtype, 0));
            bytes.len() - 1
        });
        let span = Span { arena, offset_bytes: bytes[arena].1 };
        residents.places.insert(name.clone(), span);
        bytes[arena].1 += padded_bytes(&info.kind).next_multiple_of(ALIGNMENT);
    }
    let arena = |(dtype, bytes): (DType, u64)| Arena {
        name: format!("kept {dtype}"),
        kind: Type::new(dtype, [bytes as usize / dtype.size_bytes()]),
    };
    residents.arenas = bytes.into_iter().map(arena).collect();
    residents
}
