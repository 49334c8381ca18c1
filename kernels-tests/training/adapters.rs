//! Whole runs that train adapters: resumed, held against a dense referee, merged, counted, refused.

use super::adapter::Dense;
use super::{devices, losses, recipe, train};
use kiln::adapt::{self, Adapter, Hold, Layers};
use kiln::exchange;
use kiln::graph::Graph;
use kiln::model::{Extent, Family, Mode, Weights};
use kiln::passes::Pass;
use kiln::tensor::Tensor;
use kiln::train::job::{Job, Step, family_of};
use kiln::train::program::Memory;
use kiln::train::recipe::Recipe;
use kiln::train::trainer::{Trainer, Weight};
use kiln::train::{Beside, Error, Frozen, Target, micro};
use std::path::Path;

/// Two adapters of different kinds, and norms that are trained whole.
const SEVERAL: &str = "adapter=[\
    { name = \"first\", rank = 2, targets = [\"c_attn\", \"c_fc\"], dropout = 0.1, whole = [\"*.ln_1.*\"], base = \"nf4\" }, \
    { name = \"second\", rank = 3, targets = [\"c_fc\"], rank_stabilized = true, alpha = 3.0, base = \"nf4\" }, \
    { name = \"third\", kind = \"dora\", targets = [\"*.mlp.c_proj.weight\"], dropout = 0.2, base = \"nf4\" }]";

const LORA: &str = "adapter={ rank = 4, alpha = 8.0, dropout = 0.1 }";
const DORA: &str = "adapter={ kind = \"dora\", rank = 4, dropout = 0.1, base = \"int8\" }";

fn files_of(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let folder = folder.join("checkpoints/step-000012");
    let all = ["", "first/", "second/", "third/"].map(|place| format!("{place}adapter_model.safetensors"));
    let read = |name: String| Some((name.clone(), std::fs::read(folder.join(name)).ok()?));
    all.into_iter().filter_map(read).collect()
}

#[test]
fn a_run_of_adapters_is_resumed_bit_for_bit() {
    let root = tempfile::tempdir().unwrap();
    for device in devices() {
        for (case, set) in [LORA, DORA, SEVERAL].into_iter().enumerate() {
            let folder = |name: &str| root.path().join(format!("{device}-{case}-{name}"));
            let (whole, parts) = (folder("whole"), folder("parts"));
            train(recipe(&whole, device, &[set]), false).unwrap();
            train(recipe(&parts, device, &[set, "train.steps=5"]), false).unwrap();
            train(recipe(&parts, device, &[set]), true).unwrap();
            assert_eq!(losses(&whole), losses(&parts), "{device} {case}");
            let files = files_of(&whole);
            assert_eq!(files.len(), [1, 1, 3][case]);
            assert!(files == files_of(&parts), "{device} {case}: adapters differ");
            let all = losses(&whole);
            assert!(all[11].1 < all[0].1, "{device} {case}: nothing was learnt: {all:?}");
        }
    }
}

