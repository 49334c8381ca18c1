//! `kiln sensitivity`: how much a model minds each layer being coded.

use super::folder::resolve;
use super::quantize::CalibrationText;
use crate::compress::{Calibration, Error, Selection, named, sensitivity};
use crate::exchange::{self, Opened};
use crate::train::Target;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

/// Estimate how much the loss rises with each layer under each scheme, from one gradient over a text.
///
/// The file can be used again for any budget: pass kind `assign_bits` of a recipe.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln sensitivity runs/stories --calibrate stories.txt -o sensitivity.json\n  kiln sensitivity llama --calibrate text.txt --schemes int8,int4-g32,int3-g32 --samples 32"
)]
pub struct SensitivityCommand {
    /// A run folder, a checkpoint, a Hugging Face folder, or a GGUF file of plain floats.
    model: PathBuf,
    #[command(flatten)]
    text: CalibrationText,
    /// Schemes to estimate.
    #[arg(
        long,
        value_name = "NAME,NAME",
        value_delimiter = ',',
        default_value = "int8,int4-g32,int3-g32,int3"
    )]
    schemes: Vec<String>,
    /// Patterns of the names of weights. May be given again.
    #[arg(long, value_name = "PATTERN")]
    targets: Vec<String>,
    /// Patterns of those among them to leave out. May be given again.
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
    /// The file to write.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Print what the file holds.
    #[arg(long)]
    json: bool,
}

impl SensitivityCommand {
    /// Prints the layers, the most sensitive first, and writes the file.
    pub fn run(self) -> anyhow::Result<()> {
        let schemes = self.schemes.iter().map(|name| named(name)).collect::<Result<Vec<_>, _>>()?;
        let folder = resolve(&self.model, false)?;
        let Opened { family, weights, tokenizer } = exchange::open(&folder)?;
        let batches = self.text.windows(&folder, family.as_ref(), tokenizer.as_ref())?;
        if batches.is_empty() {
            return Err(Error::NoCalibration { method: "sensitivity" }.into());
        }
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        let targets = (!self.targets.is_empty()).then_some(self.targets);
        let selection = Selection { targets, ignore: self.ignore };
        let calibration = Calibration {
            family: family.as_ref(),
            weights: &weights,
            target: &target,
            batches: &batches,
            known: None,
        };
        let found = sensitivity(&calibration, &selection, &schemes)?;
        let text = serde_json::to_string_pretty(&found)?;
        if let Some(path) = &self.output {
            crate::formats::write_whole(path, |out| out.write_all(text.as_bytes()))?;
        }
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{text}")?;
            return Ok(());
        }
        let width = found.layers.iter().map(|layer| layer.weight.len()).max().unwrap_or(0).max(6);
        write!(out, "{:width$}  {:>13}", "weight", "out x in")?;
        schemes.iter().try_for_each(|scheme| write!(out, "  {:>10}", scheme.name))?;
        writeln!(out, "   estimated rise of the loss, nats")?;
        let mut layers: Vec<_> = found.layers.iter().collect();
        let worst = |layer: &crate::compress::LayerScore| layer.loss.values().copied().fold(0.0, f64::max);
        layers.sort_by(|a, b| worst(b).total_cmp(&worst(a)));
        for layer in layers {
            write!(out, "{:width$}  {:>13}", layer.weight, format!("{} x {}", layer.rows, layer.cols))?;
            schemes.iter().try_for_each(|scheme| write!(out, "  {:>10.3e}", layer.loss[scheme.name]))?;
            writeln!(out)?;
        }
        write!(out, "{:width$}  {:>13}", "all together", "")?;
        for scheme in &schemes {
            let sum: f64 = found.layers.iter().map(|layer| layer.loss[scheme.name]).sum();
            write!(out, "  {sum:>10.3e}")?;
        }
        Ok(writeln!(out)?)
    }
}
