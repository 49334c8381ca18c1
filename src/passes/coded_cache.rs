//! Caches of keys and values as 8-bit codes with a scale for each row: a fourth of the bytes of long texts.

use super::{Pass, Promise};
use crate::graph::{self, Graph, Rewriter, Source};
use crate::ops::Value;
use crate::tensor::{DType, Type};
use std::collections::HashMap;

/// Exchanges the states of caches for codes and scales, and what writes and reads them. The new states are named after the old
/// ones, `NAME.codes` and `NAME.scales`.
#[derive(Debug)]
pub struct CodedCache;

impl Pass for CodedCache {
    fn name(&self) -> &'static str {
        "coded_cache"
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let of_cache: Vec<Value> = graph
            .nodes()
            .iter()
            .filter(|node| node.op.writing_codes().is_some())
            .flat_map(|node| node.inputs[..2].iter().copied())
            .collect();
        let names: Vec<&String> = of_cache.iter().filter_map(|&v| graph.info(v).name.as_ref()).collect();
        let mut rewriter = Rewriter::without(graph, |info| {
            matches!(info.source, Source::State)
                && info.name.as_ref().is_some_and(|name| names.contains(&name))
        });
        // Codes and scales in place of each cache, as it stands.
        let mut coded: HashMap<Value, [Value; 2]> = HashMap::new();
        for &value in &of_cache {
            let info = graph.info(value);
            let name = info.name.clone().unwrap_or_default();
            let shape = &info.kind.shape;
            let codes = rewriter.new.state(format!("{name}.codes"), Type::new(DType::I8, shape.clone()));
            let scales = rewriter.new.state(format!("{name}.scales"), Type::f32(&shape[..shape.len() - 1]));
            coded.insert(value, [codes, scales]);
        }
        for node in graph.nodes() {
            if let Some(op) = node.op.writing_codes() {
                let mut inputs: Vec<Value> = node.inputs[..2].iter().flat_map(|v| coded[v]).collect();
                inputs.extend(node.inputs[2..].iter().map(|&v| rewriter.get(v)));
                let made = rewriter.emit_in(&node.scope, |new| crate::ops::Emit::apply(new, op, &inputs))?;
                for (old, new) in node.outputs.iter().zip(made.chunks(2)) {
                    coded.insert(*old, [new[0], new[1]]);
                }
                continue;
            }
            let reads = node.inputs.iter().any(|v| coded.contains_key(v));
            match node.op.over_codes().filter(|_| reads) {
                Some(op) => {
                    let inputs: Vec<Value> = node
                        .inputs
                        .iter()
                        .flat_map(|v| {
                            coded.get(v).map_or_else(|| vec![rewriter.get(*v)], |pair| pair.to_vec())
                        })
                        .collect();
                    rewriter.replace(node, op, &inputs)?;
                }
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
}
