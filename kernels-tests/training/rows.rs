//! Rows of a table: told apart, predicted, resumed, opened again, compared with PyTorch, refused.

use super::{devices, losses, train};
use kiln::data::labelled::Columns;
use kiln::evaluate::RowClassifier;
use kiln::exchange::open_to_run;
use kiln::model::{self, Column, Labels, Task, Weights};
use kiln::train::Target;
use kiln::train::job::Job;
use kiln::train::metrics::{self, Line};
use kiln::train::recipe::Recipe;
use std::path::Path;

/// A table of points that are inside a ring or outside of it, far from zero and of unlike sizes.
fn ring(place: &Path) -> String {
    let mut text = "east,north,side\n".to_string();
    for at in 0..120 {
        let (angle, radius) = (at as f64 * 0.7, if at % 2 == 0 { 0.5 } else { 1.5 });
        let side = ["inside", "outside"][at % 2];
        text += &format!("{},{},{side}\n", 1e5 + 400.0 * radius * angle.cos(), 0.01 * radius * angle.sin());
    }
    let path = place.join("ring.csv");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn recipe(place: &Path, device: &str, data: &str, sets: &[&str]) -> Recipe {
    let base = format!(
        "[model]\nfamily = \"mlp\"\nlayers = 2\nhidden = 16\ndropout = 0.1\n[data]\n{data}\nvalidation = 0.25\n\
         [train]\nsteps = 60\nbatch = 16\nseed = 7\nlearning_rate = {{ curve = \"constant\", peak = 1e-2 }}\n\
         evaluate = {{ every = 30, batches = 4 }}\n[run]\ndevice = {device:?}\nfolder = {:?}\n\
         save = {{ every = 25, keep = 2 }}\n",
        place.join("run").display().to_string()
    );
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    Recipe::from_text(&base, "test", &sets).unwrap()
}

fn data(place: &Path) -> String {
    format!("rows = [{:?}]\ncolumns = {{ label = \"side\" }}", ring(place))
}

fn figure(run: &Path, name: &str) -> f64 {
    let lines = metrics::read(run).unwrap();
    let last = lines.iter().rev().find_map(|line| match line {
        Line::Evaluation(evaluation) => Some(evaluation.clone()),
        _ => None,
    });
    last.unwrap().scores[name].unwrap()
}

#[test]
fn points_within_a_ring_are_told_from_those_outside_and_the_checkpoint_needs_no_table() {
    for device in devices() {
        let place = tempfile::tempdir().unwrap();
        let summary = train(recipe(place.path(), device, &data(place.path()), &[]), false).unwrap();
        let run = place.path().join("run");
        let [accuracy, f1, matthews] = ["accuracy", "macro_f1", "matthews"].map(|name| figure(&run, name));
        assert!(accuracy > 0.95 && f1 > 0.95 && matthews > 0.9, "{device}: {accuracy} {f1} {matthews}");
        let saved = summary.checkpoint.unwrap();
        assert!(!saved.join("tokenizer.json").exists() && !run.join("tokenizer.json").exists());
        let opened = open_to_run(&saved, &[]).unwrap();
        assert_eq!(opened.family.interface().task, Task::SequenceClass { classes: 2, labels: Labels::One });
        let mut classifier = RowClassifier::new(opened, Target::open(device).unwrap(), 7).unwrap();
        let columns = Columns { label: Some("side".into()), ..Columns::default() };
        let rows = classifier.read(&[place.path().join("ring.csv")], &columns, true).unwrap();
        let scores = classifier.measure(&rows).unwrap();
        assert_eq!(scores.examples, 120);
        assert!(scores.get("accuracy").unwrap() > 0.95, "{scores:?}");
        // Columns go by their names, in whatever order they come.
        let other = place.path().join("other.jsonl");
        std::fs::write(&other, "{\"north\": 0.0, \"east\": 100010.0}\n{\"north\": 0.0, \"east\": 100600}\n")
            .unwrap();
        let rows = classifier.read(&[other], &columns, false).unwrap();
        let said = classifier.classify(&rows).unwrap();
        assert!(said[0][0] > said[0][1] && said[1][1] > said[1][0], "{said:?}");
    }
}

#[test]
fn resuming_equals_never_stopping_with_dropout_and_parts_of_batches() {
    for device in devices() {
        let place = tempfile::tempdir().unwrap();
        let sets = ["train.steps=12", "train.micro_batch=4", "run.save.every=5"];
        train(recipe(place.path(), device, &data(place.path()), &sets), false).unwrap();
        let run = place.path().join("run");
        let last = run.join("checkpoints/step-000012");
        let weights = || std::fs::read(last.join("model.safetensors")).unwrap();
        let (expected, before) = (losses(&run), weights());
        std::fs::remove_dir_all(&last).unwrap();
        let written = std::fs::read_to_string(run.join("recipe.toml")).unwrap();
        assert!(written.contains("labels = [\"inside\", \"outside\"]"), "{written}");
        train(Recipe::from_text(&written, "recipe.toml", &[]).unwrap(), true).unwrap();
        assert_eq!(losses(&run), expected, "{device}");
        assert!(weights() == before, "{device}: weights differ");
    }
}

#[test]
fn what_a_run_measures_is_what_the_saved_model_gives_and_it_is_trained_on() {
    let place = tempfile::tempdir().unwrap();
    let held = place.path().join("held.csv");
    std::fs::write(&held, "side,north,east\ninside,0.001,100000\noutside,0.02,100300\ninside,0,100100\n")
        .unwrap();
    let data = format!("{}\nheld_out = [{:?}]", data(place.path()), held.display().to_string());
    let data = data.replace("validation = 0.25\n", "");
    let base = recipe(place.path(), "cpu", "rows = [\"x\"]", &["train.steps=9"]).to_toml();
    let text = base.replace("rows = [\"x\"]", &data).replace("validation = 0.25\n", "");
    let summary = train(Recipe::from_text(&text, "held", &[]).unwrap(), false).unwrap();
    let saved = summary.checkpoint.unwrap();
    let opened = open_to_run(&saved, &[]).unwrap();
    let mut classifier = RowClassifier::new(opened, Target::open("cpu").unwrap(), 2).unwrap();
    let columns = Columns { label: Some("side".into()), ..Columns::default() };
    let rows = classifier.read(&[held], &columns, true).unwrap();
    let scores = classifier.measure(&rows).unwrap();
    assert!((scores.loss - summary.validation_loss.unwrap()).abs() < 1e-6, "{scores:?}");
    // Tuned further, it keeps the columns as they were standardised.
    let again = format!(
        "[model]\nload = {:?}\ndropout = 0.3\n[data]\n{data}\n[train]\nsteps = 1\nbatch = 4\n[run]\nfolder = {:?}\n",
        saved.display().to_string(),
        place.path().join("again").display().to_string()
    );
    let job = Job::prepare(Recipe::from_text(&again, "again", &[]).unwrap(), None).unwrap();
    let columns = model::columns_of(job.family.as_ref());
    assert_eq!(columns, model::columns_of(model::open(&saved).unwrap().as_ref()));
    assert_eq!(job.family.config()["dropout"], 0.3);
    assert!(job.first_weights().is_ok());
}

/// A run over a table of PyTorch's, all of whose rows are in every step: whatever their order, the loss is the same.
fn replayed(case: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels-tests/golden/lesson").join(case);
    let expected: Vec<f64> =
        serde_json::from_str(&std::fs::read_to_string(golden.join("losses.json")).unwrap()).unwrap();
    for device in devices() {
        let place = tempfile::tempdir().unwrap();
        let run = place.path().join("run");
        let base = format!(
            "[model]\nload = {0:?}\n[data]\nrows = [\"{0}/rows.csv\"]\nvalidation = 0\n[train]\nsteps = {1}\nbatch = 15\n\
             optimizer = {{ kind = \"adamw\", betas = [0.9, 0.999], eps = 1e-8, weight_decay = 0.0 }}\nclip = \"none\"\n\
             learning_rate = {{ curve = \"constant\", peak = 1e-2 }}\n[run]\ndevice = {device:?}\nfolder = {2:?}\n",
            golden.display().to_string(),
            expected.len(),
            run.display().to_string()
        );
        let summary = train(Recipe::from_text(&base, "replayed", &[]).unwrap(), false).unwrap();
        let got = losses(&run);
        assert_eq!(got.len(), expected.len());
        for ((step, got, _), expected) in got.iter().zip(&expected) {
            assert!(
                (got - expected).abs() < 1e-5,
                "{case}, {device}, step {step}: {got}, PyTorch has {expected}"
            );
        }
        let saved = summary.checkpoint.unwrap();
        let family = model::open(&saved).unwrap();
        let ours = Weights::read(&saved, family.as_ref()).unwrap();
        let theirs = model::Archive::open(&golden.join("after.safetensors")).unwrap();
        for spec in family.parameters() {
            let (ours, theirs) = (ours.get(&spec.name).unwrap(), theirs.tensor(&spec.name).unwrap());
            let pairs = ours.to_f64().into_iter().zip(theirs.to_f64());
            let far = pairs.fold(0.0, |far: f64, (a, b)| far.max((a - b).abs()));
            assert!(far < 1e-5, "{case}, {device}, {}: {far} apart", spec.name);
        }
    }
}

#[test]
fn losses_and_weights_of_rows_are_those_of_pytorch() {
    replayed("rows");
    replayed("rows_numbers");
}

#[test]
fn columns_are_standardised_as_scikit_learn_does() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels-tests/golden/lesson/rows");
    let place = tempfile::tempdir().unwrap();
    let data = format!("rows = [{:?}]", golden.join("rows.csv").display().to_string());
    let job = Job::prepare(recipe(place.path(), "cpu", &data, &["data.validation=0"]), None).unwrap();
    let theirs = model::columns_of(model::open(&golden).unwrap().as_ref());
    for (ours, theirs) in model::columns_of(job.family.as_ref()).iter().zip(&theirs) {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs();
        assert!(
            near(ours.mean, theirs.mean) && near(ours.deviation, theirs.deviation),
            "{ours:?} {theirs:?}"
        );
    }
    let plain = recipe(place.path(), "cpu", &data, &["data.standardize=false"]);
    let job = Job::prepare(plain, None).unwrap();
    let first = Column { name: "span".into(), mean: 0.0, deviation: 1.0 };
    assert_eq!(model::columns_of(job.family.as_ref())[0], first);
}

