//! Operators alike with one input in common become one dispatch where rows are few: queries, keys and values of the next token.
//!
//! What two of them make for a pointwise operator alone, such as a gate and what passes it, goes through that in registers.

use super::join::{Join, Joins, Readers};
use super::tidy::program;
use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, without_dead_nodes};
use crate::ops::Value;
use std::collections::HashMap;

/// Rows of the common input at most: beyond, each operator keeps a device busy alone.
const FEW_ROWS: usize = 4;
/// Operators in a group at most.
const MOST: usize = 3;

/// Groups operators over a common input of few rows.
#[derive(Debug)]
pub struct Group;

impl Pass for Group {
    fn name(&self) -> &'static str {
        "group"
    }

    fn promise(&self) -> Promise {
        Promise::Exact
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let graph = without_dead_nodes(graph);
        groups(&graph).rewrite(&graph)
    }
}

/// All groups, each in the place of its first member.
fn groups(graph: &Graph) -> Joins {
    let readers = Readers::of(graph);
    // Members in order, by what they share: the common inputs and all that the operator says of itself.
    let mut alike: HashMap<(Vec<Value>, &str, String), Vec<usize>> = HashMap::new();
    for (number, node) in graph.nodes().iter().enumerate() {
        if node.outputs.len() != 1 || node.op.grouped(2, None).is_none() {
            continue;
        }
        let (common, own) = inputs_of(node);
        // A member may be moved to the first one's place: what it alone reads must be there from the start.
        let given = own.iter().all(|&v| !matches!(graph.info(v).source, graph::Source::Node { .. }));
        let few = graph.kind(common[0]).shape.rows() <= FEW_ROWS;
        if given && few {
            alike.entry((common, node.op.name(), node.op.settings())).or_default().push(number);
        }
    }
    let mut joins = Joins::default();
    for members in alike.into_values() {
        members.chunks(MOST).for_each(|members| join(graph, &readers, members, &mut joins));
    }
    joins
}

/// Inputs that the members of a node's group have in common, and its own.
fn inputs_of(node: &Node) -> (Vec<Value>, Vec<Value>) {
    let common = node.op.common_inputs();
    let own = node.inputs.iter().enumerate().filter(|(i, _)| !common.contains(i)).map(|(_, &v)| v);
    (common.iter().map(|&i| node.inputs[i]).collect(), own.collect())
}

fn join(graph: &Graph, readers: &Readers, members: &[usize], joins: &mut Joins) {
    let nodes: Vec<&Node> = members.iter().map(|&n| &graph.nodes()[n]).collect();
    let (mut inputs, _) = inputs_of(nodes[0]);
    nodes.iter().for_each(|node| inputs.extend(inputs_of(node).1));
    let made: Vec<Value> = nodes.iter().map(|n| n.outputs[0]).collect();
    let common = common_reader(graph, readers, &made);
    let program = common.and_then(|(reader, _)| program(&graph.nodes()[reader]));
    let Some(op) = nodes[0].op.grouped(members.len(), program) else { return };
    let outputs = common.map_or(made, |(_, output)| vec![output]);
    joins.at.insert(members[0], Join { op, inputs, outputs });
    joins.gone.extend(members[1..].iter().copied().chain(common.map(|(reader, _)| reader)));
}

/// The pointwise node that alone reads these values, in this order, all of its result's type; with that result.
fn common_reader(graph: &Graph, readers: &Readers, made: &[Value]) -> Option<(usize, Value)> {
    let reader = readers.only(made[0])?;
    let node = &graph.nodes()[reader];
    let &[output] = &node.outputs[..] else { return None };
    let alone = |v: &Value| readers.only(*v).is_some() && graph.kind(*v) == graph.kind(output);
    (node.inputs == made && program(node).is_some() && made.iter().all(alone)).then_some((reader, output))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Feeds, evaluate};
    use crate::ops::matmul::{Form, MatmulEmit};
    use crate::ops::pointwise::PointwiseEmit;
    use crate::passes::{Fuse, run};
    use crate::tensor::random::Stream;
    use crate::tensor::{DType, Tensor, Type};

    /// Three matmuls of x, of which two meet in a gate and the third goes out.
    fn block(rows: usize) -> Graph {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([rows, 4]));
        let weights = ["gate", "up", "other"].map(|name| graph.parameter(name, Type::f32([6, 4])));
        let [gate, up, other] = weights.map(|w| graph.matmul_form(Form::Nt, x, w).unwrap());
        let gate = graph.pointwise("silu", &[gate], 0.0).unwrap();
        let gated = graph.mul(gate, up).unwrap();
        graph.output("gated", gated);
        graph.output("other", other);
        graph
    }

    fn feeds(rows: usize) -> Feeds {
        let mut random = Stream::new(&[3]);
        let mut some = |shape: [usize; 2]| {
            Tensor::f32(shape, (0..shape[0] * shape[1]).map(|_| random.normal() as f32).collect())
        };
        let mut feeds = Feeds::new();
        feeds.set("x", some([rows, 4]));
        ["gate", "up", "other"].into_iter().for_each(|name| feeds.set(name, some([6, 4])));
        feeds
    }

    fn names(graph: &Graph) -> Vec<&'static str> {
        graph.nodes().iter().map(|n| n.op.name()).collect()
    }

    #[test]
    fn matmuls_of_one_row_are_grouped_and_no_value_changes() {
        let graph = block(1);
        let (grouped, _) = run(&[&Fuse, &Group], graph.clone()).unwrap();
        assert_eq!(names(&grouped), ["matmul_group", "pointwise"]);
        let results = |graph: &Graph| evaluate(graph, &feeds(1), DType::F32).unwrap();
        assert_eq!(results(&graph), results(&grouped));
    }

    #[test]
    fn a_gate_and_what_passes_it_end_in_one_dispatch() {
        let mut graph = block(2);
        graph.redirect_output("other", graph.result("gated").unwrap());
        let (grouped, _) = run(&[&Fuse, &Group], graph.clone()).unwrap();
        assert_eq!(names(&grouped), ["matmul_group"]);
        let results = |graph: &Graph| evaluate(graph, &feeds(2), DType::F32).unwrap();
        assert_eq!(results(&graph), results(&grouped));
    }

    #[test]
    fn many_rows_are_left_alone() {
        let (grouped, _) = run(&[&Fuse, &Group], block(FEW_ROWS + 1)).unwrap();
        assert!(!names(&grouped).contains(&"matmul_group"));
    }
}
