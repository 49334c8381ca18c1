//! Reverse-mode differentiation, graph to graph: each operator writes its own derivative.

use super::{Error, Graph, Node, Result, Source};
use crate::ops::cast::CastEmit;
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::{Emit, Site, Value};
use crate::tensor::{DType, Tensor};

/// Scope of all that a gradient appends, before the scope of the node it belongs to.
const SCOPE: &str = "gradient";

impl Node {
    /// True if a gradient appended it.
    pub fn is_gradient(&self) -> bool {
        self.scope.strip_prefix(SCOPE).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

/// Appends the gradient of `loss` with respect to each of `wrt`; `None` where the loss does not depend on it.
///
/// `loss` is one f32. Nodes that lead from nothing in `wrt` are not differentiated.
pub fn gradient(graph: &mut Graph, loss: Value, wrt: &[Value]) -> Result<Vec<Option<Value>>> {
    let kind = graph.kind(loss).clone();
    if kind.shape.count() != 1 || !kind.dtype.is_float() {
        return Err(Error::LossNotScalar { got: kind });
    }
    let one = Tensor::scalar(1.0).reshaped(kind.shape.clone()).expect("a scalar has one element");
    let seed = graph.constant(one);
    gradient_from(graph, loss, seed, wrt)
}

/// The same from a given upstream gradient, which has the type of `loss`: a loss scale, or a random direction.
pub fn gradient_from(
    graph: &mut Graph,
    loss: Value,
    seed: Value,
    wrt: &[Value],
) -> Result<Vec<Option<Value>>> {
    let leads = leading_from(graph, wrt);
    let mut of: Vec<Option<Value>> = vec![None; graph.values.len()];
    of[loss.index()] = Some(seed);
    for number in (0..graph.nodes.len()).rev() {
        let node = graph.nodes[number].clone();
        let up: Vec<Option<Value>> = node.outputs.iter().map(|v| of[v.index()]).collect();
        let needed: Vec<bool> = node.inputs.iter().map(|v| leads[v.index()]).collect();
        if up.iter().all(Option::is_none) || !needed.contains(&true) {
            continue;
        }
        let scope = if node.scope.is_empty() { SCOPE.into() } else { format!("{SCOPE}.{}", node.scope) };
        let site = Site { inputs: &node.inputs, outputs: &node.outputs, needed: &needed };
        let located = |source| Error::Operator { scope: scope.clone(), source };
        let gradients = graph.within(&scope, |graph| node.op.gradient(graph, &site, &up)).map_err(located)?;
        for ((&input, gradient), &needed) in node.inputs.iter().zip(gradients).zip(&needed) {
            let Some(gradient) = gradient.filter(|_| needed) else { continue };
            let total = match of[input.index()] {
                Some(before) => {
                    graph.within(&scope, |graph| total(graph, before, gradient)).map_err(located)?
                }
                None => gradient,
            };
            of[input.index()] = Some(total);
        }
    }
    Ok(wrt.iter().map(|v| of[v.index()]).collect())
}

/// The sum of two gradients of a value. What reads a value of 16 bits may hand back either its type or f32: then f32 stands.
fn total(graph: &mut Graph, before: Value, gradient: Value) -> crate::ops::Result<Value> {
    if graph.kind(before).dtype == graph.kind(gradient).dtype {
        return graph.add(before, gradient);
    }
    let [before, gradient] = [graph.cast(before, DType::F32)?, graph.cast(gradient, DType::F32)?];
    graph.add(before, gradient)
}

/// For each value, whether it depends on one of `from` through floats.
fn leading_from(graph: &Graph, from: &[Value]) -> Vec<bool> {
    let mut leads = vec![false; graph.values.len()];
    from.iter().for_each(|v| leads[v.index()] = true);
    for (at, value) in graph.values.iter().enumerate() {
        if let Source::Node { node, .. } = value.source {
            leads[at] |=
                value.kind.dtype.is_float() && graph.nodes[node].inputs.iter().any(|v| leads[v.index()]);
        }
    }
    leads
}

#[cfg(test)]
mod tests {
    use super::super::{Feeds, evaluate};
    use super::*;
    use crate::ops::reduce::ReduceEmit;
    use crate::ops::split::SplitEmit;
    use crate::tensor::Type;

    #[test]
    fn a_value_read_twice_gets_the_sum_of_both_gradients() {
        // loss = sum(x * x + 3 x), so d loss / d x = 2 x + 3.
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([3]));
        let square = graph.mul(x, x).unwrap();
        let triple = graph.scale(x, 3.0).unwrap();
        let y = graph.add(square, triple).unwrap();
        let loss = graph.sum_all(y).unwrap();
        let dx = gradient(&mut graph, loss, &[x]).unwrap()[0].unwrap();
        graph.output("dx", dx);
        graph.verify().unwrap();
        let feeds = Feeds::new().with("x", Tensor::f32([3], vec![1.0, -2.0, 0.5]));
        let results = evaluate(&graph, &feeds, DType::F32).unwrap();
        assert_eq!(results["dx"].real::<f32>(), [5.0, -1.0, 4.0]);
    }

    #[test]
    fn nothing_flows_to_what_the_loss_does_not_read() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([3]));
        let y = graph.input("y", Type::f32([3]));
        let loss = graph.sum_all(x).unwrap();
        let gradients = gradient(&mut graph, loss, &[x, y]).unwrap();
        assert!(gradients[0].is_some() && gradients[1].is_none());
    }

    #[test]
    fn a_piece_that_nothing_reads_gets_a_gradient_of_zero() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([2, 3]));
        let pieces = graph.split(x, 1, &[2, 1]).unwrap();
        let double = graph.scale(pieces[0], 2.0).unwrap();
        let loss = graph.sum_all(double).unwrap();
        let dx = gradient(&mut graph, loss, &[x]).unwrap()[0].unwrap();
        graph.output("dx", dx);
        let feeds = Feeds::new().with("x", Tensor::f32([2, 3], vec![1.0; 6]));
        let results = evaluate(&graph, &feeds, DType::F32).unwrap();
        assert_eq!(results["dx"].real::<f32>(), [2.0, 2.0, 0.0, 2.0, 2.0, 0.0]);
    }

    #[test]
    fn a_loss_with_several_elements_is_refused() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([3]));
        assert!(matches!(gradient(&mut graph, x, &[x]), Err(Error::LossNotScalar { .. })));
    }
}
