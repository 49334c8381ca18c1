//! Next sentences and their order in small: compared with transformers, learned, resumed, opened again, refused.

use super::{devices, last_weights, losses, train};
use kiln::deploy::forward;
use kiln::model::{self, Archive, Inputs, Task, Weights};
use kiln::tensor::DType;
use kiln::train::Target;
use kiln::train::job::Job;
use kiln::train::metrics::{self, Line};
use kiln::train::recipe::Recipe;
use std::path::Path;

#[test]
fn scores_losses_and_gradients_are_those_of_transformers() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels-tests/golden/pretraining");
    for (name, task) in [("pretraining", Task::Pretraining), ("next_sentence", Task::NextSentence)] {
        let folder = golden.join(name);
        let mut family = model::open(&folder).unwrap();
        assert_eq!(family.interface().task, task);
        family.set_dropout(0.0);
        let weights = Weights::read(&folder, family.as_ref()).unwrap();
        let case = Archive::open(&folder.join("case.safetensors")).unwrap();
        let inputs = Inputs::read(&case, "in.", family.as_ref()).unwrap();
        for device in devices() {
            let target = Target::open(device).unwrap();
            let outcome = forward(family.as_ref(), &weights, &inputs, &target, DType::F32, true).unwrap();
            let mut seen = 0;
            for expected in case.names().filter(|name| name.starts_with("out.")) {
                let name = expected.strip_prefix("out.").unwrap();
                let (list, own) = match name.strip_prefix("gradient ") {
                    Some(parameter) => (&outcome.gradients, parameter),
                    None => (&outcome.results, name),
                };
                let (_, got) =
                    list.iter().find(|(given, _)| given == own).unwrap_or_else(|| panic!("no {own}"));
                let expected = case.tensor(expected).unwrap();
                assert_eq!(got.shape, expected.shape, "{name}");
                let pairs = got.to_f64().into_iter().zip(expected.to_f64());
                let far = pairs.fold(0.0, |far: f64, (a, b)| far.max((a - b).abs()));
                assert!(far < 1e-5, "{device} {name}: {far} apart");
                seen += 1;
            }
            assert!(seen >= 5, "{seen} were compared");
        }
        // What is saved is what was read, under the same names.
        let again = tempfile::tempdir().unwrap();
        weights.save(again.path(), family.as_ref()).unwrap();
        let read = |folder: &Path| Archive::open(&folder.join("model.safetensors")).unwrap();
        let (ours, theirs) = (read(again.path()), read(&folder));
        for name in ours.names() {
            assert_eq!(ours.tensor(name).unwrap(), theirs.tensor(name).unwrap(), "{name}");
        }
        assert!(ours.names().any(|name| name == "cls.seq_relationship.weight"));
    }
}

/// Documents of two sentences in an order that their words tell, each about a letter of its own.
fn text(place: &Path) -> String {
    let document = |at: usize| {
        let letter = ["a", "b", "c", "d"][at % 4];
        let words = vec![letter; 1 + at / 4 % 3].join("");
        format!("on {words}.\noff {words}.\n\n")
    };
    let path = place.join("text.txt");
    std::fs::write(&path, (0..64).map(document).collect::<String>()).unwrap();
    path.display().to_string()
}

