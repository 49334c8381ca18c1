//! Encoders with their tokenizers: hidden tokens guessed, and sentence vectors of real weights, on the host and on an adapter.
//!
//! The weights of all-MiniLM-L6-v2 are not part of the golden folder: `KILN_MINILM` names the folder that has them.

mod golden;

use kiln::data::tokenizer::Tokenizer;
use kiln::deploy::{Outcome, forward};
use kiln::embed::{Embedder, Settings};
use kiln::exchange;
use kiln::formats::Raw;
use kiln::model::Inputs;
use kiln::tensor::DType;
use kiln::train::Target;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value as Json;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Logits, and vectors of sentences, as the golden folder states.
const LOGITS: f64 = 1e-4;
const VECTORS: f64 = 1e-5;
/// Schemes, layers they leave as they are, and the least mean cosine between their vectors and those of f32. A few channels of the
/// stream are many times the others, which is what the one scale of a token pays for under W8A8.
const CODED: [(&str, &[&str], f64); 3] = [
    ("int8", &[], 0.999),
    ("W8A8", &[], 0.995),
    (
        "W8A8",
        &[
            "*.self.value.*",
            "*.3.intermediate.*",
            "*.4.intermediate.*",
            "*.0.output.*",
            "*.2.output.*",
            "*.3.output.*",
        ],
        0.999,
    ),
];

