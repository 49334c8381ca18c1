//! `kiln bench compare`: two reports row by row.

use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::spread::short;

/// Compare two reports of the same kind: how much faster or slower each row became.
///
/// A row has changed where the quartiles of both measurements do not overlap.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln bench compare before.json after.json\n  kiln bench compare before.json after.json --json"
)]
pub struct Compare {
    /// The report that counts as before.
    before: PathBuf,
    /// The report that counts as after.
    after: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Why two reports cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The file is no JSON.
    #[error("{path}: not JSON: {source}\n  hint: a report is written by `kiln bench kernels -o FILE`")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// JSON, but no report.
    #[error("{path}: expected a report of `kiln bench`, but {problem}")]
    NoReport {
        /// The file.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
    /// One of kernels, the other of training.
    #[error(
        "the reports are of different kinds: {before} and {after}\n  hint: compare two of the same command"
    )]
    Kinds {
        /// Kind of the first.
        before: String,
        /// Kind of the second.
        after: String,
    },
    /// No row is in both.
    #[error(
        "the reports have no row in common\n  hint: compare runs with the same --only, --shape or models"
    )]
    NothingInCommon,
}

/// A report as read.
struct Read {
    kind: String,
    device: String,
    build: String,
    rows: Vec<Row>,
}

/// A row's name and its quartiles, in ms.
struct Row {
    name: String,
    ms: [f64; 3],
}

/// A row that is in both.
struct Pair<'a> {
    name: &'a str,
    before: [f64; 3],
    after: [f64; 3],
}

impl Compare {
    /// From `--compare`, whose two values clap has counted.
    pub fn new(files: Vec<PathBuf>) -> Compare {
        let [before, after] = files.try_into().expect("clap takes exactly two");
        Compare { before, after, json: false }
    }

    /// Reads both reports and prints what became of each row.
    pub fn run(self) -> anyhow::Result<()> {
        let (before, after) = (read(&self.before)?, read(&self.after)?);
        if before.kind != after.kind {
            return Err(Error::Kinds { before: before.kind, after: after.kind }.into());
        }
        let in_both = |row| Some((row, after.rows.iter().find(|other: &&Row| other.name == row_name(row))?));
        let pairs: Vec<Pair> = before
            .rows
            .iter()
            .filter_map(in_both)
            .map(|(a, b)| Pair { name: &a.name, before: a.ms, after: b.ms })
            .collect();
        if pairs.is_empty() {
            return Err(Error::NothingInCommon.into());
        }
        let lonely: Vec<&str> = (before.rows.iter().chain(&after.rows))
            .map(row_name)
            .filter(|name| !pairs.iter().any(|pair| pair.name == *name))
            .collect();
        let mut out = std::io::stdout().lock();
        match self.json {
            true => writeln!(out, "{:#}", json_of(&before, &after, &pairs, &lonely))?,
            false => write!(out, "{}", text_of(&before, &after, &pairs, &lonely))?,
        }
        Ok(())
    }
}

fn row_name(row: &Row) -> &str {
    &row.name
}

fn read(path: &Path) -> Result<Read, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.into(), source })?;
    let report: Value =
        serde_json::from_str(&text).map_err(|source| Error::Json { path: path.into(), source })?;
    let lacks = |problem: String| Error::NoReport { path: path.into(), problem };
    let kind = report["bench"].as_str().ok_or_else(|| lacks("`bench` is missing".into()))?;
    let name = report["device"]["name"].as_str().ok_or_else(|| lacks("`device.name` is missing".into()))?;
    let driver = report["device"]["driver"].as_str().unwrap_or("");
    let rows = report["rows"].as_array().ok_or_else(|| lacks("`rows` is missing".into()))?;
    // A row with a problem instead of a time has nothing to compare.
    let timed = rows.iter().enumerate().filter(|(_, row)| !row["ms"].is_null());
    let rows = timed
        .map(|(number, row)| row_of(kind, row).ok_or_else(|| lacks(format!("row {number} is incomplete"))))
        .collect::<Result<_, _>>()?;
    Ok(Read {
        kind: kind.into(),
        device: format!("{name} {driver}").trim().to_string(),
        build: report["build"].as_str().unwrap_or("unknown").to_string(),
        rows,
    })
}

