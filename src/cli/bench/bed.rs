//! Where kernels are timed: an adapter or the host, what either does at best, and how one operator is timed there.

use super::grid::{Input, Subject};
use super::spread::{Spread, seconds, short, size};
#[cfg(feature = "gpu")]
use crate::gpu::{Gpu, Pipelines, roof, run::Bench};
use crate::ops::Operator;
use crate::ops::matmul::{Form, Matmul};
use crate::plan::all_threads;
use crate::tensor::{Tensor, Type, View, ViewMut};
use crate::train::Target;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::time::Instant;

/// Seconds that one timing should take: a submission's own price, some 50 us, then hardly counts.
const TIMING_SECONDS: f64 = 0.01;
/// Timings of which the median counts.
const TIMINGS: usize = 11;
/// Dispatches in one submission at most.
const MOST_REPEATS: f64 = 2048.0;
/// Side of the product that stands for the host's best.
const HOST_SIDE: usize = 1024;
/// Share by which roofs may differ between start and end without a word.
const DRIFT: f64 = 0.15;
/// Bytes of the host's copy.
const HOST_COPY: usize = 64 << 20;

/// What a device does at best, in operations and bytes a second.
#[derive(Clone, Copy, Debug)]
pub struct Roofs {
    /// f32 operations, a multiply-add counted as two.
    pub multiply: f64,
    /// The same in f16 where there is such arithmetic.
    pub multiply_half: Option<f64>,
    /// Bytes, read and written both counted.
    pub copy: f64,
    /// How they were found.
    pub how: &'static str,
}

impl Roofs {
    /// Measures a device.
    pub fn of(target: &Target) -> anyhow::Result<Roofs> {
        match target {
            Target::Host => Ok(host_roofs()),
            #[cfg(feature = "gpu")]
            Target::Gpu { gpu, pipelines, .. } => {
                let roof::Roofs { multiply, multiply_half, copy } = roof::measure(gpu, pipelines)?;
                let how = "kernels that only multiply and add, and only copy; the best of several";
                Ok(Roofs { multiply, multiply_half, copy, how })
            }
        }
    }

    /// Measures once more at the end: the better counts, and where both differ much, that is worth a note.
    pub fn again(&mut self, target: &Target) -> anyhow::Result<Option<String>> {
        let after = Roofs::of(target)?;
        let change = |a: f64, b: f64| (b / a).max(a / b) - 1.0;
        let drift = change(self.multiply, after.multiply).max(change(self.copy, after.copy));
        self.multiply = self.multiply.max(after.multiply);
        self.multiply_half = self.multiply_half.zip(after.multiply_half).map(|(a, b)| a.max(b));
        self.copy = self.copy.max(after.copy);
        Ok((drift > DRIFT).then(|| {
            let percent = 100.0 * drift;
            format!("the roofs differ by {percent:.0} % between start and end: the device was busy with other work, or throttled")
        }))
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "multiply_gflops": self.multiply / 1e9, "multiply_f16_gflops": self.multiply_half.map(|x| x / 1e9),
            "copy_gbs": self.copy / 1e9, "how": self.how,
        })
    }

    /// In a line for people.
    pub fn text(&self) -> String {
        let half = self.multiply_half.map_or(String::new(), |x| format!(" (f16 {})", short(x / 1e9)));
        let (multiply, copy) = (short(self.multiply / 1e9), short(self.copy / 1e9));
        format!("multiply {multiply} GFLOP/s{half}, copy {copy} GB/s: {}", self.how)
    }
}

/// The product of two matrices in place of a loop of multiply-adds, and a copy by all threads.
fn host_roofs() -> Roofs {
    let side = [HOST_SIDE, HOST_SIDE];
    let x = Tensor::f32(side, (0..HOST_SIDE * HOST_SIDE).map(|i| (i % 13) as f32 - 6.0).collect());
    let inputs = [x.clone(), x];
    let op = Matmul::new(Form::Nn);
    let mut host = HostBench::new(&op, &inputs, &[Type::f32(side)]);
    let best = |time: &mut dyn FnMut() -> f64| (0..7).map(|_| time()).fold(f64::INFINITY, f64::min);
    let product = best(&mut || host.time(1));
    let from = vec![1u64; HOST_COPY / 8];
    let mut to = vec![0u64; HOST_COPY / 8];
    let copied = best(&mut || {
        let start = Instant::now();
        to.par_chunks_mut(1 << 16)
            .zip(from.par_chunks(1 << 16))
            .for_each(|(to, from)| to.copy_from_slice(from));
        start.elapsed().as_secs_f64()
    });
    Roofs {
        multiply: 2.0 * (HOST_SIDE as f64).powi(3) / product,
        multiply_half: None,
        copy: 2.0 * HOST_COPY as f64 / copied,
        how: "kiln's own matmul at 1024x1024x1024 on all threads, so not the processor's limit, and a copy of 64 MiB",
    }
}

