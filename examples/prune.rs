//! Half of a model's weights go: the smallest, those that are small and meet small inputs (Wanda), and those that the rest can make up
//! for (SparseGPT).
//!
//! A GPT of two layers is trained on the built-in stories. Each way removes as many weights; what it costs is the loss on text that no
//! method has seen. Run it with `cargo run --release --example prune`, or `-- cpu` for the host.

use kiln::compress::prune::{Method, Request, SparseGpt, prune};
use kiln::compress::{MEMORY_BYTES, Selection};
use kiln::data::corpus;
use kiln::data::store::Part;
use kiln::data::windows::evaluation;
use kiln::evaluate::mean_loss;
use kiln::exchange::{Opened, open};
use kiln::model::Extent;
use kiln::tensor::sparse::{Scope, Sparsity};
use kiln::train::Target;
use kiln::train::recipe::Recipe;
use kiln::train::run::run;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

const RECIPE: &str = "
    [model]
    layers = 2
    heads = 4
    width = 48
    context = 32
    dropout = 0.0
    [train]
    steps = 600
    batch = 12
    learning_rate = { peak = 5e-3 }
    [run]
    save = { every = 600, keep = 1 }
";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = std::env::args().nth(1).unwrap_or("gpu".into());
    let folder = tempfile::tempdir()?;
    let sets = [format!("run.folder={}", folder.path().display()), format!("run.device={device}")];
    let recipe = Recipe::from_text(RECIPE, "the example", &sets)?;
    let summary = run(recipe, false, &AtomicBool::new(false), &mut |_| {})?;
    let Opened { family, weights, tokenizer } = open(&summary.checkpoint.ok_or("no checkpoint")?)?;
    let (tokenizer, target) = (tokenizer.ok_or("no tokenizer")?, Target::open_or_host(&device, &mut |_| {})?);

    // Two texts from the same grammar: one to measure inputs with, one to be judged by.
    let windows = |seed, rows, count| {
        let tokens = Part::of(&corpus::generate(20_000, seed), &tokenizer)?.tokens;
        evaluation("a text", &tokens, 32, rows, count)
    };
    let (calibration, unseen) = (windows(1, 1, 32)?, windows(2, 8, 8)?);
    let loss = |weights: &_| -> Result<f64, Box<dyn std::error::Error>> {
        Ok(mean_loss(family.as_ref(), weights, &target, Extent { batch: 8, context: 32 }, &unseen)?.0)
    };
    let whole = loss(&weights)?;
    println!("whole      loss {whole:.4}");

    let mut losses = vec![];
    for method in [Method::Magnitude(Scope::Row), Method::Wanda, Method::SparseGpt(SparseGpt::default())] {
        let request = Request {
            method,
            sparsity: Sparsity::Share(0.5),
            each: BTreeMap::new(),
            scheme: None,
            selection: Selection::default(),
            batches: if method.calibrates() { &calibration } else { &[] },
            known: None,
            memory_bytes: MEMORY_BYTES,
        };
        let made = prune(family.as_ref(), &weights, &target, &request)?;
        losses.push(loss(&made.weights)?);
        let (removed, loss) = (100.0 * made.sparsity(), losses[losses.len() - 1]);
        println!(
            "{:<10} loss {loss:.4}, {removed:.1} % of {} layers removed",
            method.name(),
            made.outcomes.len()
        );
    }
    let [magnitude, wanda, sparsegpt] = losses[..] else { unreachable!("one for each method") };
    println!(
        "looking at the inputs saves {:.4} nats, making up for what goes {:.4}",
        magnitude - wanda,
        wanda - sparsegpt
    );
    assert!(whole < sparsegpt && sparsegpt < magnitude, "what is measured was of no use");
    Ok(())
}
