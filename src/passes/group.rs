//! Operators alike with one input in common become one dispatch where rows are few: queries, keys and values of the next token.
//!
//! What two of them make for a pointwise operator alone, such as a gate and what passes it, goes through that in registers.

use super::tidy::program;
use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, without_dead_nodes};
use crate::ops::{Operator, Value};
use std::collections::HashMap;
use std::sync::Arc;

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
        let groups = groups(&graph);
        let gone: Vec<usize> = groups.values().flat_map(|g| g.gone.iter().copied()).collect();
        let mut rewriter = Rewriter::new(&graph);
        for (number, node) in graph.nodes().iter().enumerate() {
            match groups.get(&number) {
                Some(group) => {
                    let inputs: Vec<Value> = group.inputs.iter().map(|&v| rewriter.get(v)).collect();
                    let joined = Node { outputs: group.outputs.clone(), ..node.clone() };
                    rewriter.replace(&joined, group.op.clone(), &inputs)?;
                }
                None if gone.contains(&number) => {}
                None => rewriter.copy(node)?,
            }
        }
        Ok(rewriter.finish())
    }
}

/// A group, which stands where its first member stood.
struct Joined {
    op: Arc<dyn Operator>,
    inputs: Vec<Value>,
    /// The old values its outputs stand for.
    outputs: Vec<Value>,
    /// The other members.
    gone: Vec<usize>,
}

/// All groups by the number of their first member.
fn groups(graph: &Graph) -> HashMap<usize, Joined> {
    let mut readers: Vec<Vec<usize>> = vec![vec![]; graph.values().len()];
    for (number, node) in graph.nodes().iter().enumerate() {
        node.inputs.iter().for_each(|v| readers[v.index()].push(number));
    }
    // Members in order, by what they share: the first input and all that the operator says of itself.
    let mut alike: HashMap<(Value, &str, String), Vec<usize>> = HashMap::new();
    for (number, node) in graph.nodes().iter().enumerate() {
        // A member may be moved to the first one's place: what else it reads must be there from the start.
        let [first, second] = node.inputs[..] else { continue };
        let given = !matches!(graph.info(second).source, graph::Source::Node { .. });
        let few = graph.kind(first).shape.rows() <= FEW_ROWS;
        if given && few && node.outputs.len() == 1 && node.op.grouped(2, None).is_some() {
            alike.entry((first, node.op.name(), node.op.settings())).or_default().push(number);
        }
    }
    let mut groups = HashMap::new();
    for members in alike.into_values() {
        for members in members.chunks(MOST) {
            if let Some((first, joined)) = join(graph, &readers, members) {
                groups.insert(first, joined);
            }
        }
    }
    groups
}

fn join(graph: &Graph, readers: &[Vec<usize>], members: &[usize]) -> Option<(usize, Joined)> {
    let (&first, rest) = members.split_first()?;
    let nodes: Vec<&Node> = members.iter().map(|&n| &graph.nodes()[n]).collect();
    let inputs = [&[nodes[0].inputs[0]][..], &nodes.iter().map(|n| n.inputs[1]).collect::<Vec<_>>()].concat();
    let made: Vec<Value> = nodes.iter().map(|n| n.outputs[0]).collect();
    if let Some((reader, output)) = common_reader(graph, readers, &made) {
        let op = nodes[0].op.grouped(members.len(), program(&graph.nodes()[reader]))?;
        let gone = rest.iter().copied().chain([reader]).collect();
        return Some((first, Joined { op, inputs, outputs: vec![output], gone }));
    }
    let op = nodes[0].op.grouped(members.len(), None)?;
    Some((first, Joined { op, inputs, outputs: made, gone: rest.to_vec() }))
}

/// The pointwise node that alone reads these values, in this order, all of its result's type; with that result.
fn common_reader(graph: &Graph, readers: &[Vec<usize>], made: &[Value]) -> Option<(usize, Value)> {
    let &[reader] = &readers[made[0].index()][..] else { return None };
    let node = &graph.nodes()[reader];
    let &[output] = &node.outputs[..] else { return None };
    let alone = |v: &Value| {
        readers[v.index()] == [reader]
            && graph.kind(*v) == graph.kind(output)
            && graph.outputs().iter().all(|(_, result)| result != v)
    };
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
