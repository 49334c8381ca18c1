//! `kiln bench kernels`: operators alone, every variant of each.

use super::bed::{self, HostBench, Ready, Roofs};
use super::grid::{self, Input, Rate, Subject};
use super::report::{Report, device_json, load};
use super::spread::{Spread, short};
#[cfg(feature = "gpu")]
use crate::gpu::tune::{Ledger, verdict_key};
use crate::ops::Cost;
use crate::tensor::{DType, Tensor, Type};
use crate::train::Target;
use clap::Args;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Time operators alone over a grid of shapes: every kernel variant, the fastest marked.
///
/// GFLOP/s and GB/s count the work and the bytes that an operator needs at least. Runs follow one another over the same
/// operands, so what fits into a cache is read from there, and GB/s may pass the roof.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln bench kernels\n  kiln bench kernels --only matmul --seconds 3\n  kiln bench kernels --only matmul_nn --shape 1024x4096x768 --dtype f16\n  kiln bench kernels --device cpu --json -o host.json"
)]
pub struct Kernels {
    /// Time only families whose name contains this, such as matmul or softmax.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    only: String,
    /// Time this shape instead of the grid, such as 768x512x128. May be given again.
    #[arg(long, value_name = "SIZES")]
    shape: Vec<String>,
    /// Time this storage type alone: f32, f16 or, of matmul, bf16.
    #[arg(long, value_name = "TYPE", value_parser = ["f32", "f16", "bf16"])]
    dtype: Option<String>,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Most time for one kernel at one shape; what would take longer is left out.
    #[arg(long, value_name = "N", default_value = "1", value_parser = super::positive)]
    seconds: f64,
    /// Write the report, in JSON, to this file as well.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One variant at one shape, or why there is no figure.
struct Row {
    subject: usize,
    variant: Option<String>,
    outcome: Result<Figure, String>,
    fastest: bool,
}

/// What was measured.
struct Figure {
    ms: Spread,
    repeats: u32,
    cost: Cost,
}

impl Kernels {
    /// Times, prints and writes the report.
    pub fn run(self) -> anyhow::Result<()> {
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        let mut notes = vec![];
        let dtypes = self.dtypes(&target, &mut notes)?;
        let subjects = grid::subjects(&self.only, &self.shape, &dtypes, !is_processor(&target))?;
        let load = load();
        let mut roofs = Roofs::of(&target)?;
        let spinner = ProgressBar::new_spinner();
        let (mut rows, mut rates) = (vec![], Rates::new());
        for (number, subject) in subjects.iter().enumerate() {
            spinner.set_message(format!("{} {} {}", subject.family.name, subject.shape, subject.dtype));
            let mut own = self.time(&target, number, subject, &mut rates);
            mark_fastest(&mut own);
            rows.extend(own);
            if let Some(problem) = lost(&target) {
                notes.push(format!("stopped: {problem}"));
                break;
            }
        }
        spinner.finish_and_clear();
        if lost(&target).is_none() {
            notes.extend(roofs.again(&target)?);
        }
        let measured = rows.iter().filter(|row| row.outcome.is_ok()).count();
        let report = Report {
            load,
            kind: "kernels",
            body: json!({
                "device": device_json(&target), "roofs": roofs.json(), "seconds": self.seconds, "notes": notes,
                "rows": rows.iter().map(|row| row.json(&subjects[row.subject], &roofs)).collect::<Vec<_>>(),
            }),
            text: text(&target, &roofs, &notes, &subjects, &rows),
        };
        report.give(self.json, self.out.as_deref())?;
        if measured == 0 {
            anyhow::bail!("nothing was measured: the report says why");
        }
        Ok(())
    }

