//! Tables and scores larger than a kernel may bind become several: rows of a table, and rows of scores that a loss reads.
//!
//! A table is looked up in each of its pieces, where tokens of other pieces have zeros, and the results are added. A product with a
//! piece of a weight stored as [out, in] gives some of the outputs, which are put side by side. Scores of more bytes than may be
//! bound are made for some rows at a time where a loss sums over rows. The pass comes before anything is differentiated: gradients
//! come in pieces of themselves.

use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, Source, ValueInfo};
use crate::ops::concat::ConcatEmit;
use crate::ops::matmul::Form;
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reshape::ReshapeEmit;
use crate::ops::slice::SliceEmit;
use crate::ops::{Emit, Value};
use crate::tensor::{DType, Shape, Type};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

/// Rows of a piece are a multiple of this where there are enough: whole tiles of a matmul.
const TILE: usize = 64;

/// Some rows of a parameter, which are a parameter of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Name of the whole.
    pub whole: String,
    /// Which of its rows.
    pub rows: Range<usize>,
    /// How many rows the whole has.
    pub of: usize,
}

impl Piece {
    /// Its name: that of the whole and the rows.
    pub fn name(&self) -> String {
        format!("{}#{}..{}/{}", self.whole, self.rows.start, self.rows.end, self.of)
    }

    /// What a name says, if it is one of a piece.
    pub fn parse(name: &str) -> Option<Piece> {
        let (whole, rows) = name.rsplit_once('#')?;
        let (start, rest) = rows.split_once("..")?;
        let (end, of) = rest.split_once('/')?;
        let [start, end, of] = [start, end, of].map(|text| text.parse::<usize>().ok());
        Some(Piece { whole: whole.to_string(), rows: start?..end?, of: of? })
    }

    /// The shape of the whole whose piece has this one.
    pub fn whole_shape(&self, shape: &Shape) -> Shape {
        [&[self.of], &shape[1..]].concat().into()
    }
}

/// Cuts what is larger than `most_bytes`.
#[derive(Clone, Debug)]
pub struct Pieces {
    /// The most that a kernel may bind of one value.
    pub most_bytes: u64,
    /// Parameters that are left whole, such as those which will be read as codes.
    pub whole: Vec<String>,
}

impl Pieces {
    /// For a device that binds so much at once.
    pub fn of(most_bytes: u64) -> Pieces {
        Pieces { most_bytes, whole: vec![] }
    }

    /// The pieces of each parameter of a graph that is cut, by its name.
    pub fn cut(&self, graph: &Graph) -> BTreeMap<String, Vec<Piece>> {
        let large = graph.values().iter().filter(|info| self.is_large_table(info));
        let mut cut: BTreeMap<String, Vec<Piece>> = BTreeMap::new();
        for info in large {
            let name = info.name.clone().expect("parameters are named when made");
            let of = info.kind.shape[0];
            let each = rows_within(self.most_bytes, info.kind.size_bytes() / of as u64);
            let each = if each > TILE { each / TILE * TILE } else { each };
            // As even as tiles allow: a short last piece would keep a device idle.
            let even = of.div_ceil(of.div_ceil(each)).next_multiple_of(if each > TILE { TILE } else { 1 });
            let starts = (0..of).step_by(even.min(each));
            let piece =
                |start| Piece { whole: name.clone(), rows: start..(start + even.min(each)).min(of), of };
            cut.insert(name.clone(), starts.map(piece).collect());
        }
        for node in graph.nodes() {
            for (at, input) in node.inputs.iter().enumerate() {
                let name = graph.info(*input).name.as_deref().unwrap_or_default();
                if cut.contains_key(name) && !reads_pieces(node, at) {
                    cut.remove(name);
                }
            }
        }
        cut
    }

    fn is_large_table(&self, info: &ValueInfo) -> bool {
        matches!(info.source, Source::Parameter)
            && info.kind.dtype == DType::F32
            && info.kind.shape.len() == 2
            && info.kind.size_bytes() > self.most_bytes
            && info.name.as_ref().is_some_and(|name| !self.whole.contains(name))
    }
}

/// Rows of so many bytes that fit; one at least.
fn rows_within(most_bytes: u64, row_bytes: u64) -> usize {
    (most_bytes / row_bytes.max(1)).max(1) as usize
}

/// Whether a node can read its input `at` in pieces.
fn reads_pieces(node: &Node, at: usize) -> bool {
    let looks_up = at == 0 && node.op.of_rows(0).is_some();
    let multiplies =
        at == 1 && node.op.matmul().is_some_and(|m| m.form == Form::Nt && m.activation.is_none());
    looks_up || multiplies
}

