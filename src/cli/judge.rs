//! `kiln judge`: people compare answers of models.

#[cfg(feature = "judge")]
mod answers;
#[cfg(feature = "judge")]
mod contest;
#[cfg(feature = "judge")]
mod results;

#[cfg_attr(feature = "judge", allow(unused_imports))]
use super::Usage;
use super::generate::flags::Flags;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Let people compare answers of models, blind, on a page of this machine.
///
/// Each model writes an answer to every prompt; the page shows two of them side by side, in an order that is drawn anew for each rater, and
/// keys say which is better. Answers and judgements are kept in one file, each judgement before the page says so. The same command, or
/// one with --results alone, goes on where it stopped. Several raters may judge at once, each under a name of their own.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  kiln judge --a runs/f32 --b runs/int8 --prompts p.jsonl\n  kiln judge --model base=gpt2 --model tuned=runs/sft --model small=runs/q4 --prompts p.jsonl\n  kiln judge --answers-a ours.jsonl --answers-b theirs.jsonl --prompts p.jsonl\n  kiln judge --results judgements.sqlite\n  kiln judge results judgements.sqlite --csv out.csv"
)]
pub struct Judge {
    #[command(subcommand)]
    command: Option<JudgeCommand>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand)]
enum JudgeCommand {
    /// Count what raters said: win rates, scores, agreement, position bias.
    Results(Results),
}

/// A contest, and how its page is served.
#[derive(Args)]
#[cfg_attr(not(feature = "judge"), allow(dead_code))]
struct Run {
    /// A model. Its name in results is the path as it is given.
    #[arg(long, value_name = "MODEL", conflicts_with = "answers_a")]
    a: Option<PathBuf>,
    /// The other one.
    #[arg(long, value_name = "MODEL", conflicts_with = "answers_b")]
    b: Option<PathBuf>,
    /// A model under a name of its own. Given again, there may be more than two.
    #[arg(long = "model", value_name = "NAME=MODEL")]
    models: Vec<String>,
    /// Ready answers instead of a model's: .jsonl, .csv or .tsv with `answer`, in the order of the prompts or with their `id`.
    #[arg(long, value_name = "FILE")]
    answers_a: Option<PathBuf>,
    /// The same for the other one.
    #[arg(long, value_name = "FILE")]
    answers_b: Option<PathBuf>,
    /// Ready answers under a name. May be given again.
    #[arg(long, value_name = "NAME=FILE")]
    answers: Vec<String>,
    /// Prompts: .jsonl, .csv or .tsv with `prompt`, and `id` if they have names.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Where answers and judgements are kept.
    #[arg(long, value_name = "FILE", default_value = "judgements.sqlite")]
    results: PathBuf,
    /// Prompts are what a user says: they are written as each model's chat template has it.
    #[arg(long)]
    chat: bool,
    /// Beside --chat: what the system says first.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Seed of the orders in which raters see pairs and sides; 0 where a new file is not told.
    #[arg(long, value_name = "NUMBER")]
    order_seed: Option<u64>,
    /// The port of the page on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 8470)]
    port: u16,
    #[command(flatten)]
    flags: Flags,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
}

/// Count what raters said, also while they judge.
///
/// Ties, and pairs of which neither answer is any good, count as half a win for each side; skipped pairs count nowhere. Bounds are Wilson's
/// for shares and those of Fisher's information for Bradley and Terry's scores, each for 95 of 100 times.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln judge results judgements.sqlite\n  kiln judge results judgements.sqlite --json\n  kiln judge results judgements.sqlite --csv out.csv"
)]
#[cfg_attr(not(feature = "judge"), allow(dead_code))]
struct Results {
    /// The results file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print everything counted as an object.
    #[arg(long)]
    json: bool,
    /// Write every judgement, with its comment, to this file.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

#[cfg(not(feature = "judge"))]
impl Judge {
    /// An error that names what is missing.
    pub fn run(self) -> anyhow::Result<()> {
        let Judge { command, run } = self;
        let _ = (command.map(|JudgeCommand::Results(results)| results), run);
        let text = "judge needs a web server and a database, which this program was built without\n  hint: build it with --features judge";
        Err(Usage(text.into()).into())
    }
}

#[cfg(feature = "judge")]
impl Judge {
    /// Writes answers and serves the page, or prints what was counted.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Some(JudgeCommand::Results(results)) => results::run(&results),
            None => contest::run(&self.run),
        }
    }
}
