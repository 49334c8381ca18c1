//! A trained model under every scheme: its loss on a text must be what PyTorch, gguf and GPTQ's own authors' code make it.
//!
//! The model and the losses stand in `train/gpt2-shakespeare-char` of the golden folder, the text in `../data` beside it. The 16
//! matrices of the blocks are quantised or pruned, embeddings and head are not.

mod golden;

use kiln::compress::prune::{self, SparseGpt, masks_hold, masks_of_zeros, prune, sparsity_of};
use kiln::compress::{Error, Gptq, MEMORY_BYTES, Method, Observer, Request, Selection, named, quantize};
use kiln::data::store::split;
use kiln::data::text::Text;
use kiln::data::tokenizer::{Spec, Tokenizer};
use kiln::data::windows::{Batch, Sampler};
use kiln::data::{replay::Replay, store::Part};
use kiln::evaluate::{self, evaluate_with};
use kiln::model::{self, Family, Weights};
use kiln::tensor::sparse::Scope;
use kiln::train::Target;
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Windows to calibrate with, of 64 tokens each.
const WINDOWS: usize = 16;

/// What is checked: scheme, method, the golden loss by its name, and how far from it the loss may be.
type Check = (&'static str, Method, &'static str, f64);

const NEAREST: Method = Method::Nearest;
const GPTQ: Method = Method::Gptq(Gptq { damping: 0.01, act_order: false });

/// Far within what the golden file allows (2e-3, GPTQ 2 %): rounding is exact, and losses differ by the order of sums.
const CHECKS: &[Check] = &[
    ("f32", NEAREST, "fp32", 1e-5),
    ("f16", NEAREST, "fp32", 1e-4),
    ("bf16", NEAREST, "fp32", 2e-4),
    ("Q8_0", NEAREST, "gguf_Q8_0", 5e-5),
    ("Q5_1", NEAREST, "gguf_Q5_1", 5e-5),
    ("Q5_0", NEAREST, "gguf_Q5_0", 5e-5),
    ("Q4_1", NEAREST, "gguf_Q4_1", 5e-5),
    ("Q4_0", NEAREST, "gguf_Q4_0", 5e-5),
    ("int8", NEAREST, "int8_per_channel_sym", 5e-5),
    ("int4-row", NEAREST, "rtn4_per_row", 5e-5),
    ("int4-row", GPTQ, "gptq4_per_row", 5e-4),
    ("int3", NEAREST, "rtn3_per_row", 5e-5),
    ("int3", GPTQ, "gptq3_per_row", 1e-3),
    // Activations in 8 bits too: within 0.003 of f32.
    ("W8A8", NEAREST, "fp32", 3e-3),
    ("W8A8-static", NEAREST, "fp32", 3e-3),
    ("W8A8", Method::Smooth { alpha: 0.5 }, "fp32", 3e-3),
    // No golden loss: four bits in groups must not lose more than in rows.
    ("int4-g32", NEAREST, "fp32", 5e-3),
    ("int4-g32", Method::Awq, "fp32", 5e-3),
    ("nf4", NEAREST, "fp32", 5e-3),
];

/// What is removed: a share or a pattern, the method, the golden loss by its name, and how far from it the loss may be.
type Removal = (&'static str, prune::Method, &'static str, f64);

const SMALLEST: prune::Method = prune::Method::Magnitude(Scope::Row);
const WANDA: prune::Method = prune::Method::Wanda;
const SPARSEGPT: prune::Method =
    prune::Method::SparseGpt(SparseGpt { damping: 0.01, block: 128, inclusive: true });

/// The golden file allows 2e-3, and 2 % with SparseGPT.
const REMOVALS: &[Removal] = &[
    ("0.3", SMALLEST, "magnitude_rowwise_30", 5e-5),
    ("0.5", SMALLEST, "magnitude_rowwise_50", 5e-5),
    ("0.7", SMALLEST, "magnitude_rowwise_70", 5e-5),
    ("2:4", SMALLEST, "magnitude_2_4", 5e-5),
    ("0.3", WANDA, "wanda_30", 5e-5),
    ("0.5", WANDA, "wanda_50", 5e-5),
    ("0.7", WANDA, "wanda_70", 5e-5),
    ("2:4", WANDA, "wanda_2_4", 5e-5),
    ("0.5", SPARSEGPT, "sparsegpt_50", 5e-5),
    ("0.7", SPARSEGPT, "sparsegpt_70", 5e-5),
    ("2:4", SPARSEGPT, "sparsegpt_2_4", 5e-5),
];

