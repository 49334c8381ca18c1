//! `kiln embed`: texts as vectors.

use super::folder::ModelFolder;
use super::{Usage, count};
use crate::data::text::Text;
use crate::embed::{Embedder, Pooling, Settings};
use crate::formats::Archive;
use crate::tensor::Tensor;
use crate::train::Target;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Make a vector of each text, as sentence-transformers does.
///
/// How tokens' vectors become one follows from the files that sentence-transformers leaves beside a model; where there are none it is
/// their mean, brought to length one. Texts that are too long are cut at their end.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln embed all-MiniLM-L6-v2 --text \"The cat sits on the mat.\" --json\n  kiln embed all-MiniLM-L6-v2 --data sentences.txt -o vectors.safetensors"
)]
pub struct Embed {
    #[command(flatten)]
    folder: ModelFolder,
    /// A text. May be given again.
    #[arg(long, value_name = "TEXT")]
    text: Vec<String>,
    /// A file with a text in each line. May be given again.
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Where the vectors go: a safetensors file with `embeddings`, F32 [texts, channels].
    #[arg(long, short, value_name = "FILE", required_unless_present = "json")]
    output: Option<PathBuf>,
    /// Print {"embeddings": [[..], ..]}.
    #[arg(long)]
    json: bool,
    /// How tokens' vectors become one.
    #[arg(long, value_enum)]
    pool: Option<Pool>,
    /// Leave vectors at the length they have.
    #[arg(long)]
    raw: bool,
    /// Tokens of a text that are read at most.
    #[arg(long, value_name = "TOKENS", value_parser = count)]
    most: Option<usize>,
    /// Texts in one batch.
    #[arg(long, default_value_t = 16, value_parser = count)]
    batch: usize,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
}

/// Ways from tokens' vectors to one.
#[derive(Clone, Copy, ValueEnum)]
enum Pool {
    /// Their mean.
    Mean,
    /// That of the first token.
    First,
    /// What the model's own pooler makes of it.
    Pooler,
}

impl Embed {
    /// Writes or prints the vectors.
    pub fn run(self) -> anyhow::Result<()> {
        let mut texts = self.text.clone();
        if !self.data.is_empty() {
            let text = Text::open(&self.data)?;
            texts.extend(text.contents().lines().map(String::from));
        }
        if texts.is_empty() {
            return Err(Usage(
                "there is no text\n  hint: --text \"..\", or --data FILE with a text in each line".into(),
            )
            .into());
        }
        let model = self.folder.resolve()?;
        let mut settings = Settings::beside(&model)?;
        if let Some(pool) = self.pool {
            settings.pooling = match pool {
                Pool::Mean => Pooling::Mean,
                Pool::First => Pooling::First,
                Pool::Pooler => Pooling::Pooler,
            };
        }
        settings.normalize &= !self.raw;
        settings.most_tokens = self.most.unwrap_or(settings.most_tokens);
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        let batch = self.batch.min(texts.len());
        let mut embedder = Embedder::open(&model, settings, target, batch)?;
        let list: Vec<&str> = texts.iter().map(String::as_str).collect();
        let vectors = embedder.embed(&list)?;
        embedder.target().told().iter().for_each(|report| eprintln!("kernels  {report}"));
        if let Some(path) = &self.output {
            let shape = [vectors.len(), vectors[0].len()];
            Archive::write(path, &[("embeddings", &Tensor::f32(shape, vectors.concat()))])?;
            eprintln!("wrote    {} ({} vectors of {} channels)", path.display(), shape[0], shape[1]);
        }
        if self.json {
            writeln!(std::io::stdout().lock(), "{}", json!({ "embeddings": vectors }))?;
        }
        Ok(())
    }
}
