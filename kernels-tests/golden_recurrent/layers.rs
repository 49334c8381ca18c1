//! Bare layers.

use super::{Gradients, Ready, Tensors, adamw, check_gradients, compare_steps, golden};
use kiln::graph::{self, Feeds, Graph};
use kiln::model::{Mode, RecurrentStack, Run};
use kiln::ops::Value;
use kiln::ops::concat::ConcatEmit;
use kiln::ops::losses::{LossEmit, Reduction};
use kiln::ops::pointwise::PointwiseEmit;
use kiln::ops::recurrent::Cell;
use kiln::ops::reduce::ReduceEmit;
use kiln::ops::reshape::ReshapeEmit;
use kiln::ops::slice::SliceEmit;
use kiln::ops::transpose::TransposeEmit;
use kiln::tensor::{DType, Tensor, Type};
use kiln::train::{self, Target};
use libtest_mimic::Failed;
use serde_json::Value as Json;
use std::path::Path;

/// A case of bare layers.
struct Case {
    stack: RecurrentStack,
    time_first: bool,
    lengths: Option<Vec<u32>>,
    weights: Tensors,
    inputs: Tensors,
}

impl Case {
    fn read(folder: &Path) -> Result<(Case, Json), Failed> {
        let json: Json = serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?;
        let count = |key: &str| json[key].as_u64().map(|n| n as usize).ok_or_else(|| format!("no `{key}`"));
        let flag = |key: &str| json[key].as_bool().ok_or_else(|| format!("no `{key}`"));
        let cell = match (json["kind"].as_str(), json["nonlinearity"].as_str()) {
            (Some("RNN"), Some("tanh")) => Cell::Tanh,
            (Some("RNN"), Some("relu")) => Cell::Relu,
            (Some("LSTM"), _) => Cell::Lstm,
            (Some("GRU"), _) => Cell::Gru,
            other => return Err(format!("{other:?} is no cell").into()),
        };
        let stack = RecurrentStack {
            cell,
            inputs: count("input_size")?,
            hidden: count("hidden_size")?,
            projected: Some(count("proj_size")?).filter(|&size| size > 0),
            layers: count("num_layers")?,
            bidirectional: flag("bidirectional")?,
            bias: flag("bias")?,
        };
        let case = Case {
            stack,
            time_first: !flag("batch_first")?,
            lengths: serde_json::from_value(json["lengths"].clone())?,
            weights: golden::tensors(&folder.join("model.safetensors"), "")?,
            inputs: golden::tensors(&folder.join("inputs.safetensors"), "")?,
        };
        Ok((case, json))
    }

    /// An input; a weight where its gradient is asked for.
    fn input(&self, graph: &mut Graph, name: &str, ask: &[&str]) -> Value {
        let kind = Type::f32(self.inputs[name].shape.clone());
        if ask.contains(&name) { graph.parameter(name, kind) } else { graph.input(name, kind) }
    }

    /// Loss, output, h and, of an LSTM, c after the last step.
    fn write(&self, graph: &mut Graph, ask: &[&str]) -> train::Result<Written> {
        let declared: Vec<(String, Value)> = self
            .stack
            .parameters("")
            .into_iter()
            .map(|spec| {
                let value = graph.parameter(&spec.name, Type::f32(spec.shape.clone()));
                (spec.name, value)
            })
            .collect();
        let (mut x, y, w) =
            (self.input(graph, "x", ask), self.input(graph, "y", ask), self.input(graph, "w", ask));
        let states = ["h_0", "c_0"].into_iter().filter(|name| self.inputs.contains_key(*name));
        let states: Vec<Value> = states.map(|name| self.input(graph, name, ask)).collect();
        let rows = self.inputs["w"].shape[1];
        let lengths = self.lengths.as_ref().map(|_| graph.input("lengths", Type::new(DType::U32, [rows])));
        let walks = self.inputs["w"].shape[0];
        let mut written = || -> kiln::model::Result<Written> {
            if self.time_first {
                x = wrap(graph.transpose(x, &[1, 0, 2]))?;
            }
            let initial: Vec<Value> = match states.is_empty() {
                true => vec![],
                false => wrap((0..walks).map(|at| joined(graph, &states, at)).collect())?,
            };
            let find = |name: &str| declared.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
            let mut run = Run {
                find: &find,
                initial: &initial,
                steps: lengths,
                between: &mut |_, x| Ok(x),
                carried: None,
            };
            let (mut output, last) = self.stack.write(graph, x, &mut run)?;
            if self.time_first {
                output = wrap(graph.transpose(output, &[1, 0, 2]))?;
            }
            let state = self.inputs["w"].shape[2];
            let parts = [(0, state), (state, graph.kind(last[0]).shape[1])];
            let parts = parts.into_iter().filter(|(start, end)| start < end);
            let split = |graph: &mut Graph, (start, end)| -> kiln::ops::Result<Value> {
                let each = last.iter().map(|&value| {
                    let part = graph.slice(value, 1, start, end)?;
                    graph.reshape(part, [1, rows, end - start].into())
                });
                let each = each.collect::<kiln::ops::Result<Vec<_>>>()?;
                graph.concat(&each, 0)
            };
            let states = wrap(parts.map(|part| split(graph, part)).collect::<kiln::ops::Result<Vec<_>>>())?;
            let loss = wrap(loss(graph, output, y, w, &states))?;
            Ok(Written { loss, output, states })
        };
        Ok(written()?)
    }

