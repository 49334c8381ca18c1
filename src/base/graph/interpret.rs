//! The graph computed on the host, node by node, with the operators' references: the referee of everything faster.

use super::{Error, Graph, Result, Source};
use crate::ops::Value;
use crate::tensor::{DType, Tensor, Type};
use std::collections::HashMap;

/// Values for the named inputs, parameters and states of a graph.
#[derive(Clone, Debug, Default)]
pub struct Feeds {
    by_name: HashMap<String, Tensor>,
}

impl Feeds {
    /// Nothing fed yet.
    pub fn new() -> Self {
        Feeds::default()
    }

    /// Adds a value.
    pub fn with(mut self, name: impl Into<String>, tensor: Tensor) -> Self {
        self.by_name.insert(name.into(), tensor);
        self
    }

    /// Adds a value in place.
    pub fn set(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.by_name.insert(name.into(), tensor);
    }

    /// All values with `prefix` before their names.
    pub fn under(self, prefix: &str) -> Feeds {
        let named = |(name, tensor): (String, Tensor)| (format!("{prefix}{name}"), tensor);
        Feeds { by_name: self.by_name.into_iter().map(named).collect() }
    }

    /// Adds all values of others; those of a name that is there take their places.
    pub fn join(&mut self, others: Feeds) {
        self.by_name.extend(others.by_name);
    }

    /// The value of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name)
    }
}

/// What `trace` tells of each node before its outputs are dropped: node number and outputs.
pub type Trace<'a> = dyn FnMut(usize, &[&Tensor]) + 'a;

/// Computes the graph's results; floats are held in `precision` (f32, where values of type f16 or bf16 are rounded, or f64).
pub fn evaluate(graph: &Graph, feeds: &Feeds, precision: DType) -> Result<HashMap<String, Tensor>> {
    trace(graph, feeds, precision, &mut |_, _| {})
}

/// As [`evaluate`], showing every node's outputs on the way.
pub fn trace(
    graph: &Graph,
    feeds: &Feeds,
    precision: DType,
    see: &mut Trace,
) -> Result<HashMap<String, Tensor>> {
    let mut uses = graph.uses();
    let mut values: Vec<Option<Tensor>> = (0..graph.values.len())
        .map(|i| leaf(graph, Value(i as u32), feeds, precision))
        .collect::<Result<_>>()?;
    for (number, node) in graph.nodes.iter().enumerate() {
        let mut outputs: Vec<Tensor> =
            node.outputs.iter().map(|&v| Tensor::zeros(&held(graph.kind(v), precision))).collect();
        let inputs: Vec<&Tensor> =
            node.inputs.iter().map(|v| values[v.index()].as_ref().expect("made before it is read")).collect();
        node.op.reference(&inputs, &mut outputs);
        for (&value, output) in node.outputs.iter().zip(&mut outputs) {
            let dtype = graph.kind(value).dtype;
            if dtype.is_half() && precision == DType::F32 {
                *output = output.to_precision(dtype);
            }
        }
        see(number, &outputs.iter().collect::<Vec<_>>());
        for (&value, output) in node.outputs.iter().zip(outputs) {
            values[value.index()] = (uses[value.index()] > 0).then_some(output);
        }
        for input in &node.inputs {
            uses[input.index()] -= 1;
            if uses[input.index()] == 0 {
                values[input.index()] = None;
            }
        }
    }
    let result = |(name, value): &(String, Value)| {
        (name.clone(), values[value.index()].clone().expect("results are kept to the end"))
    };
    Ok(graph.outputs.iter().map(result).collect())
}

fn held(kind: &Type, precision: DType) -> Type {
    if kind.dtype.is_float() { Type::new(precision, kind.shape.clone()) } else { kind.clone() }
}

fn leaf(graph: &Graph, value: Value, feeds: &Feeds, precision: DType) -> Result<Option<Tensor>> {
    let info = graph.info(value);
    let tensor = match &info.source {
        Source::Node { .. } => return Ok(None),
        Source::Constant(tensor) => tensor.as_ref().clone(),
        Source::Input | Source::Parameter | Source::Frozen | Source::State => {
            let name = info.name.clone().unwrap_or_default();
            let tensor = feeds.get(&name).ok_or(Error::Missing { name: name.clone() })?;
            let got = tensor.host_type();
            let same_kind =
                got.dtype == info.kind.dtype || (got.dtype.is_float() && info.kind.dtype.is_float());
            if got.shape != info.kind.shape || !same_kind {
                return Err(Error::Feed { name, expected: info.kind.clone(), got });
            }
            tensor.clone()
        }
    };
    let rounded =
        if info.kind.dtype.is_half() && precision == DType::F32 { info.kind.dtype } else { precision };
    Ok(Some(tensor.to_precision(rounded)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::pointwise::PointwiseEmit;

    #[test]
    fn a_missing_or_misshapen_input_is_named() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([2]));
        let y = graph.scale(x, 2.0).unwrap();
        graph.output("y", y);
        assert!(
            matches!(evaluate(&graph, &Feeds::new(), DType::F32), Err(Error::Missing { name }) if name == "x")
        );
        let wrong = Feeds::new().with("x", Tensor::f32([3], vec![0.0; 3]));
        assert!(matches!(evaluate(&graph, &wrong, DType::F32), Err(Error::Feed { .. })));
    }

    #[test]
    fn half_values_are_rounded_and_doubles_are_not() {
        let mut graph = Graph::new();
        let x = graph.input("x", Type::new(DType::F16, [1]));
        let y = graph.scale(x, 1.0).unwrap();
        graph.output("y", y);
        let feeds = Feeds::new().with("x", Tensor::f32([1], vec![1.0 + 1.0 / 8192.0]));
        assert_eq!(evaluate(&graph, &feeds, DType::F32).unwrap()["y"].to_f64(), [1.0]);
        assert_eq!(evaluate(&graph, &feeds, DType::F64).unwrap()["y"].to_f64(), [1.0 + 1.0 / 8192.0]);
    }
}
