//! Whole runs in small: resumed, accumulated, interrupted, gone wrong.

use kiln::graph::{Feeds, Graph};
use kiln::model::Mode;
use kiln::ops::Value;
use kiln::ops::pointwise::PointwiseEmit;
use kiln::ops::reduce::ReduceEmit;
use kiln::tensor::{DType, Tensor, Type};
use kiln::train::metrics::{self, Line};
use kiln::train::recipe::{Clip, Decay, Optimizer, Recipe, Rule};
use kiln::train::run::run;
use kiln::train::trainer::{Settings, Trainer, Weight};
use kiln::train::{Error, Target};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// The adapter where there is one; the host is tested besides.
fn devices() -> Vec<&'static str> {
    let adapter = Target::open("gpu").is_ok();
    assert!(
        adapter || std::env::var_os("KILN_REQUIRE_GPU").is_none(),
        "an adapter is required, none was found"
    );
    if adapter { vec!["cpu", "gpu"] } else { vec!["cpu"] }
}

fn recipe(folder: &Path, device: &str, sets: &[&str]) -> Recipe {
    let text = folder.parent().unwrap().join("text.txt");
    if !text.exists() {
        let line = |i: usize| format!("{i} sheep jump over the {} fence.\n", ["red", "green", "old"][i % 3]);
        std::fs::write(&text, (0..150).map(line).collect::<String>()).unwrap();
    }
    let base = format!(
        "[model]\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\ndropout = 0.2\n\
         [data]\ntext = [{:?}]\n[train]\nsteps = 12\nbatch = 4\ncontext = 16\nseed = 7\n\
         learning_rate = {{ curve = \"cosine\", peak = 1e-2, floor = 1e-3, warmup = 3, until = 12 }}\n\
         evaluate = {{ every = 6, batches = 2 }}\n[run]\ndevice = {device:?}\nfolder = {:?}\nsave = {{ every = 5, keep = 2 }}\n",
        text.display().to_string(),
        folder.display().to_string()
    );
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Recipe::from_text(&base, "test", &sets).unwrap()
}

fn train(recipe: Recipe, resume: bool) -> Result<kiln::train::run::Summary, Error> {
    run(recipe, resume, &AtomicBool::new(false), &mut |_| {})
}

fn losses(folder: &Path) -> Vec<(u64, f64, f64)> {
    let step = |line: &Line| match line {
        Line::Step(s) => Some((s.step, s.loss, s.grad_norm)),
        Line::Evaluation(_) => None,
    };
    metrics::read(folder).unwrap().iter().filter_map(step).collect()
}

fn last_weights(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("checkpoints/step-000012/model.safetensors")).unwrap()
}

#[test]
fn resuming_equals_never_stopping_bit_for_bit_in_mid_epoch_with_dropout() {
    for device in devices() {
        for accumulate in ["train.accumulate=1", "train.accumulate=2"] {
            let root = tempfile::tempdir().unwrap();
            let (whole, parts) = (root.path().join("whole"), root.path().join("parts"));
            train(recipe(&whole, device, &[accumulate]), false).unwrap();
            train(recipe(&parts, device, &[accumulate, "train.steps=5"]), false).unwrap();
            // Everything after the checkpoint at step 5 comes from the resumed process.
            train(recipe(&parts, device, &[accumulate]), true).unwrap();
            assert_eq!(losses(&whole), losses(&parts), "{device} {accumulate}");
            assert!(last_weights(&whole) == last_weights(&parts), "{device} {accumulate}: weights differ");
        }
    }
}

#[test]
fn a_folder_with_a_run_in_it_is_not_written_over() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    train(recipe(&folder, "cpu", &[]), false).unwrap();
    let error = train(recipe(&folder, "cpu", &[]), false).unwrap_err().to_string();
    assert!(error.contains("--resume"), "{error}");
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_last_good_one() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    train(recipe(&folder, "cpu", &[]), false).unwrap();
    let newest = folder.join("checkpoints/step-000012/model.safetensors");
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    let mut said = String::new();
    let longer = recipe(&folder, "cpu", &["train.steps=13"]);
    run(longer, true, &AtomicBool::new(false), &mut |line| said.push_str(line)).unwrap();
    assert!(said.contains("damaged checkpoint") && said.contains("after step 10"), "{said}");
}

#[test]
fn a_model_that_cannot_fit_is_refused_before_anything_is_made_for_it() {
    let root = tempfile::tempdir().unwrap();
    let wide = ["model.layers=8", "model.width=1000000"];
    for device in devices() {
        let error = train(recipe(&root.path().join("run"), device, &wide), false).unwrap_err();
        // A GPU may not tell its memory; then the largest binding speaks first.
        let text = error.to_string();
        assert!(text.contains("the device has") || text.contains("binding limit"), "{device}: {text}");
        assert!(text.contains("hint"), "{text}");
    }
}

#[test]
fn an_interrupted_run_saves_what_it_has() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    let summary = run(recipe(&folder, "cpu", &[]), false, &AtomicBool::new(true), &mut |_| {}).unwrap();
    assert!(summary.interrupted && summary.steps == 0);
    assert!(folder.join("checkpoints/step-000000/manifest.json").exists());
}