    /// Storage types to time; the host computes in f32 whatever the storage.
    fn dtypes(&self, target: &Target, notes: &mut Vec<String>) -> anyhow::Result<Vec<DType>> {
        let half = !target.is_host() && target.caps().f16;
        let why =
            if target.is_host() { "the host computes in f32" } else { "the adapter has no 16-bit floats" };
        match self.dtype.as_deref() {
            Some("f16") if !half => {
                Err(super::super::Usage(format!("--dtype f16: {why}\n  hint: --dtype f32")).into())
            }
            Some("f16") => Ok(vec![DType::F16]),
            Some("bf16") if target.is_host() => {
                Err(super::super::Usage(format!("--dtype bf16: {why}\n  hint: --dtype f32")).into())
            }
            Some("bf16") => Ok(vec![DType::BF16]),
            Some(_) => Ok(vec![DType::F32]),
            None if half => Ok(vec![DType::F32, DType::F16]),
            None => {
                notes.push(format!("no rows in f16: {why}"));
                Ok(vec![DType::F32])
            }
        }
    }

    /// All variants of a subject.
    fn time(&self, target: &Target, number: usize, subject: &Subject, rates: &mut Rates) -> Vec<Row> {
        if let Some(problem) = bed::misfit(target, subject) {
            return vec![Row { subject: number, variant: None, outcome: Err(problem), fastest: false }];
        }
        let kinds: Vec<Type> = subject.inputs.iter().map(Input::kind).collect();
        let outputs = subject.op.signature(&kinds).expect("what does not fit was sorted out");
        let cost = subject.op.cost(&kinds, &outputs);
        let work = if subject.family.rate == Rate::Flops { cost.flops } else { cost.bytes };
        let mut inputs: Option<Vec<Tensor>> = None;
        let mut rows = vec![];
        let mut try_one = |name: &str, ready: &mut Clock| {
            let rate = rates.entry((subject.family.name, subject.dtype, name.to_string())).or_default();
            let outcome = match bed::too_slow(work, *rate, self.seconds) {
                Some(problem) => Err(problem),
                None => {
                    let inputs =
                        inputs.get_or_insert_with(|| subject.inputs.iter().map(Input::tensor).collect());
                    ready(inputs).map_err(|e| format!("failed: {e}"))
                }
            };
            let outcome = outcome.map(|(ms, repeats)| {
                *rate = Some(work / (1e-3 * ms.median));
                Figure { ms, repeats, cost }
            });
            let variant = Some(name.to_string());
            rows.push(Row { subject: number, variant, outcome, fastest: false });
        };
        #[cfg(feature = "gpu")]
        if let Some((gpu, pipelines)) = bed::adapter(target) {
            let in_place = subject.op.in_place();
            let variants = subject.op.launch(&kinds, &outputs, gpu.caps());
            let ledger = Ledger::open(crate::train::caches::kernels_file(), &gpu.listing);
            for variant in &variants {
                try_one(&variant.name, &mut |inputs| {
                    if let Some(reason) = ledger.wrong(&verdict_key(variant, &kinds)) {
                        anyhow::bail!("it computes wrongly here and is never used: {reason}");
                    }
                    let given: Vec<_> = inputs.iter().cloned().zip(kinds.iter().cloned()).collect();
                    let bench =
                        crate::gpu::run::Bench::new(gpu, pipelines, variant, &given, &outputs, in_place)?;
                    bench.fill();
                    Ready::Gpu(bench).measure(self.seconds)
                });
            }
            return rows;
        }
        try_one("host", &mut |inputs| {
            Ready::Host(HostBench::new(subject.op.as_ref(), inputs, &outputs)).measure(self.seconds)
        });
        rows
    }
}

/// Times one variant over these inputs.
type Clock<'a> = dyn FnMut(&[Tensor]) -> anyhow::Result<(Spread, u32)> + 'a;
/// Work a second of a variant at the last shape it was timed at.
type Rates = BTreeMap<(&'static str, DType, String), Option<f64>>;

/// The host, and drivers that run on it, are spared the largest shapes.
fn is_processor(target: &Target) -> bool {
    target.is_host() || target.caps().is_cpu
}

/// Why the device can do no more, if so.
fn lost(target: &Target) -> Option<String> {
    #[cfg(feature = "gpu")]
    if let Some((gpu, _)) = bed::adapter(target) {
        return gpu.check().err().map(|e| e.to_string());
    }
    let _ = target;
    None
}

fn mark_fastest(rows: &mut [Row]) {
    let time = |row: &Row| row.outcome.as_ref().map_or(f64::INFINITY, |figure| figure.ms.median);
    let best = rows.iter().map(time).fold(f64::INFINITY, f64::min);
    rows.iter_mut().for_each(|row| row.fastest = best.is_finite() && time(row) == best);
}

impl Row {
    fn json(&self, subject: &Subject, roofs: &Roofs) -> Value {
        let mut row = json!({
            "family": subject.family.name, "op": subject.op.name(), "settings": subject.op.settings(),
            "shape": subject.shape, "axes": subject.family.axes, "dtype": subject.dtype.name(),
            "variant": self.variant, "problem": self.outcome.as_ref().err(),
        });
        if let Ok(Figure { ms, repeats, cost }) = &self.outcome {
            let (flops, bytes) = rates_of(ms, cost);
            row["ms"] = ms.json();
            row["repeats"] = json!(repeats);
            row["flops"] = json!(cost.flops);
            row["bytes"] = json!(cost.bytes);
            row["gflops"] = json!(flops / 1e9);
            row["gbs"] = json!(bytes / 1e9);
            row["of_multiply"] = json!(flops / roofs.multiply);
            row["of_copy"] = json!(bytes / roofs.copy);
            row["fastest"] = json!(self.fastest);
        }
        row
    }

    fn line(&self, subject: &Subject, roofs: &Roofs) -> String {
        let head = format!(
            "{:<23} {:<16} {:<4} {:<28}",
            subject.family.name,
            subject.shape,
            subject.dtype.name(),
            self.variant.as_deref().unwrap_or("-")
        );
        match &self.outcome {
            Err(problem) => format!("{head} {problem}\n"),
            Ok(Figure { ms, cost, .. }) => {
                let (flops, bytes) = rates_of(ms, cost);
                let (rate, unit, share) = match subject.family.rate {
                    Rate::Flops => {
                        let unit = if subject.dtype.is_float() { "GFLOP/s" } else { "GOP/s" };
                        (flops, unit, flops / roofs.multiply)
                    }
                    Rate::Bytes => (bytes, "GB/s", bytes / roofs.copy),
                };
                let range = format!("{}..{}", short(ms.low), short(ms.high));
                let mark = if self.fastest { "  *" } else { "" };
                let (ms, rate, share) = (short(ms.median), short(rate / 1e9), 100.0 * share);
                format!("{head} {ms:>9} {range:>17} {rate:>8} {unit:<7} {share:>4.0} %{mark}\n")
            }
        }
    }
}

/// Operations and bytes a second at the median.
fn rates_of(ms: &Spread, cost: &Cost) -> (f64, f64) {
    (cost.flops / (1e-3 * ms.median), cost.bytes / (1e-3 * ms.median))
}

fn text(target: &Target, roofs: &Roofs, notes: &[String], subjects: &[Subject], rows: &[Row]) -> String {
    let mut text = format!("device  {}\nroofs   {}\n", target.describe(), roofs.text());
    notes.iter().for_each(|note| text += &format!("note    {note}\n"));
    text += &format!(
        "\n{:<23} {:<16} {:<4} {:<28} {:>9} {:>17} {:>16} {:>6}\n",
        "family", "shape", "type", "variant", "ms", "quartiles", "rate", "roof"
    );
    rows.iter().for_each(|row| text += &row.line(&subjects[row.subject], roofs));
    text + "* the fastest at its shape; roof: share of the multiply roof (GFLOP/s) or of the copy roof (GB/s)\n"
}
