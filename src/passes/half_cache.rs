//! Caches of keys and values in 16 bits: half the bytes of long texts.

use super::coded_cache::caches;
use super::{Pass, Promise};
use crate::graph::{self, Graph, Rewriter};
use crate::ops::Value;
use crate::ops::cast::CastEmit;
use crate::tensor::{DType, Type};
use std::collections::HashSet;

/// Stores the states of caches as f16: what is written to them is rounded, and attention over them reads its queries in 16 bits and adds up
/// in 32, as everywhere. What else reads them gets them in 32 bits.
#[derive(Debug)]
pub struct HalfCache;

impl Pass for HalfCache {
    fn name(&self) -> &'static str {
        "half_cache"
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let mut rewriter = Rewriter::new(graph);
        let mut halved: HashSet<Value> = HashSet::new();
        for cache in caches(graph) {
            rewriter.retype(cache, Type::new(DType::F16, graph.kind(cache).shape.clone()));
            halved.insert(cache);
        }
        for node in graph.nodes() {
            let writes = node.op.writing_codes().is_some();
            let reads = node.inputs.iter().any(|v| halved.contains(v));
            if !writes && !reads {
                rewriter.copy(node)?;
                continue;
            }
            let wrong = |source| graph::Error::Operator { scope: node.scope.clone(), source };
            let mut inputs = vec![];
            if !writes && node.op.attention().is_none() {
                for old in &node.inputs {
                    let new = rewriter.get(*old);
                    inputs.push(match halved.contains(old) {
                        true => rewriter.emit_in(&node.scope, |g| g.cast(new, DType::F32)).map_err(wrong)?,
                        false => new,
                    });
                }
                rewriter.replace(node, node.op.clone(), &inputs)?;
                continue;
            }
            for &old in &node.inputs {
                let new = rewriter.get(old);
                let float = rewriter.new.kind(new).dtype == DType::F32;
                inputs.push(match float {
                    true => rewriter.emit_in(&node.scope, |g| g.cast(new, DType::F16)).map_err(wrong)?,
                    false => new,
                });
            }
            rewriter.replace(node, node.op.clone(), &inputs)?;
            if writes {
                halved.extend(&node.outputs);
                continue;
            }
            let out = rewriter.get(node.outputs[0]);
            let wide = rewriter.emit_in(&node.scope, |g| g.cast(out, DType::F32)).map_err(wrong)?;
            rewriter.set(node.outputs[0], wide);
        }
        Ok(rewriter.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::attention::{Attention, AttentionEmit};
    use crate::ops::cache_write::CacheWriteEmit;

    #[test]
    fn caches_and_what_is_written_to_them_have_16_bits_and_the_rest_stays() {
        let mut graph = Graph::new();
        let [q, k, v] = ["q", "k", "v"].map(|name| graph.input(name, Type::f32([1, 3, 2, 8])));
        let position = graph.input("position", Type::new(DType::U32, [1]));
        let caches = ["keys", "values"].map(|name| graph.state(name, Type::f32([1, 5, 2, 8])));
        let [keys, values] = graph.cache_write(caches, [k, v], position).unwrap();
        let y = graph.attention_cached(&Attention::causal(), [q, keys, values], position).unwrap();
        graph.output("y", y);
        let halved = HalfCache.rewrite(&graph).unwrap();
        halved.verify().unwrap();
        let names: Vec<_> = halved.nodes().iter().map(|n| n.op.name()).collect();
        assert_eq!(names, ["cast", "cast", "cache_write", "cast", "attention", "cast"]);
        assert_eq!(halved.kind(halved.named("keys").unwrap()).dtype, DType::F16);
        assert_eq!(halved.kind(halved.result("y").unwrap()).dtype, DType::F32);
    }
}
