//! What replays plans: the device, or the host.

use super::{Result, Span};
use crate::tensor::{Tensor, Type};

/// A run whose results have not been collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Replays a fixed set of plans over the same arenas.
///
/// Runs are submitted without waiting and execute in the order of submission; their results are collected later.
pub trait Engine {
    /// Device and driver in words.
    fn describe(&self) -> String;

    /// Writes elements into an arena; floats are converted to the arena's type.
    fn write(&mut self, span: Span, tensor: &Tensor) -> Result<()>;

    /// Reads elements of a type from an arena, after all runs submitted so far.
    fn read(&mut self, span: Span, kind: &Type) -> Result<Tensor>;

    /// Starts a run of plan `number` with its feeds in the plan's order. Blocks only when too many runs are under way.
    fn submit(&mut self, number: usize, feeds: &[&Tensor]) -> Result<Ticket>;

    /// Results of a run in the order of the plan's reads; `None` if it has not finished and `wait` is false.
    ///
    /// Each ticket is collected once.
    fn collect(&mut self, ticket: Ticket, wait: bool) -> Result<Option<Vec<Tensor>>>;

    /// Bytes of device memory held.
    fn memory_bytes(&self) -> u64;

    /// Seconds the host has spent on submitting runs so far, waiting left out; `None` where the host computes itself.
    fn host_seconds(&self) -> Option<f64> {
        None
    }

    /// Seconds from the beginning to the end of a run on the device, by its own clock, once it is collected; `None` where there
    /// is no such clock, and of runs long past.
    fn device_seconds(&self, _ticket: Ticket) -> Option<f64> {
        None
    }

    /// Runs a plan as [`Engine::run`] does and tells the time of each dispatch or operator, in ms with its node's number.
    ///
    /// What the plan overwrites may be overwritten more than once, so weights are not to be used after an update.
    fn profile(&mut self, number: usize, feeds: &[&Tensor]) -> Result<Vec<(usize, f64)>>;

    /// Submits and waits.
    fn run(&mut self, number: usize, feeds: &[&Tensor]) -> Result<Vec<Tensor>> {
        let ticket = self.submit(number, feeds)?;
        Ok(self.collect(ticket, true)?.expect("waited for"))
    }
}