/// The losses of a recipe's steps with its adapters, as a run trains them and as a dense referee does.
fn curves(recipe: &Recipe, device: &str, steps: usize) -> [Vec<f64>; 2] {
    let target = Target::open(device).unwrap();
    let job = Job::prepare(recipe.clone(), None).unwrap();
    let adapters = job.beside.adapters.as_ref().unwrap();
    let extent = job.extent();
    let go = |mut trainer: Trainer| {
        let mut sampler = job.sampler().unwrap();
        let mut losses = vec![];
        for step in 0..steps {
            let batch = sampler.next_batch().unwrap();
            let groups = kiln::data::groups::sorted_positions(&batch.tokens, job.family.vocabulary());
            let cursor = sampler.cursor();
            let prepared = kiln::data::prefetch::Prepared { batch, groups, cursor };
            trainer.submit(vec![job.training_feeds(prepared, step as u64, 0).unwrap()], 0.003).unwrap();
            losses.push(trainer.collect(true).unwrap().unwrap().loss);
        }
        losses
    };
    let narrow = go(job.trainer(&target).unwrap());
    let Step { weights, mut settings, .. } = Step::new(recipe, job.family.as_ref(), &job.beside).unwrap();
    // Magnitudes of the referee are a column.
    let column = |weight: Weight| match weight.name.contains("magnitude") {
        true => Weight { shape: [weight.shape[0], 1].into(), ..weight },
        false => weight,
    };
    let weights: Vec<Weight> = weights.into_iter().map(column).collect();
    let base = kiln::model::initial(&job.family.parameters(), recipe.train.seed);
    let held = adapt::hold(base, job.family.as_ref(), adapters.hold).unwrap().widened();
    let whole = |name: &str| weights.iter().any(|weight| weight.name == name);
    settings.frozen = Frozen::of(&held.without(whole), "");
    let build = |graph: &mut Graph, mode: Mode| {
        let mut plain = Graph::new();
        let loss = kiln::train::job::language_loss(job.family.as_ref(), &mut plain, extent, mode, 0.0)?;
        plain.output("loss", loss);
        for (number, adapter) in adapters.list.iter().enumerate() {
            plain = Dense(adapter.pass(number, false)).rewrite(&plain)?;
        }
        let map = graph.bring(&plain, "")?;
        Ok(map[plain.result("loss").unwrap().index()])
    };
    let mut trainer = Trainer::new(&target, &weights, &build, settings).unwrap();
    let first = |name: &str, shape: &kiln::tensor::Shape| {
        Ok(adapters.first.get(name)?.clone().reshaped(shape.clone()).unwrap())
    };
    trainer.set_weights(first).unwrap();
    [narrow, go(trainer)]
}

#[test]
fn the_curve_of_losses_is_that_of_a_dense_referee() {
    let root = tempfile::tempdir().unwrap();
    let llama = ["model.family=llama", "model.hidden=24", "model.layers=2"];
    for device in devices() {
        for (kind, base, family) in [
            ("lora", "f32", "gpt2"),
            ("lora", "nf4", "llama"),
            ("lora", "f16", "llama"),
            ("dora", "f32", "llama"),
            ("dora", "nf4", "gpt2"),
            ("dora", "int8", "gpt2"),
        ] {
            let folder = root.path().join(format!("{device}-{kind}-{base}-{family}"));
            std::fs::create_dir(&folder).unwrap();
            let whole = if family == "gpt2" { "*.ln_*" } else { "*norm*" };
            let adapter = format!(
                "adapter={{ kind = \"{kind}\", rank = 4, base = \"{base}\", whole = [\"{whole}\"] }}"
            );
            let family_sets = if family == "gpt2" { &[][..] } else { &llama };
            let sets = [family_sets, &["model.dropout=0.0", &adapter]].concat();
            let [narrow, dense] = curves(&recipe(&folder, device, &sets), device, 30);
            let off = narrow.iter().zip(&dense).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-4, "{device} {family} {kind} on {base}: off by {off}: {narrow:?} {dense:?}");
            assert!(narrow[29] < narrow[0] - 0.02, "{device} {family}: nothing was learnt: {narrow:?}");
        }
    }
}

/// Scores of a model of one short text.
fn logits(family: &dyn Family, weights: &Weights) -> Vec<f64> {
    let extent = Extent { batch: 1, context: 16 };
    let deployment = kiln::deploy::Deployment::new(weights);
    let graph = deployment
        .graph(family, extent, Mode::Evaluate, |graph, forward| {
            graph.output("logits", forward.logits);
            Ok(())
        })
        .unwrap();
    let (mut engine, _) = deployment.engine(&Target::Host, &[graph]).unwrap();
    let tokens = Tensor::u32([1, 16], (0..16).map(|i| i * 7 % family.vocabulary() as u32).collect());
    engine.run(0, &[&tokens]).unwrap()[0].to_f64()
}

fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn merged_weights_say_what_the_adapters_said_and_give_the_base_back() {
    let root = tempfile::tempdir().unwrap();
    for (case, set) in [LORA, DORA, SEVERAL].into_iter().enumerate() {
        let folder = root.path().join(case.to_string());
        let sets = [set, "train.learning_rate={ curve = \"constant\", peak = 0.05 }"];
        let checkpoint = train(recipe(&folder, "cpu", &sets), false).unwrap().checkpoint.unwrap();
        let parts = || exchange::parts(&checkpoint, &[]).unwrap().unwrap();
        let plain = parts().base;
        let merged = exchange::open(&checkpoint).unwrap();
        assert!(merged.weights.stored().all(|(name, _)| {
            parts().loaded.adapters.iter().all(|a| a.layers.iter().all(|layer| layer.linear.weight != name))
        }));
        let beside = beside(&checkpoint);
        let [of_base, of_merged] =
            [&plain, &merged].map(|model| logits(model.family.as_ref(), &model.weights));
        let of_adapters = logits(beside.0.as_ref(), &beside.1);
        assert!(worst(&of_base, &of_merged) > 0.01, "{case}: the adapters change nothing");
        let off = worst(&of_merged, &of_adapters);
        assert!(off < 1e-4, "{case}: merging changes scores by {off}");
        // What evaluates and generates takes one of the two.
        let to_run = exchange::open_to_run(&checkpoint, &[]).unwrap();
        assert!(worst(&of_merged, &logits(to_run.family.as_ref(), &to_run.weights)) < 1e-4, "{case}");

        let place = root.path().join(format!("{case}-merged"));
        merged.weights.save(&place, merged.family.as_ref()).unwrap();
        let again = exchange::parts(&place, std::slice::from_ref(&checkpoint)).unwrap().unwrap().unmerged();
        if case > 0 {
            let error = again.unwrap_err().to_string();
            assert!(error.contains("keep the model from before the merge"), "{error}");
            continue;
        }
        let again = again.unwrap();
        for (name, tensor) in plain.weights.widened().iter() {
            let off = worst(&tensor.to_f64(), &again.weights.get(name).unwrap().to_f64());
            assert!(off < 1e-6, "{name} is off by {off}");
        }
        assert!(worst(&of_base, &logits(again.family.as_ref(), &again.weights)) < 1e-5);
    }
}

/// The model with its adapters beside its weights, however those are held.
fn beside(checkpoint: &Path) -> (Box<dyn Family>, Weights) {
    let parts = exchange::parts(checkpoint, &[]).unwrap().unwrap();
    let adapt::Loaded { adapters, factors } = parts.loaded;
    // What is trained whole takes the place of what it was.
    let mut weights = adapt::with_squares(parts.base.weights, &adapters).unwrap();
    weights.extend(factors);
    (Box::new(adapt::Adapted::new(parts.base.family, adapters)), weights)
}

/// A recipe of SmolLM2-135M's shape, 512 tokens at a time, on the host.
fn smollm(sets: &[&str]) -> Recipe {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let text = "[model]\npreset = \"smollm2-135m\"\n[train]\nbatch = 1\ncontext = 512\n\
                optimizer = { kind = \"adamw\" }\n[run]\ndevice = \"cpu\"\n";
    Recipe::from_text(text, "test", &sets).unwrap()
}

/// What a recipe would take, from its plan: of the base only types and shapes matter.
fn planned(sets: &[&str]) -> Memory {
    let recipe = smollm(sets);
    let family = family_of(&recipe, 1).unwrap();
    let beside = Beside::to_plan(&recipe, family.as_ref()).unwrap();
    micro::need(&recipe, family.as_ref(), &beside, &Target::Host).unwrap()
}

#[test]
fn adapters_of_a_model_of_135_million_weights_fit_where_the_whole_does_not() {
    let whole = planned(&["memory.recompute=layers"]);
    let lora = planned(&["memory.recompute=layers", "adapter={ rank = 8, ignore = [] }"]);
    let qlora = planned(&["memory.recompute=layers", "adapter={ rank = 8, ignore = [], base = \"nf4\" }"]);
    let mib = |bytes: u64| bytes / (1 << 20);
    // 8 numbers for each input and output of seven layers in each of 30 blocks.
    let trained = 30 * 8 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)) as u64;
    for adapters in [lora, qlora] {
        let pads = 420 * 256;
        for (got, copies) in [(adapters.parameters, 1), (adapters.gradients, 1), (adapters.moments, 2)] {
            assert!((4 * copies * trained..=4 * copies * (trained + pads)).contains(&got), "{adapters:?}");
        }
    }
    assert!(lora.total() < 3 << 29, "{} MiB: {lora:?}", mib(lora.total()));
    assert!(mib(lora.frozen) >= 513 && mib(lora.frozen) < 520, "{lora:?}");
    // Codes of 106 million weights at 4.5 bits and a table of 28 million in 16.
    assert!(mib(qlora.frozen) < 130, "{qlora:?}");
    assert!(
        2 * lora.total() < whole.total() && 3 * qlora.total() < whole.total(),
        "{lora:?} {qlora:?} {whole:?}"
    );
}

