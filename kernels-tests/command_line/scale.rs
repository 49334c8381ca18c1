//! `kiln scale`: a ladder of sizes, laws through their losses, tasks beside them.

use super::Bench;
use serde_json::{Value, json};

const TINY: &str = "[model]\nfamily = \"gpt2\"\ncontext = 16\n[data]\ntext = [\"text.txt\"]\n\
                    [train]\nbatch = 4\nevaluate = { every = 100, batches = 1 }\n";

/// A folder with a study of four sizes and a task.
fn ladder() -> Bench {
    let bench = Bench::new();
    let rungs = "[ladder]\nsizes = [\"8x1x1\", \"8x2x2\", \"16x1x2\", \"16x2x2\"]\ntokens = 256\ntasks = [\"fence.toml\"]\n";
    bench.write("study.toml", format!("{TINY}{rungs}"));
    let row = |at: usize| {
        let right = ["red", "green", "old"][at % 3];
        json!({ "n": at, "choices": ["red", "green", "old"], "answer": right }).to_string() + "\n"
    };
    bench.write("fence.jsonl", (0..12).map(row).collect::<String>());
    bench.write(
        "fence.toml",
        "kind = \"multiple-choice\"\ndata = \"fence.jsonl\"\nprompt = \"{{ n }} sheep\"\nchoices = \"choices\"\nresamples = 50\n",
    );
    bench
}

fn scale(bench: &Bench, more: &[&str]) -> super::Done {
    bench.kiln(&[&["scale", "study.toml", "--device", "cpu", "-o", "study"], more].concat())
}

#[test]
fn a_ladder_is_trained_once_and_told_as_a_table_a_csv_an_object_and_a_page() {
    let bench = ladder();
    let plan = scale(&bench, &["--plan"]).fine().out;
    assert!(plan.contains("16x2x2-t256-s1337") && !bench.path("study").exists(), "{plan}");
    scale(&bench, &["--plan", "--set", "ladder.tokens=5"]).refused(2, &["ladder.tokens=5", "study.toml"]);
    let told = scale(&bench, &["--plan", "--set", "train.steps=500"]).fine();
    assert!(told.err.contains("ladder.tokens") && told.out == plan, "{}", told.err);
    let first = scale(&bench, &["--json"]).json();
    let rungs = first["rungs"].as_array().unwrap();
    assert_eq!(rungs.len(), 4);
    for rung in rungs {
        let facts = &rung["facts"];
        assert_eq!((facts["tokens"].as_u64(), facts["steps"].as_u64()), (Some(256), Some(4)));
        // Forward and backward are about 6 operations a parameter that is no table, and attention and the head besides.
        let per_token = facts["flops"].as_f64().unwrap() / 256.0;
        let without = facts["parameters_without_embeddings"].as_f64().unwrap();
        assert!(per_token > 4.0 * without && per_token < 60.0 * without, "{facts}");
        assert!(rung["loss"].as_f64().unwrap() > 0.0 && rung["tasks"]["fence.toml"]["questions"] == 12);
    }
    let of_size = &first["laws"][0];
    assert_eq!(
        (of_size["over"].as_str(), of_size["formula"].as_str()),
        (Some("parameters"), Some("L(N) = E + A / N^alpha"))
    );
    assert!(of_size["foretold"]["rung"].as_str().unwrap().starts_with("16x2x2"), "{of_size}");
    assert!((first["tasks"][0]["chance"].as_f64().unwrap() - 1.0 / 3.0).abs() < 0.01);
    let read = |name: &str| std::fs::read_to_string(bench.path(name)).unwrap();
    let csv = read("study/scale.csv");
    assert!(
        csv.lines().count() == 5 && csv.starts_with("rung,width,layers") && csv.contains("fence.p_value")
    );
    let page = read("study/scale.html");
    assert!(
        page.matches("<svg").count() == 5 && page.contains("class=\"c0 dashed\""),
        "losses twice, the task thrice"
    );
    assert!(!page.contains("http") && !page.contains("NaN"), "it needs nothing beside itself");

    let again = scale(&bench, &[]).fine();
    assert_eq!(again.err.matches("is there already").count(), 4, "{}", again.err);
    assert!(again.out.contains("L(C)") && again.out.contains("Chance is 0.333"), "{}", again.out);
    assert_eq!(read("study/scale.csv"), csv);
    // A run that lost its result goes on from its checkpoint, and one more size is one more run.
    std::fs::remove_file(bench.path("study/8x2x2-t256-s1337/result.json")).unwrap();
    let more = scale(&bench, &["--sizes", "8x1x1,8x2x2,16x1x2,16x2x2,24x1x2"]).fine();
    assert_eq!(more.err.matches("is there already").count(), 3, "{}", more.err);
    let losses =
        |csv: &str| csv.lines().map(|l| l.split(',').nth(15).unwrap().to_string()).collect::<Vec<_>>();
    assert_eq!(
        losses(&read("study/scale.csv"))[..3],
        losses(&csv)[..3],
        "the resumed run has the loss it had"
    );
    scale(&bench, &["--set", "train.batch=8"])
        .refused(2, &["begun otherwise", "train.batch was 4, is 8", "choose another folder"]);
    bench.write("text.txt", "Another text of another length, by far.\n".repeat(90));
    scale(&bench, &[]).refused(2, &["begun otherwise", "the text's checksum was"]);
}

