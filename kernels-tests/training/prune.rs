//! Weights that are removed while a run goes on, and weights that stay removed.

use super::*;
use kiln::ops::matmul::{Form, MatmulEmit};
use kiln::tensor::mask::Mask;
use kiln::tensor::sparse::Scope;
use kiln::train::micro::need;
use kiln::train::recipe::{Method, Prune, Removal};

/// The mean square of what two matrices make of `x`, one stored as [in, out], one as [out, in].
fn two_layers(graph: &mut Graph, _: Mode) -> kiln::train::Result<Value> {
    let (v, w) = (graph.parameter("v", Type::f32([8, 13])), graph.parameter("w", Type::f32([8, 13])));
    let b = graph.parameter("b", Type::f32([13]));
    let x = graph.input("x", Type::f32([4, 8]));
    let y = graph.linear(Form::Nn, x, v, Some(b))?;
    let y = graph.pointwise("tanh", &[y], 0.0)?;
    let y = graph.matmul_form(Form::Nt, y, w)?;
    let square = graph.pointwise("square", &[y], 0.0)?;
    Ok(graph.mean_all(square)?)
}

fn weights() -> [Weight; 3] {
    let weight =
        |name: &str, shape: &[usize]| Weight { name: name.into(), shape: shape.into(), decays: true };
    [weight("v", &[8, 13]), weight("w", &[8, 13]), weight("b", &[13])]
}

/// Numbers of which every third is zero in matrices, and all in vectors.
fn first(shape: &kiln::tensor::Shape) -> Tensor {
    let value =
        |i: usize| if i % 3 == 1 || shape.len() == 1 { 0.0 } else { ((i * 37 % 101) as f32 - 49.5) / 70.0 };
    Tensor::f32(shape.clone(), (0..shape.count()).map(value).collect())
}

fn removal(method: Method, sparsity: f64) -> Removal {
    Removal {
        method,
        sparsity: Some(sparsity),
        pattern: None,
        initial: 0.0,
        begin: 1,
        end: 7,
        every: 2,
        scope: Scope::Layer,
        strength: (method == Method::L1).then_some(0.5),
        targets: vec!["*".into()],
        ignore: vec![],
    }
}

fn rules() -> [Rule; 6] {
    [
        Rule::GradientDescent,
        Rule::Sgd { momentum: 0.9, dampening: 0.0, nesterov: true },
        Rule::Sgd { momentum: 0.9, dampening: 0.3, nesterov: false },
        Rule::Adam { betas: [0.9, 0.99], eps: 1e-8 },
        Rule::Adamw { betas: [0.9, 0.99], eps: 1e-8 },
        Rule::Lamb { betas: [0.9, 0.99], eps: 1e-6 },
    ]
}

/// Trains two layers for some steps, looking at weights and moments after each.
fn follow(
    target: &Target,
    settings: Settings,
    steps: usize,
    mut look: impl FnMut(usize, &[(String, Tensor)], &[(String, Tensor)]),
) {
    let accumulate = settings.accumulate;
    let mut trainer = Trainer::new(target, &weights(), &two_layers, settings).unwrap();
    trainer.set_weights(|_, shape| Ok(first(shape))).unwrap();
    for step in 0..steps {
        let batches = (0..accumulate).map(|pass| batch(0.1 * (step + pass) as f32 - 0.4)).collect();
        trainer.submit(batches, 0.05).unwrap();
        trainer.collect(true).unwrap();
        look(step, &trainer.weights().unwrap(), &trainer.moments().unwrap());
    }
}

fn get<'a>(list: &'a [(String, Tensor)], name: &str) -> &'a [f32] {
    list.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1.real()
}

