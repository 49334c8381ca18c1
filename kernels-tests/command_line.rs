//! The `kiln` command as a user meets it: what it prints, what it refuses, with which exit code. All on `--device cpu`.

#[path = "command_line/adapter.rs"]
mod adapter;
#[path = "command_line/bench.rs"]
mod bench;
#[path = "command_line/chain.rs"]
mod chain;
#[path = "command_line/chat.rs"]
mod chat;
#[path = "command_line/classify.rs"]
mod classify;
#[path = "command_line/compare.rs"]
mod compare;
#[path = "command_line/compress.rs"]
mod compress;
#[path = "command_line/data.rs"]
mod data;
#[path = "command_line/distill.rs"]
mod distill;
#[path = "command_line/encoders.rs"]
mod encoders;
#[path = "command_line/export.rs"]
mod export;
#[path = "command_line/generate.rs"]
mod generate;
#[path = "command_line/metrics.rs"]
mod metrics;
#[path = "command_line/ngram.rs"]
mod ngram;
#[path = "command_line/prune.rs"]
mod prune;
#[path = "command_line/quantize.rs"]
mod quantize;
#[path = "command_line/retrieve.rs"]
mod retrieve;
#[path = "command_line/scale.rs"]
mod scale;
#[cfg(feature = "serve")]
#[path = "command_line/serve.rs"]
mod serve;
#[path = "command_line/several.rs"]
mod several;
#[path = "command_line/tasks.rs"]
mod tasks;
#[path = "command_line/transcribe.rs"]
mod transcribe;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// What a command did.
struct Done {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Done {
    /// It worked, and printed this.
    #[track_caller]
    fn fine(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    /// It refused with an exit code and said all of `parts`.
    #[track_caller]
    fn refused(self, code: i32, parts: &[&str]) {
        assert!(!self.err.contains("panicked"), "{}", self.err);
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.out, self.err);
        for part in parts {
            assert!(self.err.contains(part), "expected `{part}` in: {}", self.err);
        }
        assert!(self.out.is_empty(), "what was refused prints nothing on stdout: {}", self.out);
    }

    /// It printed a report and yet ended in an error.
    #[track_caller]
    fn refused_aloud(self, code: i32, part: &str) {
        assert!(self.code == Some(code) && self.err.contains(part) && !self.out.is_empty(), "{}", self.err);
    }

    #[track_caller]
    fn json(self) -> Value {
        let done = self.fine();
        serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{e}: {}", done.out))
    }
}

/// A folder of its own for each test.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { folder: tempfile::tempdir().unwrap() };
        let line = |i: usize| format!("{i} sheep jump over the {} fence.\n", ["red", "green", "old"][i % 3]);
        bench.write("text.txt", (0..120).map(line).collect::<String>());
        bench.write(
            "tiny.toml",
            "[model]\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\n[data]\ntext = [\"text.txt\"]\n\
             [train]\nsteps = 3\nbatch = 4\ncontext = 16\nevaluate = { every = 3, batches = 2 }\n[run]\nfolder = \"run\"\n",
        );
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    fn kiln(&self, arguments: &[&str]) -> Done {
        done(self.command(arguments).output().unwrap())
    }

    fn train(&self, more: &[&str]) -> Done {
        self.kiln(&[&["train", "tiny.toml", "--device", "cpu"], more].concat())
    }
}

