//! `kiln compare` and `kiln diff` as a user meets them.

use super::Bench;
use serde_json::Value;

const ON_CPU: [&str; 4] = ["--data", "text.txt", "--device", "cpu"];

/// A bench with a run of a tiny model.
fn trained() -> Bench {
    let bench = Bench::new();
    bench.train(&["--json"]).json();
    bench
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn schemes_are_compared_in_a_table_as_json_and_on_a_page() {
    let bench = trained();
    let arguments = ["compare", "run", "--schemes", "w8a8,int4,Q4_K,int4-g32", "--rounds", "6", "--training"];
    let report = bench.kiln(&[&arguments[..], &ON_CPU, &["--json", "-o", "page.html"]].concat()).json();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["scheme"].as_str().unwrap()).collect();
    assert_eq!(names, ["f32", "W8A8", "int4-g32", "Q4_K"], "f32 first, each once");
    assert!(rows[3]["problem"].is_null(), "rows too short for blocks take another scheme: {}", rows[3]);
    let schemes: Vec<&Value> =
        rows[3]["layers"].as_array().unwrap().iter().map(|layer| &layer["scheme"]).collect();
    assert!(schemes.iter().all(|scheme| *scheme != "Q4_K"), "no row has 256 weights: {schemes:?}");
    let [f32, w8a8, int4] = [&rows[0], &rows[1], &rows[2]];
    assert_eq!((number(&f32["kl"]["mean"]["value"]), number(&f32["top1_agreement"]["value"])), (0.0, 1.0));
    assert_eq!(f32["perplexity_a"], f32["perplexity_b"]);
    for row in [w8a8, int4] {
        assert_eq!(row["perplexity_a"], f32["perplexity_b"], "all are held against the same");
        let mean = number(&row["kl"]["mean"]["value"]);
        assert!(0.0 < mean && mean <= number(&row["kl"]["percent_99_9"]["value"]), "{row}");
        assert!(number(&row["weight_bytes"]) < number(&f32["weight_bytes"]));
        for pace in ["prefill", "decode"] {
            let rate = &row[pace]["tokens_per_second"];
            let [low, high] = [0, 1].map(|end| number(&rate["interval"][end]));
            assert!(0.0 < low && low <= number(&rate["median"]) && number(&rate["median"]) <= high);
            assert!(rate["rounds"] == 6 && number(&row[pace]["gain"]["median"]) > 0.0);
        }
    }
    // 4 bits and a scale for each 32 weights, or for each 16 where a row has no more.
    let bits = number(&int4["bits_per_weight"]);
    assert!((4.6..5.0).contains(&bits) && number(&w8a8["bits_per_weight"]) > 8.0, "{bits}");
    assert!(number(&w8a8["kl"]["mean"]["value"]) < number(&int4["kl"]["mean"]["value"]));
    let training = report["training"]["rows"].as_array().unwrap();
    assert_eq!(training.len(), 4);
    for row in training {
        assert!(row["problem"].is_null() && number(&row["tokens_per_second"]["median"]) > 0.0, "{row}");
        let off = number(&row["last_loss"]) - number(&training[0]["last_loss"]);
        assert!(off.abs() < 0.1, "all learn the same: {training:?}");
    }
    assert!(report["sentence"].as_str().unwrap().contains("On the host's processor"));

    let page = std::fs::read_to_string(bench.path("page.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    for outside in ["http:", "https:", "src=", "<script", "url(", "@import", "NaN", "inf\""] {
        assert!(!page.contains(outside), "the page needs nothing beside itself: {outside}");
    }
    assert_eq!(page.matches("<svg").count(), 5);
    assert!(page.contains("Q4_K: 4 of 4 layers do not fit it"));
    for word in ["W8A8", "int4-g32", "Q4_K", "prefers-color-scheme", "text.txt", env!("CARGO_PKG_VERSION")] {
        assert!(page.contains(word), "{word}");
    }
    let table =
        bench.kiln(&[&["compare", "run", "--schemes", "int8", "--rounds", "1"], &ON_CPU[..]].concat());
    assert!(table.fine().out.contains("\nscheme"), "a table for people");
}

#[test]
fn what_cannot_be_compared_is_refused_with_a_hint() {
    let bench = trained();
    let compare = |more: &[&str]| bench.kiln(&[&["compare", "run"], more].concat());
    let with_text = |more: &[&str]| compare(&[&ON_CPU[..], more].concat());
    with_text(&["--schemes", "f32,imt8"]).refused(2, &["no scheme `imt8`", "did you mean `int8`"]);
    compare(&["--device", "cpu"]).refused(2, &["--data"]);
    compare(&["--data", "nothing.txt", "--device", "cpu"]).refused(1, &["nothing.txt"]);
    bench.write("short.txt", "3 sheep\n");
    compare(&["--data", "short.txt", "--device", "cpu"])
        .refused(1, &["8 tokens", "one window takes 17", "hint"]);
    with_text(&["--method", "gptq", "--schemes", "int4"]).refused(2, &["--calibrate"]);
    with_text(&["--ignore", "*nowhere*"]).refused(2, &["`*nowhere*` matches no weight"]);
    with_text(&["--rounds", "0"]).refused(2, &["--rounds"]);
    with_text(&["-o", "no/such/page.html"]).refused(2, &["no/such/page.html", "hint"]);
    with_text(&["--tokenizer", "bpe:300"]).refused(2, &["not the model's"]);
    bench.kiln(&["quantize", "run", "--scheme", "int8", "-o", "coded"]).fine();
    let coded = bench.kiln(&[&["compare", "coded"], &ON_CPU[..]].concat());
    coded.refused(1, &["is quantised already", "hint"]);
}

#[test]
fn a_quantised_model_is_told_apart_from_its_own_but_not_from_itself() {
    let bench = trained();
    bench.kiln(&["quantize", "run", "--scheme", "int4-g32", "-o", "coded"]).fine();
    let diff = |a: &str, b: &str| bench.kiln(&[&["diff", a, b, "--json"], &ON_CPU[..]].concat());
    let same = diff("run", "run").json();
    assert_eq!((number(&same["kl"]["most"]), number(&same["top1_agreement"]["value"])), (0.0, 1.0));
    assert!(same["weights"].as_array().unwrap().iter().all(|weight| weight["sqnr_db"].is_null()));
    let apart = diff("run", "coded").json();
    let noise = |key: &str| -> Vec<f64> {
        apart[key].as_array().unwrap().iter().filter_map(|one| one["sqnr_db"].as_f64()).collect()
    };
    assert_eq!(noise("weights").len(), 4, "the four products of its block");
    assert!(noise("weights").iter().all(|decibels| (15.0..30.0).contains(decibels)), "{apart}");
    assert_eq!(noise("hidden").len(), 1, "the embedding is the same, what comes behind the block is not");
    assert!(number(&apart["kl"]["mean"]["value"]) > 0.0 && number(&apart["perplexity_ratio"]["value"]) > 0.9);
    let text = bench.kiln(&[&["diff", "run", "coded"], &ON_CPU[..]].concat()).fine().out;
    assert!(text.contains("weights are the same") && text.contains("KL of B from A"), "{text}");

    bench.write(
        "other.toml",
        std::fs::read_to_string(bench.path("tiny.toml")).unwrap().replace("width = 16", "width = 32"),
    );
    bench.kiln(&["train", "other.toml", "--device", "cpu", "--set", "run.folder=wide"]).fine();
    diff("run", "wide").refused(1, &["the models differ in their weights", "hint"]);
}
