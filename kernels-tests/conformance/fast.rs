//! What the host engine computes, against the f64 reference, and whether it repeats whatever the threads.

use super::qualify::{Trial, close};
use kiln::ops::Case;
use kiln::tensor::{DType, Type, View, ViewMut};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::OnceLock;

/// Values, unwritten elements and bits of the operator's host path must all be right, in one thread and in three.
pub fn check(case: &Case, trial: &Trial) -> Result<(), String> {
    if case.op.is_view() {
        return Ok(());
    }
    let first = run(case, trial, 1)?;
    for (o, kind) in trial.outputs.iter().enumerate() {
        let mut got = View::of_words(&held(kind), &first[o]).to_tensor();
        if kind.dtype.is_half() {
            got = got.to_precision(kind.dtype);
        }
        let got = trial.settled(case, o, &got);
        close(&got, &trial.expected[o], kind.dtype, trial.tolerance)
            .map_err(|problem| format!("output {o} ({kind}): {problem}"))?;
    }
    match run(case, trial, 3)? == first {
        true => Ok(()),
        false => Err("one thread and three give different bits".into()),
    }
}

/// Bits of each output. Memory comes filled with NaN, as a slot comes with what its last tenant left.
fn run(case: &Case, trial: &Trial, threads: usize) -> Result<Vec<Vec<u32>>, String> {
    let kinds: Vec<Type> = trial.outputs.iter().map(held).collect();
    let mut words: Vec<Vec<u32>> = kinds.iter().map(|k| vec![f32::NAN.to_bits(); k.host_words()]).collect();
    let tensors: Vec<_> = trial.inputs.iter().map(|(tensor, _)| tensor.to_precision(DType::F32)).collect();
    let types: Vec<Type> = tensors.iter().map(|t| t.host_type()).collect();
    let mut inputs: Vec<View> = tensors.iter().map(View::of_tensor).collect();
    for &(output, input) in case.op.in_place() {
        ViewMut::of_words(&kinds[output], &mut words[output]).bytes().copy_from_slice(inputs[input].bytes());
        inputs[input] = View::absent(&types[input]);
    }
    let mut outputs: Vec<ViewMut> =
        kinds.iter().zip(&mut words).map(|(kind, words)| ViewMut::of_words(kind, words)).collect();
    pool(threads)?.install(|| case.op.host(&inputs, &mut outputs));
    Ok(words)
}

fn held(kind: &Type) -> Type {
    if kind.dtype.is_float() { Type::new(DType::F32, kind.shape.clone()) } else { kind.clone() }
}

fn pool(threads: usize) -> Result<&'static ThreadPool, String> {
    static POOLS: [OnceLock<Result<ThreadPool, String>>; 2] = [OnceLock::new(), OnceLock::new()];
    let make = || ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| e.to_string());
    POOLS[usize::from(threads > 1)].get_or_init(make).as_ref().map_err(String::clone)
}
