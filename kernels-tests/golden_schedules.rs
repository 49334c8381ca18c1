//! Every learning-rate curve against the schedules of PyTorch, transformers and nanoGPT.
//!
//! The cases stand in `dev/optim/schedules.json` of the golden folder: `KILN_GOLDEN`, or `../shared/golden` beside the
//! checkout. Where there is none the trials are counted as ignored, unless `KILN_REQUIRE_GOLDEN=1`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use kiln::train::schedule::{Curve, PlateauState, Schedule, WarmupRule};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;

/// The limit the golden folder states for its schedules.
const RELATIVE: f64 = 1e-6;

const NAMES: &[&str] = &[
    "hf_linear_warmup",
    "hf_cosine_warmup",
    "hf_cosine_hard_restarts",
    "hf_polynomial",
    "hf_constant_warmup",
    "hf_inverse_sqrt",
    "torch_step",
    "torch_multistep",
    "torch_exponential",
    "torch_cosine",
    "torch_cosine_restarts",
    "torch_onecycle",
    "torch_linear",
    "torch_polynomial",
    "torch_plateau",
    "nanogpt_cosine",
];

fn main() {
    let arguments = Arguments::from_args();
    let file = golden_folder().join("dev/optim/schedules.json");
    let absent = !file.exists() && env::var("KILN_REQUIRE_GOLDEN").as_deref() != Ok("1");
    let mut trials: Vec<Trial> = NAMES
        .iter()
        .map(|&name| {
            let file = file.clone();
            Trial::test(format!("schedule_{name}"), move || matches(&file, name)).with_ignored_flag(absent)
        })
        .collect();
    let listed = Trial::test("every_schedule_of_the_file_is_tried", move || every_name_is_listed(&file));
    trials.push(listed.with_ignored_flag(absent));
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

fn every_name_is_listed(file: &Path) -> Result<(), Failed> {
    let golden = read(file)?;
    let schedules = golden["schedules"].as_object().ok_or("no `schedules`")?;
    match schedules.keys().find(|name| !NAMES.contains(&name.as_str())) {
        Some(name) => Err(format!("{name} has no trial").into()),
        None => Ok(()),
    }
}

fn matches(file: &Path, name: &str) -> Result<(), Failed> {
    let golden = read(file)?;
    let base = golden["base_lr"].as_f64().ok_or("no `base_lr`")?;
    let case = &golden["schedules"][name];
    let expected: Vec<f64> = serde_json::from_value(case["lr"].clone())?;
    let losses: Vec<f64> = match case.get("metric") {
        Some(metric) => serde_json::from_value(metric.clone())?,
        None => Vec::new(),
    };
    if expected.len() < 60 {
        return Err(format!("only {} rates to compare", expected.len()).into());
    }
    let schedule = schedule(name, base, &case["options"])?;
    let mut state = PlateauState::default();
    for (step, &expected) in expected.iter().enumerate() {
        let got = schedule.rate(step as u64, &state);
        if (got - expected).abs() > RELATIVE * expected.abs() {
            return Err(format!("step {step}: got {got}, expected {expected}").into());
        }
        if let Some(&loss) = losses.get(step) {
            schedule.observe(&mut state, loss);
        }
    }
    Ok(())
}

/// The curve that stands for a schedule of the file, with the options written there.
fn schedule(name: &str, base: f64, options: &Value) -> Result<Schedule, Failed> {
    let number = |key: &str| options[key].as_f64().ok_or_else(|| Failed::from(format!("no `{key}`")));
    let count = |key: &str| options[key].as_u64().ok_or_else(|| Failed::from(format!("no `{key}`")));
    let warmup = options["num_warmup_steps"].as_u64().unwrap_or(0);
    let torch = |curve| Schedule { curve, ..Schedule::constant(base) };
    let hugging_face = |curve| Schedule { warmup, warmup_rule: WarmupRule::Huggingface, ..torch(curve) };
    let steps = || count("num_training_steps");
    Ok(match name {
        "hf_linear_warmup" => hugging_face(Curve::Linear { floor: 0.0, until: steps()?, power: 1.0 }),
        "hf_cosine_warmup" => hugging_face(Curve::Cosine { floor: 0.0, until: steps()?, cycles: 1 }),
        "hf_cosine_hard_restarts" => {
            hugging_face(Curve::Cosine { floor: 0.0, until: steps()?, cycles: count("num_cycles")? })
        }
        "hf_polynomial" => {
            let (floor, power) = (number("lr_end")?, number("power")?);
            hugging_face(Curve::Linear { floor, until: steps()?, power })
        }
        "hf_constant_warmup" => hugging_face(Curve::Constant),
        "hf_inverse_sqrt" => hugging_face(Curve::InverseSqrt { floor: 0.0, timescale: warmup }),
        "torch_step" => {
            torch(Curve::Step { floor: 0.0, factor: number("gamma")?, every: count("step_size")? })
        }
        "torch_multistep" => {
            let at = serde_json::from_value(options["milestones"].clone())?;
            torch(Curve::Milestones { factor: number("gamma")?, at })
        }
        "torch_exponential" => torch(Curve::Exponential { floor: 0.0, factor: number("gamma")? }),
        "torch_cosine" => {
            torch(Curve::Cosine { floor: number("eta_min")?, until: count("T_max")?, cycles: 1 })
        }
        "torch_cosine_restarts" => {
            let (floor, every) = (number("eta_min")?, count("T_0")?);
            torch(Curve::CosineRestarts { floor, every, growth: count("T_mult")? })
        }
        "torch_onecycle" => {
            // PyTorch's unwritten defaults: start at max / 25, end at start / 1e4.
            let peak = number("max_lr")?;
            let (start, rise, until) = (peak / 25.0, number("pct_start")?, count("total_steps")?);
            Schedule { peak, ..torch(Curve::OneCycle { start, floor: start / 1e4, until, rise }) }
        }
        "torch_linear" => {
            // This one rises: a line from its "peak" to its "floor" all the same.
            let (peak, floor) = (base * number("start_factor")?, base * number("end_factor")?);
            let curve = Curve::Linear { floor, until: count("total_iters")?, power: 1.0 };
            Schedule { peak, ..torch(curve) }
        }
        "torch_polynomial" => {
            let (until, power) = (count("total_iters")?, number("power")?);
            torch(Curve::Linear { floor: 0.0, until, power })
        }
        "torch_plateau" => torch(Curve::Plateau {
            floor: number("min_lr")?,
            factor: number("factor")?,
            patience: count("patience")?,
            threshold: number("threshold")?,
            cooldown: count("cooldown")?,
        }),
        "nanogpt_cosine" => {
            let (floor, until) = (number("min_lr")?, count("lr_decay_iters")?);
            let curve = Curve::Cosine { floor, until, cycles: 1 };
            Schedule { warmup: count("warmup_iters")?, ..torch(curve) }
        }
        _ => return Err(format!("no curve stands for {name}").into()),
    })
}
