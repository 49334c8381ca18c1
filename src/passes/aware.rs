//! Training with quantisation: the loss is computed as the deployed model will compute it, and gradients pass straight through.
//!
//! Weights alone ([`Deployed::Weights`]): each chosen weight is replaced by what its codes will give back, and stays itself what
//! the optimiser moves. Weights and activations ([`Deployed::Both`]): the product is made by the very operators of the
//! deployed model, rows of activations quantised as they come and multiplied as codes.
//!
//! With a learned step the scales of weights are parameters of their own (LSQ). Each is held as its natural logarithm, in
//! `NAME.log_step`: so it stays above zero, and an optimiser such as Adam, which moves every parameter by about the learning
//! rate whatever its size, moves it by that share.

use super::layers::{Layer, choose};
use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, without_dead_nodes};
use crate::ops::fake_quantize::scales::{LineScalesEmit, Rule};
use crate::ops::fake_quantize::{FakeQuantizeEmit, Sharing, Steps, mean_step};
use crate::ops::linear_codes::{Linear, LinearCodesEmit};
use crate::ops::matmul::Form;
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::{Value, quantize_rows};
use crate::tensor::quant::{Scale, Scheme, Share};
use crate::tensor::{Tensor, Type};
use std::collections::HashMap;

/// What follows a weight's name in the name of its learned steps.
const SUFFIX: &str = ".log_step";

/// What the deployed model holds as codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Deployed {
    /// Weights, by this scheme.
    Weights(Scheme),
    /// Weights by outputs and activations by rows, 8 bits each, the largest magnitude over 127.
    Both,
}

/// Rewrites the loss to be that of the quantised model.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizationAware {
    /// What becomes codes.
    pub deployed: Deployed,
    /// Scales of weights are learned instead of found anew in each step.
    pub learned_step: bool,
    /// Patterns of the names of weights.
    pub targets: Vec<String>,
    /// Patterns of those among them that stay as they are.
    pub ignore: Vec<String>,
    /// Whether gradients will be asked for.
    pub trains: bool,
}

/// Steps of a weight that are learned.
#[derive(Clone, Debug, PartialEq)]
pub struct Learned {
    /// Name of the parameter that holds their logarithms.
    pub name: String,
    /// Name of the weight.
    pub weight: String,
    steps: Steps,
    count: usize,
}

impl Learned {
    /// Type of the parameter.
    pub fn kind(&self) -> Type {
        Type::f32([self.count])
    }

    /// The logarithms to begin with, for a weight: of `2 mean |w| / sqrt(highest code)` over the elements that share a step.
    pub fn first(&self, weight: &Tensor) -> Tensor {
        let steps = mean_step(weight, self.steps);
        Tensor::f32([steps.len()], steps.iter().map(|step| step.max(f32::MIN_POSITIVE).ln()).collect())
    }
}

impl QuantizationAware {
    /// The steps that are learned in a graph this pass has not rewritten yet.
    pub fn learned(&self, graph: &Graph) -> graph::Result<Vec<Learned>> {
        let Deployed::Weights(scheme) = self.deployed else { return Ok(vec![]) };
        if !self.learned_step {
            return Ok(vec![]);
        }
        let mut layers: Vec<Layer> = self.layers(graph)?.into_values().collect();
        layers.sort_by_key(|layer| layer.weight);
        layers.dedup_by_key(|layer| layer.weight);
        let learned = |layer: Layer| {
            let info = graph.info(layer.weight);
            let weight = info.name.clone().expect("a parameter has a name");
            let steps = steps_of(scheme, layer.form);
            let (name, count) = (step_name(&weight), steps.lines(&info.kind.shape));
            Learned { name, weight, steps, count }
        };
        Ok(layers.into_iter().map(learned).collect())
    }

    fn layers(&self, graph: &Graph) -> graph::Result<HashMap<usize, Layer>> {
        choose(graph, &self.targets, &self.ignore)
    }

