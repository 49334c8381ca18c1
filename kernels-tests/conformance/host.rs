//! What is checked of an operator without a device.

use kiln::gpu::qualify::{close, reference, stored_type, tolerance};
use kiln::graph::{Feeds, Graph, evaluate, gradient};
use kiln::ops::cast::CastEmit;
use kiln::ops::pointwise::PointwiseEmit;
use kiln::ops::reduce::ReduceEmit;
use kiln::ops::{Case, Value};
use kiln::tensor::random::Stream;
use kiln::tensor::{DType, Data, Tensor, Type};
use std::collections::BTreeSet;
use std::sync::Mutex;

/// Step of the central differences.
const STEP: f64 = 1e-6;
/// Elements of each input that are moved one by one; beyond them random directions stand for all.
const SINGLE_ELEMENTS: usize = 12;
/// Random directions.
const DIRECTIONS: usize = 3;
/// Relative error of a derivative: constants of the operators are f32, differences lose half the digits.
const DERIVATIVE_TOLERANCE: f64 = 1e-5;

/// Float inputs that change the result and yet get no gradient, such as targets: listed, so that none is forgotten.
static WITHOUT_GRADIENT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The list so far.
pub fn without_gradient() -> Vec<String> {
    WITHOUT_GRADIENT.lock().map(|list| list.iter().cloned().collect()).unwrap_or_default()
}

/// Signature, f32 reference, expansion and gradient of a case.
pub fn check(case: &Case) -> Result<(), String> {
    let kinds: Vec<Type> = case.inputs.iter().map(|t| stored_type(t, DType::F32)).collect();
    let outputs = case.op.signature(&kinds).map_err(|e| format!("signature: {e}"))?;
    if case.op.signature(&[&kinds[..], &kinds[..1]].concat()).is_ok_and(|o| o == outputs) {
        return Err("signature: an input too many goes unnoticed".into());
    }
    let exact = reference(case, &case.inputs, &outputs, DType::F64);
    let single: Vec<Tensor> = case.inputs.iter().map(|t| t.to_precision(DType::F32)).collect();
    let from_single = reference(case, &single, &outputs, DType::F64);
    let plain = reference(case, &single, &outputs, DType::F32);
    for (o, kind) in outputs.iter().enumerate() {
        let got = case.settled(&single, o, &plain[o], &from_single[o]);
        close(&got, &from_single[o], kind.dtype, tolerance(case))
            .map_err(|e| format!("reference in f32, output {o}: {e}"))?;
    }
    check_expansion(case, &kinds, &exact)?;
    if case.differentiable { check_gradient(case, &kinds) } else { Ok(()) }
}

fn check_expansion(case: &Case, kinds: &[Type], exact: &[Tensor]) -> Result<(), String> {
    let mut graph = Graph::new();
    let (inputs, feeds) = declare(&mut graph, case, kinds);
    let Some(outputs) = case.op.expand(&mut graph, &inputs) else { return Ok(()) };
    let outputs = outputs.map_err(|e| format!("expansion: {e}"))?;
    if outputs.len() != exact.len() {
        return Err(format!("expansion: {} outputs, expected {}", outputs.len(), exact.len()));
    }
    for (o, &value) in outputs.iter().enumerate() {
        graph.output(format!("y{o}"), value);
    }
    let results = evaluate(&graph, &feeds, DType::F64).map_err(|e| format!("expansion: {e}"))?;
    for (o, expected) in exact.iter().enumerate() {
        close(&results[&format!("y{o}")], expected, DType::F32, tolerance(case))
            .map_err(|e| format!("expansion, output {o}: {e}"))?;
    }
    Ok(())
}

/// The case's inputs as inputs `x0`, `x1` .. of a graph.
fn declare(graph: &mut Graph, case: &Case, kinds: &[Type]) -> (Vec<Value>, Feeds) {
    let mut feeds = Feeds::new();
    let mut values = vec![];
    for (i, (tensor, kind)) in case.inputs.iter().zip(kinds).enumerate() {
        values.push(graph.input(format!("x{i}"), kind.clone()));
        feeds.set(format!("x{i}"), tensor.clone());
    }
    (values, feeds)
}

/// loss = sum of random * op(factor * x), with x = case input / factor, so that the operator stands in mid-graph.
struct Probe {
    graph: Graph,
    feeds: Feeds,
    loss: Value,
    /// Positions of the float inputs.
    floats: Vec<usize>,
    values: Vec<Value>,
}

