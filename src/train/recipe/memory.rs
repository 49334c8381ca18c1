//! `[memory]`: what a run may hold.

use serde::Serialize;

use super::error::Error;
use super::read::Section;
use crate::passes::Recompute;

/// What is held between the forward and the backward part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// What the backward part computes again instead of holding it: time for memory.
    pub recompute: Recompute,
}

pub(super) fn memory(section: &Section) -> Result<Memory, Error> {
    let words = [("none", Recompute::None), ("cheap", Recompute::Cheap), ("layers", Recompute::Layers)];
    Ok(Memory { recompute: section.word("recompute", &words)?.or(Recompute::None) })
}
