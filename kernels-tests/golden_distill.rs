//! Distillation against PyTorch: a GPT-2 and a smaller student, loss, gradients and ten steps, as a recipe makes them.

mod golden;

use golden::{Tensors, compare};
use kiln::data::windows::Batch;
use kiln::graph::{Feeds, Graph, gradient};
use kiln::model::{Mode, Weights};
use kiln::ops::embedding::sort_positions;
use kiln::tensor::Tensor;
use kiln::train::distill::PREFIX;
use kiln::train::job::{Step, family_of, feeds_of};
use kiln::train::recipe::Recipe;
use kiln::train::trainer::Trainer;
use kiln::train::{Beside, Target};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::Path;

/// As the golden cases' README has them.
const LOSS: f64 = 1e-4;
const GRADIENT: (f64, f64) = (1e-5, 1e-3);
const AFTER_TEN: f64 = 2e-4;

fn main() {
    let arguments = Arguments::from_args();
    let folder = golden::folder().join("dev/distill");
    let absent = golden::is_absent(&folder);
    let mut devices = vec!["cpu"];
    if Target::open("gpu").is_ok() {
        devices.push("gpu");
    }
    let mut trials = vec![];
    for device in devices {
        let trial = |name: &str, check: fn(&Path, &str) -> Result<(), Failed>| {
            let folder = folder.clone();
            Trial::test(format!("{device}/{name}"), move || check(&folder, device)).with_ignored_flag(absent)
        };
        trials.push(trial("loss_and_gradients_are_those_of_pytorch", check_gradients));
        trials.push(trial("ten_steps_are_those_of_pytorch", check_steps));
        trials.push(trial("a_teacher_in_fewer_bits_is_smaller_and_says_nearly_the_same", check_precision));
    }
    let of_graph = folder.clone();
    let no_gradient = move || check_no_gradient(&of_graph);
    trials
        .push(Trial::test("nothing_of_the_teacher_is_differentiated", no_gradient).with_ignored_flag(absent));
    libtest_mimic::run(&arguments, trials).exit();
}

/// `temperature = 2`, half divergence, half text.
fn recipe(folder: &Path, precision: &str) -> Result<Recipe, Failed> {
    let path = |name: &str| toml::Value::String(folder.join(name).display().to_string());
    let text = format!(
        "[model]\nload = {}\ndropout = 0.0\n\
         [train]\nbatch = 3\ncontext = 15\nclip = \"none\"\n\
         optimizer = {{ kind = \"adamw\", weight_decay = 0.01, betas = [0.9, 0.999], eps = 1e-8, no_decay = [] }}\n\
         [distill]\nteacher = {}\nteacher_precision = \"{precision}\"\ntemperature = 2.0\nkl = 0.5\nce = 0.5\n",
        path("student"),
        path("teacher")
    );
    Ok(Recipe::from_text(&text, "the recipe of the case", &[])?)
}

struct Student {
    trainer: Trainer,
    beside: Beside,
    step: kiln::model::Extent,
    vocabulary: usize,
}

fn student(folder: &Path, device: &str, precision: &str) -> Result<Student, Failed> {
    let recipe = recipe(folder, precision)?;
    let family = family_of(&recipe, 1)?;
    let beside = Beside::open(&recipe, family.as_ref(), None)?;
    let Step { weights, settings, extent } = Step::new(&recipe, family.as_ref(), &beside)?;
    let build = Step::loss(&recipe, family.as_ref(), &beside, extent);
    let mut trainer = Trainer::new(&Target::open(device)?, &weights, &build, settings)?;
    drop(build);
    let first = Weights::read(&folder.join("student"), family.as_ref())?;
    trainer.set_weights(|name, _| Ok(first.get(name)?.clone()))?;
    Ok(Student { trainer, beside, step: extent, vocabulary: family.vocabulary() })
}

impl Student {
    /// Rows of token ids, each learnt from all before it; the last one has no target.
    fn feeds(&self, ids: &[i32], step: u64) -> Result<Feeds, Failed> {
        let tokens: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        let context = self.step.context;
        let target = |at: usize| if (at + 1).is_multiple_of(context) { -1 } else { ids[at + 1] };
        let targets = (0..ids.len()).map(target).collect();
        let (order, starts) = sort_positions(&tokens, self.vocabulary)?;
        let batch = Batch { tokens, targets, rows: self.step.batch, context };
        let mut feeds = feeds_of(&batch, self.step)
            .with("order", Tensor::u32([order.len()], order))
            .with("starts", Tensor::u32([starts.len()], starts));
        self.beside.teacher.as_ref().ok_or("no teacher")?.feed(&mut feeds, &batch, step, self.step);
        Ok(feeds)
    }
}

fn case(folder: &Path) -> Result<serde_json::Value, Failed> {
    Ok(serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?)
}

