//! Whole runs in small: resumed, accumulated, interrupted, gone wrong.

#[path = "training/adapter.rs"]
mod adapter;
#[path = "training/adapters.rs"]
mod adapters;
#[path = "training/chats.rs"]
mod chats;
#[path = "training/codes.rs"]
mod codes;
#[path = "training/distill.rs"]
mod distill;
#[path = "training/frozen.rs"]
mod frozen;
#[path = "training/lesson.rs"]
mod lesson;
#[path = "training/micro.rs"]
mod micro;
#[path = "training/pieces.rs"]
mod pieces;
#[path = "training/prune.rs"]
mod prune;
#[path = "training/recover.rs"]
#[cfg(feature = "gpu")]
mod recover;
#[path = "training/recurrent.rs"]
mod recurrent;
#[path = "training/rows.rs"]
mod rows;
#[path = "training/second.rs"]
mod second;
#[path = "training/sequel.rs"]
mod sequel;

use kiln::graph::{Feeds, Graph};
use kiln::model::Mode;
use kiln::ops::Value;
#[cfg(feature = "gpu")]
use kiln::ops::matmul::{Form, MatmulEmit};
use kiln::ops::pointwise::PointwiseEmit;
use kiln::ops::reduce::ReduceEmit;
use kiln::tensor::{DType, Tensor, Type};
use kiln::train::job::{Step, family_of};
use kiln::train::metrics::{self, Line};
use kiln::train::recipe::{Clip, Decay, LossScale, Optimizer, Recipe, Rule};
use kiln::train::run::run;
use kiln::train::trainer::{Program, Settings, Trainer, Weight};
use kiln::train::{Beside, Error, Target};
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
        _ => None,
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

const LLAMA: [&str; 8] = [
    "model.family=llama",
    "model.heads=4",
    "model.kv_heads=2",
    "model.hidden=40",
    "model.vocabulary=64",
    "model.tie=true",
    "model.bias=false",
    "model.activation=silu",
];

#[test]
fn a_llama_learns_resumes_bit_for_bit_and_is_tuned_further_from_its_checkpoint() {
    for device in devices() {
        let root = tempfile::tempdir().unwrap();
        let (whole, parts, tuned) =
            (root.path().join("whole"), root.path().join("parts"), root.path().join("tuned"));
        train(recipe(&whole, device, &LLAMA), false).unwrap();
        train(recipe(&parts, device, &[&LLAMA[..], &["train.steps=5"]].concat()), false).unwrap();
        train(recipe(&parts, device, &LLAMA), true).unwrap();
        assert_eq!(losses(&whole), losses(&parts), "{device}");
        assert!(last_weights(&whole) == last_weights(&parts), "{device}: weights differ");
        let (first, last) = (losses(&whole)[0].1, losses(&whole)[11].1);
        assert!(last < 0.8 * first, "{device}: {first} to {last}");

        // A run stands for its newest checkpoint, which the recipe then names.
        let run = whole.display().to_string();
        let text = root.path().join("text.txt").display().to_string();
        let recipe = format!(
            "[model]\nload = {run:?}\n[data]\ntext = [{text:?}]\n[train]\nsteps = 3\nbatch = 4\nlearning_rate = 1e-3\n\
             [run]\ndevice = {device:?}\nfolder = {:?}\n",
            tuned.display().to_string()
        );
        train(Recipe::from_text(&recipe, "test", &[]).unwrap(), false).unwrap();
        assert!(losses(&tuned)[2].1 < 0.8 * first, "{device}: {:?}", losses(&tuned));
        let config = |folder: &Path, step: u64| {
            let file = folder.join(format!("checkpoints/step-{step:06}/config.json"));
            std::fs::read_to_string(file).unwrap()
        };
        assert_eq!(config(&whole, 12), config(&tuned, 3));
        let kept = std::fs::read_to_string(tuned.join("recipe.toml")).unwrap();
        assert!(kept.contains("whole/checkpoints/step-000012"), "{kept}");
    }
}

