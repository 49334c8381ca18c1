//! From a graph to a list of dispatches over planned memory: order, lifetimes, slots, lower.
//!
//! Four pure functions over plain data. A [`Plan`] is built once, printed if one likes, and replayed by an [`Engine`];
//! nothing is allocated, shaped or decided while it runs.

mod engine;
mod host;
mod lifetimes;
mod lower;
mod prepare;
mod slots;
mod text;

pub use engine::{Engine, Ticket};
pub use host::{HostEngine, all_threads};
pub use lifetimes::{Storage, lifetimes};
pub use lower::{Choose, first_variant, plan};
pub use prepare::{order, prepare};
pub use slots::assign;

use crate::graph::Graph;
use crate::ops::launch::{Kernel, Scalar};
use crate::tensor::{Tensor, Type};
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes to which every place is aligned: what any adapter demands of a binding's offset.
pub const ALIGNMENT: u64 = 256;

/// What can go wrong while planning or running.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The graph was at fault.
    #[error(transparent)]
    Graph(#[from] crate::graph::Error),
    /// A value is larger than one binding may be.
    #[error(
        "`{what}` takes {need_bytes} bytes, more than this adapter's binding limit of {limit_bytes}\n  hint: lower the batch or the context, or choose a smaller vocabulary"
    )]
    BindingTooLarge {
        /// The value or the operator that makes it.
        what: String,
        /// Bytes it takes.
        need_bytes: u64,
        /// Bytes one binding may have.
        limit_bytes: u64,
    },
    /// A kernel binds more buffers than the adapter allows.
    #[error("{op}: binds {need} storage buffers, this adapter allows {limit}")]
    TooManyBindings {
        /// Operator.
        op: &'static str,
        /// Buffers needed.
        need: usize,
        /// Buffers allowed.
        limit: u32,
    },
    /// A parameter or state has no place.
    #[error("`{name}` is kept between runs, but no arena holds it")]
    NoPlace {
        /// Its name.
        name: String,
    },
    /// An operator offers no kernel for these types on this adapter.
    #[error("{op}: no kernel for {types} on this adapter")]
    NoKernel {
        /// Operator.
        op: &'static str,
        /// Types of its inputs.
        types: String,
    },
    /// Every kernel of an operator has been found to compute wrongly on this adapter.
    #[error(
        "{op}: every kernel has failed on this adapter\n  hint: `kiln doctor` shows how; a newer driver or --device cpu"
    )]
    NoSoundKernel {
        /// Operator.
        op: &'static str,
    },
    /// The wrong values were fed to a run.
    #[error("run takes {expected}, got {got}")]
    Feed {
        /// What the plan expects.
        expected: String,
        /// What was given.
        got: String,
    },
    /// The model does not fit into the device's memory.
    #[error(
        "needs {need_bytes} bytes, the device has {have_bytes}\n  hint: a smaller batch, context or model; f16 precision"
    )]
    DoesNotFit {
        /// Bytes needed.
        need_bytes: u64,
        /// Bytes there are.
        have_bytes: u64,
    },
    /// The device is gone.
    #[error(
        "{device}: the device was lost: {reason}\n  hint: try again; if it repeats, with a smaller batch"
    )]
    Lost {
        /// Name of the device.
        device: String,
        /// The driver's words.
        reason: String,
    },
    /// The device refused or failed.
    #[error("device: {reason}")]
    Device {
        /// In the driver's words, with a hint where there is one.
        reason: String,
    },
}

/// Result of planning or running.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Memory kept between runs: all parameters, all gradients, one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Arena {
    /// Name for reports.
    pub name: String,
    /// The whole arena as one value; arenas hold f32, u32 or i8.
    pub kind: Type,
}

/// A place inside an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// Which arena.
    pub arena: usize,
    /// Bytes from its start, a multiple of [`ALIGNMENT`].
    pub offset_bytes: u64,
}

/// Where named values live that outlast a run.
#[derive(Clone, Debug, Default)]
pub struct Residents {
    /// The arenas.
    pub arenas: Vec<Arena>,
    /// Place of each parameter and state by name.
    pub places: HashMap<String, Span>,
    /// Place of each result that is written into an arena instead of being read back, by name.
    pub results: HashMap<String, Span>,
}

/// Where a value's elements are while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A whole slot, shared over time with other values.
    Slot(usize),
    /// Bytes from the start of the run's inputs.
    Input(u64),
    /// Bytes from the start of the constants.
    Constant(u64),
    /// In an arena.
    Arena(Span),
}

/// A value fed to each run.
#[derive(Clone, Debug)]
pub struct Feed {
    /// Name in the graph.
    pub name: String,
    /// Type in the graph.
    pub kind: Type,
    /// Bytes from the start of the inputs.
    pub offset_bytes: u64,
}

/// A value known beforehand.
#[derive(Clone, Debug)]
pub struct Known {
    /// The elements.
    pub tensor: Arc<Tensor>,
    /// Type in the graph.
    pub kind: Type,
    /// Bytes from the start of the constants.
    pub offset_bytes: u64,
}

/// A result brought back to the host after each run.
#[derive(Clone, Debug)]
pub struct Read {
    /// Name in the graph.
    pub name: String,
    /// Its type.
    pub kind: Type,
    /// Where it is.
    pub place: Place,
}

/// One buffer range bound by a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Binding {
    /// Where.
    pub place: Place,
    /// Bytes, a multiple of four.
    pub size_bytes: u64,
}

/// One kernel launch with everything decided.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// Node of the plan's graph.
    pub node: usize,
    /// Variant chosen for the node.
    pub variant: String,
    /// The kernel.
    pub kernel: Kernel,
    /// Buffers at group 0 in order.
    pub bindings: Vec<Binding>,
    /// Parameters by name.
    pub params: Vec<(String, Scalar)>,
    /// Workgroups.
    pub groups: [u32; 3],
}

/// A graph made into dispatches over places.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The graph that is run, after preparation.
    pub graph: Graph,
    /// Bytes of each slot.
    pub slots: Vec<u64>,
    /// Place of each value that has one.
    pub places: Vec<Option<Place>>,
    /// Values fed to each run.
    pub feeds: Vec<Feed>,
    /// Bytes of all feeds with padding.
    pub feed_bytes: u64,
    /// Values known beforehand.
    pub known: Vec<Known>,
    /// Bytes of all constants with padding.
    pub known_bytes: u64,
    /// Results read back.
    pub reads: Vec<Read>,
    /// What runs, in order.
    pub dispatches: Vec<Dispatch>,
}

impl Plan {
    /// Bytes of all slots: the peak of what lives within a run.
    pub fn slot_bytes(&self) -> u64 {
        self.slots.iter().sum()
    }

    /// Bytes that live within a run, without the arenas.
    pub fn run_bytes(&self) -> u64 {
        self.slot_bytes() + self.feed_bytes + self.known_bytes
    }
}

/// Bytes a value occupies: whole words.
pub fn padded_bytes(kind: &Type) -> u64 {
    kind.size_bytes().next_multiple_of(4)
}
