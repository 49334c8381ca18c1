//! The command line: one file a command. Exit code 0 on success, 2 for wrong usage, 1 for anything else.

mod adapter;
mod bench;
mod chat;
mod classify;
mod compare;
mod compress;
mod costs;
mod data;
mod demo;
mod devices;
mod diff;
mod distill;
mod doctor;
mod embed;
mod evaluate;
mod export;
mod folder;
mod forward;
mod generate;
mod inspect;
mod judge;
mod metrics;
mod ngram;
mod passage;
mod plot;
mod prune;
mod quantize;
mod report;
mod retrieve;
mod scale;
mod scored;
mod sensitivity;
mod serve;
mod sweep;
mod task;
mod tokenizer;
mod train;
mod transcribe;
mod tune;

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
    /// Let a model continue a text.
    Generate(generate::Generate),
    /// Talk with a model.
    Chat(chat::Chat),
    /// Find passages of a folder's files for a question.
    Retrieve(retrieve::Retrieve),
    /// Measure how well a model predicts a text.
    Evaluate(evaluate::Evaluate),
    /// Say which class texts are of.
    Classify(classify::Classify),
    /// Run one batch through a model and write its scores, hidden states and gradients.
    Forward(forward::Forward),
    /// Let a model answer over HTTP, as OpenAI's API does.
    Serve(serve::Serve),
    /// Write down what was said in sounds.
    Transcribe(transcribe::Transcribe),
    /// Make a vector of each text.
    Embed(embed::Embed),
    /// Quantise a model: fewer bits for its weights, and for its activations.
    Quantize(quantize::Quantize),
    /// Write a model as a Hugging Face folder, or as a GGUF file.
    Export(export::Export),
    /// Write a GGUF file's model as a Hugging Face folder.
    Import(export::Import),
    /// Score texts by their references: BLEU, chrF, TER, ROUGE.
    Metrics(metrics::Metrics),
    /// Let people compare answers of models, blind, on a page of this machine.
    Judge(judge::Judge),
    /// Count runs of tokens: a model without training, as a yardstick.
    Ngram(ngram::Ngram),
    /// Merge low-rank adapters into a model's weights, or take them out again.
    Adapter(adapter::AdapterCommand),
    /// Quantise a model in several ways and measure what each costs and buys on this device.
    Compare(compare::Compare),
    /// Tell how far one model is from another over a text.
    Diff(diff::Diff),
    /// Compress a model by a recipe of passes.
    Compress(compress::Compress),
    /// Remove what a model needs least: weights, heads, neurons, layers.
    Prune(prune::Prune),
    /// Train a small model on what a large one says.
    Distill(distill::Distill),
    /// Compress a model by every combination of some of a recipe's values, and measure each.
    Sweep(sweep::Sweep),
    /// Tell what the runs of a sweep gave: a table, a CSV, a page.
    Report(report::Report),
    /// Train a ladder of sizes, fit the laws of their losses, and see where tasks leave chance.
    Scale(scale::Scale),
    /// Estimate how much a model minds each layer being quantised.
    Sensitivity(sensitivity::SensitivityCommand),
    /// Train a tokenizer, encode and decode with one, or look into it.
    Tokenizer(tokenizer::TokenizerCommand),
    /// Look at texts, and clean them of duplicates and of what is no text.
    Data(data::DataCommand),
    /// Train a small GPT on the built-in stories in a few minutes, and let it write.
    Demo(demo::Demo),
    /// Look at graph, plan, memory and costs of a recipe or model.
    Inspect(inspect::Inspect),
    /// Measure kernels and training steps here, or compare two measurements.
    Bench(bench::Bench),
    /// List the adapters of this machine.
    Devices(devices::Devices),
    /// Check every kernel on this machine's adapter against the reference.
    Doctor(doctor::Doctor),
    /// Measure the kernels of a recipe's step anew.
    Tune(tune::Tune),
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
        Command::Generate(command) => command.run(),
        Command::Chat(command) => command.run(),
        Command::Retrieve(command) => command.run(),
        Command::Evaluate(command) => command.run(),
        Command::Classify(command) => command.run(),
        Command::Forward(command) => command.run(),
        Command::Serve(command) => command.run(),
        Command::Transcribe(command) => command.run(),
        Command::Embed(command) => command.run(),
        Command::Quantize(command) => command.run(),
        Command::Export(command) => command.run(),
        Command::Import(command) => command.run(),
        Command::Metrics(command) => command.run(),
        Command::Judge(command) => command.run(),
        Command::Ngram(command) => command.run(),
        Command::Adapter(command) => command.run(),
        Command::Compare(command) => command.run(),
        Command::Diff(command) => command.run(),
        Command::Compress(command) => command.run(),
        Command::Prune(command) => command.run(),
        Command::Distill(command) => command.run(),
        Command::Sweep(command) => command.run(),
        Command::Report(command) => command.run(),
        Command::Scale(command) => command.run(),
        Command::Sensitivity(command) => command.run(),
        Command::Tokenizer(command) => command.run(),
        Command::Data(command) => command.run(),
        Command::Demo(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Devices(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Tune(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", message(&error));
            ExitCode::from(if is_usage(&error) { 2 } else { 1 })
        }
    }
}

