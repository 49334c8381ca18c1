//! The losses of distillation, as graphs.

use crate::graph::{Feeds, Graph, evaluate, gradient};
use crate::ops::attention::{Attention, AttentionEmit};
use crate::ops::distillation::{DistillationEmit, Divergence};
use crate::ops::matmul::MatmulEmit;
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reshape::ReshapeEmit;
use crate::ops::transpose::TransposeEmit;
use crate::ops::{Cases, Error};
use crate::tensor::{DType, Tensor};

const ALL: [Divergence; 5] = [
    Divergence::Forward,
    Divergence::Reverse,
    Divergence::Between { beta: 0.5 },
    Divergence::Between { beta: 0.1 },
    Divergence::Between { beta: 0.99 },
];

/// The mean divergence of rows and its gradient for the student's logits.
fn divergence(how: Divergence, teacher: &Tensor, student: &Tensor, temperature: f32) -> (f64, Vec<f64>) {
    let mut graph = Graph::new();
    let [t, s] = ["t", "s"].map(|name| graph.input(name, teacher.host_type()));
    let each = graph.row_divergence(t, s, how, temperature).unwrap();
    let loss = graph.shared_mean(each, None).unwrap();
    let slope = gradient(&mut graph, loss, &[s]).unwrap()[0].unwrap();
    graph.output("loss", loss);
    graph.output("slope", slope);
    let feeds = Feeds::new().with("t", teacher.clone()).with("s", student.clone());
    let results = evaluate(&graph, &feeds, DType::F32).unwrap();
    (results["loss"].to_f64()[0], results["slope"].to_f64())
}

#[test]
fn logits_of_any_size_give_finite_losses_and_gradients() {
    let extremes = Tensor::f32([2, 4], vec![1e4, -1e4, 0.0, 1e4, -1e4, -1e4, 1e4, 3.0]);
    let others = Tensor::f32([2, 4], vec![-1e4, 1e4, 0.0, 1.0, 1e4, 1e4, -1e4, 2.0]);
    for how in ALL {
        for temperature in [1.0, 4.0] {
            for (a, b) in [(&extremes, &others), (&others, &extremes), (&extremes, &extremes)] {
                let (loss, slope) = divergence(how, a, b, temperature);
                assert!(loss.is_finite() && loss > -1e-6, "{how:?}: {loss}");
                assert!(slope.iter().all(|x| x.is_finite()), "{how:?}: {slope:?}");
            }
        }
    }
}

#[test]
fn what_is_alike_is_not_apart_and_the_ends_of_the_mixture_are_the_two_divergences() {
    let mut cases = Cases::new("distillation");
    let (a, b) = (cases.normal([5, 7]), cases.normal([5, 7]));
    for how in ALL {
        let (loss, slope) = divergence(how, &a, &a, 2.0);
        assert!(loss.abs() < 1e-6 && slope.iter().all(|x| x.abs() < 1e-6), "{how:?}: {loss} {slope:?}");
    }
    // For a small share the mixture is nearly one of the two: the divergence from the other is that share's.
    let share = 1e-3;
    for (beta, end) in [(share, Divergence::Forward), (1.0 - share, Divergence::Reverse)] {
        let (near, _) = divergence(Divergence::Between { beta }, &a, &b, 1.0);
        let (end, _) = divergence(end, &a, &b, 1.0);
        assert!((near / share as f64 - end).abs() < 2e-2 * end, "{beta}: {near} {end}");
    }
}

#[test]
fn a_relation_of_queries_and_keys_is_what_attention_weighs_values_with() {
    let mut cases = Cases::new("relation");
    let given = ["q", "k", "v"].map(|name| (name, cases.normal([2, 5, 3, 4])));
    let mut graph = Graph::new();
    let [q, k, v] = given.each_ref().map(|(name, tensor)| graph.input(*name, tensor.host_type()));
    let out = graph.attention(&Attention::causal(), [q, k, v], None, None).unwrap();
    let logs = graph.relation(q, k, 0.5, true).unwrap();
    let weights = graph.pointwise("exp", &[logs], 0.0).unwrap();
    let values = graph.transpose(v, &[0, 2, 1, 3]).unwrap();
    let values = graph.reshape(values, [6, 5, 4].into()).unwrap();
    let mixed = graph.matmul(weights, values).unwrap();
    let mixed = graph.reshape(mixed, [2, 3, 5, 4].into()).unwrap();
    let mixed = graph.transpose(mixed, &[0, 2, 1, 3]).unwrap();
    graph.output("out", out);
    graph.output("mixed", mixed);
    let mut feeds = Feeds::new();
    given.into_iter().for_each(|(name, tensor)| feeds.set(name, tensor));
    let results = evaluate(&graph, &feeds, DType::F32).unwrap();
    for (a, b) in results["out"].to_f64().iter().zip(results["mixed"].to_f64()) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let mut graph = Graph::new();
    let x = graph.input("x", crate::tensor::Type::f32([2, 3]));
    for (how, temperature) in [
        (Divergence::Forward, 0.0),
        (Divergence::Forward, f32::NAN),
        (Divergence::Between { beta: 1.0 }, 1.0),
    ] {
        assert!(matches!(graph.row_divergence(x, x, how, temperature), Err(Error::Setting { .. })));
    }
}
