//! `kiln bench`: how fast kiln is on this machine, in figures that can be checked and compared.

mod bed;
mod client;
mod compare;
mod grid;
mod kernels;
mod report;
mod serve;
mod spread;
mod train;

pub use bed::Roofs;
pub use report::{device_json, load};
pub use spread::{short, size};

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Measure kernels and training steps on an adapter, a server under load, or compare two measurements.
///
/// Figures are medians with quartiles after a warm-up. They stand beside what the adapter itself reaches in multiply-adds and in
/// copying, measured in the same minute. The JSON names version, adapter and driver: attach it to an issue.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  kiln bench kernels --only matmul\n  kiln bench train nano-small --json -o before.json\n  kiln bench compare before.json after.json\n  kiln bench --compare before.json after.json"
)]
pub struct Bench {
    /// Compare two reports, as `kiln bench compare` does.
    #[arg(long, num_args = 2, value_names = ["BEFORE", "AFTER"])]
    compare: Option<Vec<PathBuf>>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Time operators alone over a grid of shapes, every variant of each.
    Kernels(kernels::Kernels),
    /// Time whole training steps of named models.
    Train(train::Train),
    /// Ask a running server for many streams at once, and compare each with what it gives alone.
    Serve(serve::Serve),
    /// Compare two reports of the same kind.
    Compare(compare::Compare),
}

impl Bench {
    /// Runs the bench that was asked for.
    pub fn run(self) -> anyhow::Result<()> {
        match (self.command, self.compare) {
            (Some(Command::Kernels(command)), _) => command.run(),
            (Some(Command::Train(command)), _) => command.run(),
            (Some(Command::Serve(command)), _) => command.run(),
            (Some(Command::Compare(command)), _) => command.run(),
            (None, Some(files)) => compare::Compare::new(files).run(),
            (None, None) => Err(super::Usage("nothing to do\n  hint: kiln bench --help".into()).into()),
        }
    }
}

/// A number of seconds, for arguments that limit time.
pub(super) fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x > 0.0 && x.is_finite() => Ok(x),
        _ => Err("expected a number of seconds above 0".into()),
    }
}
