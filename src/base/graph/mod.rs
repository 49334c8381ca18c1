//! A model, a loss or a whole training step as a list of operators over named values.
//!
//! Nodes stand in an order in which every value is made before it is read. The graph is plain data: it is built, printed,
//! differentiated and interpreted without a device.

mod coupling;
mod edit;
mod gradient;
mod interpret;
mod text;
mod verify;

pub use coupling::{Coupling, Marks, Member, Uncut, coupling};
pub use edit::{Rewriter, storage_roots, without_dead_nodes};
pub use gradient::{gradient, gradient_from};
pub use interpret::{Feeds, Trace, evaluate, trace};

use crate::ops::{self, Emit, Operator, Value};
use crate::tensor::{Tensor, Type};
use std::sync::Arc;

/// What can go wrong with a graph.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operator refused its inputs.
    #[error("at `{scope}`: {source}")]
    Operator {
        /// Where in the model.
        scope: String,
        /// Why.
        source: ops::Error,
    },
    /// Two named values share a name.
    #[error("two values are named `{name}`")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// A broken invariant, found by `verify`.
    #[error("graph is malformed at node {node} ({op}): {problem}")]
    Malformed {
        /// Node number.
        node: usize,
        /// Operator name.
        op: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A value was needed but not fed.
    #[error("input `{name}` was not given")]
    Missing {
        /// Name of the input.
        name: String,
    },
    /// A value was fed with the wrong type.
    #[error("input `{name}` is {got}, expected {expected}")]
    Feed {
        /// Name of the input.
        name: String,
        /// Type in the graph.
        expected: Type,
        /// Type given.
        got: Type,
    },
    /// A pattern names no weight that a pass could work on.
    #[error("the pattern `{pattern}` fits no weight of a linear layer\n  hint: those here are {known}")]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// Names it could have fitted.
        known: String,
    },
    /// The loss of a gradient is not one float.
    #[error("the gradient starts from one float, got {got}\n  hint: reduce the loss with a sum or a mean")]
    LossNotScalar {
        /// Its type.
        got: Type,
    },
}

impl From<ops::Error> for Error {
    fn from(source: ops::Error) -> Self {
        Error::Operator { scope: String::new(), source }
    }
}

/// Result of graph work.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where a value comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Given anew for each run: tokens, targets, scalars.
    Input,
    /// A weight of the model, kept between runs.
    Parameter,
    /// A weight that stays as it is, kept between runs.
    Frozen,
    /// Anything else kept between runs and possibly overwritten: arenas, moments, control words.
    State,
    /// Known when the graph is built.
    Constant(Arc<Tensor>),
    /// Made by a node.
    Node {
        /// Which node.
        node: usize,
        /// Which of its outputs.
        output: usize,
    },
}

/// What is known of one value.
#[derive(Clone, Debug)]
pub struct ValueInfo {
    /// Its type.
    pub kind: Type,
    /// Where it comes from.
    pub source: Source,
    /// Name of an input, parameter or state.
    pub name: Option<String>,
}

/// One operator applied to values.
#[derive(Clone, Debug)]
pub struct Node {
    /// The operator.
    pub op: Arc<dyn Operator>,
    /// What it reads.
    pub inputs: Vec<Value>,
    /// What it makes.
    pub outputs: Vec<Value>,
    /// Where in the model it stands, such as `blocks.0.attention`.
    pub scope: String,
}

