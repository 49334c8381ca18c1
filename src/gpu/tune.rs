//! Which variant of an operator is the fastest on this adapter: measured once per shape, then remembered in a file.
//!
//! Only operators with enough work are measured, and only within a budget of time: for the rest the operator's own
//! preference stands, and a later start measures on. Variants differ in the order of their sums, so a run that resumes
//! must keep the choices it began with: [`Tuner::choices`] tells them, [`Tuner::fix`] holds to them.

use super::run::Bench;
use super::{Gpu, Pipelines, Result};
use crate::graph::Node;
use crate::ops::launch::Variant;
use crate::tensor::{Tensor, Type};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Operations below which a choice cannot matter.
const SMALLEST_FLOPS: f64 = 1e6;
/// Seconds that one timing should take at least.
const TIMING_SECONDS: f64 = 0.004;
/// A variant that is so many times slower at first sight is not timed further.
const HOPELESS: f64 = 4.0;

/// Chooses variants by measuring them.
pub struct Tuner<'a> {
    gpu: &'a Gpu,
    pipelines: &'a Pipelines,
    file: Option<PathBuf>,
    fastest: Choices,
    /// Choices made by this tuner, measured or not.
    chosen: Choices,
    fixed: Choices,
    measured: usize,
    budget: Duration,
}

/// Name of the variant by operator, settings, types and driver.
pub type Choices = BTreeMap<String, String>;

impl<'a> Tuner<'a> {
    /// A tuner that starts from what `file` remembers and measures for about `budget` in all.
    ///
    /// A file that cannot be read counts as empty: what it held is measured again.
    pub fn new(gpu: &'a Gpu, pipelines: &'a Pipelines, file: Option<PathBuf>, budget: Duration) -> Self {
        let text = file.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let fastest = text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let (chosen, fixed) = (Choices::new(), Choices::new());
        Tuner { gpu, pipelines, file, fastest, chosen, fixed, measured: 0, budget }
    }

    /// Holds to the choices of an earlier run.
    pub fn fix(&mut self, choices: Choices) {
        self.fixed = choices;
    }

    /// All choices made so far.
    pub fn choices(&self) -> &Choices {
        &self.chosen
    }

    /// Operators measured so far, those remembered not counted.
    pub fn measured(&self) -> usize {
        self.measured
    }

    /// Number of the variant to use for a node; fits the planner's [`crate::plan::Choose`].
    pub fn choose(&mut self, node: &Node, inputs: &[Type], variants: &[Variant]) -> usize {
        let Ok(outputs) = node.op.signature(inputs) else { return 0 };
        if variants.len() < 2 || node.op.cost(inputs, &outputs).flops < SMALLEST_FLOPS {
            return 0;
        }
        let key = self.key(node, inputs);
        let position = |name: &String| variants.iter().position(|v| v.name == *name);
        let known = self.fixed.get(&key).or_else(|| self.fastest.get(&key)).and_then(position);
        let number = known.unwrap_or_else(|| self.measure(&key, node, inputs, &outputs, variants));
        self.chosen.insert(key, variants[number].name.clone());
        number
    }

    fn measure(
        &mut self,
        key: &str,
        node: &Node,
        inputs: &[Type],
        outputs: &[Type],
        variants: &[Variant],
    ) -> usize {
        if self.budget.is_zero() {
            return 0;
        }
        let start = Instant::now();
        let fastest = self.fastest_of(node, inputs, outputs, variants);
        self.budget = self.budget.saturating_sub(start.elapsed());
        self.measured += 1;
        self.fastest.insert(key.into(), variants[fastest].name.clone());
        fastest
    }

    /// Remembers the choices; through a temporary name, so that a reader never sees half a file.
    pub fn save(&self) -> std::io::Result<()> {
        let Some(file) = self.file.as_deref().filter(|_| self.measured > 0) else { return Ok(()) };
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let partial = file.with_extension(format!("{}.partial", std::process::id()));
        std::fs::write(&partial, serde_json::to_string_pretty(&self.fastest)?)?;
        std::fs::rename(&partial, file)
    }

    fn key(&self, node: &Node, inputs: &[Type]) -> String {
        let types: Vec<_> = inputs.iter().map(Type::to_string).collect();
        let listing = &self.gpu.listing;
        let op = format!("{} {}", node.op.name(), node.op.settings());
        format!("{} {} | {} | {}", listing.name, listing.driver, op.trim(), types.join(" "))
    }

    /// A variant that cannot be run is never the fastest; if none can, the planner will say why.
    fn fastest_of(&self, node: &Node, inputs: &[Type], outputs: &[Type], variants: &[Variant]) -> usize {
        let zeros: Vec<_> = inputs.iter().map(|kind| (Tensor::zeros(kind), kind.clone())).collect();
        let mut best = (f64::INFINITY, 0);
        for (number, variant) in variants.iter().enumerate() {
            let bench = Bench::new(self.gpu, self.pipelines, variant, &zeros, outputs, node.op.in_place());
            if let Ok(seconds) = bench.and_then(|bench| seconds(&bench, best.0))
                && seconds < best.0
            {
                best = (seconds, number);
            }
        }
        best.1
    }
}

/// Seconds of one run: the first compiles, the second tells how often to repeat, the best of three counts.
fn seconds(bench: &Bench, best_so_far: f64) -> Result<f64> {
    bench.time(1)?;
    let once = bench.time(1)?;
    if once > HOPELESS * best_so_far {
        return Ok(once);
    }
    let repeats = (TIMING_SECONDS / once).clamp(1.0, 64.0) as u32;
    let mut least = once;
    for _ in 0..2 {
        least = least.min(bench.time(repeats)?);
    }
    Ok(least)
}

/// Where choices are remembered for this user: `KILN_CACHE`, or the system's folder for caches.
pub fn remembered_in() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = |below: &str| folder("HOME").map(|home| home.join(below));
    let cache = folder("KILN_CACHE").or_else(|| {
        let system = if cfg!(windows) {
            folder("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            home("Library/Caches")
        } else {
            folder("XDG_CACHE_HOME").or_else(|| home(".cache"))
        };
        system.map(|folder| folder.join("kiln"))
    });
    cache.map(|folder| folder.join(Path::new("variants.json")))
}