#[test]
fn an_encoder_learns_to_guess_hidden_letters_and_resumes_bit_for_bit() {
    for device in devices() {
        let root = tempfile::tempdir().unwrap();
        let (whole, parts) = (root.path().join("whole"), root.path().join("parts"));
        let bert = ["model.family=bert", "train.accumulate=2", "data.masking.whole_words=true"];
        train(recipe(&whole, device, &bert), false).unwrap();
        train(recipe(&parts, device, &[&bert[..], &["train.steps=5"]].concat()), false).unwrap();
        train(recipe(&parts, device, &bert), true).unwrap();
        assert_eq!(losses(&whole), losses(&parts), "{device}");
        assert!(last_weights(&whole) == last_weights(&parts), "{device}: weights differ");
        let losses = losses(&whole);
        let mean =
            |part: &[(u64, f64, f64)]| part.iter().map(|(_, loss, _)| loss).sum::<f64>() / part.len() as f64;
        assert!(mean(&losses[9..]) < 0.95 * mean(&losses[..3]), "{device}: {losses:?}");
    }
}

#[test]
fn a_vocabulary_below_the_tokenizers_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let small = recipe(&root.path().join("run"), "cpu", &["model.vocabulary=3"]);
    let error = train(small, false).unwrap_err().to_string();
    assert!(error.contains("`vocabulary` is 3, expected at least "), "{error}");
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
    Settings::new(Optimizer { rule, decay })
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
        let step = |accumulate: usize, scale: f64, batches: Vec<Feeds>| {
            let loss_scale = LossScale::Fixed(scale);
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
fn half_precision_is_close_to_single() {
    for device in devices() {
        let target = Target::open(device).unwrap();
        let run = |precision| {
            let settings = Settings { precision, ..settings(Rule::GradientDescent) };
            let mut trainer = Trainer::new(&target, &[vector("w", 8)], &square_loss, settings).unwrap();
            trainer.set_weights(|_, _| Ok(Tensor::f32([8], vec![1.0; 8]))).unwrap();
            trainer.submit(vec![batch(0.5)], 0.01).unwrap();
            trainer.collect(true).unwrap().unwrap().loss
        };
        let (single, half) = (run(DType::F32), run(DType::F16));
        assert!((half - single).abs() < 2e-3 * single, "{device}: {half} {single}");
    }
}

/// The mean square of what two matrices make of `x`.
#[cfg(feature = "gpu")]
fn two_matrices(graph: &mut Graph, _: Mode) -> kiln::train::Result<Value> {
    let (v, w) = (graph.parameter("v", Type::f32([8, 13])), graph.parameter("w", Type::f32([8, 13])));
    let x = graph.input("x", Type::f32([4, 8]));
    let y = graph.matmul(x, v)?;
    let y = graph.pointwise("tanh", &[y], 0.0)?;
    let y = graph.matmul_form(Form::Nt, y, w)?;
    let square = graph.pointwise("square", &[y], 0.0)?;
    Ok(graph.mean_all(square)?)
}

#[test]
#[cfg(feature = "gpu")]
fn an_adapter_without_16_bit_arithmetic_trains_with_operands_packed_in_words() {
    use kiln::gpu::{Gpu, Pipelines};
    let run = |device: &str, precision| {
        let mut gpu = Gpu::open(device).unwrap();
        gpu.listing.caps.f16 = false;
        let pipelines = Pipelines::new(&gpu);
        let target = Target::Gpu { gpu: gpu.into(), pipelines, told: Default::default(), anew: None };
        let settings = Settings { precision, ..settings(Rule::GradientDescent) };
        let matrix = |name: &str| Weight { name: name.into(), shape: [8, 13].into(), decays: false };
        let mut trainer =
            Trainer::new(&target, &[matrix("v"), matrix("w")], &two_matrices, settings).unwrap();
        let kernels: Vec<_> = trainer.plans().iter().flat_map(|p| &p.dispatches).map(|d| &d.kernel).collect();
        assert!(kernels.iter().all(|kernel| !kernel.needs_f16()));
        assert_eq!(kernels.iter().any(|kernel| kernel.shader == "cast_packed"), precision != DType::F32);
        let first = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 70.0;
        trainer.set_weights(|_, _| Ok(Tensor::f32([8, 13], (0..104).map(first).collect()))).unwrap();
        let mut losses = vec![];
        for _ in 0..20 {
            trainer.submit(vec![batch(0.5)], 0.05).unwrap();
            losses.push(trainer.collect(true).unwrap().unwrap().loss);
        }
        losses
    };
    for device in devices().into_iter().filter(|&device| device != "cpu") {
        let single = run(device, DType::F32);
        // Roundings add up over twenty steps of a loss that shrinks.
        for (storage, most) in [(DType::F16, 5e-3), (DType::BF16, 5e-2)] {
            let half = run(device, storage);
            assert!(half[19] < 0.9 * half[0], "{storage}: {half:?}");
            assert_ne!(half, single, "{storage}: nothing was rounded");
            for (a, b) in half.iter().zip(&single) {
                assert!((a - b).abs() < most * b, "{storage}: {a} {b}");
            }
        }
    }
}

/// Two layers' worth of vectors, the mean of whose product's square is the loss.
fn two_vectors(graph: &mut Graph, _: Mode) -> kiln::train::Result<Value> {
    let (v, w) = (graph.parameter("v", Type::f32([8])), graph.parameter("w", Type::f32([8])));
    let x = graph.input("x", Type::f32([4, 8]));
    let y = graph.mul(x, v)?;
    let y = graph.mul(y, w)?;
    let square = graph.pointwise("square", &[y], 0.0)?;
    Ok(graph.mean_all(square)?)
}

#[test]
fn weights_in_several_pages_are_trained_as_in_one() {
    let rules = [
        Rule::Adamw { betas: [0.9, 0.99], eps: 1e-8 },
        Rule::Lamb { betas: [0.9, 0.99], eps: 1e-6 },
        Rule::Sgd { momentum: 0.9, dampening: 0.0, nesterov: true },
    ];
    for (device, rule) in devices().into_iter().flat_map(|d| rules.map(|rule| (d, rule))) {
        let target = Target::open(device).unwrap();
        let run = |page_bytes, accumulate| {
            let mut settings = Settings { page_bytes, accumulate, clip: Clip::Norm(0.5), ..settings(rule) };
            settings.optimizer.decay = Decay { weight_decay: 0.1, decoupled: true, no_decay: vec![] };
            let weights = [vector("v", 8), Weight { decays: false, ..vector("w", 8) }];
            let mut trainer = Trainer::new(&target, &weights, &two_vectors, settings).unwrap();
            let first = |name: &str| if name == "v" { 0.5 } else { 1.5 };
            trainer.set_weights(|name, _| Ok(Tensor::f32([8], vec![first(name); 8]))).unwrap();
            let mut losses = vec![];
            for _ in 0..5 {
                trainer.submit(vec![batch(0.5); accumulate], 0.02).unwrap();
                losses.push(trainer.collect(true).unwrap().unwrap().loss);
            }
            let tensors = [trainer.weights().unwrap(), trainer.moments().unwrap()].concat();
            (losses, tensors.into_iter().flat_map(|(_, tensor)| tensor.to_f64()).collect::<Vec<_>>())
        };
        for accumulate in [1, 2] {
            let (one, pages) = (run(None, accumulate), run(Some(256), accumulate));
            assert!(one.0[4] < one.0[0], "{device} {rule:?}: {:?}", one.0);
            // The norm's sum has another order.
            let same = |a: &[f64], b: &[f64]| {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs())
            };
            assert!(same(&one.0, &pages.0) && same(&one.1, &pages.1), "{device} {rule:?} {one:?} {pages:?}");
        }
    }
}

