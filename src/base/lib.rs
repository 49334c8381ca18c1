//! The ground floors of kiln: tensors, operators with their references and derivatives, graphs and plans, all on the host.
//!
//! A package of its own since it is what computes: it is compiled with optimisation also where the rest is not, and once
//! where the rest is compiled for each kind of test. Everything here is reached through `kiln`, by the same paths.

#![warn(missing_docs)]

pub mod graph;
pub mod ops;
pub mod plan;
pub mod tensor;
