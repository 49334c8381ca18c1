//! `kiln compress`: a model through the passes of a recipe.

use super::folder::{resolve, weight_bytes};
use super::quantize::{CalibrationText, Format, Output};
use super::train::stop_on_interrupt;
use super::{Usage, mebibytes};
use crate::compress::{
    Done, Entry, Error, Forecast, Pipeline, RECORD_FILE, RECORD_KEY, Recipe, Record, Subject, forecast,
    forward_bytes,
};
use crate::data::windows::Batch;
use crate::exchange::{self, Opened, is_gguf};
use crate::model::Family;
use crate::train::Target;
use anyhow::Context;
use clap::Args;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Compress a model by a recipe: passes over it, in the order written.
///
/// Kinds of passes: drop_layers, prune_structured, smoothquant, awq (these two only move scales, and prove that the model stays what
/// it was), prune, train, quantize, assign_bits. What each pass gave stays in OUTPUT.passes until all are done, so that --resume goes on from there.
#[derive(Args)]
#[command(
    after_help = "A recipe:\n  [calibration]\n  text = [\"stories.txt\"]\n  [[pass]]\n  kind = \"smoothquant\"\n  [[pass]]\n  kind = \"quantize\"\n  scheme = \"W8A8\"\n\nExamples:\n  kiln compress runs/stories -r recipe.toml -o stories-w8a8\n  kiln compress llama -r recipe.toml -o llama.gguf\n  kiln compress llama -r recipe.toml -o smaller --dry-run"
)]
pub struct Compress {
    /// A run folder, a checkpoint, a Hugging Face folder, or a GGUF file.
    model: PathBuf,
    /// The recipe.
    #[arg(short, long, value_name = "FILE")]
    recipe: PathBuf,
    #[command(flatten)]
    how: How,
}

/// How a recipe is applied; the same for every command that does.
#[derive(Args)]
pub struct How {
    /// The folder to write, or the file where the name ends in .gguf.
    #[arg(short, long, value_name = "FOLDER|FILE.gguf")]
    output: PathBuf,
    /// How the folder is written.
    #[arg(long, value_enum, default_value_t = Format::Kiln)]
    format: Format,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Print the passes, what they need, and what would be written; do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Go on behind the passes that an earlier run of this command has finished.
    #[arg(long)]
    resume: bool,
    /// Leave the models between the passes in OUTPUT.passes.
    #[arg(long)]
    keep_passes: bool,
    /// Print the record of all passes as JSON.
    #[arg(long)]
    json: bool,
}

impl Compress {
    /// Applies the passes, writes the model and prints what they did.
    pub fn run(self) -> anyhow::Result<()> {
        let place = self.recipe.display().to_string();
        let text = std::fs::read_to_string(&self.recipe).with_context(|| place.clone())?;
        self.how.apply(&self.model, &Recipe::parse(&place, &text)?)
    }
}

/// A model with what a recipe measures it by.
pub struct Source {
    /// Its folder or file.
    pub folder: PathBuf,
    /// The model.
    pub model: Subject,
    /// Windows of the calibration text; empty where none is needed.
    pub batches: Vec<Batch>,
    target: Target,
}

impl Source {
    /// Opens a model, the recipe's text, and a device where one is needed.
    pub fn open(model: &Path, recipe: &Recipe, device: &str) -> anyhow::Result<Source> {
        let folder = resolve(model, false)?;
        let Opened { family, weights, tokenizer } = exchange::open(&folder)?;
        if recipe.calibrates() && recipe.calibration.text.is_empty() {
            return Err(Error::NoCalibration { method: "this recipe" }.into());
        }
        if let Some(stage) = recipe.stages().find(|s| s.needs().training && !recipe.data.contains_key("text"))
        {
            return Err(Error::NoTraining { stage: stage.kind() }.into());
        }
        let calibration = CalibrationText {
            calibrate: recipe.calibration.text.clone(),
            tokenizer: recipe.calibration.tokenizer.as_ref().map(|spec| spec.parse()).transpose()?,
            samples: recipe.calibration.windows,
            context: recipe.calibration.context,
            memory: recipe.calibration.memory,
        };
        let batches = calibration.windows(&folder, family.as_ref(), tokenizer.as_ref())?;
        // Calculation with weights alone needs no device.
        let target = match batches.is_empty() {
            true => Target::Host,
            false => Target::open_or_host(device, &mut |line| eprintln!("{line}"))?,
        };
        let mut model = Subject::new(family, weights, tokenizer);
        if Record::of_folder(&folder).is_some_and(|record| record.prunes()) {
            model.hold_zeros()?;
        }
        Ok(Source { folder, model, batches, target })
    }

    /// Where texts are run.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// What applies a recipe to it, in a working folder.
    pub fn pipeline<'a>(
        &'a self,
        recipe: &'a Recipe,
        device: &'a str,
        folder: &'a Path,
        stop: &'a AtomicBool,
    ) -> Pipeline<'a> {
        let (target, batches) = (&self.target, &self.batches[..]);
        Pipeline { recipe, target, device, batches, folder, stop, say: &|line| eprintln!("{line}") }
    }
}