fn recipe(place: &Path, device: &str, objective: &str, sets: &[&str]) -> Recipe {
    let base = format!(
        "[model]\nfamily = \"bert\"\nlayers = 1\nheads = 2\nwidth = 32\ncontext = 20\ndropout = 0.1\n[data]\ntext = [{:?}]\n\
         objective = {{ kind = {objective:?} }}\nvalidation = 0.25\n[train]\nsteps = 12\nbatch = 8\nseed = 7\n\
         learning_rate = {{ curve = \"constant\", peak = 5e-3 }}\nevaluate = {{ every = 12, batches = 4 }}\n\
         [run]\ndevice = {device:?}\nfolder = {:?}\nsave = {{ every = 5, keep = 2 }}\n",
        text(place),
        place.join("run").display().to_string()
    );
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    Recipe::from_text(&base, "test", &sets).unwrap()
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
fn orders_and_next_sentences_are_learned_beside_hidden_tokens() {
    // An order shows in one word of each part; whether both are of one document in all of them.
    for (objective, names, steps, least, most) in [
        ("sentence-order", "ordered or swapped", 150, 0.9, 0.4),
        ("next-sentence", "next or other", 180, 0.6, 0.66),
    ] {
        let place = tempfile::tempdir().unwrap();
        let steps =
            ["train.steps", "train.evaluate.every", "run.save.every"].map(|key| format!("{key}={steps}"));
        let sets: Vec<&str> = steps.iter().map(String::as_str).chain(["model.dropout=0"]).collect();
        let recipe = recipe(place.path(), "cpu", objective, &sets);
        let told = Job::prepare(recipe.clone(), None).unwrap().sequel.unwrap().describe();
        assert!(told.contains("validation pairs of 64 documents") && told.ends_with(names), "{told}");
        let summary = train(recipe, false).unwrap();
        let run = place.path().join("run");
        let [accuracy, pairs, masked] =
            ["accuracy", "pair_loss", "masked_loss"].map(|name| figure(&run, name));
        assert!(accuracy > least && pairs < most && masked < 1.5, "{objective}: {accuracy} {pairs} {masked}");
        assert!((pairs + masked - summary.validation_loss.unwrap()).abs() < 1e-9);
        let family = model::open(&summary.checkpoint.unwrap()).unwrap();
        assert_eq!(family.interface().task, Task::Pretraining);
        assert_eq!(family.config()["architectures"][0], "BertForPreTraining");
    }
}

#[test]
fn resuming_equals_never_stopping_bit_for_bit() {
    for device in devices() {
        let both = ["next-sentence", "sentence-order"];
        for objective in both.into_iter().take(if device == "cpu" { 2 } else { 1 }) {
            let place = tempfile::tempdir().unwrap();
            train(recipe(place.path(), device, objective, &["train.micro_batch=4"]), false).unwrap();
            let run = place.path().join("run");
            let (expected, weights) = (losses(&run), last_weights(&run));
            std::fs::remove_dir_all(run.join("checkpoints/step-000012")).unwrap();
            let written = std::fs::read_to_string(run.join("recipe.toml")).unwrap();
            train(Recipe::from_text(&written, "recipe.toml", &[]).unwrap(), true).unwrap();
            assert_eq!(losses(&run), expected, "{device} {objective}");
            assert!(last_weights(&run) == weights, "{device} {objective}: weights differ");
        }
    }
}

#[test]
fn a_model_for_pairs_alone_is_trained_on_and_one_of_hidden_tokens_gets_the_other_head() {
    let place = tempfile::tempdir().unwrap();
    let first = train(recipe(place.path(), "cpu", "next-sentence", &["train.steps=2"]), false).unwrap();
    let first = first.checkpoint.unwrap();
    let pairs = place.path().join("pairs");
    let mut family = model::open(&first).unwrap().config();
    family.insert("architectures".into(), serde_json::json!(["BertForNextSentencePrediction"]));
    std::fs::create_dir(&pairs).unwrap();
    std::fs::write(pairs.join("config.json"), serde_json::to_vec(&family).unwrap()).unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(first.join(file), pairs.join(file)).unwrap();
    }
    let load = |folder: &Path, more: &str| {
        let text = format!(
            "[model]\nload = {:?}\n[data]\ntext = [{:?}]\nobjective = {{ kind = \"sentence-order\" }}\n{more}\n[train]\nsteps = 2\n\
             batch = 4\n[run]\ndevice = \"cpu\"\nfolder = {:?}\n",
            folder.display().to_string(),
            text(place.path()),
            place.path().join("second").display().to_string()
        );
        Recipe::from_text(&text, "second", &[]).unwrap()
    };
    let summary = train(load(&pairs, ""), false).unwrap();
    assert!((0.3..1.5).contains(&summary.loss), "the loss of pairs alone: {}", summary.loss);
    let kept = model::open(&summary.checkpoint.unwrap()).unwrap();
    assert_eq!(kept.interface().task, Task::NextSentence);
    let error =
        Job::prepare(load(&pairs, "masking = { share = 0.2 }"), None).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("data.masking is for models that guess"), "{error}");
    let mut family = family;
    family.insert("architectures".into(), serde_json::json!(["BertForMaskedLM"]));
    std::fs::write(pairs.join("config.json"), serde_json::to_vec(&family).unwrap()).unwrap();
    let job = Job::prepare(load(&pairs, ""), None).unwrap();
    assert_eq!(job.family.interface().task, Task::Pretraining);
    assert!(job.first_weights().is_ok());
}

#[test]
fn what_makes_no_pairs_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let told = |objective: &str, sets: &[&str]| match Job::prepare(
        recipe(place.path(), "cpu", objective, sets),
        None,
    ) {
        Ok(_) => panic!("{sets:?} was taken"),
        Err(error) => error.to_string(),
    };
    std::fs::write(place.path().join("one.txt"), "a b c.\nd e f.\n").unwrap();
    let one = format!("data.text=[{:?}]", place.path().join("one.txt").display().to_string());
    for (objective, sets, part) in [
        ("next-sentence", vec![one.as_str(), "data.validation=0"], "takes stretches of other documents"),
        ("sentence-order", vec!["train.context=4"], "a pair takes 5 tokens at least"),
        ("sentence-order", vec!["model.family=roberta"], "a bert, which alone learns"),
        ("sentence-order", vec!["model.family=gpt2"], "a causal language model"),
        ("next-sentence", vec!["data.streaming={ buffer = 10 }"], "data.streaming does not go with"),
        ("next-sentence", vec!["model.head=sequence"], "model.head does not go with"),
    ] {
        let message = told(objective, &sets);
        assert!(message.contains(part), "{message}");
    }
    for (objective, part) in [
        ("{ kind = \"next-sentence\", share = 0.2 }", "pairs are of whole sentences"),
        ("{ kind = \"spans\", short = 0.2 }", "only pairs of stretches are cut short"),
        ("{ kind = \"sentence-order\", short = 2 }", "from 0 to 1"),
        ("{ kind = \"sentences\" }", "sentence-order"),
    ] {
        let text = format!("[data]\nobjective = {objective}\n");
        let message = Recipe::from_text(&text, "test", &[]).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}
