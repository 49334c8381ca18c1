//! Low-rank adapters beside frozen weights, however those are held.

use super::{devices, settings};
use kiln::adapt::{Adapter, Kind, Layer, Linear, with_squares};
use kiln::graph::{Feeds, Graph, Node, Rewriter};
use kiln::model::{Init, Mode, ParameterSpec, Quantized, Stored, Weights};
use kiln::ops::Value;
use kiln::ops::coded::Activations;
use kiln::ops::matmul::{Form, MatmulEmit};
use kiln::ops::pointwise::PointwiseEmit;
use kiln::ops::reduce::{self, ReduceEmit};
use kiln::ops::transpose::TransposeEmit;
use kiln::passes::{Factor, LowRank, Pass};
use kiln::tensor::quant::{Scheme, encode};
use kiln::tensor::{DType, Tensor, Type};
use kiln::train::recipe::Rule;
use kiln::train::trainer::{BuildLoss, Settings, Trainer, Weight};
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

/// The same adapter beside both layers.
fn adapter(kind: Kind, dropout: f32, rank_stabilized: bool) -> Adapter {
    let layer = |weight: &str, turned, inputs, outputs| {
        let linear = Linear { weight: weight.into(), turned, inputs, outputs };
        Layer { linear, rank: RANK, alpha: 6.0 }
    };
    Adapter {
        name: "test".into(),
        kind,
        rank: RANK,
        alpha: 6.0,
        rank_stabilized,
        dropout,
        layers: vec![layer("f.weight", false, INPUTS, HIDDEN), layer("g.weight", true, HIDDEN, INPUTS)],
        whole: vec![],
    }
}

fn plain_graph() -> Graph {
    let mut graph = Graph::new();
    let loss = plain(&mut graph, Mode::Train).unwrap();
    graph.output("loss", loss);
    graph
}

/// The plain loss as a pass rewrites it.
fn rewritten(graph: &mut Graph, pass: &dyn Pass) -> kiln::train::Result<Value> {
    let with = pass.rewrite(&plain_graph())?;
    let values = graph.bring(&with, "")?;
    let loss = with.result("loss").expect("it was a result before");
    Ok(values[loss.index()])
}

/// The referee: the factors multiplied into a matrix as large as the weight, which is then what the layer reads.
#[derive(Debug)]
pub struct Dense(pub LowRank);

impl Dense {
    fn weight(&self, graph: &mut Graph, weight: Value, form: Form) -> kiln::ops::Result<Value> {
        let (name, shape) = (graph.info(weight).name.clone().unwrap(), graph.kind(weight).shape.clone());
        let low = self.0.layers[&name];
        let [inputs, outputs] = if form == Form::Nn { [shape[0], shape[1]] } else { [shape[1], shape[0]] };
        let mut factor = |factor: Factor, shape: &[usize]| {
            let name = factor.name(&name, &self.0.name);
            graph.named(&name).unwrap_or_else(|| graph.parameter(name, Type::f32(shape.to_vec())))
        };
        let (down, up) =
            (factor(Factor::Down, &[low.rank, inputs]), factor(Factor::Up, &[outputs, low.rank]));
        let magnitude = self.0.magnitude.then(|| factor(Factor::Magnitude, &[outputs, 1]));
        let change = graph.matmul(up, down)?;
        let change = graph.scale(change, low.scale)?;
        let rows = if form == Form::Nn { graph.swap_last(weight)? } else { weight };
        let mut sum = graph.add(rows, change)?;
        if let Some(magnitude) = magnitude {
            let square = graph.mul(sum, sum)?;
            let square = graph.reduce(reduce::Kind::Sum, square, 1)?;
            let norm = graph.pointwise("sqrt", &[square], 0.0)?;
            let norm = graph.pointwise("held", &[norm], 0.0)?;
            let unit = graph.div(sum, norm)?;
            sum = graph.mul(unit, magnitude)?;
        }
        if form == Form::Nn { graph.swap_last(sum) } else { Ok(sum) }
    }

    fn write(&self, rewriter: &mut Rewriter, node: &Node, form: Form) -> kiln::graph::Result<()> {
        let mut inputs: Vec<Value> = node.inputs.iter().map(|&v| rewriter.get(v)).collect();
        inputs[1] = rewriter.emit_in(&node.scope, |graph| self.weight(graph, inputs[1], form))?;
        rewriter.replace(node, node.op.clone(), &inputs)
    }
}

