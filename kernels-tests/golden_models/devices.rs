//! The same models through the engines, on the host and on an adapter: gradients, ten steps of AdamW, greedy text.

use super::{
    COSINE, FORWARD, GRADIENT, batch, compare, cosine, golden, has_no_gradient, is_held, named, widest,
};
use kiln::data::tokenizer::Tokenizer;
use kiln::evaluate::{Request, evaluate};
use kiln::formats::Raw;
use kiln::generate::{Lengths, Sampling, Translator, Writer};
use kiln::graph::{Feeds, Graph};
use kiln::model::{self, Family, Inputs, Mode, Reading, Weights};
use kiln::ops::Value;
use kiln::tensor::Tensor;
use kiln::train::recipe::{Clip, Decay, Optimizer, Rule};
use kiln::train::trainer::{Settings, Trainer, Weight};
use kiln::train::{self, Target};
use libtest_mimic::Failed;
use serde_json::Value as Json;
use std::path::Path;

/// Parameters, and logits and loss after ten steps, as the golden folder states.
const PARAMETER: f64 = 2e-4;
const AFTER_TEN: f64 = 1e-3;

/// A batch's gradients by name, from the plan that training replays.
pub fn check_gradients(folder: &Path, device: &str) -> Result<(), Failed> {
    let family = model::open(folder)?;
    let inputs = batch(folder, "eval.", None, &*family)?;
    let reading = widest(&inputs, Mode::Train, &*family);
    let mut trainer = trainer(folder, &*family, reading, device, 0.01, Clip::None)?;
    trainer.submit(vec![feeds(&inputs, &*family, reading)?], 0.0)?;
    let outcome = trainer.collect(true)?.ok_or("the step was lost")?;
    let expected = golden::tensors(&folder.join("expected.safetensors"), "")?;
    compare("loss", &Tensor::f32([1], vec![outcome.loss as f32]), &expected["loss"], FORWARD, 0.0)?;
    let gradients = named(&*family, golden::tensors(&folder.join("grads.safetensors"), "")?);
    let got = trainer.gradients()?;
    let (held, got): (Vec<_>, Vec<_>) = got.into_iter().partition(|(name, _)| is_held(name));
    if got.len() != gradients.len() {
        return Err(format!("{} gradients, expected {}", got.len(), gradients.len()).into());
    }
    if let Some((name, _)) = held.iter().find(|(_, got)| got.to_f64().iter().any(|x| *x != 0.0)) {
        return Err(format!("{name} has a gradient").into());
    }
    for (name, got) in got {
        compare(&name, &got, &gradients[&name], GRADIENT.0, GRADIENT.1)?;
        let cosine = cosine(&got, &gradients[&name]);
        if cosine < COSINE && !has_no_gradient(&name) {
            return Err(format!("{name}: the cosine is {cosine}").into());
        }
    }
    Ok(())
}

/// Ten steps with the case's optimiser: losses, norms, then loss and parameters.
pub fn check_ten_steps(folder: &Path, device: &str) -> Result<(), Failed> {
    let family = model::open(folder)?;
    let case = json(&folder.join("case.json"))?;
    let optimizer = &case["optimizer"];
    let number = |key: &str| optimizer[key].as_f64().ok_or_else(|| format!("no `{key}`"));
    let clip = optimizer["clip_grad_norm"].as_f64().map_or(Clip::None, Clip::Norm);
    let batches: Vec<Inputs> =
        (0..10).map(|step| batch(folder, "train.", Some(step), &*family)).collect::<Result<_, _>>()?;
    let reading = widest(&batches[0], Mode::Train, &*family);
    let mut trainer = trainer(folder, &*family, reading, device, number("weight_decay")?, clip)?;
    let expected = golden::tensors(&folder.join("expected.safetensors"), "")?;
    let (mut losses, mut norms) = (vec![], vec![]);
    for batch in &batches {
        trainer.submit(vec![feeds(batch, &*family, reading)?], number("lr")?)?;
        let outcome = trainer.collect(true)?.ok_or("the step was lost")?;
        losses.push(outcome.loss as f32);
        norms.push(outcome.gradient_norm as f32);
    }
    let list = |x: Vec<f32>| Tensor::f32([x.len()], x);
    compare("train_loss", &list(losses), &expected["train_loss"], FORWARD, 0.0)?;
    compare("train_grad_norm", &list(norms), &expected["train_grad_norm"], 0.0, GRADIENT.1)?;
    let loss =
        trainer.evaluate([(feeds(&batch(folder, "eval.", None, &*family)?, &*family, reading)?, 1.0)])?;
    compare("loss_after10", &list(vec![loss as f32]), &expected["loss_after10"], AFTER_TEN, 0.0)?;
    let after = named(&*family, golden::tensors(&folder.join("after10.safetensors"), "")?);
    for (name, got) in trainer.weights()? {
        // Some biases have a gradient of exactly zero, of which rounding leaves a sign that Adam follows.
        if case["unstable_after_adam"].get(&name).is_none() && !is_held(&name) {
            compare(&name, &got, &after[&name], PARAMETER, 0.0)?;
        }
    }
    Ok(())
}

