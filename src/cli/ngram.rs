//! `kiln ngram`: models of runs of tokens, as a yardstick.

use super::Usage;
use super::folder::write_folder;
use super::quantize::{Format, Output};
use crate::data::sampling::{Sampling, sample};
use crate::data::store::Part;
use crate::data::text::Text;
use crate::data::tokenizer::{Spec, Tokenizer};
use crate::evaluate::Score;
use crate::ngram::{Model, Smoothing, is_ngram, write_arpa};
use crate::tensor::random::Stream;
use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Statistics of runs of tokens as a language model: a yardstick that needs no device and seconds to make.
#[derive(Args)]
pub struct Ngram {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Count the runs of a text.
    ///
    /// The folder is a model for `kiln evaluate` and `kiln generate`. A text is one run of tokens, not cut into sentences.
    #[command(
        after_help = "Examples:\n  kiln ngram train --data input.txt --order 5 -o counted\n  kiln ngram train --data input.txt --tokenizer runs/shakespeare --smoothing kneser-ney -o counted\n  kiln ngram train --data input.txt --smoothing add-k --k 0.01 -o counted\n  kiln evaluate counted runs/shakespeare --data unseen.txt"
    )]
    Train(Train),
    /// Write a model by Kneser-Ney or Katz as an ARPA file, for KenLM and SRILM.
    #[command(after_help = "Examples:\n  kiln ngram arpa counted -o counted.arpa")]
    Arpa(Arpa),
}

#[derive(Args)]
struct Train {
    /// File or folder of text. May be given again.
    #[arg(long, value_name = "PATH", required = true)]
    data: Vec<PathBuf>,
    /// char, bpe:4096 (trained on the text), or a tokenizer.json or a folder that has one.
    #[arg(long, value_name = "char|bpe:COUNT|PATH", default_value = "char")]
    tokenizer: Spec,
    /// Tokens of the longest runs: those before a token that count, and one.
    #[arg(long, default_value_t = 5)]
    order: usize,
    /// What is taken from runs that were seen for those that were not.
    #[arg(long, value_enum, default_value_t = Kind::ModifiedKneserNey)]
    smoothing: Kind,
    /// add-k: what is added to each count.
    #[arg(long, value_name = "NUMBER", default_value_t = 0.01)]
    k: f64,
    /// kneser-ney: what is taken of each count; absent: found by the runs that occur once and twice.
    #[arg(long, value_name = "NUMBER")]
    discount: Option<f64>,
    /// stupid-backoff: factor of each step back.
    #[arg(long, value_name = "NUMBER", default_value_t = 0.4)]
    factor: f64,
    /// The new folder.
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
}

#[derive(Args)]
struct Arpa {
    /// A folder of `kiln ngram train`.
    model: PathBuf,
    /// The new file.
    #[arg(short, long, value_name = "FILE.arpa")]
    output: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// A number is added to every count.
    AddK,
    /// Interpolated, one discount for each length.
    KneserNey,
    /// Interpolated, three discounts for each length.
    ModifiedKneserNey,
    /// Falls back to shorter runs only where the longer one was not seen; Good and Turing's discounts.
    Katz,
    /// The longest run that was seen; scores that do not sum to one.
    StupidBackoff,
}

impl Ngram {
    /// Counts, or writes what was counted.
    pub fn run(self) -> anyhow::Result<()> {
        match self.task {
            Task::Train(train) => train.run(),
            Task::Arpa(Arpa { model, output }) => {
                Output { path: &output, format: Format::Kiln, from: &output }.expect_free()?;
                let (model, tokenizer) = open(&model)?;
                write_arpa(&output, &model, &tokenizer)?;
                println!("{}", output.display());
                Ok(())
            }
        }
    }
}

impl Train {
    fn run(self) -> anyhow::Result<()> {
        let smoothing = match self.smoothing {
            Kind::AddK => Smoothing::AddK { k: self.k },
            Kind::KneserNey => Smoothing::KneserNey { discount: self.discount },
            Kind::ModifiedKneserNey => Smoothing::ModifiedKneserNey,
            Kind::Katz => Smoothing::Katz,
            Kind::StupidBackoff => Smoothing::StupidBackoff { factor: self.factor },
        };
        Output { path: &self.output, format: Format::Kiln, from: &self.output }.expect_free()?;
        let text = Text::open(&self.data)?;
        let text = text.contents();
        let tokenizer = Tokenizer::prepare(&self.tokenizer, &text)?;
        let start = Instant::now();
        let tokens = tokenizer.encode(&text)?;
        let model = Model::train(&tokens, tokenizer.vocabulary_size(), self.order, smoothing)?;
        let seconds = start.elapsed().as_secs_f64();
        write_folder(&self.output, |new| Ok(model.save(new, &tokenizer)?))?;
        let runs: Vec<String> =
            model.trie().levels.iter().map(|level| level.tokens.len().to_string()).collect();
        println!("text     {} tokens of {}, {} bytes", tokens.len(), model.vocabulary(), text.len());
        println!("runs     {} (of 1 to {} tokens)", runs.join(", "), model.order());
        println!(
            "memory   {} of tables, counted in {seconds:.1} s",
            super::mebibytes(model.size_bytes() as u64)
        );
        println!("by       {}", model.smoothing().describe());
        println!("{}", self.output.display());
        Ok(())
    }
}

fn open(folder: &Path) -> anyhow::Result<(Model, Tokenizer)> {
    if !is_ngram(folder) {
        let text = format!("{} is no model of `kiln ngram train`", folder.display());
        return Err(Usage(text).into());
    }
    Ok(Model::load(folder)?)
}

/// How well a model of runs predicts a text, counted as for other models: every token but the first, the tokenizer's opening before.
pub fn score(folder: &Path, data: &[PathBuf]) -> anyhow::Result<Score> {
    let (model, tokenizer) = open(folder)?;
    if !model.smoothing().sums_to_one() {
        eprintln!(
            "note     the scores of {} do not sum to one, so its loss is none in earnest",
            folder.display()
        );
    }
    let text = Text::open(data)?;
    let part = Part::of(&text.contents(), &tokenizer)?;
    let (loss, tokens) = model.loss(&[&tokenizer.opening()?[..], &part.tokens.all()].concat())?;
    let bytes_per_token = part.bytes as f64 / part.tokens.len() as f64;
    Ok(Score::new(loss, tokens, bytes_per_token, None))
}

/// Continues a prompt token by token, until `show` has had enough.
pub fn write(
    model: &Model,
    prompt: &[u32],
    count: usize,
    sampling: &Sampling,
    show: &mut dyn FnMut(u32) -> bool,
) -> anyhow::Result<Vec<u32>> {
    if let Some(token) = prompt.iter().find(|&&token| token as usize >= model.vocabulary()) {
        bail!("the prompt has token {token}, the model knows {}", model.vocabulary());
    }
    let mut random = Stream::new(&[sampling.seed as u32, (sampling.seed >> 32) as u32, 0x5a3]);
    let (mut tokens, mut written) = (prompt.to_vec(), vec![]);
    for _ in 0..count {
        let scores: Vec<f32> = model.distribution(&tokens).into_iter().map(|p| p.ln() as f32).collect();
        let token = sample(&scores, sampling, &mut random);
        if !show(token) {
            break;
        }
        tokens.push(token);
        written.push(token);
    }
    Ok(written)
}
