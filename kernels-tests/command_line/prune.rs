//! `kiln prune`, and what models without half of their weights look like in a folder.

use super::{Bench, Done};
use serde_json::Value;

/// A folder with a model of two layers that was trained for a moment.
fn trained() -> Bench {
    let bench = Bench::new();
    bench.train(&["--set", "model.layers=2", "--set", "model.width=32"]).fine();
    bench
}

fn prune(bench: &Bench, model: &str, output: &str, more: &[&str]) -> Done {
    let start = ["prune", model, "--samples", "4", "--device", "cpu", "-o", output];
    bench.kiln(&[&start[..], more].concat())
}

fn record(bench: &Bench, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(bench.path(name).join("compression.json")).unwrap()).unwrap()
}

fn loss(bench: &Bench, model: &str) -> f64 {
    let score = bench.kiln(&["evaluate", model, "--data", "text.txt", "--device", "cpu", "--json"]).json();
    score["loss"].as_f64().unwrap()
}

#[test]
fn every_method_removes_what_it_is_told_to_and_the_model_can_be_used() {
    let bench = trained();
    for (name, more) in [
        ("magnitude", &["--sparsity", "0.5", "--scope", "global"][..]),
        ("wanda", &["--method", "wanda", "--pattern", "2:4", "--calibrate", "text.txt"]),
        ("sparsegpt", &["--method", "sparsegpt", "--sparsity", "0.5", "--calibrate", "text.txt"]),
    ] {
        let done = prune(&bench, "run", name, more).fine();
        assert!(done.out.contains(&format!("50.00 % of 8 layers removed by {name}")), "{}", done.out);
        assert!(done.out.contains("not faster"), "{}", done.out);
        let pass = &record(&bench, name)["recipe"]["pass"][0];
        assert_eq!((&pass["kind"], &pass["method"]), (&"prune".into(), &name.into()));
        assert!(loss(&bench, name).is_finite());
        // The short form is a recipe like any other: --dry-run prints it, and it gives the same bytes.
        let plan = prune(&bench, "run", "same", &[more, &["--dry-run"]].concat()).fine().out;
        let (_, recipe) = plan.split_once("\n\n").unwrap();
        bench.write("recipe.toml", recipe);
        bench.kiln(&["compress", "run", "-r", "recipe.toml", "--device", "cpu", "-o", "same"]).fine();
        let bytes = |folder: &str| std::fs::read(bench.path(folder).join("model.safetensors")).unwrap();
        assert_eq!(bytes(name), bytes("same"));
        std::fs::remove_dir_all(bench.path("same")).unwrap();
    }
}

#[test]
fn layers_heads_and_neurons_go_before_weights_do() {
    let bench = trained();
    let more =
        ["--layers", "1", "--heads", "1", "--neurons", "0.25", "--score", "taylor", "--sparsity", "0.25"];
    let done = prune(&bench, "run", "narrow", &[&more[..], &["--calibrate", "text.txt"]].concat()).fine();
    let record = record(&bench, "narrow");
    let kinds: Vec<&Value> = record["passes"].as_array().unwrap().iter().map(|pass| &pass["pass"]).collect();
    assert_eq!(kinds, ["drop_layers", "prune_structured", "prune"]);
    assert!(done.out.contains("1 layer") && done.out.contains("heads 1 of 2"), "{}", done.out);
    assert!(loss(&bench, "narrow").is_finite());
    let these = prune(&bench, "run", "these", &["--layers", "0,1"]);
    these.refused(1, &["drop_layers"]);
    prune(&bench, "run", "deep", &["--layers", "0,7"]).refused(2, &["layers is 7, expected layers 0 to 1"]);
    assert!(!bench.path("deep").exists() && !bench.path("these").exists());
}

