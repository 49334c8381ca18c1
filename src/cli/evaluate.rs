//! `kiln evaluate`: how well a model predicts a text.

use super::classify::ColumnNames;
use super::folder::{Beside, ModelFolder, open_head, resolve};
use super::{Usage, count, ngram, task};
use crate::data::tokenizer::Spec;
use crate::data::{labelled, similar, tagged};
use crate::embed::{Embedder, Settings};
use crate::evaluate::{
    Asked, Classifier, Request, RowClassifier, Score, Written, evaluate_second, evaluate_with,
};
use crate::exchange::{Opened, open_to_run};
use crate::model::Task;
use crate::ngram::is_ngram;
use crate::train::Target;
use crate::train::lesson::{Classes, Scores};
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Measure how well a model predicts a text: loss, perplexity, bits per byte; or how often a classifier is right.
///
/// Of a classifier the files are examples as in training, and printed are loss, accuracy and F1, or what suits its labels. Of an
/// encoder-decoder they are pairs (.tsv, .jsonl), or text that is damaged as its paper says; of an encoder texts that are alike, of
/// which each is to be found among --batch of them, with correlations where rows have a `score`.
/// Every token of the text but the first is predicted once, in stretches of the context. With --windows only the windows at
/// eval_val_offsets of the validation part are. Several models are measured one after the other and shown beside each other; one
/// of them may be a model of runs (`kiln ngram`).
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln evaluate runs/shakespeare --data unseen.txt\n  kiln evaluate runs/shakespeare --best --data unseen.txt --json\n  kiln evaluate runs/small runs/large counted --data unseen.txt\n  kiln evaluate smollm --adapter style --data unseen.txt\n  kiln evaluate runs/reviews --data unseen.tsv --json\n  kiln evaluate runs/t5 --data pairs.tsv\n  kiln evaluate all-MiniLM-L6-v2 --data alike.tsv --batch 32\n  kiln evaluate runs/f32 runs/int8 --task questions.toml --json\n  kiln evaluate runs/several --task topics --data unseen.tsv\n  kiln evaluate init --tokenizer char --data input.txt --windows batches.safetensors"
)]
pub struct Evaluate {
    #[command(flatten)]
    folder: ModelFolder,
    /// Further models, to be shown beside the first one.
    #[arg(value_name = "MODEL")]
    others: Vec<PathBuf>,
    #[command(flatten)]
    beside: Beside,
    /// File or folder of text. May be given again.
    #[arg(long, value_name = "PATH")]
    data: Vec<PathBuf>,
    /// Put the task of this TOML file to the models instead: perplexity in overlapping windows, multiple-choice, generation,
    /// classification or qa. Differences from the first model come with a p-value. Or, of a run of several tasks, the name of the one
    /// whose head is measured over --data.
    #[arg(long, value_name = "FILE.toml|NAME")]
    task: Option<PathBuf>,
    /// With --task: rows that are asked at most.
    #[arg(long, value_name = "COUNT", requires = "task", value_parser = count)]
    limit: Option<usize>,
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
    /// Print {"loss", "perplexity", "bits_per_byte", "tokens", "standard_errors"}, the last from how batches differ, null of one alone; of a classifier {"loss", "examples"} and its other figures.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    columns: ColumnNames,
}

impl Evaluate {
    /// Prints the figures.
    pub fn run(self) -> anyhow::Result<()> {
        if matches!(self.tokenizer, Some(Spec::BytePair { .. })) {
            let text = "a tokenizer trained on the text is not the model's\n  hint: --tokenizer char, or the path of a tokenizer.json";
            return Err(Usage(text.into()).into());
        }
        let questions = self.questions()?;
        let first = self.folder.resolve()?;
        let adapters = self.beside.resolve()?;
        if let Some(task) = questions {
            let mut models = vec![(self.folder.given().to_path_buf(), first, adapters)];
            for given in &self.others {
                models.push((given.clone(), resolve(given, false)?, vec![]));
            }
            let (limit, batch, device, as_json) = (self.limit, self.batch, &self.device, self.json);
            return task::run(&task::Asked { task, limit, models, batch, device, as_json });
        }
        if self.others.is_empty() && !is_ngram(&first) {
            let opened = open_head(&first, self.head(), &adapters)?;
            return match (Classes::of(opened.family.as_ref()), opened.family.interface().task) {
                (Some(_), _) => self.classify(opened, &first),
                (None, Task::SecondText) => self.second(&opened, &first),
                (None, Task::States) if self.head().is_some() => {
                    let text =
                        "vectors are measured of a folder\n  hint: kiln export --task makes one of this task";
                    Err(Usage(text.into()).into())
                }
                (None, Task::States) => self.alike(&first, &adapters),
                (None, _) => show(&self.score_opened(opened, &first)?, self.json),
            };
        }
        if self.head().is_some() {
            let text = "--task NAME measures one model\n  hint: kiln export --task makes a folder that stands beside others";
            return Err(Usage(text.into()).into());
        }
        if self.others.is_empty() {
            return show(&self.score(&first, &adapters)?, self.json);
        }
        let mut rows = vec![(self.folder.given().to_path_buf(), self.score(&first, &adapters)?)];
        for given in &self.others {
            rows.push((given.clone(), self.score(&resolve(given, false)?, &[])?));
        }
        compare(&rows, self.json)
    }

