//! Recipes in which what one pass removes outlasts those behind it.

use super::Bench;
use kiln::compress::prune::{masks_hold, masks_of_zeros};
use kiln::compress::{Entry, Recipe, Selection};
use kiln::exchange::{self, Opened};
use kiln::tensor::mask::Mask;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A folder with a model of four layers that was trained for a moment.
fn trained() -> Bench {
    let bench = Bench::new();
    let sets = ["--set", "model.layers=4", "--set", "model.width=32", "--set", "train.learning_rate=1e-2"];
    bench.train(&sets).fine();
    bench
}

fn recipe(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/recipes");
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    let shorter = ["steps = 300", "steps = 100", "steps = 900"];
    let text = shorter.iter().fold(text, |text, steps| text.replace(steps, "steps = 4\ncontext = 16"));
    let text = text.replace("batch = 12", "batch = 4").replace("warmup = 20", "warmup = 2");
    text.replace("input.txt", "text.txt")
        .replace("warmup = 10", "warmup = 2")
        .replace("windows = 32\ncontext = 64", "windows = 8\ncontext = 16")
}

fn masks(bench: &Bench, folder: &str) -> BTreeMap<String, Mask> {
    let Opened { family, weights, .. } = exchange::open(&bench.path(folder)).unwrap();
    masks_of_zeros(family.as_ref(), &weights, &Selection::default()).unwrap()
}

fn held(bench: &Bench, folder: &str, masks: &BTreeMap<String, Mask>) {
    let Opened { family, weights, .. } = exchange::open(&bench.path(folder)).unwrap();
    masks_hold(family.as_ref(), &weights, masks).unwrap_or_else(|error| panic!("{folder}: {error}"));
}

