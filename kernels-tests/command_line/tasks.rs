//! `kiln evaluate --task`.

use super::Bench;

/// A trained model and a task over four rows.
fn bench(task: &str) -> Bench {
    let bench = Bench::new();
    bench.train(&[]).fine();
    let row = |n: usize, hue: &str| {
        serde_json::json!({ "n": n, "ask": format!("{n} sheep jump over the"), "hues": ["red", "green", "old"], "hue": hue,
            "text": format!("{n} sheep jump over the {hue} fence.\n"), "facts": ["the red fence", "an old one"] })
        .to_string()
    };
    let rows: Vec<String> =
        [(0, "red"), (1, "green"), (2, "old"), (3, "red")].map(|(n, hue)| row(n, hue)).into();
    bench.write("rows.jsonl", rows.join("\n"));
    bench.write("task.toml", format!("data = \"rows.jsonl\"\n{task}"));
    bench
}

fn ask(bench: &Bench, more: &[&str]) -> super::Done {
    bench.kiln(&[&["evaluate", "run", "--task", "task.toml", "--device", "cpu"], more].concat())
}

#[test]
fn a_model_beside_itself_differs_in_nothing() {
    let bench = bench(
        "kind = \"multiple-choice\"\nprompt = \"{{ ask }}\"\nchoices = \"hues\"\nanswer = \"hue\"\nshots = 1\n",
    );
    let both = ["evaluate", "run", "run", "--task", "task.toml", "--device", "cpu"];
    let json = bench.kiln(&[&both[..], &["--json"]].concat()).json();
    assert_eq!((json["task"].as_str(), json["examples"].as_u64()), (Some("multiple-choice"), Some(4)));
    assert_eq!(json["models"][0]["acc"]["value"], json["models"][1]["acc"]["value"]);
    let difference = &json["differences"][1];
    assert_eq!((difference["metric"].as_str(), difference["value"].as_f64()), (Some("acc_norm"), Some(0.0)));
    assert_eq!(difference["p_value"].as_f64(), Some(1.0));
    let table = bench.kiln(&both).fine();
    assert!(table.out.contains("run less run") && table.out.contains("the same"), "{}", table.out);
    let few = ask(&bench, &["--limit", "2", "--json"]).json();
    assert_eq!(few["examples"].as_u64(), Some(2));
}

#[test]
fn texts_are_predicted_written_and_classified() {
    let bench = bench("kind = \"perplexity\"\nwindow = 16\nstride = 8\n");
    let json = ask(&bench, &["--json"]).json();
    let perplexity = &json["models"][0]["perplexity"];
    let bounds = ["low", "value", "high"].map(|key| perplexity[key].as_f64().unwrap());
    assert!(
        bounds.is_sorted() && bounds[0] > 1.0 && perplexity["standard_error"].as_f64().unwrap() > 0.0,
        "{json}"
    );
    let write = |task: &str| bench.write("task.toml", format!("data = \"rows.jsonl\"\n{task}"));
    write(
        "kind = \"generation\"\nprompt = \"{{ ask }}\"\nanswer = \"text\"\nmax_new_tokens = 6\nstop = [\"\\n\"]\nmetrics = [\"chrf\", \"ter\", \"rouge1\"]\n",
    );
    let json = ask(&bench, &["--json"]).json();
    assert!(
        json["signatures"]["chrf"].as_str().unwrap().contains("nc:6")
            && json["models"][0]["ter"]["value"].is_number()
    );
    write(
        "kind = \"qa\"\nprompt = \"{{ ask }}\"\nanswer = \"hue\"\nsources = \"facts\"\nmax_new_tokens = 4\n",
    );
    let json = ask(&bench, &["--json"]).json();
    for name in ["exact_match", "f1", "support", "citation_precision", "citation_recall"] {
        assert!(json["models"][0][name]["value"].is_number(), "{name}: {json}");
    }
    write(
        "kind = \"classification\"\ntext = \"ask\"\nanswer = \"hue\"\nlabels = [\"red\", \"green\", \"old\"]\n",
    );
    let json = ask(&bench, &["--json"]).json();
    for name in ["accuracy", "macro_f1", "matthews", "calibration_error", "brier"] {
        assert!(json["models"][0][name]["value"].is_number(), "{name}: {json}");
    }
}

