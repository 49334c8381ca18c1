//! Low-rank adapters beside frozen weights, however those are held.

use super::{devices, settings};
use kiln::graph::{Feeds, Graph};
use kiln::model::{Init, Mode, Quantized, Stored, Weights};
use kiln::ops::Value;
use kiln::ops::coded::Activations;
use kiln::ops::matmul::{Form, MatmulEmit};
use kiln::ops::pointwise::PointwiseEmit;
use kiln::ops::reduce::ReduceEmit;
use kiln::passes::{Adapter, LowRank, Pass};
use kiln::tensor::quant::{Scheme, encode};
use kiln::tensor::{DType, Shape, Tensor, Type};
use kiln::train::recipe::Rule;
use kiln::train::trainer::{Settings, Trainer, Weight};
use kiln::train::{Frozen, Target};
use std::collections::BTreeMap;

const INPUTS: usize = 128;
const HIDDEN: usize = 64;
const RANK: usize = 4;

/// mean((tanh(x F^T + b) G)^2), with F stored as [out, in] and G as [in, out].
fn plain(graph: &mut Graph, _: Mode) -> kiln::train::Result<Value> {
    let f = graph.parameter("f.weight", Type::f32([HIDDEN, INPUTS]));
    let b = graph.parameter("f.bias", Type::f32([HIDDEN]));
    let g = graph.parameter("g.weight", Type::f32([HIDDEN, INPUTS]));
    let x = graph.input("x", Type::f32([4, INPUTS]));
    let y = graph.linear(Form::Nt, x, f, Some(b))?;
    let y = graph.pointwise("tanh", &[y], 0.0)?;
    let y = graph.linear(Form::Nn, y, g, None)?;
    let square = graph.pointwise("square", &[y], 0.0)?;
    Ok(graph.mean_all(square)?)
}

fn pass(mode: Mode, dropout: f32, rank_stabilized: bool) -> LowRank {
    let (targets, ignore, trains) = (vec!["*".into()], vec![], mode == Mode::Train);
    LowRank { rank: RANK, alpha: 6.0, rank_stabilized, dropout, targets, ignore, trains }
}

fn plain_graph() -> Graph {
    let mut graph = Graph::new();
    let loss = plain(&mut graph, Mode::Train).unwrap();
    graph.output("loss", loss);
    graph
}

/// The same loss with adapters.
fn adapted(graph: &mut Graph, mode: Mode, dropout: f32, stabilized: bool) -> kiln::train::Result<Value> {
    let with = pass(mode, dropout, stabilized).rewrite(&plain_graph())?;
    let values = graph.bring(&with, "")?;
    let loss = with.result("loss").expect("it was a result before");
    Ok(values[loss.index()])
}

fn numbers(name: &str, shape: &[usize], bound: f64) -> Tensor {
    let count = shape.iter().product();
    Tensor::f32(shape.to_vec(), Init::Uniform { bound }.draw(name, count, 3))
}

fn base() -> Weights {
    let of = |name: &str, shape: &[usize]| (name.to_string(), numbers(name, shape, 0.15));
    let matrix = [HIDDEN, INPUTS];
    [of("f.weight", &matrix), of("f.bias", &[HIDDEN]), of("g.weight", &matrix)].into_iter().collect()
}

/// The base as numbers, in 16 bits, and as 4-bit NormalFloats with a scale for each 64.
fn held() -> Vec<(&'static str, Weights)> {
    let (numbers, mut halves, mut codes) = (base(), base(), base());
    for (name, turned) in [("f.weight", false), ("g.weight", true)] {
        let tensor = numbers.get(name).unwrap().clone();
        halves.store(name, Stored::Halves(DType::F16, tensor.to_precision(DType::F16)));
        let lines = if turned { transposed(&tensor) } else { tensor.clone() };
        let (rows, cols) = (lines.shape[0], lines.shape[1]);
        let scheme = Scheme::normal_float(64, false);
        let coded = encode(lines.real::<f32>(), rows, cols, &scheme).unwrap();
        let (shape, activations) = (tensor.shape, Activations::Numbers);
        codes.store(name, Stored::Codes(Quantized { shape, coded, double: None, turned, activations }));
    }
    vec![("f32", numbers), ("f16", halves), ("nf4", codes)]
}

