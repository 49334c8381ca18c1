//! Sources of text, from the command line.

use super::Bench;

const STEADY: &str = "train.learning_rate={ curve = \"constant\", peak = 1e-3 }";

fn object(text: &str) -> String {
    serde_json::json!({ "text": text }).to_string() + "\n"
}

fn bench() -> Bench {
    let bench = Bench::new();
    let rows = |count: usize| -> String {
        (0..count).map(|number| object(&format!("{number} goats sleep under the old tree"))).collect()
    };
    bench.write("news.jsonl", rows(60));
    bench.write("bad.jsonl", rows(30) + "{\"text\": 7}\n" + &rows(30));
    let table: String = (0..60).map(|number| format!("{number},\"a row, with {number} words\"\n")).collect();
    bench.write("table.csv", format!("id,body\n{table}"));
    bench
}

#[test]
fn a_model_learns_from_objects_tables_and_texts_and_bad_rows_are_counted_or_refused() {
    let bench = bench();
    let text = "data.text=[\"news.jsonl\", \"t*.txt\", { path = \"table.csv\", column = \"body\" }]";
    let done = bench.train(&["--set", text, "--out", "mixed"]).fine();
    assert!(done.err.contains("data  "), "{}", done.err);
    // What ran stands in the run folder, and goes on from there.
    let written = std::fs::read_to_string(bench.path("mixed/recipe.toml")).unwrap();
    assert!(written.contains("column = \"body\""), "{written}");
    bench.kiln(&["train", "--resume", "mixed", "--set", "train.steps=4"]).fine();

    bench.train(&["--data", "bad.jsonl"]).refused(1, &["bad.jsonl, line 31", "got 7", "--skip-bad"]);
    let done = bench.train(&["--data", "bad.jsonl", "--skip-bad", "--out", "skipped"]).fine();
    assert!(done.err.contains("1 bad row passed over") && done.err.contains("line 31"), "{}", done.err);
}

#[test]
fn sources_that_give_nothing_are_refused_with_what_would_help() {
    let bench = bench();
    bench.train(&["--data", "*.md"]).refused(1, &["*.md", "no file fits"]);
    bench.train(&["--data", "table.csv"]).refused(1, &["no column `text`", "body"]);
    if cfg!(not(feature = "parquet")) {
        bench.write("a.parquet", "PAR1");
        bench.train(&["--data", "a.parquet"]).refused(1, &["a.parquet", "--features parquet"]);
    }
    let text = "data.text=[{ path = \"news.jsonl\", field = \"txt\" }]";
    bench.train(&["--set", text]).refused(1, &["news.jsonl, line 1", "no `txt`, only text"]);
    bench.train(&["--data", "news.jsonl", "--set", "data.separator=token"]).refused(1, &["<|endoftext|>"]);
    let beside = "data.validation={ text = [\"text.txt\"] }";
    let done = bench.train(&["--data", "news.jsonl", "--set", beside, "--out", "beside"]).fine();
    assert!(done.out.contains("validation loss"), "{}", done.out);
}

#[test]
fn sources_are_mixed_by_weight_and_a_run_goes_on_among_them() {
    let bench = bench();
    let text = "data.text=[{ path = \"news.jsonl\", weight = 3 }, { path = \"text.txt\", weight = 1 }]";
    // A rate that falls to the last step would differ with it.
    let train = |more: &[&str]| bench.train(&[&["--set", text, "--set", STEADY], more].concat()).fine();
    let done = train(&["--set", "train.steps=6", "--out", "whole"]);
    assert!(done.err.contains("news.jsonl") && done.err.contains("75.0 % of the windows"), "{}", done.err);
    train(&["--out", "parts"]);
    bench.kiln(&["train", "--resume", "parts", "--set", "train.steps=6", "--device", "cpu"]).fine();
    let weights =
        |run: &str| std::fs::read(bench.path(run).join("checkpoints/step-000006/model.safetensors")).unwrap();
    assert!(weights("whole") == weights("parts"));
}

#[test]
fn tokens_are_kept_for_the_next_run_and_a_damaged_file_is_made_anew() {
    let bench = bench();
    let train = |out: &str| {
        let sets = ["--set", "data.cache=kept", "--set", "data.tokenizer=bpe:300", "--out", out];
        bench.train(&[&["--data", "news.jsonl"][..], &sets].concat()).fine()
    };
    let weights =
        |run: &str| std::fs::read(bench.path(run).join("checkpoints/step-000003/model.safetensors")).unwrap();
    assert!(!train("first").err.contains("tokens   read"));
    let files = || -> Vec<_> {
        let all = std::fs::read_dir(bench.path("kept")).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.extension().is_some_and(|ending| ending == "bin")).collect()
    };
    let [file] = &files()[..] else { panic!("{:?}", files()) };
    assert!(train("second").err.contains("tokens   read from kept"));
    super::truncate(file);
    let third = train("third").err;
    assert!(third.contains("warning: tokens made anew") && third.contains("cut short"), "{third}");
    assert!(train("fourth").err.contains("tokens   read"));
    assert!(["second", "third", "fourth"].iter().all(|run| weights(run) == weights("first")));
}

#[test]
fn a_text_too_short_is_found_before_anything_is_measured() {
    let bench = bench();
    bench.write("short.txt", "a few words");
    let mut command = bench.command(&["train", "tiny.toml", "--data", "short.txt"]);
    let done = super::done(command.env("KILN_CACHE", bench.path("cache")).output().unwrap());
    assert!(!done.err.contains("kernels ") && !done.err.contains("memory "), "{}", done.err);
    done.refused(1, &["the training text has", "but one window needs 17"]);
    assert!(!bench.path("cache/kernels.json").exists() && !bench.path("run/variants.json").exists());
}

