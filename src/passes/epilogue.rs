//! Activations join the matmul before them: what it sums up is finished in registers and written once.
//!
//! Only where nothing else reads the sum: in evaluation and generation. In training the sum is kept for the derivative.

use super::join::{Join, Joins, Readers};
use super::tidy::program;
use super::{Pass, Promise};
use crate::graph::{self, Graph, without_dead_nodes};

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
        let readers = Readers::of(&graph);
        let mut joins = Joins::default();
        for (number, node) in graph.nodes().iter().enumerate() {
            let [sum] = node.outputs[..] else { continue };
            let Some(reader) = readers.only(sum) else { continue };
            let (&[output], Some(program)) =
                (&graph.nodes()[reader].outputs[..], program(&graph.nodes()[reader]))
            else {
                continue;
            };
            let Some(op) = node.op.with_epilogue(program) else { continue };
            if graph.kind(sum) == graph.kind(output) {
                joins.at.insert(number, Join { op, inputs: node.inputs.clone(), outputs: vec![output] });
                joins.gone.insert(reader);
            }
        }
        joins.rewrite(&graph)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Feeds, evaluate};
    use crate::ops::Value;
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
