//! Training: the recipe, the schedule, the run folder.

pub mod checkpoint;
pub mod metrics;
pub mod progress;
pub mod recipe;
pub mod schedule;
