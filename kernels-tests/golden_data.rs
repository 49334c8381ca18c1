//! Tokenizers against Hugging Face's own, and the split and windows against a run of PyTorch.
//!
//! The cases stand in `dev/tokenizers` and `train` of the golden folder: `KILN_GOLDEN`, or `../shared/golden` beside
//! the checkout; the text of that run in `data` beside it. Where they are absent the trials are counted as ignored,
//! unless `KILN_REQUIRE_GOLDEN=1`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use kiln::data::replay::{EVALUATION_TRAINING, EVALUATION_VALIDATION, Replay};
use kiln::data::store::Store;
use kiln::data::text::Text;
use kiln::data::tokenizer::Tokenizer;
use kiln::data::windows::{self, Sampler};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

type Check = fn(&Path) -> Result<(), Failed>;

const TOKENIZERS: &[&str] = &[
    "bpe-llama2",
    "bytebpe-gpt2",
    "bytebpe-llama3",
    "bytebpe-roberta-added",
    "unigram-t5",
    "wordlevel",
    "wordpiece-bert",
];

const OTHERS: &[(&str, &str, Check)] = &[
    ("every_tokenizer_of_the_folder_is_tried", "dev/tokenizers", every_tokenizer_is_listed),
    ("char_vocabulary_and_ids", "dev/tokenizers/char.json", characters),
    ("byte_pair_training_finds_the_same_merges", "dev/tokenizers/corpus.txt", training),
    ("split_and_evaluation_windows_of_the_run", "train/gpt2-shakespeare-char", split_and_windows),
];

fn main() {
    let arguments = Arguments::from_args();
    let folder = golden_folder();
    let required = env::var("KILN_REQUIRE_GOLDEN").as_deref() == Ok("1");
    let mut trials = Vec::new();
    for &name in TOKENIZERS {
        let place = folder.join("dev/tokenizers").join(name);
        let absent = !place.exists() && !required;
        let trial = Trial::test(format!("tokenizer_{name}"), move || tokenizer(&place));
        trials.push(trial.with_ignored_flag(absent));
    }
    for &(name, part, check) in OTHERS {
        let absent = !folder.join(part).exists() && !required;
        let folder = folder.clone();
        trials.push(Trial::test(name, move || check(&folder)).with_ignored_flag(absent));
    }
    // The vocabulary of GPT-2 is not part of the golden folder: `KILN_GPT2_TOKENIZER` names a folder with its tokenizer.json.
    let (case, gpt2) = (folder.join("dev/real/gpt2-tokenizer"), env::var_os("KILN_GPT2_TOKENIZER"));
    let absent = gpt2.is_none() || !case.exists() && !required;
    let trial = Trial::test("tokenizer_of_gpt2", move || {
        real_vocabulary(&case, Path::new(&gpt2.ok_or("KILN_GPT2_TOKENIZER names no folder")?))
    });
    trials.push(trial.with_ignored_flag(absent));
    libtest_mimic::run(&arguments, trials).exit();
}

fn golden_folder() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden");
    env::var_os("KILN_GOLDEN").map_or_else(beside, PathBuf::from)
}

fn read(file: &Path) -> Result<Value, Failed> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(serde_json::from_str(&text)?)
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, expected: T) -> Result<(), Failed> {
    if got == expected {
        return Ok(());
    }
    Err(format!("{what}: got {got:?}, expected {expected:?}").into())
}

fn every_tokenizer_is_listed(folder: &Path) -> Result<(), Failed> {
    for entry in fs::read_dir(folder.join("dev/tokenizers"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !TOKENIZERS.contains(&name.as_str()) {
            return Err(format!("{name} has no trial").into());
        }
    }
    Ok(())
}

/// The 50 257 tokens of GPT-2: ids of texts, and texts of ids.
fn real_vocabulary(case: &Path, folder: &Path) -> Result<(), Failed> {
    let (golden, tokenizer) = (read(&case.join("case.json"))?, Tokenizer::load(folder)?);
    same("vocabulary", tokenizer.vocabulary_size(), 50257)?;
    let cases = golden["cases"].as_array().ok_or("no `cases`")?;
    if cases.len() < 20 {
        return Err(format!("only {} cases", cases.len()).into());
    }
    for case in cases {
        let text = case["text"].as_str().ok_or("no `text`")?;
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone())?;
        same(&format!("ids of {text:?}"), tokenizer.encode(text)?, ids.clone())?;
        same(&format!("text of {ids:?}"), tokenizer.decode(&ids)?.as_str(), text)?;
    }
    Ok(())
}

