//! Which variant of an operator is the fastest on this adapter: measured once per shape, then remembered in a ledger.
//!
//! Only operators with enough work are measured, and only within a budget of time: for the rest the operator's own
//! preference stands, and a later start measures on. The winner must first agree with the operator's reference, or with the
//! next fastest kernel where the reference takes too long, on random inputs; a variant that does not is never used again on
//! this driver. Variants differ in the order of their sums, so a run that resumes must keep the choices it began with:
//! [`Tuner::choices`] tells them, [`Tuner::fix`] holds to them.

pub use super::ledger::{Choices, Ledger};
use super::qualify::close;
use super::run::Bench;
use super::{Gpu, Pipelines, Result};
use crate::graph::Node;
use crate::ops::launch::Variant;
use crate::tensor::random::Stream;
use crate::tensor::{DType, Data, Tensor, Type};
use std::time::{Duration, Instant};

/// Operations below which a choice cannot matter.
const SMALLEST_FLOPS: f64 = 1e6;
/// Seconds that one timing should take at least.
const TIMING_SECONDS: f64 = 0.004;
/// A variant that is so many times slower at first sight is not timed further.
const HOPELESS: f64 = 4.0;
/// Operations up to which the host's reference judges a winner; above it the second fastest kernel does.
const JUDGED_BY_HOST: f64 = 2e9;

/// Whether to measure, as `KILN_TUNE` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `off`: every operator's own preference.
    Off,
    /// `use`: what is remembered, and measure what is not.
    Use,
    /// `force`: forget what is remembered and measure it again.
    Force,
}

impl Mode {
    /// What the environment variable `KILN_TUNE` says; absent, [`Mode::Use`].
    pub fn from_environment() -> Result<Mode> {
        match std::env::var("KILN_TUNE").as_deref() {
            Err(_) | Ok("" | "use") => Ok(Mode::Use),
            Ok("off") => Ok(Mode::Off),
            Ok("force") => Ok(Mode::Force),
            Ok(other) => Err(super::Error::Tune { got: other.into() }),
        }
    }
}

/// Chooses variants by measuring them.
pub struct Tuner<'a> {
    gpu: &'a Gpu,
    pipelines: &'a Pipelines,
    ledger: Ledger,
    mode: Mode,
    /// Choices made by this tuner, measured or not.
    chosen: Choices,
    fixed: Choices,
    measured: usize,
    /// Operators that kept their own preference since the time was up.
    left: usize,
    budget: Duration,
    spent: Duration,
}

impl<'a> Tuner<'a> {
    /// A tuner that starts from what the ledger remembers and measures for about `budget` in all.
    pub fn new(
        gpu: &'a Gpu,
        pipelines: &'a Pipelines,
        mut ledger: Ledger,
        mode: Mode,
        budget: Duration,
    ) -> Self {
        if mode == Mode::Force {
            ledger.forget();
        }
        let (chosen, fixed) = (Choices::new(), Choices::new());
        let spent = Duration::ZERO;
        Tuner { gpu, pipelines, ledger, mode, chosen, fixed, measured: 0, left: 0, budget, spent }
    }

    /// Holds to the choices of an earlier run.
    pub fn fix(&mut self, choices: Choices) {
        self.fixed = choices;
    }

    /// All choices made so far.
    pub fn choices(&self) -> &Choices {
        &self.chosen
    }

    /// Operators measured so far, those remembered not counted.
    pub fn measured(&self) -> usize {
        self.measured
    }

    /// Operators that were not measured since the time was up.
    pub fn left(&self) -> usize {
        self.left
    }

    /// What was done, in a sentence for people; nothing if there is nothing to tell.
    pub fn report(&self) -> Option<String> {
        let mut text = vec![];
        text.extend(
            self.ledger.problem().map(|p| format!("remembered nothing, since it is unreadable: {p}")),
        );
        if self.measured > 0 {
            let seconds = self.spent.as_secs_f64();
            text.push(format!("measured the kernels of {} operators in {seconds:.1} s", self.measured));
        }
        if self.left > 0 {
            let left = self.left;
            text.push(format!("{left} more keep their first choice until the next start, or `kiln tune`"));
        }
        text.extend(
            self.ledger.verdicts().map(|(variant, reason)| format!("{variant} is not used: {reason}")),
        );
        if text.is_empty() { None } else { Some(text.join("; ")) }
    }