#[test]
fn a_run_that_was_moved_finds_its_base_and_another_base_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let (first, second) = (root.path().join("first"), root.path().join("second"));
    train(recipe(&first, "cpu", &[LORA]), false).unwrap();
    std::fs::rename(&first, &second).unwrap();
    let checkpoint = second.join("checkpoints/step-000012");
    exchange::open(&checkpoint).unwrap();
    train(recipe(&second, "cpu", &[LORA, "train.steps=13"]), true).unwrap();
    let other = root.path().join("other");
    train(recipe(&other, "cpu", &[LORA, "train.seed=8"]), false).unwrap();
    let file = "base/model.safetensors";
    std::fs::copy(other.join(file), second.join(file)).unwrap();
    let error = exchange::open(&checkpoint).unwrap_err().to_string();
    assert!(error.contains("has changed since"), "{error}");
    let error = train(recipe(&second, "cpu", &[LORA, "train.seed=8", "train.steps=14"]), true).unwrap_err();
    assert!(
        matches!(&error, Error::Mismatch { problem, .. } if problem.contains("other weights")),
        "{error}"
    );
}

#[test]
fn an_adapter_that_was_trained_before_is_trained_on() {
    let root = tempfile::tempdir().unwrap();
    let (first, second) = (root.path().join("first"), root.path().join("second"));
    train(recipe(&first, "cpu", &[LORA]), false).unwrap();
    let load = format!("adapter={{ load = {:?}, name = \"more\" }}", first.join("checkpoints/step-000012"));
    train(recipe(&second, "cpu", &[&load]), false).unwrap();
    let last = losses(&first)[11].1;
    assert!((losses(&second)[0].1 - last).abs() < 0.5, "{last} {:?}", losses(&second));
    let read = |folder: &Path| {
        let model = exchange::parts(&folder.join("checkpoints/step-000012"), &[]).unwrap().unwrap();
        model.loaded.adapters[0].clone()
    };
    let (before, after) = (read(&first), read(&second));
    assert_eq!(Adapter { name: before.name.clone(), dropout: before.dropout, ..after }, before);
}

#[test]
fn what_cannot_be_adapted_is_refused_with_names() {
    let root = tempfile::tempdir().unwrap();
    let refused = |sets: &[&str]| {
        let folder = root.path().join("refused");
        train(recipe(&folder, "cpu", sets), false).unwrap_err().to_string()
    };
    for (set, parts) in [
        ("adapter.targets=q_proj", &["`q_proj` fits no linear layer", "c_attn, c_proj, c_fc"][..]),
        ("adapter.whole=norm", &["`norm` fits no module", "ln_1"]),
        ("adapter.whole=wte", &["`transformer.wte.weight` cannot be trained whole", "the head shares it"]),
        ("adapter.whole=c_attn", &["to be trained whole and through a low rank"]),
        (
            "adapter=[{ name = \"a\" }, { name = \"b\", kind = \"dora\" }]",
            &["`a` and `b` both stand beside", "magnitudes"],
        ),
        ("adapter.load=nowhere", &["nowhere: there is no such folder"]),
    ] {
        let error = refused(&[set]);
        assert!(parts.iter().all(|part| error.contains(part)), "{set}: {error}");
    }
    let folder = root.path().join("other");
    train(recipe(&folder, "cpu", &[LORA]), false).unwrap();
    let load = format!("adapter.load={:?}", folder.join("checkpoints/step-000012"));
    let error = refused(&["model.width=24", "model.layers=1", &load]);
    assert!(error.contains("c_attn.lora_A.weight` has shape [4, 16], expected [4, 24]"), "{error}");
    let error = train(recipe(&folder, "cpu", &["adapter={ rank = 2 }"]), true).unwrap_err();
    assert!(matches!(&error, Error::Mismatch { problem, .. } if problem.contains("rank 4")), "{error}");
    let error = Recipe::from_text("[adapter]\nrnk = 2", "r.toml", &[]).unwrap_err().to_string();
    assert!(error.contains("did you mean `adapter.rank`"), "{error}");
}