fn transposed(of: &Tensor) -> Tensor {
    let (rows, cols, real) = (of.shape[0], of.shape[1], of.real::<f32>());
    Tensor::f32([cols, rows], (0..rows * cols).map(|i| real[i % rows * cols + i / rows]).collect())
}

/// a b in double precision.
fn product(a: &Tensor, b: &Tensor) -> Tensor {
    let (m, k, n) = (a.shape[0], a.shape[1], b.shape[1]);
    let (x, y) = (a.to_f64(), b.to_f64());
    let at = |i: usize| (0..k).map(|l| x[i / n * k + l] * y[l * n + i % n]).sum::<f64>() as f32;
    Tensor::f32([m, n], (0..m * n).map(at).collect())
}

fn batch() -> Feeds {
    Feeds::new().with("x", numbers("x", &[4, INPUTS], 1.0))
}

fn trained(adapters: &[Adapter]) -> Vec<Weight> {
    let both = adapters.iter().flat_map(|adapter| [&adapter.down, &adapter.up]);
    both.map(|(name, shape)| Weight { name: name.clone(), shape: shape.clone(), decays: false }).collect()
}

#[test]
fn an_adapted_loss_and_its_gradients_are_those_of_the_dense_sum() {
    let adapters = pass(Mode::Train, 0.0, false).adapters(&plain_graph()).unwrap();
    let factors: BTreeMap<String, Tensor> = trained(&adapters)
        .iter()
        .map(|weight| (weight.name.clone(), numbers(&weight.name, &weight.shape, 0.2)))
        .collect();
    for (device, stabilized) in devices().into_iter().flat_map(|d| [(d, false), (d, true)]) {
        let target = Target::open(device).unwrap();
        let scale = pass(Mode::Train, 0.0, stabilized).scale();
        assert_eq!(scale, if stabilized { 3.0 } else { 1.5 });
        for (how, weights) in held() {
            let run = |weights: &[Weight],
                       build: &kiln::train::trainer::BuildLoss,
                       frozen,
                       first: &dyn Fn(&str) -> Tensor| {
                let settings = Settings { frozen, ..settings(Rule::GradientDescent) };
                let mut trainer = Trainer::new(&target, weights, build, settings).unwrap();
                trainer.set_weights(|name, _| Ok(first(name))).unwrap();
                trainer.submit(vec![batch()], 0.0).unwrap();
                let loss = trainer.collect(true).unwrap().unwrap().loss;
                let gradients: BTreeMap<String, Tensor> = trainer.gradients().unwrap().into_iter().collect();
                (loss, gradients)
            };
            let build = |graph: &mut Graph, mode| adapted(graph, mode, 0.0, stabilized);
            let got =
                run(&trained(&adapters), &build, Frozen::of(&weights, ""), &|name| factors[name].clone());

            // W + scale B A as one matrix, and the gradients of the factors from that of the sum.
            let dense = weights.widened();
            let sums: BTreeMap<&str, Tensor> = adapters
                .iter()
                .map(|adapter| {
                    let change = product(&factors[&adapter.up.0], &factors[&adapter.down.0]);
                    let change = if adapter.weight == "g.weight" { transposed(&change) } else { change };
                    let both = dense.get(&adapter.weight).unwrap().to_f64().into_iter().zip(change.to_f64());
                    let sum = both.map(|(w, c)| (w + f64::from(scale) * c) as f32).collect();
                    (adapter.weight.as_str(), Tensor::f32(change.shape.clone(), sum))
                })
                .collect();
            let whole: Vec<Weight> = dense
                .iter()
                .map(|(name, t)| Weight { name: name.into(), shape: t.shape.clone(), decays: false })
                .collect();
            let value = |name: &str| sums.get(name).unwrap_or_else(|| dense.get(name).unwrap()).clone();
            let expected = run(&whole, &plain, Frozen::default(), &value);
            assert!((got.0 - expected.0).abs() < 1e-4 * expected.0, "{device} {how}: {got:?}");
            for adapter in &adapters {
                let gradient = expected.1[&adapter.weight].clone();
                let gradient = if adapter.weight == "g.weight" { transposed(&gradient) } else { gradient };
                let down = product(&transposed(&factors[&adapter.up.0]), &gradient);
                let up = product(&gradient, &transposed(&factors[&adapter.down.0]));
                for (name, expected) in [(&adapter.down.0, down), (&adapter.up.0, up)] {
                    let most = expected.to_f64().iter().fold(0f64, |most, g| most.max(g.abs()));
                    assert!(most > 0.0, "{name} has no gradient");
                    for (got, expected) in got.1[name].to_f64().iter().zip(expected.to_f64()) {
                        let off = (got - f64::from(scale) * expected).abs();
                        assert!(off < 1e-4 * f64::from(scale) * most, "{device} {how} {name}: off by {off}");
                    }
                }
            }
        }
    }
}