/// Token ids continued greedily, of the cases without further rules.
pub fn check_generation(folder: &Path, device: &str) -> Result<(), Failed> {
    let cases = json(&folder.join("generate.json"))?;
    let plain = |case: &&Json| {
        let options = &case["options"];
        let keys = options.as_object().map_or(0, |keys| keys.len());
        keys == 3 && options["num_beams"] == 1 && options["do_sample"] == false
    };
    let cases: Vec<&Json> = cases.as_array().into_iter().flatten().filter(plain).collect();
    if cases.is_empty() {
        return Err("no greedy case".into());
    }
    for case in cases {
        let prompt: Vec<u32> = serde_json::from_value(case["input_ids"].clone())?;
        let expected: Vec<Vec<u32>> = serde_json::from_value(case["sequences"].clone())?;
        continued(folder, device, &prompt, &expected[0])?;
    }
    Ok(())
}

/// Texts through the folder's own tokenizer, continued greedily.
pub fn check_texts(folder: &Path, device: &str) -> Result<(), Failed> {
    let tokenizer = Tokenizer::load(folder)?;
    let case = json(&folder.join("case.json"))?;
    let (list, [text, prompt, output]) = match case.get("cases") {
        Some(cases) => (cases, ["text", "input_ids", "output_ids"]),
        None => (&case["generate"], ["prompt", "prompt_ids", "ids"]),
    };
    let mut count = 0;
    for case in list.as_array().into_iter().flatten() {
        let only_length = case.get("options").is_none_or(|o| o.as_object().is_some_and(|o| o.len() == 1));
        let Some(text) = case[text].as_str().filter(|_| only_length) else { continue };
        let prompt: Vec<u32> = serde_json::from_value(case[prompt].clone())?;
        let expected: Vec<u32> = serde_json::from_value(case[output].clone())?;
        let ids = tokenizer.encode_with_special(text)?;
        if ids != prompt {
            return Err(format!("{text:?} is {ids:?}, expected {prompt:?}").into());
        }
        continued(folder, device, &prompt, &expected)?;
        count += 1;
    }
    if count < 3 { Err(format!("only {count} texts to continue").into()) } else { Ok(()) }
}

/// The loss of a text file, from its first token on.
pub fn check_evaluation(folder: &Path, device: &str) -> Result<(), Failed> {
    let case = json(&folder.join("case.json"))?;
    let file = tempfile::NamedTempFile::with_suffix(".txt")?;
    std::fs::write(file.path(), case["text"].as_str().ok_or("no text")?)?;
    let request = Request {
        model: folder.to_path_buf(),
        text: vec![file.path().to_path_buf()],
        tokenizer: None,
        windows: None,
        validation: 0.0,
        batch: 1,
        context: None,
    };
    let score = evaluate(&request, &Target::open(device)?)?;
    let expected = case["loss"].as_f64().ok_or("no loss")?;
    if (score.loss - expected).abs() > FORWARD {
        return Err(format!("loss {}, expected {expected}", score.loss).into());
    }
    Ok(())
}

