//! Parameters of a step that no optimiser touches: a teacher, or what adapters stand beside.
//!
//! The loss declares them like any parameter, and reads them as f32. [`Frozen`] says which of them stay as they are, in which
//! type or codes the device holds them, and what is uploaded, once. They have no gradient, no moments, no part in checkpoints.

use super::layout::{self, Placed};
use crate::graph::{Graph, Source, ValueInfo};
use crate::model::{Stored, Weights};
use crate::ops::coded::{Activations, Layout};
use crate::passes::{CodedWeight, Freeze, Part, Pass, Piece, Quantize, StoredWeight};
use crate::plan::{Arena, Residents, Span};
use crate::tensor::quant::Coded;
use crate::tensor::{DType, Tensor, Type};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Weights as they are: how graphs read them, and the tensors that are uploaded. Clones share the tensors.
#[derive(Clone, Debug, Default)]
pub struct Frozen {
    quantize: Quantize,
    tensors: BTreeMap<String, Arc<Tensor>>,
}

impl Frozen {
    /// Weights in the storage they have: f32, f16, bf16, or codes. The loss knows each by `prefix` and its name.
    pub fn of(weights: &Weights, prefix: &str) -> Frozen {
        let mut frozen = Frozen::default();
        let named = |name: &str| format!("{prefix}{name}");
        for (name, tensor) in weights.iter() {
            frozen.tensors.insert(named(name), Arc::new(tensor.clone()));
        }
        for (name, stored) in weights.stored() {
            let name = named(name);
            let weight = match stored {
                Stored::Halves(dtype, tensor) => {
                    frozen.tensors.insert(name.clone(), Arc::new(tensor.clone()));
                    StoredWeight::Halves(*dtype)
                }
                Stored::Codes(quantized) => {
                    let (layout, parts) = packed(&quantized.coded, quantized.activations);
                    let names = Part::ALL.into_iter().map(|part| part.name(&name));
                    frozen.tensors.extend(names.zip(parts.into_iter().map(Arc::new)));
                    let (rows, turned) = (quantized.coded.rows, quantized.turned);
                    StoredWeight::Codes(CodedWeight {
                        rows,
                        layout,
                        turned,
                        activations: quantized.activations,
                    })
                }
            };
            frozen.quantize.weights.insert(name, weight);
        }
        frozen
    }

    /// Adds all of another.
    pub fn join(&mut self, other: Frozen) {
        self.quantize.weights.extend(other.quantize.weights);
        self.tensors.extend(other.tensors);
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// True if the loss knows one by that name.
    pub fn holds(&self, name: &str) -> bool {
        let known = |name: &str| self.tensors.contains_key(name) || self.quantize.weights.contains_key(name);
        known(name) || Piece::parse(name).is_some_and(|piece| known(&piece.whole))
    }

    /// What is uploaded, by the name of the parameter that holds it after [`Frozen::passes`].
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.as_ref()))
    }

    /// How weights that are not f32 are read.
    pub fn quantize(&self) -> &Quantize {
        &self.quantize
    }

    /// The passes over a loss: weights are read as they are stored, and none of them is a parameter to be trained.
    ///
    /// A loss that is measured need not read all that the loss that is trained reads.
    pub fn passes(&self, graph: &Graph) -> Vec<Box<dyn Pass>> {
        if self.is_empty() {
            return vec![];
        }
        let pieces = graph.parameters().filter(|(name, _)| self.tensor(name).is_some());
        let names = self.tensors.keys().cloned().chain(pieces.map(|(name, _)| name.to_string())).collect();
        vec![Box::new(self.quantize_in(graph)), Box::new(Freeze { names })]
    }

    /// How those that a graph declares, whole or in pieces, are read where they are not f32.
    pub fn quantize_in(&self, graph: &Graph) -> Quantize {
        let stored = |name: &str| match Piece::parse(name) {
            Some(piece) => self.quantize.weights.get(&piece.whole),
            None => self.quantize.weights.get(name),
        };
        let weight = |(name, _): (&str, _)| Some((name.to_string(), *stored(name)?));
        Quantize { weights: graph.parameters().filter_map(weight).collect() }
    }

    /// What is uploaded under a name.
    pub(super) fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name).map(Arc::as_ref)
    }

    /// Bytes of all of them as a device holds them.
    pub fn size_bytes(&self) -> u64 {
        let bytes = |(name, tensor): (&String, &Arc<Tensor>)| {
            let kind = tensor.host_type();
            let dtype = match self.quantize.weights.get(name) {
                Some(StoredWeight::Halves(dtype)) => *dtype,
                _ => kind.dtype,
            };
            Type::new(dtype, kind.shape).size_bytes()
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

/// Adds places for values that are kept between runs: weights of f32 in common arenas, none larger than `most_bytes` unless a
/// single tensor is; every other one, and every state, in an arena of its own. A name is placed once.
pub fn place<'a>(infos: impl Iterator<Item = &'a ValueInfo>, most_bytes: u64, residents: &mut Residents) {
    let mut floats = vec![];
    let mut seen = HashSet::new();
    for info in infos {
        let name = info.name.clone().expect("what is kept between runs is named when made");
        if !seen.insert(name.clone()) {
            continue;
        }
        if !matches!(info.source, Source::State) && info.kind.dtype == DType::F32 {
            floats.push((name, info.kind.shape.clone(), false));
            continue;
        }
        residents.places.insert(name.clone(), Span { arena: residents.arenas.len(), offset_bytes: 0 });
        let kind = Type::new(info.kind.dtype, [info.kind.shape.count()]);
        residents.arenas.push(Arena { name, kind });
    }
    if floats.is_empty() {
        return;
    }
    let layout = layout::Layout::new(floats, most_bytes);
    let first = residents.arenas.len();
    let arena = |page| Arena { name: format!("weights.{page}"), kind: layout.kind(page) };
    residents.arenas.extend((0..layout.pages.len()).map(arena));
    let span = |t: &Placed| Span { arena: first + t.page, offset_bytes: 4 * t.offset as u64 };
    residents.places.extend(layout.tensors.iter().map(|t| (t.name.clone(), span(t))));
}