impl Pass for Pieces {
    fn name(&self) -> &'static str {
        "pieces"
    }

    fn promise(&self) -> Promise {
        Promise::Exact
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let cut = self.cut(graph);
        let losses = self.large_losses(graph);
        if cut.is_empty() && losses.is_empty() {
            return Ok(graph.clone());
        }
        let is_cut = |info: &ValueInfo| info.name.as_ref().is_some_and(|name| cut.contains_key(name));
        let mut rewriter = Rewriter::without(graph, is_cut);
        let mut pieces: HashMap<Value, Vec<(Piece, Value)>> = HashMap::new();
        for (name, list) in &cut {
            let whole = graph.named(name).expect("it was found there");
            let columns = graph.kind(whole).shape[1];
            let declare = |piece: &Piece| {
                let kind = Type::f32([piece.rows.len(), columns]);
                (piece.clone(), rewriter.new.parameter(piece.name(), kind))
            };
            pieces.insert(whole, list.iter().map(declare).collect());
        }
        let put_off: Vec<usize> = losses.values().flat_map(|loss| loss.put_off.clone()).collect();
        for (number, node) in graph.nodes().iter().enumerate() {
            if put_off.contains(&number) {
                continue;
            }
            if let Some(loss) = losses.get(&number) {
                self.sum_by_rows(graph, &mut rewriter, &pieces, node, loss)?;
            } else if let Some(list) = node.inputs.first().and_then(|v| pieces.get(v)) {
                look_up(&mut rewriter, node, list)?;
            } else if let Some(list) = node.inputs.get(1).and_then(|v| pieces.get(v)) {
                let x = rewriter.get(node.inputs[0]);
                let bias = node.inputs.get(2).map(|&v| rewriter.get(v));
                let y = in_scope(&mut rewriter, node, |graph| multiply(graph, node, x, list, bias))?;
                rewriter.set(node.outputs[0], y);
            } else {
                rewriter.copy(node)?;
            }
        }
        Ok(rewriter.finish())
    }
}

/// A loss over more scores than may be bound.
struct LargeLoss {
    /// The product that makes the scores.
    product: usize,
    /// Nodes that are made as parts of the loss: the product, and changes of shape behind it.
    put_off: Vec<usize>,
}

impl Pieces {
    /// The losses that read too much, by the number of their node.
    fn large_losses(&self, graph: &Graph) -> HashMap<usize, LargeLoss> {
        let mut found = HashMap::new();
        let uses = graph.uses();
        for (number, node) in graph.nodes().iter().enumerate() {
            let scores = node.inputs.first().copied();
            let Some(scores) = scores.filter(|_| node.op.over_rows().is_some()) else { continue };
            if graph.kind(scores).size_bytes() <= self.most_bytes {
                continue;
            }
            let (mut at, mut put_off) = (scores, vec![]);
            let product = loop {
                let Source::Node { node: maker, .. } = graph.info(at).source else { break None };
                let made_by = &graph.nodes()[maker];
                // What something else reads too has to be there as a whole.
                if uses[at.index()] != 1 {
                    break None;
                }
                put_off.push(maker);
                match made_by.op.matmul() {
                    Some(m) if m.form == Form::Nt && graph.kind(made_by.inputs[1]).shape.len() == 2 => {
                        break Some(maker);
                    }
                    None if made_by.op.name() == "reshape" => at = made_by.inputs[0],
                    _ => break None,
                }
            };
            if let Some(product) = product {
                found.insert(number, LargeLoss { product, put_off });
            }
        }
        found
    }

    /// The loss as a sum over parts of the rows.
    fn sum_by_rows(
        &self,
        old: &Graph,
        rewriter: &mut Rewriter,
        pieces: &HashMap<Value, Vec<(Piece, Value)>>,
        node: &Node,
        loss: &LargeLoss,
    ) -> graph::Result<()> {
        let product = &old.nodes()[loss.product];
        let (op, is_mean) = node.op.over_rows().expect("it was found by that");
        let scores = &old.kind(node.inputs[0]).shape;
        let (rows, row_bytes) = (scores.rows(), 4 * scores.last() as u64);
        let whole = Piece { whole: String::new(), rows: 0..scores.last(), of: scores.last() };
        let list = match pieces.get(&product.inputs[1]) {
            Some(list) => list.clone(),
            None => vec![(whole, rewriter.get(product.inputs[1]))],
        };
        let x = rewriter.get(product.inputs[0]);
        let targets = rewriter.get(node.inputs[1]);
        let bias = product.inputs.get(2).map(|&v| rewriter.get(v));
        let each = rows.div_ceil(rows.div_ceil(rows_within(self.most_bytes, row_bytes)));
        let outputs = in_scope(rewriter, node, |graph| {
            let columns = graph.type_of(x).shape.last();
            let x = graph.reshape(x, [rows, columns].into())?;
            let targets = graph.reshape(targets, [rows].into())?;
            let mut sums: Option<Vec<Value>> = None;
            let mut of_rows = vec![];
            for start in (0..rows).step_by(each) {
                let end = (start + each).min(rows);
                let x = graph.slice(x, 0, start, end)?;
                let targets = graph.slice(targets, 0, start, end)?;
                let scores = multiply(graph, product, x, &list, bias)?;
                let part = graph.apply(op.clone(), &[scores, targets])?;
                of_rows.push(part[1]);
                sums = Some(match sums {
                    None => vec![part[0], part[2]],
                    Some(sums) => vec![graph.add(sums[0], part[0])?, graph.add(sums[1], part[2])?],
                });
            }
            let sums = sums.expect("there is a row at least");
            let loss = if is_mean { graph.div(sums[0], sums[1])? } else { sums[0] };
            Ok([loss, graph.concat(&of_rows, 0)?, sums[1]])
        })?;
        for (&old, new) in node.outputs.iter().zip(outputs) {
            rewriter.set(old, new);
        }
        Ok(())
    }
}

