//! The command line: one file a command. Exit code 0 on success, 2 for wrong usage, 1 for anything else.

mod demo;
mod devices;
mod plot;
mod train;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Train, fine-tune and compress language models on any GPU that wgpu reaches.
#[derive(Parser)]
#[command(name = "kiln", version, about, max_term_width = 100)]
struct Kiln {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model as a recipe says.
    Train(train::Train),
    /// Train a small GPT on the built-in stories in a few minutes, and let it write.
    Demo(demo::Demo),
    /// List the adapters of this machine.
    Devices(devices::Devices),
}

/// Wrong usage, found after the arguments were parsed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Parses the arguments, runs the command, and reports an error on stderr.
pub fn main() -> ExitCode {
    let kiln = Kiln::parse();
    let result = match kiln.command {
        Command::Train(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Devices(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if is_usage(&error) { 2 } else { 1 })
        }
    }
}

/// A reader such as `head` that had enough is no failure of ours.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// A recipe with an unknown key or an impossible value is wrong usage, like a flag that does not exist.
fn is_usage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let recipe = cause.downcast_ref::<crate::train::recipe::Error>();
        let wrapped = cause.downcast_ref::<crate::train::Error>();
        cause.is::<Usage>() || recipe.is_some() || matches!(wrapped, Some(crate::train::Error::Recipe(_)))
    })
}