#[test]
fn a_rung_that_fails_is_named_and_the_others_go_on_or_stop() {
    let bench = Bench::new();
    let rungs = "[memory]\nbudget = \"1MiB\"\n[ladder]\nsizes = [\"8x1x1\", \"64x2x2\"]\ntokens = 64\n";
    bench.write("study.toml", format!("{TINY}{rungs}"));
    let done = scale(&bench, &[]);
    assert!(done.out.contains("failed   64x2x2") && done.err.contains("1 of 2 rungs failed"), "{}", done.err);
    done.refused_aloud(1, "memory.budget");
    assert_eq!(std::fs::read_to_string(bench.path("study/scale.csv")).unwrap().lines().count(), 2);
    bench.write("study.toml", format!("{TINY}{rungs}failure = \"stop\"\n"));
    scale(&bench, &[]).refused(1, &["64x2x2-t64-s1337 failed", "failure = \"stop\""]);
}

#[test]
fn studies_that_cannot_be_are_refused() {
    let bench = ladder();
    bench.write(
        "write.toml",
        "kind = \"generation\"\ndata = \"fence.jsonl\"\nprompt = \"{{ n }}\"\nreference = \"answer\"\n",
    );
    bench.write(
        "words.toml",
        "kind = \"generation\"\ndata = \"fence.jsonl\"\nprompt = \"{{ n }}\"\nanswer = \"answer\"\n",
    );
    let sized = "[ladder]\nsizes = [\"8x1x1\"]\n";
    for (text, parts) in [
        (TINY.to_string(), vec!["the ladder has no rungs", "--sizes"]),
        (
            format!("{TINY}[ladder]\nsizes = [\"8x1x3\"]\n"),
            vec!["line 10", "3 heads do not divide the width of 8"],
        ),
        (format!("{TINY}[ladder]\nsizse = []\n"), vec!["unknown field `sizse`"]),
        (format!("{TINY}widht = 3\n{sized}"), vec!["unknown key `train.widht`"]),
        (
            format!("{TINY}{sized}more_than_data = \"refuse\"\ntokens = 1e6\n"),
            vec!["reads 1000000 tokens", "more_than_data = \"repeat\""],
        ),
        (format!("{TINY}{sized}tasks = [\"words.toml\"]\n"), vec!["there are no choices", "multiple-choice"]),
        (format!("{TINY}{sized}tasks = [\"write.toml\"]\n"), vec!["unknown field `reference`"]),
        (format!("[model]\nload = \"run\"\n{sized}"), vec!["model.load is set", "several sizes"]),
        (
            format!("{TINY}[ladder]\nrecipe = \"tiny.toml\"\nsizes = [\"8x1x1\"]\n"),
            vec!["[data] is beside ladder.recipe"],
        ),
        ("[ladder]\nrecipe = \"none.toml\"\nsizes = [\"8x1x1\"]\n".into(), vec!["none.toml"]),
        (
            format!("{}{sized}", TINY.replace("[data]", "[data]\nvalidation = 0.0")),
            vec!["data.validation is nothing"],
        ),
    ] {
        bench.write("study.toml", &text);
        scale(&bench, &[]).refused(2, &parts);
        assert!(!bench.path("study").exists(), "{text}");
    }
    bench.write("study.toml", TINY);
    scale(&bench, &["--range", "5e3"]).refused(2, &["5e3..5e5"]);
    scale(&bench, &["--range", "3e3..4e3", "--rungs", "9"]).refused(2, &["there twice", "range.rungs"]);
    bench.kiln(&["scale", "study.toml", "--sizes", "8x1x1"]).refused(2, &["--output"]);
}

#[test]
fn a_study_may_have_its_recipe_in_another_file_and_several_seeds() {
    let bench = Bench::new();
    bench.write("study.toml", "[ladder]\nrecipe = \"tiny.toml\"\nsizes = [\"8x1x2\", \"16x1x2\"]\ntokens = [64, 128]\nseeds = [1, 2]\n");
    let plan = scale(&bench, &["--plan"]).fine().out;
    assert_eq!(plan.matches("x2-t").count(), 8, "{plan}");
    // The recipe is of width 16: half the width has a rate sqrt(2) times as high.
    assert!(
        plan.contains("1.41e-3") && plan.contains("1.00e-3") && plan.contains("that of width 16"),
        "{plan}"
    );
    let all: Value = scale(&bench, &["--json"]).json();
    let notes =
        all["laws"].as_array().unwrap().iter().map(|law| law["notes"].to_string()).collect::<String>();
    assert!(
        notes.contains("five numbers need six") && notes.contains("Of each size the rung with most tokens"),
        "{notes}"
    );
}
