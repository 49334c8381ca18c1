//! Chains of pointwise operators become one: an element is read once, carried through in registers, written once.
//!
//! A producer joins its reader if both make the same shape and the reader is the first to want what the producer makes;
//! what later nodes want too becomes a further output. A kernel binds at most eight buffers, everywhere.

use super::join::Readers;
use super::tidy::program;
use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, without_dead_nodes};
use crate::ops::Value;
use crate::ops::pointwise::{Arg, Pointwise, Step};
use std::sync::Arc;

/// Buffers a portable kernel may bind.
const MOST_BUFFERS: usize = 8;
/// Steps past which a kernel would spill registers.
const MOST_STEPS: usize = 24;

/// Joins chains of pointwise operators.
#[derive(Debug)]
pub struct Fuse;

/// A pointwise program in the making: what it reads and which values its outputs stand for.
#[derive(Clone)]
struct Group {
    inputs: Vec<Value>,
    steps: Vec<Step>,
    /// Values wanted by others, with the step that makes each.
    outputs: Vec<(Value, usize)>,
}

impl Pass for Fuse {
    fn name(&self) -> &'static str {
        "fuse"
    }

    fn promise(&self) -> Promise {
        Promise::Exact
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let graph = without_dead_nodes(graph);
        let readers = Readers::of(&graph);
        let mut groups: Vec<Option<Group>> = graph.nodes().iter().map(group_of).collect();
        let mut at = home(&graph);
        for number in 0..groups.len() {
            while let Some(producer) = candidate(&graph, &readers, &groups, &at, number) {
                let (first, second) = (groups[producer].take(), groups[number].take());
                let (first, second) = (first.expect("a candidate"), second.expect("a candidate"));
                let joined = join(&readers, first, second, number, &graph);
                joined.outputs.iter().for_each(|&(value, _)| at[value.index()] = Some(number));
                groups[number] = Some(joined);
            }
        }
        write(&graph, &groups)
    }
}

fn group_of(node: &Node) -> Option<Group> {
    let program = program(node)?;
    let mut group = Group { inputs: vec![], steps: vec![], outputs: vec![] };
    let args: Vec<Arg> = node.inputs.iter().map(|&v| group.input(v)).collect();
    for step in &program.steps {
        let place = |arg: &Arg| match *arg {
            Arg::Input(i) => args[i],
            Arg::Step(s) => Arg::Step(s),
        };
        group.steps.push(Step { args: step.args.iter().map(place).collect(), ..step.clone() });
    }
    group.outputs = node.outputs.iter().copied().zip(program.outputs.iter().copied()).collect();
    Some(group)
}

impl Group {
    /// The argument that reads `value`, which becomes an input unless it is one.
    fn input(&mut self, value: Value) -> Arg {
        let known = self.inputs.iter().position(|&v| v == value);
        Arg::Input(known.unwrap_or_else(|| {
            self.inputs.push(value);
            self.inputs.len() - 1
        }))
    }
}

/// The group in which each value is made at present.
fn home(graph: &Graph) -> Vec<Option<usize>> {
    let mut at = vec![None; graph.values().len()];
    for (number, node) in graph.nodes().iter().enumerate() {
        node.outputs.iter().for_each(|v| at[v.index()] = Some(number));
    }
    at
}

/// A group that may join group `number`, which reads from it.
fn candidate(
    graph: &Graph,
    readers: &Readers,
    groups: &[Option<Group>],
    at: &[Option<usize>],
    number: usize,
) -> Option<usize> {
    let reader = groups[number].as_ref()?;
    let kind = graph.kind(reader.outputs[0].0);
    reader.inputs.iter().find_map(|value| {
        let producer_at = at[value.index()]?;
        let producer = groups[producer_at].as_ref().filter(|_| producer_at != number)?;
        let same_kind = graph.kind(producer.outputs[0].0) == kind;
        // Every reader of anything the producer makes comes at `number` or later, or has joined it already.
        let first =
            producer.outputs.iter().all(|(v, _)| readers.nodes[v.index()].iter().all(|&n| n >= number));
        let joined = join(readers, producer.clone(), reader.clone(), number, graph);
        let fits =
            joined.inputs.len() + joined.outputs.len() <= MOST_BUFFERS && joined.steps.len() <= MOST_STEPS;
        (same_kind && first && fits).then_some(producer_at)
    })
}

/// Both programs as one; `number` is the node at which it will stand.
fn join(readers: &Readers, first: Group, second: Group, number: usize, graph: &Graph) -> Group {
    let mut joined = Group { inputs: first.inputs, steps: first.steps, outputs: vec![] };
    let offset = joined.steps.len();
    let args: Vec<Arg> = second
        .inputs
        .iter()
        .map(|&value| match first.outputs.iter().find(|(v, _)| *v == value) {
            Some(&(_, step)) => Arg::Step(step),
            None => joined.input(value),
        })
        .collect();
    for step in second.steps {
        let place = |arg: &Arg| match *arg {
            Arg::Input(i) => args[i],
            Arg::Step(s) => Arg::Step(s + offset),
        };
        joined.steps.push(Step { args: step.args.iter().map(place).collect(), ..step.clone() });
    }
    let inside = |n: usize| n == number && graph.nodes()[n].op.pointwise().is_some();
    let wanted =
        |v: Value| readers.is_result[v.index()] || readers.nodes[v.index()].iter().any(|&n| !inside(n));
    joined.outputs = first.outputs.into_iter().filter(|&(v, _)| wanted(v)).collect();
    joined.outputs.extend(second.outputs.into_iter().map(|(v, s)| (v, s + offset)));
    joined
}

