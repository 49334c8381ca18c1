//! `kiln quantize`, `kiln sensitivity` and `kiln compress`.

use super::Bench;

/// A folder with a model that was trained for a moment.
fn trained() -> Bench {
    let bench = Bench::new();
    bench.kiln(&["train", "tiny.toml", "--device", "cpu"]).fine();
    bench
}

fn loss_of(bench: &Bench, model: &str) -> f64 {
    let arguments = ["evaluate", model, "--data", "text.txt", "--device", "cpu", "--json"];
    bench.kiln(&arguments).json()["loss"].as_f64().unwrap()
}

#[test]
fn a_model_is_quantised_by_every_scheme_and_evaluated() {
    let bench = trained();
    let plain = loss_of(&bench, "run");
    for (scheme, off) in [
        ("f16", 1e-3),
        ("int8", 1e-2),
        ("W8A8", 3e-2),
        ("int4-g32", 0.1),
        ("int3", 0.3),
        ("nf4", 0.1),
        ("Q8_0", 1e-2),
    ] {
        let arguments = ["quantize", "run", "--scheme", scheme, "-o", scheme, "--json"];
        let report = bench.kiln(&arguments).json();
        assert_eq!(report["layers"].as_array().unwrap().len(), 4, "{report}");
        assert!(report["bits_per_weight"].as_f64().unwrap() < 17.0);
        let loss = loss_of(&bench, scheme);
        assert!((loss - plain).abs() < off, "{scheme}: {loss} {plain}");
    }
    bench.kiln(&["quantize", "run", "--scheme", "Q8_0", "-o", "model.gguf"]).fine();
    assert!((loss_of(&bench, "model.gguf") - plain).abs() < 1e-2);
    let text = [
        "generate",
        "--model",
        "model.gguf",
        "--prompt",
        "1 sheep",
        "--max-new-tokens",
        "3",
        "--device",
        "cpu",
    ];
    assert!(bench.kiln(&text).fine().out.starts_with("1 sheep"));
}

#[test]
fn methods_that_a_text_guides_and_recipes_of_passes_work_to_the_end() {
    let bench = trained();
    let plain = loss_of(&bench, "run");
    let text = ["--calibrate", "text.txt", "--samples", "8", "--device", "cpu"];
    for (method, scheme) in
        [("gptq", "int4-g32"), ("awq", "int4-g32"), ("smoothquant", "W8A8"), ("rtn", "W8A8-static")]
    {
        let to = format!("{method}-{scheme}");
        let arguments =
            [&["quantize", "run", "--scheme", scheme, "--method", method, "-o", &to][..], &text].concat();
        bench.kiln(&arguments).fine();
        assert!((loss_of(&bench, &to) - plain).abs() < 0.1, "{to}");
    }
    bench.kiln(&[&["sensitivity", "run", "-o", "known.json"][..], &text].concat()).fine();
    bench.write(
        "recipe.toml",
        "[calibration]\ntext = [\"text.txt\"]\nwindows = 8\n[[pass]]\nkind = \"smoothquant\"\n[[pass]]\nkind = \"assign_bits\"\n\
         budget = 6.5\nchoices = [\"int8\", \"int4-g32\"]\nmethod = \"gptq\"\nsensitivity = \"known.json\"\n",
    );
    let arguments = ["compress", "run", "-r", "recipe.toml", "-o", "both", "--device", "cpu", "--json"];
    let report = bench.kiln(&arguments).json();
    assert!(report["passes"][1]["numbers"]["bits_per_weight"].as_f64().unwrap() <= 6.5 + 1e-9, "{report}");
    assert!((loss_of(&bench, "both") - plain).abs() < 0.1);
}

#[test]
fn what_cannot_be_quantised_is_refused_and_nothing_is_written() {
    let bench = trained();
    let refused = |arguments: &[&str], code: i32, parts: &[&str]| {
        let all = [&["quantize", "run", "-o", "new"][..], arguments].concat();
        bench.kiln(&all).refused(code, parts);
        assert!(!bench.path("new").exists() && !bench.path("new.partial").exists());
    };
    refused(&["--scheme", "Q8_O"], 2, &["there is no scheme `Q8_O`", "did you mean `Q8_0`"]);
    refused(&["--scheme", "int4", "--method", "gptq"], 2, &["gptq needs a text", "--calibrate"]);
    refused(&["--scheme", "W8A8-static"], 2, &["W8A8-static needs a text"]);
    refused(&["--scheme", "int8", "--targets", "*.none"], 2, &["`*.none` matches no weight", "c_attn"]);
    bench.write("short.txt", "1 sheep");
    let short = ["--scheme", "int4", "--method", "gptq", "--calibrate", "short.txt"];
    refused(&short, 1, &["has 7 tokens, one window takes 17"]);
    let table = ["--scheme", "nf4", "--method", "gptq", "--calibrate", "text.txt", "--device", "cpu"];
    refused(&table, 2, &["gptq cannot make nf4"]);
    refused(&["--scheme", "int8", "--format", "compressed-tensors"], 1, &["[in, out]", "--format kiln"]);
    bench.kiln(&["quantize", "run", "--scheme", "int8", "-o", "once"]).fine();
    bench.kiln(&["quantize", "once", "--scheme", "int8", "-o", "twice"]).refused(1, &["quantised already"]);
    bench.kiln(&["quantize", "run", "--scheme", "int8", "-o", "once"]).refused(2, &["is there already"]);
    bench.write("recipe.toml", "[[pass]]\nkind = \"quantize\"\nschme = \"int8\"\n");
    bench.kiln(&["compress", "run", "-r", "recipe.toml", "-o", "new"]).refused(2, &["did you mean `scheme`"]);
}

#[test]
fn weights_that_are_no_numbers_and_files_that_were_cut_are_refused() {
    let bench = trained();
    bench.kiln(&["quantize", "run", "--scheme", "int8", "-o", "int8"]).fine();
    bench.kiln(&["quantize", "run", "--scheme", "f32", "-o", "plain"]).fine();
    let cut = |path: &str, keep: f64| {
        let bytes = std::fs::read(bench.path(path)).unwrap();
        bench.write(path, &bytes[..(bytes.len() as f64 * keep) as usize]);
    };
    // A NaN in the last tensor of the plain file.
    let mut bytes = std::fs::read(bench.path("plain/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(bytes[8..8 + header].to_vec()).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let at = json["transformer.h.0.mlp.c_fc.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[8 + header + at..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    bench.write("plain/model.safetensors", &bytes);
    let refused = bench.kiln(&["quantize", "plain", "--scheme", "int4", "-o", "new"]);
    refused.refused(1, &["c_fc.weight", "NaN", "finite"]);
    cut("int8/model.safetensors", 0.7);
    let arguments = ["evaluate", "int8", "--data", "text.txt", "--device", "cpu"];
    bench.kiln(&arguments).refused(1, &["damaged"]);
    bench.kiln(&["quantize", "run", "--scheme", "Q8_0", "-o", "model.gguf"]).fine();
    cut("model.gguf", 0.5);
    let arguments = ["evaluate", "model.gguf", "--data", "text.txt", "--device", "cpu"];
    bench.kiln(&arguments).refused(1, &["damaged"]);
}
