//! `kiln compare`: what each way to quantise a model costs and buys on this device.

pub(super) mod chart;
pub(super) mod page;
mod report;
pub(super) mod speed;
pub(super) mod table;
mod training;
mod verdict;

use self::report::{Case, Entry, Report, date_of};
use self::speed::Course;
use self::verdict::Place;
use super::bench::{Roofs, device_json, load};
use super::folder::resolve;
use super::passage::{Cut, Passage};
use super::quantize::How;
use super::{Usage, count};
use crate::compare::{Apart, Model, Reference, Scored};
use crate::compress::{
    self, Form, Gptq, MEMORY_BYTES, Method, Named, Observer, Outcome, Request, Selection,
    calibration_windows, named, quantize,
};
use crate::data::windows::Batch;
use crate::deploy::Deployment;
use crate::exchange::{self, Opened, is_gguf};
use crate::model::Weights;
use crate::train::Target;
use anyhow::Context;
use clap::Args;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What choosing kernels had to tell, each once.
pub type Reports = BTreeSet<String>;

/// Quantise a model in several ways and measure each on this device: bits, bytes, memory, perplexity, divergence from f32,
/// prefill and decode speed.
///
/// Speeds are taken in turn, round by round, so that what else the machine does meets all schemes alike; "x f32" compares within
/// a round. The first scheme is always f32. Left as they are, unless --targets says otherwise: the head, and tables that are looked
/// up as well. A scheme that cannot be made of this model is a row that says why.
#[derive(Args)]
#[command(
    after_help = "Schemes: f32 f16 bf16 int8 int8-asym W8A8 int4-g32 int4-g64 int4-g128 int4-g32-asym int4-g128-asym int4-row int3\n  int3-g32 nf4 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q6_K\n\nExamples:\n  kiln compare runs/shakespeare --data unseen.txt -o report.html\n  kiln compare llama --data unseen.txt --method gptq --calibrate text.txt --json\n  kiln compare runs/stories --data stories.txt --training"
)]
pub struct Compare {
    /// A run folder, a checkpoint, a Hugging Face folder, or a GGUF file, not quantised.
    model: PathBuf,
    #[command(flatten)]
    passage: Passage,
    /// Names of schemes; f32 comes first whether named or not.
    #[arg(
        long,
        value_name = "NAME,NAME",
        value_delimiter = ',',
        default_value = "f32,f16,int8,W8A8,int4-g32"
    )]
    schemes: Vec<String>,
    /// How codes are chosen; schemes that the method cannot make are rounded to nearest, and their rows say so.
    #[arg(long, value_enum, default_value_t = How::Rtn)]
    method: How,
    /// File or folder of text that the methods but rtn need. May be given again.
    #[arg(long, value_name = "PATH")]
    calibrate: Vec<PathBuf>,
    /// Windows of the text to calibrate with.
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = count)]
    samples: usize,
    /// Patterns of the names of weights to quantise, `*` for any run of characters. May be given again.
    #[arg(long, value_name = "PATTERN")]
    targets: Vec<String>,
    /// Patterns of those among them to leave as they are. May be given again.
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
    /// Rounds in which speeds are taken.
    #[arg(long, value_name = "COUNT", default_value_t = 9, value_parser = count)]
    rounds: usize,
    /// Train the model for a few steps in f32, f16, bf16 and with int8 products as well.
    #[arg(long)]
    training: bool,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Write a page in HTML, whole in one file, to this place as well.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A scheme with its weights, before speeds are taken.
struct Made {
    method: &'static str,
    weights: Weights,
    outcomes: Vec<Outcome>,
    apart: Apart,
}

