//! What an adapter can do at best, measured: multiply-adds in registers, and copying memory.
//!
//! Two kernels that do nothing else, in a few shapes of which the best counts, since drivers differ in what suits them. Every
//! other figure becomes a share of these. Results are checked: a roof whose kernel did not compute is none.

use super::run::Bench;
use super::{Error, Gpu, Pipelines, Result};
use crate::ops::launch::{Bind, Kernel, Launch, Scalar, Variant, spread};
use crate::tensor::{DType, Tensor, Type};

/// Invocations in a workgroup of both kernels.
const LANES: u32 = 64;
/// Chains of vec4 in one invocation: few registers suit some drivers, much independent work others.
const CHAINS: [usize; 3] = [4, 8, 16];
/// Steps of each chain in one round of the loop.
const UNROLLED: usize = 8;
/// Factor and addend of the chains: they run towards `SHIFT / (1 - SCALE)`, one half, and never near zero or overflow.
const SCALE: f32 = 0.75;
const SHIFT: f32 = 0.125;
/// Seconds that one timing should take.
const TIMING_SECONDS: f64 = 0.03;
/// Timings of which the best counts.
const TIMINGS: usize = 5;

/// What an adapter reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofs {
    /// f32 operations a second, a multiply-add counted as two.
    pub multiply: f64,
    /// The same in f16, where the adapter has it.
    pub multiply_half: Option<f64>,
    /// Bytes a second, read and written both counted.
    pub copy: f64,
}

/// Measures all roofs; about a second, and compiling.
pub fn measure(gpu: &Gpu, pipelines: &Pipelines) -> Result<Roofs> {
    let multiply_half = match gpu.caps().f16 {
        true => Some(multiply(gpu, pipelines, DType::F16)?),
        false => None,
    };
    Ok(Roofs { multiply: multiply(gpu, pipelines, DType::F32)?, multiply_half, copy: copy(gpu, pipelines)? })
}

/// Kernels of this file, for the tests that go through all kernels.
pub fn kernels() -> Vec<Kernel> {
    let multiply = |dtype| CHAINS.map(|chains| multiply_kernel(chains, dtype));
    let copies = ["vec4<u32>", "vec4<u64>"].map(copy_kernel);
    [DType::F32, DType::F16].into_iter().flat_map(multiply).chain(copies).collect()
}

fn multiply_kernel(chains: usize, dtype: DType) -> Kernel {
    let text = |line: &dyn Fn(usize) -> String| (0..chains).map(line).collect::<Vec<_>>().join("\n");
    let start = text(&|i| format!("    var z{i} = vec4<Elem>(start + {:?});", i as f32 / 64.0));
    let step = text(&|i| format!("        z{i} = fma(z{i}, scale, shift);"));
    let sum = (0..chains).map(|i| format!("vec4<f32>(z{i})")).collect::<Vec<_>>().join(" + ");
    Kernel::new("roof_multiply")
        .constant("LANES", LANES)
        .retype("Elem", dtype)
        .paste("START", start)
        .paste("ROUND", vec![step; UNROLLED].join("\n"))
        .paste("SUM", sum)
}

fn copy_kernel(wide: &str) -> Kernel {
    Kernel::new("roof_copy").constant("LANES", LANES).paste("WIDE", format!("alias Wide = {wide};"))
}

/// The best rate over all numbers of chains.
fn multiply(gpu: &Gpu, pipelines: &Pipelines, dtype: DType) -> Result<f64> {
    // Several workgroups for each of a large GPU's thousands of lanes; a processor has a handful.
    let count: usize = if gpu.caps().is_cpu { 1 << 12 } else { 1 << 18 };
    let mut best: f64 = 0.0;
    for chains in CHAINS {
        let make = |rounds: u32| {
            let launch = Launch::new(
                multiply_kernel(chains, dtype),
                vec![Bind::Output(0)],
                count.div_ceil(LANES as usize),
            );
            let launch = launch
                .param("count", count)
                .param("rounds", Scalar::U32(rounds))
                .param("scale", SCALE)
                .param("shift", SHIFT);
            Bench::new(
                gpu,
                pipelines,
                &Variant::single("roof_multiply", launch),
                &[],
                &[Type::f32([count])],
                &[],
            )
        };
        let trial = make(16)?;
        check_multiply(gpu, &trial, chains)?;
        let once = trial.time(1)?.max(1e-6);
        let rounds = (16.0 * TIMING_SECONDS / once).clamp(16.0, 1e8) as u32;
        let flops = 2.0 * (4 * chains * UNROLLED * count) as f64 * rounds as f64;
        best = best.max(flops / fastest(&make(rounds)?, 1)?);
    }
    Ok(best)
}

/// After 16 rounds every element has come to the fixed point.
fn check_multiply(gpu: &Gpu, trial: &Bench, chains: usize) -> Result<()> {
    let expected = (4 * chains) as f64 * (SHIFT / (1.0 - SCALE)) as f64;
    let sums = trial.run()?.outputs[0].to_f64();
    match sums.iter().find(|&&sum| (sum - expected).abs() > 0.01 * expected || sum.is_nan()) {
        Some(sum) => Err(wrong(gpu, format!("a chain of multiply-adds ended at {sum}, expected {expected}"))),
        None => Ok(()),
    }
}

/// The best rate over the widths of an element.
fn copy(gpu: &Gpu, pipelines: &Pipelines) -> Result<f64> {
    // Beyond the last cache of what there is today, both sides counted.
    let most: u64 = if gpu.caps().is_cpu { 64 << 20 } else { 128 << 20 };
    let bytes = most.min(gpu.caps().max_binding_bytes / 2);
    let words = (bytes / 4) as usize & !7;
    let input = Tensor::u32([words], (0..words as u32).collect());
    let kind = input.host_type();
    let mut best: f64 = 0.0;
    for (wide, words_each) in [("vec4<u32>", 4), ("vec4<u64>", 8)] {
        if words_each == 8 && !gpu.caps().int64 {
            continue;
        }
        let count = words / words_each;
        let launch = Launch::new(copy_kernel(wide), vec![Bind::Input(0), Bind::Output(0)], spread(count / 2));
        let variant = Variant::single("roof_copy", launch.param("count", count));
        let inputs = [(input.clone(), kind.clone())];
        let bench = Bench::new(gpu, pipelines, &variant, &inputs, std::slice::from_ref(&kind), &[])?;
        if bench.run()?.outputs[0] != input {
            return Err(wrong(gpu, "a copy differs from what was copied".into()));
        }
        let once = bench.time(1)?.max(1e-6);
        let repeats = (TIMING_SECONDS / once).clamp(1.0, 1000.0) as u32;
        best = best.max(8.0 * words as f64 / fastest(&bench, repeats)?);
    }
    Ok(best)
}

fn fastest(bench: &Bench, repeats: u32) -> Result<f64> {
    (0..TIMINGS).try_fold(f64::INFINITY, |least, _| Ok(bench.time(repeats)?.min(least)))
}

fn wrong(gpu: &Gpu, reason: String) -> Error {
    Error::Refused { adapter: gpu.listing.name.clone(), reason: format!("{reason}\n  hint: `kiln doctor`") }
}
