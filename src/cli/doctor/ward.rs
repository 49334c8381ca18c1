//! The trials of `kiln doctor`, one after the other, and what came of them.

use crate::gpu::qualify::Trial;
use crate::gpu::tune::verdict_key;
use crate::gpu::{Gpu, Ledger, Pipelines};
use crate::ops::launch::Variant;
use crate::ops::{Case, families};
use crate::tensor::DType;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// A trial that went wrong.
pub struct Failure {
    name: String,
    /// Variant with its storage.
    variant: String,
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
    /// Variants with their storage that passed something.
    passed: BTreeSet<String>,
    /// What must not be used here, with the reason.
    verdicts: BTreeMap<String, String>,
    /// Cases that the time did not suffice for.
    left: usize,
    elapsed: Duration,
}

/// One case in one storage type.
struct Bed {
    case: Arc<Case>,
    storage: DType,
    name: String,
}

/// Runs every trial whose name contains `only`, until the time is up. Stops when the device is lost.
///
/// Most of it is the driver compiling, so several threads run trials; a driver on the processor compiles in the order of
/// its queue, so there each thread has a device of its own.
pub fn round(gpu: &Gpu, device: &str, only: &str, until: Option<Duration>) -> Chart {
    let started = Instant::now();
    let beds = beds(gpu, only);
    let bar = ProgressBar::new(beds.len() as u64);
    let next = AtomicUsize::new(0);
    let work = |gpu: &Gpu, pipelines: &Pipelines| {
        let mut chart = Chart::default();
        while let Some(bed) = beds.get(next.fetch_add(1, Ordering::Relaxed)) {
            match gpu.check() {
                Err(_) => chart.miss("the device failed or was lost before"),
                Ok(()) if until.is_some_and(|most| started.elapsed() > most) => chart.left += 1,
                Ok(()) => chart.examine(gpu, pipelines, &bed.case, bed.storage, &bed.name, only),
            }
            bar.inc(1);
        }
        chart
    };
    let pipelines = Pipelines::new(gpu);
    let own = |number: usize| match gpu.caps().is_cpu && number > 0 {
        true => Gpu::open(device).ok().map(|gpu| (Pipelines::new(&gpu), gpu)),
        false => None,
    };
    let charts: Vec<Chart> = std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
        let hands: Vec<_> = (0..threads)
            .map(|number| {
                let (work, pipelines) = (&work, &pipelines);
                scope.spawn(move || match own(number) {
                    Some((pipelines, gpu)) => work(&gpu, &pipelines),
                    None => work(gpu, pipelines),
                })
            })
            .collect();
        hands.into_iter().map(|hand| hand.join().expect("trials report what goes wrong")).collect()
    });
    bar.finish_and_clear();
    let mut whole = Chart { elapsed: started.elapsed(), ..Chart::default() };
    charts.into_iter().for_each(|chart| whole.join(chart));
    whole
}

/// The cases in rounds: first one for each kernel, then one of each operator in each storage at a time, the larger ones
/// first. If the time is up, no kernel has been left out for the sake of another.
fn beds(gpu: &Gpu, only: &str) -> Vec<Bed> {
    let mut beds = vec![];
    let mut rounds: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (family, cases) in families() {
        for case in cases().list.into_iter().rev().map(Arc::new) {
            for storage in [DType::F32, DType::F16, DType::BF16] {
                let name = format!("{family}/{} {}/{storage}", case.op.name(), case.label);
                // Some operators take single precision alone, by their signature; anything else is for the trial to tell.
                let (wanted, kernels) = match Trial::types(&case, storage) {
                    Ok((inputs, outputs)) => {
                        let variants = case.op.launch(&inputs, &outputs, gpu.caps());
                        let wanted = variants.iter().any(|v| format!("{name}/{}", v.name).contains(only));
                        (wanted, variants.iter().map(|v| verdict_key(v, &inputs)).collect::<Vec<_>>())
                    }
                    Err(_) => (storage == DType::F32, vec![]),
                };
                if case.op.is_view() || (!wanted && !name.contains(only)) {
                    continue;
                }
                let round = rounds.entry((case.op.name().into(), storage.to_string())).or_default();
                *round += 1;
                // The first case of a kernel is never put off.
                let is_new =
                    kernels.into_iter().map(|kernel| seen.insert(kernel)).filter(|new| *new).count() > 0;
                let round = if is_new { 0 } else { *round };
                beds.push((round, Bed { case: case.clone(), storage, name }));
            }
        }
    }
    beds.sort_by_key(|(round, _)| *round);
    beds.into_iter().map(|(_, bed)| bed).collect()
}

