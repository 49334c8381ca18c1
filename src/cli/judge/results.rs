//! `kiln judge results`: what raters said, counted.

use super::Results;
use crate::cli::Usage;
use crate::judge::{MAGIC, Store, report};
use anyhow::Context;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Prints the report, and writes the CSV.
pub fn run(results: &Results) -> anyhow::Result<()> {
    let store = Store::read(&results.file)?;
    if let Some(path) = &results.csv {
        expect_no_results(path)?;
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

/// Refuses to write a table over judgements, under whatever name they are reached.
fn expect_no_results(path: &Path) -> anyhow::Result<()> {
    let mut head = vec![];
    if let Ok(file) = File::open(path) {
        file.take(MAGIC.len() as u64).read_to_end(&mut head).with_context(|| path.display().to_string())?;
    }
    match head == MAGIC {
        true => {
            let text = format!(
                "--csv {} is a database, which would be lost\n  hint: name another file",
                path.display()
            );
            Err(Usage(text).into())
        }
        false => Ok(()),
    }
}
