//! A model as it runs, not as it is trained: its graph over weights as they are stored, where those lie, and how they get there.

use crate::graph::{Graph, Source};
use crate::model::{self, Extent, Family, Forward, Mode, Stored, Weights};
use crate::ops::coded::{Activations, Layout};
use crate::passes::{
    self, CodedCache, CodedWeight, Coding, Epilogue, Fuse, Group, Part, Pass, Quantize, Residual,
    StoredWeight, Tidy,
};
use crate::plan::{Arena, Engine, Plan, Residents, Span};
use crate::tensor::quant::Coded;
use crate::tensor::{DType, Tensor, Type};
use crate::train::layout::{self, Placed};
use crate::train::{self, Target};
use std::collections::HashMap;

/// What can go wrong while a model is made ready.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device or the plans.
    #[error(transparent)]
    Run(#[from] train::Error),
    /// The weights or the family.
    #[error(transparent)]
    Model(#[from] model::Error),
}

/// Result of making a model ready.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Weights on their way to a device: how graphs read them, and the tensors that are uploaded, by parameter.
#[derive(Clone, Debug)]
pub struct Deployment {
    pass: Quantize,
    tensors: HashMap<String, Tensor>,
    coded_cache: bool,
}

impl Deployment {
    /// What is uploaded of a model's weights.
    pub fn new(weights: &Weights) -> Deployment {
        let mut tensors: HashMap<String, Tensor> =
            weights.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
        let mut pass = Quantize::default();
        for (name, stored) in weights.stored() {
            let weight = match stored {
                Stored::Halves(dtype, tensor) => {
                    tensors.insert(name.to_string(), tensor.clone());
                    StoredWeight::Halves(*dtype)
                }
                Stored::Codes(quantized) => {
                    let (layout, parts) = packed(&quantized.coded, quantized.activations);
                    let names = Part::ALL.into_iter().map(|part| part.name(name));
                    tensors.extend(names.zip(parts));
                    let rows = quantized.coded.rows;
                    let (turned, activations) = (quantized.turned, quantized.activations);
                    StoredWeight::Codes(CodedWeight { rows, layout, turned, activations })
                }
            };
            pass.weights.insert(name.to_string(), weight);
        }
        Deployment { pass, tensors, coded_cache: false }
    }

    /// Keeps keys and values of what was read as 8-bit codes: a fourth of the memory, for heads of a multiple of four elements.
    pub fn with_coded_cache(self) -> Deployment {
        Deployment { coded_cache: true, ..self }
    }

    /// A forward pass over the weights as they are stored; `results` names what is wanted of it. With `group`, matmuls of one
    /// row are joined, as it pays where a text is continued.
    pub fn graph(
        &self,
        family: &dyn Family,
        extent: Extent,
        mode: Mode,
        results: impl FnOnce(&mut Graph, Forward) -> Result<()>,
    ) -> Result<Graph> {
        let mut graph = Graph::new();
        let forward = family.forward(&mut graph, extent, mode)?;
        results(&mut graph, forward)?;
        let mut list: Vec<&dyn Pass> = vec![&self.pass, &Tidy, &Residual, &Fuse];
        if matches!(mode, Mode::Continue { .. }) {
            list.extend([&Coding as &dyn Pass, &Group]);
            list.extend(self.coded_cache.then_some(&CodedCache as &dyn Pass));
        }
        list.push(&Epilogue);
        let (graph, _) = passes::run(&list, graph).map_err(train::Error::from)?;
        Ok(graph)
    }

    /// Plans for graphs of one model and an engine with its weights, ready to run.
    pub fn engine(&self, target: &Target, graphs: &[Graph]) -> Result<(Box<dyn Engine>, Vec<Plan>)> {
        let residents = place(graphs, target.caps().max_binding_bytes);
        let plans = target.plans(&graphs.iter().collect::<Vec<_>>(), &residents, None)?;
        let mut engine = target.engine(&residents.arenas, plans.clone())?;
        for (name, tensor) in &self.tensors {
            if let Some(&span) = residents.places.get(name) {
                engine.write(span, tensor).map_err(train::Error::from)?;
            }
        }
        Ok((engine, plans))
    }

    /// Bytes of all weights as a device holds them.
    pub fn weight_bytes(&self) -> u64 {
        let halves = |name: &String| match self.pass.weights.get(name) {
            Some(StoredWeight::Halves(dtype)) => Some(*dtype),
            _ => None,
        };
        let bytes = |(name, tensor): (&String, &Tensor)| {
            let kind = tensor.host_type();
            Type::new(halves(name).unwrap_or(kind.dtype), kind.shape).size_bytes()
        };
        self.tensors.iter().map(bytes).sum()
    }
}

/// Codes as devices hold them. Where whole sums are taken, codes are bytes and scales have one axis.
fn packed(coded: &Coded, activations: Activations) -> (Layout, Vec<Tensor>) {
    let layout = Layout::of(coded);
    if activations == Activations::Numbers {
        return (layout, layout.pack(coded));
    }
    let layout = layout.in_bytes();
    let mut parts = layout.pack(coded);
    parts[1].shape = [coded.rows].into();
    (layout, parts)
}

/// Places for all parameters and states of graphs: those of f32 in common arenas, none larger than `most_bytes` unless a single
/// tensor is; every other one, and every state, in an arena of its own.
pub fn place(graphs: &[Graph], most_bytes: u64) -> Residents {
    let mut residents = Residents::default();
    let mut floats = vec![];
    let mut seen = std::collections::HashSet::new();
    let infos = graphs.iter().flat_map(|graph| graph.values());
    for info in infos.filter(|info| matches!(info.source, Source::Parameter | Source::State)) {
        let name = info.name.clone().expect("parameters and states are named when made");
        if !seen.insert(name.clone()) {
            continue;
        }
        if matches!(info.source, Source::Parameter) && info.kind.dtype == DType::F32 {
            floats.push((name, info.kind.shape.clone(), false));
            continue;
        }
        residents.places.insert(name.clone(), Span { arena: residents.arenas.len(), offset_bytes: 0 });
        let kind = Type::new(info.kind.dtype, [info.kind.shape.count()]);
        residents.arenas.push(Arena { name, kind });
    }
    let layout = layout::Layout::new(floats, most_bytes);
    let first = residents.arenas.len();
    let arena = |page| Arena { name: format!("parameters.{page}"), kind: layout.kind(page) };
    residents.arenas.extend((0..layout.pages.len()).map(arena));
    let span = |t: &Placed| Span { arena: first + t.page, offset_bytes: 4 * t.offset as u64 };
    residents.places.extend(layout.tensors.iter().map(|t| (t.name.clone(), span(t))));
    residents
}
