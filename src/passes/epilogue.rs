//! Activations join the matmul before them: what it sums up is finished in registers and written once.
//!
//! Only where nothing else reads the sum: in evaluation and generation. In training the sum is kept for the derivative.

use super::tidy::program;
use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, without_dead_nodes};
use crate::ops::{Operator, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// Joins pointwise operators of one input with the operator that makes it.
#[derive(Debug)]
pub struct Epilogue;

impl Pass for Epilogue {
    fn name(&self) -> &'static str {
        "epilogue"
    }

    fn promise(&self) -> Promise {
        Promise::Exact
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let graph = without_dead_nodes(graph);
        let mut readers = vec![0; graph.values().len()];
        graph.nodes().iter().flat_map(|n| &n.inputs).for_each(|v| readers[v.index()] += 1);
        graph.outputs().iter().for_each(|(_, v)| readers[v.index()] += 1);
        let makers: HashMap<Value, usize> = graph
            .nodes()
            .iter()
            .enumerate()
            .flat_map(|(number, node)| node.outputs.first().map(|&v| (v, number)))
            .collect();
        // By the number of the maker: what it becomes, and the value it then makes.
        let mut joints: HashMap<usize, (Arc<dyn Operator>, Value)> = HashMap::new();
        let mut gone = vec![false; graph.nodes().len()];
        for (number, node) in graph.nodes().iter().enumerate() {
            let (&[input], &[output], Some(program)) = (&node.inputs[..], &node.outputs[..], program(node))
            else {
                continue;
            };
            let Some(&at) = makers.get(&input).filter(|at| !joints.contains_key(at)) else { continue };
            let maker = &graph.nodes()[at];
            let fits = readers[input.index()] == 1
                && maker.outputs.len() == 1
                && graph.kind(input) == graph.kind(output);
            if let Some(op) = maker.op.with_epilogue(program).filter(|_| fits) {
                joints.insert(at, (op, output));
                gone[number] = true;
            }
        }
        let mut rewriter = Rewriter::new(&graph);
        for (number, node) in graph.nodes().iter().enumerate() {
            match joints.get(&number) {
                Some((op, output)) => {
                    let inputs: Vec<Value> = node.inputs.iter().map(|&v| rewriter.get(v)).collect();
                    let joined = Node { outputs: vec![*output], ..node.clone() };
                    rewriter.replace(&joined, op.clone(), &inputs)?;
                }
                None if gone[number] => {}
                None => rewriter.copy(node)?,
            }
        }
        Ok(rewriter.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Feeds, evaluate};
    use crate::ops::matmul::MatmulEmit;
    use crate::ops::pointwise::PointwiseEmit;
    use crate::tensor::{DType, Tensor, Type};

    fn product(graph: &mut Graph) -> Value {
        let (a, b) = (graph.input("a", Type::f32([2, 3])), graph.input("b", Type::f32([3, 2])));
        graph.matmul(a, b).unwrap()
    }

    #[test]
    fn an_activation_joins_the_matmul_and_changes_no_value() {
        let mut graph = Graph::new();
        let sum = product(&mut graph);
        let y = graph.pointwise("gelu", &[sum], 0.0).unwrap();
        graph.output("y", y);
        let joined = Epilogue.rewrite(&graph).unwrap();
        joined.verify().unwrap();
        assert_eq!(joined.nodes().len(), 1);
        let mut feeds = Feeds::new();
        feeds.set("a", Tensor::f32([2, 3], vec![0.5, -1.0, 2.0, 0.25, 3.0, -0.5]));
        feeds.set("b", Tensor::f32([3, 2], vec![1.0, -2.0, 0.5, 0.75, -1.5, 1.0]));
        let results = |graph: &Graph| evaluate(graph, &feeds, DType::F32).unwrap();
        assert_eq!(results(&graph), results(&joined));
    }

    #[test]
    fn a_sum_that_others_read_stays() {
        let mut graph = Graph::new();
        let sum = product(&mut graph);
        let y = graph.pointwise("gelu", &[sum], 0.0).unwrap();
        graph.output("y", y);
        graph.output("sum", sum);
        assert_eq!(Epilogue.rewrite(&graph).unwrap().nodes().len(), 2);
    }
}
