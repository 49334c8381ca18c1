//! The text that models are compared over, as commands take it.

use super::{Usage, count};
use crate::compare::{Error, spread_evenly};
use crate::data::tokenizer::{Spec, Tokenizer};
use crate::data::windows::Batch;
use crate::evaluate::{Material, Request, material};
use crate::exchange::Opened;
use crate::model::Extent;
use crate::train::Target;
use clap::Args;
use std::path::{Path, PathBuf};

/// Bytes of scores that one batch may give: two models' are held at once.
const SCORE_BYTES: u64 = 64 << 20;

/// Which text.
#[derive(Args)]
pub struct Passage {
    /// File or folder of text. May be given again.
    #[arg(long, value_name = "PATH", required = true)]
    pub data: Vec<PathBuf>,
    /// A safetensors file of window offsets, of which eval_val_offsets are taken.
    #[arg(long, value_name = "FILE")]
    windows: Option<PathBuf>,
    /// With --windows: the last share of the text, in which they lie.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, requires = "windows")]
    validation: f64,
    /// char (the vocabulary is that of the text), or a tokenizer.json, instead of the model's own.
    #[arg(long, value_name = "char|PATH")]
    pub tokenizer: Option<Spec>,
    /// Sequences in one batch; fewer where their scores would take much memory.
    #[arg(long, default_value_t = 8, value_parser = count)]
    batch: usize,
    /// Tokens in one sequence. Absent: the model's context.
    #[arg(long, value_parser = count)]
    pub context: Option<usize>,
    /// Most tokens of the text that are predicted: of a longer one windows spread evenly over it.
    #[arg(long, value_name = "COUNT", default_value_t = 32_768, value_parser = count)]
    tokens: usize,
}

/// The text cut into windows.
pub struct Cut {
    /// Those that are predicted.
    pub batches: Vec<Batch>,
    /// Their sizes.
    pub extent: Extent,
    /// The whole text as tokens.
    pub tokens: std::sync::Arc<[u32]>,
    /// What made tokens of it.
    pub tokenizer: Tokenizer,
    /// Which windows of what, in words.
    pub describe: String,
}

impl Passage {
    /// Refuses what is no model's tokenizer, before anything is read.
    pub fn check(&self) -> anyhow::Result<()> {
        if matches!(self.tokenizer, Some(Spec::BytePair { .. })) {
            let text = "a tokenizer trained on the text is not the model's\n  hint: --tokenizer char, or the path of a tokenizer.json";
            return Err(Usage(text.into()).into());
        }
        Ok(())
    }

    /// Reads the text and cuts it into windows for a model.
    pub fn cut(&self, place: &Path, model: &Opened, target: &Target) -> anyhow::Result<Cut> {
        let family = model.family.as_ref();
        if family.interface().columns > 0 {
            let (expected, got) = ("one of texts".to_string(), family.interface().task.describe());
            return Err(crate::model::Error::Task { expected, got }.into());
        }
        let context = self.context.unwrap_or(family.context()).min(family.context());
        let row_bytes = 4 * (context * family.vocabulary()) as u64;
        let most = SCORE_BYTES.min(target.caps().max_binding_bytes / 2) / row_bytes;
        let request = Request {
            model: place.to_path_buf(),
            text: self.data.clone(),
            tokenizer: self.tokenizer.clone(),
            windows: self.windows.clone(),
            validation: self.validation,
            batch: self.batch.min(most.max(1) as usize),
            context: self.context,
        };
        let Material { part, batches, extent, tokenizer } =
            material(family, model.tokenizer.as_ref(), &request)?;
        if part.tokens.len() <= context {
            return Err(Error::ShortText { expected: context + 1, got: part.tokens.len() }.into());
        }
        let all: usize = batches.iter().map(Batch::counted).sum();
        let batches = spread_evenly(batches, self.tokens);
        let some: usize = batches.iter().map(Batch::counted).sum();
        let names: Vec<String> = self.data.iter().map(|path| path.display().to_string()).collect();
        let share = match (&self.windows, some == all) {
            (Some(file), true) => format!("{all} tokens in the windows of {}", file.display()),
            (_, true) => format!("all {all} tokens"),
            (_, false) => format!("{some} of {all} tokens, spread evenly"),
        };
        let describe = format!("{}: {share}, in windows of {context}", names.join(", "));
        Ok(Cut { batches, extent, tokens: part.tokens.all().into(), tokenizer, describe })
    }
}