/// Operators over named values, in an order in which they can run.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    values: Vec<ValueInfo>,
    nodes: Vec<Node>,
    outputs: Vec<(String, Value)>,
    scope: Vec<String>,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Graph::default()
    }

    /// A value given anew for each run.
    pub fn input(&mut self, name: impl Into<String>, kind: Type) -> Value {
        self.push(ValueInfo { kind, source: Source::Input, name: Some(name.into()) })
    }

    /// A weight.
    pub fn parameter(&mut self, name: impl Into<String>, kind: Type) -> Value {
        self.push(ValueInfo { kind, source: Source::Parameter, name: Some(name.into()) })
    }

    /// Something kept between runs that is no weight.
    pub fn state(&mut self, name: impl Into<String>, kind: Type) -> Value {
        self.push(ValueInfo { kind, source: Source::State, name: Some(name.into()) })
    }

    /// Lets parameters be weights that stay as they are, where `meant` says so of their names.
    pub fn freeze(&mut self, meant: impl Fn(&str) -> bool) {
        for info in self.values.iter_mut().filter(|info| matches!(info.source, Source::Parameter)) {
            if info.name.as_deref().is_some_and(&meant) {
                info.source = Source::Frozen;
            }
        }
    }

    /// Names a value as a result of the graph.
    pub fn output(&mut self, name: impl Into<String>, value: Value) {
        self.outputs.push((name.into(), value));
    }

    /// Lets an existing result name another value.
    pub fn redirect_output(&mut self, name: &str, value: Value) {
        self.outputs.iter_mut().filter(|(n, _)| n == name).for_each(|(_, v)| *v = value);
    }

    /// Takes a name off the results.
    pub fn forget_output(&mut self, name: &str) {
        self.outputs.retain(|(n, _)| n != name);
    }

    /// All values.
    pub fn values(&self) -> &[ValueInfo] {
        &self.values
    }

    /// All nodes in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Named results.
    pub fn outputs(&self) -> &[(String, Value)] {
        &self.outputs
    }

    /// What is known of a value.
    pub fn info(&self, value: Value) -> &ValueInfo {
        &self.values[value.index()]
    }

    /// Type of a value.
    pub fn kind(&self, value: Value) -> &Type {
        &self.values[value.index()].kind
    }

    /// The input, parameter or state of that name.
    pub fn named(&self, name: &str) -> Option<Value> {
        let at = self.values.iter().position(|v| v.name.as_deref() == Some(name))?;
        Some(Value(at as u32))
    }

    /// The result of that name.
    pub fn result(&self, name: &str) -> Option<Value> {
        self.outputs.iter().find(|(n, _)| n == name).map(|&(_, v)| v)
    }

    /// Parameters in order, with their names, but for frozen ones.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, Value)> {
        self.values.iter().enumerate().filter(|(_, v)| matches!(v.source, Source::Parameter)).map(|(i, v)| {
            let name = v.name.as_deref().expect("parameters are named when made");
            (name, Value(i as u32))
        })
    }

    /// Inputs in order, with their names.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, Value)> {
        self.values.iter().enumerate().filter(|(_, v)| matches!(v.source, Source::Input)).map(|(i, v)| {
            let name = v.name.as_deref().expect("inputs are named when made");
            (name, Value(i as u32))
        })
    }

    /// Nodes recorded inside `work` carry `name` in their scope.
    pub fn within<T>(&mut self, name: impl Into<String>, work: impl FnOnce(&mut Graph) -> T) -> T {
        self.scope.push(name.into());
        let result = work(self);
        self.scope.pop();
        result
    }

    /// For each value, how many nodes and results read it.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.values.len()];
        let reads = self.nodes.iter().flat_map(|n| &n.inputs).chain(self.outputs.iter().map(|(_, v)| v));
        reads.for_each(|v| uses[v.index()] += 1);
        uses
    }

    fn push(&mut self, info: ValueInfo) -> Value {
        self.values.push(info);
        Value(self.values.len() as u32 - 1)
    }
}

impl Emit for Graph {
    fn apply(&mut self, op: Arc<dyn Operator>, inputs: &[Value]) -> ops::Result<Vec<Value>> {
        let types: Vec<Type> = inputs.iter().map(|&v| self.kind(v).clone()).collect();
        let node = self.nodes.len();
        let outputs: Vec<Value> = op
            .signature(&types)?
            .into_iter()
            .enumerate()
            .map(|(output, kind)| {
                self.push(ValueInfo { kind, source: Source::Node { node, output }, name: None })
            })
            .collect();
        let scope = self.scope.join(".");
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone(), scope });
        Ok(outputs)
    }

    fn type_of(&self, value: Value) -> Type {
        self.kind(value).clone()
    }

    fn constant(&mut self, tensor: Tensor) -> Value {
        let kind = tensor.host_type();
        self.push(ValueInfo { kind, source: Source::Constant(Arc::new(tensor)), name: None })
    }
}
