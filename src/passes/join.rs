//! What passes that join nodes share: who reads a value, and the rewrite itself.

use crate::graph::{self, Graph, Node, Rewriter};
use crate::ops::{Operator, Value};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Which nodes read each value, and which values are results.
pub(super) struct Readers {
    /// Numbers of the nodes by value, in order.
    pub nodes: Vec<Vec<usize>>,
    /// By value.
    pub is_result: Vec<bool>,
}

impl Readers {
    pub fn of(graph: &Graph) -> Self {
        let mut nodes = vec![vec![]; graph.values().len()];
        for (number, node) in graph.nodes().iter().enumerate() {
            node.inputs.iter().for_each(|v| nodes[v.index()].push(number));
        }
        let mut is_result = vec![false; graph.values().len()];
        graph.outputs().iter().for_each(|(_, v)| is_result[v.index()] = true);
        Readers { nodes, is_result }
    }

    /// The node that alone reads a value, once, which is no result.
    pub fn only(&self, value: Value) -> Option<usize> {
        match self.nodes[value.index()][..] {
            [reader] if !self.is_result[value.index()] => Some(reader),
            _ => None,
        }
    }
}

/// A node that does the work of others as well.
pub(super) struct Join {
    pub op: Arc<dyn Operator>,
    /// Values of the old graph.
    pub inputs: Vec<Value>,
    /// The old values its outputs stand for.
    pub outputs: Vec<Value>,
}

/// All joins of a graph by the number of the node in whose place they stand, and the nodes they make idle.
#[derive(Default)]
pub(super) struct Joins {
    pub at: HashMap<usize, Join>,
    pub gone: HashSet<usize>,
}

impl Joins {
    /// The graph with the joins written.
    pub fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let mut rewriter = Rewriter::new(graph);
        for (number, node) in graph.nodes().iter().enumerate() {
            match self.at.get(&number) {
                Some(join) => {
                    let inputs: Vec<Value> = join.inputs.iter().map(|&v| rewriter.get(v)).collect();
                    let joined = Node { outputs: join.outputs.clone(), ..node.clone() };
                    rewriter.replace(&joined, join.op.clone(), &inputs)?;
                }
                None if self.gone.contains(&number) => {}
                None => rewriter.copy(node)?,
            }
        }
        Ok(rewriter.finish())
    }
}