#[test]
fn what_the_chain_removes_is_zero_behind_every_pass_and_in_the_codes() {
    let bench = trained();
    bench.write("chain.toml", recipe("chain.toml"));
    let start = ["compress", "run", "-r", "chain.toml", "--device", "cpu", "-o", "chain", "--keep-passes"];
    bench.kiln(&start).fine();
    let removed = masks(&bench, "chain.passes/02-prune");
    assert_eq!(removed.len(), 8, "four matrices in each of two layers");
    for (name, mask) in &removed {
        assert!((mask.sparsity() - 0.5).abs() < 1e-3, "{name}: {}", mask.sparsity());
    }
    for folder in ["chain.passes/03-train", "chain.passes/04-train", "chain.passes/05-quantize", "chain"] {
        held(&bench, folder, &removed);
    }
    let trained = masks(&bench, "chain.passes/04-train");
    assert_eq!(trained, removed, "nothing else became zero, and so what is left was trained");
    let text = std::fs::read(bench.path("chain/compression.json")).unwrap();
    let record: Value = serde_json::from_slice(&text).unwrap();
    let kinds: Vec<&str> =
        record["passes"].as_array().unwrap().iter().map(|p| p["pass"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["drop_layers", "prune", "train", "train", "quantize"]);
    assert!(record["recipe"]["pass"][2]["prune"].is_null(), "zeros stay zero without being asked to");
    // A run that goes on behind a pass knows the masks again.
    let text = recipe("chain.toml").replace("scheme = \"int4-g32\"", "scheme = \"int8\"");
    bench.write("chain.toml", text);
    std::fs::remove_dir_all(bench.path("chain")).unwrap();
    let resumed = bench.kiln(&[&start[..], &["--resume"]].concat()).fine();
    assert!(resumed.err.contains("passes 1 to 3 are done already"), "{}", resumed.err);
    held(&bench, "chain", &removed);
}

#[test]
fn a_pass_that_brings_removed_weights_back_is_named() {
    let bench = trained();
    let prune = "[[pass]]\nkind = \"prune\"\nsparsity = 0.5\n";
    let compress = |text: &str, output: &str| {
        bench.write("wrong.toml", text);
        bench.kiln(&["compress", "run", "-r", "wrong.toml", "--device", "cpu", "-o", output])
    };
    let back = compress(&format!("{prune}[[pass]]\nkind = \"quantize\"\nscheme = \"Q4_1\"\n"), "back.gguf");
    back.refused(1, &["pass 2 `quantize`", "no longer zero", "c_attn.weight", "Q4_1"]);
    let train = "[data]\ntext = [\"text.txt\"]\n";
    let free = "[[pass]]\nkind = \"train\"\n[pass.train]\nsteps = 2\n[pass.prune]\nkeep_zeros = false\n";
    let told = compress(&format!("{train}{prune}{free}"), "free");
    told.refused(2, &["pass 2 `train`", "prune.keep_zeros is false", "behind a pass that prunes"]);
    // Behind nothing that prunes it is free to.
    compress(&format!("{train}{free}"), "free").fine();
}

#[test]
fn a_model_that_was_pruned_by_an_earlier_recipe_keeps_its_zeros_in_the_next() {
    let bench = trained();
    bench.write("half.toml", "[[pass]]\nkind = \"prune\"\npattern = \"2:4\"\n");
    bench.write(
        "on.toml",
        "[data]\ntext = [\"text.txt\"]\n[[pass]]\nkind = \"train\"\n[pass.train]\nsteps = 3\nbatch = 4\ncontext = 16\n",
    );
    bench.kiln(&["compress", "run", "-r", "half.toml", "-o", "half"]).fine();
    bench.kiln(&["compress", "half", "-r", "on.toml", "--device", "cpu", "-o", "on"]).fine();
    let (half, on) = (masks(&bench, "half"), masks(&bench, "on"));
    assert_eq!(half, on);
    assert!(half.len() == 16 && half.values().all(|mask| mask.is_pattern(2, 4)));
}

#[test]
fn what_is_left_of_a_pruned_model_goes_back_to_the_weights_of_an_earlier_pass_or_of_the_start() {
    let bench = trained();
    let go = |name: &str, text: &str| {
        bench.write("lottery.toml", text);
        let start = ["compress", "run", "-r", "lottery.toml", "--device", "cpu", "--keep-passes", "-o", name];
        bench.kiln(&start)
    };
    let weights = |folder: &str| exchange::open(&bench.path(folder)).unwrap().weights;
    let text = recipe("lottery.toml");
    go("late", &text).fine();
    go("first", &text.replace("to = 1", "to = \"original\"")).fine();
    go("checkpoint", &text.replace("to = 1", "to = \"run\"")).refused(1, &["pass 4 `rewind`", "run"]);
    let checkpoint = bench.path("run/checkpoints/step-000003").display().to_string();
    go("folder", &text.replace("to = 1", &format!("to = {checkpoint:?}"))).fine();
    for (name, earlier) in [
        ("late", "late.passes/01-train"),
        ("first", "first.passes/original"),
        ("folder", "run/checkpoints/step-000003"),
    ] {
        let removed = masks(&bench, &format!("{name}.passes/03-prune"));
        let back = weights(&format!("{name}.passes/04-rewind"));
        let mut changed = 0;
        for (weight, before) in weights(earlier).iter() {
            let after = back.get(weight).unwrap();
            let differs = before.to_f64().iter().zip(after.to_f64()).filter(|(a, b)| **a != *b).count();
            let gone = removed.get(weight).map_or(0, Mask::count_removed);
            assert_eq!(differs, gone, "{name}: {weight} differs in what is removed alone");
            changed += differs;
        }
        assert!(changed > 1000, "{name}");
        held(&bench, name, &removed);
        assert_ne!(weights(name), back, "{name}: what is left was trained again");
    }
    assert_ne!(weights("late.passes/04-rewind"), weights("first.passes/04-rewind"));
}

#[test]
fn a_rewind_that_cannot_be_is_told_before_anything_runs() {
    let error = |text: &str| Recipe::parse("r.toml", text).unwrap_err().to_string();
    let rewind = "[[pass]]\nkind = \"rewind\"\n";
    let prune = "[[pass]]\nkind = \"prune\"\nsparsity = 0.5\n";
    let told = error(&format!("{prune}{rewind}to = 2\n"));
    assert!(told.contains("pass 2 `rewind`") && told.contains("at most 1"), "{told}");
    assert!(error(&format!("{prune}{rewind}to = \"\"\n")).contains("`original`"));
    assert!(error(&format!("{prune}{rewind}")).contains("missing field `to`"));
    let recipe = Recipe::parse("r.toml", &format!("{prune}{rewind}to = \"original\"\n")).unwrap();
    assert!(recipe.looks_back() && matches!(recipe.passes[1], Entry::Rewind(_)));
    assert_eq!(Recipe::parse("again", &recipe.to_toml()).unwrap(), recipe);
    let bench = trained();
    bench.write("r.toml", format!("{rewind}to = \"original\"\n"));
    let done = bench.kiln(&["compress", "run", "-r", "r.toml", "-o", "out"]);
    done.refused(1, &["pass 1 `rewind`", "no weight of the model is zero", "hint"]);
}
