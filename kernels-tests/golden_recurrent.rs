//! Recurrent layers and models against PyTorch: outputs, states, losses, gradients and ten steps of AdamW, on the host and on an
//! adapter.
//!
//! Cases stand in `dev/rnn` and `dev/real` of the golden folder.

#[path = "golden_recurrent/g2p.rs"]
mod g2p;
mod golden;
#[path = "golden_recurrent/layers.rs"]
mod layers;
#[path = "golden_recurrent/models.rs"]
mod models;
#[path = "golden_recurrent/real.rs"]
mod real;

use golden::Tensors;
use kiln::deploy;
use kiln::graph::{Feeds, Graph, gradient};
use kiln::model::ParameterSpec;
use kiln::ops::Value;
use kiln::ops::reshape::ReshapeEmit;
use kiln::plan::{Engine, Plan};
use kiln::tensor::Tensor;
use kiln::train::Target;
use kiln::train::recipe::{Decay, Optimizer, Rule};
use kiln::train::trainer::{BuildLoss, Settings, Trainer, Weight};
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
const MODELS: &[&str] = &["lstm-lm", "gru-seq2seq-attn"];

/// A case's folder against a device.
type Check = fn(&Path, &str) -> Result<(), Failed>;

fn main() {
    let arguments = Arguments::from_args();
    let adapter = Target::open("gpu").is_ok() || std::env::var_os("KILN_REQUIRE_GPU").is_some();
    let mut trials = vec![];
    for device in ["cpu", "gpu"] {
        let missing = device == "gpu" && !adapter;
        let mut add = |name: String, check: Check| {
            let folder = golden::folder().join("dev").join(&name);
            let absent = missing || golden::is_absent(&folder);
            let trial = Trial::test(format!("{name}, {device}"), move || check(&folder, device));
            trials.push(trial.with_ignored_flag(absent));
        };
        LAYERS.iter().for_each(|name| add(format!("rnn/{name}"), layers::check));
        MODELS.iter().for_each(|name| add(format!("rnn/{name}"), models::check));
        add("real/textgenrnn".into(), real::check_textgenrnn);
        add("real/silero".into(), real::check_silero);
        let (folder, python) = (golden::folder().join("dev/real/g2p_en"), std::env::var("KILN_PYTHON"));
        let absent = missing || python.is_err() || golden::is_absent(&folder);
        let trial =
            Trial::test(format!("real/g2p_en, {device}"), move || g2p::check(&folder, &python?, device));
        trials.push(trial.with_ignored_flag(absent));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// Names of the parameters whose gradients, and the loss itself, are results of a graph.
struct Gradients(Vec<String>);

impl Gradients {
    fn of(graph: &mut Graph, loss: Value) -> Result<Gradients, Failed> {
        let one = graph.reshape(loss, [1].into())?;
        graph.output("loss", one);
        let (names, values): (Vec<String>, Vec<Value>) =
            graph.parameters().map(|(name, value)| (name.to_string(), value)).unzip();
        for (name, gradient) in names.iter().zip(gradient(graph, loss, &values)?) {
            graph.output(format!("{GRADIENT_OF}{name}"), gradient.ok_or("a gradient is missing")?);
        }
        Ok(Gradients(names))
    }
}

/// A graph on a device.
struct Ready {
    engine: Box<dyn Engine>,
    plan: Plan,
}

impl Ready {
    fn new(graph: &Graph, target: &Target, weight: &dyn Fn(&str) -> Option<Tensor>) -> Result<Ready, Failed> {
        let residents = deploy::place(std::slice::from_ref(graph), target.caps().max_binding_bytes);
        let mut plans = target.plans(&[graph], &residents, None)?;
        let mut engine = target.engine(&residents.arenas, plans.clone())?;
        for (name, _) in graph.parameters() {
            engine.write(residents.places[name], &weight(name).ok_or("a tensor is missing")?)?;
        }
        Ok(Ready { engine, plan: plans.remove(0) })
    }

    /// Its results by name.
    fn run(&mut self, feeds: &Feeds) -> Result<Tensors, Failed> {
        let list: Option<Vec<&Tensor>> = self.plan.feeds.iter().map(|feed| feeds.get(&feed.name)).collect();
        let results = self.engine.run(0, &list.ok_or("an input is not fed")?)?;
        Ok(self.plan.reads.iter().map(|read| read.name.clone()).zip(results).collect())
    }
}

/// Everything that is known of a batch must be there, and right.
fn check_gradients(
    asked: &Gradients,
    results: Tensors,
    expected: &Tensors,
    gradients: &Tensors,
) -> Result<(), Failed> {
    // All but the losses of the ten steps.
    let count = results.len() - asked.0.len();
    if [count, asked.0.len()] != [expected.len() - 1, gradients.len()] {
        return Err(format!("{count} results and {} gradients", asked.0.len()).into());
    }
    for (name, got) in &results {
        let Some(parameter) = name.strip_prefix(GRADIENT_OF) else {
            compare(name, got, &expected[name], FORWARD, 0.0)?;
            continue;
        };
        compare(name, got, &gradients[parameter], GRADIENT.0, GRADIENT.1)?;
        let cosine = golden::cosine(got, &gradients[parameter]);
        if cosine < COSINE {
            return Err(format!("{name}: the cosine is {cosine}").into());
        }
    }
    Ok(())
}

/// A trainer as all cases have it, over these weights.
fn adamw(
    target: &Target,
    parameters: Vec<ParameterSpec>,
    build: &BuildLoss,
    weights: &Tensors,
) -> Result<Trainer, Failed> {
    let rule = Rule::Adamw { betas: [0.9, 0.999], eps: 1e-8 };
    let decay = Decay { weight_decay: 0.01, decoupled: true, no_decay: vec![] };
    let weight = |spec: ParameterSpec| Weight { name: spec.name, shape: spec.shape, decays: true };
    let list: Vec<Weight> = parameters.into_iter().map(weight).collect();
    let mut trainer = Trainer::new(target, &list, build, Settings::new(Optimizer { rule, decay }))?;
    trainer.set_weights(|name, _| Ok(weights[name].clone()))?;
    Ok(trainer)
}

/// Ten steps: losses, and parameters at the end.
fn compare_steps(
    mut trainer: Trainer,
    case: &Json,
    folder: &Path,
    after: &Tensors,
    feeds: impl Fn(usize) -> Result<Feeds, Failed>,
) -> Result<(), Failed> {
    let rate = case["optimizer"]["lr"].as_f64().ok_or("no learning rate")?;
    let mut losses = vec![];
    for step in 0..10 {
        trainer.submit(vec![feeds(step)?], rate)?;
        losses.push(trainer.collect(true)?.ok_or("the step was lost")?.loss as f32);
    }
    let expected = golden::tensors(&folder.join("expected.safetensors"), "train_loss")?;
    compare("train_loss", &Tensor::f32([10], losses), &expected[""], FORWARD, 0.0)?;
    trainer.weights()?.iter().try_for_each(|(name, got)| {
        let known = after.get(name).ok_or_else(|| format!("{name} is not known"))?;
        compare(name, got, known, PARAMETER, 0.0)
    })
}

/// The shape is compared as well.
fn compare(name: &str, got: &Tensor, expected: &Tensor, absolute: f64, share: f64) -> Result<(), Failed> {
    if got.shape != expected.shape {
        return Err(format!("{name}: shape {}, expected {}", got.shape, expected.shape).into());
    }
    golden::compare(name, got, expected, absolute, share)
}