/// Writes under a node's scope; what goes wrong names it.
fn in_scope<T>(
    rewriter: &mut Rewriter,
    node: &Node,
    work: impl FnOnce(&mut Graph) -> crate::ops::Result<T>,
) -> graph::Result<T> {
    let scope = node.scope.clone();
    rewriter.emit_in(&node.scope, work).map_err(|source| graph::Error::Operator { scope, source })
}

/// A product with each piece, side by side.
fn multiply(
    graph: &mut Graph,
    product: &Node,
    x: Value,
    list: &[(Piece, Value)],
    bias: Option<Value>,
) -> crate::ops::Result<Value> {
    let op: Arc<_> = product.op.clone();
    let part = |(piece, weight): &(Piece, Value)| {
        let mut inputs = vec![x, *weight];
        if let Some(bias) = bias {
            inputs.push(graph.slice(bias, 0, piece.rows.start, piece.rows.end)?);
        }
        Ok(graph.apply(op.clone(), &inputs)?[0])
    };
    let parts = list.iter().map(part).collect::<crate::ops::Result<Vec<_>>>()?;
    let last = graph.type_of(x).shape.len() - 1;
    graph.concat(&parts, last)
}

/// The sum of what is found in each piece.
fn look_up(rewriter: &mut Rewriter, node: &Node, list: &[(Piece, Value)]) -> graph::Result<()> {
    let others: Vec<Value> = node.inputs[1..].iter().map(|&v| rewriter.get(v)).collect();
    let sum = in_scope(rewriter, node, |graph| {
        let mut sum = None;
        for (piece, table) in list {
            let op =
                node.op.of_rows(piece.rows.start).expect("the table is cut for readers that can do this");
            let mut inputs = vec![*table];
            inputs.extend(&others);
            // Behind the tokens comes what is sorted by them, and last where each row's begin.
            if let Some(starts) = inputs.get_mut(2..).and_then(|rest| rest.last_mut()) {
                *starts = graph.slice(*starts, 0, piece.rows.start, piece.rows.end + 1)?;
            }
            let found = graph.apply(op, &inputs)?[0];
            sum = Some(match sum {
                None => found,
                Some(sum) => graph.add(sum, found)?,
            });
        }
        Ok(sum.expect("a table has a piece at least"))
    })?;
    rewriter.set(node.outputs[0], sum);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Feeds, evaluate, gradient};
    use crate::ops::cross_entropy::{CrossEntropy, CrossEntropyEmit};
    use crate::ops::embedding::{EmbeddingEmit, sort_positions};
    use crate::ops::matmul::MatmulEmit;
    use crate::tensor::Tensor;
    use crate::tensor::random::Stream;

    const ROWS: usize = 11;

    /// A table that is looked up and multiplied with, over six positions, one of which does not count.
    fn model() -> (Graph, Value) {
        let mut graph = Graph::new();
        let tokens = graph.input("tokens", Type::new(DType::U32, [2, 3]));
        let order = graph.input("order", Type::new(DType::U32, [6]));
        let starts = graph.input("starts", Type::new(DType::U32, [ROWS + 1]));
        let targets = graph.input("targets", Type::new(DType::I32, [6]));
        let table = graph.parameter("table", Type::f32([ROWS, 4]));
        let bias = graph.parameter("bias", Type::f32([ROWS]));
        let x = graph.embedding_trained(table, tokens, order, starts).unwrap();
        let x = graph.reshape(x, [6, 4].into()).unwrap();
        let x = graph.pointwise("tanh", &[x], 0.0).unwrap();
        let scores = graph.linear(Form::Nt, x, table, Some(bias)).unwrap();
        let settings = CrossEntropy { label_smoothing: 0.1, ..CrossEntropy::default() };
        let loss = graph.cross_entropy(scores, targets, settings).unwrap();
        graph.output("loss", loss);
        (graph, loss)
    }

    fn feeds() -> Feeds {
        let tokens = [3, 0, 10, 3, 7, 5];
        let (order, starts) = sort_positions(&tokens, ROWS).unwrap();
        Feeds::new()
            .with("tokens", Tensor::u32([2, 3], tokens.to_vec()))
            .with("order", Tensor::u32([6], order))
            .with("starts", Tensor::u32([ROWS + 1], starts))
            .with("targets", Tensor::i32([6], vec![1, 10, -100, 0, 4, 9]))
    }

    fn table() -> Tensor {
        let mut random = Stream::new(&[5]);
        Tensor::f32([ROWS, 4], (0..4 * ROWS).map(|_| random.normal() as f32).collect())
    }

    fn with_gradients(mut graph: Graph) -> Graph {
        let loss = graph.result("loss").unwrap();
        let names: Vec<(String, Value)> = graph.parameters().map(|(n, v)| (n.to_string(), v)).collect();
        let wrt: Vec<Value> = names.iter().map(|&(_, v)| v).collect();
        let gradients = gradient(&mut graph, loss, &wrt).unwrap();
        for ((name, _), gradient) in names.into_iter().zip(gradients) {
            graph.output(name, gradient.unwrap());
        }
        graph
    }

    #[test]
    fn pieces_of_a_table_and_of_the_scores_give_the_loss_and_the_gradients_of_the_whole() {
        let (graph, _) = model();
        let bias = Tensor::f32([ROWS], (0..ROWS).map(|i| i as f32 / 10.0).collect());
        let whole = with_gradients(graph.clone());
        let expected =
            evaluate(&whole, &feeds().with("table", table()).with("bias", bias.clone()), DType::F32);
        let expected = expected.unwrap();
        // 64 bytes are four rows of the table, and one row of scores.
        for (most_bytes, pieces, parts) in [(64, 3, 6), (100, 2, 3), (175, 2, 2), (200, 1, 2)] {
            let pass = Pieces::of(most_bytes);
            let cut = pass.cut(&graph);
            assert_eq!(cut.get("table").map_or(1, Vec::len), pieces, "{most_bytes}");
            let (new, _) = crate::passes::run(&[&pass], graph.clone()).unwrap();
            let losses = new.nodes().iter().filter(|node| node.op.name() == "cross_entropy");
            assert_eq!(losses.count(), parts, "{most_bytes}");
            let new = with_gradients(new);
            let mut feeds = feeds().with("table", table()).with("bias", bias.clone());
            for piece in cut.get("table").into_iter().flatten() {
                feeds.set(piece.name(), table().rows(piece.rows.clone()));
            }
            let got = evaluate(&new, &feeds, DType::F32).unwrap();
            let close = |name: &str, expected: &Tensor, got: &Tensor| {
                assert_eq!(expected.shape, got.shape, "{name}");
                for (e, g) in expected.to_f64().iter().zip(got.to_f64()) {
                    assert!((e - g).abs() < 1e-6, "{most_bytes} {name}: {g}, expected {e}");
                }
            };
            close("loss", &expected["loss"], &got["loss"]);
            close("bias", &expected["bias"], &got["bias"]);
            match cut.get("table") {
                None => close("table", &expected["table"], &got["table"]),
                Some(list) => list.iter().for_each(|piece| {
                    close("piece", &expected["table"].rows(piece.rows.clone()), &got[&piece.name()]);
                }),
            }
        }
    }

    #[test]
    fn what_fits_stays_as_it_is_and_a_table_that_something_else_reads_stays_whole() {
        let (mut graph, _) = model();
        let same = Pieces::of(1 << 20).rewrite(&graph).unwrap();
        assert_eq!(same.nodes().len(), graph.nodes().len());
        let table = graph.named("table").unwrap();
        let square = graph.pointwise("square", &[table], 0.0).unwrap();
        graph.output("square", square);
        assert!(Pieces::of(64).cut(&graph).is_empty());
        let (graph, _) = model();
        assert!(Pieces { whole: vec!["table".into()], ..Pieces::of(64) }.cut(&graph).is_empty());
    }

    #[test]
    fn a_name_tells_which_rows_a_piece_has() {
        let piece = Piece { whole: "wte.weight".into(), rows: 64..128, of: 130 };
        assert_eq!(piece.name(), "wte.weight#64..128/130");
        assert_eq!(Piece::parse(&piece.name()), Some(piece.clone()));
        assert_eq!(piece.whole_shape(&[64, 3].into()), [130, 3].into());
        for name in ["wte.weight", "a#b", "a#1..2", "a#1..x/3"] {
            assert_eq!(Piece::parse(name), None, "{name}");
        }
    }
}
