//! Training: the recipe, the schedule, the run folder.

pub mod recipe;
pub mod schedule;
