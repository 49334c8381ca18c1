//! `kiln quantize`: a model under a scheme.

use super::folder::{copy_companions, resolve, write_folder};
use super::{Usage, count};
use crate::compress::{
    Gptq, Method, Observer, Outcome, RECORD_KEY, Recipe, Record, Request, Selection, calibration_windows,
    named, quantize,
};
use crate::data::text::Text;
use crate::data::tokenizer::{FILE_NAME, Spec, Tokenizer};
use crate::data::windows::Batch;
use crate::exchange::{self, Opened, Options, export_gguf};
use crate::model::{Convention, Family, WEIGHTS_FILE, Weights};
use crate::train::Target;
use crate::train::recipe::Bytes;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Quantise a model's linear layers: round to nearest, or by a method that a text guides.
///
/// Left as they are, unless --targets says otherwise: the head, and tables that are looked up as well. Where groups do not divide a
/// weight's inputs, the last group of a row is shorter.
#[derive(Args)]
#[command(
    after_help = "Schemes: f32 f16 bf16 int8 int8-asym W8A8 W8A8-static int4-g32 int4-g64 int4-g128 int4-g32-asym int4-g128-asym int4-row int3\n  int3-g32 nf4 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q6_K\n\nExamples:\n  kiln quantize runs/shakespeare --scheme int8 -o shakespeare-int8\n  kiln quantize llama --scheme int4-g128 --method gptq --calibrate a.txt -o l4 --format compressed-tensors\n  kiln quantize runs/stories --scheme Q4_0 -o stories.gguf\n  kiln quantize runs/stories --scheme W8A8 --method smoothquant --calibrate a.txt -o stories-w8a8"
)]
pub struct Quantize {
    /// A run folder, a checkpoint, a Hugging Face folder, or a GGUF file.
    model: PathBuf,
    /// Name of the scheme.
    #[arg(long)]
    scheme: String,
    /// How codes are chosen.
    #[arg(long, value_enum, default_value_t = How::Rtn)]
    method: How,
    #[command(flatten)]
    text: CalibrationText,
    /// Patterns of the names of weights to quantise, `*` for any run of characters. May be given again.
    #[arg(long, value_name = "PATTERN")]
    targets: Vec<String>,
    /// Patterns of those among them to leave as they are. May be given again.
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
    /// gptq: share of the mean of the inner products' diagonal that is added to it.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    damping: f64,
    /// gptq: the inputs with the largest inner products first.
    #[arg(long)]
    act_order: bool,
    /// smoothquant: share of the difficulty that moves from activations to weights.
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    alpha: f32,
    /// W8A8-static: how the range of activations is found.
    #[arg(long, value_enum, default_value_t = Range::Mse)]
    observer: Range,
    /// With --observer percentile: how many of a hundred activations are not clamped.
    #[arg(long, value_name = "PERCENT", default_value_t = 99.99)]
    percentile: f64,
    /// Take the mean change of a layer's output off its bias, where it has one.
    #[arg(long)]
    correct_bias: bool,
    /// The folder to write, or the file where the name ends in .gguf.
    #[arg(short, long, value_name = "FOLDER|FILE.gguf")]
    output: PathBuf,
    /// How the folder is written.
    #[arg(long, value_enum, default_value_t = Format::Kiln)]
    format: Format,
    /// gpu, cpu, an adapter's number, or part of its name: where the text is run.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Print what became of each layer as JSON.
    #[arg(long)]
    json: bool,
}

fn no_tokenizer(model: &Path) -> anyhow::Error {
    anyhow::anyhow!(
        "{} has no tokenizer.json\n  hint: --tokenizer char, if the model knows exactly the characters of the text, or --tokenizer PATH",
        model.display()
    )
}

/// The methods.
#[derive(Clone, Copy, ValueEnum)]
pub enum How {
    /// Round to nearest.
    Rtn,
    /// Make up for each column's error in those to come.
    Gptq,
    /// Scale weights behind large inputs up first.
    Awq,
    /// Scale large activations down first.
    Smoothquant,
}

/// Ranges of activations.
#[derive(Clone, Copy, ValueEnum)]
pub enum Range {
    /// The largest magnitude.
    MinMax,
    /// The magnitude that most do not pass.
    Percentile,
    /// That of the least mean squared error.
    Mse,
}