struct Setting {
    family: Box<dyn Family>,
    weights: Weights,
    batches: Vec<Batch>,
    request: evaluate::Request,
    losses: serde_json::Value,
}

fn main() {
    let arguments = Arguments::from_args();
    let folder = golden::folder().join("train/gpt2-shakespeare-char");
    let text = golden::folder().join("../data/tinyshakespeare.txt");
    let absent = golden::is_absent(&folder) || golden::is_absent(&text);
    let setting = Arc::new(OnceLock::new());
    let mut trials = vec![];
    for (place, target) in [("host", Some(Arc::new(Target::Host))), ("device", device())] {
        for &check in CHECKS {
            let ignored =
                absent || (target.is_none() && std::env::var("KILN_REQUIRE_GPU").as_deref() != Ok("1"));
            let (folder, text, target, setting) =
                (folder.clone(), text.clone(), target.clone(), setting.clone());
            let run = move || {
                let setting: &Result<Setting, String> = setting.get_or_init(|| {
                    open(&folder, &text).map_err(|error| error.message().unwrap_or("").to_string())
                });
                let setting = setting.as_ref().map_err(|error| error.clone())?;
                run_check(setting, target.as_ref().ok_or("no adapter")?, &check)
            };
            let name = format!("{place}/{} by {}", check.0, check.1.name());
            trials.push(Trial::test(name, run).with_ignored_flag(ignored));
        }
    }
    type Run = Box<dyn FnOnce(&Setting, &Target) -> Result<(), Failed> + Send>;
    for (place, target) in [("host", Some(Arc::new(Target::Host))), ("device", device())] {
        let ignored = absent || (target.is_none() && std::env::var("KILN_REQUIRE_GPU").as_deref() != Ok("1"));
        let mut more: Vec<(String, Run)> = vec![];
        for removal in REMOVALS {
            let name = format!("{place}/{} by {}", removal.0, removal.1.name());
            more.push((name, Box::new(|setting, target| run_removal(setting, target, removal))));
        }
        if place == "host" {
            more.push(("host/what is removed stays zero in codes".into(), Box::new(keeps_zeros)));
        }
        for (name, check) in more {
            let (folder, text, target, setting) =
                (folder.clone(), text.clone(), target.clone(), setting.clone());
            let run = move || {
                let setting: &Result<Setting, String> = setting.get_or_init(|| {
                    open(&folder, &text).map_err(|error| error.message().unwrap_or("").to_string())
                });
                let setting = setting.as_ref().map_err(|error| error.clone())?;
                check(setting, target.as_ref().ok_or("no adapter")?)
            };
            trials.push(Trial::test(name, run).with_ignored_flag(ignored));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn device() -> Option<Arc<Target>> {
    #[cfg(feature = "gpu")]
    // SAFETY: nothing else runs yet.
    unsafe {
        kiln::gpu::device::skip_window_layers()
    };
    let wanted = std::env::var("KILN_DEVICE").unwrap_or_else(|_| "gpu".into());
    Target::open(&wanted).ok().filter(|target| !target.is_host()).map(Arc::new)
}

fn open(folder: &Path, text: &PathBuf) -> Result<Setting, Failed> {
    let losses: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("compression.json"))?)?;
    let model = folder.join("final");
    let family = model::open(&model)?;
    let weights = Weights::read(&model, family.as_ref())?;
    let windows = folder.join("batches.safetensors");
    let contents = Text::open(std::slice::from_ref(text))?.contents().into_owned();
    let tokenizer = Tokenizer::prepare(&Spec::Characters, &contents)?;
    let part = Part::of(split(&contents, 0.1)?.0, &tokenizer)?;
    let offsets = Replay::load(&windows)?.training()?.clone();
    let mut sampler = Sampler::replayed(part.tokens, 64, &offsets)?;
    let mut batches = vec![];
    while batches.len() < WINDOWS {
        batches.extend(sampler.next_batch()?.split(1).take(WINDOWS - batches.len()));
    }
    let request = evaluate::Request {
        model,
        text: vec![text.clone()],
        tokenizer: Some(Spec::Characters),
        windows: Some(windows),
        validation: 0.1,
        batch: 12,
        context: Some(64),
    };
    Ok(Setting { family, weights, batches, request, losses })
}

fn run_check(setting: &Setting, target: &Target, check: &Check) -> Result<(), Failed> {
    let &(scheme, method, golden, tolerance) = check;
    let family = setting.family.as_ref();
    let request = Request {
        schemes: named(scheme)?.into(),
        method,
        selection: Selection::default(),
        correct_bias: false,
        observer: Observer::MeanSquare,
        batches: if method.calibrates() || scheme == "W8A8-static" { &setting.batches } else { &[] },
        known: None,
        memory_bytes: MEMORY_BYTES,
    };
    let (weights, outcomes) = quantize(family, &setting.weights, target, &request)?;
    if outcomes.len() != 16 {
        return Err(format!("{} matrices were quantised, expected 16", outcomes.len()).into());
    }
    let loss = evaluate_with(family, &weights, None, &setting.request, target)?.loss;
    let expected = setting.losses["val_loss"][golden].as_f64().ok_or("no such golden loss")?;
    println!("{scheme} by {}: {loss:.5}, {golden} {expected:.5}", method.name());
    match (loss - expected).abs() <= tolerance {
        true => Ok(()),
        false => Err(format!("loss {loss}, expected {expected} within {tolerance}").into()),
    }
}

fn removal<'a>(setting: &'a Setting, removal: &Removal) -> Result<prune::Request<'a>, Failed> {
    let &(amount, method, ..) = removal;
    let share: Option<f64> = amount.parse().ok();
    Ok(prune::Request {
        method,
        sparsity: sparsity_of(share, share.is_none().then_some(amount))?,
        each: Default::default(),
        scheme: None,
        selection: Selection::default(),
        batches: if method.calibrates() { &setting.batches } else { &[] },
        known: None,
        memory_bytes: MEMORY_BYTES,
    })
}