    /// The file of --task, if it is one; what does not go with it is refused, and what is needed without it is asked for.
    fn questions(&self) -> anyhow::Result<Option<&Path>> {
        let Some(file) = self.task.as_deref().filter(|task| is_file(task)) else {
            if self.data.is_empty() {
                return Err(Usage("there is nothing to measure by\n  hint: --data FILE".into()).into());
            }
            if self.limit.is_some() {
                return Err(Usage("--limit is for --task FILE.toml".into()).into());
            }
            return Ok(None);
        };
        let given = [
            ("--data", !self.data.is_empty()),
            ("--windows", self.windows.is_some()),
            ("--tokenizer", self.tokenizer.is_some()),
            ("--context", self.context.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((flag, _)) => {
                Err(Usage(format!("{flag} does not go with --task FILE.toml, which names its own")).into())
            }
            None => Ok(Some(file)),
        }
    }

    /// The task of a run of several, if --task names one.
    fn head(&self) -> Option<&str> {
        self.task.as_deref().filter(|task| !is_file(task)).and_then(Path::to_str)
    }

    fn score(&self, model: &Path, adapters: &[PathBuf]) -> anyhow::Result<Score> {
        if is_ngram(model) {
            let given = [
                ("--windows", self.windows.is_some()),
                ("--tokenizer", self.tokenizer.is_some()),
                ("--adapter", !adapters.is_empty()),
            ];
            if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
                let text = format!(
                    "{flag} is not for a model of runs\n  hint: it has a tokenizer of its own and reads the whole text"
                );
                return Err(Usage(text).into());
            }
            return ngram::score(model, &self.data);
        }
        self.score_opened(open_to_run(model, adapters)?, model)
    }

    fn score_opened(&self, opened: Opened, model: &Path) -> anyhow::Result<Score> {
        let Opened { family, weights, tokenizer } = opened;
        let request = Request {
            model: model.to_path_buf(),
            text: self.data.clone(),
            tokenizer: self.tokenizer.clone(),
            windows: self.windows.clone(),
            validation: self.validation,
            batch: self.batch,
            context: self.context,
        };
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        let score = evaluate_with(family.as_ref(), &weights, tokenizer.as_ref(), &request, &target)?;
        target.told().iter().for_each(|report| eprintln!("kernels  {report}"));
        Ok(score)
    }

    /// Prints the figures of an encoder-decoder.
    fn second(&self, opened: &Opened, model: &Path) -> anyhow::Result<()> {
        self.refuse_of_text("an encoder-decoder")?;
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        let asked = Asked { files: &self.data, batch: self.batch, context: self.context };
        let written = evaluate_second(opened, model, &asked, &target)?;
        target.told().iter().for_each(|report| eprintln!("kernels  {report}"));
        if written.cut > 0 {
            let Written { cut, examples, .. } = written;
            eprintln!("cut      {cut} of {examples} pairs are longer than what is read, and lose their ends");
        }
        let Written { loss, perplexity, tokens, examples, .. } = written;
        let mut out = std::io::stdout().lock();
        if self.json {
            let all =
                json!({ "loss": loss, "perplexity": perplexity, "tokens": tokens, "examples": examples });
            writeln!(out, "{all}")?;
            return Ok(());
        }
        writeln!(out, "loss           {loss:.4} nats per token")?;
        writeln!(out, "perplexity     {perplexity:.4}")?;
        writeln!(out, "tokens         {tokens}")?;
        writeln!(out, "examples       {examples}")?;
        Ok(())
    }

    /// Prints how well an encoder's vectors tell texts that are alike from others.
    fn alike(&self, model: &Path, adapters: &[PathBuf]) -> anyhow::Result<()> {
        self.refuse_of_text("an encoder")?;
        if !adapters.is_empty() {
            return Err(
                Usage("--adapter is not for vectors\n  hint: merge it: kiln adapter merge".into()).into()
            );
        }
        let rows = similar::read(&self.data, &self.columns.columns())?;
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        let mut settings = Settings::beside(model)?;
        settings.most_tokens =
            self.context.map_or(settings.most_tokens, |most| most.min(settings.most_tokens));
        let mut embedder = Embedder::open(model, settings, target, self.batch)?;
        let scores = embedder.measure(&rows, self.batch)?;
        embedder.target().told().iter().for_each(|report| eprintln!("kernels  {report}"));
        self.print(&scores)
    }

