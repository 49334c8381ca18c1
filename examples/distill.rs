//! A student of half the teacher's depth learns twice, from the text alone and from the teacher as well, in as many steps.
//!
//! The teacher is a GPT of four layers on the built-in stories. Both students begin as its first and its last layer, see the same
//! windows in the same order, and differ in nothing but their loss: `[distill]` adds the divergence from what the teacher says.
//! Run it with `cargo run --release --example distill`, or `-- cpu` for the host.

use kiln::train::recipe::Recipe;
use kiln::train::run::{Summary, run};
use std::path::Path;
use std::sync::atomic::AtomicBool;

const TEACHER: &str = "
    [model]
    layers = 4
    heads = 4
    width = 48
    context = 32
    dropout = 0.0
    [train]
    steps = 400
    batch = 12
    learning_rate = { peak = 5e-3 }
    evaluate = { every = 400, batches = 20 }
    [run]
    save = { every = 400, keep = 1 }
";

const STUDENT: &str = "
    [model]
    keep_layers = [0, 3]
    [train]
    steps = 60
    batch = 12
    learning_rate = { peak = 2e-3 }
    evaluate = { every = 60, batches = 20 }
    [run]
    save = { every = 60, keep = 1 }
";

/// Trains in a folder of its own, without a word but the result.
fn train(
    name: &str,
    text: &str,
    sets: &[String],
    root: &Path,
) -> Result<Summary, Box<dyn std::error::Error>> {
    let device = std::env::args().nth(1).unwrap_or("gpu".into());
    let run_sets = [format!("run.folder={}", root.join(name).display()), format!("run.device={device}")];
    let recipe = Recipe::from_text(text, name, &[sets, &run_sets].concat())?;
    let summary = run(recipe, false, &AtomicBool::new(false), &mut |_| {})?;
    let loss = summary.validation_loss.unwrap_or(f64::NAN);
    println!("{name:<8} {} steps, validation loss {loss:.4}", summary.steps);
    Ok(summary)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = tempfile::tempdir()?;
    let teacher = train("teacher", TEACHER, &[], root.path())?;
    let folder = teacher.checkpoint.ok_or("the teacher left no checkpoint")?;
    let mut sets = vec![format!("model.load={}", folder.display())];
    let alone = train("alone", STUDENT, &sets, root.path())?;
    sets.push(format!("distill.teacher={}", folder.display()));
    sets.extend(["distill.temperature=2", "distill.ce=0.5", "distill.kl=0.5"].map(String::from));
    let taught = train("taught", STUDENT, &sets, root.path())?;

    let [alone, taught] = [alone, taught].map(|summary| summary.validation_loss.unwrap_or(f64::NAN));
    println!("the teacher is worth {:.4} nats per token to a student of half its depth", alone - taught);
    assert!(taught < alone, "the teacher was of no use");
    Ok(())
}
