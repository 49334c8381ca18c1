//! Losses of distillation that no golden case has: relations as MiniLM defines them, by the paper's formula in f64, and logits of
//! +-1e4, whose divergences are known.

use super::Evaluate;
use kiln::graph::{Feeds, Graph, gradient};
use kiln::ops::distillation::{DistillationEmit, Divergence};
use kiln::ops::reduce::ReduceEmit;
use kiln::tensor::Tensor;
use kiln::tensor::random::Stream;
use libtest_mimic::Failed;

type Check = fn(&Evaluate) -> Result<(), Failed>;

/// What is checked on each device.
pub const CHECKS: &[(&str, Check)] = &[
    ("relations_of_attention_are_those_of_the_formula", |on| check_relations(on, false)),
    ("relations_of_values_are_those_of_the_formula", |on| check_relations(on, true)),
    ("divergences_of_logits_of_ten_thousand_are_right", check_extremes),
    ("the_divergence_of_the_likeliest_of_ten_thousand_is_right", check_extremes_of_top),
];

/// Batch, time, heads, and the head sizes of student and teacher, which differ.
const SIZES: [usize; 5] = [2, 5, 3, 4, 6];

/// Logarithms of `softmax(a b^T / sqrt(D))` of one head, positions seeing none after them.
fn relation(a: &[f64], b: &[f64], size: usize, row: usize, at: impl Fn(usize) -> usize) -> Vec<f64> {
    let product = |key: usize| {
        let pairs = a[at(row)..at(row) + size].iter().zip(&b[at(key)..at(key) + size]);
        pairs.map(|(a, b)| a * b).sum::<f64>() / (size as f64).sqrt()
    };
    let scores: Vec<f64> = (0..=row).map(product).collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = most + scores.iter().map(|s| (s - most).exp()).sum::<f64>().ln();
    scores.into_iter().map(|s| s - total).collect()
}

/// `1 / (A |x|) sum over heads and positions of KL(teacher || student)` (Wang et al. 2020, equations 6 to 8).
fn by_formula(student: [&[f64]; 2], teacher: [&[f64]; 2]) -> f64 {
    let [batch, time, heads, ours, theirs] = SIZES;
    let mut total = 0.0;
    for (b, head, row) in (0..batch * heads * time).map(|n| (n / (heads * time), n / time % heads, n % time))
    {
        let at = |size: usize| move |t: usize| ((b * time + t) * heads + head) * size;
        let p = relation(teacher[0], teacher[1], theirs, row, at(theirs));
        let q = relation(student[0], student[1], ours, row, at(ours));
        total += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    }
    total / (batch * heads * time) as f64
}

fn check_relations(evaluate: &Evaluate, of_values: bool) -> Result<(), Failed> {
    let [batch, time, heads, ours, theirs] = SIZES;
    let mut random = Stream::new(&[7, 11]);
    let mut draw = |size: usize| -> Tensor {
        let count = batch * time * heads * size;
        Tensor::f32([batch, time, heads, size], (0..count).map(|_| random.normal() as f32).collect())
    };
    let mut given = [("a", draw(ours)), ("b", draw(ours)), ("c", draw(theirs)), ("d", draw(theirs))];
    if of_values {
        given[1].1 = given[0].1.clone();
        given[3].1 = given[2].1.clone();
    }
    let mut graph = Graph::new();
    let values = given.each_ref().map(|(name, tensor)| graph.input(*name, tensor.host_type()));
    let mut logs = |a: usize, b: usize, size: usize| {
        let second = if of_values { values[a] } else { values[b] };
        graph.relation(values[a], second, 1.0 / (size as f32).sqrt(), true)
    };
    let (q, p) = (logs(0, 1, ours)?, logs(2, 3, theirs)?);
    let each = graph.row_divergence_of_logs(p, q)?;
    let loss = graph.mean_all(each)?;
    let slopes = gradient(&mut graph, loss, &values[..1])?;
    graph.output("loss", loss);
    graph.output("slope", slopes[0].ok_or("no gradient")?);
    let mut feeds = Feeds::new();
    given.iter().for_each(|(name, tensor)| feeds.set(*name, tensor.clone()));
    let results = evaluate(&graph, &feeds)?;

    let [a, b, c, d] = given.each_ref().map(|(_, tensor)| tensor.to_f64());
    let formula = |a: &[f64]| by_formula([a, if of_values { a } else { &b }], [&c, &d]);
    near("loss", results["loss"].to_f64()[0], formula(&a), 1e-5)?;
    let slope = results["slope"].to_f64();
    (0..a.len()).step_by(7).try_for_each(|at| {
        let moved = |by: f64| {
            let mut moved = a.clone();
            moved[at] += by;
            formula(&moved)
        };
        near(&format!("slope[{at}]"), slope[at], (moved(1e-5) - moved(-1e-5)) / 2e-5, 1e-5)
    })
}

