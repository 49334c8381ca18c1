//! Classifiers in small: texts with a class, several or a number, learned, resumed, opened again, refused.

use super::{devices, last_weights, losses, train};
use kiln::data::labelled::{Columns, read};
use kiln::embed::{Embedder, Pooling, Settings};
use kiln::evaluate::Classifier;
use kiln::exchange::open_to_run;
use kiln::model::{self, Labels, Task};
use kiln::train::Target;
use kiln::train::job::Job;
use kiln::train::metrics::{self, Line};
use kiln::train::recipe::Recipe;
use std::path::Path;

pub const WORDS: [&str; 12] =
    ["fine", "good", "lovely", "bad", "poor", "dull", "film", "story", "the", "a", "was", "play"];

/// A tokenizer of whole words with `[CLS]` and `[SEP]` around texts, as BERT has them.
pub fn tokenizer(folder: &Path) -> String {
    let path = folder.join("words.json");
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let names = special.iter().chain(&WORDS);
    let vocabulary: serde_json::Map<_, _> =
        names.zip(0..).map(|(n, id): (&&str, i32)| (n.to_string(), id.into())).collect();
    let added: Vec<_> = special
        .iter()
        .zip(0..)
        .map(|(name, id)| serde_json::json!({ "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true }))
        .collect();
    let part = |kind: &str, id: &str, of: u32| serde_json::json!({ kind: { "id": id, "type_id": of } });
    let (open, close, a) =
        (part("SpecialToken", "[CLS]", 0), part("SpecialToken", "[SEP]", 0), part("Sequence", "A", 0));
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "decoder": null,
        "post_processor": {
            "type": "TemplateProcessing", "single": [open, a, close],
            "pair": [open, a, close, part("Sequence", "B", 1), part("SpecialToken", "[SEP]", 1)],
            "special_tokens": {
                "[CLS]": { "id": "[CLS]", "ids": [2], "tokens": ["[CLS]"] },
                "[SEP]": { "id": "[SEP]", "ids": [3], "tokens": ["[SEP]"] },
            },
        },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
    });
    std::fs::write(&path, json.to_string()).unwrap();
    path.display().to_string()
}

/// Reviews that are good or bad by one of their words, sorted by what they are.
fn reviews(count: usize) -> Vec<(String, usize)> {
    let of = |number: usize| {
        let good = usize::from(number < count / 2);
        let word = WORDS[3 * (1 - good) + number % 3];
        let rest = ["film", "story", "play"][number / 3 % 3];
        let text = match number % 4 {
            0 => format!("the {rest} was {word}"),
            1 => format!("a {word} {rest}"),
            2 => format!("{word} {word} was the {rest} a {rest}"),
            _ => format!("the {word} {rest} was a {rest}"),
        };
        (text, good)
    };
    (0..count).map(of).collect()
}

fn write(folder: &Path, name: &str, head: &str, lines: impl Iterator<Item = String>) -> String {
    let path = folder.join(name);
    let text: String = std::iter::once(head.to_string()).chain(lines).map(|line| line + "\n").collect();
    std::fs::write(&path, text.trim_start_matches('\n')).unwrap();
    path.display().to_string()
}

/// A recipe for a new encoder over a file of examples.
fn recipe(place: &Path, device: &str, data: &str, sets: &[&str]) -> Recipe {
    let share = if data.contains("held_out") { "" } else { "validation = 0.25\n" };
    let base = format!(
        "[model]\nfamily = \"bert\"\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\ndropout = 0.1\nhead = \"sequence\"\n\
         [data]\n{data}\ntokenizer = {:?}\n{share}[train]\nsteps = 60\nbatch = 8\nseed = 7\n\
         learning_rate = {{ curve = \"constant\", peak = 1e-2 }}\nevaluate = {{ every = 30, batches = 4 }}\n\
         [run]\ndevice = {device:?}\nfolder = {:?}\nsave = {{ every = 25, keep = 2 }}\n",
        tokenizer(place),
        place.join("run").display().to_string()
    );
    let sets: Vec<String> = sets.iter().map(|set| set.to_string()).collect();
    Recipe::from_text(&base, "test", &sets).unwrap()
}

fn labelled(place: &Path) -> String {
    let lines = reviews(80).into_iter().map(|(text, good)| format!("{}\t{text}", ["bad", "good"][good]));
    format!("labelled = [{:?}]", write(place, "reviews.tsv", "label\ttext", lines))
}

/// Figures of the last evaluation.
fn figure(run: &Path, name: &str) -> f64 {
    let lines = metrics::read(run).unwrap();
    let last = lines.iter().rev().find_map(|line| match line {
        Line::Evaluation(evaluation) => Some(evaluation.clone()),
        _ => None,
    });
    last.unwrap().scores[name].unwrap()
}

#[test]
fn reviews_are_told_apart_and_the_checkpoint_is_a_classifier_with_names() {
    for device in devices() {
        let place = tempfile::tempdir().unwrap();
        let summary = train(recipe(place.path(), device, &labelled(place.path()), &[]), false).unwrap();
        let run = place.path().join("run");
        assert!(figure(&run, "accuracy") > 0.95, "{device}: {}", figure(&run, "accuracy"));
        let saved = summary.checkpoint.unwrap();
        let family = model::open(&saved).unwrap();
        assert_eq!(family.interface().task, Task::SequenceClass { classes: 2, labels: Labels::One });
        assert_eq!(model::class_names(family.as_ref()), ["bad", "good"]);
        assert_eq!(family.config()["label2id"]["good"], 1);
        let opened = open_to_run(&saved, &[]).unwrap();
        let target = Target::open(device).unwrap();
        let mut classifier = Classifier::new(opened, &saved, target, 5, None).unwrap();
        let all = read(&[place.path().join("reviews.tsv")], &Columns::default(), true).unwrap();
        let scores = classifier.measure(&all).unwrap();
        assert_eq!(scores.examples, 80);
        assert!(
            scores.get("accuracy").unwrap() > 0.95 && scores.get("matthews").unwrap() > 0.9,
            "{scores:?}"
        );
        let said = classifier.classify(&[("a lovely play", None), ("the dull film was poor", None)]).unwrap();
        assert!(said[0][1] > said[0][0] && said[1][0] > said[1][1], "{said:?}");
    }
}

#[test]
fn what_a_run_measures_is_what_the_saved_model_gives() {
    let place = tempfile::tempdir().unwrap();
    let held: Vec<_> = reviews(24);
    let lines = held
        .iter()
        .map(|(text, good)| format!("{{\"text\": {text:?}, \"label\": \"{}\"}}", ["bad", "good"][*good]));
    let held = write(place.path(), "held.jsonl", "", lines);
    let data = format!("{}\nheld_out = [{held:?}]", labelled(place.path()));
    let sets = ["train.steps=9", "train.evaluate.every=9"];
    let summary = train(recipe(place.path(), "cpu", &data, &sets), false).unwrap();
    let saved = summary.checkpoint.unwrap();
    let opened = open_to_run(&saved, &[]).unwrap();
    let mut classifier = Classifier::new(opened, &saved, Target::open("cpu").unwrap(), 7, None).unwrap();
    let scores = classifier.measure(&read(&[held.into()], &Columns::default(), true).unwrap()).unwrap();
    let run = place.path().join("run");
    assert!((scores.loss - summary.validation_loss.unwrap()).abs() < 1e-6, "{scores:?}");
    for name in ["accuracy", "macro_f1", "matthews"] {
        assert_eq!(scores.get(name).unwrap(), figure(&run, name), "{name}");
    }
}

#[test]
fn resuming_equals_never_stopping_whatever_became_of_the_labels_in_the_file() {
    let place = tempfile::tempdir().unwrap();
    let data = labelled(place.path());
    let sets = ["train.steps=12", "train.micro_batch=4", "run.save.every=5"];
    let straight = recipe(place.path(), "cpu", &data, &sets);
    train(straight.clone(), false).unwrap();
    let run = place.path().join("run");
    let (expected, weights) = (losses(&run), last_weights(&run));
    std::fs::remove_dir_all(run.join("checkpoints/step-000012")).unwrap();
    let written = std::fs::read_to_string(run.join("recipe.toml")).unwrap();
    assert!(written.contains("labels = [\"bad\", \"good\"]"), "{written}");
    train(Recipe::from_text(&written, "recipe.toml", &[]).unwrap(), true).unwrap();
    assert_eq!(losses(&run), expected);
    assert_eq!(last_weights(&run), weights);
}

#[test]
fn pairs_sets_and_numbers_are_learned_as_well() {
    let place = tempfile::tempdir().unwrap();
    // The second text decides, whatever the first one says.
    let pairs = reviews(48).into_iter().enumerate().map(|(at, (text, _))| {
        let (other, right) = if at % 2 == 0 { ("fine", "yes") } else { ("poor", "no") };
        format!("{text},the play was {other},{right}")
    });
    let pairs =
        format!("labelled = [{:?}]", write(place.path(), "pairs.csv", "premise,hypothesis,label", pairs));
    let sets = (0..48).map(|at| {
        let (kind, word) = (at % 4, at / 4 % 3);
        let has = [kind & 1 == 1, kind & 2 == 2];
        let words = [WORDS[word], WORDS[3 + word]].into_iter().zip(has).filter(|(_, has)| *has);
        let text = words.fold("the film was".to_string(), |text, (word, _)| format!("{text} {word}"));
        let labels: Vec<&str> =
            ["good", "bad"].into_iter().zip(has).filter(|(_, has)| *has).map(|(l, _)| l).collect();
        format!("{{\"text\": {text:?}, \"labels\": {labels:?}}}")
    });
    let sets = format!("labelled = [{:?}]", write(place.path(), "sets.jsonl", "", sets));
    let numbers = reviews(48).into_iter().map(|(text, good)| format!("{text}\t{}", good as f64 - 0.5));
    let numbers = format!("labelled = [{:?}]", write(place.path(), "numbers.tsv", "text\tlabel", numbers));
    for (data, classes, labels, name, least) in [
        (pairs, 2, Labels::One, "accuracy", 0.95),
        (sets, 2, Labels::Any, "micro_f1", 0.95),
        (numbers, 1, Labels::Numbers, "pearson", 0.95),
    ] {
        let _ = std::fs::remove_dir_all(place.path().join("run"));
        let summary = train(
            recipe(
                place.path(),
                "cpu",
                &data,
                &["train.steps=45", "model.dropout=0", "model.width=32", "train.evaluate.every=45"],
            ),
            false,
        )
        .unwrap();
        let got = figure(&place.path().join("run"), name);
        assert!(got >= least, "{name} {got}");
        let task = model::open(&summary.checkpoint.unwrap()).unwrap().interface().task;
        assert_eq!(task, Task::SequenceClass { classes, labels });
    }
}

#[test]
fn a_head_is_put_on_a_loaded_encoder_and_drawn_anew_for_other_classes() {
    let place = tempfile::tempdir().unwrap();
    let text = write(place.path(), "text.txt", "", reviews(60).into_iter().map(|(text, _)| text));
    let guesses =
        recipe(place.path(), "cpu", &format!("text = [{text:?}]"), &["train.steps=2", "train.context=8"]);
    let plain = guesses.to_toml().replace("head = \"sequence\"\n", "");
    let first = train(Recipe::from_text(&plain, "plain", &[]).unwrap(), false).unwrap().checkpoint.unwrap();
    let second = |folder: &Path, data: &str, more: &str| {
        let base = format!(
            "[model]\nload = {:?}\n{more}\n[data]\n{data}\ntokenizer = {:?}\n[train]\nsteps = 2\nbatch = 4\n\
             [run]\ndevice = \"cpu\"\nfolder = {:?}\n",
            folder.display().to_string(),
            tokenizer(place.path()),
            place.path().join("second").display().to_string()
        );
        Recipe::from_text(&base, "second", &[]).unwrap()
    };
    let data = labelled(place.path());
    let job = Job::prepare(second(&first, &data, "head = \"sequence\""), None).unwrap();
    let told = &job.lesson.as_ref().unwrap().told[0];
    assert!(told.contains("drawn anew: bert.pooler.dense, classifier; left out: cls.predictions"), "{told}");
    assert_eq!(job.recipe.train.context, Some(16), "the longest text, filled up");
    let words = "bert.embeddings.word_embeddings.weight";
    let before = model::Weights::read(&first, model::open(&first).unwrap().as_ref()).unwrap();
    assert_eq!(job.first_weights().unwrap().get(words).unwrap(), before.get(words).unwrap());
    let trained = train(second(&first, &data, "head = \"sequence\""), false).unwrap().checkpoint.unwrap();
    // A folder with a head needs no word of it, and keeps its own where the classes are the same.
    let again = Job::prepare(second(&trained, &data, ""), None).unwrap();
    let kept = Job::prepare(second(&trained, &data, "head = \"sequence\""), None).unwrap();
    let of = |job: &Job| job.first_weights().unwrap().get("classifier.weight").unwrap().clone();
    assert_eq!(of(&again), of(&kept));
    let others = second(&trained, &data.replace("reviews.tsv", "others.tsv"), "head = \"sequence\"");
    write(
        place.path(),
        "others.tsv",
        "label\ttext",
        ["x\ta film", "y\ta play"].into_iter().map(String::from),
    );
    let anew = Job::prepare(others, None).unwrap();
    assert_ne!(of(&anew), of(&kept));
    assert_eq!(anew.lesson.as_ref().unwrap().told[0], "head     drawn anew: classifier");
}

#[test]
fn a_causal_model_judges_texts_by_their_last_token_and_its_checkpoint_says_what_fills_them_up() {
    let place = tempfile::tempdir().unwrap();
    let sets = ["model.family=gpt2", "model.tie=true", "model.dropout=0"];
    let summary = train(recipe(place.path(), "cpu", &labelled(place.path()), &sets), false).unwrap();
    assert!(figure(&place.path().join("run"), "accuracy") > 0.95);
    let saved = summary.checkpoint.unwrap();
    let config = model::open(&saved).unwrap().config();
    assert_eq!(config["architectures"], serde_json::json!(["GPT2ForSequenceClassification"]));
    assert_eq!(config["pad_token_id"], 16, "the last token, where none ends texts");
    // A text says the same alone and beside longer ones.
    let opened = open_to_run(&saved, &[]).unwrap();
    let mut classifier = Classifier::new(opened, &saved, Target::open("cpu").unwrap(), 3, None).unwrap();
    let texts = ["dull", "the lovely film was a film", "a good story was the story a play"];
    let together = classifier.classify(&texts.map(|text| (text, None))).unwrap();
    for (text, scores) in texts.iter().zip(&together) {
        let alone = classifier.classify(&[(*text, None)]).unwrap();
        assert!(
            alone[0].iter().zip(scores).all(|(a, b)| (a - b).abs() < 1e-5),
            "{text}: {alone:?}, {scores:?}"
        );
    }
}

#[test]
fn what_cannot_be_learned_from_is_refused_with_its_place() {
    let place = tempfile::tempdir().unwrap();
    let told = |data: &str, sets: &[&str]| match Job::prepare(recipe(place.path(), "cpu", data, sets), None) {
        Ok(_) => panic!("{data} was taken"),
        Err(error) => error.to_string(),
    };
    let good = labelled(place.path());
    let named = |name: &str, head: &str, lines: &[&str]| {
        format!(
            "labelled = [{:?}]",
            write(place.path(), name, head, lines.iter().map(|line| line.to_string()))
        )
    };
    let missing = named("missing.tsv", "words\tlabel", &["a film\tgood"]);
    assert!(told(&missing, &[]).contains("line 2: there is no `text`"), "{}", told(&missing, &[]));
    let short = named("short.tsv", "text\tlabel", &["a film\tgood", "a play"]);
    assert!(told(&short, &[]).contains("short.tsv, line 3: expected 2 columns"));
    std::fs::write(place.path().join("empty.tsv"), "").unwrap();
    let empty = format!("labelled = [{:?}]", place.path().join("empty.tsv").display().to_string());
    assert!(told(&empty, &[]).contains("is empty"));
    let beyond = named("beyond.tsv", "text\tlabel", &["a film\t0", "a play\t5"]);
    let message = told(&beyond, &["model.labels=[\"no\", \"yes\"]"]);
    assert!(message.contains("line 3: label 5 is beyond the 2 classes of the model, 0 to 1"), "{message}");
    named("held.tsv", "text\tlabel", &["a film\tgood", "a play\tstrange"]);
    let held = place.path().join("held.tsv").display().to_string();
    let unknown = told(&format!("{good}\nheld_out = [{held:?}]"), &[]);
    assert!(unknown.contains("held.tsv, line 3: label `strange` is none of bad, good"), "{unknown}");
    let headless =
        told(&good, &["model={ family = \"bert\", layers = 1, heads = 2, width = 16, context = 16 }"]);
    assert!(
        headless.contains("a masked language model") && headless.contains("model.head = \"sequence\""),
        "{headless}"
    );
    let recurrent =
        "model={ family = \"lstm\", layers = 1, width = 16, hidden = 16, context = 16, head = \"sequence\" }";
    let recurrent = told(&good, &[recurrent]);
    assert!(recurrent.contains("causal") && recurrent.contains("bert, roberta"), "{recurrent}");
}

/// A run over a case of PyTorch's, all of whose examples are in every step: whatever their order, the loss is the same.
fn replayed(case: &str, data: &str, more: &str, rows: usize) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels-tests/golden/lesson").join(case);
    let expected: Vec<f64> =
        serde_json::from_str(&std::fs::read_to_string(golden.join("losses.json")).unwrap()).unwrap();
    for device in devices() {
        let place = tempfile::tempdir().unwrap();
        let run = place.path().join("run");
        let base = format!(
            "[model]\nload = {0:?}\n[data]\n{data} = [\"{0}/{1}\"]\n{more}\nvalidation = 0\n[train]\nsteps = {2}\nbatch = {rows}\n\
             optimizer = {{ kind = \"adamw\", betas = [0.9, 0.999], eps = 1e-8, weight_decay = 0.0 }}\nclip = \"none\"\n\
             learning_rate = {{ curve = \"constant\", peak = 1e-2 }}\n[run]\ndevice = {device:?}\nfolder = {3:?}\n",
            golden.display().to_string(),
            if case == "tokens" { "rows.conll" } else { "rows.tsv" },
            expected.len(),
            run.display().to_string()
        );
        train(Recipe::from_text(&base, "replayed", &[]).unwrap(), false).unwrap();
        let got = losses(&run);
        for ((step, got, _), expected) in got.iter().zip(&expected) {
            assert!(
                (got - expected).abs() < 1e-4,
                "{case}, {device}, step {step}: {got}, PyTorch has {expected}"
            );
        }
        assert_eq!(got.len(), expected.len());
    }
}

