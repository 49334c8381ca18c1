//! Whole models against transformers: logits, hidden states, loss and gradients by the host's references in f32; gradients,
//! training and text through the engines of the host and of an adapter.
//!
//! Cases stand in `dev` of the golden folder, each a Hugging Face folder beside what PyTorch made of it.

#[path = "golden_models/devices.rs"]
mod devices;
mod golden;

use golden::{Tensors, compare, cosine};
use kiln::formats::{Archive, Raw};
use kiln::graph::{Feeds, Graph, evaluate, gradient};
use kiln::model::{Config, Extent, Family, Inputs, Mode, Reading, Weights, from_config, open};
use kiln::tensor::{DType, Tensor};
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Logits, hidden states and losses, as the golden folder states.
const FORWARD: f64 = 1e-4;
/// Gradients: this much, plus this share of the tensor's largest element.
const GRADIENT: (f64, f64) = (1e-5, 1e-3);
/// Gradients point the same way at least this exactly.
const COSINE: f64 = 0.99999;

/// Models of `dev/models`.
const MODELS: &[&str] = &[
    "gpt2",
    "gpt2-untied-gelu",
    "llama-gqa",
    "llama-rope-scaled",
    "mistral-swa",
    "qwen2",
    "qwen3",
    "gpt-neox-parallel",
    "bert-mlm",
    "bert-cls",
    "roberta-mlm",
    "distilbert-mlm",
    "distilbert-cls",
    "t5-relu",
    "t5-gated-gelu",
    "bart",
];
/// The spellings of transformers 5 and 4.
const SPELLINGS: &[&str] = &["config.json", "config.v4.json"];
/// Folders of `dev/e2e` with texts, their logits and their continuations.
const TEXTS: &[&str] = &["gpt2", "llama", "t5"];

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = vec![];
    for name in MODELS {
        let folder = golden::folder().join("dev/models").join(name);
        for spelling in SPELLINGS {
            let name = format!("{name}: forward pass, {spelling}");
            trials.push(trial(name, &folder, |folder| check_forward(folder, spelling)));
        }
        trials.push(trial(format!("{name}: loss and gradients"), &folder, check_gradients));
        trials.push(trial(format!("{name}: saved and read again"), &folder, check_saved));
    }
    for name in TEXTS {
        let folder = golden::folder().join("dev/e2e").join(name);
        trials.push(trial(format!("{name}: logits of texts"), &folder, check_texts));
    }
    let real = golden::folder().join("dev/real/stories260K");
    trials.push(trial("stories260K: logits of a sentence".into(), &real, check_sentence));
    trials.push(trial("stories260K: loss and gradients".into(), &real, check_gradients));
    let adapter = kiln::train::Target::open("gpu").is_ok() || std::env::var_os("KILN_REQUIRE_GPU").is_some();
    for (device, missing) in [("cpu", false), ("gpu", !adapter)] {
        let trials_there = device_trials(device);
        trials.extend(trials_there.into_iter().map(|trial| {
            let ignored = missing || trial.has_ignored_flag();
            trial.with_ignored_flag(ignored)
        }));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn device_trials(device: &'static str) -> Vec<Trial> {
    let mut trials = vec![];
    let mut add = |folder: String, what: &str, check: fn(&Path, &str) -> Result<(), Failed>| {
        let name = format!("{folder}: {what}, {device}");
        let folder = golden::folder().join("dev").join(folder);
        trials.push(trial(name, &folder, move |folder| check(folder, device)));
    };
    for name in MODELS {
        let folder = || format!("models/{name}");
        add(folder(), "loss and gradients", devices::check_gradients);
        add(folder(), "ten steps of AdamW", devices::check_ten_steps);
        // Encoders continue nothing, and the case of the window has no texts.
        if golden::folder().join("dev").join(folder()).join("generate.json").exists() {
            add(folder(), "greedy continuation", devices::check_generation);
        }
    }
    for folder in ["e2e/gpt2", "e2e/llama", "e2e/t5", "real/stories260K"] {
        add(folder.into(), "texts continued", devices::check_texts);
    }
    add("real/stories260K".into(), "loss and gradients", devices::check_gradients);
    add("real/stories260K".into(), "loss of a text file", devices::check_evaluation);
    add("real/stories260K".into(), "twenty steps on a sentence", devices::check_fine_tuning);
    trials
}

fn trial(
    name: String,
    folder: &Path,
    check: impl FnOnce(&Path) -> Result<(), Failed> + Send + 'static,
) -> Trial {
    let folder: PathBuf = folder.to_path_buf();
    let absent = golden::is_absent(&folder);
    Trial::test(name, move || check(&folder)).with_ignored_flag(absent)
}

/// Tensors under the names that a family has for them.
fn named(family: &dyn Family, tensors: Tensors) -> Tensors {
    tensors.into_iter().filter_map(|(name, tensor)| Some((family.canonical_name(&name)?, tensor))).collect()
}

/// A case's batch of that prefix; of batches one after the other, the one of that number.
fn batch(folder: &Path, prefix: &str, number: Option<usize>, family: &dyn Family) -> Result<Inputs, Failed> {
    let file = folder.join("inputs.safetensors");
    if !file.exists() {
        // A sentence beside what became of it: its tokens are the labels as well.
        let row = Archive::open(&folder.join("expected.safetensors"))?;
        let ids = row.integers("input_ids")?;
        let row = Raw::i64([1, ids.len()], &ids);
        return Ok(Inputs::new(&[("input_ids".into(), row.clone()), ("labels".into(), row)].into(), family)?);
    }
    let archive = Archive::open(&file)?;
    let Some(number) = number else { return Ok(Inputs::read(&archive, prefix, family)?) };
    let mut given = BTreeMap::new();
    for name in archive.names().filter(|name| name.starts_with(prefix)) {
        let (shape, all) = (archive.shape(name).expect("it is there").to_vec(), archive.integers(name)?);
        let count: usize = shape[1..].iter().product();
        let part = Raw::i64(&shape[1..], &all[number * count..][..count]);
        given.insert(name[prefix.len()..].to_string(), part);
    }
    Ok(Inputs::new(&given, family)?)
}

/// What a pass reads that may have padding and kinds of token, whether it does or not.
fn widest(inputs: &Inputs, mode: Mode, family: &dyn Family) -> Reading {
    let kinds = family.interface().kinds > 1;
    Reading { padded: true, kinds, ..inputs.reading(mode) }
}

/// Weights and a batch for the interpreter.
fn fed(weights: &Weights, inputs: &Inputs, graph: &Graph) -> Result<Feeds, Failed> {
    let (mut all, feeds) = (weights.feeds(), inputs.feeds(graph)?);
    for (name, _) in graph.inputs() {
        all.set(name, feeds.get(name).expect("every input is fed").clone());
    }
    Ok(all)
}

fn check_forward(folder: &Path, spelling: &str) -> Result<(), Failed> {
    let family = from_config(&Config::read(&folder.join(spelling))?)?;
    let weights = Weights::read(folder, &*family)?;
    let inputs = batch(folder, "eval.", None, &*family)?;
    let mut graph = Graph::new();
    let reading = inputs.reading(Mode::Evaluate);
    let forward = family.read(&mut graph, &reading)?;
    let named = forward.named(&graph, family.interface().task, &reading);
    named.iter().for_each(|(name, value, _)| graph.output(name, *value));
    graph.verify()?;
    let results = evaluate(&graph, &fed(&weights, &inputs, &graph)?, DType::F32)?;
    let expected = golden::tensors(&folder.join("expected.safetensors"), "")?;
    let others = ["loss", "loss_after10", "logits_after10", "train_loss", "train_grad_norm"];
    let names: BTreeSet<&str> =
        expected.keys().map(String::as_str).filter(|name| !others.contains(name)).collect();
    if !names.iter().copied().eq(named.iter().map(|(name, ..)| name.as_str()).collect::<BTreeSet<_>>()) {
        return Err(format!("the results are {:?}, expected {names:?}", results.keys()).into());
    }
    results.iter().try_for_each(|(name, got)| compare(name, got, &expected[name], FORWARD, 0.0))
}

fn check_gradients(folder: &Path) -> Result<(), Failed> {
    let family = open(folder)?;
    let weights = Weights::read(folder, &*family)?;
    let inputs = batch(folder, "eval.", None, &*family)?;
    let mut graph = Graph::new();
    let forward = family.read(&mut graph, &inputs.reading(Mode::Train))?;
    let loss = family.interface().task.loss(&mut graph, forward.logits, 0.0)?;
    graph.output("loss", loss);
    let (names, values): (Vec<String>, Vec<_>) = graph.parameters().map(|(n, v)| (n.to_string(), v)).unzip();
    let gradients = gradient(&mut graph, loss, &values)?;
    let found = names.iter().zip(gradients).filter(|(name, _)| !is_held(name));
    for (name, value) in found {
        graph.output(name.clone(), value.ok_or_else(|| format!("{name} has no gradient"))?);
    }
    graph.verify()?;
    let results = evaluate(&graph, &fed(&weights, &inputs, &graph)?, DType::F32)?;
    let expected = golden::tensors(&folder.join("expected.safetensors"), "")?;
    compare("loss", &results["loss"], &expected["loss"], FORWARD, 0.0)?;
    let gradients = named(&*family, golden::tensors(&folder.join("grads.safetensors"), "")?);
    if !gradients.keys().eq(names.iter().filter(|name| !is_held(name)).collect::<BTreeSet<_>>()) {
        return Err(format!("parameters are {names:?}, expected {:?}", gradients.keys()).into());
    }
    for (name, expected) in &gradients {
        compare(name, &results[name], expected, GRADIENT.0, GRADIENT.1)?;
        let cosine = cosine(&results[name], expected);
        if cosine < COSINE && !has_no_gradient(name) {
            return Err(format!("{name}: the cosine is {cosine}").into());
        }
    }
    Ok(())
}

/// What is stored with a model and not trained.
fn is_held(name: &str) -> bool {
    name == "final_logits_bias"
}

/// Biases of keys move all scores of a query alike, so their gradient is zero but for rounding, and points nowhere.
fn has_no_gradient(name: &str) -> bool {
    [".key.bias", ".k_lin.bias", ".k_proj.bias"].iter().any(|end| name.ends_with(end))
}

fn check_saved(folder: &Path) -> Result<(), Failed> {
    let family = open(folder)?;
    let weights = Weights::read(folder, &*family)?;
    let copy = tempfile::tempdir()?;
    weights.save(copy.path(), &*family)?;
    let names = |folder: &Path| -> Result<Vec<String>, Failed> {
        Ok(Tensors::into_keys(golden::tensors(&folder.join("model.safetensors"), "")?).collect())
    };
    if names(copy.path())? != names(folder)? {
        return Err("the saved names differ from those of transformers".into());
    }
    let again = open(copy.path())?;
    if Weights::read(copy.path(), &*again)? != weights || again.config() != family.config() {
        return Err("what was saved is not what is read".into());
    }
    // Every key that transformers wrote and that is still written has its value.
    let (ours, theirs) = (Config::read(copy.path())?, Config::read(folder)?);
    let differs = |(key, value): &(&String, &serde_json::Value)| {
        // Absent means four times the width, which is what we write.
        key.as_str() != "n_inner" && ours.keys().get(*key).is_some_and(|other| other != *value)
    };
    match theirs.keys().iter().find(differs) {
        Some((key, value)) => Err(format!("config.json: `{key}` was {value}").into()),
        None => Ok(()),
    }
}

fn check_texts(folder: &Path) -> Result<(), Failed> {
    let family = open(folder)?;
    let weights = Weights::read(folder, &*family)?;
    let case: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?;
    let cases = case["cases"].as_array().ok_or("no `cases`")?;
    let expected = golden::tensors(&folder.join("expected.safetensors"), "logits.")?;
    if expected.is_empty() {
        return Err("no logits to compare".into());
    }
    // The last case is a padded batch for generation; it comes without logits.
    for (number, expected) in &expected {
        let case = number.parse::<usize>().ok().and_then(|i| cases.get(i)).ok_or("logits without a text")?;
        let tokens: Vec<u32> = serde_json::from_value(case["input_ids"].clone())?;
        // An encoder-decoder has written the first tokens of its answer.
        let rows = expected.shape[0];
        let answer = case["output_ids"].as_array().filter(|_| family.interface().start.is_some());
        let written = answer.map(|ids| serde_json::from_value::<Vec<u32>>(ids[..rows].into())).transpose()?;
        let got = logits(&*family, &weights, tokens, written)?;
        compare(&format!("logits.{number}"), &got, expected, FORWARD, 0.0)?;
    }
    Ok(())
}

/// The logits of real weights.
fn check_sentence(folder: &Path) -> Result<(), Failed> {
    let family = open(folder)?;
    let weights = Weights::read(folder, &*family)?;
    let expected = golden::tensors(&folder.join("expected.safetensors"), "")?;
    let tokens = expected["input_ids"].as_i32().iter().map(|&id| id as u32).collect();
    compare("logits", &logits(&*family, &weights, tokens, None)?, &expected["logits"], FORWARD, 0.0)
}

fn logits(
    family: &dyn Family,
    weights: &Weights,
    tokens: Vec<u32>,
    written: Option<Vec<u32>>,
) -> Result<Tensor, Failed> {
    let whole = Reading::new(Extent { batch: 1, context: tokens.len() }, Mode::Evaluate);
    let target = written.as_ref().map_or(whole.target, Vec::len);
    let mut graph = Graph::new();
    let forward = family.read(&mut graph, &Reading { target, ..whole })?;
    graph.output("logits", forward.logits);
    let mut feeds = weights.feeds().with("tokens", Tensor::u32([1, tokens.len()], tokens));
    if let Some(written) = written {
        feeds.set("target_tokens", Tensor::u32([1, target], written));
    }
    Ok(evaluate(&graph, &feeds, DType::F32)?.remove("logits").expect("named above"))
}