/// Ids with and without special tokens, both decodings, and decoding one token at a time.
fn tokenizer(folder: &Path) -> Result<(), Failed> {
    let golden = read(&folder.join("cases.json"))?;
    let tokenizer = Tokenizer::load(folder)?;
    let size = golden["vocab_size"].as_u64().ok_or("no `vocab_size`")?;
    same("vocabulary", tokenizer.vocabulary_size() as u64, size)?;

    let saved = tempfile::tempdir()?;
    tokenizer.save(saved.path())?;
    let saved = Tokenizer::load(saved.path())?;

    let cases = golden["cases"].as_array().ok_or("no `cases`")?;
    if cases.len() < 50 {
        return Err(format!("only {} cases", cases.len()).into());
    }
    for case in cases {
        let text = case["text"].as_str().ok_or("no `text`")?;
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone())?;
        let plain: Vec<u32> = serde_json::from_value(case["ids_no_special"].clone())?;
        same(&format!("ids of {text:?}"), tokenizer.encode_with_special(text)?, ids.clone())?;
        same(&format!("plain ids of {text:?}"), tokenizer.encode(text)?, plain.clone())?;
        same(&format!("ids of {text:?} after saving"), saved.encode(text)?, plain)?;

        let decoded = case["decoded"].as_str().ok_or("no `decoded`")?;
        let with_special = case["decoded_keep_special"].as_str().ok_or("no `decoded_keep_special`")?;
        same("decoded", tokenizer.decode(&ids)?.as_str(), decoded)?;
        same("decoded with special tokens", tokenizer.decode_with_special(&ids)?.as_str(), with_special)?;

        let mut stream = tokenizer.decode_stream();
        let mut streamed = String::new();
        for &id in &ids {
            streamed += &stream.push(id)?;
        }
        streamed += &stream.finish()?;
        same("streamed", streamed.as_str(), decoded)?;
    }
    Ok(())
}

fn characters(folder: &Path) -> Result<(), Failed> {
    let golden = read(&folder.join("dev/tokenizers/char.json"))?;
    let characters: Vec<String> = serde_json::from_value(golden["chars"].clone())?;
    let ids: Vec<u32> = serde_json::from_value(golden["ids"].clone())?;
    let text = golden["text"].as_str().ok_or("no `text`")?;

    let reversed: String = characters.iter().rev().map(String::as_str).collect();
    let tokenizer = Tokenizer::characters(&reversed);
    same("vocabulary", tokenizer.vocabulary_size(), characters.len())?;
    for (id, character) in (0..).zip(&characters) {
        same("character", tokenizer.token_name(id).as_ref(), Some(character))?;
    }
    same("ids", tokenizer.encode(text)?, ids.clone())?;
    same("text", tokenizer.decode(&ids)?.as_str(), text)?;

    // The saved file, read by Hugging Face's library instead of ours.
    let library: tokenizers::Tokenizer = tokenizer.to_json()?.parse()?;
    same("ids of the library", library.encode(text, true)?.get_ids(), &ids)
}

/// That vocabulary has one special token more than ours.
fn training(folder: &Path) -> Result<(), Failed> {
    let folder = folder.join("dev/tokenizers");
    let golden = read(&folder.join("bytebpe-gpt2/tokenizer.json"))?;
    let text = Text::open(&[folder.join("corpus.txt")])?;
    let trained = Tokenizer::train_byte_pair(&text.contents(), 499)?;
    let trained: Value = serde_json::from_str(&trained.to_json()?)?;
    same("merges", &trained["model"]["merges"], &golden["model"]["merges"])?;
    for part in ["pre_tokenizer", "normalizer"] {
        same(part, &trained[part], &golden[part])?;
    }
    Ok(())
}

fn split_and_windows(folder: &Path) -> Result<(), Failed> {
    let run = folder.join("train/gpt2-shakespeare-char");
    let curve = read(&run.join("curve.json"))?;
    let replay = Replay::load(&run.join("batches.safetensors"))?;
    let text = Text::open(&[folder.join("../data/tinyshakespeare.txt")])?;
    let text = text.contents();

    let tokenizer = Tokenizer::characters(&text);
    let characters = curve["chars"].as_str().ok_or("no `chars`")?;
    let ids: Vec<u32> = (0..tokenizer.vocabulary_size() as u32).collect();
    same("characters", tokenizer.decode(&ids)?.as_str(), characters)?;

    let store = Store::build(&text, &tokenizer, 0.1)?;
    same("training characters", store.training.characters, text.len() * 9 / 10)?;
    let (training, validation) = (&store.training.tokens, &store.validation.tokens);

    // Its evaluation windows are spread evenly too, so ours must be the same ones.
    for (name, part, tokens, offsets) in [
        (EVALUATION_TRAINING, "training", training, replay.evaluation_training()?),
        (EVALUATION_VALIDATION, "validation", validation, replay.evaluation_validation()?),
    ] {
        let given = windows::evaluation_replayed(name, part, tokens, 64, 12, offsets)?;
        same(name, windows::evaluation(part, tokens, 64, 12, 20)?, given)?;
    }

    let mut sampler = Sampler::replayed(training.clone(), 64, replay.training()?)?;
    let first_start = 138_825; // train_offsets[0, 0], read with Python
    let batch = sampler.next_batch()?;
    same("batch", (batch.rows, batch.context), (12, 64))?;
    same(
        "first window",
        tokenizer.decode(&batch.tokens[..64])?.as_str(),
        &text[first_start..first_start + 64],
    )?;
    for step in 1..2000 {
        sampler.next_batch().map_err(|error| format!("step {step}: {error}"))?;
    }
    match sampler.next_batch() {
        Err(kiln::data::Error::WindowsEnded { step: 2000, steps: 2000 }) => Ok(()),
        other => Err(format!("after the last step: {other:?}").into()),
    }
}