impl Compare {
    /// Measures, prints and writes the page.
    pub fn run(self) -> anyhow::Result<()> {
        let schemes = self.chosen()?;
        self.passage.check()?;
        if let Some(path) = &self.output {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            if path.is_dir() || parent.is_some_and(|parent| !parent.is_dir()) {
                let text = format!(
                    "{} cannot be written\n  hint: -o names a file in a folder that is there",
                    path.display()
                );
                return Err(Usage(text).into());
            }
        }
        let folder = resolve(&self.model, false)?;
        if self.training && is_gguf(&folder) {
            return Err(
                Usage("--training needs a folder\n  hint: a GGUF file cannot be trained".into()).into()
            );
        }
        let model = exchange::open(&folder)?;
        if let Some((name, _)) = model.weights.stored().next() {
            return Err(compress::Error::AlreadyQuantised { name: name.to_string() }.into());
        }
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        let cut = self.passage.cut(&folder, &model, &target)?;
        let calibration = match self.calibrate.is_empty() {
            true => vec![],
            false => calibration_windows(&self.calibrate, &cut.tokenizer, cut.extent.context, self.samples)?,
        };
        let load = load();
        let mut roofs = Roofs::of(&target)?;
        let mut told = Reports::new();
        let made = self.make(&schemes, &model, &target, &cut, &calibration)?;
        target.told().iter().for_each(|report| eprintln!("kernels  {report}"));
        let course = Course::new(&cut.tokens, cut.extent.context, self.rounds);
        let training = match self.training {
            true => {
                eprintln!("training");
                let rounds = self.rounds.min(9);
                Some(training::measure(&folder, &model, &cut.tokens, cut.extent, rounds, &target, &mut told)?)
            }
            false => None,
        };
        let (entries, drift) = timed(made, &model, &target, &course, &mut roofs, &mut told)?;
        let notes: Vec<String> = drift.into_iter().chain(told).collect();
        let report = Report {
            model: folder,
            design: model.family.describe(),
            device: device_json(&target),
            device_words: target.describe(),
            place: place_of(&target),
            roofs,
            text: cut.describe,
            course: course.describe(),
            date: date_of(SystemTime::now()),
            load,
            entries,
            training,
            notes,
        };
        if let Some(path) = &self.output {
            write_whole(path, &page::html(&report))?;
            eprintln!("page     {}", path.display());
        }
        let mut out = std::io::stdout().lock();
        match self.json {
            true => writeln!(out, "{:#}", table::json(&report))?,
            false => write!(out, "{}", table::text(&report))?,
        }
        Ok(())
    }

    /// f32, then the schemes that were named, each once.
    fn chosen(&self) -> anyhow::Result<Vec<Named>> {
        let mut schemes = vec![named("f32")?];
        for name in &self.schemes {
            let scheme = named(name.trim())?;
            if !schemes.contains(&scheme) {
                schemes.push(scheme);
            }
        }
        Ok(schemes)
    }

    /// The method for a scheme: blocks and floats have no codes to choose.
    fn method(&self, scheme: &Named) -> Method {
        let chooses = match scheme.form {
            Form::Codes { scheme, .. } => !scheme.double || !matches!(self.method, How::Gptq),
            _ => false,
        };
        match self.method {
            How::Gptq if chooses => Method::Gptq(Gptq { damping: 0.01, act_order: false }),
            How::Awq if chooses => Method::Awq,
            How::Smoothquant if chooses => Method::Smooth { alpha: 0.5 },
            _ => Method::Nearest,
        }
    }