/// Conventions of a folder.
#[derive(Clone, Copy, ValueEnum)]
pub enum Format {
    /// kiln's own: every scheme, every family.
    Kiln,
    /// That of the compressed-tensors package.
    CompressedTensors,
    /// kiln's own, with zeros left out: a bit for each weight, and those that are not zero. Plain weights lie as compressed-tensors
    /// had them up to 0.12.
    SparseBitmask,
}

impl Quantize {
    /// Writes the folder and prints the layers.
    pub fn run(self) -> anyhow::Result<()> {
        let scheme = named(&self.scheme)?;
        let method = self.method();
        let output = Output { path: &self.output, format: self.format, from: &self.model };
        output.expect_free()?;
        let folder = resolve(&self.model, false)?;
        let Opened { family, weights, tokenizer } = exchange::open(&folder)?;
        let batches = self.text.windows(&folder, family.as_ref(), tokenizer.as_ref())?;
        // Rounding alone needs no device.
        let target = match batches.is_empty() {
            true => Target::Host,
            false => Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?,
        };
        let targets = (!self.targets.is_empty()).then(|| self.targets.clone());
        let selection = Selection { targets, ignore: self.ignore.clone() };
        let request = Request {
            schemes: scheme.into(),
            method,
            selection,
            correct_bias: self.correct_bias,
            observer: self.observer(),
            batches: &batches,
            known: None,
            memory_bytes: self.text.memory.0,
        };
        let (quantised, outcomes) = quantize(family.as_ref(), &weights, &target, &request)?;
        output.write(&folder, family.as_ref(), &quantised, tokenizer.as_ref(), None)?;
        print_outcomes(&outcomes, &weights, &output, self.json)
    }

    fn observer(&self) -> Observer {
        match self.observer {
            Range::MinMax => Observer::MinMax,
            Range::Percentile => Observer::Percentile(self.percentile),
            Range::Mse => Observer::MeanSquare,
        }
    }

    fn method(&self) -> Method {
        match self.method {
            How::Rtn => Method::Nearest,
            How::Gptq => Method::Gptq(Gptq { damping: self.damping, act_order: self.act_order }),
            How::Awq => Method::Awq,
            How::Smoothquant => Method::Smooth { alpha: self.alpha },
        }
    }
}

/// Where a compressed model goes.
pub struct Output<'a> {
    /// Folder, or file whose name ends in .gguf.
    pub path: &'a Path,
    /// How a folder is written.
    pub format: Format,
    /// What it was made of, for its name.
    pub from: &'a Path,
}

impl Output<'_> {
    /// Writes a GGUF file where the output is called so, else a folder.
    pub fn write(
        &self,
        folder: &Path,
        family: &dyn Family,
        weights: &Weights,
        tokenizer: Option<&Tokenizer>,
        record: Option<&Record>,
    ) -> anyhow::Result<()> {
        let convention = match self.format {
            _ if self.is_gguf() => {
                let name = self.from.file_stem().map_or("model".into(), |name| name.to_string_lossy());
                let told = record.map(|record| (RECORD_KEY.to_string(), record.to_json()));
                let texts = told.into_iter().collect();
                let options = Options { name: name.into_owned(), texts, ..Options::default() };
                let exported = export_gguf(self.path, family, weights, tokenizer, &options)?;
                exported.notes.iter().for_each(|note| eprintln!("note     {note}"));
                return Ok(());
            }
            Format::Kiln => Convention::Kiln,
            Format::CompressedTensors => Convention::CompressedTensors,
            Format::SparseBitmask => Convention::Sparse,
        };
        write_folder(self.path, |new| {
            weights.save_as(new, family, convention)?;
            if let Some(record) = record {
                record.write(new)?;
            }
            copy_companions(folder, new)?;
            // A file has none beside it, and that of a base lies in another folder than its adapters.
            match tokenizer.filter(|_| !new.join(FILE_NAME).exists()) {
                Some(tokenizer) => Ok(tokenizer.save(new)?),
                None => Ok(()),
            }
        })
    }

    fn is_gguf(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
    }

    /// Refuses a place where something is.
    pub fn expect_free(&self) -> anyhow::Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let text = format!("{} is there already\n  hint: name a folder that is not", self.path.display());
        Err(Usage(text).into())
    }

    /// Bytes of the file that holds the weights.
    pub fn bytes(&self) -> anyhow::Result<u64> {
        let file = if self.is_gguf() { self.path.to_path_buf() } else { self.path.join(WEIGHTS_FILE) };
        Ok(std::fs::metadata(file)?.len())
    }
}

