//! Recurrent models in small: a text learned and continued with a state that is carried, pairs learned and written.

use super::{devices, last_weights, losses, train};
use kiln::generate::{Lengths, Sampling, Translator, Writer};
use kiln::train::Target;
use kiln::train::recipe::Recipe;
use std::path::Path;

fn recipe(folder: &Path, device: &str, data: &str, sets: &[&str]) -> Recipe {
    let base = format!(
        "[model]\nlayers = 2\nwidth = 12\nhidden = 16\ncontext = 16\n[data]\n{data}\n\
         [train]\nsteps = 12\nbatch = 4\ncontext = 16\nseed = 7\n\
         learning_rate = {{ curve = \"constant\", peak = 1e-2 }}\nevaluate = {{ every = 6, batches = 1 }}\n\
         [run]\ndevice = {device:?}\nfolder = {:?}\nsave = {{ every = 5, keep = 2 }}\n",
        folder.display().to_string()
    );
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Recipe::from_text(&base, "test", &sets).unwrap()
}

fn text(place: &Path) -> String {
    let file = place.join("text.txt");
    let line = |i: usize| format!("{i} sheep jump over the {} fence.\n", ["red", "green", "old"][i % 3]);
    std::fs::write(&file, (0..150).map(line).collect::<String>()).unwrap();
    format!("text = [{:?}]", file.display().to_string())
}

#[test]
fn recurrent_models_learn_and_resuming_equals_never_stopping() {
    for device in devices() {
        for family in ["lstm", "gru", "rnn"] {
            let place = tempfile::tempdir().unwrap();
            let data = text(place.path());
            let [whole, cut] = ["whole", "cut"].map(|name| place.path().join(name));
            let family = format!("model.family={family}");
            let sets = [family.as_str(), "model.dropout=0.1"];
            train(recipe(&whole, device, &data, &sets), false).unwrap();
            let short = [&sets[..], &["train.steps=5"]].concat();
            train(recipe(&cut, device, &data, &short), false).unwrap();
            train(recipe(&cut, device, &data, &sets), true).unwrap();
            assert_eq!(last_weights(&whole), last_weights(&cut), "{family} on {device}");
            let losses = losses(&whole);
            assert!(losses[losses.len() - 1].1 < losses[0].1 - 0.2, "{family} on {device}: {losses:?}");
        }
    }
}

#[test]
fn a_carried_state_scores_like_a_text_read_whole() {
    for device in devices() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("run");
        let data = text(place.path());
        let sets = ["model.family=lstm", "model.context=300"];
        let saved = train(recipe(&folder, device, &data, &sets), false).unwrap().checkpoint.unwrap();
        let target = Target::open(device).unwrap();
        let open = || Writer::open(&saved, &target, 300).unwrap();
        // Longer than is read at a time, and then token by token.
        let ids: Vec<u32> = (0..200).map(|i| i * 7 % 20).collect();
        let mut stepping = open();
        stepping.logits(&ids[..190]).unwrap();
        for count in 191..=200 {
            let carried = stepping.logits(&ids[..count]).unwrap();
            let whole = open().logits(&ids[..count]).unwrap();
            let apart = carried.iter().zip(&whole).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(apart < 1e-5, "{count} tokens on {device}: {apart}");
        }
        // A text that is not the one before is read anew.
        let again = stepping.logits(&ids[..50]).unwrap();
        assert_eq!(again, open().logits(&ids[..50]).unwrap());
        assert_eq!(again, stepping.logits(&ids[..50]).unwrap());
    }
}

#[test]
fn a_recurrent_encoder_decoder_learns_pairs_and_writes() {
    let place = tempfile::tempdir().unwrap();
    let (pairs, folder) = (place.path().join("pairs.tsv"), place.path().join("run"));
    let letters = || ('a'..='e').flat_map(|a| ('a'..='e').map(move |b| (a, b)));
    let line =
        |(a, b): (char, char)| format!("{a}{b}\t{}{}\n", b.to_ascii_uppercase(), a.to_ascii_uppercase());
    std::fs::write(&pairs, letters().map(line).collect::<String>()).unwrap();
    let data = format!("pairs = [{:?}]\nvalidation = 0", pairs.display().to_string());
    let sets = [
        "model.family=seq2seq",
        "model.layers=1",
        "model.hidden=24",
        "train.context=3",
        "train.batch=10",
        "train.steps=300",
        "run.save.every=300",
    ];
    let summary = train(recipe(&folder, "cpu", &data, &sets), false).unwrap();
    assert!(summary.loss < 0.2, "{}", summary.loss);
    let saved = summary.checkpoint.unwrap();
    let tokenizer = kiln::data::tokenizer::Tokenizer::load(&folder).unwrap();
    let end = tokenizer.vocabulary_size() as u32;
    for device in devices() {
        // More room than the sources need: padding is left out.
        let lengths = Lengths { source: 5, target: 4 };
        let mut translator = Translator::open(&saved, &Target::open(device).unwrap(), lengths).unwrap();
        for source in ["ad", "be", "ca", "dd"] {
            let ids = [tokenizer.encode(source).unwrap(), vec![end]].concat();
            let written = translator.write_ids(&ids, 3, &Sampling::greedy(), &mut |id| id != end).unwrap();
            let text = tokenizer.decode(written.strip_suffix(&[end]).unwrap_or(&written)).unwrap();
            let expected: String = source.to_uppercase().chars().rev().collect();
            assert_eq!(text, expected, "on {device}");
        }
    }
}

#[test]
fn heads_of_a_model_without_attention_are_refused() {
    let base = "[model]\nfamily = \"gru\"\nlayers = 1\nwidth = 8\ncontext = 8\nheads = 2\n";
    let error = Recipe::from_text(base, "test", &[]).unwrap_err().to_string();
    assert!(error.contains("heads"), "{error}");
}