#[test]
fn losses_of_classified_pairs_are_those_of_pytorch() {
    replayed("sequence", "labelled", "", 6);
}

#[test]
fn losses_of_texts_judged_by_their_last_token_are_those_of_pytorch() {
    replayed("causal", "labelled", "", 6);
}

#[test]
fn losses_of_tagged_words_are_those_of_pytorch() {
    replayed("tokens", "tagged", "", 4);
}

#[test]
fn losses_of_texts_that_are_alike_are_those_of_sentence_transformers() {
    replayed("similar", "similar", "", 4);
    replayed("similar_first", "similar", "similarity = { pooling = \"first\" }", 4);
}

/// Sentences in which a play or a film is named with the word before it.
fn tagged(place: &Path, words: &[&str]) -> String {
    let line = |at: usize| {
        let (kind, name) = [("F", "film"), ("P", "play")][at % 2];
        let word = WORDS[at / 2 % 6];
        let before = words[at / 3 % words.len()];
        format!("{before} O\nwas O\n{word} B-{kind}\n{name} I-{kind}\n")
    };
    write(place, "words.conll", "", (0..48).map(line))
}

#[test]
fn words_are_tagged_and_the_first_token_of_each_counts() {
    let place = tempfile::tempdir().unwrap();
    // Letters are tokens, so that a word has several.
    let file = tagged(place.path(), &["the", "story"]);
    let data = format!("tagged = [{file:?}]");
    let sets =
        ["model.head=token", "data.tokenizer=char", "model.dropout=0", "model.width=32", "model.context=24"];
    let more = ["train.steps=90", "train.evaluate.every=90", "run.save.every=90"];
    let summary = train(recipe(place.path(), "cpu", &data, &[&sets[..], &more].concat()), false).unwrap();
    let run = place.path().join("run");
    assert!(figure(&run, "f1") > 0.95, "{}", figure(&run, "f1"));
    let saved = summary.checkpoint.unwrap();
    let family = model::open(&saved).unwrap();
    assert_eq!(family.interface().task, Task::TokenClass { classes: 5 });
    assert_eq!(model::class_names(family.as_ref()), ["B-F", "B-P", "I-F", "I-P", "O"]);
    let opened = open_to_run(&saved, &[]).unwrap();
    let mut classifier = Classifier::new(opened, &saved, Target::open("cpu").unwrap(), 4, None).unwrap();
    let rows = kiln::data::tagged::read(&[file.into()], true).unwrap();
    let scores = classifier.measure_tags(&rows).unwrap();
    assert!(scores.examples == 48 && scores.get("f1").unwrap() > 0.95, "{scores:?}");
    let long: Vec<String> =
        ["the was dull play", "the the the the the"].join(" ").split(' ').map(String::from).collect();
    let tags = classifier.tag(&[&long[..4], &long]).unwrap();
    let names: Vec<Option<&str>> =
        tags[0].iter().map(|tag| tag.map(|tag| ["B-F", "B-P", "I-F", "I-P", "O"][tag])).collect();
    assert_eq!(names, [Some("O"), Some("O"), Some("B-P"), Some("I-P")]);
    assert_eq!(tags[1].len(), 9);
    assert!(tags[1][8].is_none(), "of 24 letters the last word has none");
}

