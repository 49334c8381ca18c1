//! Rewriting: a new graph is written from an old one, value by value.

use super::{Graph, Node, Result, Source, ValueInfo};
use crate::ops::{Emit, Value};
use crate::tensor::Type;

/// Copies a graph node by node, letting the caller replace some.
pub struct Rewriter<'a> {
    old: &'a Graph,
    /// The graph being written.
    pub new: Graph,
    map: Vec<Option<Value>>,
}

impl<'a> Rewriter<'a> {
    /// Starts with all inputs, parameters, states and constants copied, in order.
    pub fn new(old: &'a Graph) -> Self {
        Rewriter::without(old, |_| false)
    }

    /// The same without those that `dropped` says, which no copied node may read.
    pub fn without(old: &'a Graph, dropped: impl Fn(&ValueInfo) -> bool) -> Self {
        let mut rewriter = Rewriter { old, new: Graph::new(), map: vec![None; old.values.len()] };
        for (at, info) in old.values.iter().enumerate() {
            if !matches!(info.source, Source::Node { .. }) && !dropped(info) {
                rewriter.map[at] = Some(rewriter.new.push(info.clone()));
            }
        }
        rewriter
    }

    /// The new value standing for an old one.
    pub fn get(&self, old: Value) -> Value {
        self.map[old.index()].expect("values are copied in order")
    }

    /// Lets `new` stand for `old` from here on.
    pub fn set(&mut self, old: Value, new: Value) {
        self.map[old.index()] = Some(new);
    }

    /// Gives the new input, parameter or state that stands for an old one another type of the same shape.
    pub fn retype(&mut self, old: Value, kind: Type) {
        let new = self.get(old);
        self.new.values[new.index()].kind = kind;
    }

    /// True if something already stands for `old`.
    pub fn has(&self, old: Value) -> bool {
        self.map[old.index()].is_some()
    }

    /// Copies a node as it is.
    pub fn copy(&mut self, node: &Node) -> Result<()> {
        let inputs: Vec<Value> = node.inputs.iter().map(|&v| self.get(v)).collect();
        self.replace(node, node.op.clone(), &inputs)
    }

    /// Writes another operator in the place of a node; its outputs stand for the node's.
    pub fn replace(
        &mut self,
        node: &Node,
        op: std::sync::Arc<dyn crate::ops::Operator>,
        inputs: &[Value],
    ) -> Result<()> {
        let outputs = self
            .emit_in(&node.scope, |graph| graph.apply(op, inputs))
            .map_err(|source| super::Error::Operator { scope: node.scope.clone(), source })?;
        for (&old, new) in node.outputs.iter().zip(outputs) {
            self.set(old, new);
        }
        Ok(())
    }

    /// Writes nodes under a scope.
    pub fn emit_in<T>(&mut self, scope: &str, work: impl FnOnce(&mut Graph) -> T) -> T {
        if scope.is_empty() { work(&mut self.new) } else { self.new.within(scope, work) }
    }

    /// Copies the results and returns the new graph.
    pub fn finish(mut self) -> Graph {
        for (name, value) in &self.old.outputs {
            let value = self.get(*value);
            self.new.output(name.clone(), value);
        }
        self.new
    }
}

impl Graph {
    /// Writes another graph into this one; gives what stands for each of its values, in order.
    ///
    /// Inputs that both have by name and type are shared. `prefix` is put before the names of parameters and states and before
    /// the scopes of nodes. Results of the other graph are not taken over.
    pub fn bring(&mut self, other: &Graph, prefix: &str) -> Result<Vec<Value>> {
        self.bring_named(other, prefix, |info, name| match info.source {
            Source::Input => name.to_string(),
            _ => format!("{prefix}{name}"),
        })
    }