#[test]
fn an_overflow_skips_one_step_and_lowers_the_scale_and_one_that_never_ends_stops_the_run() {
    let scale = |first| LossScale::Dynamic { first, growth: 2.0, backoff: 0.5, interval: 2 };
    for device in devices() {
        let target = Target::open(device).unwrap();
        let run = |loss_scale, batches: &[Feeds]| {
            let settings = Settings { loss_scale, ..settings(Rule::GradientDescent) };
            let mut trainer = Trainer::new(&target, &[vector("w", 8)], &square_loss, settings).unwrap();
            trainer.set_weights(|_, _| Ok(Tensor::f32([8], vec![1.0; 8]))).unwrap();
            let mut told = vec![];
            for batch in batches {
                trainer.submit(vec![batch.clone()], 0.01).unwrap();
                match trainer.collect(true) {
                    Ok(outcome) => {
                        let outcome = outcome.unwrap();
                        told.push((outcome.skipped, outcome.loss_scale.unwrap_or(1.0)));
                    }
                    Err(error) => return (told, trainer.weights().unwrap(), Some(error.to_string())),
                }
            }
            (told, trainer.weights().unwrap(), None)
        };
        let mut hot = batch(0.1);
        hot.set("x", Tensor::f32([4, 8], vec![1e19; 32]));
        let (good, plain) = (batch(0.1), run(LossScale::NONE, &[batch(0.1), batch(0.1)]));
        let (told, weights, _) = run(scale(8.0), &[hot.clone(), good.clone(), good.clone()]);
        assert_eq!(told, [(true, 4.0), (false, 4.0), (false, 8.0)], "{device}");
        assert_eq!(weights, plain.1, "{device}: the skipped step left the weights alone");
        let (told, weights, error) = run(scale(2.0), &[hot.clone(), hot.clone(), hot.clone()]);
        assert_eq!(told, [(true, 1.0)], "{device}");
        assert!(error.is_some_and(|e| e.contains("not finite") && e.contains("step 1")), "{device}");
        assert_eq!(weights[0].1.to_f64(), [1.0; 8], "{device}");
    }
}