    /// The weight as its codes give it back.
    fn fake(&self, graph: &mut Graph, layer: Layer, scheme: Scheme) -> graph::Result<Value> {
        let steps = steps_of(scheme, layer.form);
        if self.learned_step {
            let info = graph.info(layer.weight);
            let (kind, weight) = (Type::f32([steps.lines(&info.kind.shape)]), info.name.clone());
            let name = step_name(&weight.expect("a parameter has a name"));
            let logarithms = graph.named(&name).unwrap_or_else(|| graph.parameter(name, kind));
            let scales = graph.pointwise("exp", &[logarithms], 0.0)?;
            return Ok(graph.fake_quantize(layer.weight, scales, None, steps)?);
        }
        let rule = match scheme.scale {
            Scale::Largest { divisor } => Rule::Largest { divisor },
            Scale::Span => Rule::Span {
                steps: (scheme.highest - scheme.lowest) as f32,
                lowest: scheme.lowest as f32,
                with_zero: true,
            },
        };
        let (scales, zeros) = graph.line_scales(layer.weight, steps.sharing, rule)?;
        Ok(graph.fake_quantize(layer.weight, scales, zeros, steps)?)
    }

    /// Writes a layer as it will be deployed.
    fn write(&self, rewriter: &mut Rewriter, node: &Node, layer: Layer) -> graph::Result<()> {
        let inputs: Vec<Value> = node.inputs.iter().map(|&v| rewriter.get(v)).collect();
        let layer = Layer { weight: inputs[1], ..layer };
        if let Deployed::Weights(scheme) = self.deployed {
            let scope = format!("{}.quantize", node.scope);
            let weight = rewriter.emit_in(&scope, |graph| self.fake(graph, layer, scheme))?;
            let inputs = [&[inputs[0], weight], &inputs[2..]].concat();
            return rewriter.replace(node, node.op.clone(), &inputs);
        }
        let bias = layer.has_bias.then(|| inputs[2]);
        let linear = Linear { x: inputs[0], weight: inputs[1], bias, form: layer.form };
        let rule = quantize_rows::Rule::Narrow;
        let y = rewriter.emit_in(&node.scope, |graph| match self.trains {
            true => graph.linear_straight(linear, rule),
            false => Ok(graph.linear_deployed(linear, rule)?.0),
        })?;
        rewriter.set(node.outputs[0], y);
        Ok(())
    }
}

impl Pass for QuantizationAware {
    fn name(&self) -> &'static str {
        "quantization_aware"
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let graph = without_dead_nodes(graph);
        let layers = self.layers(&graph)?;
        let mut rewriter = Rewriter::new(&graph);
        for (number, node) in graph.nodes().iter().enumerate() {
            match layers.get(&number) {
                Some(&layer) => self.write(&mut rewriter, node, layer)?,
                None => rewriter.copy(node)?,
            }
        }
        Ok(rewriter.finish())
    }
}

fn step_name(weight: &str) -> String {
    format!("{weight}{SUFFIX}")
}

