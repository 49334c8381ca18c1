//! A classifier from files: trained, measured, asked.

use super::Bench;

/// A folder with a classifier of lines by their first letters.
fn trained(labels: [&str; 2]) -> Bench {
    let bench = Bench::new();
    let line = |at: usize| format!("{} {at}\t{}\n", ["red", "blue"][at % 2], labels[at % 2]);
    let rows: String = (0..40).map(line).collect();
    bench.write("rows.tsv", format!("text\tlabel\n{rows}"));
    bench.write(
        "classes.toml",
        "[model]\nfamily = \"bert\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\nhead = \"sequence\"\n\
         [data]\nlabelled = [\"rows.tsv\"]\n[train]\nsteps = 40\nbatch = 8\nlearning_rate = 1e-2\n\
         evaluate = { every = 40, batches = 2 }\n[run]\nfolder = \"run\"\n",
    );
    bench.kiln(&["train", "classes.toml", "--device", "cpu"]).fine();
    bench
}

const DEVICE: [&str; 2] = ["--device", "cpu"];

#[test]
fn a_classifier_is_trained_measured_and_asked() {
    let bench = trained(["warm", "cold"]);
    let of = |arguments: &[&str]| bench.kiln(&[arguments, &DEVICE].concat());
    let scores = of(&["evaluate", "run", "--data", "rows.tsv", "--json"]).json();
    assert_eq!((scores["examples"].as_u64(), scores["accuracy"].as_f64()), (Some(40), Some(1.0)));
    assert!(scores["loss"].as_f64().unwrap() < 0.2 && scores["matthews"] == 1.0, "{scores}");
    assert!(of(&["evaluate", "run", "--data", "rows.tsv"]).fine().out.contains("macro f1"));
    let said = of(&["classify", "run", "--text", "red 7", "--text", "blue 8"]).fine().out;
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("warm\tcold=0.") && lines[1].starts_with("cold\tcold=0."), "{said}");
    // A file of another ending has a text on each line; one without labels is read as well.
    bench.write("unseen.txt", "blue 3\n\nred 1\n");
    bench.write("unseen.csv", "id,sentence\n1,blue 3\n2,red 1\n");
    let lines = of(&["classify", "run", "--data", "unseen.txt", "--json"]).fine().out;
    assert_eq!(of(&["classify", "run", "--data", "unseen.csv", "--json"]).fine().out, lines);
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["label"], "cold");
    let sum: f64 = first["probabilities"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-9, "{first}");
    // What is quantised is asked in the same way.
    of(&["quantize", "run", "--scheme", "int8", "-o", "small"]).fine();
    let scores = of(&["evaluate", "small", "--data", "rows.tsv", "--json"]).json();
    assert!(scores["accuracy"].as_f64().unwrap() > 0.9, "{scores}");
}

#[test]
fn what_does_not_go_together_is_refused() {
    let bench = trained(["0", "1"]);
    let of = |arguments: &[&str]| bench.kiln(&[arguments, &DEVICE].concat());
    bench.write("beyond.tsv", "text\tlabel\nred 1\t0\nred 2\t7\n");
    of(&["evaluate", "run", "--data", "beyond.tsv"])
        .refused(1, &["beyond.tsv, line 3", "beyond the 2 classes"]);
    of(&["evaluate", "run", "--data", "text.txt"]).refused(1, &["text.txt", ".tsv, .csv or .jsonl"]);
    of(&["evaluate", "run", "--data", "rows.tsv", "--tokenizer", "char"]).refused(2, &["--tokenizer"]);
    of(&["classify", "run"]).refused(2, &["--text"]);
    of(&["classify", "run", "--text", "a", "--second", "b", "--second", "c"]).refused(2, &["--second"]);
    let column = ["--text-column", "words"];
    of(&[&["classify", "run", "--data", "rows.tsv"][..], &column].concat()).refused(1, &["no `words`"]);
    bench.train(&["--set", "run.folder=causal"]).fine();
    of(&["classify", "causal", "--text", "a"]).refused(1, &["a causal language model", "classifies"]);
    bench.write("both.toml", "[data]\nlabelled = [\"rows.tsv\"]\ntext = [\"text.txt\"]\n");
    of(&["train", "both.toml"]).refused(2, &["data.text", "absent beside `labelled`"]);
    bench.write("words.toml", "[model]\nlabels = [\"a\", \"b\"]\n");
    of(&["train", "words.toml"]).refused(2, &["model.labels", "head = \"sequence\""]);
    bench.write(
        "none.toml",
        "[model]\nfamily = \"bert\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\nhead = \"sequence\"\n",
    );
    of(&["train", "none.toml"]).refused(1, &["model.labels"]);
}

