//! Layers in codes and fake quantisation within a graph: what they compute, and their gradients.

use crate::graph::{Feeds, Graph, evaluate, gradient};
use crate::ops::fake_quantize::{FakeQuantizeEmit, Sharing, Steps};
use crate::ops::linear_codes::{Linear, LinearCodesEmit, Products};
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::quantize_rows::Rule;
use crate::ops::reduce::ReduceEmit;
use crate::ops::{Cases, Value};
use crate::tensor::{DType, Tensor, Type};

/// y, dx, dW and dbias of a layer for a random upstream gradient.
fn layer(
    form: Form,
    given: &dyn Fn(usize, Tensor) -> Tensor,
    write: &dyn Fn(&mut Graph, Linear) -> Value,
) -> Vec<Vec<f64>> {
    let mut cases = Cases::new("layer");
    let sizes: [usize; 2] = if form == Form::Nn { [24, 20] } else { [20, 24] };
    let shapes: [&[usize]; 4] = [&[3, 8, 24], &sizes, &[20], &[3, 8, 20]];
    let mut graph = Graph::new();
    let mut feeds = Feeds::new();
    let [x, weight, bias, up] = [0, 1, 2, 3].map(|i| {
        let tensor = given(i, cases.normal(shapes[i]).to_precision(DType::F32));
        let value = graph.input(format!("input{i}"), tensor.host_type());
        feeds.set(format!("input{i}"), tensor);
        value
    });
    let y = write(&mut graph, Linear { x, weight, bias: Some(bias), form });
    let weighted = graph.mul(y, up).unwrap();
    let loss = graph.sum_all(weighted).unwrap();
    let gradients = gradient(&mut graph, loss, &[x, weight, bias]).unwrap();
    graph.output("0", y);
    gradients.iter().enumerate().for_each(|(i, g)| graph.output((i + 1).to_string(), g.unwrap()));
    graph.verify().unwrap();
    let mut got = evaluate(&graph, &feeds, DType::F32).unwrap();
    (0..4).map(|i| got.remove(&i.to_string()).unwrap().to_f64()).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn without_codes_it_is_the_plain_layer_and_each_product_is_switched_by_itself() {
    for form in [Form::Nn, Form::Nt] {
        let plain = layer(form, &|_, x| x, &|g, l| g.linear(l.form, l.x, l.weight, l.bias).unwrap());
        let same = layer(form, &|_, x| x, &|g, l| g.linear_in_codes(l, Products::default()).unwrap());
        assert_eq!(plain, same);
        for (i, products) in [
            Products { forward: true, ..Products::default() },
            Products { input_gradient: true, ..Products::default() },
            Products { weight_gradient: true, ..Products::default() },
        ]
        .into_iter()
        .enumerate()
        {
            let coded = layer(form, &|_, x| x, &|g, l| g.linear_in_codes(l, products).unwrap());
            for (result, (coded, plain)) in coded.iter().zip(&plain).enumerate() {
                let off = distance(coded, plain);
                // Codes of 8 bits keep about two digits: what is made of them differs, and by little.
                let expected = if result == i { 1e-3..2e-2 } else { 0.0..1e-12 };
                assert!(expected.contains(&off), "{form:?} {products:?} result {result}: {off}");
            }
        }
    }
}

/// The tensor as its codes give it back, with a scale for each row, or each column.
fn rounded(tensor: Tensor, by_columns: bool) -> Tensor {
    let cols = tensor.shape.last();
    let x = tensor.real::<f32>();
    let line = |i: usize| if by_columns { i % cols } else { i / cols };
    let mut largest = vec![0.0f32; x.len()];
    x.iter().enumerate().for_each(|(i, x)| largest[line(i)] = largest[line(i)].max(x.abs()));
    let back = |(i, x): (usize, &f32)| {
        let scale = largest[line(i)] / 127.0;
        (x / scale).round_ties_even() * scale
    };
    Tensor::f32(tensor.shape.clone(), x.iter().enumerate().map(back).collect())
}

#[test]
fn straight_through_the_gradients_are_those_of_the_numbers_behind_the_codes() {
    for form in [Form::Nn, Form::Nt] {
        let straight = layer(form, &|_, x| x, &|g, l| g.linear_straight(l, Rule::Narrow).unwrap());
        let round = |i: usize, tensor: Tensor| match i {
            0 => rounded(tensor, false),
            1 => rounded(tensor, form == Form::Nn),
            _ => tensor,
        };
        let behind = layer(form, &round, &|g, l| g.linear(l.form, l.x, l.weight, l.bias).unwrap());
        for (straight, behind) in straight.iter().zip(&behind) {
            assert!(distance(straight, behind) < 1e-6);
        }
    }
}

#[test]
fn gradients_pass_inside_the_range_and_the_scale_learns_by_the_formula() {
    let mut graph = Graph::new();
    let x = graph.input("x", Type::f32([1, 4]));
    let s = graph.input("s", Type::f32([1]));
    let up = graph.input("up", Type::f32([1, 4]));
    let steps = Steps::symmetric(-4, 3, Sharing::Rows);
    let y = graph.fake_quantize(x, s, None, steps).unwrap();
    let weighted = graph.mul(y, up).unwrap();
    let loss = graph.sum_all(weighted).unwrap();
    let gradients = gradient(&mut graph, loss, &[x, s]).unwrap();
    graph.output("y", y);
    graph.output("dx", gradients[0].unwrap());
    graph.output("ds", gradients[1].unwrap());
    // Quotients 0.6, -1.2, 9, -7: codes 1, -1, 3, -4.
    let feeds = Feeds::new()
        .with("x", Tensor::f32([1, 4], vec![0.3, -0.6, 4.5, -3.5]))
        .with("s", Tensor::f32([1], vec![0.5]))
        .with("up", Tensor::f32([1, 4], vec![1.0, 2.0, 3.0, 5.0]));
    let got = evaluate(&graph, &feeds, DType::F64).unwrap();
    assert_eq!(got["y"].to_f64(), [0.5, -0.5, 1.5, -2.0]);
    assert_eq!(got["dx"].to_f64(), [1.0, 2.0, 0.0, 0.0]);
    let expected = (1.0 * 0.4 + 2.0 * 0.2 + 3.0 * 3.0 - 5.0 * 4.0) / (4.0 * 3.0f64).sqrt();
    assert!((got["ds"].to_f64()[0] - expected).abs() < 1e-6);
}
