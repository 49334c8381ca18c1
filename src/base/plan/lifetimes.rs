//! When each piece of storage is needed: from the node that first writes it to the last that touches it.

use super::{Residents, padded_bytes};
use crate::graph::{Graph, Source, storage_roots};
use crate::ops::launch::Variant;

/// One piece of storage that lives within a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Bytes.
    pub size_bytes: u64,
    /// Position in the order at which it is first written.
    pub first: usize,
    /// Position at which it is last touched; both ends count.
    pub last: usize,
    /// What it holds.
    pub owner: Owner,
}

/// Whose storage it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The value with this number and all views of it.
    Value(usize),
    /// Scratch `index` of a node.
    Scratch {
        /// Node number.
        node: usize,
        /// Which scratch of its variant.
        index: usize,
    },
}

/// Storage of all values made by nodes, and of scratch, in the order of first use. `chosen` is each node's variant.
///
/// Values that go to arenas are left out: their place is given. Results read back live to the end.
pub fn lifetimes(
    graph: &Graph,
    order: &[usize],
    residents: &Residents,
    chosen: &[Option<Variant>],
) -> Vec<Storage> {
    let roots = storage_roots(graph);
    let end = order.len();
    let mut at_value: Vec<Option<usize>> = vec![None; graph.values().len()];
    let mut all: Vec<Storage> = vec![];
    let placed: Vec<usize> = graph
        .outputs()
        .iter()
        .filter(|(name, _)| residents.results.contains_key(name))
        .map(|(_, v)| roots[v.index()].index())
        .collect();
    for (position, &number) in order.iter().enumerate() {
        let node = &graph.nodes()[number];
        for &value in &node.outputs {
            let root = roots[value.index()].index();
            let made_here =
                root == value.index() && matches!(graph.values()[root].source, Source::Node { .. });
            if made_here && !placed.contains(&root) {
                at_value[root] = Some(all.len());
                let size_bytes = padded_bytes(graph.kind(value));
                all.push(Storage { size_bytes, first: position, last: position, owner: Owner::Value(root) });
            }
        }
        for value in node.inputs.iter().chain(&node.outputs) {
            if let Some(storage) = at_value[roots[value.index()].index()] {
                all[storage].last = position;
            }
        }
        for (index, &bytes) in chosen[number].iter().flat_map(|v| v.scratch.iter().enumerate()) {
            let owner = Owner::Scratch { node: number, index };
            let size_bytes = bytes.next_multiple_of(4);
            all.push(Storage { size_bytes, first: position, last: position, owner });
        }
    }
    for (_, value) in graph.outputs() {
        if let Some(storage) = at_value[roots[value.index()].index()] {
            all[storage].last = end;
        }
    }
    all
}
