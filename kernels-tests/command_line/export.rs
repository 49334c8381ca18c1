//! `kiln export` and `kiln import`.

use super::Bench;
use kiln::formats::{Archive, Element};
use serde_json::Value;

fn keys(bench: &Bench, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(bench.path(file)).unwrap()).unwrap()
}

fn loss(bench: &Bench, model: &str) -> f64 {
    let arguments = ["evaluate", model, "--device", "cpu", "--data", "text.txt", "--json"];
    bench.kiln(&arguments).json()["loss"].as_f64().unwrap()
}

#[test]
fn a_run_becomes_a_folder_a_file_and_a_folder_again_with_the_same_loss() {
    let bench = Bench::new();
    bench.train(&[]).fine();
    bench.kiln(&["export", "run", "--to", "hf", "--shard-size", "4KB", "-o", "folder"]).fine();
    assert!(bench.path("folder/model.safetensors.index.json").is_file());
    // Without it transformers would take the tokenizer for GPT-2's own.
    let settings = std::fs::read_to_string(bench.path("folder/tokenizer_config.json")).unwrap();
    assert!(settings.contains("PreTrainedTokenizerFast"), "{settings}");
    bench.kiln(&["export", "folder", "--to", "gguf", "-o", "model.gguf"]).fine();
    bench.kiln(&["import", "model.gguf", "-o", "again"]).fine();
    let expected = loss(&bench, "run");
    for model in ["folder", "model.gguf", "again"] {
        assert_eq!(loss(&bench, model), expected, "{model}");
    }
    let (folder, again) =
        (Archive::open(&bench.path("folder")).unwrap(), Archive::open(&bench.path("again")).unwrap());
    folder.names().for_each(|name| assert_eq!(folder.raw(name).unwrap(), again.raw(name).unwrap(), "{name}"));
    assert!(bench.path("again/tokenizer_config.json").is_file());
    let eight = bench.kiln(&["export", "run", "--to", "gguf", "--scheme", "Q8_0", "-o", "eight.gguf"]).fine();
    assert!(eight.out.contains("F16") || eight.out.contains("Q8_0"), "{}", eight.out);
}

#[test]
fn of_a_tuned_model_only_what_was_trained_differs_and_all_else_is_handed_on() {
    let bench = Bench::new();
    bench.train(&[]).fine();
    bench.kiln(&["export", "run", "--to", "hf", "--dtype", "bf16", "-o", "base"]).fine();
    assert_eq!(keys(&bench, "base/config.json")["torch_dtype"], "bfloat16");
    let mut config = keys(&bench, "base/config.json");
    config["somebody"] = "knows".into();
    bench.write("base/config.json", config.to_string());
    bench.write("base/generation_config.json", "{\"top_k\": 7}");
    bench.write("base/chat_template.jinja", "{{ messages }}");
    let train = ["train", "tiny.toml", "--device", "cpu", "--set", "model={load=\"base\"}", "--set"];
    let adapter = ["run.folder=tuned", "--set", "adapter={kind=\"lora\",rank=2,targets=[\"c_attn\"]}"];
    bench.kiln(&[&train[..], &adapter].concat()).fine();
    bench.kiln(&["export", "tuned", "--to", "hf", "-o", "merged"]).fine();
    let (base, merged) =
        (Archive::open(&bench.path("base")).unwrap(), Archive::open(&bench.path("merged")).unwrap());
    let differs = |name: &&str| base.raw(name).unwrap().bytes != merged.raw(name).unwrap().bytes;
    assert_eq!(base.names().filter(differs).collect::<Vec<_>>(), ["transformer.h.0.attn.c_attn.weight"]);
    assert!(merged.names().all(|name| merged.element(name) == Some(Element::BF16)));
    for name in ["config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"] {
        let read = |folder: &str| std::fs::read(bench.path(&format!("{folder}/{name}"))).unwrap();
        assert_eq!(read("base"), read("merged"), "{name}");
    }
    // A run that trains everything keeps keys and companions too, and its weights as it holds them.
    bench.kiln(&[&train[..], &["run.folder=whole"]].concat()).fine();
    bench.kiln(&["export", "whole", "--to", "hf", "-o", "all"]).fine();
    assert_eq!(keys(&bench, "all/config.json")["somebody"], "knows");
    assert!(bench.path("all/chat_template.jinja").is_file());
    bench.kiln(&["export", "all", "--to", "gguf", "-o", "all.gguf"]).fine();
    bench.kiln(&["import", "all.gguf", "--dtype", "f16", "-o", "back"]).fine();
    assert_eq!(keys(&bench, "back/tokenizer_config.json")["chat_template"], "{{ messages }}");
    let back = Archive::open(&bench.path("back")).unwrap();
    assert!(back.names().all(|name| back.element(name) == Some(Element::F16)));
}

