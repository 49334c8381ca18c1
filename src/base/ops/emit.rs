//! How an operator writes other operators without seeing the graph.

use super::{Operator, Result};
use crate::tensor::{Tensor, Type};
use std::sync::Arc;

/// A handle to a value in whatever records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub u32);

impl Value {
    /// Position in the recorder's list of values.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Takes down operators in order. A graph implements it; builders of each family extend it.
pub trait Emit {
    /// Applies an operator and returns its outputs.
    fn apply(&mut self, op: Arc<dyn Operator>, inputs: &[Value]) -> Result<Vec<Value>>;

    /// Type of a value.
    fn type_of(&self, value: Value) -> Type;

    /// A value known beforehand.
    fn constant(&mut self, tensor: Tensor) -> Value;

    /// Applies an operator with a single output.
    fn apply_one(&mut self, op: Arc<dyn Operator>, inputs: &[Value]) -> Result<Value> {
        Ok(self.apply(op, inputs)?[0])
    }
}

/// Where an operator stands whose gradient is asked.
pub struct Site<'a> {
    /// Its inputs.
    pub inputs: &'a [Value],
    /// Its outputs.
    pub outputs: &'a [Value],
    /// Which inputs need a gradient.
    pub needed: &'a [bool],
}

impl Site<'_> {
    /// Input `i`.
    pub fn input(&self, i: usize) -> Value {
        self.inputs[i]
    }

    /// Output `i`.
    pub fn output(&self, i: usize) -> Value {
        self.outputs[i]
    }

    /// True if the gradient of input `i` is wanted.
    pub fn needs(&self, i: usize) -> bool {
        self.needed[i]
    }
}