fn settings(rule: Rule) -> Settings {
    let decay = Decay { weight_decay: 0.0, decoupled: false, no_decay: vec![] };
    let optimizer = Optimizer { rule, decay };
    Settings {
        optimizer,
        clip: Clip::None,
        accumulate: 1,
        precision: DType::F32,
        loss_scale: 1.0,
        seed: 0,
        choices: None,
    }
}

fn vector(name: &str, count: usize) -> Weight {
    Weight { name: name.into(), shape: [count].into(), decays: true }
}

/// mean((x * w)^2), so that the loss grows without bound along w.
fn square_loss(graph: &mut Graph, _: Mode) -> kiln::train::Result<Value> {
    let w = graph.parameter("w", Type::f32([8]));
    let x = graph.input("x", Type::f32([4, 8]));
    let y = graph.within("model", |graph| graph.mul(x, w))?;
    let square = graph.pointwise("square", &[y], 0.0)?;
    Ok(graph.mean_all(square)?)
}

fn batch(value: f32) -> Feeds {
    Feeds::new().with("x", Tensor::f32([4, 8], (0..32).map(|i| value + 0.1 * i as f32).collect()))
}

#[test]
fn two_half_batches_give_the_step_of_their_mean() {
    for device in devices() {
        let target = Target::open(device).unwrap();
        let step = |accumulate: usize, loss_scale: f32, batches: Vec<Feeds>| {
            let settings = Settings { accumulate, loss_scale, ..settings(Rule::GradientDescent) };
            let mut trainer = Trainer::new(&target, &[vector("w", 8)], &square_loss, settings).unwrap();
            trainer.set_weights(|_, _| Ok(Tensor::f32([8], vec![1.0; 8]))).unwrap();
            trainer.submit(batches, 0.01).unwrap();
            let loss = trainer.collect(true).unwrap().unwrap().loss;
            (loss, trainer.weights().unwrap().remove(0).1.to_f64())
        };
        let (one, other) = (step(1, 1.0, vec![batch(0.5)]), step(1, 1.0, vec![batch(-1.0)]));
        let both = step(2, 1.0, vec![batch(0.5), batch(-1.0)]);
        let scaled = step(2, 1024.0, vec![batch(0.5), batch(-1.0)]);
        assert!((both.0 - (one.0 + other.0) / 2.0).abs() < 1e-6);
        for i in 0..8 {
            assert!((both.1[i] - (one.1[i] + other.1[i]) / 2.0).abs() < 1e-6, "{device}");
            assert!(
                (both.1[i] - scaled.1[i]).abs() < 1e-6,
                "{device}: a loss scale must not change the step"
            );
        }
    }
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_before_its_update_and_names_the_operator() {
    for device in devices() {
        let target = Target::open(device).unwrap();
        let adam = Rule::Adam { betas: [0.9, 0.99], eps: 1e-8 };
        let mut trainer = Trainer::new(&target, &[vector("w", 8)], &square_loss, settings(adam)).unwrap();
        trainer.set_weights(|_, _| Ok(Tensor::f32([8], vec![1.0; 8]))).unwrap();
        trainer.submit(vec![batch(0.1)], 0.1).unwrap();
        trainer.collect(true).unwrap();
        let before = trainer.weights().unwrap();
        let mut bad = batch(0.1);
        bad.set("x", Tensor::f32([4, 8], vec![3e38; 32]));
        trainer.submit(vec![bad], 0.1).unwrap();
        // A step that follows before the host has seen the first must not move the weights either.
        trainer.submit(vec![batch(0.1)], 0.1).unwrap();
        let error = trainer.collect(true).unwrap_err();
        assert!(matches!(&error, Error::NotFinite { step: 1, .. }), "{device}: {error}");
        let text = error.to_string();
        assert!(text.contains("mul") || text.contains("pointwise") || text.contains("square"), "{text}");
        assert_eq!(before, trainer.weights().unwrap(), "{device}");
    }
}

#[test]
fn half_precision_is_refused_where_there_is_none_and_close_to_single_where_there_is() {
    for device in devices() {
        let target = Target::open(device).unwrap();
        let run = |precision| {
            let settings = Settings { precision, ..settings(Rule::GradientDescent) };
            let mut trainer = Trainer::new(&target, &[vector("w", 8)], &square_loss, settings)?;
            trainer.set_weights(|_, _| Ok(Tensor::f32([8], vec![1.0; 8])))?;
            trainer.submit(vec![batch(0.5)], 0.01)?;
            Ok::<f64, Error>(trainer.collect(true)?.unwrap().loss)
        };
        let single = run(DType::F32).unwrap();
        match run(DType::F16) {
            Ok(half) => assert!((half - single).abs() < 2e-3 * single, "{device}: {half} {single}"),
            Err(error) => assert!(!target.caps().f16 && error.to_string().contains("SHADER_F16"), "{error}"),
        }
    }
}