    /// Refuses what is for models that predict text.
    fn refuse_of_text(&self, what: &str) -> anyhow::Result<()> {
        match self.windows.is_some() || self.tokenizer.is_some() {
            true => {
                let text =
                    format!("--windows and --tokenizer are for models that continue text, this is {what}");
                Err(Usage(text).into())
            }
            false => Ok(()),
        }
    }

    /// Prints the figures of a model that classifies.
    fn classify(self, opened: Opened, model: &Path) -> anyhow::Result<()> {
        if self.windows.is_some() || self.tokenizer.is_some() {
            return Err(Usage("--windows and --tokenizer are for models that predict text".into()).into());
        }
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        if RowClassifier::is_for(&opened) {
            let mut classifier = RowClassifier::new(opened, target, self.batch)?;
            let scores =
                classifier.measure(&classifier.read(&self.data, &self.columns.columns(), true)?)?;
            classifier.target().told().iter().for_each(|report| eprintln!("kernels  {report}"));
            return self.print(&scores);
        }
        let mut classifier = Classifier::new(opened, model, target, self.batch, self.context)?;
        let scores = match classifier.tags() {
            true => classifier.measure_tags(&tagged::read(&self.data, true)?)?,
            false => classifier.measure(&labelled::read(&self.data, &self.columns.columns(), true)?)?,
        };
        classifier.target().told().iter().for_each(|report| eprintln!("kernels  {report}"));
        self.print(&scores)
    }

    fn print(&self, scores: &Scores) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            let mut all = serde_json::Map::new();
            all.insert("loss".into(), json!(scores.loss));
            all.insert("examples".into(), json!(scores.examples));
            all.extend(scores.figures.iter().map(|(name, figure)| (name.to_string(), json!(figure))));
            writeln!(out, "{}", serde_json::Value::Object(all))?;
            return Ok(());
        }
        writeln!(out, "{:<20}{:.4}", "loss", scores.loss)?;
        for (name, figure) in &scores.figures {
            writeln!(out, "{:<20}{figure:.4}", name.replace('_', " "))?;
        }
        writeln!(out, "{:<20}{}", "examples", scores.examples)?;
        Ok(())
    }
}

/// True for what names a file of questions and not a task of a run: such names have no point and no folder.
fn is_file(task: &Path) -> bool {
    task.is_file() || task.extension().is_some() || task.components().count() > 1
}

fn figures(score: &Score) -> serde_json::Value {
    json!({
        "loss": score.loss,
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
        "tokens": score.tokens,
        "standard_errors": score.errors().map(|[loss, perplexity, bits_per_byte]| {
            json!({ "loss": loss, "perplexity": perplexity, "bits_per_byte": bits_per_byte })
        }),
    })
}

fn show(score: &Score, as_json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if as_json {
        writeln!(out, "{}", figures(score))?;
        return Ok(());
    }
    let errors = score.errors().map(|errors| errors.map(|error| format!(" ± {error:.4}")));
    let [loss, perplexity, bits] = errors.unwrap_or_default();
    writeln!(out, "loss           {:.4}{loss} nats per token", score.loss)?;
    writeln!(out, "perplexity     {:.4}{perplexity}", score.perplexity)?;
    writeln!(out, "bits per byte  {:.4}{bits}", score.bits_per_byte)?;
    writeln!(out, "tokens         {}", score.tokens)?;
    Ok(())
}

/// Several models in a table. Only bits per byte compare models whose tokens differ.
fn compare(rows: &[(PathBuf, Score)], as_json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if as_json {
        let row = |(model, score): &(PathBuf, Score)| {
            let mut row = figures(score);
            row["model"] = json!(model);
            row
        };
        writeln!(out, "{}", json!({ "models": rows.iter().map(row).collect::<Vec<_>>() }))?;
        return Ok(());
    }
    let width = rows.iter().map(|(model, _)| model.display().to_string().len()).max().unwrap_or(0).max(5);
    writeln!(
        out,
        "{:width$}  {:>8}  {:>12}  {:>13}  {:>9}",
        "model", "loss", "perplexity", "bits per byte", "tokens"
    )?;
    for (model, score) in rows {
        let Score { loss, perplexity, bits_per_byte, tokens, .. } = score;
        let model = model.display().to_string();
        writeln!(out, "{model:width$}  {loss:>8.4}  {perplexity:>12.4}  {bits_per_byte:>13.4}  {tokens:>9}")?;
    }
    Ok(())
}
