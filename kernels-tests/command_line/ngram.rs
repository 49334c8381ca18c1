//! `kiln ngram`, and such models in `kiln evaluate` and `kiln generate`.

use super::Bench;

#[test]
fn runs_are_counted_measured_beside_a_trained_model_and_continued() {
    let bench = Bench::new();
    bench.train(&[]).fine();
    let train = ["ngram", "train", "--data", "text.txt", "--order", "4"];
    let done = bench.kiln(&[&train[..], &["--tokenizer", "run", "-o", "counted"]].concat()).fine();
    assert!(done.out.contains("MiB") && done.out.contains("modified Kneser-Ney"), "{}", done.out);
    let evaluate = ["evaluate", "run", "counted", "--data", "text.txt", "--device", "cpu"];
    let json = bench.kiln(&[&evaluate[..], &["--json"]].concat()).json();
    let (trained, counted) = (&json["models"][0], &json["models"][1]);
    assert_eq!((&trained["model"], &counted["model"]), (&"run".into(), &"counted".into()));
    assert_eq!(trained["tokens"], counted["tokens"]);
    // Three steps teach little; the counts are those of the very text.
    let loss = |of: &serde_json::Value| of["loss"].as_f64().unwrap();
    assert!(loss(counted) < 0.5 && loss(trained) > 1.5, "{json}");
    let alone = bench.kiln(&["evaluate", "counted", "--data", "text.txt", "--json"]).json();
    assert_eq!(alone["loss"], counted["loss"]);
    let table = bench.kiln(&evaluate).fine().out;
    assert!(table.lines().count() == 3 && table.contains("bits per byte"), "{table}");
    let written =
        bench.kiln(&["generate", "counted", "--prompt", "7 sheep jump", "--max-new-tokens", "30"]).fine();
    assert!(written.out.starts_with("7 sheep jump over the "), "{}", written.out);
    let draw = |seed: &str| {
        let arguments = ["generate", "counted", "--prompt", "1", "--do-sample", "--seed", seed, "--json"];
        bench.kiln(&arguments).json()["texts"][0].as_str().unwrap().to_string()
    };
    assert!(draw("1") == draw("1") && draw("1") != draw("2"));
    bench.kiln(&["ngram", "arpa", "counted", "-o", "counted.arpa"]).fine();
    let arpa = std::fs::read_to_string(bench.path("counted.arpa")).unwrap();
    assert!(arpa.starts_with("\\data\\\nngram 1=") && arpa.ends_with("\\end\\\n"));
}

#[test]
fn what_cannot_be_counted_is_refused_with_a_hint() {
    let bench = Bench::new();
    let train = |more: &[&str]| {
        bench.kiln(&[&["ngram", "train", "--data", "text.txt", "-o", "counted"], more].concat())
    };
    train(&["--order", "0"]).refused(2, &["order is 0", "1 to 16"]);
    train(&["--smoothing", "add-k", "--k", "0"]).refused(2, &["k is 0", "above zero"]);
    train(&["--smoothing", "good-turing"]).refused(2, &["good-turing", "kneser-ney"]);
    assert!(!bench.path("counted").exists());
    train(&["--smoothing", "stupid-backoff"]).fine();
    train(&[]).refused(2, &["counted", "is there already"]);
    let evaluate = ["evaluate", "counted", "--data", "text.txt"];
    assert!(bench.kiln(&evaluate).fine().err.contains("do not sum to one"));
    bench
        .kiln(&[&evaluate[..], &["--tokenizer", "char"]].concat())
        .refused(2, &["--tokenizer", "of its own"]);
    bench.kiln(&["ngram", "arpa", "counted", "-o", "a.arpa"]).refused(1, &["stupid back-off", "sum to one"]);
    bench.kiln(&["ngram", "arpa", ".", "-o", "a.arpa"]).refused(2, &["no model of `kiln ngram train`"]);
    super::truncate(&bench.path("counted/ngram.safetensors"));
    bench.kiln(&evaluate).refused(1, &["ngram.safetensors", "damaged"]);
}
