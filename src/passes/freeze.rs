//! Parameters that stay as they are: nothing differentiates with respect to them, and no pass takes them for weights to train.

use super::{Pass, Promise};
use crate::graph::{self, Graph};
use std::collections::HashSet;

/// Marks parameters as frozen, by name; a name that the graph lacks marks nothing.
#[derive(Clone, Debug)]
pub struct Freeze {
    /// Their names.
    pub names: HashSet<String>,
}

impl Pass for Freeze {
    fn name(&self) -> &'static str {
        "freeze"
    }

    fn promise(&self) -> Promise {
        Promise::Exact
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let mut frozen = graph.clone();
        frozen.freeze(|name| self.names.contains(name));
        Ok(frozen)
    }
}
