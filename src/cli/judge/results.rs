//! `kiln judge results`: what raters said, counted.

use super::Results;
use crate::judge::{Store, report};
use anyhow::Context;
use std::io::Write;

/// Prints the report, and writes the CSV.
pub fn run(results: &Results) -> anyhow::Result<()> {
    let store = Store::read(&results.file)?;
    if let Some(path) = &results.csv {
        let text = report::csv(&store)?;
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
        eprintln!("csv      {}", path.display());
    }
    let report = report(&store)?;
    let mut out = std::io::stdout().lock();
    match results.json {
        true => writeln!(out, "{}", serde_json::to_string(&report)?)?,
        false => write!(out, "{report}")?,
    }
    Ok(())
}
