//! Optimisers and gradient clipping against PyTorch, through the references on the host.
//!
//! The cases stand in `dev/optim` of the golden folder: parameters after steps 1, 2, 5 and 10 on given gradients. Where there
//! is none the trials are counted as ignored, unless `KILN_REQUIRE_GOLDEN=1`.

mod golden;

use golden::{Tensors, tensors};
use kiln::ops::Operator;
use kiln::ops::optimizer::norm::{self, CONTROL, GradientNorm};
use kiln::ops::optimizer::{BLOCK, Kind, Optimizer};
use kiln::tensor::{Tensor, Type};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use std::path::PathBuf;

/// What the golden folder states for its optimisers.
const ABSOLUTE: f64 = 1e-5;
const RELATIVE: f64 = 1e-5;

const OPTIMISERS: &[&str] = &[
    "sgd",
    "sgd_momentum",
    "sgd_momentum_wd_dampening",
    "sgd_nesterov",
    "adam",
    "adam_l2",
    "adamw",
    "adamw_b95",
    "lamb",
    "lamb_wd0",
];

fn main() {
    let arguments = Arguments::from_args();
    let absent = golden::is_absent(&folder());
    let mut trials: Vec<Trial> =
        OPTIMISERS.iter().map(|&name| Trial::test(name, move || steps_match(name))).collect();
    for (name, max_norm) in [("norm1", 1.0), ("norm5", 5.0), ("norm1000", 1000.0)] {
        trials.push(Trial::test(format!("clip_{name}"), move || norm_matches(name, max_norm)));
    }
    trials.push(Trial::test("clip_value0.5", || value_matches("value0.5", 0.5)));
    let trials = trials.into_iter().map(|trial| trial.with_ignored_flag(absent)).collect();
    libtest_mimic::run(&arguments, trials).exit();
}

fn folder() -> PathBuf {
    golden::folder().join("dev/optim")
}

/// Three tensors in one arena, each padded to whole blocks.
struct Layout {
    shapes: Vec<Type>,
    starts: Vec<usize>,
    count: usize,
}

impl Layout {
    fn of(tensors: &[&Tensor]) -> Self {
        let mut layout = Layout { shapes: vec![], starts: vec![], count: 0 };
        for tensor in tensors {
            layout.shapes.push(tensor.host_type());
            layout.starts.push(layout.count);
            layout.count += tensor.data.len().next_multiple_of(BLOCK);
        }
        layout
    }

    fn join(&self, tensors: &[&Tensor]) -> Tensor {
        let mut arena = vec![0.0; self.count];
        for (tensor, &start) in tensors.iter().zip(&self.starts) {
            arena[start..][..tensor.data.len()].copy_from_slice(tensor.real::<f32>());
        }
        Tensor::f32([self.count], arena)
    }

    fn part(&self, arena: &Tensor, number: usize) -> Tensor {
        let shape = self.shapes[number].shape.clone();
        let elements = &arena.real::<f32>()[self.starts[number]..][..shape.count()];
        Tensor::f32(shape, elements.to_vec())
    }

    fn segments(&self) -> Tensor {
        let blocks = self.count / BLOCK;
        let tensor = |block| self.starts.iter().rposition(|&start| start <= block * BLOCK).unwrap_or(0);
        Tensor::u32([blocks], (0..blocks).map(|block| tensor(block) as u32).collect())
    }
}

fn three<'a>(tensors: &'a Tensors, prefix: &str) -> Result<Vec<&'a Tensor>, Failed> {
    let find = |i| tensors.get(&format!("{prefix}{i}")).ok_or_else(|| format!("no {prefix}{i}").into());
    (0..3).map(find).collect()
}

fn apply(op: &dyn Operator, inputs: &[&Tensor]) -> Result<Vec<Tensor>, Failed> {
    let types: Vec<Type> = inputs.iter().map(|t| t.host_type()).collect();
    let mut outputs: Vec<Tensor> = op.signature(&types)?.iter().map(Tensor::zeros).collect();
    op.reference(inputs, &mut outputs);
    Ok(outputs)
}

/// The optimiser of a case, its learning rate and its weight decay.
fn optimizer(name: &str) -> Result<(Optimizer, f64, f32), Failed> {
    let text = std::fs::read_to_string(folder().join("case.json"))?;
    let file: Value = serde_json::from_str(&text)?;
    let case = &file["cases"][name];
    let number = |key: &str, unset: f64| case["options"][key].as_f64().unwrap_or(unset);
    let beta = |i: usize, unset: f64| case["options"]["betas"][i].as_f64().unwrap_or(unset);
    // What is not written is PyTorch's default.
    let (betas, epsilon) = ([beta(0, 0.9), beta(1, 0.999)], number("eps", 1e-8));
    let mut decay = number("weight_decay", 0.0);
    let kind = match case["type"].as_str() {
        Some("torch.optim.SGD") if number("momentum", 0.0) == 0.0 => Kind::GradientDescent,
        Some("torch.optim.SGD") => Kind::Sgd {
            momentum: number("momentum", 0.0),
            dampening: number("dampening", 0.0),
            nesterov: case["options"]["nesterov"].as_bool().unwrap_or(false),
            decoupled: false,
        },
        Some("torch.optim.Adam") => Kind::Adam { betas, epsilon },
        Some("torch.optim.AdamW") => Kind::AdamW { betas, epsilon },
        Some("lamb") => {
            decay = number("wd", 0.0);
            Kind::Lamb { betas: [number("b1", 0.9), number("b2", 0.999)], epsilon }
        }
        other => return Err(format!("no rule stands for {other:?}").into()),
    };
    let rate = case["options"]["lr"].as_f64().ok_or("no learning rate")?;
    Ok((Optimizer { kind, clip_value: None, rounding: None }, rate, decay as f32))
}

