//! `kiln forward` against transformers, through the binary: cases of the golden folder with both spellings of the configuration, and
//! cases of our own, which `golden/models/make.py` has written.

mod golden;

use golden::Tensors;
use kiln::deploy::Cache;
use kiln::exchange;
use kiln::train::Target;
use kiln::transcribe::{Rules, Task, Transcriber};
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Results, and gradients: this much, plus this share of the tensor's largest element.
const FORWARD: [f64; 2] = [1e-4, 0.0];
const GRADIENT: [f64; 2] = [1e-5, 1e-3];

/// Results of a case that come of training.
const OF_TRAINING: &[&str] = &["loss_after10", "logits_after10", "train_loss", "train_grad_norm"];

fn main() {
    let arguments = Arguments::from_args();
    let folder = golden::folder().join("dev/models");
    let mut names = folders_in(&folder);
    if names.is_empty() {
        names.push("gpt2".into());
    }
    let adapter = Target::open("gpu").is_ok() || std::env::var_os("KILN_REQUIRE_GPU").is_some();
    let mut trials = vec![];
    for name in names {
        let case = folder.join(&name);
        let absent = golden::is_absent(&case);
        for (spelling, device) in [("config.json", "gpu"), ("config.v4.json", "cpu")] {
            let case = case.clone();
            let trial = Trial::test(format!("{name}: {spelling}, {device}"), move || {
                check(&case, spelling, "eval.", "", device)
            });
            trials.push(trial.with_ignored_flag(absent || (device == "gpu" && !adapter)));
        }
    }
    let windows = golden::folder().join("dev/metrics/perplexity.json");
    let absent = golden::is_absent(&windows);
    let trial = Trial::test("perplexity in overlapping windows, cpu", move || perplexity(&windows));
    trials.push(trial.with_ignored_flag(absent));
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels-tests/golden/models");
    for name in folders_in(&own) {
        for device in ["gpu", "cpu"] {
            let case = own.join(&name);
            let trial =
                Trial::test(format!("{name}: every batch, {device}"), move || check_own(&case, device));
            trials.push(trial.with_ignored_flag(device == "gpu" && !adapter));
        }
    }
    for device in ["gpu", "cpu"] {
        let case = own.join("whisper");
        let trial =
            Trial::test(format!("whisper: greedily written, {device}"), move || check_written(&case, device));
        trials.push(trial.with_ignored_flag(device == "gpu" && !adapter));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn folders_in(folder: &Path) -> Vec<String> {
    let found = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = found
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// What is written of each sound of a batch, without an end: as many tokens as transformers has written.
fn check_written(case: &Path, device: &str) -> Result<(), Failed> {
    for cache in [Cache::Full, Cache::Halves, Cache::Codes] {
        check_written_behind(case, device, cache).map_err(|error| format!("{cache:?}: {error:?}"))?;
    }
    Ok(())
}

fn check_written_behind(case: &Path, device: &str, cache: Cache) -> Result<(), Failed> {
    let opened = exchange::open(case)?;
    // The rules of the folder have an end, and the case has none.
    let mut transcriber = Transcriber::with(opened, Rules::default(), &Target::open(device)?, cache)?;
    let heard = golden::tensors(&case.join("inputs.safetensors"), "eval.input_features")?;
    let expected = golden::tensors(&case.join("expected.safetensors"), "greedy")?;
    let (heard, expected) = (&heard[""], &expected[""]);
    let (sounds, rows) = (heard.shape[0], expected.shape[1]);
    if sounds != 2 || rows < 5 {
        return Err(format!("{sounds} sounds, {rows} tokens").into());
    }
    let each = heard.real::<f32>().chunks(heard.shape.count() / sounds);
    for (sound, expected) in each.zip(expected.as_i32().chunks(rows)) {
        let written = transcriber.write(sound.to_vec(), None, Task::Transcribe, Some(rows - 1))?;
        let all: Vec<i32> = [written.opening, written.ids].concat().into_iter().map(|id| id as i32).collect();
        if all != expected {
            return Err(format!("{all:?}, expected {expected:?}").into());
        }
    }
    Ok(())
}

/// Sums and counts that transformers' loop over overlapping windows gave for the tokens of a file.
fn perplexity(file: &Path) -> Result<(), Failed> {
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let ids: Vec<u32> = serde_json::from_value(golden["ids"].clone())?;
    let model = golden::folder().join("dev").join(golden["model"].as_str().ok_or("no model")?);
    let opened = kiln::exchange::open_to_run(&model, &[])?;
    let mut subject = kiln::tasks::Subject::new(opened, &model, kiln::train::Target::open("cpu")?, 4)?;
    for case in golden["cases"].as_array().ok_or("no cases")? {
        let number = |key: &str| case[key].as_u64().map(|number| number as usize).ok_or("no number");
        let found = kiln::tasks::sliding(&mut subject, &ids, number("window")?, number("stride")?)?;
        let (sum, count) =
            found.iter().fold((0.0, 0), |(sum, count), (one, scored)| (sum + one, count + scored.len()));
        let expected = case["perplexity"].as_f64().ok_or("no perplexity")?;
        let got = (sum / count as f64).exp();
        if count != number("tokens")? || (got - expected).abs() > 1e-5 * expected {
            return Err(format!("{case}: {count} tokens, perplexity {got}").into());
        }
    }
    Ok(())
}

/// Each batch of a case has a prefix, by which its results are called as well.
fn check_own(case: &Path, device: &str) -> Result<(), Failed> {
    let all = golden::tensors(&case.join("inputs.safetensors"), "")?;
    let prefixes: BTreeSet<String> =
        all.keys().filter_map(|name| Some(format!("{}.", name.split_once('.')?.0))).collect();
    prefixes.iter().try_for_each(|prefix| check(case, "config.json", prefix, prefix, device))
}

/// Runs the batch called by one prefix, of which the results are called by another; the gradients are those of `eval`. Of a batch
/// filled up before its texts the rows before them are no one's business, so that results which are not expected may be there.
fn check(case: &Path, spelling: &str, batch: &str, results: &str, device: &str) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    std::fs::copy(case.join(spelling), at("config.json"))?;
    std::fs::copy(case.join("model.safetensors"), at("model.safetensors"))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.arg("forward");
    if batch == "eval." {
        command.arg("--gradients").arg(at("gradients.safetensors"));
    }
    let done = command
        .args(["--prefix", batch, "--device", device, "--model"])
        .arg(folder.path())
        .arg("--inputs")
        .arg(case.join("inputs.safetensors"))
        .arg("--output")
        .arg(at("out.safetensors"))
        .env("KILN_TUNE", "off")
        .output()?;
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).into_owned().into());
    }
    let mut expected = golden::tensors(&case.join("expected.safetensors"), results)?;
    expected.retain(|name, _| !OF_TRAINING.contains(&name.as_str()));
    let mut got = golden::tensors(&at("out.safetensors"), "")?;
    if batch != "eval." {
        got.retain(|name, _| expected.contains_key(name));
        return compare(&got, &expected, FORWARD);
    }
    compare(&got, &expected, FORWARD)?;
    let expected = golden::tensors(&case.join("grads.safetensors"), "")?;
    compare(&golden::tensors(&at("gradients.safetensors"), "")?, &expected, GRADIENT)
}

fn compare(got: &Tensors, expected: &Tensors, [absolute, share]: [f64; 2]) -> Result<(), Failed> {
    if !got.keys().eq(expected.keys()) {
        return Err(format!("got {:?}, expected {:?}", got.keys(), expected.keys()).into());
    }
    for (name, got) in got {
        let expected = &expected[name];
        if got.shape != expected.shape {
            return Err(format!("{name}: the shape is {}, expected {}", got.shape, expected.shape).into());
        }
        let (got, expected) = (got.to_f64(), expected.to_f64());
        let limit = absolute + share * expected.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        let apart = |(got, expected): (&f64, &f64)| (got - expected).abs();
        let worst = got
            .iter()
            .zip(&expected)
            .map(apart)
            .fold(0.0, |most: f64, x| if x > most || x.is_nan() { x } else { most });
        if worst.is_nan() || worst > limit {
            return Err(format!("{name}: off by {worst:.2e}, at most {limit:.1e} is expected").into());
        }
    }
    Ok(())
}