#[test]
fn texts_that_are_alike_are_found_and_embedded_as_the_files_beside_the_weights_say() {
    let place = tempfile::tempdir().unwrap();
    let line = |at: usize| {
        let (word, name) = (WORDS[at % 6], ["film", "story", "play"][at / 6 % 3]);
        format!("the {word} {name}\ta {name} was {word}")
    };
    let file = write(place.path(), "alike.tsv", "anchor\tpositive", (0..36).map(line));
    let data = format!("similar = [{file:?}]");
    let base = recipe(
        place.path(),
        "cpu",
        &data,
        &["train.steps=60", "train.evaluate.every=60", "run.save.every=60"],
    );
    let text = base.to_toml().replace("head = \"sequence\"\n", "");
    let summary = train(Recipe::from_text(&text, "alike", &[]).unwrap(), false).unwrap();
    let run = place.path().join("run");
    assert!(figure(&run, "accuracy") > 0.85, "{}", figure(&run, "accuracy"));
    let saved = summary.checkpoint.unwrap();
    let settings = Settings::beside(&saved).unwrap();
    assert_eq!((settings.pooling, settings.normalize, settings.most_tokens), (Pooling::Mean, false, 16));
    let mut embedder = Embedder::open(&saved, settings, Target::open("cpu").unwrap(), 3).unwrap();
    let vectors = embedder.embed(&["the fine film", "a film was fine", "a play was dull"]).unwrap();
    let cosine = |a: &[f32], b: &[f32]| {
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        product(a, b) / (product(a, a) * product(b, b)).sqrt()
    };
    let [near, far] = [1, 2].map(|other| cosine(&vectors[0], &vectors[other]));
    assert!(near > far + 0.3, "{near} {far}");
    for (set, part) in [
        ("train.micro_batch=4", "train.micro_batch would change what is learned"),
        ("precision.storage=f16", "bf16"),
        ("model.head=sequence", "model.head is for classes"),
        ("train.label_smoothing=0.1", "label_smoothing"),
    ] {
        let wrong = Recipe::from_text(&text, "alike", &[set.to_string()]).unwrap();
        let message = Job::prepare(wrong, None).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}