impl Pass for Dense {
    fn name(&self) -> &'static str {
        "dense"
    }

    fn promise(&self) -> kiln::passes::Promise {
        kiln::passes::Promise::Exact
    }

    fn rewrite(&self, graph: &Graph) -> kiln::graph::Result<Graph> {
        let mut rewriter = Rewriter::new(graph);
        for node in graph.nodes() {
            let name = node.inputs.get(1).and_then(|&weight| graph.info(weight).name.clone());
            let adapted = name.is_some_and(|name| self.0.layers.contains_key(&name));
            match node.op.matmul().filter(|_| adapted) {
                Some(matmul) => self.write(&mut rewriter, node, matmul.form)?,
                None => rewriter.copy(node)?,
            }
        }
        Ok(rewriter.finish())
    }
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

fn batch() -> Feeds {
    Feeds::new().with("x", numbers("x", &[4, INPUTS], 1.0))
}

/// All that is trained, as the trainer knows it; the referee has magnitudes as a column.
fn trained(specs: &[ParameterSpec], column: bool) -> Vec<Weight> {
    let weight = |spec: &ParameterSpec| {
        let mut shape = spec.shape.clone();
        if column && shape.len() == 1 {
            shape = [shape[0], 1].into();
        }
        Weight { name: spec.name.clone(), shape, decays: false }
    };
    specs.iter().map(weight).collect()
}

/// Losses of some steps of gradient descent, and the gradients of the last.
fn run(
    target: &Target,
    weights: &[Weight],
    build: &BuildLoss,
    frozen: Frozen,
    first: &BTreeMap<String, Tensor>,
) -> (Vec<f64>, BTreeMap<String, Vec<f64>>) {
    let settings = Settings { frozen, ..settings(Rule::GradientDescent) };
    let mut trainer = Trainer::new(target, weights, build, settings).unwrap();
    trainer.set_weights(|name, shape| Ok(first[name].clone().reshaped(shape.clone()).unwrap())).unwrap();
    let mut losses = vec![];
    for _ in 0..6 {
        trainer.submit(vec![batch()], 0.1).unwrap();
        losses.push(trainer.collect(true).unwrap().unwrap().loss);
    }
    let gradients = trainer.gradients().unwrap().into_iter();
    (losses, gradients.map(|(name, tensor)| (name, tensor.to_f64())).collect())
}

#[test]
fn an_adapted_loss_and_its_gradients_are_those_of_the_dense_sum() {
    for (kind, stabilized) in [(Kind::Lora, false), (Kind::Lora, true), (Kind::Dora, false)] {
        let adapter = adapter(kind, 0.0, stabilized);
        assert_eq!(adapter.scale(&adapter.layers[0]), if stabilized { 3.0 } else { 1.5 });
        let specs = adapter.parameters();
        let draw = |spec: &ParameterSpec| (spec.name.clone(), numbers(&spec.name, &spec.shape, 0.2));
        let mut first: BTreeMap<String, Tensor> = specs.iter().map(draw).collect();
        for (device, (how, weights)) in
            devices().into_iter().flat_map(|d| held().into_iter().map(move |h| (d, h)))
        {
            for (name, tensor) in adapter.first(&weights, &weights, 1).unwrap().iter() {
                if name.contains("magnitude") {
                    // Not quite the norms, so that the direction counts.
                    let off = tensor.real::<f32>().iter().enumerate().map(|(i, m)| m * [0.9, 1.2][i % 2]);
                    first.insert(name.to_string(), Tensor::f32(tensor.shape.clone(), off.collect()));
                }
            }
            let target = Target::open(device).unwrap();
            let base = with_squares(weights.clone(), std::slice::from_ref(&adapter)).unwrap();
            let narrow = |graph: &mut Graph, mode| rewritten(graph, &adapter.pass(0, mode == Mode::Train));
            let got = run(&target, &trained(&specs, false), &narrow, Frozen::of(&base, ""), &first);
            let wide = |graph: &mut Graph, _| rewritten(graph, &Dense(adapter.pass(0, false)));
            let plain = Frozen::of(&weights.widened(), "");
            let expected = run(&target, &trained(&specs, true), &wide, plain, &first);
            for (got, expected) in got.0.iter().zip(&expected.0) {
                assert!(
                    (got - expected).abs() < 1e-4 * expected,
                    "{kind:?} {device} {how}: {got} {expected}"
                );
            }
            assert!(got.0[5] < 0.99 * got.0[0], "{kind:?} {device} {how}: nothing was learnt: {:?}", got.0);
            assert_eq!(got.1.len(), specs.len());
            for (name, expected) in &expected.1 {
                let most = expected.iter().fold(0f64, |most, g| most.max(g.abs()));
                assert!(most > 0.0, "{name} has no gradient");
                for (got, expected) in got.1[name].iter().zip(expected) {
                    let off = (got - expected).abs();
                    assert!(off < 1e-3 * most, "{kind:?} {device} {how} {name}: off by {off} of {most}");
                }
            }
        }
    }
}

