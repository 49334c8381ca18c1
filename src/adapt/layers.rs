//! Which linear layers and other weights of a model adapters mean.

use super::{Error, Result};
use crate::graph::Graph;
use crate::model::{Extent, Family, Mode, ParameterSpec};
use crate::passes::{linear_forms, matches, module_of};
use std::collections::HashSet;

/// A linear layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Name of its weight.
    pub weight: String,
    /// The weight is stored as [in, out].
    pub turned: bool,
    /// Inputs.
    pub inputs: usize,
    /// Outputs.
    pub outputs: usize,
}

/// What of a model adapters can stand beside, and what can be trained whole.
#[derive(Clone, Debug)]
pub struct Layers {
    /// Linear layers whose weight nothing else reads, in the order of the model.
    pub linear: Vec<Linear>,
    parameters: Vec<ParameterSpec>,
    /// Weights of products that something else reads too.
    shared: HashSet<String>,
}

impl Layers {
    /// Looks at a model's graph.
    pub fn of(family: &dyn Family) -> Result<Layers> {
        let mut graph = Graph::new();
        let forward = family.forward(&mut graph, Extent { batch: 1, context: 1 }, Mode::Evaluate)?;
        graph.output("logits", forward.logits);
        let parameters = family.parameters();
        let linear: Vec<Linear> = linear_forms(&graph)
            .into_iter()
            .filter_map(|(weight, turned)| {
                let shape = &parameters.iter().find(|spec| spec.name == weight)?.shape;
                let [inputs, outputs] = if turned { [shape[0], shape[1]] } else { [shape[1], shape[0]] };
                Some(Linear { weight, turned, inputs, outputs })
            })
            .collect();
        let products = graph.nodes().iter().filter(|node| node.op.matmul().is_some());
        let names = products.filter_map(|node| graph.info(node.inputs[1]).name.clone());
        let shared = names.filter(|name| linear.iter().all(|layer| layer.weight != *name)).collect();
        Ok(Layers { linear, parameters, shared })
    }

    /// The linear layer with a weight of that name.
    pub fn find(&self, weight: &str) -> Option<&Linear> {
        self.linear.iter().find(|linear| linear.weight == weight)
    }

    /// The layers that fit one of `targets` and none of `ignore`; a target that fits none is an error.
    ///
    /// A pattern with `*` is one of whole names of weights. Any other is the name of a weight or module, or the end of one, as in PEFT:
    /// `q_proj` means `model.layers.0.self_attn.q_proj` and its like.
    pub fn choose(&self, targets: &[String], ignore: &[String]) -> Result<Vec<Linear>> {
        let left: Vec<&Linear> =
            self.linear.iter().filter(|linear| !ignore.iter().any(|p| fits(p, &linear.weight))).collect();
        for pattern in targets {
            if !left.iter().any(|linear| fits(pattern, &linear.weight)) {
                let known = last_parts(self.linear.iter().map(|linear| linear.weight.as_str()));
                return Err(Error::NoMatch { pattern: pattern.clone(), what: "linear layer", known });
            }
        }
        let meant = |linear: &&&Linear| targets.iter().any(|pattern| fits(pattern, &linear.weight));
        Ok(left.iter().filter(meant).map(|linear| (*linear).clone()).collect())
    }

    /// All weights of the modules that fit one of the patterns.
    pub fn whole(&self, patterns: &[String]) -> Result<Vec<ParameterSpec>> {
        let mut modules = HashSet::new();
        for pattern in patterns {
            let found = self
                .parameters
                .iter()
                .filter(|spec| fits(pattern, &spec.name) || fits(pattern, &as_weight(&spec.name)));
            let before = modules.len();
            modules.extend(found.map(|spec| parent(&spec.name).to_string()));
            if modules.len() == before && !self.parameters.iter().any(|spec| fits(pattern, &spec.name)) {
                let known = last_parts(self.parameters.iter().map(|spec| parent(&spec.name)));
                return Err(Error::NoMatch { pattern: pattern.clone(), what: "module", known });
            }
        }
        let chosen: Vec<ParameterSpec> =
            self.parameters.iter().filter(|spec| modules.contains(parent(&spec.name))).cloned().collect();
        self.expect_own(&chosen)?;
        Ok(chosen)
    }

    /// Refuses weights that are looked up and multiplied with alike.
    pub(super) fn expect_own(&self, whole: &[ParameterSpec]) -> Result<()> {
        match whole.iter().find(|spec| self.shared.contains(&spec.name)) {
            Some(spec) => Err(Error::Shared { name: spec.name.clone() }),
            None => Ok(()),
        }
    }
}

/// Whether a weight's name is meant by a pattern.
fn fits(pattern: &str, weight: &str) -> bool {
    if pattern.contains('*') {
        return matches(pattern, weight);
    }
    let ends =
        |name: &str| name == pattern || name.strip_suffix(pattern).is_some_and(|rest| rest.ends_with('.'));
    ends(weight) || ends(module_of(weight))
}

/// A bias under the name its module's weight would have.
fn as_weight(name: &str) -> String {
    format!("{}.weight", parent(name))
}

/// The module a parameter belongs to.
pub(super) fn parent(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(module, _)| module)
}

/// What comes last in names of modules, each once.
pub(super) fn last_parts<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut seen: Vec<&str> = vec![];
    for name in names {
        let last = module_of(name).rsplit('.').next().unwrap_or(name);
        if !seen.contains(&last) {
            seen.push(last);
        }
    }
    seen.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_whole_name_with_stars_or_the_end_of_a_module() {
        for (pattern, name, expected) in [
            ("q_proj", "model.layers.0.self_attn.q_proj.weight", true),
            ("self_attn.q_proj", "model.layers.0.self_attn.q_proj.weight", true),
            ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj.weight", true),
            ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight", true),
            ("proj", "model.layers.0.self_attn.q_proj.weight", false),
            ("*q_proj*", "model.layers.0.self_attn.q_proj.weight", true),
            ("*.layers.1.*", "model.layers.0.self_attn.q_proj.weight", false),
            ("*", "anything", true),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} on {name}");
        }
    }
}
