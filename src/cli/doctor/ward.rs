//! The trials of `kiln doctor`, one after the other, and what came of them.

use crate::gpu::qualify::Trial;
use crate::gpu::{Gpu, Pipelines};
use crate::ops::launch::Variant;
use crate::ops::{Case, families};
use crate::tensor::DType;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

/// A trial that went wrong.
pub struct Failure {
    name: String,
    problem: String,
}

/// What came of all trials.
#[derive(Default)]
pub struct Chart {
    /// Trials passed and failed, by variant.
    variants: BTreeMap<String, [usize; 2]>,
    failures: Vec<Failure>,
    /// Trials that did not run, by reason.
    not_run: BTreeMap<String, usize>,
    elapsed: Duration,
}

/// Runs every trial whose name contains `only`. Stops when the device is lost.
pub fn round(gpu: &Gpu, only: &str) -> Chart {
    let started = Instant::now();
    let pipelines = Pipelines::new(gpu);
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(100));
    let mut chart = Chart::default();
    for (family, cases) in families() {
        for case in cases().list {
            for storage in [DType::F32, DType::F16] {
                let name = format!("{family}/{} {}/{storage}", case.op.name(), case.label);
                spinner.set_message(name.clone());
                chart.examine(gpu, &pipelines, &case, storage, &name, only);
                if gpu.check().is_err() {
                    chart.miss("the device failed or was lost before");
                    chart.elapsed = started.elapsed();
                    return chart;
                }
            }
        }
    }
    spinner.finish_and_clear();
    chart.elapsed = started.elapsed();
    chart
}

impl Chart {
    /// All variants of a case in one storage type.
    fn examine(
        &mut self,
        gpu: &Gpu,
        pipelines: &Pipelines,
        case: &Case,
        storage: DType,
        name: &str,
        only: &str,
    ) {
        let stored = case.inputs.iter().any(|t| t.data.dtype() == DType::F64);
        // Views have no kernel; a case without floats is the same in every storage.
        if case.op.is_view() || (storage == DType::F16 && !stored) {
            return;
        }
        let trial = match Trial::new(case, storage) {
            Ok(trial) => trial,
            // Some operators take single precision alone, by their signature.
            Err(_) if storage == DType::F16 => return,
            Err(error) if name.contains(only) => return self.fail(name.into(), error.to_string()),
            Err(_) => return,
        };
        let half = trial.kinds().iter().chain(&trial.outputs).any(|kind| kind.dtype == DType::F16);
        if half && !gpu.caps().f16 {
            return self.miss("the adapter has no 16-bit floats");
        }
        let variants = case.op.launch(&trial.kinds(), &trial.outputs, gpu.caps());
        if variants.is_empty() && name.contains(only) {
            self.fail(name.into(), "there is no kernel for these types on this adapter".into());
        }
        for variant in variants {
            let full = format!("{name}/{}", variant.name);
            if full.contains(only) {
                self.tell(full, &variant, trial.check(gpu, pipelines, case, &variant));
            }
        }
    }

    fn tell(&mut self, name: String, variant: &Variant, outcome: Result<(), String>) {
        let counts = self.variants.entry(variant.name.clone()).or_default();
        match outcome {
            Ok(()) => counts[0] += 1,
            Err(problem) => {
                counts[1] += 1;
                self.failures.push(Failure { name, problem });
            }
        }
    }

    fn fail(&mut self, name: String, problem: String) {
        self.variants.entry("no kernel".into()).or_default()[1] += 1;
        self.failures.push(Failure { name, problem });
    }

    fn miss(&mut self, reason: &str) {
        *self.not_run.entry(reason.into()).or_default() += 1;
    }

    fn counts(&self) -> [usize; 2] {
        self.variants.values().fold([0, 0], |all, one| [all[0] + one[0], all[1] + one[1]])
    }

    /// The report for people.
    pub fn print(&self, gpu: &Gpu) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        let [passed, failed] = self.counts();
        let listing = &gpu.listing;
        writeln!(out, "adapter   {listing}")?;
        writeln!(
            out,
            "limits    buffer {} MiB, binding {} MiB, workgroup memory {} KiB, invocations {}, storage buffers {}",
            listing.max_buffer_bytes >> 20,
            listing.caps.max_binding_bytes >> 20,
            listing.caps.max_workgroup_bytes >> 10,
            listing.caps.max_invocations,
            listing.caps.max_storage_buffers
        )?;
        let yes = |b: bool| if b { "yes" } else { "no" };
        let (f16, subgroup) = (yes(listing.caps.f16), yes(listing.caps.subgroup));
        writeln!(out, "features  f16 {f16}, subgroups {subgroup}, timestamps {}", yes(listing.timestamps))?;
        for (name, [passed, failed]) in &self.variants {
            let verdict = if *failed == 0 { "ok    " } else { "FAILED" };
            writeln!(out, "{verdict}    {name:<28} {passed} passed, {failed} failed")?;
        }
        for failure in &self.failures {
            writeln!(out, "failed    {}\n          {}", failure.name, failure.problem)?;
        }
        for (reason, count) in &self.not_run {
            writeln!(out, "not run   {count} cases: {reason}")?;
        }
        let seconds = self.elapsed.as_secs_f64();
        writeln!(
            out,
            "result    {passed} trials passed, {failed} failed, {} variants, {seconds:.0} s",
            self.variants.len()
        )
    }

    /// The report for machines.
    pub fn json(&self, gpu: &Gpu) -> Value {
        let [passed, failed] = self.counts();
        let variants: BTreeMap<&str, Value> = self
            .variants
            .iter()
            .map(|(name, [passed, failed])| (name.as_str(), json!({ "passed": passed, "failed": failed })))
            .collect();
        let failures: Vec<Value> = self
            .failures
            .iter()
            .map(|failure| json!({ "trial": failure.name, "problem": failure.problem }))
            .collect();
        json!({
            "adapter": crate::cli::devices::json_of(&gpu.listing),
            "passed": passed, "failed": failed, "not_run": self.not_run,
            "variants": variants, "failures": failures, "seconds": self.elapsed.as_secs_f64(),
        })
    }

    /// An error that names the first failures.
    pub fn verdict(&self, gpu: &Gpu) -> anyhow::Result<()> {
        let [passed, failed] = self.counts();
        gpu.check()?;
        if failed > 0 {
            let names: Vec<&str> = self.failures.iter().take(3).map(|f| f.name.as_str()).collect();
            anyhow::bail!(
                "{failed} of {} trials failed on {}: {}{}\n  hint: a newer driver may help; please report it with the file that `kiln doctor -o report.json` writes",
                passed + failed,
                gpu.listing.name,
                names.join(", "),
                if failed > 3 { ", .." } else { "" }
            );
        }
        if passed == 0 {
            anyhow::bail!("no trial ran\n  hint: --only must be part of a trial's name, such as matmul");
        }
        Ok(())
    }
}