#[test]
fn runs_that_are_counted_choose_and_predict_beside_a_model_and_write_nothing() {
    let bench =
        bench("kind = \"multiple-choice\"\nprompt = \"{{ ask }}\"\nchoices = \"hues\"\nanswer = \"hue\"\n");
    bench.kiln(&["ngram", "train", "--data", "text.txt", "--order", "6", "-o", "counted"]).fine();
    let ask = |more: &[&str]| {
        bench
            .kiln(&[&["evaluate", "counted", "run", "--task", "task.toml", "--device", "cpu"], more].concat())
    };
    let json = ask(&["--json"]).json();
    let counted = &json["models"][0];
    assert!(
        counted["acc"]["value"].as_f64().is_some() && json["differences"][0]["p_value"].is_number(),
        "{json}"
    );
    let write = |task: &str| bench.write("task.toml", format!("data = \"rows.jsonl\"\n{task}"));
    write("kind = \"perplexity\"\nwindow = 16\nstride = 8\n");
    let json = ask(&["--json"]).json();
    let of = |at: usize| json["models"][at]["perplexity"]["value"].as_f64().unwrap();
    assert!(of(0) < of(1), "it has seen these very lines, the other model for three steps: {json}");
    write(
        "kind = \"classification\"\ntext = \"ask\"\nanswer = \"hue\"\nlabels = [\"red\", \"green\", \"old\"]\n",
    );
    assert!(ask(&["--json"]).json()["models"][0]["accuracy"]["value"].is_number());
    write("kind = \"qa\"\nprompt = \"{{ ask }}\"\nanswer = \"hue\"\n");
    ask(&[]).refused(2, &["task.toml", "counted is a model of counted runs", "multiple-choice"]);
}

#[test]
fn answers_are_measured_by_the_passages_they_stand_on() {
    let bench = Bench::new();
    let text = std::fs::read_to_string(bench.path("text.txt")).unwrap();
    // The characters that passages bring.
    bench.write("text.txt", text + "[1] a:1-3\n");
    bench
        .train(&["--set", "model.context=160", "--set", "train.context=160", "--set", "data.validation=0"])
        .fine();
    let masked = "[model]\nfamily = \"bert\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 48\n[data]\ntext = [\"text.txt\"]\n\
                  [train]\nsteps = 2\nbatch = 2\ncontext = 16\n[run]\nfolder = \"encoder\"\n";
    bench.write("encoder.toml", masked);
    bench.kiln(&["train", "encoder.toml", "--device", "cpu"]).fine();
    std::fs::create_dir(bench.path("notes")).unwrap();
    bench.write("notes/a", "3 sheep jump\n\nover the red fence.\n");
    bench.write("rows.jsonl", "{\"question\": \"3 sheep jump\", \"answer\": [\"3\", \"three\"]}\n{\"question\": \"over the red fence.\", \"answer\": \"old\"}\n");
    let write = |more: &str| {
        let task = "kind = \"qa\"\ndata = \"rows.jsonl\"\nprompt = \"{{ question }}\"\nmax_new_tokens = 4\nretrieve = \"notes\"\nretrieve_size = 12\n";
        bench.write("task.toml", format!("{task}{more}"));
    };
    let ask = |more: &[&str]| {
        let mut command =
            bench.command(&[&["evaluate", "run", "--task", "task.toml", "--device", "cpu"], more].concat());
        super::done(command.env("KILN_CACHE", bench.path("cache")).output().unwrap())
    };
    write("retrieve_encoder = \"encoder\"\nretrieve_top = 1\n");
    let done = ask(&["--json"]).fine();
    let json: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    let of = |name: &str| json["models"][0][name]["value"].as_f64();
    // The nearest passage of the first question holds its answer; that of the second holds `red`, not `old`.
    assert_eq!((of("retrieved"), of("exact_match")), (Some(0.5), Some(0.0)), "{json}");
    assert!(
        of("support").is_some() && of("citation_precision").is_some() && of("citation_recall").is_some(),
        "{json}"
    );
    write("retrieve_encoder = \"run\"\n");
    ask(&[]).refused(1, &["a causal language model", "expected an encoder"]);
    write("sources = \"facts\"\n");
    ask(&[]).refused(2, &["`retrieve` and `sources`"]);
    write("retrieve_overlap = 7\n");
    ask(&[]).refused(2, &["overlap", "at most half of the size, 6"]);
    if cfg!(not(feature = "retrieve")) {
        write("");
        ask(&[]).refused(2, &["--features retrieve", "retrieve_encoder ="]);
    }
}

#[test]
fn a_task_that_cannot_be_put_says_why() {
    let bench = bench("kind = \"riddle\"\n");
    ask(&bench, &[]).refused(2, &["task.toml", "riddle", "multiple-choice"]);
    let write = |task: &str| bench.write("task.toml", format!("data = \"rows.jsonl\"\n{task}"));
    write("kind = \"multiple-choice\"\nprompt = \"{{ ask }}\"\nchoices = \"hues\"\nanswer = \"n\"\n");
    ask(&bench, &[]).refused(1, &["rows.jsonl, line 4", "the answer is 3", "3 choices"]);
    write("kind = \"qa\"\nprompt = \"{{ ask }}\"\nanswer = \"reply\"\n");
    ask(&bench, &[]).refused(1, &["rows.jsonl, line 1", "no `reply`"]);
    bench.write("rows.jsonl", "");
    ask(&bench, &[]).refused(1, &["rows.jsonl is empty"]);
}