#[test]
fn files_of_adapters_that_are_not_sound_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    let checkpoint = train(recipe(&folder, "cpu", &[LORA]), false).unwrap().checkpoint.unwrap();
    let base = exchange::parts(&checkpoint, &[]).unwrap().unwrap().base;
    assert_eq!(Layers::of(base.family.as_ref()).unwrap().linear.len(), 4);
    let plain = root.path().join("plain");
    std::fs::create_dir(&plain).unwrap();
    let names = ["adapter_config.json", "adapter_model.safetensors"];
    let copy = |name: &str| std::fs::copy(checkpoint.join(name), plain.join(name)).unwrap();
    let reset = || names.iter().map(|name| copy(name)).for_each(|bytes| assert!(bytes > 0));
    let refused = |parts: &[&str]| {
        let error = adapt::load(std::slice::from_ref(&plain), base.family.as_ref()).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
    };
    reset();
    adapt::load(std::slice::from_ref(&plain), base.family.as_ref()).unwrap();
    for name in names {
        std::fs::remove_file(plain.join(name)).unwrap();
        refused(&[&format!("it has no {name}")]);
        reset();
        std::fs::write(plain.join(name), b"\xff\xff\xff\xff\xff\xff\xff\x7f{}").unwrap();
        refused(&["is damaged"]);
        reset();
    }
    let config = std::fs::read_to_string(plain.join(names[0])).unwrap();
    for (from, to, part) in [
        ("\"r\": 4", "\"r\": 0", "`r` is 0, expected a whole number above zero"),
        ("\"LORA\"", "\"IA3\"", "`peft_type` is \"IA3\", expected \"LORA\""),
        ("\"none\"", "\"all\"", "`bias` is \"all\""),
        ("\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"", "`init_lora_weights`"),
        ("\"use_dora\": false", "\"use_dora\": true", "has no lora_magnitude_vector"),
        ("\"bias\"", "\"lora_bias\": true, \"bias\"", "`lora_bias` is true"),
        ("\"alpha_pattern\": {}", "\"alpha_pattern\": { \".*\": 3 }", "`alpha_pattern`"),
    ] {
        assert!(config.contains(from), "{from} {config}");
        std::fs::write(plain.join(names[0]), config.replace(from, to)).unwrap();
        refused(&[part]);
    }
    reset();
    // One factor less, one of another shape, one that is no layer's.
    let archive = kiln::formats::Archive::open(&plain.join(names[1])).unwrap();
    let all: Vec<(String, Tensor)> =
        archive.names().map(|name| (name.to_string(), archive.tensor(name).unwrap())).collect();
    let write = |list: &[(String, Tensor)]| {
        let named: Vec<(&str, &Tensor)> = list.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        kiln::formats::Archive::write(&plain.join(names[1]), &named).unwrap();
    };
    write(&all[1..]);
    refused(&["has no lora_A", "transformer.h.0.attn.c_attn"]);
    let mut other = all.clone();
    other[0].1 = Tensor::f32([3, 16], vec![0.0; 48]);
    write(&other);
    refused(&["lora_B.weight` has shape [48, 4], expected [48, 3]"]);
    other[0].1 = Tensor::scalar(0.0);
    write(&other);
    refused(&["lora_A.weight` has shape []"]);
    other[0] = ("base_model.model.transformer.h.7.attn.c_attn.lora_A.weight".to_string(), all[0].1.clone());
    write(&other);
    refused(&["there is no layer for `base_model.model.transformer.h.7.attn.c_attn.lora_A.weight`"]);
    write(&[("weight".to_string(), Tensor::scalar(1.0))]);
    refused(&["there is no layer for `weight`"]);
    assert_eq!(Hold::WORDS.len(), 4);
}