    /// Number of the variant to use for a node, none if all have failed; fits the planner's [`crate::plan::Choose`].
    pub fn choose(&mut self, node: &Node, inputs: &[Type], variants: &[Variant]) -> Option<usize> {
        let sound: Vec<usize> = (0..variants.len())
            .filter(|&i| self.ledger.wrong(&verdict_key(&variants[i], inputs)).is_none())
            .collect();
        let first = *sound.first()?;
        let Ok(outputs) = node.op.signature(inputs) else { return Some(first) };
        if sound.len() < 2 || node.op.cost(inputs, &outputs).flops < SMALLEST_FLOPS {
            return Some(first);
        }
        let key = self.key(node, inputs);
        let position = |name: &String| sound.iter().copied().find(|&i| variants[i].name == *name);
        let remembered = if self.mode == Mode::Off { None } else { self.ledger.fastest(&key) };
        let known = self.fixed.get(&key).or(remembered).and_then(position);
        let number = match known {
            Some(number) => number,
            None if self.mode == Mode::Off => first,
            None => self.measure(&key, node, inputs, &outputs, variants, &sound)?,
        };
        self.chosen.insert(key, variants[number].name.clone());
        Some(number)
    }

    fn measure(
        &mut self,
        key: &str,
        node: &Node,
        inputs: &[Type],
        outputs: &[Type],
        variants: &[Variant],
        sound: &[usize],
    ) -> Option<usize> {
        if self.spent >= self.budget {
            self.left += 1;
            return sound.first().copied();
        }
        let start = Instant::now();
        let fastest = self.fastest_of(node, inputs, outputs, variants, sound);
        self.spent += start.elapsed();
        self.measured += 1;
        self.ledger.remember(key, &variants[fastest?].name);
        fastest
    }

    /// Remembers the choices.
    pub fn save(&mut self) -> std::io::Result<()> {
        self.ledger.save()
    }

    fn key(&self, node: &Node, inputs: &[Type]) -> String {
        let types: Vec<_> = inputs.iter().map(Type::to_string).collect();
        let op = format!("{} {}", node.op.name(), node.op.settings());
        format!("{} | {}", op.trim(), types.join(" "))
    }

    /// The fastest that computes rightly. A variant that cannot be run is passed over; if none can, the first stands and the
    /// engine will say why.
    fn fastest_of(
        &mut self,
        node: &Node,
        inputs: &[Type],
        outputs: &[Type],
        variants: &[Variant],
        sound: &[usize],
    ) -> Option<usize> {
        let random = |(i, kind): (usize, &Type)| {
            let bound = node.op.trial_bound(i, inputs);
            (random_of(i, kind, bound), kind.clone())
        };
        let feeds: Vec<_> = inputs.iter().enumerate().map(random).collect();
        let make = |i: usize| {
            Bench::new(self.gpu, self.pipelines, &variants[i], &feeds, outputs, node.op.in_place())
        };
        let (started, left) = (Instant::now(), self.budget.saturating_sub(self.spent));
        let mut timed: Vec<(f64, usize)> = vec![];
        // The plain kernel is there to judge: timing it would cost more than all others together.
        let plain = sound.iter().copied().find(|&i| variants[i].name.ends_with("_plain"));
        for &number in sound.iter().filter(|&&i| Some(i) != plain || sound.len() == 1) {
            let best = timed.iter().map(|t| t.0).fold(f64::INFINITY, f64::min);
            // The operator's own order is a guess at the fastest: what comes late is what may be left out.
            if best.is_finite() && started.elapsed() > left {
                break;
            }
            if let Ok(seconds) = make(number).and_then(|bench| seconds(&bench, best)) {
                timed.push((seconds, number));
            }
        }
        timed.sort_by(|a, b| a.0.total_cmp(&b.0));
        let second = timed.get(1).map(|t| t.1);
        let mut by_kernel = node.op.cost(inputs, outputs).flops > JUDGED_BY_HOST;
        let mut judge = match by_kernel {
            true => {
                second.or(plain).and_then(|i| make(i).and_then(|bench| bench.run()).ok()).map(|o| o.outputs)
            }
            false => Some(reference(node, &feeds, outputs)),
        };
        for &(_, number) in &timed {
            // Memory may be short, or the device gone: that is no verdict on the kernel.
            let Ok(outcome) = make(number).and_then(|bench| bench.run()) else { continue };
            let off = |judge: &Option<Vec<Tensor>>| {
                judge.as_ref().and_then(|expected| differs(node, inputs, outputs, &outcome.outputs, expected))
            };
            let mut problem = off(&judge);
            if problem.is_some() && by_kernel {
                // Of two kernels that disagree either may be wrong: then the reference takes the time it needs.
                judge = Some(reference(node, &feeds, outputs));
                by_kernel = false;
                problem = off(&judge);
            }
            match problem {
                None => return Some(number),
                Some(problem) => {
                    let what = format!("{} {}: {problem}", node.op.name(), node.op.settings());
                    self.ledger.condemn(&verdict_key(&variants[number], inputs), &what);
                }
            }
        }
        let sound_still = |&&i: &&usize| self.ledger.wrong(&verdict_key(&variants[i], inputs)).is_none();
        sound.iter().find(sound_still).copied()
    }
}

