//! Which linear layers a pass means: matmuls with a weight, chosen by the weight's name.

use crate::graph::{self, Error, Graph, Source};
use crate::ops::Value;
use crate::ops::matmul::Form;
use crate::tensor::DType;
use std::collections::HashMap;

/// Whether the name fits a pattern in which `*` stands for any run of characters.
pub fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(tail) = name.strip_prefix(head) else {
        return false;
    };
    let mut starts = tail.char_indices().map(|(start, _)| start).chain([tail.len()]);
    starts.any(|start| matches(rest, &tail[start..]))
}

/// Weights of the last layer before the logits, where it has weights of its own: what is usually left as it is.
pub const HEADS: [&str; 3] = ["lm_head.*", "embed_out.*", "*.lm_head.*"];

/// A linear layer in a graph.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub weight: Value,
    pub form: Form,
    pub has_bias: bool,
}

/// The layers whose weight's name fits one of `targets` and none of `ignore`, by the number of their node. A pattern among the
/// targets that fits no weight is an error.
///
/// A weight that something else reads too, such as a table of tokens that is the head as well, is no layer's own and left alone.
pub(super) fn choose(
    graph: &Graph,
    targets: &[String],
    ignore: &[String],
) -> graph::Result<HashMap<usize, Layer>> {
    let all = layers(graph);
    let name_of = |layer: &Layer| graph.info(layer.weight).name.clone().unwrap_or_default();
    let ignored = |name: &str| ignore.iter().any(|pattern| matches(pattern, name));
    let names: Vec<String> = all.values().map(name_of).filter(|name| !ignored(name)).collect();
    for pattern in targets {
        if !names.iter().any(|name| matches(pattern, name)) {
            let mut known: Vec<String> = all.values().map(name_of).collect();
            known.sort();
            known.dedup();
            let (pattern, known) = (pattern.clone(), known.join(", "));
            return Err(Error::NoMatch { pattern, known });
        }
    }
    let is_meant = |layer: &Layer| {
        let name = name_of(layer);
        !ignored(&name) && targets.iter().any(|pattern| matches(pattern, &name))
    };
    Ok(all.into_iter().filter(|(_, layer)| is_meant(layer)).collect())
}

/// Names of the weights of linear layers that nothing else reads, in order.
pub fn linear_weights(graph: &Graph) -> Vec<String> {
    linear_forms(graph).into_iter().map(|(name, _)| name).collect()
}

/// The same with whether the weight is stored as [in, out].
pub fn linear_forms(graph: &Graph) -> Vec<(String, bool)> {
    forms(graph, layers(graph))
}

/// The same of those whose name fits one of `targets`, each of which must fit one, and none of `ignore`.
pub fn chosen_forms(
    graph: &Graph,
    targets: &[String],
    ignore: &[String],
) -> graph::Result<Vec<(String, bool)>> {
    Ok(forms(graph, choose(graph, targets, ignore)?))
}

/// The same of all weights that products read, tables that something else reads too among them.
pub fn product_forms(graph: &Graph) -> Vec<(String, bool)> {
    forms(graph, products(graph))
}

fn forms(graph: &Graph, layers: HashMap<usize, Layer>) -> Vec<(String, bool)> {
    let mut all: Vec<Layer> = layers.into_values().collect();
    all.sort_by_key(|layer| layer.weight);
    all.dedup_by_key(|layer| layer.weight);
    let form = |layer: Layer| Some((graph.info(layer.weight).name.clone()?, layer.form == Form::Nn));
    all.into_iter().filter_map(form).collect()
}

/// All products with a weight.
fn products(graph: &Graph) -> HashMap<usize, Layer> {
    let mut found = HashMap::new();
    for (number, node) in graph.nodes().iter().enumerate() {
        let Some(matmul) = node.op.matmul() else { continue };
        let weight = node.inputs[1];
        let info = graph.info(weight);
        let is_weight = matches!(info.source, Source::Parameter)
            && info.kind.dtype == DType::F32
            && info.kind.shape.len() == 2
            && graph.kind(node.inputs[0]).dtype == DType::F32;
        if is_weight && matmul.form != Form::Tn && matmul.activation.is_none() {
            found.insert(number, Layer { weight, form: matmul.form, has_bias: matmul.has_bias });
        }
    }
    found
}

/// All linear layers whose weight only matmuls read.
fn layers(graph: &Graph) -> HashMap<usize, Layer> {
    let mut found = products(graph);
    for (number, node) in graph.nodes().iter().enumerate() {
        for (at, input) in node.inputs.iter().enumerate() {
            let own = at == 1 && found.get(&number).is_some_and(|layer| layer.weight == *input);
            if !own {
                found.retain(|_, layer| layer.weight != *input);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::embedding::EmbeddingEmit;
    use crate::ops::matmul::MatmulEmit;
    use crate::tensor::Type;

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        for (pattern, name, expected) in [
            ("h.*.bias", "h.0.mlp.bias", true),
            ("h.*.bias", "h.0.mlp.weight", false),
            ("*", "", true),
            ("*ln*", "h.0.ln_1.weight", true),
            ("a*b*c", "aXbYbc", true),
            ("a*b", "ab.", false),
            ("é*", "éa", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn layers_are_chosen_by_name_and_shared_tables_are_none() {
        let mut graph = Graph::new();
        let tokens = graph.input("tokens", Type::new(DType::U32, [1, 2]));
        let table = graph.parameter("table", Type::f32([5, 4]));
        let [a, b] = ["a.weight", "b.weight"].map(|name| graph.parameter(name, Type::f32([4, 4])));
        let x = graph.embedding(table, tokens).unwrap();
        let x = graph.linear(Form::Nn, x, a, None).unwrap();
        let x = graph.linear(Form::Nt, x, b, None).unwrap();
        let x = graph.linear(Form::Nt, x, table, None).unwrap();
        graph.output("x", x);
        let chosen = |targets: &[&str], ignore: &[&str]| {
            let list = |patterns: &[&str]| patterns.iter().map(|p| p.to_string()).collect::<Vec<_>>();
            let found = choose(&graph, &list(targets), &list(ignore));
            found.map(|layers| {
                let mut names: Vec<_> =
                    layers.values().map(|l| graph.info(l.weight).name.clone().unwrap()).collect();
                names.sort();
                names.join(" ")
            })
        };
        assert_eq!(chosen(&["*"], &[]).unwrap(), "a.weight b.weight");
        let of = |(name, turned): (&str, bool)| (name.to_string(), turned);
        let all = [("table", false), ("a.weight", true), ("b.weight", false)];
        assert_eq!(product_forms(&graph), all.map(of));
        let one = chosen_forms(&graph, &["b*".to_string()], &[]).unwrap();
        assert_eq!(one, [of(all[2])]);
        assert_eq!(chosen(&["*"], &["b*"]).unwrap(), "a.weight");
        for (targets, ignore) in [(&["*", "c*"][..], &[][..]), (&["table"], &[]), (&["a*"], &["a*"])] {
            let error = chosen(targets, ignore).unwrap_err().to_string();
            assert!(error.contains("a.weight, b.weight"), "{error}");
        }
    }
}
