//! `kiln evaluate`: how well a model predicts a text.

use super::folder::{Beside, ModelFolder};
use super::{Usage, count};
use crate::data::tokenizer::Spec;
use crate::evaluate::{Request, evaluate_with};
use crate::exchange::{Opened, open_to_run};
use crate::train::Target;
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Measure how well a model predicts a text: loss, perplexity, bits per byte.
///
/// Every token of the text but the first is predicted once, in stretches of the context. With --windows only the windows at
/// eval_val_offsets of the validation part are.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln evaluate runs/shakespeare --data unseen.txt\n  kiln evaluate runs/shakespeare --best --data unseen.txt --json\n  kiln evaluate smollm --adapter style --data unseen.txt\n  kiln evaluate init --tokenizer char --data input.txt --windows batches.safetensors"
)]
pub struct Evaluate {
    #[command(flatten)]
    folder: ModelFolder,
    #[command(flatten)]
    beside: Beside,
    /// File or folder of text. May be given again.
    #[arg(long, value_name = "PATH", required = true)]
    data: Vec<PathBuf>,
    /// A safetensors file of window offsets, of which eval_val_offsets are taken.
    #[arg(long, value_name = "FILE")]
    windows: Option<PathBuf>,
    /// With --windows: the last share of the text, in which they lie.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, requires = "windows")]
    validation: f64,
    /// char (the vocabulary is that of the text), or a tokenizer.json, instead of the model's own.
    #[arg(long, value_name = "char|PATH")]
    tokenizer: Option<Spec>,
    /// Sequences in one batch.
    #[arg(long, default_value_t = 8, value_parser = count)]
    batch: usize,
    /// Tokens in one sequence. Absent: the model's context.
    #[arg(long, value_parser = count)]
    context: Option<usize>,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Print {"loss", "perplexity", "bits_per_byte", "tokens"}.
    #[arg(long)]
    json: bool,
}

impl Evaluate {
    /// Prints the figures.
    pub fn run(self) -> anyhow::Result<()> {
        if matches!(self.tokenizer, Some(Spec::BytePair { .. })) {
            let text = "a tokenizer trained on the text is not the model's\n  hint: --tokenizer char, or the path of a tokenizer.json";
            return Err(Usage(text.into()).into());
        }
        let model = self.folder.resolve()?;
        let Opened { family, weights, tokenizer } = open_to_run(&model, &self.beside.resolve()?)?;
        let request = Request {
            model,
            text: self.data,
            tokenizer: self.tokenizer,
            windows: self.windows,
            validation: self.validation,
            batch: self.batch,
            context: self.context,
        };
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        let score = evaluate_with(family.as_ref(), &weights, tokenizer.as_ref(), &request, &target)?;
        target.told().iter().for_each(|report| eprintln!("kernels  {report}"));
        let mut out = std::io::stdout().lock();
        if self.json {
            let all = json!({
                "loss": score.loss,
                "perplexity": score.perplexity,
                "bits_per_byte": score.bits_per_byte,
                "tokens": score.tokens,
            });
            writeln!(out, "{all}")?;
            return Ok(());
        }
        writeln!(out, "loss           {:.4} nats per token", score.loss)?;
        writeln!(out, "perplexity     {:.4}", score.perplexity)?;
        writeln!(out, "bits per byte  {:.4}", score.bits_per_byte)?;
        writeln!(out, "tokens         {}", score.tokens)?;
        Ok(())
    }
}