/// The error with its causes, each said once: many of ours name their cause already.
fn message(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        _ if said.contains(&cause) => said,
        _ => format!("{said}: {cause}"),
    })
}

/// A whole number from one on, for arguments that count something.
fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("expected a whole number from 1 on".into()),
        Ok(count) => Ok(count),
    }
}

/// Bytes in words.
fn mebibytes(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A reader such as `head` that had enough is no failure of ours.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// A recipe with an unknown key, a device that does not exist or a setting out of range is wrong usage, like a flag that
/// does not exist.
fn is_usage(error: &anyhow::Error) -> bool {
    use crate::adapt;
    use crate::compress;
    use crate::data;
    use crate::generate;
    use crate::train;
    error.chain().any(|cause| {
        let run = cause.downcast_ref::<train::Error>();
        let written = cause.downcast_ref::<generate::Error>();
        cause.is::<Usage>()
            || cause.is::<train::recipe::Error>()
            || cause.is::<data::sampling::Unfit>()
            || matches!(
                cause.downcast_ref::<crate::ngram::Error>(),
                Some(crate::ngram::Error::Setting { .. })
            )
            || cause.downcast_ref::<crate::tasks::Error>().is_some_and(is_usage_of_task)
            || matches!(
                cause.downcast_ref::<crate::metrics::Error>(),
                Some(crate::metrics::Error::Setting { .. })
            )
            || cause.downcast_ref::<crate::retrieve::Error>().is_some_and(is_usage_of_retrieval)
            || matches!(
                cause.downcast_ref::<crate::tasks::Error>(),
                Some(crate::tasks::Error::Retrieve(error)) if is_usage_of_retrieval(error)
            )
            || cause.downcast_ref::<adapt::Error>().is_some_and(is_usage_of_adapters)
            || run.is_some_and(is_usage_of_run)
            || cause.downcast_ref::<compress::Error>().is_some_and(is_usage_of_compression)
            || cause.downcast_ref::<crate::scale::Error>().is_some_and(is_usage_of_study)
            || matches!(cause.downcast_ref::<data::Error>(), Some(data::Error::TokenizerSpec { .. }))
            || matches!(
                written,
                Some(
                    generate::Error::EmptyPrompt
                        | generate::Error::UnknownToken { .. }
                        | generate::Error::TooLong { .. }
                        | generate::Error::Pattern { .. }
                        | generate::Error::Schema { .. }
                        | generate::Error::NoSchemas
                        | generate::Error::Draft { .. }
                        | generate::Error::Setting(_)
                )
            )
    })
}

fn is_usage_of_retrieval(error: &crate::retrieve::Error) -> bool {
    use crate::retrieve::Error;
    match error {
        Error::Setting { .. } | Error::NoWords { .. } | Error::NoRoom { .. } => true,
        Error::Run(error) => is_usage_of_run(error),
        _ => false,
    }
}

fn is_usage_of_run(error: &crate::train::Error) -> bool {
    use crate::train::Error;
    match error {
        Error::Recipe(_) | Error::Teacher { .. } | Error::Cache { .. } | Error::Prune { .. } => true,
        Error::Adapter(error) => is_usage_of_adapters(error),
        #[cfg(feature = "gpu")]
        Error::Gpu(crate::gpu::Error::NotFound { .. } | crate::gpu::Error::Tune { .. }) => true,
        _ => false,
    }
}

/// Patterns that fit nothing and adapters that do not go together are a recipe's fault.
fn is_usage_of_adapters(error: &crate::adapt::Error) -> bool {
    use crate::adapt::Error;
    matches!(error, Error::NoMatch { .. } | Error::Together { .. } | Error::Shared { .. })
}

fn is_usage_of_study(error: &crate::scale::Error) -> bool {
    use crate::scale::Error;
    match error {
        Error::Ladder { .. } | Error::Recipe { .. } | Error::Raw(_) | Error::TooFewTokens { .. } => true,
        Error::Changed { .. } | Error::NoChoices { .. } => true,
        Error::Run(error) | Error::Size { source: error, .. } => is_usage_of_run(error),
        Error::Task(error) => is_usage_of_task(error),
        _ => false,
    }
}

fn is_usage_of_task(error: &crate::tasks::Error) -> bool {
    use crate::tasks::Error;
    matches!(error, Error::Task { .. } | Error::Setting { .. })
}

fn is_usage_of_compression(error: &crate::compress::Error) -> bool {
    use crate::compress::Error;
    if let Error::Stage { source, .. } = error {
        return is_usage_of_compression(source);
    }
    if let Error::Run(error) = error {
        return is_usage_of_run(error);
    }
    matches!(
        error,
        Error::Recipe { .. }
            | Error::Order { .. }
            | Error::NoTraining { .. }
            | Error::Budget { .. }
            | Error::Foreign { .. }
            | Error::Scheme { .. }
            | Error::NoMatch { .. }
            | Error::NoCalibration { .. }
            | Error::Memory { .. }
            | Error::Unfit { .. }
            | Error::Setting { .. }
    )
}
