//! The loss of several tasks is the weighted sum of theirs, and so is its gradient.

use super::*;
use crate::graph::{Feeds, Graph, evaluate, gradient};
use crate::model::Mode;
use crate::tensor::DType;
use crate::train::recipe::Recipe;
use std::collections::HashMap;
use std::path::Path;

/// Files of three tasks in small, and the tables of a recipe over them.
fn tables(place: &Path, encoder: bool) -> String {
    let write = |name: &str, text: String| {
        std::fs::write(place.join(name), text).unwrap();
        place.join(name).display().to_string()
    };
    let text = write("text.txt", "red car blue sky ".repeat(40));
    let topics =
        (0..12).map(|at| format!("{} {at}\t{}\n", ["red", "blue"][at % 2], ["warm", "cold"][at % 2]));
    let topics = write("topics.tsv", format!("text\tlabel\n{}", topics.collect::<String>()));
    let kinds =
        (0..12).map(|at| format!("{} {at}\t{}\n", ["car", "sky", "hat"][at % 3], ["c", "s", "h"][at % 3]));
    let kinds = write("kinds.tsv", format!("text\tlabel\n{}", kinds.collect::<String>()));
    let tags = (0..12).map(|at| format!("in O\n{} B-L\n\n", ["Rome", "Oslo"][at % 2]));
    let tags = write("tags.txt", tags.collect::<String>());
    let language = if encoder { "masked-lm" } else { "causal-lm" };
    let mut all = format!(
        "[[task]]\nname = \"text\"\nobjective = \"{language}\"\ntext = {text:?}\nweight = 0.5\nbatch = 3\ncontext = 12\n\
         [[task]]\nname = \"topics\"\nobjective = \"sequence\"\nlabelled = {topics:?}\nbatch = 4\n\
         [[task]]\nname = \"kinds\"\nobjective = \"sequence\"\nlabelled = {kinds:?}\nweight = 2.0\nbatch = 5\n"
    );
    if encoder {
        all += &format!(
            "[[task]]\nname = \"places\"\nobjective = \"token\"\ntagged = {tags:?}\nweight = 0.25\nbatch = 2\n"
        );
    }
    all
}

fn job(place: &Path, family: &str, encoder: bool) -> Job {
    let model = format!(
        "[model]\nfamily = {family:?}\nlayers = 1\nheads = 2\nwidth = 8\ncontext = 16\n[train]\nseed = 5\n{}",
        tables(place, encoder)
    );
    Job::prepare(Recipe::from_text(&model, "r.toml", &[]).unwrap(), None).unwrap()
}

/// Loss and gradients by name of a graph whose loss is a result.
fn differentiated(mut graph: Graph, feeds: &Feeds) -> HashMap<String, Tensor> {
    let loss = graph.result("loss").unwrap();
    let (names, wrt): (Vec<String>, Vec<_>) = graph.parameters().map(|(n, v)| (n.to_string(), v)).unzip();
    for (name, found) in names.iter().zip(gradient(&mut graph, loss, &wrt).unwrap()) {
        if let Some(value) = found {
            graph.output(format!("gradient {name}"), value);
        }
    }
    evaluate(&graph, feeds, DType::F64).unwrap()
}

