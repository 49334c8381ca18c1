//! Training: the recipe, the schedule, the run folder.

pub mod checkpoint;
pub mod recipe;
pub mod schedule;
