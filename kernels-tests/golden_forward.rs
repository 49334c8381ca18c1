//! `kiln forward` against transformers, through the binary, with both spellings of the configuration.

mod golden;

use golden::Tensors;
use libtest_mimic::{Arguments, Failed, Trial};
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
    let found = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = found
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    if names.is_empty() {
        names.push("gpt2".into());
    }
    let adapter = kiln::train::Target::open("gpu").is_ok() || std::env::var_os("KILN_REQUIRE_GPU").is_some();
    let mut trials = vec![];
    for name in names {
        let case = folder.join(&name);
        let absent = golden::is_absent(&case);
        for (spelling, device) in [("config.json", "gpu"), ("config.v4.json", "cpu")] {
            let case = case.clone();
            let trial =
                Trial::test(format!("{name}: {spelling}, {device}"), move || check(&case, spelling, device));
            trials.push(trial.with_ignored_flag(absent || (device == "gpu" && !adapter)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn check(case: &Path, spelling: &str, device: &str) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    std::fs::copy(case.join(spelling), at("config.json"))?;
    std::fs::copy(case.join("model.safetensors"), at("model.safetensors"))?;
    let done = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["forward", "--prefix", "eval.", "--device", device, "--model"])
        .arg(folder.path())
        .arg("--inputs")
        .arg(case.join("inputs.safetensors"))
        .arg("--output")
        .arg(at("out.safetensors"))
        .arg("--gradients")
        .arg(at("gradients.safetensors"))
        .env("KILN_TUNE", "off")
        .output()?;
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).into_owned().into());
    }
    let mut expected = golden::tensors(&case.join("expected.safetensors"), "")?;
    expected.retain(|name, _| !OF_TRAINING.contains(&name.as_str()));
    compare(&golden::tensors(&at("out.safetensors"), "")?, &expected, FORWARD)?;
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