/// What a pass will take beside the model, for a plan; of the model as it comes in.
fn memory_of(pass: &Entry, recipe: &Recipe, source: &Source) -> anyhow::Result<Vec<String>> {
    let (subject, batches) = (&source.model, &source.batches[..]);
    let mut lines = vec![];
    if let Entry::Train(train) = pass {
        lines.push(match source.folder.is_dir() {
            true => {
                let memory = train.memory(&source.folder, &recipe.data, &source.target)?;
                format!("trains in up to {} of the device's memory", mebibytes(memory.total()))
            }
            false => "what training takes is told of a model in a folder, not of a GGUF file".into(),
        });
    }
    if pass.stage().needs().calibration {
        let bytes = forward_bytes(subject, batches, &source.target)?;
        lines.push(format!(
            "a window of the text goes through in {} of the device's memory",
            mebibytes(bytes)
        ));
    }
    let budget = recipe.calibration.memory;
    if let Some(Forecast { layers, sweeps, bytes }) = forecast(pass.stage(), subject, batches, budget.0)? {
        let sweeps = if sweeps == 1 { "1 sweep".into() } else { format!("{sweeps} sweeps") };
        let most = mebibytes(bytes);
        lines.push(format!(
            "measures {layers} layers in {sweeps} over the text, up to {most} at once of {budget}"
        ));
    }
    Ok(lines)
}

/// A path with a further ending.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().map_or("output".into(), |name| name.to_string_lossy());
    path.with_file_name(format!("{name}.{ending}"))
}

impl How {
    /// Applies a recipe to a model, or says what would be done.
    pub fn apply(&self, model: &Path, recipe: &Recipe) -> anyhow::Result<()> {
        let output = Output { path: &self.output, format: self.format, from: model };
        output.expect_free()?;
        let passes = beside(&self.output, "passes");
        if passes.exists() && !self.resume && !self.dry_run {
            let text = format!(
                "{} is there, left behind by an earlier run\n  hint: --resume goes on from it; or remove it",
                passes.display()
            );
            return Err(Usage(text).into());
        }
        let stop = stop_on_interrupt()?;
        let device = if self.dry_run { "cpu" } else { &self.device };
        let source = Source::open(model, recipe, device)?;
        let pipeline = source.pipeline(recipe, device, &passes, &stop);
        if self.dry_run {
            let done = if self.resume { pipeline.done(&source.model)? } else { 0 };
            return self.print_plan(recipe, &source, done);
        }
        let before = source.model.weights.count_elements();
        let (made, mut record) = pipeline.run(source.model.copy()?)?;
        record.before = Record::of_folder(&source.folder).map(Box::new);
        let tokenizer = made.tokenizer.as_ref();
        output.write(&source.folder, made.family.as_ref(), &made.weights, tokenizer, Some(&record))?;
        if !self.keep_passes {
            std::fs::remove_dir_all(&passes).with_context(|| passes.display().to_string())?;
        }
        let bytes = [weight_bytes(&source.folder)?, output.bytes()?];
        self.print(&record, made.family.as_ref(), before, bytes)
    }

    fn print_plan(&self, recipe: &Recipe, source: &Source, done: usize) -> anyhow::Result<()> {
        let (subject, batches) = (&source.model, &source.batches);
        let mut out = std::io::stdout().lock();
        let elements = subject.weights.count_elements();
        writeln!(out, "model    {}", subject.family.describe())?;
        writeln!(out, "weights  {elements} elements, {} as f32", mebibytes(4 * elements as u64))?;
        if let Some(first) = batches.first() {
            writeln!(out, "text     {} windows of {} tokens to measure with", batches.len(), first.context)?;
        }
        for (at, stage) in recipe.stages().enumerate() {
            let state = if at < done { "  (done already)" } else { "" };
            let (needs, does) = (stage.needs().words(), stage.order().words());
            writeln!(out, "pass {:<3} {:<14} {does}; needs {needs}{state}", at + 1, stage.kind())?;
            for line in memory_of(&recipe.passes[at], recipe, source)? {
                writeln!(out, "         {line}")?;
            }
        }
        let passes = beside(&self.output, "passes");
        let copies = recipe.passes.len() as u64 * 4 * elements as u64;
        writeln!(out, "between  {}: up to {} until all is done", passes.display(), mebibytes(copies))?;
        writeln!(out, "writes   {}", self.output.display())?;
        write!(out, "\n{}", recipe.to_toml())?;
        Ok(())
    }

    fn print(
        &self,
        record: &Record,
        family: &dyn Family,
        before: usize,
        [bytes_before, bytes]: [u64; 2],
    ) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            let mut all = serde_json::to_value(record)?;
            all["output"] = self.output.display().to_string().into();
            all["bytes"] = bytes.into();
            all["bytes_before"] = bytes_before.into();
            writeln!(out, "{all}")?;
            return Ok(());
        }
        for (at, done) in record.passes.iter().enumerate() {
            let Done { pass, report, .. } = done;
            writeln!(out, "pass {:<3} {pass:<14} {}", at + 1, report.summary)?;
            for note in &report.notes {
                writeln!(out, "{:24}{note}", "")?;
            }
        }
        let after = record.passes.last().map_or(before, |done| done.parameters);
        writeln!(out, "model    {}", family.describe())?;
        if after != before {
            writeln!(out, "weights  {after} of {before} elements")?;
        }
        let place = if is_gguf(&self.output) { RECORD_KEY } else { RECORD_FILE };
        let sizes = format!("{}, where there were {}", mebibytes(bytes), mebibytes(bytes_before));
        writeln!(out, "{} ({sizes}); what was done is in its {place}", self.output.display())?;
        Ok(())
    }
}
