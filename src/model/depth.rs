//! A shallower model: some blocks of another one, between its embedding and its last norm.

use super::{Config, Error, Family, Result, Weights, from_config};
use serde_json::{Value as Json, json};

/// Keys of `config.json` that say how many blocks there are.
const DEPTH_KEYS: [&str; 2] = ["n_layer", "num_hidden_layers"];

/// The model of some of a model's blocks, counted from zero in the order in which they stand; each at most once.
///
/// Everything outside the blocks stays: a student begins so as a copy of its teacher with blocks left out.
pub fn keep_layers(family: &dyn Family, kept: &[usize]) -> Result<Box<dyn Family>> {
    let mut keys = family.config();
    let place = format!("{} with fewer layers", family.name());
    let refuse = |expected: String| Error::Setting {
        place: place.clone(),
        key: "keep_layers".into(),
        expected,
        got: format!("{kept:?}"),
    };
    let Some((key, layers)) = depth(&keys) else {
        return Err(refuse("absent: this family has no blocks that could be left out".into()));
    };
    let rising = kept.windows(2).all(|pair| pair[0] < pair[1]);
    if kept.is_empty() || !rising || kept.iter().any(|&layer| layer >= layers) {
        return Err(refuse(format!(
            "at least one of the layers 0 to {}, each once and in order",
            layers - 1
        )));
    }
    if keys.get("scale_attn_by_inverse_layer_idx") == Some(&json!(true)) && kept.len() < layers {
        return Err(refuse(
            "all layers: scale_attn_by_inverse_layer_idx ties scores to a layer's number".into(),
        ));
    }
    keys.insert(key.into(), json!(kept.len()));
    if let Some(Json::Array(types)) = keys.get("layer_types").cloned() {
        keys.insert("layer_types".into(), kept.iter().map(|&layer| types[layer].clone()).collect());
    }
    from_config(&Config::new(place.clone(), keys))
}

/// How many blocks a model has.
pub fn depth_of(family: &dyn Family) -> Result<usize> {
    let keys = family.config();
    depth(&keys).map(|(_, layers)| layers).ok_or_else(|| Error::Setting {
        place: family.name().to_string(),
        key: DEPTH_KEYS.join(" or "),
        expected: "how many blocks there are".into(),
        got: "nothing".into(),
    })
}

fn depth(keys: &serde_json::Map<String, Json>) -> Option<(&'static str, usize)> {
    let key = DEPTH_KEYS.into_iter().find(|key| keys.contains_key(*key))?;
    Some((key, keys[key].as_u64()? as usize))
}

impl Weights {
    /// The weights of a model from [`keep_layers`], however they are held.
    pub fn keep_layers(&self, kept: &[usize]) -> Weights {
        let mut shallow = Weights::default();
        for (name, tensor) in self.iter() {
            if let Some(name) = renumbered(name, kept) {
                shallow.set(name, tensor.clone());
            }
        }
        for (name, stored) in self.stored() {
            if let Some(name) = renumbered(name, kept) {
                shallow.store(name, stored.clone());
            }
        }
        shallow
    }
}

/// The name with its layer's new number; `None` if the layer goes. A layer's number is the first number of a name.
fn renumbered(name: &str, kept: &[usize]) -> Option<String> {
    let mut parts: Vec<String> = name.split('.').map(String::from).collect();
    let Some((at, layer)) =
        parts.iter().enumerate().find_map(|(at, part)| Some((at, part.parse::<usize>().ok()?)))
    else {
        return Some(name.to_string());
    };
    parts[at] = kept.iter().position(|&kept| kept == layer)?.to_string();
    Some(parts.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Graph, evaluate};
    use crate::model::{Activation, Design, Extent, Mode, build, initial};
    use crate::tensor::{DType, Tensor};

    fn model(family: &str) -> Box<dyn Family> {
        let design = Design {
            layers: 4,
            heads: 2,
            kv_heads: None,
            head_size: None,
            width: 16,
            hidden: Some(24),
            context: 8,
            vocabulary: 11,
            activation: Activation::named("gelu").unwrap(),
            norm_epsilon: 1e-5,
            dropout: 0.0,
            bias: family != "llama" && family != "qwen3",
            tie: true,
            rope_theta: None,
            window: None,
        };
        build(family, &design).unwrap()
    }

    /// The hidden states of a text.
    fn states(family: &dyn Family, weights: &Weights) -> Vec<Tensor> {
        let mut graph = Graph::new();
        let forward = family.forward(&mut graph, Extent { batch: 1, context: 3 }, Mode::Evaluate).unwrap();
        for (number, &hidden) in forward.hidden.iter().enumerate() {
            graph.output(number.to_string(), hidden);
        }
        let feeds = weights.feeds().with("tokens", Tensor::u32([1, 3], vec![3, 1, 4]));
        let mut results = evaluate(&graph, &feeds, DType::F32).unwrap();
        (0..forward.hidden.len()).map(|number| results.remove(&number.to_string()).unwrap()).collect()
    }

    #[test]
    fn the_first_blocks_of_a_model_compute_what_they_did_in_it() {
        for name in ["gpt2", "llama", "qwen3", "gpt_neox"] {
            let family = model(name);
            let weights = initial(&family.parameters(), 7);
            let shallow = keep_layers(family.as_ref(), &[0, 1, 3]).unwrap();
            let kept = weights.keep_layers(&[0, 1, 3]);
            kept.check(&shallow.parameters()).unwrap();
            let (whole, part) = (states(family.as_ref(), &weights), states(shallow.as_ref(), &kept));
            assert_eq!(part.len(), 4, "{name}");
            assert!(whole[..3] == part[..3] && whole[3] != part[3], "{name}");
            let block = |weights: &Weights, number: usize| {
                let of = format!(".{number}.");
                weights.iter().filter(|(n, _)| n.contains(&of)).map(|(_, t)| t.clone()).collect::<Vec<_>>()
            };
            assert_eq!(block(&weights, 3), block(&kept, 2), "{name}");
        }
    }

    #[test]
    fn layers_that_are_not_there_and_none_at_all_are_refused() {
        let family = model("gpt2");
        for kept in [&[][..], &[4], &[1, 0], &[2, 2]] {
            let error = keep_layers(family.as_ref(), kept).unwrap_err().to_string();
            assert!(error.contains("0 to 3"), "{error}");
        }
    }
}