#[test]
fn only_adapters_are_learnt_and_a_base_of_four_bits_takes_a_seventh() {
    for kind in [Kind::Lora, Kind::Dora] {
        let adapter = adapter(kind, 0.1, false);
        let weights = trained(&adapter.parameters(), false);
        let names: Vec<&str> = weights.iter().map(|weight| weight.name.as_str()).collect();
        let count: usize = weights.iter().map(|weight| weight.shape.count()).sum();
        let magnitudes = if kind == Kind::Dora { INPUTS + HIDDEN } else { 0 };
        assert_eq!(count, 2 * RANK * (INPUTS + HIDDEN) + magnitudes);
        assert_eq!(names[..2], ["f.lora_A.test.weight", "f.lora_B.test.weight"]);
        for device in devices() {
            let target = Target::open(device).unwrap();
            let mut sizes = vec![];
            for (how, base) in held() {
                let first = adapter.first(&base, &base, 5).unwrap();
                let base = with_squares(base, std::slice::from_ref(&adapter)).unwrap();
                let settings = Settings {
                    frozen: Frozen::of(&base, ""),
                    ..settings(Rule::Adam { betas: [0.9, 0.99], eps: 1e-8 })
                };
                let build = |graph: &mut Graph, mode| rewritten(graph, &adapter.pass(0, mode == Mode::Train));
                let mut trainer = Trainer::new(&target, &weights, &build, settings).unwrap();
                trainer.set_weights(|name, _| Ok(first.get(name)?.clone())).unwrap();
                let before = trainer.evaluate([(batch(), 1.0)]).unwrap();
                for _ in 0..8 {
                    trainer.submit(vec![batch()], 0.01).unwrap();
                }
                while trainer.collect(true).unwrap().is_some() {}
                let after = trainer.evaluate([(batch(), 1.0)]).unwrap();
                assert!(
                    after < 0.9 * before,
                    "{kind:?} {device} {how}: nothing was learnt: {before} {after}"
                );
                let held: Vec<String> =
                    trainer.gradients().unwrap().into_iter().map(|(name, _)| name).collect();
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
                sizes.push((memory.frozen - 4 * (HIDDEN + magnitudes) as u64) as f64);
            }
            let share = sizes[2] / sizes[0];
            assert!((1.0 / 7.5..1.0 / 6.5).contains(&share), "{device}: {sizes:?}");
        }
    }
}

#[test]
fn an_adapter_of_no_rank_or_of_no_layer_is_refused() {
    let graph = plain_graph();
    let fine = adapter(Kind::Lora, 0.0, false).pass(0, true);
    let with = |change: fn(&mut LowRank)| {
        let mut pass = fine.clone();
        change(&mut pass);
        pass
    };
    for (wrong, text) in [
        (with(|pass| pass.layers.get_mut("f.weight").unwrap().rank = 0), "rank is 0, expected one or more"),
        (with(|pass| pass.dropout = 1.0), "dropout is 1, expected a number in 0.0..1.0"),
        (with(|pass| pass.layers.get_mut("g.weight").unwrap().scale = f32::NAN), "scale is NaN"),
        (
            with(|pass| {
                pass.layers.insert("h.weight".into(), pass.layers["f.weight"]);
            }),
            "those here are f.weight, g.weight",
        ),
    ] {
        let error = wrong.rewrite(&graph).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}
