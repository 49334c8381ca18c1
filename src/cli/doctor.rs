//! `kiln doctor`: does every kernel compute on this adapter what the reference computes?

use super::Usage;
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

#[cfg(feature = "gpu")]
mod ward;

/// Check every kernel on an adapter against the reference, and write a report to attach to a bug.
///
/// Each operator runs its own odd cases in each storage type and each kernel variant, between guard words, twice. A variant
/// that fails is not used on this adapter and driver any more, by no command, until it passes every trial. Exit code 1 if
/// anything is wrong.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln doctor\n  kiln doctor --device 1 -o report.json\n  kiln doctor --all\n  kiln doctor --only matmul\n  kiln doctor --json | jq .failures"
)]
pub struct Doctor {
    /// gpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Check only trials whose name contains this, such as matmul or f16.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    only: String,
    /// Stop after so many seconds: the cases go in rounds, one of each operator at a time.
    #[arg(long, value_name = "N", default_value_t = 45.0)]
    seconds: f64,
    /// Run every case, however long it takes.
    #[arg(long, conflicts_with = "seconds")]
    all: bool,
    /// Write the report, in JSON, to this file as well.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Runs the trials, prints and writes the report.
    pub fn run(self) -> anyhow::Result<()> {
        if self.device.eq_ignore_ascii_case("cpu") {
            let text = "the host is the reference itself: there is nothing to check\n  hint: `kiln devices` lists the adapters";
            return Err(Usage(text.into()).into());
        }
        let (diagnosis, verdict) = self.examine();
        let report = json!({
            "kiln": env!("CARGO_PKG_VERSION"),
            "system": { "os": std::env::consts::OS, "architecture": std::env::consts::ARCH },
            "device": self.device,
            "problem": verdict.as_ref().err().map(ToString::to_string),
            "diagnosis": diagnosis,
        });
        if let Some(path) = &self.out {
            use anyhow::Context;
            std::fs::write(path, format!("{report:#}\n"))
                .with_context(|| format!("cannot write {}", path.display()))?;
            eprintln!("report   {}", path.display());
        }
        if self.json {
            use std::io::Write;
            writeln!(std::io::stdout(), "{report:#}")?;
        }
        verdict
    }

    /// What was found, and whether all is well.
    #[cfg(feature = "gpu")]
    fn examine(&self) -> (Value, anyhow::Result<()>) {
        let gpu = match crate::gpu::Gpu::open(&self.device) {
            Ok(gpu) => gpu,
            Err(error) => return (Value::Null, Err(crate::train::Error::from(error).into())),
        };
        let until = Duration::try_from_secs_f64(self.seconds).ok().filter(|_| !self.all);
        let mut chart = ward::round(&gpu, &self.device, &self.only, until);
        let mut ledger = crate::gpu::Ledger::open(crate::train::caches::kernels_file(), &gpu.listing);
        chart.judge(&mut ledger, self.only.is_empty() && chart.is_whole());
        if let Err(error) = ledger.save() {
            eprintln!("warning: the verdicts cannot be remembered: {error}");
        }
        if !self.json
            && let Err(error) = chart.print(&gpu)
        {
            return (chart.json(&gpu), Err(error.into()));
        }
        (chart.json(&gpu), chart.verdict(&gpu))
    }

    #[cfg(not(feature = "gpu"))]
    fn examine(&self) -> (Value, anyhow::Result<()>) {
        let error = crate::train::Error::NoGpuFeature { wanted: self.device.clone() };
        let _ = (&self.only, self.seconds, self.all, Duration::ZERO);
        (Value::Null, Err(error.into()))
    }
}