/// The whole graph against each task's own over the same weights and batches.
fn check(family: &str, encoder: bool) {
    let place = tempfile::tempdir().unwrap();
    let job = job(place.path(), family, encoder);
    let several = job.beside.several.as_ref().unwrap();
    let weights = job.first_weights().unwrap();
    let mut streams = several.prefetch(&[], 1).unwrap();
    let mut batches: Vec<Prepared> = streams.iter_mut().map(|stream| stream.next_batch().unwrap()).collect();
    let mut feeds = several.feeds(&job.recipe, 3, 0, &mut |task| Ok(batches[task].clone())).unwrap();
    feeds.join(weights.feeds());
    let mut graph = Graph::new();
    let loss = several.loss(&mut graph, Mode::Train).unwrap();
    graph.output("loss", loss);
    graph.verify().unwrap();
    let whole = differentiated(graph, &feeds);
    let number = |all: &HashMap<String, Tensor>, name: &str| all[name].to_f64()[0];
    let (mut sum, mut gradients) = (0.0, HashMap::<String, Vec<f64>>::new());
    for (part, prepared) in several.parts.iter().zip(batches.drain(..)) {
        let mut own = part.job.training_feeds(prepared, 3, 0).unwrap();
        for spec in part.job.family.parameters() {
            own.set(spec.name.clone(), weights.get(&part.name_of(&spec.name)).unwrap().clone());
        }
        let alone = differentiated(part.graph(Mode::Train).unwrap(), &own);
        let loss = number(&alone, "loss");
        assert!(
            (number(&whole, &format!("loss.{}", part.name)) - loss).abs() < 1e-12,
            "{family} {}",
            part.name
        );
        sum += part.weight * loss;
        for (name, tensor) in alone.iter().filter(|(name, _)| name.starts_with("gradient ")) {
            let name = format!("gradient {}", part.name_of(name.strip_prefix("gradient ").unwrap()));
            let numbers = tensor.to_f64();
            let sum = gradients.entry(name).or_insert_with(|| vec![0.0; numbers.len()]);
            sum.iter_mut().zip(numbers.iter()).for_each(|(sum, x)| *sum += part.weight * x);
        }
    }
    assert!((number(&whole, "loss") - sum).abs() < 1e-12, "{family}");
    let found = whole.keys().filter(|name| name.starts_with("gradient ")).count();
    assert_eq!(found, gradients.len(), "{family}");
    let mut shared = 0;
    for (name, expected) in &gradients {
        let got = whole[name].to_f64();
        let most = expected.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        assert!(
            got.iter().zip(expected).all(|(x, y)| (x - y).abs() <= 1e-12 + 1e-10 * most),
            "{family} {name}"
        );
        shared += usize::from(!name.contains("tasks.") && most > 0.0);
    }
    assert!(shared > 4, "{family}: the trunk learns");
}

#[test]
fn loss_and_gradients_are_the_weighted_sums_of_the_tasks_alone() {
    check("bert", true);
    check("gpt2", false);
    check("llama", false);
}

#[test]
fn heads_of_one_kind_are_apart_and_begin_unlike() {
    let place = tempfile::tempdir().unwrap();
    let job = job(place.path(), "bert", true);
    let several = job.beside.several.as_ref().unwrap();
    let weights = job.first_weights().unwrap();
    let shape = |name: &str| weights.get(name).unwrap().shape.clone();
    assert_eq!(shape("tasks.topics.classifier.weight"), [2, 8].into());
    assert_eq!(shape("tasks.kinds.classifier.weight"), [3, 8].into());
    assert_eq!(shape("tasks.places.classifier.weight"), [2, 8].into());
    let get = |name: &str| weights.get(name).unwrap();
    assert_ne!(get("tasks.topics.classifier.weight"), get("tasks.places.classifier.weight"));
    assert_ne!(get("tasks.topics.bert.pooler.dense.weight"), get("tasks.kinds.bert.pooler.dense.weight"));
    weights.check(&several.parameters()).unwrap();
    // What is hidden takes a token beyond those of the tokenizer, which all tasks then know.
    let known: Vec<usize> = several.parts.iter().map(|part| part.job.family.vocabulary()).collect();
    assert!(
        known.iter().all(|&one| one == job.tokenizer.as_ref().unwrap().vocabulary_size() + 1),
        "{known:?}"
    );
    // What the data settled is in the recipe, so that a run that goes on has the same.
    assert_eq!(job.recipe.tasks[1].labels.len(), 2);
    let again = Recipe::from_text(&job.recipe.to_toml(), "again", &[]).unwrap();
    assert_eq!(again, job.recipe);
}