/// With all of the probability on one token each, KL is the difference of the logits, and JSD(1/2) between different ones ln 2.
fn check_extremes(evaluate: &Evaluate) -> Result<(), Failed> {
    let teacher = Tensor::f32([2, 3], vec![1e4, -1e4, 0.0, -1e4, 1e4, 0.0]);
    let student = Tensor::f32([2, 3], vec![-1e4, 1e4, 0.0, -1e4, 1e4, 0.0]);
    let half = Divergence::Between { beta: 0.5 };
    for (how, apart) in [(Divergence::Forward, 2e4), (Divergence::Reverse, 2e4), (half, 2f64.ln())] {
        let mut graph = Graph::new();
        let [t, s] = ["t", "s"].map(|name| graph.input(name, teacher.host_type()));
        let each = graph.row_divergence(t, s, how, 1.0)?;
        let loss = graph.sum_all(each)?;
        let slope = gradient(&mut graph, loss, &[s])?[0].ok_or("no gradient")?;
        graph.output("each", each);
        graph.output("slope", slope);
        let feeds = Feeds::new().with("t", teacher.clone()).with("s", student.clone());
        let results = evaluate(&graph, &feeds)?;
        let each = results["each"].to_f64();
        near(&format!("{how:?} of what differs"), each[0], apart, 1e-6 * apart)?;
        near(&format!("{how:?} of what is alike"), each[1], 0.0, 1e-6)?;
        if let Some(wrong) = results["slope"].to_f64().iter().find(|x| !x.is_finite()) {
            return Err(format!("{how:?}: a gradient of {wrong}").into());
        }
    }
    Ok(())
}

/// Of a teacher that is sure of one token it is enough to know that one.
fn check_extremes_of_top(evaluate: &Evaluate) -> Result<(), Failed> {
    let student = Tensor::f32([2, 3], vec![-1e4, 1e4, 0.0, -1e4, 1e4, 0.0]);
    let columns = Tensor::u32([2, 2], vec![0, 2, 1, 2]);
    // What is left beside two tokens of which one is certain is nothing.
    let logs = Tensor::f32([2, 3], vec![0.0, -1e4, -1e9, 0.0, -1e4, -2e4]);
    let mut graph = Graph::new();
    let given = [("logs", logs), ("columns", columns), ("student", student)];
    let [l, c, s] = given.each_ref().map(|(name, tensor)| graph.input(*name, tensor.host_type()));
    let each = graph.row_divergence_of_top(l, c, s, 1.0)?;
    let loss = graph.sum_all(each)?;
    let slope = gradient(&mut graph, loss, &[s])?[0].ok_or("no gradient")?;
    graph.output("each", each);
    graph.output("slope", slope);
    let mut feeds = Feeds::new();
    given.iter().for_each(|(name, tensor)| feeds.set(*name, tensor.clone()));
    let results = evaluate(&graph, &feeds)?;
    let each = results["each"].to_f64();
    near("what differs", each[0], 2e4, 2e-2)?;
    near("what is alike", each[1], 0.0, 1e-6)?;
    // The student's only token is one that the teacher has not named: all of it goes to the one that it has.
    let slope = results["slope"].to_f64();
    let expected = [-1.0, 1.0, 0.0, 0.0, 0.0, 0.0];
    slope.iter().zip(expected).try_for_each(|(&got, expected)| near("slope", got, expected, 1e-6))
}

fn near(what: &str, got: f64, expected: f64, limit: f64) -> Result<(), Failed> {
    let difference = (got - expected).abs();
    if difference.is_nan() || difference > limit {
        return Err(format!("{what}: {got}, expected {expected} within {limit:e}").into());
    }
    Ok(())
}