#[test]
fn words_are_tagged_from_a_file_and_spans_are_named() {
    let bench = Bench::new();
    let line = |at: usize| format!("in O\n{} B-{}\n\n", ["Rome", "May"][at % 2], ["L", "T"][at % 2]);
    bench.write("words.txt", (0..24).map(line).collect::<String>());
    bench.write(
        "tags.toml",
        "[model]\nfamily = \"bert\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\nhead = \"token\"\n\
         [data]\ntagged = [\"words.txt\"]\n[train]\nsteps = 40\nbatch = 8\nlearning_rate = 1e-2\n\
         evaluate = { every = 40, batches = 2 }\n[run]\nfolder = \"run\"\n",
    );
    let of = |arguments: &[&str]| bench.kiln(&[arguments, &DEVICE].concat());
    of(&["train", "tags.toml"]).fine();
    let scores = of(&["evaluate", "run", "--data", "words.txt", "--json"]).json();
    assert!(scores["f1"].as_f64().unwrap() > 0.95 && scores["examples"] == 24, "{scores}");
    assert_eq!(of(&["classify", "run", "--text", "in May"]).fine().out, "in\tO\nMay\tB-T\n\n");
    let said = of(&["classify", "run", "--text", "in Rome", "--json"]).json();
    assert_eq!(said["spans"], serde_json::json!([{ "kind": "L", "from": 1, "to": 2, "text": "Rome" }]));
    bench.write("strange.txt", "in O\nRome B-X\n");
    of(&["evaluate", "run", "--data", "strange.txt"])
        .refused(1, &["strange.txt, line 2", "`B-X` is none of"]);
    of(&["evaluate", "run", "--data", "text.txt"]).refused(1, &["text.txt"]);
}

#[test]
fn rows_of_a_table_are_learned_measured_asked_quantised_and_pruned() {
    let bench = Bench::new();
    let row = |at: usize| {
        let (x, y) = ((at * 7 % 20) as f64, (at * 3 % 20) as f64);
        format!("{x},{},{}\n", y * 1000.0, ["over", "under"][usize::from(x < y)])
    };
    bench.write("rows.csv", format!("x,y,where\n{}", (0..60).map(row).collect::<String>()));
    bench.write(
        "rows.toml",
        "[model]\nfamily = \"mlp\"\nlayers = 1\nhidden = 32\n[data]\nrows = [\"rows.csv\"]\ncolumns = { label = \"where\" }\n\
         [train]\nsteps = 80\nbatch = 16\nlearning_rate = 2e-2\nevaluate = { every = 80, batches = 2 }\n[run]\nfolder = \"run\"\n",
    );
    let of = |arguments: &[&str]| bench.kiln(&[arguments, &DEVICE].concat());
    let told = of(&["train", "rows.toml"]).fine().err;
    assert!(
        told.contains("54 training and 6 validation rows of 2 columns") && told.contains("macro f1"),
        "{told}"
    );
    // The checkpoint knows what the column of labels is called; another one is named.
    let scores = of(&["evaluate", "run", "--data", "rows.csv", "--json"]).json();
    let other = ["evaluate", "run", "--data", "rows.csv", "--label-column", "there"];
    of(&other).refused(1, &["rows.csv", "no `there`"]);
    assert!(scores["accuracy"].as_f64().unwrap() > 0.9 && scores["examples"] == 60, "{scores}");
    bench.write("new.tsv", "y\tx\n19000\t0\n0\t19\n");
    let said = of(&["classify", "run", "--data", "new.tsv"]).fine().out;
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("under\tover=0.0") && lines[1].starts_with("over\tover=1.0"), "{said}");
    of(&["classify", "run", "--text", "a"]).refused(2, &["rows of numbers"]);
    of(&["classify", "run", "--data", "none.tsv"]).refused(1, &["none.tsv"]);
    bench.write("lacks.tsv", "x\n1\n");
    of(&["classify", "run", "--data", "lacks.tsv"]).refused(1, &["lacks.tsv, line 2: there is no `y`"]);
    of(&["generate", "run", "--ids", "0"]).refused(1, &["a causal language model"]);
    of(&["compare", "run", "--data", "rows.csv"]).refused(1, &["one of texts"]);
    of(&["inspect", "rows.toml", "--costs"]).fine();
    of(&["quantize", "run", "--scheme", "int8", "--targets", "*", "-o", "small"]).fine();
    of(&["prune", "run", "--sparsity", "0.3", "-o", "sparse"]).fine();
    for made in ["small", "sparse"] {
        let scores = of(&["evaluate", made, "--data", "rows.csv", "--json"]).json();
        assert!(scores["accuracy"].as_f64().unwrap() > 0.8, "{made}: {scores}");
    }
}
