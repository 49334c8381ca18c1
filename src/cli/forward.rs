//! `kiln forward`: one batch through a model, to be held against another framework's.

use super::Usage;
use super::folder::ModelFolder;
use crate::deploy::{Outcome, forward};
use crate::exchange;
use crate::formats::Archive;
use crate::model::Inputs;
use crate::tensor::{DType, Tensor};
use crate::train::Target;
use anyhow::Context;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// Run one batch through a model and write scores, loss and hidden states, and the gradients if asked for.
///
/// The batch is a safetensors file of whole numbers under the names that transformers has: input_ids, attention_mask, token_type_ids,
/// labels, decoder_input_ids, decoder_attention_mask, as the model reads them; and floats, input_features, for one that hears. The
/// results have the names that transformers has, too: logits, loss, hidden_states.0 .. [B, T, C]; last_hidden_state and pooler_output
/// of an encoder without a head; encoder_hidden_states and decoder_hidden_states. A causal model's labels are shifted by one inside,
/// and labels of -100 do not count. Dropout is off.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln forward --model llama --inputs batch.safetensors --output out.safetensors\n  kiln forward bert --inputs b.safetensors -o out.safetensors --gradients g.safetensors"
)]
pub struct Forward {
    #[command(flatten)]
    folder: ModelFolder,
    /// The batch: a safetensors file.
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// What stands before the names of the batch's tensors in the file; other tensors there are passed over.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Where the results go: a safetensors file.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Where the gradient of the loss by each parameter goes.
    #[arg(long, value_name = "FILE")]
    gradients: Option<PathBuf>,
    /// How activations are stored.
    #[arg(long, value_enum, default_value_t = Storage::F32)]
    precision: Storage,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
}

/// Storage types of activations.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Storage {
    /// 32 bits.
    F32,
    /// 16 bits, with sums in 32.
    F16,
    /// The operands of matmuls in 16 bits, all else in 32.
    Bf16,
}

impl Storage {
    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            Storage::F32 => DType::F32,
            Storage::F16 => DType::F16,
            Storage::Bf16 => DType::BF16,
        }
    }
}

impl Forward {
    /// Runs the batch and writes the files.
    pub fn run(self) -> anyhow::Result<()> {
        let model = self.folder.resolve()?;
        let mut opened = exchange::open_model(&model)?;
        opened.family.set_dropout(0.0);
        let archive = Archive::open(&self.inputs)?;
        let inputs = Inputs::read(&archive, &self.prefix, opened.family.as_ref())
            .with_context(|| self.inputs.display().to_string())?;
        if self.gradients.is_some() && !inputs.has_labels() {
            let text = format!("--gradients needs `{}labels` in {}", self.prefix, self.inputs.display());
            return Err(Usage(text).into());
        }
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        eprintln!("model    {}", opened.family.describe());
        let (family, weights) = (opened.family.as_ref(), &opened.weights);
        let precision = self.precision.dtype();
        let Outcome { results, gradients } =
            forward(family, weights, &inputs, &target, precision, self.gradients.is_some())?;
        target.told().iter().for_each(|report| eprintln!("kernels  {report}"));
        write(&self.output, &results)?;
        match &self.gradients {
            Some(path) => write(path, &gradients),
            None => Ok(()),
        }
    }
}

fn write(path: &Path, tensors: &[(String, Tensor)]) -> anyhow::Result<()> {
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    Archive::write(path, &named)?;
    eprintln!("wrote    {} ({} tensors)", path.display(), tensors.len());
    Ok(())
}
