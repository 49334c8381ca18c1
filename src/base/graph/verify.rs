//! The invariants of a graph, checked after every pass.

use super::{Error, Graph, Result, Source};
use crate::ops::Value;
use std::collections::HashSet;

impl Graph {
    /// Checks that names are unique, that every value is made before it is read, that types are what the operators say,
    /// and that nothing reads storage after an in-place operator has overwritten it.
    pub fn verify(&self) -> Result<()> {
        let mut names = HashSet::new();
        for name in self.values.iter().filter_map(|v| v.name.as_deref()) {
            if !names.insert(name) {
                return Err(Error::NameTaken { name: name.to_string() });
            }
        }
        let mut overwritten = HashSet::new();
        for number in 0..self.nodes.len() {
            self.verify_node(number, &mut overwritten)?;
        }
        Ok(())
    }

    fn verify_node(&self, number: usize, overwritten: &mut HashSet<Value>) -> Result<()> {
        let node = &self.nodes[number];
        let wrong = |problem: String| Err(Error::Malformed { node: number, op: node.op.name(), problem });
        for &input in &node.inputs {
            match self.values.get(input.index()).map(|v| &v.source) {
                None => return wrong(format!("reads %{}, which does not exist", input.0)),
                Some(Source::Node { node: maker, .. }) if *maker >= number => {
                    return wrong(format!("reads %{} before node {maker} makes it", input.0));
                }
                Some(_) if overwritten.contains(&input) => {
                    return wrong(format!("reads %{} after it was overwritten in place", input.0));
                }
                Some(_) => {}
            }
        }
        let types: Vec<_> = node.inputs.iter().map(|&v| self.kind(v).clone()).collect();
        let expected = node
            .op
            .signature(&types)
            .map_err(|source| Error::Operator { scope: node.scope.clone(), source })?;
        let got: Vec<_> = node.outputs.iter().map(|&v| self.kind(v).clone()).collect();
        if expected != got {
            return wrong(format!("makes {got:?} where its signature says {expected:?}"));
        }
        overwritten.extend(node.op.in_place().iter().map(|&(_, input)| node.inputs[input]));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pointwise::PointwiseEmit;
    use crate::tensor::Type;

    #[test]
    fn a_value_read_before_it_is_made_is_found() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([2]));
        let y = graph.scale(x, 2.0).unwrap();
        graph.scale(y, 3.0).unwrap();
        graph.verify().unwrap();
        graph.nodes.swap(0, 1);
        assert!(matches!(graph.verify(), Err(Error::Malformed { node: 0, .. })));
    }

    #[test]
    fn a_type_that_is_not_the_operators_is_found() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([2]));
        let y = graph.scale(x, 2.0).unwrap();
        graph.values[y.index()].kind = Type::f32([3]);
        assert!(matches!(graph.verify(), Err(Error::Malformed { .. })));
    }

    #[test]
    fn a_name_given_twice_is_found() {
        let mut graph = Graph::new();
        graph.input("x", Type::f32([2]));
        graph.parameter("x", Type::f32([2]));
        assert!(matches!(graph.verify(), Err(Error::NameTaken { .. })));
    }
}