/// Twenty steps on one sentence, from weights that were trained elsewhere.
pub fn check_fine_tuning(folder: &Path, device: &str) -> Result<(), Failed> {
    let family = model::open(folder)?;
    let case = json(&folder.join("case.json"))?;
    let expected: Vec<f64> = serde_json::from_value(case["finetune"]["loss"].clone())?;
    let tokens =
        golden::tensors(&folder.join("expected.safetensors"), "")?.remove("input_ids").ok_or("no ids")?;
    let tokens: Vec<i64> = tokens.as_i32().iter().map(|&id| id.into()).collect();
    let row = Raw::i64([1, tokens.len()], &tokens);
    let given = [("input_ids".into(), row.clone()), ("labels".into(), row)].into();
    let inputs = Inputs::new(&given, &*family)?;
    let reading = inputs.reading(Mode::Train);
    let mut trainer = trainer(folder, &*family, reading, device, 0.01, Clip::None)?;
    for (step, expected) in expected.iter().enumerate() {
        trainer.submit(vec![feeds(&inputs, &*family, reading)?], 5e-4)?;
        let loss = trainer.collect(true)?.ok_or("the step was lost")?.loss;
        if (loss - expected).abs() > FORWARD {
            return Err(format!("step {step}: loss {loss}, expected {expected}").into());
        }
    }
    Ok(())
}

fn continued(folder: &Path, device: &str, prompt: &[u32], expected: &[u32]) -> Result<(), Failed> {
    if model::open(folder)?.interface().start.is_some() {
        return translated(folder, device, prompt, expected);
    }
    let count = expected.len() - prompt.len();
    let mut writer = Writer::open(folder, &Target::open(device)?, expected.len())?;
    let got = writer.continue_ids(prompt, count, &Sampling::greedy(), &mut |_| true)?;
    if got != expected[prompt.len()..] {
        return Err(format!("after {prompt:?}: got {got:?}, expected {:?}", &expected[prompt.len()..]).into());
    }
    Ok(())
}

/// What an encoder-decoder writes in view of a source; `expected` begins with the start. Read twice, since a second source is read
/// over the first, and in more room than it needs.
fn translated(folder: &Path, device: &str, source: &[u32], expected: &[u32]) -> Result<(), Failed> {
    let lengths = Lengths { source: source.len() + 3, target: expected.len() };
    let mut translator = Translator::open(folder, &Target::open(device)?, lengths)?;
    let reversed: Vec<u32> = source.iter().rev().copied().collect();
    for source in [&reversed[..], source] {
        translator.write_ids(source, 2, &Sampling::greedy(), &mut |_| true)?;
    }
    let got = translator.write_ids(source, expected.len() - 1, &Sampling::greedy(), &mut |_| true)?;
    if translator.start() != expected[0] || got != expected[1..] {
        return Err(format!("of {source:?}: got {got:?}, expected {expected:?}").into());
    }
    Ok(())
}

/// AdamW on every parameter, with the weights of the folder.
fn trainer(
    folder: &Path,
    family: &dyn Family,
    reading: Reading,
    device: &str,
    weight_decay: f64,
    clip: Clip,
) -> Result<Trainer, Failed> {
    let rule = Rule::Adamw { betas: [0.9, 0.999], eps: 1e-8 };
    let decay = Decay { weight_decay, decoupled: true, no_decay: vec![] };
    let settings = Settings { clip, ..Settings::new(Optimizer { rule, decay }) };
    let weight = |spec: model::ParameterSpec| Weight { name: spec.name, shape: spec.shape, decays: true };
    let list: Vec<Weight> = family.parameters().into_iter().map(weight).collect();
    let build = |graph: &mut Graph, mode: Mode| -> train::Result<Value> {
        let forward = family.read(graph, &Reading { mode, ..reading })?;
        Ok(family.interface().task.loss(graph, forward.logits, 0.0)?)
    };
    let mut trainer = Trainer::new(&Target::open(device)?, &list, &build, settings)?;
    let weights = Weights::read(folder, family)?;
    trainer.set_weights(|name, _| Ok(weights.get(name)?.clone()))?;
    Ok(trainer)
}

/// What the trainer's graph reads of a batch.
fn feeds(inputs: &Inputs, family: &dyn Family, reading: Reading) -> Result<Feeds, Failed> {
    let mut graph = Graph::new();
    let forward = family.read(&mut graph, &reading)?;
    family.interface().task.loss(&mut graph, forward.logits, 0.0)?;
    Ok(inputs.feeds(&graph)?)
}

fn json(path: &Path) -> Result<Json, Failed> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}