    /// The same with inputs, parameters and states called as `name` says of what is known of them and of their own names. Those that
    /// both graphs have by name and type are shared.
    pub fn bring_named(
        &mut self,
        other: &Graph,
        prefix: &str,
        name: impl Fn(&ValueInfo, &str) -> String,
    ) -> Result<Vec<Value>> {
        let mut map: Vec<Option<Value>> = vec![None; other.values.len()];
        for (at, info) in other.values.iter().enumerate() {
            if !matches!(info.source, Source::Node { .. }) {
                let name = info.name.as_deref().map(|own| name(info, own));
                map[at] = Some(self.bring_leaf(ValueInfo { name, ..info.clone() })?);
            }
        }
        for node in &other.nodes {
            let inputs: Vec<Value> = node
                .inputs
                .iter()
                .map(|v| map[v.index()].expect("values are made before they are read"))
                .collect();
            let scope = format!("{prefix}{}", node.scope);
            let outputs = self
                .within(&scope, |graph| graph.apply(node.op.clone(), &inputs))
                .map_err(|source| super::Error::Operator { scope, source })?;
            for (&old, new) in node.outputs.iter().zip(outputs) {
                map[old.index()] = Some(new);
            }
        }
        Ok(map.into_iter().map(|value| value.expect("every value is a leaf or a node's")).collect())
    }

    fn bring_leaf(&mut self, info: ValueInfo) -> Result<Value> {
        let Some(shared) = info.name.as_deref().and_then(|name| self.named(name)) else {
            return Ok(self.push(info));
        };
        if *self.kind(shared) == info.kind {
            return Ok(shared);
        }
        let expected = self.kind(shared).clone();
        Err(super::Error::Feed { name: info.name.unwrap_or_default(), expected, got: info.kind })
    }
}

/// The graph with only those nodes and constants that lead to a result; inputs, parameters and states stay.
pub fn without_dead_nodes(graph: &Graph) -> Graph {
    let mut live = vec![false; graph.values.len()];
    graph.outputs.iter().for_each(|(_, v)| live[v.index()] = true);
    for node in graph.nodes.iter().rev() {
        if node.outputs.iter().any(|v| live[v.index()]) {
            node.inputs.iter().for_each(|v| live[v.index()] = true);
        }
    }
    let mut new = Graph::new();
    let mut map: Vec<Option<Value>> = vec![None; graph.values.len()];
    for (at, info) in graph.values.iter().enumerate() {
        let keep = match info.source {
            Source::Node { .. } => false,
            Source::Constant(_) => live[at],
            _ => true,
        };
        if keep {
            map[at] = Some(new.push(info.clone()));
        }
    }
    for node in &graph.nodes {
        if !node.outputs.iter().any(|v| live[v.index()]) {
            continue;
        }
        let number = new.nodes.len();
        let mut outputs = vec![];
        for (output, &old) in node.outputs.iter().enumerate() {
            let source = Source::Node { node: number, output };
            let value = new.push(ValueInfo { source, ..graph.info(old).clone() });
            map[old.index()] = Some(value);
            outputs.push(value);
        }
        let inputs =
            node.inputs.iter().map(|v| map[v.index()].expect("inputs of a live node are live")).collect();
        new.nodes.push(Node { op: node.op.clone(), inputs, outputs, scope: node.scope.clone() });
    }
    for (name, value) in &graph.outputs {
        new.output(name.clone(), map[value.index()].expect("results are live"));
    }
    new
}

/// For each value, the value whose storage it has: itself, unless it is a view or overwrites an input.
pub fn storage_roots(graph: &Graph) -> Vec<Value> {
    let mut roots: Vec<Value> = (0..graph.values.len() as u32).map(Value).collect();
    for node in &graph.nodes {
        if node.op.is_view() {
            roots[node.outputs[0].index()] = roots[node.inputs[0].index()];
        }
        for &(output, input) in node.op.in_place() {
            roots[node.outputs[output].index()] = roots[node.inputs[input].index()];
        }
    }
    roots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pointwise::PointwiseEmit;

    #[test]
    fn dead_nodes_go_and_the_rest_keeps_its_order() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([2]));
        graph.scale(x, 9.0).unwrap();
        let a = graph.scale(x, 2.0).unwrap();
        let b = graph.shift(a, 1.0).unwrap();
        graph.output("b", b);
        let clean = without_dead_nodes(&graph);
        clean.verify().unwrap();
        assert_eq!(
            clean.to_string(),
            "%0 = input `x` : f32[2]\n%1 = scale(%0) {k=2} : f32[2]\n%2 = shift(%1) {k=1} : f32[2]\noutput `b` = %2\n"
        );
    }
}
