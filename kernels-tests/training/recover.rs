//! Runs whose device is lost on the way.

use super::*;
use kiln::train::run::{Summary, Watch, run_watched};

/// Trains and loses the device after each of these steps was submitted, each time once.
fn train_and_lose(recipe: Recipe, resume: bool, lose: &[u64]) -> (Result<Summary, Error>, String) {
    let (mut said, mut left) = (String::new(), lose.to_vec());
    let mut stepped = |step: u64, target: &Target| {
        if let (Target::Gpu { gpu, .. }, Some(at)) = (target, left.iter().position(|&lost| lost == step)) {
            left.remove(at);
            gpu.destroy();
        }
    };
    let mut say = |line: &str| said.push_str(&format!("{line}\n"));
    let stop = AtomicBool::new(false);
    let outcome =
        run_watched(recipe, resume, &mut Watch { stop: &stop, say: &mut say, stepped: &mut stepped });
    (outcome, said)
}

fn adapter() -> bool {
    devices().contains(&"gpu")
}

#[test]
fn a_run_that_recovers_makes_the_very_steps_that_were_lost_again() {
    if !adapter() {
        return eprintln!("NOT RUN: no adapter to lose");
    }
    let root = tempfile::tempdir().unwrap();
    let (whole, lost) = (root.path().join("whole"), root.path().join("lost"));
    train(recipe(&whole, "gpu", &[]), false).unwrap();
    // Before there is a checkpoint, between two of them, while one is written, and at the very end.
    let (outcome, said) = train_and_lose(recipe(&lost, "gpu", &["run.recover=true"]), false, &[2, 7, 10, 12]);
    assert_eq!(outcome.unwrap().steps, 12, "{said}");
    assert_eq!(losses(&whole), losses(&lost));
    assert!(last_weights(&whole) == last_weights(&lost), "weights differ");
    assert_eq!(said.matches("the device was lost").count(), 4, "{said}");
    assert!(said.contains("going on after step 0\n") && said.contains("going on after step 5\n"), "{said}");
    let lines = metrics::read(&lost).unwrap();
    let from: Vec<u64> =
        lines.iter().filter_map(|l| if let Line::Recovery(r) = l { Some(r.step) } else { None }).collect();
    assert_eq!(from, [0, 5, 5, 10], "each recovery stands in the log");
    let evaluations = |folder: &Path| {
        let all = metrics::read(folder).unwrap();
        all.into_iter().filter(|line| matches!(line, Line::Evaluation(_))).collect::<Vec<_>>()
    };
    assert_eq!(evaluations(&whole), evaluations(&lost));
}

#[test]
fn a_lost_device_is_an_error_that_names_the_checkpoint_and_the_command_that_goes_on() {
    if !adapter() {
        return eprintln!("NOT RUN: no adapter to lose");
    }
    let root = tempfile::tempdir().unwrap();
    let (whole, folder) = (root.path().join("whole"), root.path().join("run"));
    train(recipe(&whole, "gpu", &[]), false).unwrap();
    let (outcome, _) = train_and_lose(recipe(&folder, "gpu", &[]), false, &[2]);
    let error = outcome.unwrap_err();
    assert!(matches!(&error, Error::Lost { checkpoint, .. } if checkpoint == "none yet"), "{error}");
    let (outcome, _) = train_and_lose(recipe(&folder, "gpu", &[]), false, &[8]);
    let error = outcome.unwrap_err();
    assert!(matches!(&error, Error::Lost { step: 5..=8, .. }), "{error:?}");
    let text = error.to_string();
    let command = format!("`kiln train --resume {}`", folder.display());
    for part in ["the device was lost", "checkpoints/step-000005", &command, "--recover"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    train(recipe(&folder, "gpu", &[]), true).unwrap();
    assert_eq!(losses(&whole), losses(&folder), "the command that was named goes on exactly");
}

#[test]
fn a_device_that_is_lost_again_and_again_at_the_same_place_ends_the_run() {
    if !adapter() {
        return eprintln!("NOT RUN: no adapter to lose");
    }
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    let (outcome, said) = train_and_lose(recipe(&folder, "gpu", &["run.recover=true"]), false, &[7; 9]);
    assert!(matches!(outcome, Err(Error::Lost { .. })), "{said}");
    assert_eq!(said.matches("recovered: ").count(), 3, "{said}");
}