fn check_gradients(folder: &Path, device: &str) -> Result<(), Failed> {
    let inputs = golden::tensors(&folder.join("inputs.safetensors"), "")?;
    let mut student = student(folder, device, "f32")?;
    let feeds = student.feeds(inputs["ids"].as_i32(), 0)?;
    let loss = student.trainer.differentiate(feeds)?;
    near("loss", loss, case(folder)?["loss"].as_f64().ok_or("no loss")?, LOSS)?;
    let expected = golden::tensors(&folder.join("grads.safetensors"), "")?;
    let got: Tensors = student.trainer.gradients()?.into_iter().collect();
    if !got.keys().eq(expected.keys()) {
        return Err(format!("gradients of {:?}, expected {:?}", got.keys(), expected.keys()).into());
    }
    expected
        .iter()
        .try_for_each(|(name, expected)| compare(name, &got[name], expected, GRADIENT.0, GRADIENT.1))
}

fn check_steps(folder: &Path, device: &str) -> Result<(), Failed> {
    let inputs = golden::tensors(&folder.join("inputs.safetensors"), "")?;
    let expected: Vec<f64> = serde_json::from_value(case(folder)?["train_loss"].clone())?;
    let mut student = student(folder, device, "f32")?;
    let batches = inputs["train_ids"].as_i32().chunks(student.step.positions());
    for (step, (ids, expected)) in batches.zip(&expected).enumerate() {
        let feeds = student.feeds(ids, step as u64)?;
        student.trainer.submit(vec![feeds], 1e-3)?;
        let loss = student.trainer.collect(true)?.ok_or("the step was lost")?.loss;
        near(&format!("loss of step {step}"), loss, *expected, LOSS)?;
    }
    let after = golden::tensors(&folder.join("after10.safetensors"), "")?;
    let got: Tensors = student.trainer.weights()?.into_iter().collect();
    for (name, expected) in &after {
        let (mut got, mut expected) = (got[name].to_f64(), expected.to_f64());
        if name.ends_with("c_attn.bias") {
            // Softmax does not see a bias of the keys: its gradient is rounding, which Adam makes into steps.
            let third = got.len() / 3;
            [&mut got, &mut expected].into_iter().for_each(|list| list[third..2 * third].fill(0.0));
        }
        for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
            near(&format!("{name}[{at}] after ten steps"), *got, *expected, AFTER_TEN)?;
        }
    }
    Ok(())
}

fn check_precision(folder: &Path, device: &str) -> Result<(), Failed> {
    let inputs = golden::tensors(&folder.join("inputs.safetensors"), "")?;
    let expected = case(folder)?["loss"].as_f64().ok_or("no loss")?;
    let mut bytes = vec![];
    for (precision, limit) in [("f32", LOSS), ("f16", 1e-3), ("int8", 2e-2)] {
        let mut student = student(folder, device, precision)?;
        let feeds = student.feeds(inputs["ids"].as_i32(), 0)?;
        near(precision, student.trainer.differentiate(feeds)?, expected, limit)?;
        bytes.push(student.trainer.memory().frozen as f64);
    }
    if bytes[1] > 0.6 * bytes[0] || bytes[2] > 0.45 * bytes[0] {
        return Err(format!("bytes of the teacher in f32, f16, int8: {bytes:?}").into());
    }
    Ok(())
}

fn check_no_gradient(folder: &Path) -> Result<(), Failed> {
    let recipe = recipe(folder, "f32")?;
    let family = family_of(&recipe, 1)?;
    let beside = Beside::open(&recipe, family.as_ref(), None)?;
    let extent = Step::new(&recipe, family.as_ref(), &beside)?.extent;
    let mut graph = Graph::new();
    let loss = Step::loss(&recipe, family.as_ref(), &beside, extent)(&mut graph, Mode::Train)?;
    let of_teacher = |scope: &str| scope.strip_prefix("gradient.").unwrap_or(scope).starts_with(PREFIX);
    let before = graph.nodes().iter().filter(|node| of_teacher(&node.scope)).count();
    graph.freeze(|name| name.starts_with(PREFIX));
    let wrt: Vec<_> = graph.parameters().map(|(_, value)| value).collect();
    gradient(&mut graph, loss, &wrt)?;
    let after = graph.nodes().iter().filter(|node| of_teacher(&node.scope)).count();
    if before == 0 || before != after || wrt.len() != family.parameters().len() {
        return Err(format!("{before} nodes of the teacher, {after} with the gradient").into());
    }
    Ok(())
}

fn near(what: &str, got: f64, expected: f64, limit: f64) -> Result<(), Failed> {
    let difference = (got - expected).abs();
    if difference.is_nan() || difference > limit {
        return Err(format!("{what}: {got}, expected {expected} within {limit:e}").into());
    }
    Ok(())
}