/// Every element within the limits; NaN is not.
fn close(what: &str, got: &Tensor, expected: &Tensor) -> Result<(), Failed> {
    let (got, expected) = (got.to_f64(), expected.to_f64());
    if got.len() != expected.len() || got.is_empty() {
        return Err(format!("{what}: {} elements, expected {}", got.len(), expected.len()).into());
    }
    let fits = |(g, e): (&f64, &f64)| (g - e).abs() <= ABSOLUTE + RELATIVE * e.abs();
    match got.iter().zip(&expected).position(|pair| !fits(pair)) {
        Some(at) => Err(format!("{what}: element {at} is {}, expected {}", got[at], expected[at]).into()),
        None => Ok(()),
    }
}

fn steps_match(name: &str) -> Result<(), Failed> {
    let given = tensors(&folder().join("inputs.safetensors"), "")?;
    let expected = tensors(&folder().join("expected.safetensors"), "")?;
    let (op, rate, decay) = optimizer(name)?;
    let start = three(&given, "p")?;
    let layout = Layout::of(&start);
    let mut state = vec![layout.join(&start)];
    state.resize(op.kind.moments() + 1, Tensor::zeros(&Type::f32([layout.count])));
    let (segments, decay) = (layout.segments(), Tensor::f32([3], vec![decay; 3]));
    let control = Tensor::f32([CONTROL], norm::start(1.0).to_vec());
    let mut compared = 0;
    for step in 1..=10 {
        let gradients = layout.join(&three(&given, &format!("g.{}.", step - 1))?);
        let scalars = op.scalars(rate, step);
        let scalars = Tensor::f32([scalars.len()], scalars.to_vec());
        let mut inputs = vec![&state[0], &gradients];
        inputs.extend(&state[1..]);
        inputs.extend([&segments, &decay, &scalars, &control]);
        state = apply(&op, &inputs)?;
        for number in 0..3 {
            if let Some(expected) = expected.get(&format!("{name}.step{step}.p{number}")) {
                let what = format!("step {step}, tensor {number}");
                close(&what, &layout.part(&state[0], number), expected)?;
                compared += 1;
            }
        }
    }
    if compared == 12 { Ok(()) } else { Err(format!("only {compared} of 12 tensors to compare").into()) }
}

/// The gradient as an update by plain descent with rate one sees it.
fn clipped(op: &Optimizer, gradients: &Tensor, control: &Tensor, layout: &Layout) -> Result<Tensor, Failed> {
    let zeros = Tensor::zeros(&Type::f32([layout.count]));
    let scalars = op.scalars(-1.0, 1);
    let scalars = Tensor::f32([scalars.len()], scalars.to_vec());
    let (segments, decay) = (layout.segments(), Tensor::f32([3], vec![0.0; 3]));
    Ok(apply(op, &[&zeros, gradients, &segments, &decay, &scalars, control])?.remove(0))
}

fn norm_matches(name: &str, max_norm: f32) -> Result<(), Failed> {
    let given = tensors(&folder().join("inputs.safetensors"), "")?;
    let expected = tensors(&folder().join("clip_expected.safetensors"), "")?;
    let gradients = three(&given, "g.0.")?;
    let layout = Layout::of(&gradients);
    let gradients = layout.join(&gradients);
    let start = Tensor::f32([CONTROL], norm::start(1.0).to_vec());
    let control =
        apply(&GradientNorm { arenas: 1, max_norm: Some(max_norm), scaling: None }, &[&start, &gradients])?
            .remove(0);
    let total = Tensor::f32([1], vec![control.real::<f32>()[1]]);
    close("norm", &total, &expected[&format!("{name}.total")])?;
    let op = Optimizer { kind: Kind::GradientDescent, clip_value: None, rounding: None };
    let clipped = clipped(&op, &gradients, &control, &layout)?;
    for (number, expected) in three(&expected, &format!("{name}.g"))?.into_iter().enumerate() {
        close(&format!("gradient {number}"), &layout.part(&clipped, number), expected)?;
    }
    Ok(())
}

fn value_matches(name: &str, limit: f32) -> Result<(), Failed> {
    let given = tensors(&folder().join("inputs.safetensors"), "")?;
    let expected = tensors(&folder().join("clip_expected.safetensors"), "")?;
    let gradients = three(&given, "g.0.")?;
    let layout = Layout::of(&gradients);
    let op = Optimizer { kind: Kind::GradientDescent, clip_value: Some(limit), rounding: None };
    let start = Tensor::f32([CONTROL], norm::start(1.0).to_vec());
    let clipped = clipped(&op, &layout.join(&gradients), &start, &layout)?;
    for (number, expected) in three(&expected, &format!("{name}.g"))?.into_iter().enumerate() {
        close(&format!("gradient {number}"), &layout.part(&clipped, number), expected)?;
    }
    Ok(())
}