#[test]
fn zeros_are_left_out_of_a_sparse_folder_and_every_bit_comes_back() {
    let bench = trained();
    let (wanda, joint) = (
        ["--method", "wanda", "--pattern", "2:4", "--calibrate", "text.txt"],
        ["--method", "sparsegpt", "--sparsity", "0.6", "--scheme", "int8", "--calibrate", "text.txt"],
    );
    for (name, form, more) in [("half", "sparse-bitmask", &wanda[..]), ("codes", "bitmask", &joint[..])] {
        let sparse = format!("{name}-sparse");
        let whole = prune(&bench, "run", name, &[more, &["--json"]].concat()).json();
        let told = [more, &["--format", "sparse-bitmask", "--json"]].concat();
        let small = prune(&bench, "run", &sparse, &told).json();
        let [before, after] = [&whole["bytes"], &small["bytes"]].map(|bytes| bytes.as_u64().unwrap());
        assert!(after * 10 < before * 9, "{name}: {after} of {before}");
        let before = &whole["bytes_before"];
        assert!(before == &small["bytes_before"] && before.as_u64() < Some(120_000), "{before}");
        let config = std::fs::read_to_string(bench.path(&sparse).join("config.json")).unwrap();
        let weights = std::fs::read(bench.path(&sparse).join("model.safetensors")).unwrap();
        let head = String::from_utf8_lossy(&weights[..4096]).into_owned();
        assert!((config + &head).contains(form), "{name}");
        let open = |name: &str| kiln::exchange::open(&bench.path(name)).unwrap().weights;
        assert_eq!(open(name), open(&sparse));
        assert_eq!(loss(&bench, name), loss(&bench, &sparse));
    }
    // A file whose bits lie is an error, no panic.
    let path = bench.path("half-sparse/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x55;
    std::fs::write(&path, bytes).unwrap();
    bench
        .kiln(&["evaluate", "half-sparse", "--data", "text.txt", "--device", "cpu"])
        .refused(1, &["refused"]);
}

#[test]
fn what_cannot_be_pruned_is_refused_before_anything_is_written() {
    let bench = trained();
    let refused = |code: i32, more: &[&str], parts: &[&str]| {
        prune(&bench, "run", "out", more).refused(code, parts);
        assert!(!bench.path("out").exists(), "{more:?}");
    };
    refused(2, &[], &["nothing is to go", "--sparsity 0.5"]);
    for share in ["1.0", "1.5", "-0.1", "nan", "inf"] {
        refused(2, &[&format!("--sparsity={share}")], &["sparsity is", "0 or more and less than 1"]);
    }
    refused(2, &["--sparsity", "0.5", "--pattern", "2:4"], &["cannot be used with"]);
    refused(2, &["--pattern", "4:2"], &["pattern is `4:2`, expected K:N"]);
    refused(2, &["--sparsity", "0.5", "--method", "movement"], &["magnitude, wanda or sparsegpt"]);
    refused(2, &["--sparsity", "0.5", "--method", "wanda"], &["needs a text to calibrate with"]);
    refused(
        2,
        &["--sparsity", "0.5", "--scope", "model"],
        &["scope is model, expected row, layer or global"],
    );
    refused(2, &["--sparsity", "0.5", "--targets", "*q_proj*"], &["matches no weight", "c_attn"]);
    refused(2, &["--sparsity", "0.5", "--scheme", "int8"], &["magnitude cannot make int8", "sparsegpt"]);
    refused(2, &["--heads", "1.0"], &["heads is 1"]);
    refused(2, &["--neurons", "half"], &["a share such as 0.3"]);
    refused(2, &["--layers", "0"], &["2 takes two layers out"]);
    let gpt = ["--method", "sparsegpt", "--sparsity", "0.5", "--calibrate", "text.txt"];
    refused(2, &[&gpt[..], &["--damping=-1"]].concat(), &["damping is -1"]);
    refused(2, &[&gpt[..], &["--block", "0"]].concat(), &["block is 0"]);
    refused(2, &[&gpt[..], &["--scheme", "int9"]].concat(), &["no scheme `int9`"]);
}

#[test]
fn a_layer_that_would_be_lost_and_a_pattern_that_does_not_fit_are_named() {
    let bench = trained();
    bench.train(&["--out", "odd", "--set", "model.width=18", "--set", "model.hidden=27"]).fine();
    let refused = |model: &str, more: &[&str], parts: &[&str]| {
        prune(&bench, model, "out", more).refused(1, parts);
        assert!(!bench.path("out").exists() && !bench.path("out.passes").exists(), "{more:?}");
    };
    refused("odd", &["--pattern", "2:4"], &["18 inputs are no whole groups of 2:4", "ignore"]);
    // One threshold for all layers takes everything of one whose weights are all small.
    let kiln::exchange::Opened { family, mut weights, .. } =
        kiln::exchange::open(&bench.path("run/checkpoints/step-000003")).unwrap();
    let name = "transformer.h.0.mlp.c_fc.weight";
    let mut weight = weights.get(name).unwrap().clone();
    weight.real_mut::<f32>().iter_mut().for_each(|x| *x *= 1e-6);
    weights.set(name, weight);
    weights.save(&bench.path("weak"), family.as_ref()).unwrap();
    refused("weak", &["--sparsity", "0.5", "--scope", "global"], &[name, "none of its", "a lower sparsity"]);
    prune(
        &bench,
        "run",
        "codes",
        &["--method", "sparsegpt", "--sparsity", "0.5", "--scheme", "int8", "--calibrate", "text.txt"],
    )
    .fine();
    refused(
        "codes",
        &["--sparsity", "0.5"],
        &["is quantised already", "start from the model it was made of"],
    );
}

#[test]
fn each_layer_loses_what_it_minds_least_and_all_together_what_was_asked_for() {
    let bench = trained();
    let text = ["--calibrate", "text.txt", "--samples", "4", "--device", "cpu"];
    let scan = ["sensitivity", "run", "--prune", "0.25,0.5,0.75", "--method", "wanda", "-o", "known.json"];
    let told = bench.kiln(&[&scan[..], &text].concat()).fine().out;
    assert!(told.contains("0.75") && told.contains("pruned by wanda"), "{told}");
    let known: Value = serde_json::from_slice(&std::fs::read(bench.path("known.json")).unwrap()).unwrap();
    assert_eq!(known["layers"].as_array().unwrap().len(), 8);
    let more =
        ["--method", "wanda", "--sparsity", "0.5", "--sensitivity", "known.json", "--calibrate", "text.txt"];
    let done = prune(&bench, "run", "uneven", &[&more[..], &["--json"]].concat()).json();
    let pass = &done["passes"][0];
    let removed = pass["numbers"]["sparsity"].as_f64().unwrap();
    assert!((0.5..0.6).contains(&removed), "{removed}");
    let shares: Vec<String> =
        pass["layers"].as_array().unwrap().iter().map(|layer| layer["sparsity"].to_string()).collect();
    assert!(shares.iter().any(|share| *share != shares[0]), "{shares:?}");
    let refused = |more: &[&str], parts: &[&str]| prune(&bench, "run", "out", more).refused(2, parts);
    refused(
        &["--sparsity", "0.9", "--sensitivity", "known.json"],
        &["at most 0.7500, the most that was measured"],
    );
    refused(&["--pattern", "2:4", "--sensitivity", "known.json"], &["absent with a pattern"]);
    refused(&["--sparsity", "0.5", "--scope", "global", "--sensitivity", "known.json"], &["scope global"]);
    bench.write(
        "bits.toml",
        "[[pass]]\nkind = \"assign_bits\"\nbudget = 6\nchoices = [\"int8\"]\nsensitivity = \"known.json\"\n",
    );
    bench
        .kiln(&["compress", "run", "-r", "bits.toml", "-o", "out"])
        .refused(2, &["tells of pruning, not of schemes"]);
    let foreign = std::fs::read_to_string(bench.path("known.json")).unwrap().replace("h.1.", "h.7.");
    bench.write("foreign.json", foreign);
    refused(
        &["--sparsity", "0.5", "--sensitivity", "foreign.json"],
        &["measured on another model", "h.7.", "kiln sensitivity"],
    );
    let codes = ["sensitivity", "run", "--schemes", "int8", "-o", "codes.json"];
    bench.kiln(&[&codes[..], &text].concat()).fine();
    refused(&["--sparsity", "0.5", "--sensitivity", "codes.json"], &["tells nothing of pruning"]);
    bench.kiln(&[&["sensitivity", "run", "--prune", "1.0"][..], &text].concat()).refused(2, &["prune is 1"]);
}

#[test]
fn a_plan_tells_memory_and_little_of_it_gives_the_same_model() {
    let bench = trained();
    bench.write(
        "recipe.toml",
        "[calibration]\ntext = [\"text.txt\"]\nwindows = 4\nmemory = \"64KiB\"\n[data]\ntext = [\"text.txt\"]\n\
         [[pass]]\nkind = \"prune\"\nmethod = \"wanda\"\nsparsity = 0.5\nignore = [\"*mlp.c_proj*\"]\n\
         [[pass]]\nkind = \"train\"\n[pass.train]\nsteps = 2\nbatch = 4\ncontext = 16\n",
    );
    let compress = |output: &str, more: &[&str]| {
        let start = ["compress", "run", "-r", "recipe.toml", "--device", "cpu", "-o", output];
        bench.kiln(&[&start[..], more].concat())
    };
    let plan = compress("out", &["--dry-run"]).fine().out;
    // Six layers of 32 inputs: 16 KiB for the first that reads an input, 8 for each other.
    assert!(
        plan.contains("measures 6 layers in 2 sweeps over the text, up to 0.06 MiB at once of 64.00 KiB"),
        "{plan}"
    );
    assert!(plan.contains("trains in up to") && plan.contains("goes through in"), "{plan}");
    assert!(!bench.path("out").exists() && !bench.path("out.passes").exists());
    let wanda = ["--method", "wanda", "--sparsity", "0.5", "--calibrate", "text.txt"];
    prune(&bench, "run", "whole", &wanda).fine();
    prune(&bench, "run", "little", &[&wanda[..], &["--memory", "256KiB"]].concat()).fine();
    let weights = |name: &str| std::fs::read(bench.path(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("whole"), weights("little"));
    prune(&bench, "run", "none", &[&wanda[..], &["--memory", "8KiB"]].concat())
        .refused(2, &["the budget is", "--memory"]);
    prune(&bench, "run", "none", &[&wanda[..], &["--memory", "8GB"]].concat()).refused(2, &["2GiB"]);
    assert!(!bench.path("none").exists() && !bench.path("none.passes").exists());
}

#[test]
fn passes_of_a_recipe_are_shown_with_what_each_changes() {
    let bench = trained();
    let inspect =
        |more: &[&str]| bench.kiln(&[&["inspect", "--device", "cpu", "--passes"][..], more].concat());
    let text = inspect(&["tiny.toml", "--set", "precision.storage=bf16"]).fine().out;
    assert!(text.contains("# step") && text.contains("gradient") && text.contains("fuse"), "{text}");
    let all = inspect(&["tiny.toml", "--json"]).json();
    let steps = all["step"].as_array().unwrap();
    let gradient = steps.iter().position(|pass| pass["pass"] == "gradient").unwrap();
    let grown = &steps[gradient]["operators"]["matmul"];
    assert!(grown[1].as_u64() > grown[0].as_u64(), "{all}");
    for pair in steps.windows(2).filter(|pair| pair[1]["pass"] != "gradient") {
        assert_eq!(pair[0]["nodes_after"], pair[1]["nodes_before"], "{all}");
    }
    bench.write(
        "recipe.toml",
        "[data]\ntext = [\"text.txt\"]\n[[pass]]\nkind = \"prune_structured\"\nscore = \"magnitude\"\nneurons = 0.5\n\
         [[pass]]\nkind = \"train\"\n[[pass]]\nkind = \"quantize\"\nscheme = \"int8\"\n",
    );
    let of_model = ["--model", "run", "--compress", "recipe.toml"];
    let text = inspect(&of_model).fine().out;
    for part in ["neurons 64 of 128", "the same operators", "not done here", "matmul_coded 0 -> "] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let all = inspect(&[&of_model[..], &["--json"]].concat()).json();
    let bytes = |at: usize| all[at]["model"]["weight_bytes"].as_u64().unwrap();
    assert!(bytes(1) < bytes(0) && bytes(3) < bytes(1), "{all}");
    inspect(&["tiny.toml", "--compress", "recipe.toml"]).refused(2, &["--model"]);
}

#[test]
fn a_run_that_is_stopped_between_passes_leaves_whole_models_and_goes_on_behind_them() {
    let bench = trained();
    bench.write(
        "recipe.toml",
        "[data]\ntext = [\"text.txt\"]\n[[pass]]\nkind = \"prune\"\nsparsity = 0.5\n[[pass]]\nkind = \"train\"\n\
         [pass.train]\nsteps = 100000\nbatch = 4\ncontext = 16\n",
    );
    let start = ["compress", "run", "-r", "recipe.toml", "--device", "cpu", "-o", "out"];
    let mut child = bench.command(&start).stderr(std::process::Stdio::null()).spawn().unwrap();
    let first = bench.path("out.passes/01-prune");
    while !first.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was stopped");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!bench.path("out").exists());
    assert!(loss(&bench, "out.passes/01-prune").is_finite(), "what has its name is whole");
    let recipe = std::fs::read_to_string(bench.path("recipe.toml")).unwrap().replace("100000", "2");
    bench.write("recipe.toml", recipe);
    // The training that was stopped had other steps: it begins anew, behind the pass that is done.
    let resumed = bench.kiln(&[&start[..], &["--resume"]].concat()).fine();
    assert!(resumed.err.contains("passes 1 to 1 are done already"), "{}", resumed.err);
    bench.kiln(&["compress", "run", "-r", "recipe.toml", "--device", "cpu", "-o", "never"]).fine();
    let weights = |name: &str| std::fs::read(bench.path(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("out"), weights("never"));
}