/// A text that methods measure with.
#[derive(Args)]
pub struct CalibrationText {
    /// File or folder of text to measure with. May be given again.
    #[arg(long, value_name = "PATH")]
    pub calibrate: Vec<PathBuf>,
    /// char (the vocabulary is that of the text), or a tokenizer.json, instead of the model's own.
    #[arg(long, value_name = "char|PATH")]
    pub tokenizer: Option<Spec>,
    /// Windows of the text, evenly spread over it.
    #[arg(long, value_name = "COUNT", default_value_t = 128, value_parser = count)]
    pub samples: usize,
    /// Tokens in a window; at most the model's context.
    #[arg(long, value_name = "COUNT", default_value_t = 512, value_parser = count)]
    pub context: usize,
    /// What is measured for GPTQ, AWQ, Wanda and SparseGPT may take so much at once; what takes more is measured layer by layer.
    #[arg(long, value_name = "SIZE", default_value = "2GiB")]
    pub memory: Bytes,
}

impl CalibrationText {
    /// Makes it the text of a recipe.
    pub fn fill(&self, recipe: &mut Recipe) {
        let text = &mut recipe.calibration;
        text.text = self.calibrate.clone();
        text.tokenizer = self.tokenizer.as_ref().map(ToString::to_string);
        (text.windows, text.context, text.memory) = (self.samples, self.context, self.memory);
    }

    /// Windows of the text; none where there is no text.
    pub fn windows(
        &self,
        model: &Path,
        family: &dyn Family,
        tokenizer: Option<&Tokenizer>,
    ) -> anyhow::Result<Vec<Batch>> {
        if self.calibrate.is_empty() {
            return Ok(vec![]);
        }
        let prepare = |spec: &Spec| Tokenizer::prepare(spec, &Text::open(&self.calibrate)?.contents());
        let named = self.tokenizer.as_ref().map(prepare).transpose()?;
        let tokenizer = named.as_ref().or(tokenizer).ok_or_else(|| no_tokenizer(model))?;
        let context = self.context.min(family.context());
        Ok(calibration_windows(&self.calibrate, tokenizer, context, self.samples)?)
    }
}

/// What became of each layer, as a table or as JSON.
pub fn print_outcomes(
    outcomes: &[Outcome],
    weights: &Weights,
    output: &Output,
    json: bool,
) -> anyhow::Result<()> {
    let elements = |o: &Outcome| (o.rows * o.cols) as f64;
    let quantised: f64 = outcomes.iter().map(elements).sum();
    let bits: f64 = outcomes.iter().map(|o| elements(o) * o.bits_per_weight).sum();
    let all = weights.count_elements() as f64;
    let (of_layers, of_model) = (bits / quantised, (bits + 32.0 * (all - quantised)) / all);
    let bytes = output.bytes()?;
    let mut out = std::io::stdout().lock();
    if json {
        let layer = |o: &Outcome| {
            json!({
                "weight": o.weight, "scheme": o.scheme, "rows": o.rows, "cols": o.cols, "bits_per_weight": o.bits_per_weight,
                "sqnr_db": o.sqnr_db.is_finite().then_some(o.sqnr_db), "output_error": o.output_error, "note": o.note,
            })
        };
        let layers: Vec<_> = outcomes.iter().map(layer).collect();
        let all = json!({
            "output": output.path, "bits_per_weight": of_layers,
            "bits_per_weight_of_model": of_model, "bytes": bytes, "layers": layers,
        });
        writeln!(out, "{all}")?;
        return Ok(());
    }
    let width = outcomes.iter().map(|o| o.weight.len()).max().unwrap_or(0).max(6);
    writeln!(
        out,
        "{:width$}  {:>13}  {:>9}  {:>6}  {:>8}  {:>12}",
        "weight", "out x in", "scheme", "bits", "SQNR dB", "output error"
    )?;
    for o in outcomes {
        let size = format!("{} x {}", o.rows, o.cols);
        let error = o.output_error.map_or("-".to_string(), |error| format!("{error:.3e}"));
        let bits = o.bits_per_weight;
        writeln!(
            out,
            "{:width$}  {size:>13}  {:>9}  {bits:>6.3}  {:>8.2}  {error:>12}  {}",
            o.weight, o.scheme, o.sqnr_db, o.note
        )?;
    }
    writeln!(
        out,
        "\n{} layers at {of_layers:.3} bits per weight; the model at {of_model:.3}",
        outcomes.len()
    )?;
    writeln!(out, "{} ({:.2} MiB)", output.path.display(), bytes as f64 / f64::from(1 << 20))?;
    Ok(())
}