#[test]
fn a_skipped_step_leaves_no_trace_in_the_updates_that_follow() {
    let rules = [
        Rule::Adam { betas: [0.9, 0.999], eps: 1e-8 },
        Rule::Adamw { betas: [0.9, 0.999], eps: 1e-8 },
        Rule::Lamb { betas: [0.9, 0.999], eps: 1e-6 },
        Rule::Sgd { momentum: 0.9, dampening: 0.4, nesterov: false },
    ];
    let mut hot = batch(0.1);
    hot.set("x", Tensor::f32([4, 8], vec![1e19; 32]));
    for (device, rule) in devices().into_iter().flat_map(|d| rules.map(|rule| (d, rule))) {
        let target = Target::open(device).unwrap();
        let run = |batches: &[&Feeds]| {
            let loss_scale = LossScale::Dynamic { first: 1024.0, growth: 2.0, backoff: 0.5, interval: 2000 };
            let settings = Settings { loss_scale, ..settings(rule) };
            let mut trainer = Trainer::new(&target, &[vector("w", 8)], &square_loss, settings).unwrap();
            trainer.set_weights(|_, _| Ok(Tensor::f32([8], vec![1.0; 8]))).unwrap();
            let mut skipped = 0;
            for batch in batches {
                trainer.submit(vec![(*batch).clone()], 0.01).unwrap();
                skipped += trainer.collect(true).unwrap().unwrap().skipped as usize;
            }
            (skipped, trainer.weights().unwrap()[0].1.to_f64())
        };
        let (one, other) = (batch(0.1), batch(-0.7));
        let (none, straight) = run(&[&one, &other, &one]);
        // At the very first steps, where Adam's correction is largest and momentum begins, and again later.
        let (four, skipping) = run(&[&hot, &hot, &one, &hot, &other, &hot, &one]);
        assert_eq!((none, four), (0, 4), "{device} {rule:?}");
        for (a, b) in straight.iter().zip(&skipping) {
            assert!((a - b).abs() < 1e-6, "{device} {rule:?}: {straight:?} {skipping:?}");
        }
    }
}