    /// Makes each scheme and holds it against f32.
    fn make(
        &self,
        schemes: &[Named],
        model: &Opened,
        target: &Target,
        cut: &Cut,
        calibration: &[Batch],
    ) -> anyhow::Result<Vec<(Named, Result<Made, String>)>> {
        let family = model.family.as_ref();
        let scored = Scored::new(Model { family, weights: &model.weights }, target, cut.extent)?;
        let mut reference = Reference::new(scored, &cut.batches);
        let mut all = vec![];
        for &scheme in schemes {
            eprintln!("{}: quantising and comparing", scheme.name);
            let method = self.method(&scheme);
            // Without codes to choose the text to calibrate with has nothing to say.
            let batches = if method.calibrates() || scheme.measures() || self.calibrate.is_empty() {
                calibration
            } else {
                &[]
            };
            let selection = Selection {
                targets: (!self.targets.is_empty()).then(|| self.targets.clone()),
                ignore: self.ignore.clone(),
            };
            let request = Request {
                schemes: scheme.into(),
                method,
                selection,
                correct_bias: false,
                observer: Observer::MeanSquare,
                batches,
                known: None,
                memory_bytes: MEMORY_BYTES,
            };
            let mut one = || -> anyhow::Result<Made> {
                let (weights, outcomes) = quantize(family, &model.weights, target, &request)?;
                let apart = match scheme.form {
                    Form::Single => reference.against(None)?,
                    _ => {
                        let model = Model { family, weights: &weights };
                        reference.against(Some(&mut Scored::new(model, target, cut.extent)?))?
                    }
                };
                Ok(Made { method: method.name(), weights, outcomes, apart })
            };
            match one() {
                Ok(made) => all.push((scheme, Ok(made))),
                // What is wrong with the request is wrong with all.
                Err(error) if is_of_request(&error) || scheme.form == Form::Single => return Err(error),
                Err(error) => all.push((scheme, Err(super::message(&error)))),
            }
        }
        Ok(all)
    }
}

fn is_of_request(error: &anyhow::Error) -> bool {
    use compress::Error;
    matches!(
        error.downcast_ref::<Error>(),
        Some(Error::NoMatch { .. } | Error::NoCalibration { .. } | Error::ShortCalibration { .. })
    )
}

/// Takes the speeds of all that was made; tells as well whether the device's best rates moved meanwhile.
fn timed(
    made: Vec<(Named, Result<Made, String>)>,
    model: &Opened,
    target: &Target,
    course: &Course,
    roofs: &mut Roofs,
    told: &mut Reports,
) -> anyhow::Result<(Vec<Entry>, Option<String>)> {
    eprintln!("taking speeds in turn");
    let family = model.family.as_ref();
    let models: Vec<_> =
        made.iter().filter_map(|(_, made)| made.as_ref().ok()).map(|made| (family, &made.weights)).collect();
    let (mut speeds, works) = speed::measure(&models, target, course, told)?;
    let drift = roofs.again(target)?;
    speed::set_roofs(&mut speeds, &works, roofs);
    let mut speeds = speeds.into_iter();
    let elements = model.weights.count_elements() as f64;
    let entry = |(scheme, made): (Named, Result<Made, String>)| {
        let outcome = made.map(|made| {
            let weight_bytes = Deployment::new(&made.weights).weight_bytes();
            let count = |o: &Outcome| (o.rows * o.cols) as f64;
            let all: f64 = made.outcomes.iter().map(count).sum();
            let bits: f64 = made.outcomes.iter().map(|o| count(o) * o.bits_per_weight).sum();
            Case {
                method: made.method,
                bits: bits / all,
                model_bits: 8.0 * weight_bytes as f64 / elements,
                weight_bytes,
                outcomes: made.outcomes,
                apart: made.apart,
                speed: speeds.next().expect("one of each that was made"),
            }
        });
        Entry { scheme, outcome }
    };
    Ok((made.into_iter().map(entry).collect(), drift))
}

fn place_of(target: &Target) -> Place {
    match target {
        Target::Host => Place { name: target.describe(), is_cpu: true, dot: "host" },
        #[cfg(feature = "gpu")]
        Target::Gpu { gpu, .. } => Place {
            name: gpu.listing.name.clone(),
            is_cpu: gpu.listing.caps.is_cpu,
            dot: gpu.listing.packed_dot.name(),
        },
    }
}

/// A file that appears whole or not at all.
fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = path.with_file_name(format!(".{name}.partial"));
    std::fs::write(&partial, text)
        .and_then(|()| std::fs::rename(&partial, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