    /// The tensors of a graph's inputs; of a step of training, those of its batch.
    fn feeds(&self, step: Option<usize>) -> Feeds {
        let mut feeds = Feeds::new();
        for (name, tensor) in &self.inputs {
            match (step, name.strip_prefix("train_")) {
                (None, None) => feeds.set(name, tensor.clone()),
                (Some(step), Some(short)) => {
                    let shape = &tensor.shape[1..];
                    let count: usize = shape.iter().product();
                    let part = tensor.real::<f32>()[step * count..][..count].to_vec();
                    feeds.set(short, Tensor::f32(shape, part));
                }
                (Some(_), None) if !["x", "y"].contains(&name.as_str()) => feeds.set(name, tensor.clone()),
                _ => {}
            }
        }
        if let Some(lengths) = &self.lengths {
            feeds.set("lengths", Tensor::u32([lengths.len()], lengths.clone()));
        }
        feeds
    }
}

struct Written {
    loss: Value,
    output: Value,
    states: Vec<Value>,
}

fn wrap<T>(result: kiln::ops::Result<T>) -> kiln::model::Result<T> {
    Ok(result.map_err(graph::Error::from)?)
}

/// Row `at` of h_0 and behind it that of c_0, [B, S].
fn joined(graph: &mut Graph, states: &[Value], at: usize) -> kiln::ops::Result<Value> {
    let mut parts = vec![];
    for &state in states {
        let [_, rows, width] = graph.kind(state).shape[..] else { unreachable!("states have three axes") };
        let part = graph.slice(state, 0, at, at + 1)?;
        parts.push(graph.reshape(part, [rows, width].into())?);
    }
    graph.concat(&parts, 1)
}

/// mean((output - y)^2) + mean(h_n w) + mean(c_n^2), the last of an LSTM.
fn loss(graph: &mut Graph, output: Value, y: Value, w: Value, states: &[Value]) -> kiln::ops::Result<Value> {
    let square = graph.squared_error(output, y, Reduction::Mean)?;
    let weighted = graph.mul(states[0], w)?;
    let weighted = graph.mean_all(weighted)?;
    let mut loss = graph.add(square, weighted)?;
    if let Some(&cells) = states.get(1) {
        let square = graph.mul(cells, cells)?;
        let square = graph.mean_all(square)?;
        loss = graph.add(loss, square)?;
    }
    Ok(loss)
}

/// Outputs, states, loss and gradients of the first batch, by weights and by inputs; then ten steps.
pub fn check(folder: &Path, device: &str) -> Result<(), Failed> {
    let (case, json) = Case::read(folder)?;
    let target = Target::open(device)?;
    let mut gradients = golden::tensors(&folder.join("grads.safetensors"), "")?;
    let of_input = gradients.remove("input").ok_or("no gradient of the input")?;
    gradients.insert("x".into(), of_input);

    let mut graph = Graph::new();
    let ask: Vec<&str> = gradients.keys().map(String::as_str).collect();
    let written = case.write(&mut graph, &ask)?;
    let named = [("output", written.output)].into_iter();
    named.chain(["h_n", "c_n"].into_iter().zip(written.states)).for_each(|(name, v)| graph.output(name, v));
    let asked = Gradients::of(&mut graph, written.loss)?;
    let find = |name: &str| case.weights.get(name).or_else(|| case.inputs.get(name)).cloned();
    let results = Ready::new(&graph, &target, &find)?.run(&case.feeds(None))?;
    let expected = golden::tensors(&folder.join("expected.safetensors"), "")?;
    check_gradients(&asked, results, &expected, &gradients)?;

    let build = |graph: &mut Graph, _: Mode| Ok(case.write(graph, &[])?.loss);
    let trainer = adamw(&target, case.stack.parameters(""), &build, &case.weights)?;
    let after = golden::tensors(&folder.join("after10.safetensors"), "")?;
    compare_steps(trainer, &json, folder, &after, |step| Ok(case.feeds(Some(step))))
}
