//! Caches of keys and values as 8-bit codes with a scale for each row: a fourth of the bytes of long texts.

use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, Source};
use crate::ops::dequantize_rows::DequantizeRowsEmit;
use crate::ops::{Emit, Value};
use crate::tensor::{DType, Type};
use std::collections::HashMap;

/// Exchanges the states of caches for codes and scales, and what writes and reads them. The new states are named after the old
/// ones, `NAME.codes` and `NAME.scales`. What does not read codes, such as attention with a bias, gets numbers that are made of them anew
/// in each pass.
#[derive(Debug)]
pub struct CodedCache;

/// Caches of a graph: states of keys and of values, F32 [B, S, H, D].
pub(super) fn caches(graph: &Graph) -> Vec<Value> {
    let named = |info: &&graph::ValueInfo| {
        let cache = matches!(info.source, Source::State) && info.kind.shape.len() == 4;
        cache && info.kind.dtype == DType::F32
    };
    let names = graph.values().iter().filter(named).filter_map(|info| info.name.as_deref());
    names.filter_map(|name| graph.named(name)).collect()
}

/// Codes and scales that stand for caches, as these are at a place of the graph.
struct Coded(HashMap<Value, [Value; 2]>);

impl Pass for CodedCache {
    fn name(&self) -> &'static str {
        "coded_cache"
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let caches = caches(graph);
        let names: Vec<&String> = caches.iter().filter_map(|&v| graph.info(v).name.as_ref()).collect();
        let mut rewriter = Rewriter::without(graph, |info| {
            matches!(info.source, Source::State)
                && info.name.as_ref().is_some_and(|name| names.contains(&name))
        });
        let mut coded = Coded(HashMap::new());
        for &value in &caches {
            let info = graph.info(value);
            let name = info.name.clone().unwrap_or_default();
            let shape = &info.kind.shape;
            let codes = rewriter.new.state(format!("{name}.codes"), Type::new(DType::I8, shape.clone()));
            let scales = rewriter.new.state(format!("{name}.scales"), Type::f32(&shape[..shape.len() - 1]));
            coded.0.insert(value, [codes, scales]);
        }
        for node in graph.nodes() {
            coded.rewrite(&mut rewriter, node)?;
        }
        Ok(coded.finish(rewriter, graph))
    }
}

impl Coded {
    fn rewrite(&mut self, rewriter: &mut Rewriter, node: &Node) -> graph::Result<()> {
        let pair_of = |v: &Value| self.0.get(v).map(|pair| pair.to_vec());
        if let Some(op) = node.op.writing_codes() {
            let mut inputs: Vec<Value> = node.inputs[..2].iter().flat_map(|v| self.0[v]).collect();
            inputs.extend(node.inputs[2..].iter().map(|&v| rewriter.get(v)));
            let made = rewriter.emit_in(&node.scope, |new| new.apply(op, &inputs))?;
            for (old, new) in node.outputs.iter().zip(made.chunks(2)) {
                self.0.insert(*old, [new[0], new[1]]);
            }
            return Ok(());
        }
        if !node.inputs.iter().any(|v| self.0.contains_key(v)) {
            return rewriter.copy(node);
        }
        if let Some(op) = node.op.over_codes() {
            let inputs: Vec<Value> = node
                .inputs
                .iter()
                .flat_map(|v| pair_of(v).unwrap_or_else(|| vec![rewriter.get(*v)]))
                .collect();
            return rewriter.replace(node, op, &inputs);
        }
        let wrong = |source| graph::Error::Operator { scope: node.scope.clone(), source };
        let mut inputs = vec![];
        for v in &node.inputs {
            inputs.push(match self.0.get(v) {
                Some(&[codes, scales]) => {
                    rewriter.emit_in(&node.scope, |new| new.dequantize_rows(codes, scales)).map_err(wrong)?
                }
                None => rewriter.get(*v),
            });
        }
        rewriter.replace(node, node.op.clone(), &inputs)
    }