#[test]
fn what_cannot_be_exported_is_refused_and_nothing_is_written() {
    let bench = Bench::new();
    bench.train(&[]).fine();
    let export = |more: &[&str]| bench.kiln(&[&["export", "run", "-o", "out"], more].concat());
    export(&["--to", "hf", "--scheme", "Q8_0"]).refused(2, &["--scheme", "kiln quantize"]);
    export(&["--to", "gguf", "--scheme", "Q2_K"]).refused(2, &["Q2_K", "Q8_0"]);
    export(&["--to", "gguf", "--scheme", "Q8_0", "--dtype", "f16"]).refused(2, &["--dtype"]);
    export(&["--to", "onnx"]).refused(2, &["onnx"]);
    export(&["--to", "hf", "--shard-size", "5XB"]).refused(2, &["5GB"]);
    bench.kiln(&["export", "nowhere", "--to", "hf", "-o", "out"]).refused(1, &["nowhere", "hint"]);
    bench.kiln(&["import", "run", "-o", "out"]).refused(2, &["run", "no GGUF file"]);
    bench.write("short.gguf", b"GGUF\x03\0\0\0");
    bench.kiln(&["import", "short.gguf", "-o", "out"]).refused(1, &["short.gguf", "damaged"]);
    assert!(!bench.path("out").exists());
    std::fs::create_dir(bench.path("out")).unwrap();
    export(&["--to", "hf"]).refused(2, &["out", "is there already"]);
}

#[test]
fn codes_that_others_read_stay_as_they_are_and_all_else_becomes_floats() {
    let bench = Bench::new();
    bench.train(&["--set", "model.family=\"llama\""]).fine();
    bench
        .kiln(&["quantize", "run", "--scheme", "int8", "--format", "compressed-tensors", "-o", "packed"])
        .fine();
    bench.kiln(&["quantize", "run", "--scheme", "int8", "-o", "own"]).fine();
    bench.kiln(&["export", "packed", "--to", "hf", "-o", "same"]).fine();
    let (packed, same) = (bench.path("packed"), bench.path("same"));
    let (before, after) = (Archive::open(&packed).unwrap(), Archive::open(&same).unwrap());
    assert!(before.names().eq(after.names()) && before.names().any(|name| name.ends_with("_scale")));
    before.names().for_each(|name| assert_eq!(before.raw(name).unwrap(), after.raw(name).unwrap(), "{name}"));
    assert_eq!(keys(&bench, "packed/config.json"), keys(&bench, "same/config.json"));
    for (from, to, more) in [("packed", "wide", &["--dtype", "f32"][..]), ("own", "plain", &[])] {
        bench.kiln(&[&["export", from, "--to", "hf", "-o", to], more].concat()).fine();
        assert!(keys(&bench, &format!("{to}/config.json")).get("quantization_config").is_none(), "{to}");
        let floats = Archive::open(&bench.path(to)).unwrap();
        assert!(floats.names().all(|name| floats.element(name) == Some(Element::F32)), "{to}");
        assert!((loss(&bench, to) - loss(&bench, from)).abs() < 1e-4, "{to}");
    }
}