/// What the outputs should be, by the operator's reference.
fn reference(node: &Node, feeds: &[(Tensor, Type)], outputs: &[Type]) -> Vec<Tensor> {
    let rounded: Vec<Tensor> =
        feeds.iter().map(|(t, kind)| t.to_precision(kind.dtype).to_precision(DType::F32)).collect();
    let single =
        |kind: &Type| if kind.dtype.is_float() { Type::f32(kind.shape.clone()) } else { kind.clone() };
    let mut results: Vec<Tensor> = outputs.iter().map(|kind| Tensor::zeros(&single(kind))).collect();
    node.op.reference(&rounded.iter().collect::<Vec<_>>(), &mut results);
    results
}

/// Floats around zero up to `bound` and bytes, drawn from a fixed stream of each input; other types are zero, which is a valid index
/// everywhere.
fn random_of(input: usize, kind: &Type, bound: f32) -> Tensor {
    let mut stream = Stream::new(&[0x7475_6e65, input as u32]);
    if kind.dtype == DType::I8 {
        let codes = (0..kind.shape.count()).map(|_| stream.below(256) as u8 as i8).collect();
        return Tensor::i8(kind.shape.clone(), codes);
    }
    if !kind.dtype.is_float() {
        return Tensor::zeros(kind);
    }
    let values =
        (0..kind.shape.count()).map(|_| (stream.below(1 << 16) as f32 / 32768.0 - 1.0) * bound).collect();
    Tensor::f32(kind.shape.clone(), values)
}

/// A sentence if any output is off by more than the order of its sums explains.
fn differs(
    node: &Node,
    inputs: &[Type],
    outputs: &[Type],
    got: &[Tensor],
    expected: &[Tensor],
) -> Option<String> {
    let elements: usize = outputs.iter().map(|kind| kind.shape.count()).sum();
    let length = (node.op.cost(inputs, outputs).flops / 2.0 / elements.max(1) as f64).max(1.0);
    // Both sides have rounded, and the host's halves are rounded in other places than the device's.
    let half = outputs.iter().find(|kind| kind.dtype.is_half()).map_or(0.0, |kind| kind.dtype.epsilon());
    let tolerance = 64.0 * DType::F32.epsilon() * length.sqrt() + 4.0 * half;
    let mut pairs = outputs.iter().zip(got.iter().zip(expected));
    pairs.find_map(|(kind, (got, expected))| match (&got.data, &expected.data) {
        // Codes are rounded numbers: which of two neighbours comes out may hang on the last bit.
        (Data::I8(got), Data::I8(expected)) => {
            let steps = got.iter().zip(expected).map(|(g, e)| g.abs_diff(*e)).max().unwrap_or(0);
            (steps > 1).then(|| format!("a code is {steps} steps off"))
        }
        _ => close(got, expected, kind.dtype, tolerance).err(),
    })
}

/// The name under which a verdict on a variant stands: with its storage, since the shader is another in 16 bits.
pub fn verdict_key(variant: &Variant, inputs: &[Type]) -> String {
    let half = inputs.iter().map(|kind| kind.dtype).find(|dtype| dtype.is_half());
    format!("{} {}", variant.name, half.unwrap_or(DType::F32))
}

/// Seconds of one run: the first compiles, the second tells how often to repeat, the best of three counts.
fn seconds(bench: &Bench, best_so_far: f64) -> Result<f64> {
    bench.time(1)?;
    let once = bench.time(1)?;
    if once > HOPELESS * best_so_far {
        return Ok(once);
    }
    let repeats = (TIMING_SECONDS / once).clamp(1.0, 64.0) as u32;
    let mut least = once;
    for _ in 0..2 {
        least = least.min(bench.time(repeats)?);
    }
    Ok(least)
}
