//! What a graph needs before it is planned: dead nodes gone, and results that go to arenas in values of their own.

use super::{Residents, Result};
use crate::graph::{Graph, Rewriter, Source, storage_roots, without_dead_nodes};
use crate::ops::Value;
use crate::ops::pointwise::PointwiseEmit;
use std::collections::HashSet;

/// Nodes in the order in which they run: as recorded, which is an order in which every value is made before it is read.
pub fn order(graph: &Graph) -> Vec<usize> {
    (0..graph.nodes().len()).collect()
}

/// Drops dead nodes and copies any result bound for an arena that other nodes read as well.
///
/// A buffer is either read or written within one dispatch. A gradient that stays in its arena while another gradient is
/// written there would break this, so such a value is kept in a slot and copied at the end.
pub fn prepare(graph: &Graph, residents: &Residents) -> Result<Graph> {
    let graph = without_dead_nodes(graph);
    let roots = storage_roots(&graph);
    let uses = uses_of_roots(&graph, &roots);
    let mut rewriter = Rewriter::new(&graph);
    for node in graph.nodes() {
        rewriter.copy(node)?;
    }
    let mut copies = vec![];
    let mut taken = HashSet::new();
    for (name, value) in graph.outputs().iter().filter(|(name, _)| residents.results.contains_key(name)) {
        let root = roots[value.index()];
        // The result of an in-place operator is where it belongs already.
        let home = graph.info(root).name.as_ref().and_then(|name| residents.places.get(name));
        if home.is_some() && home == residents.results.get(name) {
            continue;
        }
        let own = matches!(graph.info(root).source, Source::Node { .. });
        if !own || uses[root.index()] > 1 || !taken.insert(root) {
            let old = rewriter.get(*value);
            let copied =
                rewriter.new.pointwise("identity", &[old], 0.0).map_err(crate::graph::Error::from)?;
            copies.push((name.clone(), copied));
        }
    }
    let mut new = rewriter.finish();
    for (name, value) in copies {
        new.redirect_output(&name, value);
    }
    Ok(without_dead_nodes(&new))
}

/// How many nodes other than views read each storage, results counted as well.
fn uses_of_roots(graph: &Graph, roots: &[Value]) -> Vec<usize> {
    let mut uses = vec![0; roots.len()];
    let reads = graph.nodes().iter().filter(|n| !n.op.is_view()).flat_map(|n| &n.inputs);
    reads.chain(graph.outputs().iter().map(|(_, v)| v)).for_each(|v| uses[roots[v.index()].index()] += 1);
    uses
}

#[cfg(test)]
mod tests {
    use super::super::Span;
    use super::*;
    use crate::tensor::Type;

    #[test]
    fn a_gradient_that_others_read_is_copied_to_its_arena() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([2]));
        let a = graph.scale(x, 2.0).unwrap();
        let b = graph.scale(a, 3.0).unwrap();
        graph.output("a", a);
        graph.output("b", b);
        let span = |offset_bytes| Span { arena: 0, offset_bytes };
        let results = [("a".to_string(), span(0)), ("b".to_string(), span(256))].into();
        let prepared = prepare(&graph, &Residents { results, ..Residents::default() }).unwrap();
        prepared.verify().unwrap();
        let names: Vec<_> = prepared.nodes().iter().map(|n| n.op.name()).collect();
        assert_eq!(names, ["scale", "scale", "identity"]);
    }
}
