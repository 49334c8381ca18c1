//! Which variant of an operator is the fastest on this adapter: measured once per shape, then remembered in a file.
//!
//! Only operators with enough work are measured; for the rest the operator's own preference stands.

use super::run::Bench;
use super::{Gpu, Pipelines, Result};
use crate::graph::Node;
use crate::ops::launch::Variant;
use crate::tensor::{Tensor, Type};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
    /// Name of the fastest variant by operator, settings, types and driver.
    fastest: BTreeMap<String, String>,
    measured: usize,
}

impl<'a> Tuner<'a> {
    /// A tuner that starts from what `file` remembers. A file that cannot be read counts as empty.
    pub fn new(gpu: &'a Gpu, pipelines: &'a Pipelines, file: Option<PathBuf>) -> Self {
        let text = file.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let fastest = text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        Tuner { gpu, pipelines, file, fastest, measured: 0 }
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
        let known = self.fastest.get(&key).and_then(|name| variants.iter().position(|v| v.name == *name));
        if let Some(number) = known {
            return number;
        }
        let fastest = self.fastest_of(node, inputs, &outputs, variants);
        self.measured += 1;
        self.fastest.insert(key, variants[fastest].name.clone());
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
