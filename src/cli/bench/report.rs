//! The report of a bench: for machines with everything needed to compare it with another, for people as a table.

use crate::train::Target;
use anyhow::Context;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// What a bench found.
pub struct Report {
    /// [`load`] before anything was timed.
    pub load: Option<f64>,
    /// `kernels` or `train`.
    pub kind: &'static str,
    /// Device, settings and rows.
    pub body: Value,
    /// The same for people.
    pub text: String,
}

impl Report {
    /// Prints it, and writes it to a file if there is one.
    pub fn give(&self, json: bool, out: Option<&Path>) -> anyhow::Result<()> {
        let mut whole = json!({
            "kiln": env!("CARGO_PKG_VERSION"), "bench": self.kind,
            "build": if cfg!(debug_assertions) { "debug" } else { "release" }, "load": self.load,
            "system": { "os": std::env::consts::OS, "architecture": std::env::consts::ARCH },
        });
        if let (Some(whole), Some(body)) = (whole.as_object_mut(), self.body.as_object()) {
            whole.extend(body.clone());
        }
        if let Some(path) = out {
            std::fs::write(path, format!("{whole:#}\n"))
                .with_context(|| format!("cannot write {}", path.display()))?;
            eprintln!("report  {}", path.display());
        }
        let mut stdout = std::io::stdout().lock();
        match json {
            true => writeln!(stdout, "{whole:#}")?,
            false => {
                let build = whole["build"].as_str().unwrap_or_default();
                let load = self.load.map_or(String::new(), |load| format!(", load {load} before the start"));
                writeln!(stdout, "kiln    {} ({build}){load}", env!("CARGO_PKG_VERSION"))?;
                write!(stdout, "{}", self.text)?;
            }
        }
        Ok(())
    }
}

/// Processes that wanted to run in the last minute, on Linux: figures taken on a busy machine are no figures.
pub fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// The adapter as `kiln devices` tells it, or the host.
pub fn device_json(target: &Target) -> Value {
    match target {
        Target::Host => json!({ "name": "host", "threads": rayon::current_num_threads() }),
        #[cfg(feature = "gpu")]
        Target::Gpu { gpu, .. } => crate::cli::devices::json_of(&gpu.listing),
    }
}