#[test]
fn each_task_reads_the_batches_that_it_would_read_alone_and_drops_elements_of_its_own() {
    let place = tempfile::tempdir().unwrap();
    let job = job(place.path(), "bert", true);
    let several = job.beside.several.as_ref().unwrap();
    let mut streams = several.prefetch(&[], 1).unwrap();
    let mut next = |task: usize| Ok(streams[task].next_batch()?);
    let feeds = several.feeds(&job.recipe, 0, 0, &mut next).unwrap();
    let topics = &several.parts[1].job;
    let batch = topics.batches().unwrap().next_batch().unwrap();
    let alone = topics.lesson.as_ref().unwrap().feeds(&batch, 4).unwrap();
    for name in ["tokens", "mask", "targets"] {
        assert_eq!(feeds.get(&format!("topics/{name}")), alone.get(name), "{name}");
    }
    assert_ne!(feeds.get("topics/rng"), feeds.get("kinds/rng"));
}

/// A run in small of a recipe's tasks; the last checkpoint.
fn trained(place: &Path, family: &str, run: &str, sets: &[&str], resume: bool) -> std::path::PathBuf {
    let text = format!(
        "[model]\nfamily = {family:?}\nlayers = 1\nheads = 2\nwidth = 8\ncontext = 16\ndropout = 0.1\n\
         [train]\nsteps = 6\nbatch = 4\naccumulate = 2\nseed = 5\nlearning_rate = {{ curve = \"constant\", peak = 1e-2 }}\n\
         evaluate = {{ every = 3, batches = 2 }}\n[run]\ndevice = \"cpu\"\nfolder = {:?}\nsave = {{ every = 2, keep = 9 }}\n{}",
        place.join(run).display().to_string(),
        tables(place, family == "bert")
    );
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    let recipe = Recipe::from_text(&text, "r.toml", &sets).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    crate::train::run::run(recipe, resume, &stop, &mut |_| {}).unwrap().checkpoint.unwrap()
}

#[test]
fn stopping_and_going_on_equals_never_stopping_bit_for_bit() {
    for family in ["bert", "gpt2"] {
        let place = tempfile::tempdir().unwrap();
        let whole = trained(place.path(), family, "whole", &[], false);
        trained(place.path(), family, "parts", &["train.steps=4"], false);
        let parts = trained(place.path(), family, "parts", &[], true);
        for name in ["model.safetensors", "optimizer.safetensors", TASKS_FILE] {
            let [a, b] = [&whole, &parts].map(|folder| std::fs::read(folder.join(name)).unwrap());
            assert!(a == b, "{family}: {name} differs");
        }
        let lines = |run: &str| {
            let text = std::fs::read_to_string(place.path().join(run).join("metrics.jsonl")).unwrap();
            let keep = |line: &str| {
                let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
                ["ms", "tokens_per_s"]
                    .iter()
                    .for_each(|key| drop(line.as_object_mut().unwrap().remove(*key)));
                line
            };
            text.lines().map(keep).collect::<Vec<_>>()
        };
        let (of_whole, of_parts) = (lines("whole"), lines("parts"));
        let steps = |lines: &[serde_json::Value]| {
            lines.iter().filter(|line| line["loss"].is_number()).cloned().collect::<Vec<_>>()
        };
        assert_eq!(steps(&of_whole), steps(&of_parts), "{family}");
        assert_eq!(of_whole.last(), of_parts.last(), "{family}: the last evaluation");
        let step = &steps(&of_whole)[0];
        let sum = 0.5 * step["task_loss"]["text"].as_f64().unwrap()
            + step["task_loss"]["topics"].as_f64().unwrap()
            + 2.0 * step["task_loss"]["kinds"].as_f64().unwrap()
            + 0.25 * step["task_loss"]["places"].as_f64().unwrap_or(0.0);
        assert!((step["loss"].as_f64().unwrap() - sum).abs() < 1e-5, "{step}");
        let last = of_whole.last().unwrap();
        assert!(last["topics.accuracy"].is_number() && last["text.loss"].is_number(), "{last}");
    }
}