#[test]
fn a_gpt_trained_in_halves_learns_what_it_learns_in_singles_and_resumes_with_its_loss_scale() {
    for device in devices().into_iter().filter(|d| Target::open(d).unwrap().caps().f16) {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let scale = "precision.loss_scale={ first = 64.0, interval = 4 }";
        let half = ["precision.storage=f16", scale];
        train(recipe(&at("single"), device, &[]), false).unwrap();
        train(recipe(&at("half"), device, &half), false).unwrap();
        let (single, whole) = (losses(&at("single")), losses(&at("half")));
        for (one, other) in single.iter().zip(&whole) {
            assert!((one.1 - other.1).abs() < 0.01 * one.1, "{device}: {one:?} {other:?}");
            assert!((one.2 - other.2).abs() < 0.05 * one.2, "{device}: {one:?} {other:?}");
        }
        let scales: Vec<f64> = metrics::read(&at("half"))
            .unwrap()
            .iter()
            .filter_map(|line| if let Line::Step(step) = line { step.loss_scale } else { None })
            .collect();
        assert_eq!(scales.len(), 12);
        assert_eq!((scales[2], scales[3], scales[11]), (64.0, 128.0, 512.0), "it doubles every fourth step");
        let short = [&half[..], &["train.steps=5"]].concat();
        train(recipe(&at("part"), device, &short), false).unwrap();
        train(recipe(&at("part"), device, &half), true).unwrap();
        assert_eq!(losses(&at("part")), whole, "{device}");
        assert_eq!(last_weights(&at("part")), last_weights(&at("half")), "{device}");
    }
}

#[test]
fn what_is_computed_again_changes_no_bit_of_a_run_with_dropout_and_takes_less_memory() {
    for device in devices() {
        let root = tempfile::tempdir().unwrap();
        let held = |how: &str| {
            let folder = root.path().join(how);
            let sets = [format!("memory.recompute={how}"), "model.layers=4".to_string()];
            let mut said = String::new();
            let recipe = recipe(&folder, device, &[&sets[0], &sets[1], "run.save.every=20"]);
            run(recipe.clone(), false, &AtomicBool::new(false), &mut |line| said.push_str(line)).unwrap();
            assert_eq!(said.contains(&format!("recompute {how}: activations")), how != "none", "{said}");
            let family = family_of(&recipe, 30).unwrap();
            let beside = Beside::default();
            let Step { weights, settings, extent } = Step::new(&recipe, family.as_ref(), &beside).unwrap();
            let build = Step::loss(&recipe, family.as_ref(), &beside, extent);
            let program = Program::new(&Target::Host, &weights, &build, &settings).unwrap();
            program.plans().next().unwrap().1.slot_bytes() as f64
        };
        let [all, cheap, layers] = ["none", "cheap", "layers"].map(held);
        assert!(cheap < 0.75 * all && layers < 0.45 * all, "{all} {cheap} {layers}");
        for how in ["cheap", "layers"] {
            let [plain, again] = ["none", how].map(|how| root.path().join(how));
            assert_eq!(losses(&plain), losses(&again), "{device} {how}");
            assert!(last_weights(&plain) == last_weights(&again), "{device} {how}: weights differ");
        }
    }
}

#[test]
fn a_gpt_trained_with_operands_in_bf16_learns_what_it_learns_in_singles_and_resumes() {
    for device in devices() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let half = ["precision.storage=bf16"];
        train(recipe(&at("single"), device, &[]), false).unwrap();
        train(recipe(&at("half"), device, &half), false).unwrap();
        let (single, whole) = (losses(&at("single")), losses(&at("half")));
        assert_ne!(single, whole, "{device}: nothing was rounded");
        for (one, other) in single.iter().zip(&whole) {
            assert!((one.1 - other.1).abs() < 0.02 * one.1, "{device}: {one:?} {other:?}");
            assert!((one.2 - other.2).abs() < 0.1 * one.2, "{device}: {one:?} {other:?}");
        }
        train(recipe(&at("part"), device, &[half[0], "train.steps=5"]), false).unwrap();
        train(recipe(&at("part"), device, &half), true).unwrap();
        assert_eq!(losses(&at("part")), whole, "{device}");
        assert_eq!(last_weights(&at("part")), last_weights(&at("half")), "{device}");
    }
}