#[test]
fn what_is_zero_at_the_start_stays_zero_in_weights_and_moments_under_every_rule() {
    for (device, rule) in devices().into_iter().flat_map(|d| rules().map(|rule| (d, rule))) {
        let target = Target::open(device).unwrap();
        for (accumulate, clip) in [(1, Clip::Norm(0.1)), (2, Clip::Value(0.01))] {
            let prune = Some(Prune { keep_zeros: true, removal: None });
            let mut settings = Settings { prune, accumulate, clip, ..settings(rule) };
            let decoupled = !matches!(rule, Rule::Adam { .. } | Rule::GradientDescent);
            settings.optimizer.decay = Decay { weight_decay: 0.1, decoupled, no_decay: vec![] };
            follow(&target, settings, 4, |_, weights, moments| {
                for (name, before) in [("v", first(&[8, 13].into())), ("w", first(&[8, 13].into()))] {
                    let zeros = |list: &[f32]| list.iter().map(|x| *x == 0.0).collect::<Vec<_>>();
                    let expected = zeros(before.real());
                    assert_eq!(zeros(get(weights, name)), expected, "{device} {rule:?} {name}");
                    for (what, tensor) in moments.iter().filter(|(n, _)| n.starts_with(&format!("{name}.m")))
                    {
                        if !what.ends_with("mask") {
                            assert_eq!(zeros(tensor.real()), expected, "{device} {rule:?} {what}");
                        }
                    }
                }
                // Vectors are no layers: their zeros are only where they begin.
                assert!(get(weights, "b").iter().all(|x| *x != 0.0), "{device} {rule:?}");
            });
        }
    }
}

#[test]
fn magnitude_removes_by_the_schedule_and_nothing_returns_through_momentum_or_decay() {
    for (device, rule) in devices().into_iter().flat_map(|d| rules().map(|rule| (d, rule))) {
        let target = Target::open(device).unwrap();
        let removal = Removal { targets: vec!["w".into()], ..removal(Method::Magnitude, 0.6) };
        let due: Vec<Option<f64>> = (0..9).map(|step| removal.due(step)).collect();
        let prune = Some(Prune { keep_zeros: false, removal: Some(removal) });
        let mut settings = Settings { prune, ..settings(rule) };
        settings.optimizer.decay = Decay { weight_decay: 0.1, decoupled: true, no_decay: vec![] };
        let (mut gone, mut share): (Vec<usize>, f64) = (vec![], 0.0);
        follow(&target, settings, 9, |step, weights, moments| {
            share = due[step].unwrap_or(share);
            let zeros = |list: &[f32]| (0..104).filter(|&i| list[i] == 0.0).collect::<Vec<_>>();
            let now = zeros(get(weights, "w"));
            // A third is zero to begin with, and is free to move until it is removed.
            assert_eq!(now.len(), (share * 104.0) as usize, "{device} {rule:?} step {step}");
            assert!(gone.iter().all(|i| now.contains(i)), "{device} {rule:?} step {step}");
            for (what, tensor) in moments.iter().filter(|(n, _)| n.starts_with("w.moment")) {
                let zero = zeros(tensor.real());
                assert!(now.iter().all(|i| zero.contains(i)), "{device} {rule:?} {what} step {step}");
            }
            assert!(get(weights, "v").iter().all(|x| *x != 0.0), "{device} {rule:?}: not meant");
            gone = now;
        });
        assert_eq!(gone.len(), 62, "{device} {rule:?}");
    }
}

/// y = x W with the mean square as loss: its gradient is known.
fn one_layer(graph: &mut Graph, _: Mode) -> kiln::train::Result<Value> {
    let w = graph.parameter("w", Type::f32([8, 13]));
    let x = graph.input("x", Type::f32([4, 8]));
    let y = graph.linear(Form::Nn, x, w, None)?;
    let square = graph.pointwise("square", &[y], 0.0)?;
    Ok(graph.mean_all(square)?)
}

