//! Weights of a step that are not trained, however they are held.

use super::{batch, devices, settings, vector};
use kiln::graph::Graph;
use kiln::model::{Mode, Quantized, Stored, Weights};
use kiln::ops::Value;
use kiln::ops::coded::Activations;
use kiln::ops::matmul::{Form, MatmulEmit};
use kiln::ops::pointwise::PointwiseEmit;
use kiln::ops::reduce::ReduceEmit;
use kiln::tensor::quant::{Scheme, Share, encode};
use kiln::tensor::{DType, Tensor, Type};
use kiln::train::recipe::Rule;
use kiln::train::trainer::{Settings, Trainer};
use kiln::train::{Frozen, Target};

/// mean((((x * w) F^T) F2)^2): the gradient of `w` goes through both matrices.
fn loss(graph: &mut Graph, _: Mode) -> kiln::train::Result<Value> {
    let w = graph.parameter("w", Type::f32([8]));
    let f = graph.parameter("base.f", Type::f32([12, 8]));
    let g = graph.parameter("base.g", Type::f32([12, 8]));
    let x = graph.input("x", Type::f32([4, 8]));
    let y = graph.mul(x, w)?;
    let y = graph.matmul_form(Form::Nt, y, f)?;
    let y = graph.pointwise("tanh", &[y], 0.0)?;
    let y = graph.matmul(y, g)?;
    let square = graph.pointwise("square", &[y], 0.0)?;
    Ok(graph.mean_all(square)?)
}

fn matrix(step: usize) -> Tensor {
    Tensor::f32([12, 8], (0..96).map(|i| ((i * step % 97) as f32 - 48.0) / 60.0).collect())
}

/// How the two are held: as numbers, in 16 bits, as codes.
fn held() -> Vec<(&'static str, Weights)> {
    let numbers: Weights =
        [("f", 37), ("g", 41)].map(|(n, step)| (n.to_string(), matrix(step))).into_iter().collect();
    let mut halves = numbers.clone();
    let mut codes = numbers.clone();
    for (name, turned) in [("f", false), ("g", true)] {
        let tensor = numbers.get(name).unwrap().clone();
        halves.store(name, Stored::Halves(DType::F16, tensor.to_precision(DType::F16)));
        let real = tensor.real::<f32>();
        let (rows, cols) = if turned { (8, 12) } else { (12, 8) };
        let of = |i: usize| if turned { real[i % 12 * 8 + i / 12] } else { real[i] };
        let lines: Vec<f32> = (0..96).map(of).collect();
        let coded = encode(&lines, rows, cols, &Scheme::wide(8, Share::Row)).unwrap();
        let (shape, activations) = (tensor.shape, Activations::Numbers);
        codes.store(name, Stored::Codes(Quantized { shape, coded, double: None, turned, activations }));
    }
    vec![("numbers", numbers), ("halves", halves), ("codes", codes)]
}

#[test]
fn frozen_weights_shape_the_step_and_are_neither_learnt_nor_counted_as_learnt() {
    for device in devices() {
        let target = Target::open(device).unwrap();
        let mut losses = vec![];
        for (how, weights) in held() {
            let adam = Rule::Adam { betas: [0.9, 0.99], eps: 1e-8 };
            let train = |weights: &Weights| {
                let frozen = Frozen::of(weights, "base.");
                let bytes = frozen.size_bytes();
                let settings = Settings { frozen, ..settings(adam) };
                let mut trainer = Trainer::new(&target, &[vector("w", 8)], &loss, settings).unwrap();
                trainer.set_weights(|_, _| Ok(Tensor::f32([8], vec![1.0; 8]))).unwrap();
                let first = trainer.evaluate([(batch(0.1), 1.0)]).unwrap();
                for _ in 0..5 {
                    trainer.submit(vec![batch(0.1)], 0.01).unwrap();
                }
                let mut last = 0.0;
                while let Some(outcome) = trainer.collect(true).unwrap() {
                    last = outcome.loss;
                }
                let names =
                    |list: Vec<(String, Tensor)>| list.into_iter().map(|(n, _)| n).collect::<Vec<_>>();
                assert_eq!(names(trainer.weights().unwrap()), ["w"]);
                assert_eq!(names(trainer.gradients().unwrap()), ["w"]);
                assert_eq!(names(trainer.moments().unwrap()), ["w.moment1", "w.moment2"]);
                let memory = trainer.memory();
                assert!(memory.frozen >= bytes && memory.frozen < bytes + 2048, "{how}: {memory:?}");
                assert_eq!((memory.parameters, memory.moments > 0), (256, true));
                (first, last, trainer.weights().unwrap().remove(0).1.to_f64())
            };
            let (as_held, as_numbers) = (train(&weights), train(&weights.widened()));
            assert!(as_held.1 < 0.95 * as_held.0, "{device} {how}: nothing was learnt: {as_held:?}");
            assert!(
                (as_held.0 - as_numbers.0).abs() < 1e-5 * as_held.0,
                "{device} {how}: {as_held:?} {as_numbers:?}"
            );
            for (a, b) in as_held.2.iter().zip(&as_numbers.2) {
                assert!((a - b).abs() < 1e-5, "{device} {how}: {as_held:?} {as_numbers:?}");
            }
            losses.push(as_held.0);
        }
        assert!(
            losses[0] != losses[1] && losses[0] != losses[2],
            "{device}: nothing was rounded: {losses:?}"
        );
    }
}

#[test]
fn what_is_frozen_cannot_be_trained_as_well() {
    let (_, weights) = held().remove(0);
    let settings = Settings { frozen: Frozen::of(&weights, "base."), ..settings(Rule::GradientDescent) };
    let f = kiln::train::trainer::Weight { name: "base.f".into(), shape: [12, 8].into(), decays: true };
    let error = Trainer::new(&Target::Host, &[vector("w", 8), f], &loss, settings).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("`base.f`"), "{error}");
}
