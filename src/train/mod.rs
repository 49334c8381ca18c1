//! Training: the recipe, the schedule, the step as a fixed program, the loop, the run folder.

pub mod adapters;
mod beside;
pub mod chats;
pub mod checkpoint;
pub mod distill;
mod error;
mod feeds;
pub mod frozen;
pub mod job;
mod lane;
pub mod layout;
pub mod lesson;
pub mod metrics;
pub mod micro;
pub mod pieces;
pub mod places;
pub mod profile;
pub mod program;
pub mod progress;
pub mod prune;
pub mod recipe;
mod recover;
mod reduced;
pub mod run;
pub mod schedule;
pub mod second;
mod target;
pub mod trainer;
mod update;

pub use beside::Beside;
pub use error::{Error, Result};
pub use frozen::Frozen;
pub use reduced::Reduced;
pub use target::Target;