#[test]
fn only_adapters_are_learnt_and_a_base_of_four_bits_takes_a_seventh() {
    let adapters = pass(Mode::Train, 0.1, false).adapters(&plain_graph()).unwrap();
    let weights = trained(&adapters);
    let names: Vec<&str> = weights.iter().map(|weight| weight.name.as_str()).collect();
    assert_eq!(names, ["f.lora_A.weight", "f.lora_B.weight", "g.lora_A.weight", "g.lora_B.weight"]);
    let count: usize = weights.iter().map(|weight| weight.shape.count()).sum();
    assert_eq!(count, 2 * RANK * (INPUTS + HIDDEN));
    for device in devices() {
        let target = Target::open(device).unwrap();
        let mut sizes = vec![];
        for (how, base) in held() {
            let settings = Settings {
                frozen: Frozen::of(&base, ""),
                ..settings(Rule::Adam { betas: [0.9, 0.99], eps: 1e-8 })
            };
            let build = |graph: &mut Graph, mode| adapted(graph, mode, 0.1, false);
            let mut trainer = Trainer::new(&target, &weights, &build, settings).unwrap();
            let first = |name: &str, shape: &Shape| {
                let adapter = adapters.iter().find(|adapter| adapter.down.0 == name);
                let init = adapter.map_or(Init::Zeros, |a| Init::Uniform { bound: a.bound() });
                Tensor::f32(shape.clone(), init.draw(name, shape.count(), 5))
            };
            trainer.set_weights(|name, shape| Ok(first(name, shape))).unwrap();
            let before = trainer.evaluate([(batch(), 1.0)]).unwrap();
            for _ in 0..8 {
                trainer.submit(vec![batch()], 0.01).unwrap();
            }
            while trainer.collect(true).unwrap().is_some() {}
            let after = trainer.evaluate([(batch(), 1.0)]).unwrap();
            assert!(after < 0.9 * before, "{device} {how}: nothing was learnt: {before} {after}");
            let held: Vec<String> = trainer.gradients().unwrap().into_iter().map(|(name, _)| name).collect();
            assert_eq!(held, names);
            assert_eq!(trainer.moments().unwrap().len(), 2 * names.len());
            let memory = trainer.memory();
            let bytes = 4 * count as u64;
            for (use_, got, expected) in [
                ("weights", memory.parameters, bytes),
                ("gradients", memory.gradients, bytes),
                ("moments", memory.moments, 2 * bytes),
            ] {
                assert!((expected..expected + 2048).contains(&got), "{how} {use_}: {memory:?}");
            }
            sizes.push((memory.frozen - 4 * HIDDEN as u64) as f64);
        }
        let share = sizes[2] / sizes[0];
        assert!((1.0 / 7.5..1.0 / 6.5).contains(&share), "{device}: {sizes:?}");
    }
}

#[test]
fn an_adapter_of_no_rank_or_of_no_layer_is_refused() {
    let graph = plain_graph();
    let fine = pass(Mode::Train, 0.0, false);
    for (wrong, text) in [
        (LowRank { rank: 0, ..fine.clone() }, "rank is 0, expected one or more"),
        (LowRank { dropout: 1.0, ..fine.clone() }, "dropout is 1, expected a number in 0.0..1.0"),
        (LowRank { alpha: f32::NAN, ..fine.clone() }, "alpha is NaN"),
        (LowRank { targets: vec!["h.*".into()], ..fine }, "those here are f.weight, g.weight"),
    ] {
        let error = wrong.rewrite(&graph).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}