fn run_removal(setting: &Setting, target: &Target, check: &Removal) -> Result<(), Failed> {
    let family = setting.family.as_ref();
    let made = prune(family, &setting.weights, target, &removal(setting, check)?)?;
    if made.outcomes.len() != 16 {
        return Err(format!("{} matrices were pruned, expected 16", made.outcomes.len()).into());
    }
    masks_hold(family, &made.weights, &made.masks)?;
    let loss = evaluate_with(family, &made.weights, None, &setting.request, target)?.loss;
    let &(amount, method, golden, tolerance) = check;
    let expected = setting.losses["val_loss"][golden].as_f64().ok_or("no such golden loss")?;
    println!(
        "{amount} by {}: {loss:.5}, {golden} {expected:.5}, removed {:.4}",
        method.name(),
        made.sparsity()
    );
    match (loss - expected).abs() <= tolerance {
        true => Ok(()),
        false => Err(format!("loss {loss}, expected {expected} within {tolerance}").into()),
    }
}

/// Every scheme with an exact zero keeps what was removed, however codes are chosen; those without are told by name.
fn keeps_zeros(setting: &Setting, target: &Target) -> Result<(), Failed> {
    let family = setting.family.as_ref();
    let made = prune(family, &setting.weights, target, &removal(setting, &("2:4", SPARSEGPT, "", 0.0))?)?;
    let methods = [NEAREST, GPTQ, Method::Awq, Method::Smooth { alpha: 0.5 }];
    // Blocks with a minimum of their own have no exact zero.
    let moves = ["Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"];
    let mut kept = 0;
    for (scheme, method) in kiln::compress::names().into_iter().flat_map(|s| methods.map(|m| (s, m))) {
        let request = Request {
            schemes: named(scheme)?.into(),
            method,
            selection: Selection::default(),
            correct_bias: false,
            observer: Observer::MeanSquare,
            batches: &setting.batches[..2],
            known: None,
            memory_bytes: MEMORY_BYTES,
        };
        let weights = match quantize(family, &made.weights, target, &request) {
            Ok((weights, _)) => weights,
            Err(Error::Unfit { .. }) => continue,
            Err(error) => return Err(format!("{scheme} by {}: {error}", method.name()).into()),
        };
        match masks_hold(family, &weights, &made.masks) {
            Ok(()) if moves.contains(&scheme) => return Err(format!("{scheme} kept zeros").into()),
            Ok(()) => kept += 1,
            Err(Error::CameBack { names }) if moves.contains(&scheme) && names.len() >= 4 => {}
            Err(error) => return Err(format!("{scheme} by {}: {error}", method.name()).into()),
        }
    }
    println!("{kept} ways of coding keep zeros");
    let again = masks_of_zeros(family, &made.weights, &Selection::default())?;
    match kept >= 20 && again.iter().all(|(name, mask)| mask.covers(&made.masks[name])) {
        true => Ok(()),
        false => Err(format!("{kept} ways of coding kept zeros").into()),
    }
}