/// One way to compute an operator, ready to be timed.
pub enum Ready<'a> {
    /// On the host.
    Host(HostBench<'a>),
    /// A kernel variant.
    #[cfg(feature = "gpu")]
    Gpu(Bench<'a>),
}

impl Ready<'_> {
    /// Seconds of one of `times` runs.
    fn time(&mut self, times: u32) -> anyhow::Result<f64> {
        match self {
            Ready::Host(bench) => Ok(bench.time(times)),
            #[cfg(feature = "gpu")]
            Ready::Gpu(bench) => Ok(bench.time(times)?),
        }
    }

    /// Times it over and over for at most about `most_seconds`: milliseconds of one run, and runs in each timing.
    pub fn measure(&mut self, most_seconds: f64) -> anyhow::Result<(Spread, u32)> {
        // The first run compiles and touches memory for the first time.
        let first = self.time(1)?;
        let once = if first > most_seconds { first } else { self.time(1)? };
        let repeats = (TIMING_SECONDS / once.max(1e-9)).clamp(1.0, MOST_REPEATS) as u32;
        let mut measured = if repeats == 1 { vec![1e3 * once] } else { vec![] };
        let start = Instant::now();
        while measured.len() < TIMINGS {
            let next = start.elapsed().as_secs_f64() + repeats as f64 * once;
            if next > most_seconds && !measured.is_empty() {
                break;
            }
            measured.push(1e3 * self.time(repeats)?);
        }
        Ok((Spread::of(measured).expect("one at least"), repeats))
    }
}

/// An operator's host path with its memory.
pub struct HostBench<'a> {
    op: &'a dyn Operator,
    inputs: &'a [Tensor],
    kinds: Vec<Type>,
    outputs: Vec<(Type, Vec<u32>)>,
}

impl<'a> HostBench<'a> {
    /// Memory for the outputs; what is overwritten in place is copied once.
    pub fn new(op: &'a dyn Operator, inputs: &'a [Tensor], outputs: &[Type]) -> Self {
        let zeros = |kind: &Type| (kind.clone(), vec![0u32; kind.host_words()]);
        let mut outputs: Vec<(Type, Vec<u32>)> = outputs.iter().map(zeros).collect();
        for &(output, input) in op.in_place() {
            let (kind, words) = &mut outputs[output];
            ViewMut::of_words(kind, words).bytes().copy_from_slice(View::of_tensor(&inputs[input]).bytes());
        }
        HostBench { op, inputs, kinds: inputs.iter().map(Tensor::host_type).collect(), outputs }
    }

    /// Seconds of one of `times` runs, on all threads.
    fn time(&mut self, times: u32) -> f64 {
        let HostBench { op, inputs, kinds, outputs } = self;
        let mut sources: Vec<View> = inputs.iter().map(View::of_tensor).collect();
        for &(_, input) in op.in_place() {
            sources[input] = View::absent(&kinds[input]);
        }
        let mut results: Vec<ViewMut> =
            outputs.iter_mut().map(|(kind, words)| ViewMut::of_words(kind, words)).collect();
        let op = *op;
        all_threads(|| {
            let start = Instant::now();
            (0..times).for_each(|_| op.host(&sources, &mut results));
            start.elapsed().as_secs_f64() / times as f64
        })
    }
}

/// Why a subject cannot be run here, if it cannot; nothing is allocated to find out.
pub fn misfit(target: &Target, subject: &Subject) -> Option<String> {
    let bytes: Vec<u128> = subject.inputs.iter().map(Input::size_bytes).collect();
    let (largest, sum) = (bytes.iter().copied().max().unwrap_or(0), bytes.iter().sum());
    if let Some(problem) = too_large(target, largest, sum) {
        return Some(problem);
    }
    let kinds: Vec<Type> = subject.inputs.iter().map(Input::kind).collect();
    let outputs = match subject.op.signature(&kinds) {
        Ok(outputs) => outputs,
        Err(error) => return Some(error.to_string()),
    };
    let of_outputs = outputs.iter().map(|kind| kind.size_bytes() as u128);
    let whole = sum + of_outputs.clone().sum::<u128>();
    too_large(target, largest.max(of_outputs.max().unwrap_or(0)), whole)
}

fn too_large(target: &Target, largest: u128, sum: u128) -> Option<String> {
    let limit = target.caps().max_binding_bytes as u128;
    // Beside the elements a buffer holds guard words.
    if largest + GUARD_BYTES > limit {
        let (need, limit) = (size(largest), size(limit));
        return Some(format!(
            "does not fit: needs a buffer of {need}, this adapter's binding limit is {limit}"
        ));
    }
    let have = target.memory_bytes()? as u128;
    let need = sum * copies(target);
    let (need_text, have_text) = (size(need), size(have));
    (need > have).then(|| format!("does not fit: needs {need_text} of memory, there are {have_text}"))
}

/// Room before and behind the elements of a buffer under test.
const GUARD_BYTES: u128 = 512;

/// Where device and host share their memory, the elements are there, in the upload and on the device.
fn copies(target: &Target) -> u128 {
    match target {
        Target::Host => 2,
        #[cfg(feature = "gpu")]
        Target::Gpu { gpu, .. } if gpu.caps().is_cpu => 4,
        #[cfg(feature = "gpu")]
        Target::Gpu { .. } => 1,
    }
}

/// Why a variant is left out: what it would take at the rate it had at a smaller shape.
pub fn too_slow(work: f64, rate: Option<f64>, most_seconds: f64) -> Option<String> {
    let expected = work / rate?;
    (expected > most_seconds).then(|| {
        format!(
            "left out: a run would take {} at its rate before, more than --seconds {most_seconds}",
            seconds(expected)
        )
    })
}

/// An opened adapter with its kernels, where the target is one.
#[cfg(feature = "gpu")]
pub fn adapter(target: &Target) -> Option<(&Gpu, &Pipelines)> {
    match target {
        Target::Gpu { gpu, pipelines, .. } => Some((gpu, pipelines)),
        Target::Host => None,
    }
}