#[test]
fn movement_is_what_the_paper_says_step_by_step() {
    let removal = Removal { begin: 1, end: 9, every: 1, ..removal(Method::Movement, 0.5) };
    let rate = 0.05;
    // Dense weights, scores and mask in f64, by the formulas.
    let mut dense = first(&[8, 13].into()).to_f64();
    let gone: Vec<bool> = dense.iter().map(|w| *w == 0.0).collect();
    let (mut scores, mut mask) = (vec![0.0; 104], gone.clone());
    let (mut returned, mut expected) = (0, vec![]);
    for step in 0..12u64 {
        if let Some(share) = removal.due(step) {
            // [in, out] is looked at as [out, in]: of equal scores the first by that order goes first.
            let mut order: Vec<usize> = (0..104).map(|at| at % 8 * 13 + at / 8).collect();
            let key = |i: usize| if gone[i] { f64::NEG_INFINITY } else { scores[i] };
            order.sort_by(|&a, &b| key(a).total_cmp(&key(b)));
            let mut next = gone.clone();
            order[..(share * 104.0) as usize].iter().for_each(|&i| next[i] = true);
            returned += (0..104).filter(|&i| mask[i] && !next[i]).count();
            mask = next;
        }
        let x = batch(0.2 * step as f32 - 1.0).get("x").unwrap().to_f64();
        let masked: Vec<f64> =
            dense.iter().zip(&mask).map(|(w, gone)| if *gone { 0.0 } else { *w }).collect();
        let y = |m: usize, n: usize| (0..8).map(|k| x[m * 8 + k] * masked[k * 13 + n]).sum::<f64>();
        let gradient: Vec<f64> = (0..104)
            .map(|i| 2.0 / 52.0 * (0..4).map(|m| x[m * 8 + i / 13] * y(m, i % 13)).sum::<f64>())
            .collect();
        for i in 0..104 {
            scores[i] -= dense[i] * gradient[i];
            dense[i] -= if mask[i] { 0.0 } else { rate * gradient[i] };
        }
        let weight = |i: usize| if mask[i] { 0.0 } else { dense[i] };
        expected = (0..104).map(weight).collect();
    }
    assert!(returned > 0, "nothing returned: the test says nothing about that");
    for device in devices() {
        let target = Target::open(device).unwrap();
        for accumulate in [1, 2] {
            let prune = Some(Prune { keep_zeros: true, removal: Some(removal.clone()) });
            let loss_scale = LossScale::Fixed(64.0);
            let settings = Settings { prune, accumulate, loss_scale, ..settings(Rule::GradientDescent) };
            let mut trainer = Trainer::new(&target, &weights()[1..2], &one_layer, settings).unwrap();
            trainer.set_weights(|_, shape| Ok(first(shape))).unwrap();
            for step in 0..12 {
                trainer.submit(vec![batch(0.2 * step as f32 - 1.0); accumulate], rate).unwrap();
                trainer.collect(true).unwrap();
            }
            let got = trainer.weights().unwrap().remove(0).1.to_f64();
            for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                assert!((got - expected).abs() < 1e-5, "{device} {i}: {got} {expected}");
            }
            assert!((trainer.removed().unwrap() - 0.5).abs() < 1e-9);
        }
    }
}

#[test]
fn an_l1_term_makes_exact_zeros_under_every_rule_which_stay_from_its_end_on() {
    for (device, rule) in devices().into_iter().flat_map(|d| rules().map(|rule| (d, rule))) {
        let target = Target::open(device).unwrap();
        let removal = Removal { sparsity: None, targets: vec!["v".into()], ..removal(Method::L1, 0.0) };
        let prune = Some(Prune { keep_zeros: false, removal: Some(removal) });
        let settings = Settings { prune, ..settings(rule) };
        let mut counts = vec![];
        follow(&target, settings, 12, |_, weights, _| {
            counts.push(get(weights, "v").iter().filter(|x| **x == 0.0).count());
        });
        assert!(counts[6] > 20, "{device} {rule:?}: {counts:?}");
        assert!(counts[6..].iter().all(|count| *count == counts[6]), "{device} {rule:?}: {counts:?}");
    }
}

const PRUNED: [&str; 1] = ["prune.keep_zeros=true"];

/// A trained model of 64 channels and the same with half of the weights of its layers at zero, in folders.
fn models(root: &Path) -> [String; 2] {
    let whole = root.join("whole");
    train(recipe(&whole, "cpu", &["model.width=64", "train.learning_rate.peak=5e-3"]), false).unwrap();
    let whole = whole.join("checkpoints/step-000012");
    let family = kiln::model::open(&whole).unwrap();
    let mut weights = kiln::model::Weights::read(&whole, family.as_ref()).unwrap();
    let names: Vec<String> = weights.iter().map(|(name, _)| name.to_string()).collect();
    for name in names.into_iter().filter(|name| is_layer(name)) {
        let mut tensor = weights.get(&name).unwrap().clone();
        // Half of each row and of each column.
        let cols = tensor.shape[1];
        let halved = |i: usize| (i / cols + i % cols).is_multiple_of(2);
        tensor
            .real_mut::<f32>()
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| halved(*i))
            .for_each(|(_, x)| *x = 0.0);
        weights.set(name, tensor);
    }
    let pruned = root.join("pruned");
    weights.save(&pruned, family.as_ref()).unwrap();
    std::fs::copy(whole.join("tokenizer.json"), pruned.join("tokenizer.json")).unwrap();
    [whole, pruned].map(|folder| folder.display().to_string())
}

