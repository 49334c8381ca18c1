//! Adapters from the command line: trained, evaluated, merged, taken out again, refused.

use super::{Bench, Done};
use serde_json::Value;

/// A folder with a base `base` and a run `tuned` of adapters beside it.
fn tuned(sets: &[&str]) -> Bench {
    let bench = Bench::new();
    bench.kiln(&["train", "tiny.toml", "--device", "cpu", "--out", "base"]).fine();
    bench.write(
        "adapter.toml",
        "[model]\nload = \"base/checkpoints/step-000003\"\n[data]\ntext = [\"text.txt\"]\n\
         [train]\nsteps = 6\nbatch = 4\ncontext = 16\nevaluate = { every = 3, batches = 2 }\n\
         learning_rate = { curve = \"constant\", peak = 0.02 }\n\
         [adapter]\nrank = 4\ntargets = [\"c_attn\", \"c_proj\", \"c_fc\"]\n[run]\nfolder = \"tuned\"\ndevice = \"cpu\"\n",
    );
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let done = bench.kiln(&[&["train", "adapter.toml"], &sets[..]].concat()).fine();
    assert!(done.err.contains("adapter  `default`") && done.err.contains("base     held"), "{}", done.err);
    bench
}

fn loss(bench: &Bench, arguments: &[&str]) -> f64 {
    let all = [&["evaluate"], arguments, &["--data", "text.txt", "--device", "cpu", "--json"]].concat();
    bench.kiln(&all).json()["loss"].as_f64().unwrap()
}

fn write(bench: &Bench, arguments: &[&str]) -> Done {
    let all =
        [&["generate"], arguments, &["--prompt", "3 sheep", "--max-new-tokens", "12", "--device", "cpu"]];
    bench.kiln(&all.concat()).fine()
}

#[test]
fn a_run_of_adapters_is_a_model_as_any_other_and_so_are_its_parts() {
    for base in ["f32", "nf4"] {
        let bench = tuned(&[&format!("adapter.base={base}")]);
        let checkpoint = "tuned/checkpoints/step-000006";
        assert!(!bench.path(checkpoint).join("model.safetensors").exists());
        let (before, after) = (loss(&bench, &["base"]), loss(&bench, &["tuned"]));
        assert!(after < before - 0.05, "{base}: {before} {after}");
        // The base is taken as it is where it is named, and held as it was in training where it is not.
        let beside = loss(&bench, &["base", "--adapter", "tuned"]);
        assert_eq!((beside - after).abs() < 1e-6, base == "f32", "{base}: {beside} {after}");
        bench.kiln(&["adapter", "merge", "tuned", "-o", "merged"]).fine();
        assert!((loss(&bench, &["merged"]) - after).abs() < 1e-5);
        assert_eq!(write(&bench, &["merged"]).out, write(&bench, &["tuned"]).out);
        let apart = ["diff", "merged", "tuned", "--data", "text.txt", "--device", "cpu", "--json"];
        let apart = bench.kiln(&apart).json();
        assert!(apart["kl"]["mean"]["value"].as_f64().unwrap().abs() < 1e-6, "{apart}");
        let there = ["adapter", "merge", "base", "--adapter", "tuned", "-o", "merged"];
        bench.kiln(&there).refused(2, &["merged is there already"]);
        let nothing = ["adapter", "merge", "base", "-o", "other"];
        bench.kiln(&nothing).refused(2, &["is a model without adapters", "--adapter FOLDER"]);
    }
}

#[test]
fn what_was_merged_is_taken_out_again() {
    let bench = tuned(&[]);
    bench.kiln(&["adapter", "merge", "base", "--adapter", "tuned", "-o", "merged"]).fine();
    bench.kiln(&["adapter", "unmerge", "merged", "--adapter", "tuned", "-o", "again"]).fine();
    let diff = ["diff", "base", "again", "--data", "text.txt", "--device", "cpu", "--json"];
    let apart = bench.kiln(&diff).json();
    assert!(apart["kl"]["mean"]["value"].as_f64().unwrap() < 1e-9, "{apart}");
    // Codes stay codes under an adapter that is beside them, and what it changes is f32 once it is merged.
    bench.kiln(&["quantize", "base", "--scheme", "int8", "-o", "small"]).fine();
    assert!((loss(&bench, &["small", "--adapter", "tuned"]) - loss(&bench, &["tuned"])).abs() < 0.01);
    let merged = bench.kiln(&["adapter", "merge", "small", "--adapter", "tuned", "-o", "wide"]).fine();
    assert!(merged.out.contains("4 weights that were codes or in 16 bits are f32 now"), "{}", merged.out);
}