    /// A result that is a cache becomes two, named as their states are.
    fn finish(&self, mut rewriter: Rewriter, graph: &Graph) -> Graph {
        let of = |value: &Value| self.0.get(value).copied();
        let kept: Vec<(&String, [Value; 2])> =
            graph.outputs().iter().filter_map(|(name, value)| Some((name, of(value)?))).collect();
        for (_, value) in graph.outputs() {
            if let Some([codes, _]) = of(value) {
                rewriter.set(*value, codes);
            }
        }
        let mut new = rewriter.finish();
        for (name, [codes, scales]) in kept {
            new.forget_output(name);
            new.output(format!("{name}.codes"), codes);
            new.output(format!("{name}.scales"), scales);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Feeds, evaluate};
    use crate::ops::attention::{Attention, AttentionEmit};
    use crate::ops::cache_write::CacheWriteEmit;
    use crate::tensor::Tensor;
    use crate::tensor::random::Stream;

    #[test]
    fn attention_over_codes_differs_by_the_rounding_of_keys_and_values() {
        let mut graph = Graph::new();
        let [q, k, v] = ["q", "k", "v"].map(|name| graph.input(name, Type::f32([1, 3, 2, 8])));
        let position = graph.input("position", Type::new(DType::U32, [1]));
        let caches = ["keys", "values"].map(|name| graph.state(name, Type::f32([1, 5, 2, 8])));
        let [keys, values] = graph.cache_write(caches, [k, v], position).unwrap();
        let y = graph.attention_cached(&Attention::causal(), [q, keys, values], position).unwrap();
        graph.output("y", y);
        let coded = CodedCache.rewrite(&graph).unwrap();
        coded.verify().unwrap();
        let names: Vec<_> = coded.nodes().iter().map(|n| n.op.name()).collect();
        assert_eq!(names, ["cache_code", "attention_coded"]);
        assert!(coded.named("keys").is_none() && coded.named("values.scales").is_some());
        let mut random = Stream::new(&[3]);
        let mut some = |shape: [usize; 4]| {
            Tensor::f32(shape, (0..shape.iter().product()).map(|_| random.normal() as f32).collect())
        };
        let mut feeds = Feeds::new().with("position", Tensor::u32([1], vec![0]));
        ["q", "k", "v"].into_iter().for_each(|name| feeds.set(name, some([1, 3, 2, 8])));
        for name in ["keys", "values"] {
            feeds.set(name, some([1, 5, 2, 8]));
            feeds.set(format!("{name}.codes"), Tensor::i8([1, 5, 2, 8], vec![5; 80]));
            feeds.set(format!("{name}.scales"), Tensor::f32([1, 5, 2], vec![1.0; 10]));
        }
        let result = |graph: &Graph| evaluate(graph, &feeds, DType::F32).unwrap()["y"].to_f64();
        let (exact, rounded) = (result(&graph), result(&coded));
        let worst = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst > 0.0 && worst < 0.03, "{worst}");
    }

    #[test]
    fn what_does_not_read_codes_gets_numbers_and_what_was_read_of_a_source_is_coded_as_well() {
        // A source's keys and values, written in one pass, and read in another by attention that is not of a cache.
        let mut write = Graph::new();
        let [k, v] = ["k", "v"].map(|name| write.input(name, Type::f32([1, 3, 2, 8])));
        let seat = write.input("seat", Type::new(DType::U32, [1, 2]));
        let caches = ["keys", "values"].map(|name| write.state(name, Type::f32([2, 3, 2, 8])));
        let written = write.cache_write(caches, [k, v], seat).unwrap();
        ["keys", "values"].into_iter().zip(written).for_each(|(name, value)| write.output(name, value));
        let write = CodedCache.rewrite(&write).unwrap();
        write.verify().unwrap();
        let results: Vec<&str> = write.outputs().iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(results, ["keys.codes", "keys.scales", "values.codes", "values.scales"]);

        let mut read = Graph::new();
        let q = read.input("q", Type::f32([2, 1, 2, 8]));
        let [k, v] = ["keys", "values"].map(|name| read.state(name, Type::f32([2, 3, 2, 8])));
        let y = read.attention(&Attention::full(), [q, k, v], None, None).unwrap();
        read.output("y", y);
        let coded = CodedCache.rewrite(&read).unwrap();
        coded.verify().unwrap();
        let names: Vec<_> = coded.nodes().iter().map(|n| n.op.name()).collect();
        assert_eq!(names, ["dequantize_rows", "dequantize_rows", "attention"]);
        assert!(coded.named("keys").is_none() && coded.named("keys.codes").is_some());
    }
}