fn write(graph: &Graph, groups: &[Option<Group>]) -> graph::Result<Graph> {
    let mut rewriter = Rewriter::new(graph);
    for (node, group) in graph.nodes().iter().zip(groups) {
        match group {
            Some(group) => {
                let program = Pointwise {
                    inputs: group.inputs.len(),
                    steps: group.steps.clone(),
                    outputs: group.outputs.iter().map(|&(_, step)| step).collect(),
                };
                let inputs: Vec<Value> = group.inputs.iter().map(|&v| rewriter.get(v)).collect();
                let outputs = group.outputs.iter().map(|&(v, _)| v).collect();
                rewriter.replace(&Node { outputs, ..node.clone() }, Arc::new(program), &inputs)?;
            }
            None if program(node).is_some() => {}
            None => rewriter.copy(node)?,
        }
    }
    Ok(rewriter.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Feeds, evaluate};
    use crate::ops::pointwise::PointwiseEmit;
    use crate::ops::reduce::ReduceEmit;
    use crate::tensor::random::Stream;
    use crate::tensor::{DType, Tensor, Type};

    fn names(graph: &Graph) -> Vec<&'static str> {
        graph.nodes().iter().map(|n| n.op.name()).collect()
    }

    #[test]
    fn a_chain_becomes_one_operator() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([2, 3]));
        let b = graph.input("b", Type::f32([3]));
        let a = graph.add(x, b).unwrap();
        let y = graph.pointwise("gelu", &[a], 0.0).unwrap();
        let z = graph.scale(y, 2.0).unwrap();
        graph.output("z", z);
        let fused = Fuse.rewrite(&graph).unwrap();
        assert_eq!(names(&fused), ["pointwise"]);
    }

    #[test]
    fn what_others_want_becomes_a_further_output() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([2, 3]));
        let a = graph.scale(x, 2.0).unwrap();
        let b = graph.pointwise("tanh", &[a], 0.0).unwrap();
        let s = graph.sum_all(a).unwrap();
        graph.output("b", b);
        graph.output("s", s);
        let fused = Fuse.rewrite(&graph).unwrap();
        fused.verify().unwrap();
        assert_eq!(names(&fused), ["pointwise", "reshape", "sum", "reshape"]);
        assert_eq!(fused.nodes()[0].outputs.len(), 2);
    }

    #[test]
    fn fusing_never_changes_a_value() {
        let functions = ["add", "mul", "sub", "maximum", "tanh", "gelu", "sigmoid", "square"];
        for seed in 0..150 {
            let mut stream = Stream::new(&[seed, 7]);
            let mut graph = Graph::new();
            let mut values = vec![
                graph.input("x", Type::f32([3, 4])),
                graph.input("row", Type::f32([4])),
                graph.input("one", Type::f32([])),
            ];
            for _ in 0..4 + stream.below(20) {
                let name = functions[stream.below(8) as usize];
                let arity = crate::ops::pointwise::function(name).arity;
                let args: Vec<Value> =
                    (0..arity).map(|_| values[stream.below(values.len() as u64) as usize]).collect();
                let y = graph.pointwise(name, &args, 0.0).unwrap();
                values.push(y);
                if stream.below(4) == 0 {
                    values.push(graph.sum_all(y).unwrap());
                }
                if stream.below(5) == 0 {
                    graph.output(format!("y{}", values.len()), y);
                }
            }
            graph.output("last", *values.last().unwrap());
            let mut feeds = Feeds::new();
            for (name, shape) in [("x", vec![3, 4]), ("row", vec![4]), ("one", vec![])] {
                let count = shape.iter().product();
                feeds.set(name, Tensor::f32(shape, (0..count).map(|_| stream.normal() as f32).collect()));
            }
            let fused = Fuse.rewrite(&graph).unwrap();
            fused.verify().unwrap();
            let (a, b) = (evaluate(&graph, &feeds, DType::F32), evaluate(&fused, &feeds, DType::F32));
            let same = |a: &Tensor, b: &Tensor| {
                a.to_f64()
                    .iter()
                    .zip(b.to_f64())
                    .all(|(x, y)| x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()))
            };
            for (name, value) in &a.unwrap() {
                assert!(
                    same(value, &b.as_ref().unwrap()[name]),
                    "seed {seed}: `{name}` changed\n{graph}\n{fused}"
                );
            }
        }
    }
}