/// Codes and their sharing for a weight: a scheme speaks of rows of a matrix [out, in].
fn steps_of(scheme: Scheme, form: Form) -> Steps {
    let turned = form == Form::Nn;
    let sharing = match scheme.share {
        Share::Tensor => Sharing::Tensor,
        Share::Row if turned => Sharing::Columns,
        Share::Row => Sharing::Rows,
        Share::Group(size) if turned => Sharing::ColumnGroups(size),
        Share::Group(size) => Sharing::RowGroups(size),
    };
    Steps::symmetric(scheme.lowest, scheme.highest, sharing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Feeds, evaluate, gradient};
    use crate::ops::Cases;
    use crate::ops::matmul::MatmulEmit;
    use crate::ops::reduce::ReduceEmit;
    use crate::tensor::quant::encode;
    use crate::tensor::{DType, Shape};

    const SIZES: [usize; 3] = [6, 20, 32];

    /// x [M, K] times the transpose of rows [N, K], stored as the form says.
    fn layer(form: Form) -> (Graph, Feeds, Tensor) {
        let [m, n, k] = SIZES;
        let mut cases = Cases::new("aware");
        let (x, rows) = (cases.statistic([m, k]), cases.statistic([n, k]));
        let stored = match form {
            Form::Nn => {
                let of = rows.real::<f32>();
                Tensor::f32([k, n], (0..k * n).map(|i| of[i % n * k + i / n]).collect())
            }
            _ => rows.clone(),
        };
        let mut graph = Graph::new();
        let input = graph.input("x", x.host_type());
        let weight = graph.parameter("h.weight", stored.host_type());
        let y = graph.linear(form, input, weight, None).unwrap();
        graph.output("y", y);
        (graph, Feeds::new().with("x", x).with("h.weight", stored), rows)
    }

    fn aware(deployed: Deployed, learned_step: bool) -> QuantizationAware {
        let targets = vec!["h.*".to_string()];
        QuantizationAware { deployed, learned_step, targets, ignore: vec![], trains: true }
    }

    #[test]
    fn a_weight_becomes_what_the_hosts_codes_give_back_however_it_is_stored() {
        for scheme in [
            Scheme::symmetric(3, Share::Row),
            Scheme::wide(4, Share::Group(16)),
            Scheme::asymmetric(4, Share::Group(8)),
            Scheme::symmetric(8, Share::Tensor),
        ] {
            for form in [Form::Nn, Form::Nt] {
                let (graph, feeds, rows) = layer(form);
                let fake = aware(Deployed::Weights(scheme), false).rewrite(&graph).unwrap();
                let got = evaluate(&fake, &feeds, DType::F32).unwrap()["y"].to_f64();
                let [_, n, k] = SIZES;
                let coded = encode(rows.real::<f32>(), n, k, &scheme).unwrap();
                let (graph, feeds, _) = layer(Form::Nt);
                let feeds = feeds.with("h.weight", Tensor::f32([n, k], coded.decode()));
                let expected = evaluate(&graph, &feeds, DType::F32).unwrap()["y"].to_f64();
                for (got, expected) in got.iter().zip(&expected) {
                    assert!((got - expected).abs() < 1e-5, "{scheme:?} {form:?}: {got} {expected}");
                }
            }
        }
    }

    #[test]
    fn learned_steps_are_parameters_that_begin_at_the_mean_and_get_a_gradient() {
        for form in [Form::Nn, Form::Nt] {
            let (graph, feeds, rows) = layer(form);
            let aware = aware(Deployed::Weights(Scheme::symmetric(3, Share::Row)), true);
            let learned = aware.learned(&graph).unwrap();
            assert_eq!((learned.len(), learned[0].weight.as_str()), (1, "h.weight"));
            let first = learned[0].first(feeds.get("h.weight").unwrap());
            let k = SIZES[2];
            let mean = rows.real::<f32>()[..k].iter().map(|w| w.abs()).sum::<f32>() / k as f32;
            assert!((first.real::<f32>()[0].exp() - 2.0 * mean / 3f32.sqrt()).abs() < 1e-5);
            let mut graph = aware.rewrite(&graph).unwrap();
            assert_eq!(graph.kind(graph.named("h.weight.log_step").unwrap()), &learned[0].kind());
            let y = graph.result("y").unwrap();
            let loss = graph.sum_all(y).unwrap();
            let wrt = ["h.weight", "h.weight.log_step"].map(|name| graph.named(name).unwrap());
            for (number, gradient) in gradient(&mut graph, loss, &wrt).unwrap().into_iter().enumerate() {
                graph.output(number.to_string(), gradient.unwrap());
            }
            let got = evaluate(&graph, &feeds.with("h.weight.log_step", first), DType::F32).unwrap();
            assert!(
                got["1"].to_f64().iter().any(|&ds| ds != 0.0) && got["1"].shape == Shape::from([SIZES[1]])
            );
        }
    }
}
