//! The losses of distillation, as graphs.

use super::top::Top;
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

/// The divergence from the `picks` likeliest tokens of a teacher and its gradient, of a student.
fn divergence_of_top(teacher: &Tensor, picks: usize, student: &Tensor, temperature: f32) -> (f64, Vec<f64>) {
    let (rows, cols) = (teacher.shape[0], teacher.shape[1]);
    let top = Top::of(teacher.real(), cols, picks, f64::from(temperature));
    let mut graph = Graph::new();
    let columns = Tensor::u32([rows, picks], top.columns);
    let logs = Tensor::f32([rows, picks + 1], top.logs);
    let c = graph.input("c", columns.host_type());
    let l = graph.input("l", logs.host_type());
    let s = graph.input("s", student.host_type());
    let each = graph.row_divergence_of_top(l, c, s, temperature).unwrap();
    let loss = graph.shared_mean(each, None).unwrap();
    let slope = gradient(&mut graph, loss, &[s]).unwrap()[0].unwrap();
    graph.output("loss", loss);
    graph.output("slope", slope);
    let feeds = Feeds::new().with("c", columns).with("l", logs).with("s", student.clone());
    let results = evaluate(&graph, &feeds, DType::F32).unwrap();
    (results["loss"].to_f64()[0], results["slope"].to_f64())
}

/// The same by its formula, in f64 and without care for large numbers.
fn top_by_formula(teacher: &[f64], picks: usize, student: &[f64], cols: usize, temperature: f64) -> f64 {
    let soft = |row: &[f64]| {
        let each: Vec<f64> = row.iter().map(|x| (x / temperature).exp()).collect();
        let total: f64 = each.iter().sum();
        each.into_iter().map(|x| x / total).collect::<Vec<_>>()
    };
    let of_row = |(t, s): (&[f64], &[f64])| {
        let (p, q) = (soft(t), soft(s));
        let mut order: Vec<usize> = (0..cols).collect();
        order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
        let (top, rest) = order.split_at(picks);
        let sum = |of: &[f64]| rest.iter().map(|&c| of[c]).sum::<f64>();
        let left = if rest.is_empty() { 0.0 } else { sum(&p) * (sum(&p) / sum(&q)).ln() };
        top.iter().map(|&c| p[c] * (p[c] / q[c]).ln()).sum::<f64>() + left
    };
    let rows = teacher.chunks(cols).zip(student.chunks(cols));
    temperature * temperature * rows.clone().map(of_row).sum::<f64>() / rows.count() as f64
}

#[test]
fn with_all_tokens_the_top_is_the_whole_and_with_fewer_it_is_its_formula_and_never_more() {
    let mut cases = Cases::new("top");
    let (teacher, student) = (cases.normal([5, 9]), cases.normal([5, 9]));
    let [t, s] = [&teacher, &student].map(|x| x.to_precision(DType::F32));
    for temperature in [1.0, 2.5] {
        let (whole, whole_slope) = divergence(Divergence::Forward, &t, &s, temperature);
        for picks in [1, 3, 8, 9] {
            let (loss, slope) = divergence_of_top(&t, picks, &s, temperature);
            let (of_t, of_s, heat) = (t.to_f64(), s.to_f64(), f64::from(temperature));
            let formula = |student: &[f64]| top_by_formula(&of_t, picks, student, 9, heat);
            assert!((loss - formula(&of_s)).abs() < 1e-5, "{picks}: {loss} {}", formula(&of_s));
            assert!(loss <= whole + 1e-6, "{picks}: {loss} of {whole}");
            for (at, &got) in slope.iter().enumerate() {
                let moved = |by: f64| {
                    let mut moved = of_s.clone();
                    moved[at] += by;
                    formula(&moved)
                };
                let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((got - expected).abs() < 1e-5, "{picks} [{at}]: {got} {expected}");
            }
            if picks == 9 {
                assert!((loss - whole).abs() < 1e-5, "{loss} {whole}");
                assert!(slope.iter().zip(&whole_slope).all(|(a, b)| (a - b).abs() < 1e-6));
            }
        }
    }
}

#[test]
fn the_top_of_logits_of_any_size_gives_finite_losses_and_gradients() {
    let extremes = Tensor::f32([2, 4], vec![1e4, -1e4, 0.0, 1e4, -1e4, -1e4, 1e4, 3.0]);
    let others = Tensor::f32([2, 4], vec![-1e4, 1e4, 0.0, 1.0, 1e4, 1e4, -1e4, 2.0]);
    for (a, b) in [(&extremes, &others), (&others, &extremes), (&extremes, &extremes)] {
        for picks in 1..=4 {
            let (loss, slope) = divergence_of_top(a, picks, b, 1.0);
            assert!(loss.is_finite() && loss > -1e-3, "{picks}: {loss}");
            assert!(slope.iter().all(|x| x.is_finite()), "{picks}: {slope:?}");
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