#[test]
fn what_is_no_table_for_it_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let told = |data: &str, sets: &[&str]| match Job::prepare(recipe(place.path(), "cpu", data, sets), None) {
        Ok(_) => panic!("{data} was taken"),
        Err(error) => error.to_string(),
    };
    let good = data(place.path());
    let label = told(&good.replace("\"side\"", "\"east\""), &[]);
    assert!(label.contains("line 2: expected a number for `side`"), "{label}");
    let other = told(&good, &["model={ preset = \"gpt-micro\" }"]);
    assert!(other.contains("family = \"mlp\"") && other.contains("a causal language model"), "{other}");
    let text = told("text = [\"none.txt\"]", &[]);
    assert!(text.contains("none.txt"), "{text}");
    let words = place.path().join("words.tsv");
    std::fs::write(&words, "text\tlabel\na\tx\nb\ty\n").unwrap();
    for data in [format!("labelled = [{:?}]", words.display().to_string()), format!("text = [{words:?}]")] {
        let texts = told(&data, &[]);
        assert!(texts.contains("learns from rows of numbers"), "{texts}");
    }
    let names = told(&good, &["model.labels=[\"a\", \"b\"]"]);
    assert!(names.contains("is none of a, b"), "{names}");
    let refused = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
        Recipe::from_text(&format!("[data]\n{good}\n"), "test", &sets).unwrap_err().to_string()
    };
    for (set, part) in [
        ("data.tokenizer=bpe:4096", "rows of numbers have no tokens"),
        ("data.columns.text=east", "text"),
        ("data.labelled=[\"a.tsv\"]", "absent beside"),
        ("data.columns.features=[\"east\", \"east\"]", "each once"),
    ] {
        let message = refused(&[set]);
        assert!(message.contains(part), "{message}");
    }
}
