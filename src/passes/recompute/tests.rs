use super::super::{Fuse, Tidy, run};
use super::*;
use crate::graph::{Feeds, evaluate, gradient};
use crate::ops::dropout::DropoutEmit;
use crate::ops::matmul::MatmulEmit;
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reduce::ReduceEmit;
use crate::ops::rms_norm::RmsNormEmit;
use crate::tensor::random::Stream;
use crate::tensor::{DType, Tensor};

const LAYERS: usize = 6;

/// A residual network with a norm, a wide product, dropout and a narrow product in each layer, and its gradient.
fn network() -> Graph {
    let mut graph = Graph::new();
    let rng = graph.input("rng", Type::new(DType::U32, [2]));
    let mut x = graph.input("x", Type::f32([16, 8]));
    let mut wrt = vec![];
    for layer in 0..LAYERS {
        let up = graph.parameter(format!("up.{layer}"), Type::f32([8, 32]));
        let down = graph.parameter(format!("down.{layer}"), Type::f32([32, 8]));
        let gain = graph.parameter(format!("gain.{layer}"), Type::f32([8]));
        wrt.extend([up, down, gain]);
        x = graph.within(format!("net.{layer}"), |graph| {
            let normed = graph.rms_norm(x, gain, 1e-5).unwrap();
            let wide = graph.matmul(normed, up).unwrap();
            let active = graph.pointwise("gelu", &[wide], 0.0).unwrap();
            let kept = graph.dropout(active, rng, 0.25, layer as u32).unwrap();
            let narrow = graph.matmul(kept, down).unwrap();
            graph.add(x, narrow).unwrap()
        });
    }
    let square = graph.pointwise("square", &[x], 0.0).unwrap();
    let loss = graph.mean_all(square).unwrap();
    graph.output("loss", loss);
    let names: Vec<String> = graph.parameters().map(|(name, _)| name.to_string()).collect();
    for (name, gradient) in names.into_iter().zip(gradient(&mut graph, loss, &wrt).unwrap()) {
        graph.output(format!("gradient.{name}"), gradient.unwrap());
    }
    graph
}

fn feeds(graph: &Graph) -> Feeds {
    let mut stream = Stream::new(&[3]);
    let mut feeds = Feeds::new().with("rng", Tensor::u32([2], vec![5, 6]));
    for (name, value) in graph.parameters().chain(graph.inputs().filter(|(name, _)| *name == "x")) {
        let shape = graph.kind(value).shape.clone();
        let elements = (0..shape.count()).map(|_| stream.normal() as f32 * 0.3).collect();
        feeds.set(name, Tensor::f32(shape, elements));
    }
    feeds
}

fn rewritten(how: Recompute) -> Graph {
    run(&[&Tidy, &how, &Fuse], network()).unwrap().0
}

/// Most bytes that live at one time, a view living in what it was made from.
fn peak(graph: &Graph) -> u64 {
    let mut root: Vec<usize> = (0..graph.values().len()).collect();
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; root.len()];
    for (at, node) in graph.nodes().iter().enumerate() {
        for v in &node.outputs {
            match node.op.is_view() {
                true => root[v.index()] = root[node.inputs[0].index()],
                false => lives[v.index()] = Some((at, at)),
            }
        }
        for v in &node.inputs {
            lives[root[v.index()]].iter_mut().for_each(|life| life.1 = at);
        }
    }
    let alive = |t: usize| {
        let bytes = |(v, life): (usize, &Option<(usize, usize)>)| match life {
            Some((first, last)) if (*first..=*last).contains(&t) => graph.values()[v].kind.size_bytes(),
            _ => 0,
        };
        lives.iter().enumerate().map(bytes).sum()
    };
    (0..graph.nodes().len()).map(alive).max().unwrap()
}

#[test]
fn computing_again_changes_no_bit_and_lowers_the_peak() {
    let plain = rewritten(Recompute::None);
    let expected = evaluate(&plain, &feeds(&plain), DType::F32).unwrap();
    for (how, share) in [(Recompute::Cheap, 0.8), (Recompute::Layers, 0.6)] {
        let graph = rewritten(how);
        assert_eq!(evaluate(&graph, &feeds(&graph), DType::F32).unwrap(), expected, "{how:?}");
        let (less, all) = (peak(&graph) as f64, peak(&plain) as f64);
        assert!(less < share * all, "{how:?}: {less} of {all} bytes");
    }
}

#[test]
fn cheap_repeats_no_product_and_layers_only_those_whose_values_are_read() {
    let products = |how| rewritten(how).nodes().iter().filter(|n| n.op.is_heavy()).count();
    let once = products(Recompute::None);
    assert_eq!(products(Recompute::Cheap), once);
    // Of the two products of a layer the second makes what the next layer begins with, which is held.
    assert_eq!(products(Recompute::Layers), once + LAYERS);
}

#[test]
fn a_copy_stands_right_before_the_first_node_that_reads_it() {
    let (graph, _) = run(&[&Tidy, &Recompute::Layers], network()).unwrap();
    let first_gradient = graph.nodes().iter().position(Node::is_gradient).unwrap();
    let copies: Vec<usize> = (0..graph.nodes().len())
        .filter(|&number| graph.nodes()[number].scope.starts_with("recompute."))
        .collect();
    assert!(copies.iter().all(|&copy| copy > first_gradient));
    for &copy in &copies {
        let layer = layer_of(&graph, &graph.nodes()[copy]).unwrap().trim_start_matches("recompute.");
        let next = graph.nodes()[copy..].iter().find(|node| node.is_gradient()).unwrap();
        assert!(next.scope.contains(layer), "{layer} is computed again before {}", next.scope);
    }
}

#[test]
fn a_graph_without_a_gradient_stays_as_it_is() {
    let mut graph = Graph::new();
    let x = graph.input("x", Type::f32([4]));
    let y = graph.scale(x, 2.0).unwrap();
    graph.output("y", y);
    assert_eq!(Recompute::Layers.rewrite(&graph).unwrap().to_string(), graph.to_string());
    assert_eq!(graph.type_of(y), Type::f32([4]));
}