#[test]
fn adapters_over_a_base_that_is_codes_already_and_two_of_them_at_once() {
    let bench = tuned(&[]);
    bench.kiln(&["quantize", "base", "--scheme", "int4-g32", "-o", "small"]).fine();
    let sets = ["--set", "model.load=small", "--set", "run.folder=over"];
    bench.kiln(&[&["train", "adapter.toml"], &sets[..]].concat()).fine();
    assert!(loss(&bench, &["over"]) < loss(&bench, &["small"]));
    let both = "adapter=[{ name = \"a\", targets = \"c_attn\" }, { name = \"b\", kind = \"dora\", targets = \"c_fc\" }]";
    bench.kiln(&["train", "adapter.toml", "--set", both, "--set", "run.folder=both"]).fine();
    let place = "both/checkpoints/step-000006";
    let [a, b] = ["a", "b"].map(|name| format!("{place}/{name}"));
    let of_both = loss(&bench, &["both"]);
    assert!((loss(&bench, &["base", "--adapter", &a, "--adapter", &b]) - of_both).abs() < 1e-6);
    assert!((loss(&bench, &["base", "--adapter", &a]) - of_both).abs() > 1e-6);
    let config = std::fs::read(bench.path(&b).join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((&config["use_dora"], &config["target_modules"]), (&true.into(), &vec!["c_fc"].into()));
    bench.kiln(&["quantize", "base", "--scheme", "W8A8", "-o", "whole"]).fine();
    let sets = ["--set", "model.load=whole", "--set", "run.folder=none"];
    let whole = [&["train", "adapter.toml"], &sets[..]].concat();
    bench.kiln(&whole).refused(1, &["its activations become codes as well", "hint"]);
}

#[test]
fn wrong_adapters_are_refused_with_hints() {
    let bench = tuned(&[]);
    let train = |set: &str| bench.kiln(&["train", "adapter.toml", "--set", "run.folder=other", "--set", set]);
    train("adapter.rank=0").refused(2, &["adapter.rank", "at least 1"]);
    train("adapter.rnak=2").refused(2, &["did you mean `adapter.rank`"]);
    train("adapter.kind=lorra").refused(2, &["did you mean \"lora\""]);
    train("adapter.base=int4").refused(2, &["adapter.base", "f32, f16, int8, nf4"]);
    train("adapter.targets=query").refused(2, &["`query` fits no linear layer", "c_attn, c_proj, c_fc"]);
    train("quantize.scheme=int8").refused(2, &["quantize.scheme", "absent beside [adapter]"]);
    train("precision.int8=forward").refused(2, &["precision.int8", "absent beside [adapter]"]);
    let evaluate = |model: &str, adapter: &str| {
        let all = ["evaluate", model, "--adapter", adapter, "--data", "text.txt", "--device", "cpu"];
        bench.kiln(&all)
    };
    bench.kiln(&["train", "tiny.toml", "--device", "cpu", "--out", "wide", "--set", "model.width=32"]).fine();
    evaluate("wide", "tuned").refused(1, &["does not fit this model", "has shape [4, 16], expected [4, 32]"]);
    evaluate("base", "base").refused(1, &["it has no adapter_config.json"]);
    evaluate("base", "nowhere").refused(1, &["no such model folder: nowhere"]);
    let model = bench.path("tuned/checkpoints/step-000006/adapter_model.safetensors");
    super::truncate(&model);
    evaluate("base", "tuned").refused(1, &["adapter_model.safetensors"]);
    bench.kiln(&["train", "adapter.toml", "--set", "run.folder=moved"]).fine();
    std::fs::rename(bench.path("base"), bench.path("gone")).unwrap();
    let all = ["evaluate", "moved", "--data", "text.txt", "--device", "cpu"];
    bench.kiln(&all).refused(1, &["its base model is", "which is not there", "--adapter"]);
    assert!(loss(&bench, &["gone", "--adapter", "moved"]) > 0.0);
}

#[test]
fn the_memory_of_adapters_is_told_beside_that_of_the_whole() {
    let bench = tuned(&[]);
    let memory = |set: &str| bench.kiln(&["inspect", "adapter.toml", "--memory", "--set", set]).fine().out;
    let text = memory("adapter.rank=2");
    assert!(text.contains("the whole model trained") && text.contains("with adapters"), "{text}");
    let json =
        |set: &str| bench.kiln(&["inspect", "adapter.toml", "--memory", "--json", "--set", set]).json();
    let (plain, codes) = (json("adapter.base=f32"), json("adapter.base=nf4"));
    let bytes = |json: &Value, key: &str| json[key].as_u64().unwrap();
    assert!(bytes(&codes, "frozen_bytes") < bytes(&plain, "frozen_bytes"), "{codes} {plain}");
    assert!(bytes(&plain, "optimizer_bytes") < bytes(&plain, "frozen_bytes"), "{plain}");
    assert!(bytes(&plain, "total_bytes_without_adapters") > 0);
}

#[test]
fn a_pass_of_a_recipe_trains_adapters_and_leaves_a_plain_model() {
    let bench = tuned(&[]);
    bench.write(
        "passes.toml",
        "[data]\ntext = [\"text.txt\"]\n[[pass]]\nkind = \"train\"\n[pass.train]\nsteps = 6\nbatch = 4\ncontext = 16\n\
         learning_rate = { curve = \"constant\", peak = 0.02 }\n\
         [[pass.adapter]]\nname = \"a\"\nrank = 4\nbase = \"nf4\"\ntargets = [\"c_attn\"]\n\
         [[pass.adapter]]\nname = \"b\"\nkind = \"dora\"\nbase = \"nf4\"\ntargets = [\"c_fc\"]\n\
         [[pass]]\nkind = \"quantize\"\nscheme = \"int8\"\n",
    );
    let all = ["compress", "base", "-r", "passes.toml", "-o", "small", "--device", "cpu"];
    bench.kiln(&all).fine();
    assert!(bench.path("small/model.safetensors").is_file() && !bench.path("small/adapters.json").exists());
    assert!(loss(&bench, &["small"]) < loss(&bench, &["base"]));
    let apart =
        std::fs::read_to_string(bench.path("passes.toml")).unwrap().replacen("rank = 4", "merge = false", 1);
    bench.write("apart.toml", apart);
    let all = ["compress", "base", "-r", "apart.toml", "-o", "other", "--device", "cpu"];
    bench.kiln(&all).refused(2, &["adapter.merge", "gives one model", "kiln train"]);
}