fn is_layer(name: &str) -> bool {
    name.ends_with(".weight") && (name.contains(".c_") || name.contains("lm_head"))
}

/// A recipe that trains a loaded model on.
fn further(folder: &Path, device: &str, model: &str, sets: &[&str]) -> Recipe {
    let text = folder.parent().unwrap().join("text.txt").display().to_string();
    let base = format!(
        "[model]\nload = {model:?}\n[data]\ntext = [{text:?}]\n[train]\nsteps = 12\nbatch = 4\ncontext = 16\nseed = 7\n\
         learning_rate = 5e-3\nevaluate = {{ every = 6, batches = 2 }}\n[run]\ndevice = {device:?}\nfolder = {:?}\n\
         save = {{ every = 5, keep = 3 }}\n",
        folder.display().to_string()
    );
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Recipe::from_text(&base, "test", &sets).unwrap()
}

/// Share of the layers' weights that are zero, and whether all are that were in another folder.
fn zeros(folder: &Path, of: &str) -> (f64, bool) {
    let family = kiln::model::open(folder).unwrap();
    let [now, before] =
        [folder, Path::new(of)].map(|folder| kiln::model::Weights::read(folder, family.as_ref()).unwrap());
    let (mut removed, mut all, mut kept) = (0, 0, true);
    for (name, tensor) in now.iter().filter(|(name, _)| is_layer(name)) {
        let cols = tensor.shape[1];
        let mask = Mask::of_zeros(tensor.real(), cols);
        kept &= mask.covers(&Mask::of_zeros(before.get(name).unwrap().real(), cols));
        (removed, all) = (removed + mask.count_removed(), all + tensor.shape.count());
    }
    (removed as f64 / all as f64, kept)
}

#[test]
fn zeros_stay_in_whatever_types_a_run_holds_and_computes_and_beside_a_teacher() {
    let root = tempfile::tempdir().unwrap();
    let [whole, pruned] = models(root.path());
    let teacher = format!("distill.teacher={whole}");
    for device in devices() {
        for (number, sets) in [
            &[][..],
            &["precision.states=8bit"],
            &["precision.weights=bf16"],
            &["precision.weights=int8", "precision.states=8bit"],
            &["precision.storage=bf16"],
            &["precision.int8=[\"forward\", \"input_gradient\", \"weight_gradient\"]"],
            &["quantize.scheme=int4-g16", "quantize.learned_step=true"],
            &["quantize.scheme=int4-g32-asym"],
            &["quantize.scheme=W8A8", "precision.states=8bit"],
            &["train.micro_batch=2", "memory.recompute=layers"],
            &[teacher.as_str()],
            &[teacher.as_str(), "quantize.scheme=int4-g32"],
        ]
        .into_iter()
        .enumerate()
        {
            let folder = root.path().join(format!("{device}-{number}"));
            let sets = [&PRUNED[..], sets].concat();
            train(further(&folder, device, &pruned, &sets), false).unwrap();
            let (share, kept) = zeros(&folder.join("checkpoints/step-000012"), &pruned);
            assert!(kept && share < 0.52, "{device} {sets:?}: {share}");
            let all = losses(&folder);
            assert!(all[11].1 < 0.97 * all[0].1, "{device} {sets:?}: {} to {}", all[0].1, all[11].1);
        }
        // What the runs above prove they prove since it is not so by itself.
        let folder = root.path().join(format!("{device}-free"));
        train(further(&folder, device, &pruned, &[]), false).unwrap();
        assert!(zeros(&folder.join("checkpoints/step-000012"), &pruned).0 < 0.01);
    }
}

