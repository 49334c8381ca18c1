//! `kiln distill`: a student learns from a teacher.

use super::{Bench, Done};
use serde_json::Value;

/// A folder with a teacher of three layers.
fn taught() -> Bench {
    let bench = Bench::new();
    bench.kiln(&["train", "tiny.toml", "--device", "cpu", "--set", "model.layers=3"]).fine();
    bench
}

fn distill(bench: &Bench, student: &str, output: &str, more: &[&str]) -> Done {
    let start = ["distill", "--teacher", "run", "--student", student, "--data", "text.txt", "--steps", "4"];
    let end = ["--set", "train.batch=4", "--device", "cpu", "-o", output];
    bench.kiln(&[&start[..], more, &end].concat())
}

#[test]
fn a_student_of_some_of_the_teachers_layers_learns_and_says_how_it_came_about() {
    let bench = taught();
    let plan = distill(&bench, "layers=2", "small", &["--temperature", "3", "--dry-run"]).fine().out;
    assert!(plan.contains("keep_layers = [0, 2]") && plan.contains("temperature = 3.0"), "{plan}");
    assert!(plan.contains("changes the model's shape") && !bench.path("small").exists(), "{plan}");
    let done =
        distill(&bench, "layers=2", "small", &["--kl", "0.9", "--ce", "0.1", "--hidden", "0.5"]).fine();
    assert!(done.out.contains("trained 4 steps") && done.out.contains("2 layers"), "{}", done.out);
    let record: Value =
        serde_json::from_slice(&std::fs::read(bench.path("small/compression.json")).unwrap()).unwrap();
    let pass = &record["recipe"]["pass"][0];
    assert_eq!((&pass["distill"]["teacher"], &pass["distill"]["hidden"]), (&"original".into(), &0.5.into()));
    assert!(record["passes"][0]["numbers"]["validation_loss"].as_f64().unwrap() > 0.0, "{record}");
    let score = bench.kiln(&["evaluate", "small", "--data", "text.txt", "--device", "cpu"]).fine();
    assert!(score.out.contains("loss"), "{}", score.out);
    // The same again gives the same bytes, and from what the teacher has said nearly the same.
    distill(&bench, "layers=0,2", "again", &["--kl", "0.9", "--ce", "0.1", "--hidden", "0.5"]).fine();
    let weights = |name: &str| std::fs::read(bench.path(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("small"), weights("again"));
    let said = distill(&bench, "layers=2", "third", &["--cache", "said", "--top-k", "5"]).fine();
    assert!(said.err.contains("runs ahead over 4 batches"), "{}", said.err);
    let said = distill(&bench, "layers=1", "fourth", &["--cache", "said", "--top-k", "5"]).fine();
    assert!(said.err.contains("has said all there is to say"), "{}", said.err);
}

#[test]
fn a_student_of_its_own_is_another_model_with_the_teachers_vocabulary() {
    let bench = taught();
    let tiny = |out: &str, sets: &[&str]| {
        let start = ["train", "tiny.toml", "--device", "cpu", "--out", out, "--set", "model.width=8"];
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        bench.kiln(&[&start[..], &sets].concat()).fine();
    };
    tiny("little", &[]);
    let done = distill(&bench, "little", "small", &["--hidden", "0.5", "--attention", "0.5"]).fine();
    assert!(done.out.contains("width 8"), "{}", done.out);
    let written = ["--jsd", "1", "--on-policy", "0.5", "--sequence", "0.25", "--set", "distill.prompt=3"];
    let done = distill(&bench, "little", "written", &written).fine();
    assert!(done.err.contains("the student writes 0.5, the teacher 0.25"), "{}", done.err);
    tiny("foreign", &["model.vocabulary=77"]);
    let hint = "give both the same tokenizer and vocabulary";
    distill(&bench, "foreign", "none", &[]).refused(2, &["the student 77", hint]);
    assert!(!bench.path("none").exists() && !bench.path("none.passes").exists());
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_written() {
    let bench = taught();
    distill(&bench, "layers=9", "none", &[]).refused(2, &["layers=9: the teacher has 3"]);
    distill(&bench, "layers=2,1", "none", &[]).refused(1, &["the layers 0 to 2"]);
    distill(&bench, "layers=two", "none", &[]).refused(2, &["layers=0,2,5"]);
    distill(&bench, "layers=2", "none", &["--kl=-1"]).refused(2, &["distill.kl", "zero or more"]);
    distill(&bench, "layers=2", "none", &["--temperature", "0"]).refused(2, &["distill.temperature"]);
    distill(&bench, "layers=2", "none", &["--cache", "c", "--jsd", "1"]).refused(2, &["distill.jsd"]);
    distill(&bench, "layers=2", "none", &["--on-policy", "0.8", "--sequence", "0.3"])
        .refused(2, &["distill.sequence", "at most 1 together"]);
    distill(&bench, "layers=2", "none", &["--set", "train.stepz=3"]).refused(2, &["train.steps"]);
    distill(&bench, "nowhere", "none", &[]).refused(1, &["no such model folder: nowhere"]);
    assert!(!bench.path("none").exists() && !bench.path("none.passes").exists());
}