#[test]
fn a_causal_classifier_lends_its_trunk_to_a_task_that_predicts_tokens() {
    let place = tempfile::tempdir().unwrap();
    let saved = trained(place.path(), "gpt2", "run", &[], false);
    let (family, weights) = model::open_of_task(&saved, "topics").unwrap();
    let folder = place.path().join("topics");
    weights.save(&folder, family.as_ref()).unwrap();
    Tokenizer::load(&saved).unwrap().save(&folder).unwrap();
    let text = format!("[model]\nload = {:?}\n{}", folder.display().to_string(), tables(place.path(), false));
    let job = Job::prepare(Recipe::from_text(&text, "r.toml", &[]).unwrap(), None).unwrap();
    let first = job.first_weights().unwrap();
    let same = |here: &str, there: &str| assert_eq!(first.get(here).unwrap(), weights.get(there).unwrap());
    same("tasks.topics.score.weight", "score.weight");
    same("transformer.wte.weight", "transformer.wte.weight");
    assert!(first.get("tasks.kinds.score.weight").is_ok());
}

#[test]
fn each_task_of_a_checkpoint_is_a_model_that_measures_as_the_run_did_and_carries_tasks_again() {
    let place = tempfile::tempdir().unwrap();
    let saved = trained(place.path(), "bert", "run", &[], false);
    assert_eq!(model::names_of_tasks(&saved).unwrap().unwrap(), ["text", "topics", "kinds", "places"]);
    let (family, weights) = model::open_of_task(&saved, "kinds").unwrap();
    assert_eq!(model::class_names(family.as_ref()), ["c", "h", "s"]);
    let folder = place.path().join("kinds");
    weights.save(&folder, family.as_ref()).unwrap();
    Tokenizer::load(&saved).unwrap().save(&folder).unwrap();
    // Another run begins with that trunk: what a task has a head for in the folder is kept, other heads are drawn.
    let text = format!("[model]\nload = {:?}\n{}", folder.display().to_string(), tables(place.path(), true));
    let job = Job::prepare(Recipe::from_text(&text, "r.toml", &[]).unwrap(), None).unwrap();
    let first = job.first_weights().unwrap();
    let get = |name: &str| first.get(name).unwrap();
    assert_eq!(get("tasks.kinds.classifier.weight"), weights.get("classifier.weight").unwrap());
    let words = "bert.embeddings.word_embeddings.weight";
    assert_eq!(get(words), weights.get(words).unwrap());
    assert_ne!(get("tasks.topics.classifier.weight"), get("tasks.places.classifier.weight"));
    assert!(first.get("tasks.text.cls.predictions.transform.dense.weight").is_ok());
}

#[test]
fn what_is_wrong_is_told_with_the_task() {
    let place = tempfile::tempdir().unwrap();
    let good = tables(place.path(), true);
    let told = |family: &str, text: &str| {
        let heads = if family == "lstm" { 1 } else { 2 };
        let model = format!("family = {family:?}\nlayers = 1\nheads = {heads}\nwidth = 8\ncontext = 16");
        let text = format!("[model]\n{model}\n{text}");
        let job = Job::prepare(Recipe::from_text(&text, "r.toml", &[]).unwrap(), None);
        job.and_then(|job| job.check_data()).expect_err(&text).to_string()
    };
    for (family, text, parts) in [
        ("gpt2", good.clone(), ["task `text`", "a masked language model, which objective"]),
        ("bert", good.replace("masked-lm", "causal-lm"), ["task `text`", "a masked language model"]),
        ("gpt2", good.replace("masked-lm", "causal-lm"), ["task `places`", "on a causal model"]),
        ("bert", good.replace("kinds.tsv", "none.tsv"), ["task `kinds`", "none.tsv"]),
        ("bert", good.replace("text.txt", "none.txt"), ["task `text`", "none.txt"]),
        (
            "bert",
            good.replace("context = 12", "context = 16\nvalidation = 0.99"),
            ["task `text`", "training"],
        ),
        ("bert", good.replace("tags.txt\"", "topics.tsv\""), ["task `places`", "topics.tsv"]),
        ("bert", good.replace("batch = 5", "batch = 5\nlabels = [\"c\", \"s\"]"), ["task `kinds`", "`h`"]),
        ("lstm", good.replace("masked-lm", "causal-lm"), ["task `topics`", "on which a head can stand"]),
    ] {
        let message = told(family, &text);
        assert!(parts.iter().all(|part| message.contains(part)), "{family}: {message}");
    }
}