fn row_of(kind: &str, row: &Value) -> Option<Row> {
    let keys: &[&str] = match kind {
        "kernels" => &["family", "shape", "dtype", "variant"],
        "train" => &["model", "precision"],
        _ => return None,
    };
    let words = keys.iter().map(|key| row[*key].as_str()).collect::<Option<Vec<_>>>()?;
    let number = |key: &str| row["ms"][key].as_f64().filter(|ms| ms.is_finite() && *ms > 0.0);
    Some(Row { name: words.join(" "), ms: [number("low")?, number("median")?, number("high")?] })
}

impl Pair<'_> {
    /// How many times as long it takes now.
    fn ratio(&self) -> f64 {
        self.after[1] / self.before[1]
    }

    fn verdict(&self) -> &'static str {
        if self.after[2] < self.before[0] {
            "faster"
        } else if self.after[0] > self.before[2] {
            "slower"
        } else {
            "within the spread"
        }
    }
}

/// What makes the two hard to compare.
fn warnings(before: &Read, after: &Read) -> Vec<String> {
    let differ = |what: &str, a: &str, b: &str| (a != b).then(|| format!("{what} differ: {a}, then {b}"));
    let all =
        [differ("devices", &before.device, &after.device), differ("builds", &before.build, &after.build)];
    all.into_iter().flatten().collect()
}

/// The ratio whose logarithm is the mean of the logarithms.
fn mean_ratio(pairs: &[Pair]) -> f64 {
    (pairs.iter().map(|pair| pair.ratio().ln()).sum::<f64>() / pairs.len() as f64).exp()
}

fn json_of(before: &Read, after: &Read, pairs: &[Pair], lonely: &[&str]) -> Value {
    let row = |pair: &Pair| {
        json!({
            "row": pair.name, "before_ms": pair.before[1], "after_ms": pair.after[1],
            "ratio": pair.ratio(), "verdict": pair.verdict(),
        })
    };
    json!({
        "bench": before.kind, "devices": [before.device, after.device], "warnings": warnings(before, after),
        "rows": pairs.iter().map(row).collect::<Vec<_>>(), "mean_ratio": mean_ratio(pairs), "in_one_only": lonely,
    })
}

fn text_of(before: &Read, after: &Read, pairs: &[Pair], lonely: &[&str]) -> String {
    let mut text = String::new();
    warnings(before, after).iter().for_each(|w| text += &format!("warning: {w}\n"));
    let width = pairs.iter().map(|pair| pair.name.len()).max().unwrap_or(0).max(4);
    text += &format!("{:<width$} {:>10} {:>10} {:>7}\n", "row", "before ms", "after ms", "ratio");
    for pair in pairs {
        let (name, [before, after]) = (pair.name, [pair.before[1], pair.after[1]].map(short));
        text +=
            &format!("{name:<width$} {before:>10} {after:>10} {:>7.3}  {}\n", pair.ratio(), pair.verdict());
    }
    let count = |verdict: &str| pairs.iter().filter(|pair| pair.verdict() == verdict).count();
    text += &format!(
        "{} rows: {} faster, {} slower; mean ratio {:.3}\n",
        pairs.len(),
        count("faster"),
        count("slower"),
        mean_ratio(pairs)
    );
    match lonely.len() {
        0 => text,
        count => text + &format!("{count} rows are in one report only: {}\n", lonely.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(before: [f64; 3], after: [f64; 3]) -> Pair<'static> {
        Pair { name: "a", before, after }
    }

    #[test]
    fn a_row_has_changed_where_the_quartiles_do_not_overlap() {
        assert_eq!(pair([9.0, 10.0, 11.0], [4.0, 5.0, 6.0]).verdict(), "faster");
        assert_eq!(pair([9.0, 10.0, 11.0], [12.0, 13.0, 14.0]).verdict(), "slower");
        assert_eq!(pair([9.0, 10.0, 11.0], [10.5, 11.0, 12.0]).verdict(), "within the spread");
    }

    #[test]
    fn half_and_twice_the_time_are_no_change_on_average() {
        let pairs = [pair([1.0; 3], [2.0; 3]), pair([1.0; 3], [0.5; 3])];
        assert!((mean_ratio(&pairs) - 1.0).abs() < 1e-12);
    }
}
