//! Where rows are few, products of 8-bit codes code their activations themselves: each spares a dispatch, which is much of its work.

use super::join::{Join, Joins, Readers};
use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, without_dead_nodes};
use crate::ops::Value;

/// Rows at most: beyond, activations are coded once for all products that read them.
const FEW_ROWS: usize = 4;

/// Joins what codes activations with every product that reads the codes.
#[derive(Debug)]
pub struct Coding;

impl Pass for Coding {
    fn name(&self) -> &'static str {
        "coding"
    }

    fn promise(&self) -> Promise {
        Promise::Exact
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let graph = without_dead_nodes(graph);
        let readers = Readers::of(&graph);
        let mut joins = Joins::default();
        for (number, node) in graph.nodes().iter().enumerate() {
            let few = graph.kind(node.inputs[0]).shape.rows() <= FEW_ROWS;
            if !few || node.outputs.iter().any(|v| readers.is_result[v.index()]) {
                continue;
            }
            if let Some(found) = products(&graph, &readers, node) {
                joins.at.extend(found);
                joins.gone.insert(number);
            }
        }
        joins.rewrite(&graph)
    }
}

/// All that read the codes a node makes, as they make them for themselves; none if one of them cannot.
fn products(graph: &Graph, readers: &Readers, coder: &Node) -> Option<Vec<(usize, Join)>> {
    let (rule, fixed) = coder.op.codes_rows()?;
    let mut numbers: Vec<usize> =
        coder.outputs.iter().flat_map(|v| readers.nodes[v.index()].iter().copied()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let join = |number: usize| {
        let node = &graph.nodes()[number];
        let op = node.op.coding(rule, fixed)?;
        let common = node.op.common_inputs();
        let read: Vec<Value> = common.iter().map(|&i| node.inputs[i]).collect();
        let own = node.inputs.iter().enumerate().filter(|(i, _)| !common.contains(i)).map(|(_, &v)| v);
        let inputs: Vec<Value> = coder.inputs.iter().copied().chain(own).collect();
        let alone = inputs[coder.inputs.len()..].iter().all(|v| !coder.outputs.contains(v));
        let outputs = node.outputs.clone();
        (read == coder.outputs && alone).then_some((number, Join { op, inputs, outputs }))
    };
    numbers.into_iter().map(join).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Feeds, evaluate};
    use crate::ops::matmul_int8::{Codes, MatmulInt8Emit};
    use crate::ops::pointwise::PointwiseEmit;
    use crate::ops::quantize_fixed::QuantizeFixedEmit;
    use crate::ops::quantize_rows::{QuantizeRowsEmit, Rule};
    use crate::passes::{Epilogue, Fuse, Group, Tidy, run};
    use crate::tensor::{DType, Tensor, Type};

    /// Gate and up of coded activations that meet in a product, and a third matrix of the same activations with a bias.
    fn block(rows: usize, fixed: bool) -> Graph {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([rows, 8]));
        let [codes, scales] = match fixed {
            true => {
                let scale = graph.parameter("scale", Type::f32([1]));
                graph.quantize_fixed(x, scale, Rule::Narrow).unwrap()
            }
            false => graph.quantize_rows(x, Rule::Narrow).unwrap(),
        };
        let bias = graph.parameter("bias", Type::f32([6]));
        let mut product = |name: &str, bias: Option<Value>| {
            let w = graph.parameter(name, Type::new(DType::I8, [6, 8]));
            let s = graph.parameter(format!("{name} scales"), Type::f32([6]));
            graph.linear_int8(Codes { codes, scales }, Codes { codes: w, scales: s }, bias).unwrap()
        };
        let (gate, up, other) = (product("gate", None), product("up", None), product("other", Some(bias)));
        let gate = graph.pointwise("silu", &[gate], 0.0).unwrap();
        let gated = graph.mul(gate, up).unwrap();
        let other = graph.pointwise("relu", &[other], 0.0).unwrap();
        graph.output("gated", gated);
        graph.output("other", other);
        graph
    }

    fn feeds(rows: usize) -> Feeds {
        let floats = |shape: &[usize]| {
            let count: usize = shape.iter().product();
            Tensor::f32(shape, (0..count).map(|i| (i * 37 % 19) as f32 / 7.0 - 1.0).collect())
        };
        let mut feeds = Feeds::new().with("x", floats(&[rows, 8])).with("bias", floats(&[6]));
        feeds.set("scale", Tensor::f32([1], vec![0.02]));
        for (seed, name) in ["gate", "up", "other"].into_iter().enumerate() {
            feeds.set(name, Tensor::i8([6, 8], (0..48).map(|i| (i * 53 + 7 * seed) as u8 as i8).collect()));
            feeds.set(format!("{name} scales"), floats(&[6]));
        }
        feeds
    }

    #[test]
    fn products_of_one_row_code_it_themselves_and_no_value_changes() {
        for (rows, fixed) in [(1, false), (3, false), (2, true)] {
            let graph = block(rows, fixed);
            let (coded, _) = run(&[&Tidy, &Fuse, &Coding, &Group, &Epilogue], graph.clone()).unwrap();
            let names: Vec<_> = coded.nodes().iter().map(|n| n.op.name()).collect();
            assert_eq!(names, ["coding_matmul", "coding_matmul"]);
            let results = |graph: &Graph| evaluate(graph, &feeds(rows), DType::F32).unwrap();
            assert_eq!(results(&graph), results(&coded));
        }
    }

    #[test]
    fn many_rows_and_codes_that_others_read_are_left_alone() {
        let codes = |graph: &Graph| graph.nodes().iter().filter(|n| n.op.codes_rows().is_some()).count();
        assert_eq!(codes(&Coding.rewrite(&block(FEW_ROWS + 1, false)).unwrap()), 1);
        let mut graph = block(1, false);
        let made = graph.nodes().iter().find(|n| n.op.codes_rows().is_some()).unwrap().outputs[1];
        graph.output("scales", made);
        assert_eq!(codes(&Coding.rewrite(&graph).unwrap()), 1);
    }
}