#[test]
fn runs_that_prune_resume_bit_for_bit_and_end_as_sparse_as_they_should() {
    let root = tempfile::tempdir().unwrap();
    let [whole, pruned] = models(root.path());
    let half = "prune.sparsity=0.5";
    for (model, least, sets) in [
        (&whole, 0.5, &[half, "prune.begin=2", "prune.end=9", "prune.every=2"][..]),
        (&whole, 0.5, &[half, "prune.scope=global", "prune.end=7", "quantize.scheme=int4-g32"]),
        (&whole, 0.5, &["prune.pattern=2:4", "prune.every=3", "prune.end=8"]),
        (&pruned, 0.75, &["prune.sparsity=0.75", "prune.scope=row", "prune.initial=0.5", "prune.end=8"]),
        (&whole, 0.5, &["prune.method=movement", half, "prune.begin=1", "prune.end=8", "prune.every=3"]),
        (&pruned, 0.6, &["prune.method=movement", "prune.sparsity=0.6", "prune.begin=1", "prune.end=8"]),
        (&whole, 0.5, &["prune.method=l1", "prune.strength=0.2", half, "prune.end=7"]),
    ] {
        for device in devices() {
            let name = format!("{device}-{}", sets.join(","));
            let (once, again) = (root.path().join(format!("{name}-once")), root.path().join(name));
            train(further(&once, device, model, sets), false).unwrap();
            train(further(&again, device, model, sets), false).unwrap();
            // Steps behind the checkpoint of step 5 are made once more, choices of masks among them.
            for step in ["step-000010", "step-000012"] {
                std::fs::remove_dir_all(again.join("checkpoints").join(step)).unwrap();
            }
            train(further(&again, device, model, sets), true).unwrap();
            assert_eq!(losses(&once), losses(&again), "{device} {sets:?}");
            assert!(last_weights(&once) == last_weights(&again), "{device} {sets:?}: weights differ");
            let (share, kept) = zeros(&once.join("checkpoints/step-000012"), model);
            assert!(kept && share > least - 0.002 && share < least + 0.03, "{device} {sets:?}: {share}");
            let weights = String::from_utf8_lossy(&last_weights(&once)).into_owned();
            assert!(!weights.contains(".mask") && !weights.contains(".scores"), "{sets:?}");
        }
    }
}

#[test]
fn masks_take_a_bit_of_each_weight_and_what_movement_needs_eight_bytes() {
    let root = tempfile::tempdir().unwrap();
    let masks = |sets: &[&str]| {
        let recipe = recipe(&root.path().join("run"), "cpu", &[&["model.width=64"], sets].concat());
        let family = family_of(&recipe, 30).unwrap();
        need(&recipe, family.as_ref(), &Beside::default(), &Target::Host).unwrap().masks
    };
    let layers = 12 * 64 * 64;
    assert_eq!((masks(&[]), masks(&["prune.sparsity=0.5", "prune.keep_zeros=false"])), (0, layers / 8));
    let movement = masks(&["prune.sparsity=0.5", "prune.method=movement", "prune.keep_zeros=false"]);
    assert_eq!(movement, layers / 8 + 8 * layers);
}

#[test]
fn what_cannot_be_pruned_is_told_before_a_step_is_made() {
    let root = tempfile::tempdir().unwrap();
    let [whole, pruned] = models(root.path());
    let refused = |model: &str, sets: &[&str], parts: &[&str]| {
        let folder = root.path().join("refused");
        let error = train(further(&folder, "cpu", model, sets), false).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{sets:?}: {error}");
        assert!(!folder.join("checkpoints/step-000005").exists());
    };
    refused(&whole, &["prune.pattern=3:5"], &["c_attn.weight", "no whole groups of 3:5", "hint"]);
    refused(&whole, &["prune.sparsity=0.5", "prune.targets=[\"*.q_proj.*\"]"], &["q_proj", "c_attn.weight"]);
    // A layer of which all is zero has nothing that could be trained.
    let family = kiln::model::open(Path::new(&whole)).unwrap();
    let mut weights = kiln::model::Weights::read(Path::new(&whole), family.as_ref()).unwrap();
    let name = "transformer.h.0.mlp.c_fc.weight";
    for (scale, sets) in
        [(0.0, &["prune.keep_zeros=true"][..]), (1e-6, &["prune.sparsity=0.5", "prune.scope=global"])]
    {
        let mut tensor = weights.get(name).unwrap().clone();
        tensor.real_mut::<f32>().iter_mut().for_each(|x| *x *= scale);
        let before = weights.get(name).unwrap().clone();
        weights.set(name, tensor);
        let folder = root.path().join(format!("scaled-{scale}"));
        weights.save(&folder, family.as_ref()).unwrap();
        let tokenizer = "tokenizer.json";
        std::fs::copy(Path::new(&pruned).join(tokenizer), folder.join(tokenizer)).unwrap();
        refused(&folder.display().to_string(), sets, &[name, "would be left", "hint"]);
        weights.set(name, before);
    }
}