impl Chart {
    fn join(&mut self, other: Chart) {
        for (variant, [passed, failed]) in other.variants {
            let counts = self.variants.entry(variant).or_default();
            *counts = [counts[0] + passed, counts[1] + failed];
        }
        self.failures.extend(other.failures);
        self.left += other.left;
        self.passed.extend(other.passed);
        for (reason, count) in other.not_run {
            *self.not_run.entry(reason).or_default() += count;
        }
    }

    /// True if the time sufficed for all.
    pub fn is_whole(&self) -> bool {
        self.left == 0
    }

    /// Enters what failed into the ledger, and with `all` takes out what passed everything.
    pub fn judge(&mut self, ledger: &mut Ledger, all: bool) {
        for failure in self.failures.iter().filter(|f| !f.variant.is_empty()) {
            let reason = format!("{}: {}", failure.name, failure.problem.lines().next().unwrap_or_default());
            ledger.condemn(&failure.variant, &reason);
        }
        let failed = |variant: &&String| self.failures.iter().any(|f| f.variant == **variant);
        for variant in self.passed.iter().filter(|v| all && !failed(v)) {
            ledger.absolve(variant);
        }
        self.verdicts = ledger.verdicts().map(|(v, r)| (v.clone(), r.clone())).collect();
    }

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
        if case.op.is_view() || (storage.is_half() && !stored) {
            return;
        }
        let trial = match Trial::new(case, storage) {
            Ok(trial) => trial,
            // Some operators take single precision alone, by their signature.
            Err(_) if storage.is_half() => return,
            Err(error) if name.contains(only) => return self.fail(name.into(), error.to_string()),
            Err(_) => return,
        };
        let variants = case.op.launch(&trial.kinds(), &trial.outputs, gpu.caps());
        if variants.is_empty() && name.contains(only) {
            self.fail(name.into(), "there is no kernel for these types on this adapter".into());
        }
        for variant in variants {
            let full = format!("{name}/{}", variant.name);
            if variant.needs_f16() && !gpu.caps().f16 {
                self.miss("the adapter has no 16-bit floats");
            } else if full.contains(only) {
                let key = verdict_key(&variant, &trial.kinds());
                self.tell(full, &variant, key, trial.check(gpu, pipelines, case, &variant));
            }
        }
    }

    fn tell(&mut self, name: String, variant: &Variant, key: String, outcome: Result<(), String>) {
        let counts = self.variants.entry(variant.name.clone()).or_default();
        match outcome {
            Ok(()) => {
                counts[0] += 1;
                self.passed.insert(key);
            }
            Err(problem) => {
                counts[1] += 1;
                self.failures.push(Failure { name, variant: key, problem });
            }
        }
    }

    fn fail(&mut self, name: String, problem: String) {
        self.variants.entry("no kernel".into()).or_default()[1] += 1;
        self.failures.push(Failure { name, variant: String::new(), problem });
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
        for (variant, reason) in &self.verdicts {
            writeln!(out, "not used  {variant}: {reason}")?;
        }
        for (reason, count) in &self.not_run {
            writeln!(out, "not run   {count} cases: {reason}")?;
        }
        if self.left > 0 {
            writeln!(out, "not run   {} cases: the time was up; `kiln doctor --all` runs them", self.left)?;
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
            "passed": passed, "failed": failed, "not_run": self.not_run, "left": self.left,
            "variants": variants, "failures": failures, "not_used": self.verdicts, "seconds": self.elapsed.as_secs_f64(),
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