#[test]
fn cleaning_removes_what_repeats_and_what_is_no_text_and_never_writes_over_an_input() {
    let bench = Bench::new();
    let long = |word: &str| -> String { (0..60).map(|number| format!("{word}{number} ")).collect() };
    let texts =
        [long("a"), "Twice  said.".into(), long("b"), "twice, said".into(), long("a") + "end", "x".into()];
    bench.write("in.jsonl", texts.iter().map(|text| object(text)).collect::<String>());
    let clean = |more: &[&str]| bench.kiln(&[&["data", "clean", "in.jsonl"], more].concat());
    let report = clean(&["-o", "out.jsonl", "--near", "0.8", "--least-words", "2", "--json"]).json();
    assert_eq!((report["documents"].as_u64(), report["kept"].as_u64()), (Some(6), Some(3)));
    let reasons: Vec<_> =
        report["removed"].as_array().unwrap().iter().map(|r| r["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["exact", "near", "least-words"]);
    let kept = std::fs::read_to_string(bench.path("out.jsonl")).unwrap();
    assert_eq!(kept, [&texts[0], &texts[1], &texts[2]].map(|text| object(text)).concat());

    clean(&["-o", "in.jsonl", "--force"]).refused(2, &["in.jsonl is an input"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(bench.path("in.jsonl"), bench.path("alias.jsonl")).unwrap();
        clean(&["-o", "alias.jsonl", "--force"]).refused(2, &["alias.jsonl is an input"]);
    }
    clean(&["-o", "out.jsonl"]).refused(2, &["out.jsonl exists", "--force"]);
    clean(&["--dry-run", "--quality", "gopher", "--report", "report.json"]).fine();
    let report = std::fs::read_to_string(bench.path("report.json")).unwrap();
    assert!(report.contains("least-words") && report.contains("examples"), "{report}");
    clean(&["-o", "out.txt"]).fine();
    assert!(std::fs::read_to_string(bench.path("out.txt")).unwrap().ends_with("end\n\nx\n\n"));
    // A packed file is written whole, and is an input like any other.
    clean(&["-o", "out.jsonl.gz"]).fine();
    let again = bench.kiln(&["data", "clean", "out.jsonl.gz", "-o", "again.jsonl", "--json"]).json();
    assert_eq!((again["documents"].as_u64(), again["kept"].as_u64()), (Some(5), Some(5)));
    clean(&["-o", "no.txt", "--near", "1.5"]).refused(2, &["--near 1.5"]);
}

#[test]
fn inspecting_counts_documents_and_their_lengths() {
    let bench = bench();
    let counted = bench.kiln(&["data", "inspect", "news.jsonl", "text.txt", "--json"]).json();
    let sources = counted["sources"].as_array().unwrap();
    assert_eq!((sources[0]["documents"].as_u64(), sources[1]["documents"].as_u64()), (Some(60), Some(1)));
    let shares: f64 = sources.iter().map(|source| source["share"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-12);
    bench.kiln(&["data", "inspect", "bad.jsonl"]).refused(1, &["bad.jsonl, line 31"]);
    let done = bench.kiln(&["data", "inspect", "bad.jsonl", "--skip-bad"]).fine();
    assert!(done.out.contains("1 bad rows") && done.out.contains("median"), "{}", done.out);
}

#[test]
fn a_streamed_run_that_stops_and_goes_on_equals_one_that_never_stopped() {
    let bench = bench();
    let set = |steps: &str| -> Vec<String> {
        let text = "data.text=[\"bad.jsonl\", { path = \"table.csv\", column = \"body\" }, \"text.txt\"]";
        let sets = [text, "data.streaming={ buffer = 20 }", "data.skip_bad=true", STEADY, steps];
        sets.iter().flat_map(|set| ["--set".to_string(), set.to_string()]).collect()
    };
    let train = |steps: &str, more: &[&str]| {
        let sets = set(steps);
        let sets: Vec<&str> = sets.iter().map(String::as_str).chain(more.iter().copied()).collect();
        bench.train(&sets).fine()
    };
    let whole = train("train.steps=40", &["--out", "whole"]);
    assert!(whole.err.contains("stream   3 files, a buffer of 20"), "{}", whole.err);
    train("train.steps=17", &["--out", "parts"]);
    bench.kiln(&["train", "--resume", "parts", "--set", "train.steps=40", "--device", "cpu"]).fine();
    let weights =
        |run: &str| std::fs::read(bench.path(run).join("checkpoints/step-000040/model.safetensors")).unwrap();
    assert!(weights("whole") == weights("parts"));
    // Other files than those the checkpoint stands in.
    bench.write("table.csv", "id,body\n1,other\n");
    bench
        .kiln(&["train", "--resume", "parts", "--set", "train.steps=50", "--device", "cpu"])
        .refused(1, &["not these 3 any more"]);
}

#[test]
fn rows_that_a_stream_passed_over_are_told_in_the_end_once_however_often_their_file_is_read() {
    let bench = bench();
    let sets = [
        "data.text=[\"bad.jsonl\"]",
        "data.streaming={ buffer = 5 }",
        "data.skip_bad=true",
        "train.steps=120",
        "train.evaluate.every=120",
        STEADY,
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let told = bench.train(&[&sets[..], &["--out", "told"]].concat()).fine().err;
    assert_eq!(told.matches("1 bad row passed over").count(), 1, "{told}");
    assert!(told.contains("bad.jsonl, line 31: expected text for `text`"), "{told}");
}
