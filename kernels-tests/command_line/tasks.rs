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
    for name in ["exact_match", "f1", "citation_precision", "citation_support"] {
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