fn main() {
    let arguments = Arguments::from_args();
    let adapter = kiln::train::Target::open("gpu").is_ok() || std::env::var_os("KILN_REQUIRE_GPU").is_some();
    let (texts, sentences) =
        (golden::folder().join("dev/e2e/bert"), golden::folder().join("dev/real/minilm"));
    let weights = std::env::var_os("KILN_MINILM").map(PathBuf::from);
    let mut trials = vec![];
    for device in ["cpu", "gpu"] {
        let missing = device == "gpu" && !adapter;
        let folder = texts.clone();
        let trial = Trial::test(format!("bert: hidden tokens of texts, {device}"), move || {
            check_guesses(&folder, device)
        });
        trials.push(trial.with_ignored_flag(missing || golden::is_absent(&texts)));
        for (what, check) in [
            ("vectors of sentences", check_vectors as fn(&Path, &Path, &str) -> Result<(), Failed>),
            ("vectors of codes", check_coded),
        ] {
            let (case, model) = (sentences.clone(), weights.clone());
            let absent = missing || model.is_none() || golden::is_absent(&sentences);
            let trial = Trial::test(format!("minilm: {what}, {device}"), move || {
                check(&case, &model.ok_or("KILN_MINILM names no folder")?, device)
            });
            trials.push(trial.with_ignored_flag(absent));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn json(path: &Path) -> Result<Json, Failed> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// Texts through the folder's tokenizer, with a token hidden: all logits, and the five likeliest tokens.
fn check_guesses(folder: &Path, device: &str) -> Result<(), Failed> {
    let opened = exchange::open(folder)?;
    let tokenizer = opened.tokenizer.as_ref().ok_or("no tokenizer")?;
    let mask = tokenizer.token_id("[MASK]").ok_or("no token to hide with")?;
    let target = Target::open(device)?;
    let expected = golden::tensors(&folder.join("expected.safetensors"), "logits.")?;
    let case = json(&folder.join("case.json"))?;
    let cases = case["cases"].as_array().ok_or("no cases")?;
    if cases.len() < 4 || cases.len() != expected.len() {
        return Err(format!("{} cases, {} logits", cases.len(), expected.len()).into());
    }
    for (number, case) in cases.iter().enumerate() {
        let text = case["text"].as_str().ok_or("no text")?;
        let mut ids = tokenizer.encode_with_special(text)?;
        if ids != serde_json::from_value::<Vec<u32>>(case["input_ids"].clone())? {
            return Err(format!("{text:?} is {ids:?}, expected {}", case["input_ids"]).into());
        }
        let place = case["masked_position"].as_u64().ok_or("no place")? as usize;
        ids[place] = mask;
        let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
        let given = [("input_ids".to_string(), Raw::i64([1, ids.len()], &ids))].into();
        let inputs = Inputs::new(&given, opened.family.as_ref())?;
        let Outcome { results, .. } =
            forward(opened.family.as_ref(), &opened.weights, &inputs, &target, DType::F32, false)?;
        let (_, logits) = results.iter().find(|(name, _)| name == "logits").ok_or("no logits")?;
        let expected = &expected[&number.to_string()];
        close(text, logits.real(), expected.real(), LOGITS)?;
        let row = &logits.real::<f32>()[place * logits.shape.last()..][..logits.shape.last()];
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        let names: Vec<Option<String>> =
            order[..5].iter().map(|&id| tokenizer.token_name(id as u32)).collect();
        if serde_json::to_value(&names)? != case["top5_tokens"] {
            return Err(format!("{text:?}: {names:?}, expected {}", case["top5_tokens"]).into());
        }
    }
    Ok(())
}

/// Sentences of all lengths, an empty one among them.
fn sentences(case: &Json) -> Result<Vec<String>, Failed> {
    Ok(serde_json::from_value(case["sentences"].clone())?)
}

fn vectors(model: &Path, device: &str, sentences: &[String]) -> Result<Vec<Vec<f32>>, Failed> {
    let settings = Settings::beside(model)?;
    let mut embedder = Embedder::open(model, settings, Target::open(device)?, 4)?;
    let texts: Vec<&str> = sentences.iter().map(String::as_str).collect();
    Ok(embedder.embed(&texts)?)
}

fn check_vectors(case: &Path, model: &Path, device: &str) -> Result<(), Failed> {
    let expected = golden::tensors(&case.join("expected.safetensors"), "")?;
    let case = json(&case.join("case.json"))?;
    let tokenizer = Tokenizer::load(model)?;
    for text in case["tokenizer_cases"].as_array().ok_or("no texts")? {
        let ids = tokenizer.encode_with_special(text["text"].as_str().ok_or("no text")?)?;
        if serde_json::to_value(&ids)? != text["ids"] {
            return Err(format!("{} is {ids:?}, expected {}", text["text"], text["ids"]).into());
        }
    }
    let vectors = vectors(model, device, &sentences(&case)?)?;
    close("embeddings", &vectors.concat(), expected["embeddings"].real(), VECTORS)?;
    let cosines: Vec<f32> = vectors.iter().flat_map(|a| vectors.iter().map(|b| dot(a, b) as f32)).collect();
    close("cosine", &cosines, expected["cosine"].real(), VECTORS)
}

/// Quantised by the command, then embedded: as near to f32 as is asked for.
fn check_coded(case: &Path, model: &Path, device: &str) -> Result<(), Failed> {
    CODED
        .iter()
        .try_for_each(|&(scheme, left, least)| check_scheme(case, model, device, (scheme, left), least))
}

fn check_scheme(
    case: &Path,
    model: &Path,
    device: &str,
    (scheme, left): (&str, &[&str]),
    least: f64,
) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let coded = folder.path().join("coded");
    let done = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .arg("quantize")
        .arg(model)
        .args(["--scheme", scheme, "--device", "cpu", "-o"])
        .arg(&coded)
        .args(left.iter().flat_map(|pattern| ["--ignore", pattern]))
        .output()?;
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).into_owned().into());
    }
    let expected = golden::tensors(&case.join("expected.safetensors"), "")?;
    let sentences = sentences(&json(&case.join("case.json"))?)?;
    let vectors = vectors(&coded, device, &sentences)?;
    let exact = expected["embeddings"].real::<f32>().chunks(vectors[0].len());
    let cosines: Vec<f64> = vectors.iter().zip(exact).map(|(a, b)| dot(a, b)).collect();
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    println!("{scheme}: mean cosine {mean:.6}, of each {cosines:.5?}");
    if mean < least || mean > 1.0 - 1e-7 {
        return Err(format!("{scheme}: the mean cosine is {mean}, of each {cosines:?}").into());
    }
    Ok(())
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn close(what: &str, got: &[f32], expected: &[f32], limit: f64) -> Result<(), Failed> {
    if got.len() != expected.len() {
        return Err(format!("{what}: {} elements, expected {}", got.len(), expected.len()).into());
    }
    let apart = |(at, (a, b)): (usize, (&f32, &f32))| (at, f64::from(*a) - f64::from(*b));
    match got.iter().zip(expected).enumerate().map(apart).find(|(_, d)| d.is_nan() || d.abs() > limit) {
        Some((at, d)) => {
            Err(format!("{what}[{at}] is off by {d:.2e}, at most {limit:.0e} is expected").into())
        }
        None => Ok(()),
    }
}
