//! Encoder-decoders in small: pairs learned, spans and infilling, resumed, gone wrong.

use super::{devices, last_weights, losses, train};
use kiln::generate::{Lengths, Sampling, Translator};
use kiln::train::job::Job;
use kiln::train::recipe::Recipe;
use kiln::train::run::Summary;
use kiln::train::{Error, Target};
use std::path::Path;

/// A recipe over pairs of two letters and what they are to become: the same in capitals, the other way round.
fn recipe(folder: &Path, device: &str, model: &str, sets: &[&str]) -> Recipe {
    let pairs = folder.parent().unwrap().join("pairs.tsv");
    if !pairs.exists() {
        let letters = || ('a'..='e').flat_map(|a| ('a'..='e').map(move |b| (a, b)));
        let line =
            |(a, b): (char, char)| format!("{a}{b}\t{}{}\n", b.to_ascii_uppercase(), a.to_ascii_uppercase());
        std::fs::write(&pairs, letters().map(line).collect::<String>()).unwrap();
    }
    let base = format!(
        "[model]\n{model}\nlayers = 1\nheads = 2\nwidth = 32\ncontext = 16\n\
         [data]\npairs = [{:?}]\nvalidation = 0.2\n[train]\nsteps = 12\nbatch = 10\ncontext = 3\nseed = 7\n\
         learning_rate = {{ curve = \"constant\", peak = 5e-3 }}\nevaluate = {{ every = 6, batches = 1 }}\n\
         [run]\ndevice = {device:?}\nfolder = {:?}\nsave = {{ every = 5, keep = 2 }}\n",
        pairs.display().to_string(),
        folder.display().to_string()
    );
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Recipe::from_text(&base, "test", &sets).unwrap()
}

/// The same over the text of another recipe's tests.
fn text_recipe(folder: &Path, device: &str, model: &str, sets: &[&str]) -> Recipe {
    let text = folder.parent().unwrap().join("text.txt");
    if !text.exists() {
        let line = |i: usize| format!("{i} sheep jump over the {} fence.\n", ["red", "green", "old"][i % 3]);
        std::fs::write(&text, (0..150).map(line).collect::<String>()).unwrap();
    }
    let base = format!(
        "[model]\n{model}\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 24\ndropout = 0.1\n\
         [data]\ntext = [{:?}]\n[train]\nsteps = 12\nbatch = 4\ncontext = 24\nseed = 7\n\
         learning_rate = {{ curve = \"constant\", peak = 1e-2 }}\nevaluate = {{ every = 6, batches = 2 }}\n\
         [run]\ndevice = {device:?}\nfolder = {:?}\nsave = {{ every = 5, keep = 2 }}\n",
        text.display().to_string(),
        folder.display().to_string()
    );
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Recipe::from_text(&base, "test", &sets).unwrap()
}

#[test]
fn pairs_are_learned_and_written() {
    for model in ["family = \"t5\"", "family = \"marian\""] {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("run");
        let sets = ["data.validation=0", "train.steps=200", "run.save.every=200"];
        let summary: Summary = train(recipe(&folder, "cpu", model, &sets), false).unwrap();
        assert!(summary.loss < 0.1, "{model}: {}", summary.loss);
        let saved = summary.checkpoint.unwrap();
        let target = Target::open("cpu").unwrap();
        let mut translator = Translator::open(&saved, &target, Lengths { source: 3, target: 4 }).unwrap();
        let tokenizer = kiln::data::tokenizer::Tokenizer::load(&folder).unwrap();
        let end = tokenizer.vocabulary_size() as u32;
        let mut right = 0;
        for source in ["ad", "be", "ca", "dd"] {
            let ids = [tokenizer.encode(source).unwrap(), vec![end]].concat();
            let written = translator.write_ids(&ids, 3, &Sampling::greedy(), &mut |id| id != end).unwrap();
            let text = tokenizer.decode(written.strip_suffix(&[end]).unwrap_or(&written)).unwrap();
            let expected: String = source.to_uppercase().chars().rev().collect();
            right += usize::from(text == expected);
        }
        assert_eq!(right, 4, "{model}");
    }
}

#[test]
fn damaged_text_is_trained_on_and_resuming_equals_never_stopping() {
    for device in devices() {
        for (model, objective) in [
            ("family = \"t5\"", ""),
            ("family = \"bart\"", ""),
            ("family = \"marian\"", "data.objective={ kind = \"spans\", share = 0.3, mean = 2 }"),
        ] {
            let place = tempfile::tempdir().unwrap();
            let [straight, stopped] = ["straight", "stopped"].map(|name| place.path().join(name));
            let sets = |more: &'static str| {
                [objective, more].into_iter().filter(|set| !set.is_empty()).collect::<Vec<_>>()
            };
            let whole = train(text_recipe(&straight, device, model, &sets("")), false).unwrap();
            assert!(whole.loss < losses(&straight)[0].1, "{model} on {device}: {}", whole.loss);
            train(text_recipe(&stopped, device, model, &sets("train.steps=5")), false).unwrap();
            train(text_recipe(&stopped, device, model, &sets("")), true).unwrap();
            assert_eq!(losses(&straight), losses(&stopped), "{model} on {device}");
            assert_eq!(last_weights(&straight), last_weights(&stopped), "{model} on {device}");
        }
    }
}

#[test]
fn activations_in_16_bits_and_layers_computed_again_give_nearly_the_same_losses() {
    for device in devices() {
        for model in ["family = \"t5\"", "family = \"bart\""] {
            let place = tempfile::tempdir().unwrap();
            let first = |name: &str, set: &str| {
                let folder = place.path().join(name);
                let sets = ["train.steps=3", "model.dropout=0", set];
                train(text_recipe(&folder, device, model, &sets), false).unwrap();
                losses(&folder).iter().map(|(_, loss, _)| *loss).collect::<Vec<f64>>()
            };
            let whole = first("f32", "run.log.every=1");
            for (name, set, apart) in [
                ("f16", "precision.storage=f16", 0.02),
                ("bf16", "precision.storage=bf16", 0.05),
                ("again", "memory.recompute=layers", 1e-5),
            ] {
                for (whole, other) in whole.iter().zip(first(name, set)) {
                    assert!(
                        (whole - other).abs() < apart,
                        "{model}, {name} on {device}: {other}, not {whole}"
                    );
                }
            }
        }
    }
}

#[test]
fn keys_for_encoder_decoders_are_refused_where_they_mean_nothing() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("run");
    let gpt = recipe(&folder, "cpu", "", &[]);
    let told = |recipe: Recipe| match Job::prepare(recipe, None).map(|_| ()) {
        Err(Error::Mismatch { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    assert!(told(gpt).contains("data.pairs is for encoder-decoders, gpt2 is none"));
    let gpt = text_recipe(&folder, "cpu", "", &["data.objective={ kind = \"spans\" }"]);
    assert!(told(gpt).contains("data.objective is for encoder-decoders"));
    // A model whose vocabulary leaves no room for what stands for spans.
    let full = text_recipe(&folder, "cpu", "family = \"t5\"", &["model.vocabulary=45"]);
    let known = Job::prepare(text_recipe(&folder, "cpu", "", &[]), None).unwrap().tokenizer.unwrap();
    let tight = format!("model.vocabulary={}", known.vocabulary_size() + 2);
    assert!(Job::prepare(full, None).is_ok());
    let problem = told(text_recipe(&folder, "cpu", "family = \"t5\"", &[&tight]));
    assert!(problem.contains("<extra_id_0>"), "{problem}");
}
