//! One batch through a model, whole: scores, loss, residual streams and gradients, to be held against another framework's.

use super::{Deployment, Error, Result};
use crate::graph::{Graph, gradient_from};
use crate::model::{self, Family, Inputs, Mode, Weights};
use crate::ops::cast::CastEmit;
use crate::ops::{Emit, Value};
use crate::passes::{self, Fuse, Pass, Precision, Residual, Tidy};
use crate::tensor::{DType, Tensor};
use crate::train::{self, Target};

/// Factor on gradients stored as f16 while they are computed, as small ones would vanish there.
const HALF_SCALE: f32 = 1024.0;

/// What a model made of a batch.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Results by the names that transformers has for them: `logits`, `loss`, `hidden_states.0` and so on.
    pub results: Vec<(String, Tensor)>,
    /// The gradient of the loss by each parameter that it depends on, under the name that transformers has in memory.
    pub gradients: Vec<(String, Tensor)>,
}

/// Runs a batch on a device. Activations are stored as `precision`; where `gradients` are wanted there must be labels, weights held
/// as plain floats, and no dropout.
pub fn forward(
    family: &dyn Family,
    weights: &Weights,
    inputs: &Inputs,
    target: &Target,
    precision: DType,
    gradients: bool,
) -> Result<Outcome> {
    if let (true, Some((name, _))) = (gradients, weights.stored().next()) {
        return Err(model::Error::Quantised { name: name.to_string() }.into());
    }
    let draft = Draft::new(family, inputs, gradients)?;
    let deployment = Deployment::new(weights).within(target);
    let scale = if gradients && precision == DType::F16 { HALF_SCALE } else { 1.0 };
    let precision = Precision::on(precision, &target.caps());
    let (graph, _) = passes::run(&[&deployment.pieces()], draft.graph).map_err(train::Error::from)?;
    let quantize = deployment.weights.quantize_in(&graph);
    let (graph, _) = passes::run(&[&quantize, &Tidy, &precision], graph).map_err(train::Error::from)?;
    let graph = if gradients { with_gradients(graph, scale)? } else { graph };
    let list: [&dyn Pass; 3] = [&Tidy, &Residual, &Fuse];
    let (graph, _) = passes::run(&list, graph).map_err(train::Error::from)?;
    let feeds = inputs.feeds(&graph)?;
    let (mut engine, plans) = deployment.engine(target, &[graph])?;
    let given = |name: &str| feeds.get(name).expect("every input of the graph is fed");
    let list: Vec<&Tensor> = plans[0].feeds.iter().map(|feed| given(&feed.name)).collect();
    let results = engine.run(0, &list).map_err(train::Error::from)?;
    let mut named: Vec<(String, Tensor)> =
        plans[0].reads.iter().map(|read| read.name.clone()).zip(results).collect();
    let mut outcome = Outcome::default();
    for (name, shape) in draft.results {
        let at = named.iter().position(|(read, _)| *read == name).expect("it is a result of the graph");
        let (name, tensor) = named.swap_remove(at);
        outcome.results.push((name, tensor.reshaped(shape).expect("both count the same elements")));
    }
    for (name, mut tensor) in named {
        let name = name.strip_prefix(GRADIENT).expect("what is left are gradients").to_string();
        tensor.real_mut::<f32>().iter_mut().for_each(|x| *x /= scale);
        outcome.gradients.push((name, tensor));
    }
    outcome.gradients = train::pieces::join(outcome.gradients);
    outcome.gradients.iter_mut().for_each(|(name, _)| *name = family.name_in_memory(name));
    outcome.gradients.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(outcome)
}

/// Before the name of a parameter, its gradient.
const GRADIENT: &str = "gradient of ";

/// A forward pass with its results, by name and by the shape they are handed on in.
struct Draft {
    graph: Graph,
    results: Vec<(String, Vec<usize>)>,
}

impl Draft {
    fn new(family: &dyn Family, inputs: &Inputs, gradients: bool) -> Result<Draft> {
        let task = family.interface().task;
        let reading = inputs.reading(if gradients { Mode::Train } else { Mode::Evaluate });
        let mut graph = Graph::new();
        let forward = family.read(&mut graph, &reading)?;
        let mut results = vec![];
        for (name, value, shape) in forward.named(&graph, task, &reading) {
            graph.output(name.clone(), value);
            results.push((name, shape));
        }
        if inputs.has_labels() || gradients {
            let loss = forward.loss(&mut graph, task, 0.0)?;
            graph.output("loss", loss);
            results.push(("loss".into(), vec![1]));
        }
        Ok(Draft { graph, results })
    }
}

/// The graph with the gradient of its loss by every parameter that it depends on.
fn with_gradients(mut graph: Graph, scale: f32) -> Result<Graph> {
    let wrap = |error: crate::graph::Error| Error::from(model::Error::from(error));
    let loss = graph.result("loss").expect("the loss is a result");
    let loss = graph.cast(loss, DType::F32).map_err(model::Error::from)?;
    graph.redirect_output("loss", loss);
    let shape = graph.kind(loss).shape.clone();
    let seed = graph.constant(Tensor::f32(shape.clone(), vec![scale; shape.count()]));
    let (names, values): (Vec<String>, Vec<Value>) =
        graph.parameters().map(|(name, value)| (name.to_string(), value)).unzip();
    let gradients = gradient_from(&mut graph, loss, seed, &values).map_err(wrap)?;
    for (name, gradient) in names.into_iter().zip(gradients) {
        if let Some(gradient) = gradient {
            graph.output(format!("{GRADIENT}{name}"), gradient);
        }
    }
    Ok(graph)
}