fn done(output: Output) -> Done {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("kiln prints UTF-8");
    Done { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Cuts a file to half its size.
fn truncate(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn every_command_has_help_that_ends_in_examples() {
    let bench = Bench::new();
    for command in [
        "train",
        "generate",
        "chat",
        "evaluate",
        "tokenizer",
        "tokenizer train",
        "tokenizer encode",
        "tokenizer decode",
        "tokenizer inspect",
        "data",
        "data clean",
        "data inspect",
        "inspect",
        "bench",
        "bench kernels",
        "bench train",
        "bench serve",
        "bench compare",
        "devices",
        "doctor",
        "tune",
        "demo",
        "diff",
        "compare",
        "forward",
        "embed",
        "serve",
        "classify",
        "metrics",
        "judge",
        "judge results",
        "compress",
        "scale",
        "prune",
        "sensitivity",
        "ngram train",
        "ngram arpa",
        "export",
        "import",
        "adapter merge",
        "adapter unmerge",
    ] {
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = bench.kiln(&arguments).fine().out;
        let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{command}: {help}"));
        assert!(examples.lines().all(|line| line.contains("kiln")), "{command}: {examples}");
    }
}

#[test]
fn a_tiny_model_is_trained_then_writes_and_is_measured() {
    let bench = Bench::new();
    let summary = bench.train(&["--json"]).json();
    assert_eq!(summary["steps"], 3);
    let on_cpu = ["--model", "run", "--device", "cpu"];

    let text =
        bench.kiln(&[&["generate", "--prompt", "7 sheep", "--max-new-tokens", "9"], &on_cpu[..]].concat());
    let text = text.fine();
    assert!(text.out.starts_with("7 sheep") && text.out.chars().count() == 7 + 9 + 1, "{}", text.out);
    assert!(text.err.contains("step-000003"), "which checkpoint is told: {}", text.err);

    let ids = ["generate", "--ids", "1,2,3", "--max-new-tokens", "4", "--json"];
    let greedy = bench.kiln(&[&ids[..], &on_cpu].concat()).json();
    let sequence = greedy["sequences"][0].as_array().unwrap();
    assert_eq!((sequence.len(), &sequence[..3]), (7, &[1, 2, 3].map(Value::from)[..]));
    assert_eq!(greedy["texts"][0].as_str().unwrap().chars().count(), 7);

    let drawn = |seed: &str| {
        let more = ["--temperature", "1.5", "--top-k", "12", "--top-p", "0.99", "--seed", seed];
        bench.kiln(&[&ids[..], &on_cpu, &more].concat()).json()
    };
    assert_eq!(drawn("5"), drawn("5"));
    assert!(
        (0..20).any(|seed| drawn(&seed.to_string()) != greedy),
        "chance must be able to leave the best path"
    );

    let score = bench.kiln(&[&["evaluate", "--data", "text.txt", "--json"], &on_cpu[..]].concat()).json();
    let number = |key: &str| score[key].as_f64().unwrap();
    assert_eq!(score.as_object().unwrap().len(), 5);
    let errors = &score["standard_errors"];
    assert!(errors["loss"].as_f64().unwrap() > 0.0);
    let perplexity = errors["loss"].as_f64().unwrap() * number("perplexity");
    assert!((errors["perplexity"].as_f64().unwrap() - perplexity).abs() < 1e-9);
    assert!((number("perplexity") - number("loss").exp()).abs() < 1e-9);
    // One byte a character and one token a character: only the unit differs.
    assert!((number("bits_per_byte") - number("loss") / std::f64::consts::LN_2).abs() < 1e-9);
    let characters = std::fs::read_to_string(bench.path("text.txt")).unwrap().len();
    assert_eq!(number("tokens"), characters as f64 - 1.0);
}

#[test]
fn a_prompt_longer_than_the_context_is_cut_and_that_is_said() {
    let bench = Bench::new();
    bench.train(&[]).fine();
    let prompt = "11 sheep jump over the old fence.";
    let long = [
        "generate",
        "--model",
        "run",
        "--device",
        "cpu",
        "--max-new-tokens",
        "3",
        "--json",
        "--prompt",
        prompt,
    ];
    let said = bench.kiln(&long).fine();
    assert!(said.err.contains("only the last 16"), "{}", said.err);
    // What was cut off must not count.
    let tail = |done: Done| done.json()["texts"][0].as_str().unwrap()[prompt.len()..].to_string();
    let other = prompt.replace("11 sheep", "27 sheep");
    let shifted = bench.kiln(&[&long[..9], &[other.as_str()]].concat());
    assert_eq!(tail(bench.kiln(&long)), tail(shifted));
}

#[test]
fn a_tokenizer_is_trained_and_gives_the_text_back() {
    let bench = Bench::new();
    let trained = ["tokenizer", "train", "--data", "text.txt", "--vocabulary", "280", "-o", "mine", "--json"];
    assert_eq!(bench.kiln(&trained).json()["vocabulary"], 280);
    let text = "3 sheep jump — naïvely";
    let encoded =
        bench.kiln(&["tokenizer", "encode", "--tokenizer", "mine", "--text", text, "--json"]).json();
    let ids: Vec<String> = encoded["ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    assert!(ids.len() < text.len(), "{ids:?}");
    let words: Vec<&str> = ids.iter().map(String::as_str).collect();
    let decoded = bench.kiln(&[&["tokenizer", "decode", "--tokenizer", "mine"], &words[..]].concat()).fine();
    assert_eq!(decoded.out, format!("{text}\n"));
    let seen =
        bench.kiln(&["tokenizer", "inspect", "--tokenizer", "mine", "--data", "text.txt", "--json"]).json();
    assert_eq!(
        (&seen["kind"], &seen["vocabulary"], &seen["end_of_text"]),
        (&"BPE".into(), &280.into(), &0.into())
    );
    let size = std::fs::metadata(bench.path("text.txt")).unwrap().len();
    assert_eq!(seen["text"]["bytes"], size);
}

#[test]
fn ids_go_through_a_pipe_and_come_back_as_the_text() {
    use std::io::Write;
    let bench = Bench::new();
    bench.kiln(&["tokenizer", "train", "--data", "text.txt", "--char", "-o", "mine"]).fine();
    let ids = bench.kiln(&["tokenizer", "encode", "--tokenizer", "mine", "--data", "text.txt"]).fine().out;
    let mut decode = bench.command(&["tokenizer", "decode", "--tokenizer", "mine"]);
    let mut child =
        decode.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(ids.as_bytes()).unwrap();
    let back = done(child.wait_with_output().unwrap()).fine().out;
    assert_eq!(back, std::fs::read_to_string(bench.path("text.txt")).unwrap());
}

#[test]
fn inspect_tells_graph_plan_memory_and_costs_without_training() {
    let bench = Bench::new();
    let inspect = |view: &[&str]| bench.kiln(&[&["inspect", "tiny.toml", "--device", "cpu"], view].concat());
    assert!(inspect(&[]).fine().out.contains("memory"));
    assert!(inspect(&["--graph"]).fine().out.contains("attention"));
    let plan = inspect(&["--plan"]).fine().out;
    assert!(plan.contains("# step\nslots [") && plan.contains("read `loss`"), "{plan}");
    let memory = inspect(&["--memory", "--json"]).json();
    let arenas = memory["arenas"].as_array().unwrap().iter().map(|a| a["bytes"].as_u64().unwrap());
    assert_eq!(
        memory["total_bytes"].as_u64().unwrap(),
        arenas.sum::<u64>() + memory["run_bytes"].as_u64().unwrap()
    );
    let costs = inspect(&["--costs", "--json"]).json();
    let step = &costs["plans"]["step"];
    let of =
        |key: &str| step["nodes"].as_array().unwrap().iter().map(|n| n[key].as_f64().unwrap()).sum::<f64>();
    assert_eq!(step["flops"].as_f64().unwrap(), of("flops"));
    assert!(of("flops") > 1e6 && of("bytes") > 1e5, "{step}");
    assert!(!bench.path("run").exists(), "inspecting leaves nothing behind");

    bench.train(&[]).fine();
    let of_run = bench.kiln(&["inspect", "--model", "run", "--device", "cpu", "--json"]).json();
    assert_eq!(of_run["weights"], inspect(&["--json"]).json()["weights"]);
}

#[test]
fn a_recipe_that_cannot_work_is_wrong_usage_and_the_message_says_what_would() {
    let bench = Bench::new();
    for (set, parts) in [
        ("train.lerning_rate=1e-3", &["unknown key `train.lerning_rate`", "learning_rate"][..]),
        ("train.stepps=5", &["train.stepps", "steps"]),
        ("train.steps=many", &["train.steps", "wrong type"]),
        ("model.heads=3", &["hint", "divide"]),
        ("train.batch=0", &["train.batch"]),
        ("train.steps", &["no `=`"]),
        ("data.validation=1.5", &["data.validation"]),
    ] {
        bench.train(&["--set", set]).refused(2, parts);
    }
    bench.write("broken.toml", "[train]\nsteps = = 3\n");
    bench.kiln(&["train", "broken.toml"]).refused(2, &["broken.toml, line 2"]);
    bench.kiln(&["train", "absent.toml"]).refused(2, &["absent.toml"]);
    bench.kiln(&["inspect", "tiny.toml", "--set", "model.heads=5"]).refused(2, &["hint"]);
}

#[test]
fn a_flag_or_command_that_does_not_exist_is_wrong_usage() {
    let bench = Bench::new();
    bench.kiln(&["trian"]).refused(2, &["train"]);
    bench.kiln(&["generate", "--model", "x", "--temprature", "1"]).refused(2, &["--temperature"]);
    bench.kiln(&["evaluate", "--data", "text.txt"]).refused(2, &["<MODEL>"]);
    bench.kiln(&["evaluate", "x", "--data", "t", "--batch", "0"]).refused(2, &["from 1 on"]);
    bench.kiln(&["evaluate", "--model", "x", "--data", "t", "--tokenizer", "charr"]).refused(2, &["char"]);
    bench.kiln(&["inspect", "--graph", "--plan"]).refused(2, &["cannot be used with"]);
    bench
        .kiln(&["tokenizer", "train", "--data", "text.txt", "--vocabulary", "9", "-o", "t"])
        .refused(2, &["257", "hint"]);
    bench.kiln(&["train", "absent.toml"]).refused(2, &["absent.toml", "hint: a recipe is a TOML file"]);
    bench.kiln(&["train", "--resume", "absent"]).refused(2, &["absent", "--resume takes a run's folder"]);
    bench.kiln(&["doctor", "--device", "cpu"]).refused(2, &["reference", "hint"]);
}

#[test]
fn text_that_is_no_text_is_refused_with_the_file_and_the_place() {
    let bench = Bench::new();
    bench.write("empty.txt", "");
    bench.write("binary.txt", b"GIF89a\0\0\0");
    bench.write("latin.txt", b"caf\xe9 au lait\n".repeat(40));
    bench.write("short.txt", "too short");
    std::fs::create_dir(bench.path("folder")).unwrap();
    for (data, parts) in [
        ("absent.txt", &["no such file", "absent.txt", "hint"][..]),
        ("empty.txt", &["empty.txt is empty", "hint"]),
        ("binary.txt", &["not text: zero byte at offset 6", "hint"]),
        ("latin.txt", &["not UTF-8: invalid byte 0xe9 at offset 3", "iconv"]),
        ("short.txt", &["tokens, but one window needs 17", "hint"]),
        ("folder", &["no file ending in .txt", "hint"]),
    ] {
        bench.train(&["--data", data]).refused(1, parts);
    }
}

#[test]
fn a_device_that_does_not_exist_is_an_error_and_never_replaced() {
    let bench = Bench::new();
    let done = bench.kiln(&["train", "tiny.toml", "--device", "voodoo3"]);
    assert!(!done.err.contains("panicked") && done.out.is_empty());
    assert!(done.err.contains("voodoo3") || done.err.contains("no GPU adapter found"), "{}", done.err);
    assert!(matches!(done.code, Some(1 | 2)), "{:?}", done.code);
    assert!(!bench.path("run/metrics.jsonl").exists());
}

/// Runs a command that sees no Vulkan adapter: the list of drivers is empty. Metal and DX12 cannot be hidden so.
fn without_adapter(bench: &Bench, arguments: &[&str]) -> Done {
    let mut command = bench.command(arguments);
    for name in ["VK_ICD_FILENAMES", "VK_DRIVER_FILES"] {
        command.env(name, "/nonexistent/driver.json");
    }
    done(command.output().unwrap())
}

#[cfg(target_os = "linux")]
#[test]
fn without_an_adapter_the_default_device_falls_back_to_the_host_and_says_so() {
    let bench = Bench::new();
    let fallen = without_adapter(&bench, &["train", "tiny.toml"]).fine();
    assert!(fallen.err.contains("warning: RUNNING ON THE PROCESSOR"), "{}", fallen.err);
    let named = ["train", "tiny.toml", "--device", "0", "--out", "other"];
    without_adapter(&bench, &named).refused(1, &["hint"]);
}

#[cfg(target_os = "linux")]
#[test]
fn the_doctor_reports_that_there_is_no_adapter() {
    let bench = Bench::new();
    without_adapter(&bench, &["doctor", "-o", "report.json"]).refused(1, &["no GPU adapter found", "hint"]);
    let report: Value = serde_json::from_slice(&std::fs::read(bench.path("report.json")).unwrap()).unwrap();
    assert!(report["problem"].as_str().unwrap().contains("no GPU adapter found"), "{report}");
}

#[test]
fn the_doctor_counts_its_trials_or_says_why_there_are_none() {
    let bench = Bench::new();
    let adapters = bench.kiln(&["devices", "--json"]).json()["adapters"].as_array().unwrap().len();
    let visit = bench.kiln(&["doctor", "--only", "pointwise/relu", "--json"]);
    if adapters == 0 {
        assert!(visit.code == Some(1) && visit.err.contains("hint"), "{}", visit.err);
        return;
    }
    let report = visit.json();
    let diagnosis = &report["diagnosis"];
    assert!(diagnosis["passed"].as_u64().unwrap() > 0 && diagnosis["failed"] == 0, "{report}");
    assert_eq!(report["problem"], Value::Null);
    bench.kiln(&["doctor", "--only", "no such kernel"]).refused_aloud(1, "no trial ran");
}

#[test]
fn a_damaged_checkpoint_is_refused_and_of_a_run_the_last_good_one_is_taken() {
    let bench = Bench::new();
    bench.train(&["--set", "run.save.every=2"]).fine();
    let newest = bench.path("run/checkpoints/step-000003");
    truncate(&newest.join("model.safetensors"));
    let write = |model: &str| {
        bench.kiln(&["generate", "--model", model, "--device", "cpu", "--ids", "1", "--max-new-tokens", "2"])
    };
    write("run/checkpoints/step-000003").refused(1, &["model.safetensors", "hint"]);
    let saved = write("run").fine();
    assert!(
        saved.err.contains("damaged checkpoint passed over") && saved.err.contains("step-000002"),
        "{}",
        saved.err
    );
    truncate(&bench.path("run/checkpoints/step-000002/model.safetensors"));
    write("run").refused(1, &["none of 2 can be used", "hint"]);
    bench.train(&["--out", "run"]).refused(1, &["--resume"]);
    bench.kiln(&["train", "--resume", "run", "--device", "cpu"]).refused(1, &["none of 2 can be used"]);
}

#[test]
fn a_model_folder_without_what_a_command_needs_is_an_error_with_a_hint() {
    let bench = Bench::new();
    bench.train(&[]).fine();
    let with = |arguments: &[&str]| bench.kiln(&[arguments, &["--device", "cpu"]].concat());
    with(&["generate", "absent"]).refused(1, &["no such model folder", "hint"]);
    std::fs::create_dir(bench.path("hollow")).unwrap();
    with(&["generate", "hollow"]).refused(1, &["config.json", "hint"]);
    with(&["generate", "--model", "run", "--prompt", "Ü"]).refused(1, &["'Ü'", "hint"]);
    with(&["generate", "--model", "run", "--prompt", ""]).refused(2, &["prompt is empty", "hint"]);
    with(&["generate", "--model", "run", "--ids", "1,99"]).refused(2, &["token 99"]);
    with(&["generate", "--model", "run", "--top-p", "3"]).refused(2, &["top-p is 3"]);
    // A copy without tokenizer: numbers still go in and out.
    let bare = bench.path("bare");
    std::fs::create_dir(&bare).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(bench.path("run/checkpoints/step-000003").join(name), bare.join(name)).unwrap();
    }
    with(&["generate", "--model", "bare", "--prompt", "7"]).refused(1, &["--ids", "hint"]);
    let numbers = with(&["generate", "--model", "bare", "--ids", "1,2", "--max-new-tokens", "3"]).fine();
    assert_eq!(numbers.out.split_whitespace().filter(|word| word.parse::<u32>().is_ok()).count(), 5);
    with(&["evaluate", "--model", "bare", "--data", "text.txt"]).refused(1, &["--tokenizer char"]);
    let same = |model: &[&str]| {
        with(&[&["evaluate", "--data", "text.txt", "--json", "--model"], model].concat()).json()
    };
    assert_eq!(same(&["bare", "--tokenizer", "char"]), same(&["run"]));
}

#[test]
fn a_word_that_kiln_tune_does_not_know_and_a_ledger_that_cannot_be_read_are_told() {
    let bench = Bench::new();
    bench.kiln(&["tune", "tiny.toml", "--device", "cpu"]).refused(2, &["nothing to choose", "hint"]);
    bench.kiln(&["tune", "tiny.toml", "--seconds", "-1"]).refused(2, &["--seconds"]);
    if bench.kiln(&["devices", "--json"]).json()["adapters"].as_array().is_none_or(Vec::is_empty) {
        return bench.kiln(&["tune", "tiny.toml"]).refused(1, &["no GPU adapter found", "hint"]);
    }
    let wide = ["--set", "model.width=64", "--set", "train.batch=16"];
    let with = |variable: &str, value: &str, arguments: &[&str]| {
        done(bench.command(&[arguments, &wide].concat()).env(variable, value).output().unwrap())
    };
    with("KILN_TUNE", "perhaps", &["tune", "tiny.toml"])
        .refused(2, &["KILN_TUNE is `perhaps`", "off, use or force"]);
    let cache = bench.path("cache");
    let ledger = cache.join("kernels.json");
    let tuned = with("KILN_CACHE", cache.to_str().unwrap(), &["tune", "tiny.toml", "--json"]);
    assert!(tuned.err.contains("measured the kernels"), "{}", tuned.err);
    assert!(!tuned.json()["dispatches"].as_object().unwrap().is_empty());
    truncate(&ledger);
    let again = with("KILN_CACHE", cache.to_str().unwrap(), &["tune", "tiny.toml", "--seconds", "0"]).fine();
    assert!(
        again.err.contains("unreadable") && again.err.contains("keep their first choice"),
        "{}",
        again.err
    );
    with("KILN_CACHE", cache.to_str().unwrap(), &["tune", "tiny.toml"]).fine();
    let book: Value = serde_json::from_str(&std::fs::read_to_string(&ledger).unwrap()).unwrap();
    assert!(book["adapters"].as_object().is_some_and(|a| a.len() == 1), "{book}");
}

#[test]
fn a_profile_tells_the_time_of_every_operator_and_changes_nothing_that_is_kept() {
    let bench = Bench::new();
    let plain = bench.train(&["--out", "plain", "--json"]).json();
    let profiled = bench.train(&["--out", "timed", "--json", "--profile"]).json();
    assert_eq!(plain["loss"], profiled["loss"]);
    let weights =
        |run: &str| std::fs::read(bench.path(run).join("checkpoints/step-000003/model.safetensors")).unwrap();
    assert_eq!(weights("plain"), weights("timed"));
    let table = std::fs::read_to_string(bench.path("timed/profile.txt")).unwrap();
    assert!(table.contains("matmul") && table.contains("adamw") && table.contains("GFLOP/s"), "{table}");
    let trace: Value =
        serde_json::from_slice(&std::fs::read(bench.path("timed/profile.json")).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let timed = events.iter().filter(|e| e["ph"] == "X" && e["dur"].as_f64().is_some_and(|us| us >= 0.0));
    assert!(timed.count() > 10, "{trace}");
}