fn probe(case: &Case, kinds: &[Type]) -> Result<Probe, String> {
    let mut random = Stream::new(&[0x6772_6164]);
    let mut graph = Graph::new();
    let (values, mut feeds) = declare(&mut graph, case, kinds);
    let floats: Vec<usize> = (0..kinds.len()).filter(|&i| kinds[i].dtype.is_float()).collect();
    let mut inner = values.clone();
    for &i in &floats {
        let factor = 0.75 + 0.5 * random.uniform();
        let factors =
            Tensor { shape: kinds[i].shape.clone(), data: Data::F64(vec![factor; kinds[i].shape.count()]) };
        let scaled = case.inputs[i].to_f64().iter().map(|x| x / factor).collect();
        feeds.set(format!("x{i}"), Tensor { shape: kinds[i].shape.clone(), data: Data::F64(scaled) });
        feeds.set(format!("factor{i}"), factors);
        let factor = graph.input(format!("factor{i}"), kinds[i].clone());
        inner[i] = graph.mul(values[i], factor).map_err(|e| e.to_string())?;
    }
    let outputs = kiln::ops::Emit::apply(&mut graph, case.op.clone(), &inner).map_err(|e| e.to_string())?;
    let mut loss: Option<Value> = None;
    for (o, &output) in outputs.iter().enumerate().filter(|(o, _)| carries_gradient(case, *o)) {
        // bf16 is storage, with which nothing is computed: what reads it widens it first.
        let stored = graph.kind(output).dtype;
        let wide = if stored == DType::BF16 { DType::F32 } else { stored };
        let output = graph.cast(output, wide).map_err(|e| e.to_string())?;
        let kind = graph.kind(output).clone();
        let upstream = (0..kind.shape.count()).map(|_| random.normal()).collect();
        feeds.set(format!("up{o}"), Tensor { shape: kind.shape.clone(), data: Data::F64(upstream) });
        let up = graph.input(format!("up{o}"), kind);
        let mut term = || {
            let product = graph.mul(output, up)?;
            // A cast to half gives f16 whatever the storage; the loss is f32.
            let product = graph.cast(product, DType::F32)?;
            let sum = graph.sum_all(product)?;
            match loss {
                Some(before) => graph.add(before, sum),
                None => Ok(sum),
            }
        };
        loss = Some(term().map_err(|e| e.to_string())?);
    }
    let loss = loss.ok_or("no output carries a gradient: mark the case `no_gradient`")?;
    graph.output("loss", loss);
    Ok(Probe { graph, feeds, loss, floats, values })
}

/// Output 0 does, and others that follow the storage; what stays f32 beside an f16 output is a saved statistic.
fn carries_gradient(case: &Case, output: usize) -> bool {
    let types = |storage| {
        let kinds: Vec<Type> = case.inputs.iter().map(|t| stored_type(t, storage)).collect();
        case.op.signature(&kinds)
    };
    let Ok(single) = types(DType::F32) else { return false };
    let follows = types(DType::F16).map_or(true, |half| half[output].dtype == DType::F16);
    single[output].dtype.is_float() && (output == 0 || follows)
}

fn check_gradient(case: &Case, kinds: &[Type]) -> Result<(), String> {
    let probe = probe(case, kinds).map_err(|e| format!("gradient: {e}"))?;
    let wrt: Vec<Value> = probe.floats.iter().map(|&i| probe.values[i]).collect();
    let mut graph = probe.graph.clone();
    let gradients = gradient(&mut graph, probe.loss, &wrt).map_err(|e| format!("gradient: {e}"))?;
    graph.verify().map_err(|e| format!("gradient: {e}"))?;
    for (&i, gradient) in probe.floats.iter().zip(&gradients) {
        if let Some(value) = gradient {
            graph.output(format!("d{i}"), *value);
        }
    }
    let results = evaluate(&graph, &probe.feeds, DType::F64).map_err(|e| format!("gradient: {e}"))?;
    let given: Vec<usize> =
        probe.floats.iter().copied().filter(|i| results.contains_key(&format!("d{i}"))).collect();
    if given.is_empty() {
        return Err("gradient: no input gets one".into());
    }
    let mut random = Stream::new(&[0x6469_7265]);
    for &i in probe.floats.iter().filter(|i| !given.contains(i)) {
        let direction: Vec<f64> = (0..kinds[i].shape.count()).map(|_| random.normal()).collect();
        if compare(&probe, i, &direction, 0.0, 0.0).is_err() {
            let mut silent = WITHOUT_GRADIENT.lock().map_err(|e| e.to_string())?;
            silent.insert(format!("{}, input {i}", case.op.name()));
        }
    }
    for &i in &given {
        let derivative = results[&format!("d{i}")].to_f64();
        let count = derivative.len();
        let norm = derivative.iter().map(|g| g * g).sum::<f64>().sqrt();
        let mean = norm / (count as f64).sqrt();
        for number in 0..count.min(SINGLE_ELEMENTS) {
            let at = if count <= SINGLE_ELEMENTS { number } else { random.below(count as u64) as usize };
            let mut direction = vec![0.0; count];
            direction[at] = 1.0;
            compare(&probe, i, &direction, derivative[at], mean.max(derivative[at].abs()))
                .map_err(|e| format!("gradient of input {i}, element {at}: {e}"))?;
        }
        for _ in 0..DIRECTIONS {
            let direction: Vec<f64> = (0..count).map(|_| random.normal()).collect();
            let slope = direction.iter().zip(&derivative).map(|(v, g)| v * g).sum();
            compare(&probe, i, &direction, slope, norm)
                .map_err(|e| format!("gradient of input {i} along a random direction: {e}"))?;
        }
    }
    Ok(())
}

/// Compares the slope of the loss along a direction of one input with central differences.
fn compare(probe: &Probe, input: usize, direction: &[f64], slope: f64, scale: f64) -> Result<(), String> {
    let at = |step: f64| {
        let name = format!("x{input}");
        let base = probe.feeds.get(&name).expect("declared by the probe");
        let moved = base.to_f64().iter().zip(direction).map(|(x, v)| x + step * v).collect();
        let mut feeds = probe.feeds.clone();
        feeds.set(name, Tensor { shape: base.shape.clone(), data: Data::F64(moved) });
        let results = evaluate(&probe.graph, &feeds, DType::F64).map_err(|e| e.to_string())?;
        Ok::<f64, String>(results["loss"].to_f64()[0])
    };
    let (up, down) = (at(STEP)?, at(-STEP)?);
    let measured = (up - down) / (2.0 * STEP);
    let rounding = 4.0 * f64::EPSILON * up.abs().max(1.0) / STEP;
    let allowed = DERIVATIVE_TOLERANCE * scale + rounding;
    if (measured - slope).abs() <= allowed {
        return Ok(());
    }
    Err(format!("{slope:e}, central differences give {measured:e} (allowed difference {allowed:e})"))
}
