//! Values on the host: element types, shapes, tensors and the counter-based random generator.

pub mod algebra;
pub mod cholesky;
mod dtype;
pub mod mask;
pub mod quant;
pub mod random;
mod real;
mod shape;
pub mod sparse;
mod value;
mod view;

pub use dtype::DType;
pub use real::Real;
pub use shape::{Shape, strides_of};
pub use value::{Data, Tensor, Type};
pub use view::{View, ViewMut};

/// What can go wrong with plain values.
#[derive(Debug, thiserror::Error, Clone, PartialEq)]
pub enum Error {
    /// Two shapes cannot be broadcast together.
    #[error(
        "shapes {left:?} and {right:?} do not broadcast: sizes must be equal or one, counted from the last axis"
    )]
    Broadcast {
        /// First shape.
        left: Shape,
        /// Second shape.
        right: Shape,
    },
    /// A tensor was given the wrong number of elements.
    #[error("shape {shape:?} holds {expected} elements, got {got}")]
    Count {
        /// The shape asked for.
        shape: Shape,
        /// Elements the shape holds.
        expected: usize,
        /// Elements given.
        got: usize,
    },
}
