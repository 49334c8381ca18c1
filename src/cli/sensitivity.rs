//! `kiln sensitivity`: how much a model minds each layer being coded or pruned.

use super::folder::resolve;
use super::quantize::CalibrationText;
use crate::compress::prune::pruning_sensitivity;
use crate::compress::{Calibration, Error, LayerScore, Selection, Sensitivity, named, sensitivity, stages};
use crate::exchange::{self, Opened};
use crate::train::Target;
use clap::Args;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

/// Estimate how much the loss rises with each layer under each scheme, from one gradient over a text; or measure how much it rises with
/// each layer pruned alone, by a sweep over the text for each layer and share.
///
/// The file can be used again for any budget: pass kind `assign_bits` of a recipe, and `kiln prune --sensitivity FILE`. Losses of layers
/// pruned together are no sum of losses of each alone: read them as an order.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln sensitivity runs/stories --calibrate stories.txt -o sensitivity.json\n  kiln sensitivity llama --calibrate text.txt --schemes int8,int4-g32,int3-g32 --samples 32\n  kiln sensitivity runs/stories --prune 0.3,0.5,0.7 --calibrate stories.txt -o pruning.json"
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
    /// Instead of schemes: shares of a layer's weights that go.
    #[arg(long, value_name = "SHARE,SHARE", value_delimiter = ',', conflicts_with = "schemes")]
    prune: Vec<f64>,
    /// With --prune: magnitude, wanda or sparsegpt.
    #[arg(long, value_name = "METHOD", default_value = "magnitude")]
    method: String,
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
        let method = stages::Prune::by(&self.method).method()?;
        if let Some(&got) = self.prune.iter().find(|share| !(0.0..1.0).contains(*share)) {
            let (setting, expected) = ("prune", "shares of 0 or more and less than 1".to_string());
            return Err(Error::Setting { setting, expected, got: got.to_string() }.into());
        }
        let folder = resolve(&self.model, false)?;
        let Opened { family, weights, tokenizer } = exchange::open(&folder)?;
        let batches = self.text.windows(&folder, family.as_ref(), tokenizer.as_ref())?;
        if batches.is_empty() {
            return Err(Error::NoCalibration { method: "sensitivity" }.into());
        }
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        let targets = (!self.targets.is_empty()).then(|| self.targets.clone());
        let selection = Selection { targets, ignore: self.ignore.clone() };
        let calibration = Calibration {
            family: family.as_ref(),
            weights: &weights,
            target: &target,
            batches: &batches,
            known: None,
            memory_bytes: self.text.memory.0,
        };
        let found = match self.prune.is_empty() {
            true => sensitivity(&calibration, &selection, &schemes)?,
            false => {
                let say = |line: &str| eprintln!("{line}");
                pruning_sensitivity(&calibration, &selection, method, &self.prune, &say)?
            }
        };
        let text = serde_json::to_string_pretty(&found)?;
        if let Some(path) = &self.output {
            crate::formats::write_whole(path, |out| out.write_all(text.as_bytes()))?;
        }
        let mut out = std::io::stdout().lock();
        match self.json {
            true => writeln!(out, "{text}")?,
            false => write!(out, "{}", table(&found))?,
        }
        Ok(())
    }
}

/// The layers, the most sensitive first, and the sum over all.
fn table(found: &Sensitivity) -> String {
    let losses = |layer: &LayerScore| -> BTreeMap<String, f64> {
        layer.loss.iter().chain(&layer.pruned).map(|(name, loss)| (name.clone(), *loss)).collect()
    };
    let mut layers: Vec<(&LayerScore, BTreeMap<String, f64>)> =
        found.layers.iter().map(|layer| (layer, losses(layer))).collect();
    let Some(names) = layers.first().map(|(_, losses)| losses.keys().cloned().collect::<Vec<_>>()) else {
        return String::new();
    };
    let worst = |losses: &BTreeMap<String, f64>| losses.values().copied().fold(f64::NEG_INFINITY, f64::max);
    layers.sort_by(|a, b| worst(&b.1).total_cmp(&worst(&a.1)));
    let width = found.layers.iter().map(|layer| layer.weight.len()).max().unwrap_or(0).max(6);
    let what = match &found.pruned_by {
        Some(method) => format!("measured rise of the loss by the share pruned by {method}, nats"),
        None => "estimated rise of the loss, nats".into(),
    };
    let cells = |of: &dyn Fn(&String) -> String| {
        names.iter().map(|name| format!("  {:>10}", of(name))).collect::<String>()
    };
    let mut text =
        format!("{:width$}  {:>13}{}   {what}\n", "weight", "out x in", cells(&|name| name.clone()));
    for (layer, losses) in &layers {
        let size = format!("{} x {}", layer.rows, layer.cols);
        let row = cells(&|name| format!("{:.3e}", losses[name]));
        text += &format!("{:width$}  {size:>13}{row}\n", layer.weight);
    }
    let sum = |name: &String| layers.iter().map(|(_, losses)| losses[name]).sum::<f64>();
    text + &format!("{:width$}  {:>13}{}\n", "all together", "", cells(&|name| format!("{:.3e}", sum(name))))
}
