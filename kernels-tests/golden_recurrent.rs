//! Recurrent layers and models against PyTorch: outputs, states, losses, gradients and ten steps of AdamW, on the host and on an
//! adapter.
//!
//! Cases stand in `dev/rnn` of the golden folder.

mod golden;

use golden::Tensors;
use kiln::deploy;
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
use kiln::train::recipe::{Decay, Optimizer, Rule};
use kiln::train::trainer::{Settings, Trainer, Weight};
use kiln::train::{self, Target};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value as Json;
use std::path::Path;

/// Outputs, states and losses; gradients, this much and this share of the tensor's largest element; parameters after ten steps.
const FORWARD: f64 = 1e-4;
const GRADIENT: (f64, f64) = (1e-5, 1e-3);
const COSINE: f64 = 0.99999;
const PARAMETER: f64 = 2e-4;
/// Before the name of a parameter, its gradient.
const GRADIENT_OF: &str = "gradient of ";

const LAYERS: &[&str] = &[
    "rnn-tanh-1l",
    "rnn-relu-2l-bi",
    "lstm-1l",
    "lstm-2l-bi",
    "lstm-nobias-seqfirst",
    "lstm-proj",
    "lstm-packed-bi",
    "gru-1l",
    "gru-2l-bi",
    "gru-packed",
    "gru-long",
];

fn main() {
    let arguments = Arguments::from_args();
    let adapter = Target::open("gpu").is_ok() || std::env::var_os("KILN_REQUIRE_GPU").is_some();
    let mut trials = vec![];
    for device in ["cpu", "gpu"] {
        let missing = device == "gpu" && !adapter;
        for name in LAYERS {
            let folder = golden::folder().join("dev/rnn").join(name);
            let absent = missing || golden::is_absent(&folder);
            let trial = Trial::test(format!("{name}, {device}"), move || check_layers(&folder, device));
            trials.push(trial.with_ignored_flag(absent));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

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
            let mut run =
                Run { find: &find, initial: &initial, lengths, between: &mut |_, x| Ok(x), carried: None };
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

fn check_layers(folder: &Path, device: &str) -> Result<(), Failed> {
    let (case, json) = Case::read(folder)?;
    let target = Target::open(device)?;
    let expected = golden::tensors(&folder.join("expected.safetensors"), "")?;
    let mut gradients = golden::tensors(&folder.join("grads.safetensors"), "")?;
    let of_input = gradients.remove("input").ok_or("no gradient of the input")?;
    gradients.insert("x".into(), of_input);
    check_one_batch(&case, &target, &expected, &gradients)?;

    let rule = Rule::Adamw { betas: [0.9, 0.999], eps: 1e-8 };
    let decay = Decay { weight_decay: 0.01, decoupled: true, no_decay: vec![] };
    let settings = Settings::new(Optimizer { rule, decay });
    let weight =
        |spec: kiln::model::ParameterSpec| Weight { name: spec.name, shape: spec.shape, decays: true };
    let list: Vec<Weight> = case.stack.parameters("").into_iter().map(weight).collect();
    let build = |graph: &mut Graph, _: Mode| Ok(case.write(graph, &[])?.loss);
    let mut trainer = Trainer::new(&target, &list, &build, settings)?;
    trainer.set_weights(|name, _| Ok(case.weights[name].clone()))?;
    let rate = json["optimizer"]["lr"].as_f64().ok_or("no learning rate")?;
    let mut losses = vec![];
    for step in 0..10 {
        trainer.submit(vec![case.feeds(Some(step))], rate)?;
        losses.push(trainer.collect(true)?.ok_or("the step was lost")?.loss as f32);
    }
    compare("train_loss", &Tensor::f32([10], losses), &expected["train_loss"], FORWARD, 0.0)?;
    let after = golden::tensors(&folder.join("after10.safetensors"), "")?;
    trainer.weights()?.iter().try_for_each(|(name, got)| compare(name, got, &after[name], PARAMETER, 0.0))
}

/// Outputs, states and loss of the first batch, and the gradients of weights and inputs, through an engine.
fn check_one_batch(
    case: &Case,
    target: &Target,
    expected: &Tensors,
    gradients: &Tensors,
) -> Result<(), Failed> {
    let mut graph = Graph::new();
    let ask: Vec<&str> = gradients.keys().map(String::as_str).collect();
    let written = case.write(&mut graph, &ask)?;
    let loss = graph.reshape(written.loss, [1].into())?;
    let named = [("output", written.output), ("loss", loss)].into_iter();
    named.chain(["h_n", "c_n"].into_iter().zip(written.states)).for_each(|(name, v)| graph.output(name, v));
    let count = graph.outputs().len();
    let (names, values): (Vec<String>, Vec<Value>) =
        graph.parameters().map(|(name, value)| (name.to_string(), value)).unzip();
    for (name, gradient) in names.iter().zip(graph::gradient(&mut graph, written.loss, &values)?) {
        graph.output(format!("{GRADIENT_OF}{name}"), gradient.ok_or("a gradient is missing")?);
    }
    if [count, names.len()] != [expected.len() - 1, gradients.len()] {
        return Err(format!("{count} results and {} gradients", names.len()).into());
    }
    let residents = deploy::place(std::slice::from_ref(&graph), target.caps().max_binding_bytes);
    let plans = target.plans(&[&graph], &residents, None)?;
    let mut engine = target.engine(&residents.arenas, plans.clone())?;
    for name in &names {
        let tensor = case.weights.get(name).or_else(|| case.inputs.get(name)).ok_or("a tensor is missing")?;
        engine.write(residents.places[name], tensor)?;
    }
    let feeds = case.feeds(None);
    let list: Option<Vec<&Tensor>> = plans[0].feeds.iter().map(|feed| feeds.get(&feed.name)).collect();
    let results = engine.run(0, &list.ok_or("an input is not fed")?)?;
    for (read, got) in plans[0].reads.iter().zip(&results) {
        let Some(name) = read.name.strip_prefix(GRADIENT_OF) else {
            compare(&read.name, got, &expected[&read.name], FORWARD, 0.0)?;
            continue;
        };
        compare(&read.name, got, &gradients[name], GRADIENT.0, GRADIENT.1)?;
        let cosine = cosine(got, &gradients[name]);
        if cosine < COSINE {
            return Err(format!("{name}: the cosine is {cosine}").into());
        }
    }
    Ok(())
}

fn compare(name: &str, got: &Tensor, expected: &Tensor, absolute: f64, share: f64) -> Result<(), Failed> {
    if got.shape != expected.shape {
        return Err(format!("{name}: shape {}, expected {}", got.shape, expected.shape).into());
    }
    let (got, expected) = (got.to_f64(), expected.to_f64());
    let limit = absolute + share * expected.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let difference = (got - expected).abs();
        if difference.is_nan() || difference > limit {
            return Err(format!("{name}[{i}]: got {got}, expected {expected} within {limit:.1e}").into());
        }
    }
    Ok(())
}

fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_f64(), b.to_f64());
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}
