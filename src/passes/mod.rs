//! Rewrites of a graph: one in, one out, verified after each.
//!
//! A pass runs once, before anything is planned or uploaded; it knows nothing of plans or devices.

mod adapter;
mod aware;
mod byte_weights;
mod coded_cache;
mod coding;
mod epilogue;
mod freeze;
mod fuse;
mod group;
mod half_cache;
mod halves;
mod join;
mod layers;
mod overwrite;
mod pieces;
mod precision;
mod products;
mod quantize;
mod recompute;
mod residual;
mod tidy;

pub use adapter::{Factor, Low, LowRank, module_of, squares_name};
pub use aware::{Deployed, Learned, QuantizationAware};
pub use byte_weights::{ByteWeights, Unheld, scales_name};
pub use coded_cache::CodedCache;
pub use coding::Coding;
pub use epilogue::Epilogue;
pub use freeze::Freeze;
pub use fuse::Fuse;
pub use group::Group;
pub use half_cache::HalfCache;
pub use halves::HalfWeights;
pub use layers::{HEADS, chosen_forms, linear_forms, linear_weights, matches, product_forms};
pub use overwrite::Overwrite;
pub use pieces::{Piece, Pieces};
pub use precision::Precision;
pub use products::CodedProducts;
pub use quantize::{Activations, CodedWeight, Part, Quantize, StoredWeight};
pub use recompute::Recompute;
pub use residual::Residual;
pub use tidy::Tidy;

use crate::graph::{self, Graph};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// What a pass promises about the graph it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// Results are equal up to the rounding of a reordered sum.
    Exact,
    /// Results differ; the report says by how much or why.
    Lossy,
}

/// What a pass did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The pass.
    pub pass: &'static str,
    /// Nodes before it.
    pub nodes_before: usize,
    /// Nodes after it.
    pub nodes_after: usize,
    /// Operators of which there are more or fewer than before, by name.
    pub changes: Vec<Change>,
}

/// How many nodes of one operator there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The operator.
    pub operator: &'static str,
    /// Nodes of it before.
    pub before: usize,
    /// Nodes of it after.
    pub after: usize,
}

impl Report {
    /// What became of a graph.
    pub fn of(pass: &'static str, before: &Graph, after: &Graph) -> Report {
        let mut counts: BTreeMap<&'static str, [usize; 2]> = BTreeMap::new();
        for (side, graph) in [before, after].into_iter().enumerate() {
            graph.nodes().iter().for_each(|node| counts.entry(node.op.name()).or_default()[side] += 1);
        }
        let change = |(operator, [before, after]): (_, [usize; 2])| Change { operator, before, after };
        let changes = counts.into_iter().map(change).filter(|change| change.before != change.after);
        let (nodes_before, nodes_after) = (before.nodes().len(), after.nodes().len());
        Report { pass, nodes_before, nodes_after, changes: changes.collect() }
    }
}

/// A pass failed; the names tell what ran before it.
#[derive(Debug, thiserror::Error)]
#[error("pass `{pass}` (after: {before}): {source}")]
pub struct Error {
    /// The pass that failed.
    pub pass: &'static str,
    /// Passes that ran before it, or `none`.
    pub before: String,
    /// Why.
    pub source: Box<graph::Error>,
}

/// A rewrite of a graph.
pub trait Pass: Debug {
    /// Name in recipes and reports.
    fn name(&self) -> &'static str;

    /// What it promises.
    fn promise(&self) -> Promise;

    /// The rewritten graph.
    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph>;
}

/// Runs passes in the order written and verifies the graph after each.
pub fn run(passes: &[&dyn Pass], graph: Graph) -> Result<(Graph, Vec<Report>), Error> {
    let mut graph = graph;
    let mut reports: Vec<Report> = vec![];
    for pass in passes {
        let rewritten =
            pass.rewrite(&graph).and_then(|new| new.verify().map(|()| new)).map_err(|source| {
                let names: Vec<_> = reports.iter().map(|r| r.pass).collect();
                let before = if names.is_empty() { "none".to_string() } else { names.join(", ") };
                Error { pass: pass.name(), before, source: Box::new(source) }
            })?;
        reports.push(Report::of(pass.name(), &graph, &rewritten));
        graph = rewritten;
    }
    Ok((graph, reports))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pointwise::PointwiseEmit;
    use crate::tensor::Type;

    /// Gives one value's name to another: `verify` must see it.
    #[derive(Debug)]
    struct Broken;
    impl Pass for Broken {
        fn name(&self) -> &'static str {
            "broken"
        }
        fn promise(&self) -> Promise {
            Promise::Exact
        }
        fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
            let mut new = graph.clone();
            new.input("x", Type::f32([1]));
            Ok(new)
        }
    }

    #[test]
    fn a_report_counts_nodes_by_operator_and_leaves_out_what_stayed() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([2]));
        let y = graph.scale(x, 2.0).unwrap();
        let unused = graph.pointwise("square", &[x], 0.0).unwrap();
        graph.pointwise("square", &[unused], 0.0).unwrap();
        graph.output("y", y);
        let (_, reports) = run(&[&Tidy], graph).unwrap();
        let report = &reports[0];
        assert_eq!((report.nodes_before, report.nodes_after), (3, 1));
        assert_eq!(report.changes, [Change { operator: "square", before: 2, after: 0 }]);
    }

    #[test]
    fn a_pass_that_breaks_the_graph_is_named_with_its_predecessors() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([2]));
        let y = graph.scale(x, 2.0).unwrap();
        graph.output("y", y);
        let error = run(&[&Tidy, &Broken], graph).unwrap_err();
        assert_eq!((error.pass, error.before.as_str()), ("broken", "tidy"));
    }
}
