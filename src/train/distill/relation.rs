//! What positions attend to, and how their values are related (MiniLM): distributions over positions that two models of any
//! width have in common.
//!
//! A relation of queries and keys is `softmax(q k^T / sqrt(D))`, one of values `softmax(v v^T / sqrt(D))`, each head for itself,
//! positions seeing none after them. Where the models have as many heads these are the attention's own; otherwise heads are put
//! side by side and cut anew, so that both have as many (MiniLMv2).

use super::loss::mean;
use super::{Teacher, Term};
use crate::graph::{Graph, Node};
use crate::ops::Value;
use crate::ops::attention::{Attention, Layout};
use crate::ops::distillation::DistillationEmit;
use crate::ops::reduce::{Kind, ReduceEmit};
use crate::ops::reshape::ReshapeEmit;
use crate::ops::split::SplitEmit;
use crate::tensor::Shape;
use crate::train::{Error, Result};

/// Logarithms of a relation, [B R, T, T].
#[derive(Clone, Copy, Debug)]
pub(super) struct Relation {
    pub logs: Value,
    pub heads: usize,
}

/// Queries, keys and values of a layer, each [B, T, heads, D], and the factor on its scores.
struct Sources {
    queries: Value,
    keys: Value,
    values: Value,
    scale: f32,
}

/// Writes the relations of a term into the graphs of the student and of the teacher, for each pair of layers.
pub(super) fn write(teacher: &Teacher, term: Term, graphs: &mut [Graph; 2]) -> Result<[Vec<Relation>; 2]> {
    let mut all = [vec![], vec![]];
    for pair in &teacher.related {
        let mut sources = vec![];
        for (graph, &layer) in graphs.iter_mut().zip(pair) {
            sources.push(sources_of(graph, layer)?);
        }
        let related = |sources: &Sources| if term == Term::Values { sources.values } else { sources.queries };
        let [ours, theirs] = [0, 1].map(|side| {
            let shape = &graphs[side].kind(related(&sources[side])).shape;
            [shape[2], shape[2] * shape[3]]
        });
        let heads = common_heads(teacher, ours, theirs)?;
        for (side, (graph, sources)) in graphs.iter_mut().zip(&sources).enumerate() {
            let logs = graph.within("relation", |graph| match term {
                Term::Values => {
                    let values = cut(graph, sources.values, heads)?;
                    let size = graph.kind(values).shape[3];
                    graph.relation(values, values, 1.0 / (size as f32).sqrt(), true)
                }
                _ => attended(graph, sources, heads),
            })?;
            all[side].push(Relation { logs, heads });
        }
    }
    Ok(all)
}

/// For each position [N], the mean over layers and heads of the divergence of its row.
pub(super) fn compare(
    graph: &mut Graph,
    term: Term,
    student: &[(Term, Vec<Relation>)],
    teacher: &[(Term, Vec<Relation>)],
) -> Result<Value> {
    let of = |side: &[(Term, Vec<Relation>)]| {
        side.iter().find(|(other, _)| *other == term).expect("written for each term").1.clone()
    };
    let mut all = vec![];
    for (ours, theirs) in of(student).into_iter().zip(of(teacher)) {
        let rows = graph.row_divergence_of_logs(theirs.logs, ours.logs)?;
        let &[groups, time] = &graph.kind(rows).shape[..] else { unreachable!("relations have three axes") };
        let by_head = graph.reshape(rows, [groups / ours.heads, ours.heads, time].into())?;
        let each = graph.reduce(Kind::Mean, by_head, 1)?;
        all.push(graph.reshape(each, [groups / ours.heads * time].into())?);
    }
    Ok(mean(graph, &all)?)
}

/// Heads of a relation: those of both sides, or what divides the channels of both. Each side gives its heads and channels.
fn common_heads(teacher: &Teacher, ours: [usize; 2], theirs: [usize; 2]) -> Result<usize> {
    let heads = match teacher.recipe.relation_heads {
        Some(heads) => heads,
        None if ours[0] == theirs[0] => ours[0],
        None => greatest_divisor(ours[0], theirs[0]),
    };
    match [ours[1], theirs[1]].iter().find(|channels| !channels.is_multiple_of(heads)) {
        None => Ok(heads),
        Some(channels) => Err(Error::Teacher {
            folder: teacher.recipe.teacher.display().to_string(),
            problem: format!("distill.relation_heads = {heads} does not divide {channels} channels"),
            hint: format!("{} divides both sides", greatest_divisor(ours[0], theirs[0])),
        }),
    }
}

fn greatest_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}

/// What positions attend to: as the layer has it if it has so many heads, else of heads cut anew.
fn attended(graph: &mut Graph, sources: &Sources, heads: usize) -> crate::ops::Result<Value> {
    let own = graph.kind(sources.queries).shape[2];
    let keys = repeated(graph, sources.keys, own)?;
    let (queries, keys) = (cut(graph, sources.queries, heads)?, cut(graph, keys, heads)?);
    let size = graph.kind(queries).shape[3];
    let scale = if heads == own { sources.scale } else { 1.0 / (size as f32).sqrt() };
    graph.relation(queries, keys, scale, true)
}

/// Heads put side by side and cut into so many.
fn cut(graph: &mut Graph, x: Value, heads: usize) -> crate::ops::Result<Value> {
    let shape = graph.kind(x).shape.clone();
    graph.reshape(x, [shape[0], shape[1], heads, shape[2] * shape[3] / heads].into())
}

/// Keys that several queries share, once for each.
fn repeated(graph: &mut Graph, keys: Value, heads: usize) -> crate::ops::Result<Value> {
    let &[batch, time, own, size] = &graph.kind(keys).shape.clone()[..] else {
        unreachable!("keys have four axes")
    };
    if own == heads {
        return Ok(keys);
    }
    let apart = graph.reshape(keys, [batch, time, own, 1, size].into())?;
    let all = graph.expand_to(apart, &Shape::from([batch, time, own, heads / own, size]))?;
    graph.reshape(all, [batch, time, heads, size].into())
}

/// Queries, keys and values of a layer, counted from zero, as its attention reads them.
fn sources_of(graph: &mut Graph, layer: usize) -> Result<Sources> {
    let mut attentions = graph.nodes().iter().filter(|node| node.op.attention().is_some());
    let node: Node = attentions.nth(layer).expect("layers were counted").clone();
    let how: Attention = node.op.attention().expect("just found").clone();
    let [queries, keys, values] = match how.layout {
        Layout::Separate => [node.inputs[0], node.inputs[1], node.inputs[2]],
        Layout::Packed { heads, key_heads } => graph.within("relation", |graph| {
            let shape = graph.kind(node.inputs[0]).shape.clone();
            let size = shape[2] / (heads + 2 * key_heads);
            let pieces =
                graph.split(node.inputs[0], 2, &[heads * size, key_heads * size, key_heads * size])?;
            let mut of =
                |piece: usize, heads| graph.reshape(pieces[piece], [shape[0], shape[1], heads, size].into());
            Ok::<_, crate::ops::Error>([of(0, heads)?, of(1, key_heads)?, of(2, key_heads)?])
        })?,
    };
    let size = graph.kind(queries).shape[3];
    Ok(Sources { queries, keys, values, scale: how.scale.unwrap_or(1.0 / (size as f32).sqrt()) })
}
