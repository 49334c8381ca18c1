//! Several tasks on one trunk: trained, told apart by `--task`, handed on.

use super::Bench;

const DEVICE: [&str; 2] = ["--device", "cpu"];

/// A folder with the data of three tasks, and a recipe for them.
fn bench() -> Bench {
    let bench = Bench::new();
    let topic = |at: usize| format!("{} {at}\t{}\n", ["red", "blue"][at % 2], ["warm", "cold"][at % 2]);
    bench.write("topics.tsv", format!("text\tlabel\n{}", (0..40).map(topic).collect::<String>()));
    let tags = |at: usize| format!("in O\n{} B-{}\n\n", ["Rome", "May"][at % 2], ["L", "T"][at % 2]);
    bench.write("tags.txt", (0..24).map(tags).collect::<String>());
    bench.write(
        "several.toml",
        "[model]\nfamily = \"bert\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\n\
         [train]\nsteps = 40\nbatch = 8\nlearning_rate = 1e-2\nevaluate = { every = 40, batches = 2 }\n[run]\nfolder = \"run\"\n\
         [[task]]\nname = \"guess\"\nobjective = \"masked-lm\"\ntext = [\"text.txt\"]\nweight = 0.5\n\
         [[task]]\nname = \"topics\"\nobjective = \"sequence\"\nlabelled = [\"topics.tsv\"]\n\
         [[task]]\nname = \"tags\"\nobjective = \"token\"\ntagged = [\"tags.txt\"]\n",
    );
    bench
}

#[test]
fn each_head_is_measured_asked_and_handed_on_by_its_name() {
    let bench = bench();
    let of = |arguments: &[&str]| bench.kiln(&[arguments, &DEVICE].concat());
    let told = of(&["train", "several.toml"]).fine().err;
    for part in ["3 tasks", "task     topics: weight 1, 8 of 16 tokens", "  tags: train loss", "macro f1"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let figures = std::fs::read_to_string(bench.path("run/metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(figures.lines().last().unwrap()).unwrap();
    let topics = ["evaluate", "run", "--task", "topics", "--data", "topics.tsv", "--json"];
    let scores = of(&topics).json();
    assert_eq!((scores["examples"].as_u64(), scores["accuracy"].as_f64()), (Some(40), Some(1.0)));
    assert_eq!(last["topics.accuracy"].as_f64(), Some(1.0), "{last}");
    let said = of(&["classify", "run", "--task", "topics", "--text", "red 7"]).fine().out;
    assert!(said.starts_with("warm\t"), "{said}");
    let said = of(&["classify", "run", "--task", "tags", "--text", "in May"]).fine().out;
    assert_eq!(said, "in\tO\nMay\tB-T\n\n");
    // A folder of one task is one as any other.
    bench.kiln(&["export", "run", "--task", "topics", "--to", "hf", "-o", "topics"]).fine();
    let config = std::fs::read_to_string(bench.path("topics/config.json")).unwrap();
    assert!(config.contains("BertForSequenceClassification") && config.contains("\"warm\""), "{config}");
    let folder = of(&["evaluate", "topics", "--data", "topics.tsv", "--json"]).json();
    assert_eq!(folder, scores);
    // Without a name there is nothing that could be run.
    of(&["classify", "run", "--text", "a"]).refused(1, &["several tasks: guess, topics, tags", "--task"]);
    of(&["evaluate", "run", "--task", "topic", "--data", "topics.tsv"])
        .refused(1, &["no task `topic`", "topics"]);
    of(&["evaluate", "run", "--task", "topics"]).refused(2, &["--data"]);
    of(&["evaluate", "run", "topics", "--task", "topics", "--data", "topics.tsv"]).refused(2, &["one model"]);
    of(&["classify", "topics", "--task", "topics", "--text", "a"]).refused(1, &["one head"]);
    bench.kiln(&["export", "run", "--to", "hf", "-o", "all"]).refused(1, &["several tasks"]);
    of(&["inspect", "several.toml", "--memory"]).fine();
    of(&["inspect", "several.toml", "--costs"]).refused(2, &["[[task]]"]);
}

#[test]
fn a_decoder_writes_and_judges_over_one_trunk() {
    let bench = bench();
    let of = |arguments: &[&str]| bench.kiln(&[arguments, &DEVICE].concat());
    bench.write(
        "decoder.toml",
        "[model]\nfamily = \"llama\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\n\
         [train]\nsteps = 30\nbatch = 8\nlearning_rate = 1e-2\nevaluate = { every = 30, batches = 2 }\n[run]\nfolder = \"run\"\n\
         [[task]]\nname = \"text\"\nobjective = \"causal-lm\"\ntext = [\"text.txt\"]\n\
         [[task]]\nname = \"topics\"\nobjective = \"sequence\"\nlabelled = [\"topics.tsv\"]\n",
    );
    of(&["train", "decoder.toml"]).fine();
    let scores = of(&["evaluate", "run", "--task", "topics", "--data", "topics.tsv", "--json"]).json();
    assert!(scores["accuracy"].as_f64().unwrap() > 0.9, "{scores}");
    let measured = of(&["evaluate", "run", "--task", "text", "--data", "text.txt", "--json"]).json();
    assert!(measured["perplexity"].as_f64().unwrap() < 20.0, "{measured}");
    let said =
        of(&["generate", "run", "--task", "text", "--prompt", "7 sheep", "--max-new-tokens", "5"]).fine();
    assert!(said.out.starts_with("7 sheep"), "{}", said.out);
    of(&["generate", "run", "--prompt", "7"]).refused(1, &["several tasks: text, topics"]);
}

#[test]
fn recipes_of_tasks_that_cannot_be_are_refused_by_the_entry() {
    let bench = bench();
    let good = std::fs::read_to_string(bench.path("several.toml")).unwrap();
    let refused = |name: &str, text: String, code: i32, parts: &[&str]| {
        bench.write(name, text);
        bench.kiln(&["train", name, "--device", "cpu"]).refused(code, parts);
        assert!(!bench.path("run").exists(), "{name} left a run behind");
    };
    let with = |old: &str, new: &str| good.replace(old, new);
    refused("a.toml", with("\"token\"", "\"tokens\""), 2, &["task.2.objective", "did you mean \"token\""]);
    refused("b.toml", with("\"tags\"", "\"topics\""), 2, &["task.2.name", "another name"]);
    refused("c.toml", with("weight = 0.5", "weight = 0"), 2, &["task.0.weight", "above zero"]);
    refused("d.toml", with("weight = 0.5", "weight = inf"), 2, &["task.0.weight", "finite"]);
    refused(
        "e.toml",
        with("weight = 0.5", "context = 64"),
        2,
        &["task.0.context", "at most model.context = 16"],
    );
    refused("f.toml", with("topics.tsv", "none.tsv"), 1, &["task `topics`", "none.tsv"]);
    refused("g.toml", with("masked-lm", "causal-lm"), 1, &["task `guess`", "a masked language model"]);
    bench.kiln(&["train", "several.toml", "--data", "text.txt"]).refused(2, &["data.text", "[[task]]"]);
}
